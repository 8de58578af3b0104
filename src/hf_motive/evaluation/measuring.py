"""Scores of clips, each process its share, kept in files by what the clip and the metric are."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ClipError
from ..video import content_id
from .generate import Clip, _free
from .specs import Spec

if TYPE_CHECKING:
    from accelerate import PartialState

#: The metric that compares sets of clips, and so needs references.
DISTANCE = "flow_statistics_distance"
#: In the folder of the results: a folder of scores for each metric and its options.
SCORES = "scores"
#: Frames of the clip on which a metric is tried before anything is generated.
_TRIAL = 8


@dataclass
class Measured:
    """What a metric says of clips.

    Args:
        name: Of the metric.
        backend: What produced the scores.
        metric: The loaded module; its `mean` makes one number of several scores.
        scores: File -> score and number of frames.
        failed: File -> why there is no score.
    """

    name: str
    backend: str
    metric: Any
    scores: dict[Path, tuple[float, int]] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)

    @property
    def higher_is_better(self) -> bool:
        return self.metric.higher_is_better


class Journal:
    """Lines of one metric with its options, by the digest of a clip's file; one file for each process.

    Args:
        folder: Of the results.
        spec: The metric, as the user wrote it.
    """

    def __init__(self, folder: Path, spec: Spec):
        from .. import __version__

        said = json.dumps([spec.name, spec.options, __version__], sort_keys=True, default=str)
        self.folder = folder / SCORES / f"{spec.name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"

    def read(self) -> dict[str, dict[str, Any]]:
        """Clip -> its line. A line that a kill left torn is no line."""
        lines: dict[str, dict[str, Any]] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").split("\n"):
                try:
                    said = json.loads(line)
                    lines[said["clip"]] = said if "score" in said else {**said, **lines.get(said["clip"], {})}
                except (ValueError, KeyError):
                    continue
        return lines

    def writer(self, process: int) -> Any:
        """An open file to which whole lines are added."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{process:05d}.jsonl"
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        opened = path.open("a", encoding="utf-8", buffering=1)
        if torn:
            opened.write("\n")
        return opened


def load_metric(spec: Spec, device: Any) -> Any:
    """A module of `hf_motive.metrics` with its options.

    Raises:
        ValueError: It cannot be had; the message says why, and the remedy where there is one.
    """
    from ..metrics import load

    try:
        return load(spec.name, **{"device": device, **spec.options})
    except Exception as error:
        raise ValueError(f"metric {spec.name} cannot be had: {_said(error)}") from error


def check_metric(spec: Spec, device: Any, *, num_frames: int, height: int, width: int, fps: float) -> None:
    """See, before hours of generating, that a metric has its weights and takes clips of this shape.

    Raises:
        ValueError: As `load_metric`.
    """
    metric = load_metric(spec, device)
    clip = _moving(min(num_frames, _TRIAL), height, width)
    try:
        if spec.name == DISTANCE:
            metric.statistics(clip, fps)
        else:
            score(metric, clip, fps)
    except Exception as error:
        raise ValueError(
            f"metric {spec.name} cannot score a clip of {num_frames} frames, {height} × {width}, of moving stripes: "
            f"{_said(error)}"
        ) from error


def score(metric: Any, clip: torch.Tensor, fps: float | None) -> float:
    """One clip's number. Raises ValueError where there is none."""
    with torch.no_grad():
        found = float(metric.score(clip, fps))
    if not math.isfinite(found):
        raise ValueError(f"the score is {found}")
    return found


def measure(spec: Spec, clips: Sequence[Clip], folder: Path, state: PartialState, *, retry_failed: bool) -> Measured:
    """Score what has no score yet.

    Args:
        spec: The metric.
        clips: All that there are.
        folder: Of the results.
        state: The processes, each of which scores a share.
        retry_failed: Try again what could not be scored.

    Returns:
        Scores of all clips, on every process.
    """
    journal = Journal(folder, spec)
    ids = {clip.file: content_id(str(clip.file)) for clip in clips}
    known = journal.read()
    todo = {
        name: file for file, name in ids.items() if name not in known or (retry_failed and "score" not in known[name])
    }
    state.wait_for_everyone()  # all have read before anybody adds to it
    with state.main_process_first():  # which downloads for all
        metric = load_metric(spec, state.device)
    if todo:
        share = list(todo.items())[state.process_index :: state.num_processes]
        with journal.writer(state.process_index) as writer:
            for name, file in shown(share, spec.name, state):
                line = {"clip": name, **_line(metric, file)}
                writer.write(json.dumps(line) + "\n")
        state.wait_for_everyone()
        known = journal.read()
    backends = dict.fromkeys(known[name]["backend"] for name in ids.values())  # a run may have gone on elsewhere
    measured = Measured(spec.name, "; ".join(backends), metric)
    for file, name in ids.items():
        said = known[name]
        if "score" in said:
            measured.scores[file] = (said["score"], said["frames"])
        else:
            measured.failed[file] = said["reason"]
    _free()
    return measured


def _line(metric: Any, file: Path) -> dict[str, Any]:
    from ..metrics.rows import unpack

    try:
        clip, fps = unpack({"path": str(file), "bytes": None})
        return {"score": score(metric, clip, fps), "frames": len(clip), "backend": metric.backend}
    except (ValueError, torch.OutOfMemoryError) as error:  # ClipError is a ValueError
        reason = error.reason if isinstance(error, ClipError) else str(error)
        return {"reason": reason, "backend": metric.backend}


def shown(share: Sequence[Any], name: str, state: PartialState) -> Iterator[Any]:
    """A share of the clips, with a progress bar on the main process."""
    from tqdm.auto import tqdm

    return iter(tqdm(share, desc=name, unit="clip", disable=not state.is_main_process))


def _moving(frames: int, height: int, width: int) -> torch.Tensor:
    """(F, 3, H, W) uint8: soft stripes of three slants that move by two pixels a frame."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    slants = torch.stack([x + y, 2 * x - y, x + 3 * y])[None] + 2 * torch.arange(frames)[:, None, None, None]
    return (127.5 + 100 * torch.sin(slants / 7.0)).to(torch.uint8)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError | TypeError) else f"{type(error).__name__}: {error}"
