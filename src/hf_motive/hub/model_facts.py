"""What a trained model says of itself: `model.json` in its folder, from which its card is made."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..video import file_name
from .card_text import corpus_name
from .published import provenance, without_folders

#: The file's name in the folder of a model.
FACTS = "model.json"
_FORMAT = "hf_motive model"
#: The files of a sample, by name.
ENDS_OF_A_SAMPLE = ("before", "after", "both")


@dataclass
class ModelFacts:
    """How a model came to be, and where the pictures of it are: JSON values and paths below its folder.

    Args:
        base_model: What was trained on: an id of the Hub, or the name of a folder; "" where it has neither.
        pipeline_class: The pipeline's class, by name.
        kind: "full": the denoisers themselves; "lora": adapters to them.
        components: Names of the denoisers that were trained.
        how_to_load: Python that loads the model, one string or its lines, with `{repo_id}` where its place belongs.
        base_is_hub: Whether `base_model` is an id of the Hub.
        pipeline_tag: The Hub's name of the task.
        corpus: What was trained on, by id or name.
        clips: How many clips were trained on.
        clips_of: Out of how many they were chosen, or, without `selection`, of how many they are those that could be
            used; None where that is not known.
        selection: One sentence of how they were chosen; None where all were taken.
        curated_dataset: The id under which those clips are on the Hub, or None.
        scores: Name -> what the scores came from (digests of settings, queries, model), or None.
        training: Name -> value, in the order in which they are to be read: steps, clips seen, learning rate, ...
        metrics: Evaluations in the order of their steps: {"step": 0, "validation loss": 0.4, ...}.
        losses: Loss of the training: [step, loss], in the order of steps.
        samples: {"caption", "before", "after", "both"}: a prompt, and what the model made of it before training and
            after it, as paths of mp4 files; `both` shows the two side by side. Any of the files may be missing.
        pictures: Path of a picture of them all. None: one is drawn from the samples.
        license: As the Hub names it; None where it was not said.
        versions: Library -> version.

    Raises:
        ValueError: `kind` is neither, or a path leads out of the folder.
    """

    base_model: str
    pipeline_class: str
    kind: Literal["full", "lora"]
    components: list[str]
    how_to_load: str
    base_is_hub: bool = False
    pipeline_tag: str = "text-to-video"
    corpus: str | None = None
    clips: int | None = None
    clips_of: int | None = None
    selection: str | None = None
    curated_dataset: str | None = None
    scores: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    pictures: str | None = None
    license: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in ("full", "lora"):
            raise ValueError(f"kind must be 'full' or 'lora', got {self.kind!r}")
        if not isinstance(self.how_to_load, str):
            self.how_to_load = "\n".join(self.how_to_load)
        self.components = [self.components] if isinstance(self.components, str) else list(self.components)
        for path in self.paths():
            pure = PurePosixPath(path)
            if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path:
                raise ValueError(f"{path!r} must be relative to the model's folder, and below it")

    def paths(self) -> list[str]:
        """The files that belong to the card: samples, and their picture."""
        found = [sample.get(end) for sample in self.samples for end in ENDS_OF_A_SAMPLE] + [self.pictures]
        return list(dict.fromkeys(os.fspath(path) for path in found if path))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `model.json`; it appears when it is complete. A number that is not finite is written as null.

        Raises:
            ValueError: A value is none of JSON's.
        """
        path = Path(folder) / FACTS
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(self.to_json(), encoding="utf-8")
        partial.replace(path)
        return path

    def to_json(self, **more: Any) -> str:
        try:
            facts = {"format": _FORMAT, **_plain(asdict(self)), **more}
            return json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"{FACTS} holds numbers, texts, lists and mappings alone: {error}") from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ModelFacts:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no `model.json`.
            ValueError: It is none of `save`.
        """
        path = Path(folder) / FACTS
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} has no {FACTS}, of which the card is made: give the folder in which a training ended, or "
                f"write one by hf_motive.hub.ModelFacts(...).save({str(folder)!r})"
            )
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Write it anew by ModelFacts(...).save") from error

    @classmethod
    def from_json(cls, text: str) -> ModelFacts:
        given = json.loads(text)
        if not isinstance(given, Mapping) or given.get("format") != _FORMAT:
            raise ValueError(f'it is not of "format": "{_FORMAT}"')
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})

    def published(self) -> ModelFacts:
        """The same without folders of this machine: of a path the last name stays."""
        base = str(provenance({"pipeline": self.base_model})["pipeline"]) if self.base_model else ""
        code = self.how_to_load
        if self.base_model and not self.base_is_hub:  # its place may be written as people do, from where they stood
            code = re.sub(
                rf"(['\"])(?:[^'\"\n]*[/\\])?{re.escape(file_name(self.base_model))}[/\\]?\1", rf"\g<1>{base}\1", code
            )
        said = {name: _without_folders(value) for name, value in asdict(self).items() if name not in _PATHS}
        corpus = corpus_name(self.corpus) if self.corpus else None
        return replace(self, **said | {"base_model": base, "corpus": corpus, "how_to_load": without_folders(code)})


#: Checked to be below the folder: they stay as they are.
_PATHS = ("samples", "pictures", "base_model", "how_to_load")


def is_model_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a training left this folder, or a part of it."""
    try:
        ModelFacts.from_json((Path(folder) / FACTS).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, AttributeError):
        return (Path(folder) / "weights.json").is_file()
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and not getattr(value, "shape", ()):  # a number of numpy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_folders(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(inner) for inner in value]
    return without_folders(value) if isinstance(value, str) else value
