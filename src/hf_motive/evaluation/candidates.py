"""What is compared: pipelines, fine-tuned denoisers and LoRAs, each as a pipeline that is ready to generate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..pipelines import digest
from ..pipelines.denoisers import find_denoisers
from ..training import adapters
from ..training.weights import FACTS
from ..training.whole import read_whole
from .fingerprints import Fingerprints
from .specs import Spec

_PIPELINES = ("model_index.json", "modular_model_index.json")
_FACTS_OF_A_MODEL = "model.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
#: What may be set on one candidate alone.
OPTIONS = ("guidance", "steps", "scale", "pipeline")


@dataclass(frozen=True)
class Candidate:
    """One side of the comparison.

    Args:
        name: What the results call it.
        kind: A whole "pipeline"; what a training left, "trained" from a base; or a "lora" that diffusers loads.
        place: Of it: a folder, a file, or a Hub id.
        base: The pipeline under a "trained" or a "lora".
        scale: Strength of its LoRA.
        guidance, steps: Of its own; None: those of the job.
    """

    name: str
    kind: Literal["pipeline", "trained", "lora"]
    place: str
    base: str | None = None
    scale: float = 1.0
    guidance: float | None = None
    steps: int | None = None

    def weights(self, files: Fingerprints) -> dict[str, Any]:
        """What its clips depend on and may change under the same name, as JSON values: without loading it."""
        said: dict[str, Any] = {"kind": self.kind, "weights": _fingerprint(self.place, files)}
        if self.base is not None:
            said["base"] = _fingerprint(self.base, files)
        if self.scale != 1.0:
            said["scale"] = self.scale
        return said

    def load(self, dtype: str, device: Any) -> Any:
        """The pipeline.

        Raises:
            ValueError: It was trained from another pipeline, or its weights do not fit.
            OSError: It is not whole.
        """
        from ..scoring import load_pipeline

        pipe = load_pipeline(self.base or self.place, dtype, device)
        if self.kind == "trained":
            _put_trained(pipe, Path(self.place), self, half=dtype == "float16")
        elif self.kind == "lora":
            _put_lora(pipe, self)
        if self.scale != 1.0:
            _scale(pipe, self)
        return pipe


def resolve(spec: Spec, pipeline: str | None) -> Candidate:
    """Look at what lies at a place, on this machine or on the Hub.

    Args:
        spec: As the user wrote it; without a place it is the pipeline itself.
        pipeline: The pipeline of the job, under all that is not whole.

    Raises:
        ValueError: Nothing there can be compared; or there is no pipeline under it.
        FileNotFoundError: There is nothing.
    """
    options = dict(spec.options)
    base = options.pop("pipeline", None) or pipeline
    place = spec.place or base
    if place is None:
        raise ValueError(
            f"candidate {spec.name} has no place: write {spec.name}=FOLDER or {spec.name}=HUB_ID, or say --pipeline"
        )
    kind, place = _kind(place)
    if kind == "pipeline":
        if "scale" in options:
            raise ValueError(f"candidate {spec.name} is a whole pipeline: scale= is the strength of a LoRA")
        return Candidate(spec.name, kind, place, **options)
    base = base or _base_of(Path(place))
    if base is None:
        raise ValueError(
            f"{spec.place} is weights for a pipeline, and does not say for which: give it by --pipeline, or as "
            f"{spec.name}={spec.place},pipeline=FOLDER_OR_HUB_ID"
        )
    under, base = _kind(base)
    if under != "pipeline":
        raise ValueError(f"{base} is no whole pipeline, which {spec.name} needs under it: give one by --pipeline")
    return Candidate(spec.name, kind, place, base, **options)


# -------------------------------------------------------------------------------------------------- what lies there


def _kind(place: str) -> tuple[Literal["pipeline", "trained", "lora"], str]:
    """What it is, and the folder, file or id to load it from."""
    path = Path(place).expanduser()
    if path.is_file():
        if path.suffix not in _WEIGHTS:
            raise ValueError(f"{place} is no LoRA: give a .safetensors, or a folder that diffusers loads")
        return "lora", str(path)
    if path.is_dir():
        return _kind_of_folder(path, place), str(path)
    if path.is_absolute() or place.startswith((".", "~")) or place.count("/") != 1:
        raise FileNotFoundError(
            f"{place} does not exist: a candidate is a pipeline's folder, the folder in which a training ended, a "
            "LoRA, or the Hub id of one of them"
        )
    snapshot = _snapshot(place, [*_PIPELINES, FACTS, _FACTS_OF_A_MODEL])
    if any((snapshot / name).exists() for name in _PIPELINES):
        return "pipeline", place
    if (snapshot / FACTS).exists():  # weights of a few components, whose files are read one by one
        components = json.loads((snapshot / FACTS).read_text("utf-8"))["components"]
        files = [adapters.LORA_FILE, "pytorch_lora_weights_*", *(f"{name}/*" for name in components)]
        return "trained", str(_snapshot(place, [FACTS, _FACTS_OF_A_MODEL, *files]))
    return "lora", place


def _kind_of_folder(path: Path, place: str) -> Literal["pipeline", "trained", "lora"]:
    if any((path / name).exists() for name in _PIPELINES):
        return "pipeline"
    if (path / FACTS).exists():
        return "trained"
    if (path / adapters.LORA_FILE).exists():
        return "lora"
    unfinished = sorted(path.glob("checkpoint-*"), key=lambda p: (len(p.name), p.name))
    if unfinished:
        raise ValueError(f"the training in {place} has not ended: end it, or take a checkpoint, {unfinished[-1]}")
    raise ValueError(
        f"{place} holds no pipeline (model_index.json), no end of a training ({FACTS}) and no {adapters.LORA_FILE}: "
        "give a folder that does, or the LoRA's file itself"
    )


def _snapshot(repo_id: str, patterns: list[str]) -> Path:
    """Files of a model on the Hub, downloaded once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{repo_id} is no folder here, and the Hub does not give it ({reason}): check the name, and `hf auth "
            "login` where it is private"
        ) from error


def _base_of(folder: Path) -> str | None:
    """The pipeline that a training says it began from, where that is on the Hub."""
    try:
        said = json.loads((folder / _FACTS_OF_A_MODEL).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return said.get("base_model") if said.get("base_is_hub") else None


def _fingerprint(place: str, files: Fingerprints) -> str:
    """Of a folder or file, what is in it; of a Hub id, the commit."""
    path = Path(place)
    if not path.exists():
        return f"{place} {_snapshot(place, [*_PIPELINES, FACTS]).name}"
    return path.name if path.parent.name == "snapshots" else files.of(place)


# ------------------------------------------------------------------------------------------------- putting it on


def _put_trained(pipe: Any, folder: Path, candidate: Candidate, *, half: bool) -> None:
    """What `MotiveTrainer` saved, into the pipeline that it was trained from."""
    said = json.loads((folder / FACTS).read_text("utf-8"))
    parts = find_denoisers(pipe)
    missing = [name for name in said["components"] if name not in parts]
    if missing:
        raise ValueError(
            f"{candidate.place} is weights of {', '.join(missing)}, and {type(pipe).__name__} has "
            f"{', '.join(parts)}: give the pipeline that it was trained from, as "
            f"{candidate.name}={candidate.place},pipeline=BASE"
        )
    # Digests hold for float32 and bfloat16 alike; float16 rounds otherwise.
    other = (
        [] if half else [n for n in said["components"] if digest.denoiser(parts[n]) != said["base"]["components"][n]]
    )
    if other:
        raise ValueError(
            f"{candidate.place} was trained from another {' and '.join(other)} than that of {candidate.base}: give "
            f"the pipeline that it was trained from, as {candidate.name}={candidate.place},pipeline=BASE"
        )
    for name in said["components"]:
        part = parts[name]
        if said["kind"] == "full":
            try:
                part.load_state_dict(read_whole(folder / name))
            except RuntimeError as error:
                raise ValueError(f"{folder / name} does not fit {name} of {candidate.base}: {error}") from error
            continue
        place = adapters.place_of(pipe, name, part)
        inner, _, file = place.file.rpartition("/")
        if place.loader == "peft":
            from peft import PeftModel

            PeftModel.from_pretrained(part, str(folder), subfolder=inner)  # in place
        elif place.loader == "model":
            loads: Any = part
            loads.load_lora_adapter(str(folder), prefix=None, subfolder=inner, weight_name=file)
        else:
            into = {} if place.stem == name else {f"load_into_{name}": True}
            pipe.load_lora_weights(str(folder), weight_name=file, **into)


def _put_lora(pipe: Any, candidate: Candidate) -> None:
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(
            f"{type(pipe).__name__} loads no LoRA, and {candidate.place} is one: give a whole pipeline, or the folder "
            "in which MotiveTrainer ended"
        )
    path = Path(candidate.place)
    if path.is_file():
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    else:
        pipe.load_lora_weights(candidate.place)


def _scale(pipe: Any, candidate: Candidate) -> None:
    from diffusers.utils.peft_utils import scale_lora_layers

    parts = find_denoisers(pipe).values()
    if not any(hasattr(module, "scaling") for part in parts for module in part.modules()):
        raise ValueError(
            f"candidate {candidate.name} has no LoRA that scale={candidate.scale} could be the strength of"
        )
    for part in parts:
        scale_lora_layers(part, candidate.scale)
