"""How far a candidate's clips, as a set, are from real ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ClipError
from ..training.samples import write_text
from ..video import content_id
from .generate import Clip
from .intervals import Estimate, jackknife
from .measuring import Journal, load_metric, shown
from .specs import Spec

if TYPE_CHECKING:
    from accelerate import PartialState

    from .arguments import EvaluateArguments


@dataclass
class Distance:
    """A metric of sets.

    Args:
        name, backend, higher_is_better: Of the metric.
        values: Candidate -> its distance from the references.
        differences: Candidate -> how much farther it is than the one that all are compared with.
        failed: File -> why it is not among the set's clips.
        references: How many real clips there were.
    """

    name: str
    backend: str
    higher_is_better: bool
    values: dict[str, Estimate]
    differences: dict[str, Estimate]
    references: int
    failed: dict[Path, str] = field(default_factory=dict)


def measure_distance(
    spec: Spec, clips: Mapping[str, Sequence[Clip]], against: str, arguments: EvaluateArguments, state: PartialState
) -> Distance:
    """Compare each candidate's clips with the references, each process looking at its share of all clips.

    The intervals are of the jackknife over prompts: a bootstrap puts clips twice into a set, which by itself moves it
    away from the references.

    Raises:
        ValueError: No reference can be read.
    """
    from ..corpus import load_clips

    folder = Journal(Path(arguments.output), spec).folder
    with state.main_process_first():  # which downloads for all
        metric = load_metric(spec, state.device)
        rows = load_clips(str(arguments.references), video_column=arguments.video_column)
        real = [row[arguments.video_column] for row in rows]
    there = {clip.file: str(clip.file) for of_one in clips.values() for clip in of_one if clip.file.exists()}
    ids = {file: content_id(video) for file, video in there.items()}
    real_ids = {name: video for video in real if (name := _id(video))}
    videos = {**{ids[file]: video for file, video in there.items()}, **real_ids}
    _look(metric, videos, folder, state, retry_failed=arguments.retry_failed)
    if not state.is_main_process:
        return Distance(spec.name, metric.backend, metric.higher_is_better, {}, {}, 0)
    found = {name: torch.load(folder / f"{name}.pt") for name in videos if (folder / f"{name}.pt").exists()}
    references = [found[name] for name in real_ids if name in found]
    if not references:
        raise ValueError(f"none of the references in {arguments.references} can be read: give real clips")

    def far(names: list[str]) -> float:
        return float(metric.distance([found[name] for name in names], references))

    def prompts_of(of_one: Sequence[Clip]) -> dict[str, dict[int, str]]:
        found_of: dict[str, dict[int, str]] = {}
        for clip in of_one:
            if ids.get(clip.file) in found:
                found_of.setdefault(clip.prompt.key, {})[clip.repeat] = ids[clip.file]
        return found_of

    of_all = {name: prompts_of(of_one) for name, of_one in clips.items()}
    values = {
        name: jackknife([list(repeats.values()) for repeats in prompts.values()], far, arguments.level)
        for name, prompts in of_all.items()
        if prompts
    }
    differences = {
        name: jackknife(pairs, _apart(far), arguments.level)
        for name in of_all
        if name != against and (pairs := _pairs(of_all[name], of_all[against]))
    }
    failed = {
        file: (folder / f"{name}.failed").read_text(encoding="utf-8").strip()
        for file, name in ids.items()
        if name not in found
    }
    return Distance(spec.name, metric.backend, metric.higher_is_better, values, differences, len(references), failed)


def _pairs(ours: dict[str, dict[int, str]], theirs: dict[str, dict[int, str]]) -> list[list[tuple[str, str]]]:
    """The clips of a prompt that both have, a list a prompt."""
    found = [
        [(name, theirs[prompt][repeat]) for repeat, name in repeats.items() if repeat in theirs.get(prompt, {})]
        for prompt, repeats in ours.items()
    ]
    return [pairs for pairs in found if pairs]


def _apart(far: Callable[[list[str]], float]) -> Callable[[list[tuple[str, str]]], float]:
    return lambda pairs: far([ours for ours, _ in pairs]) - far([theirs for _, theirs in pairs])


def _id(video: Any) -> str | None:
    try:
        return content_id(video)
    except ClipError:  # of a file that is not there
        return None


def _look(metric: Any, videos: Mapping[str, Any], folder: Path, state: PartialState, *, retry_failed: bool) -> None:
    """Write each clip's statistics, or why there are none, by the digest of its file."""
    from ..metrics.rows import pack, unpack

    folder.mkdir(parents=True, exist_ok=True)
    ends = (".pt",) if retry_failed else (".pt", ".failed")
    todo = [name for name in videos if not any((folder / f"{name}{end}").exists() for end in ends)]
    state.wait_for_everyone()  # all have looked before anybody adds to it
    for name in shown(todo[state.process_index :: state.num_processes], metric.name, state) if todo else []:
        try:
            with torch.no_grad():
                _save(folder / f"{name}.pt", torch.as_tensor(metric.statistics(*unpack(pack(videos[name])))).cpu())
        except (ValueError, torch.OutOfMemoryError) as error:
            write_text(folder / f"{name}.failed", error.reason if isinstance(error, ClipError) else str(error))
    state.wait_for_everyone()


def _save(path: Path, statistics: Tensor) -> None:
    temporary = path.with_name(f".{path.name}.part")
    torch.save(statistics, temporary)
    os.replace(temporary, path)
