"""What the folder is in which a training ended, for `hf-motive inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelDescription:
    """A trained model, by its `model.json`. `files`: what a push publishes beside it, by path, in bytes."""

    source: str
    weights: str
    base_model: str
    pipeline: str
    components: list[str]
    clips: int | None
    clips_of: int | None
    selection: str | None
    scores: dict[str, Any] | None
    training: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: int
    files: dict[str, int]
    how_to_load: str
    kind: str = "model"


def describe_model(source: str) -> ModelDescription:
    """What it is.

    Raises:
        FileNotFoundError, ValueError: It is not whole.
    """
    from ..hub.model_facts import ModelFacts
    from ..hub.models import published_files

    folder = Path(source).expanduser()
    facts = ModelFacts.load(folder)
    return ModelDescription(
        source=source,
        weights="a LoRA" if facts.kind == "lora" else "all weights",
        base_model=facts.base_model,
        pipeline=facts.pipeline_class,
        components=facts.components,
        clips=facts.clips,
        clips_of=facts.clips_of,
        selection=facts.selection,
        scores=facts.scores,
        training=facts.training,
        metrics=facts.metrics,
        samples=len(facts.samples),
        files={path: file.stat().st_size for path, file in published_files(folder, facts).items()},
        how_to_load=facts.how_to_load.replace("{repo_id}", source),
    )


def print_model(found: ModelDescription) -> None:
    """Print it for people."""
    from .inspect_report import _bytes, _console, _line

    console = _console()
    console.print(f"\n{found.source}: a trained model", style="bold")
    _line(console, "weights", f"{found.weights} of {', '.join(found.components)} of a {found.pipeline}")
    _line(console, "base", found.base_model)
    if found.clips is not None:
        of = "" if found.clips_of is None else f" of {found.clips_of}"
        _line(console, "clips", f"{found.clips}{of}{f': {found.selection}' if found.selection else ''}")
    for name, value in (found.scores or {}).items():
        _line(console, "scores", f"{name}: {value}")
    for name, value in found.training.items():
        _line(console, "training", f"{name}: {value}")
    for row in found.metrics[:1] + found.metrics[1:][-1:]:
        said = (f"{name} {value:.5g}" for name, value in row.items() if name != "step" and value is not None)
        _line(console, f"step {row.get('step')}", ", ".join(said))
    _line(console, "samples", str(found.samples))
    _line(console, "published", f"{len(found.files)} files, {_bytes(sum(found.files.values()))}")
    console.print("\n" + "\n".join(f"    {line}" for line in found.how_to_load.splitlines()))
