"""Scores of clips to what is compared: means, differences, won and lost pairs, groups; and a row a clip."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .arguments import EvaluateArguments
from .distance import Distance
from .generate import Clip
from .intervals import Estimate, Scored, difference, estimate
from .measuring import Measured
from .pairs import judged
from .report import SCORES, Report

#: Prompt -> repeat -> score and frames.
Scores = dict[str, dict[int, Scored]]
_LIBRARIES = ("torch", "diffusers", "transformers", "evaluate", "opencv-python-headless")


def report_of(
    arguments: EvaluateArguments,
    clips: Mapping[str, Sequence[Clip]],
    against: str,
    measured: Sequence[Measured],
    distances: Sequence[Distance],
    described: Mapping[str, dict[str, Any]],
) -> Report:
    """All that is compared.

    Args:
        arguments: Of the job.
        clips: Candidate -> all its clips, in one order.
        against: The candidate that the others are compared with.
        measured: Metrics of single clips.
        distances: Metrics of sets of clips.
        described: Candidate -> what it is.
    """
    others = [name for name in clips if name != against]
    draw: dict[str, Any] = {"draws": arguments.draws, "level": arguments.level, "seed": arguments.seed}
    values: dict[str, dict[str, Estimate]] = {}
    differences: dict[str, dict[str, Estimate]] = {}
    preferences: dict[str, dict[str, dict[str, Any]]] = {}
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for one in measured:
        scores = {name: scores_of(one, of_one) for name, of_one in clips.items()}
        mean = one.metric.mean
        found = {name: estimate(_lists(of_one), mean, **draw) for name, of_one in scores.items()}
        values[one.name] = {name: value for name, value in found.items() if value is not None}
        apart = {name: difference(scores[name], scores[against], mean, **draw) for name in others}
        differences[one.name] = {name: value for name, value in apart.items() if value is not None}
        if others and arguments.preference in (None, one.name):
            preferences[one.name] = {
                name: judged(scores[name], scores[against], one.higher_is_better, arguments)
                for name in others
                if name in differences[one.name]
            }
        groups[one.name] = _by_group(one, clips, mean)
    for distance in distances:
        values[distance.name], differences[distance.name] = distance.values, distance.differences
    first = next(iter(clips.values()))
    every: list[Any] = [*measured, *distances]
    return Report(
        against=against,
        candidates=dict(described),
        metrics={one.name: {"backend": one.backend, "higher_is_better": one.higher_is_better} for one in every},
        values=values,
        differences=differences,
        preferences=preferences,
        groups={name: table for name, table in groups.items() if table},
        prompts=len({clip.prompt.key for clip in first}),
        seeds=arguments.seeds,
        level=arguments.level,
        failed=_failed(clips, every),
        versions={name: version(name) for name in ("hf-motive", *_LIBRARIES)},
    )


def scores_of(measured: Measured, clips: Sequence[Clip]) -> Scores:
    """Of one candidate's clips, those that have a score."""
    found: Scores = {}
    for clip in clips:
        if clip.file in measured.scores:
            found.setdefault(clip.prompt.key, {})[clip.repeat] = measured.scores[clip.file]
    return found


def _lists(scores: Scores) -> dict[str, list[Scored]]:
    return {prompt: list(repeats.values()) for prompt, repeats in scores.items()}


def _by_group(
    measured: Measured, clips: Mapping[str, Sequence[Clip]], mean: Callable[..., float]
) -> dict[str, dict[str, float]]:
    """Group -> candidate -> mean, where prompts are of several groups."""
    kinds = sorted(
        {clip.prompt.group for of_one in clips.values() for clip in of_one if clip.prompt.group is not None}
    )
    table: dict[str, dict[str, float]] = {}
    for kind in kinds if len(kinds) > 1 else []:
        table[kind] = {}
        for name, of_one in clips.items():
            files = [clip.file for clip in of_one if clip.prompt.group == kind]
            scores = [measured.scores[file] for file in files if file in measured.scores]
            if scores:
                table[kind][name] = float(mean([score for score, _ in scores], [frames for _, frames in scores]))
    return table


def _failed(clips: Mapping[str, Sequence[Clip]], measured: Sequence[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, of_one in clips.items():
        for clip in of_one:
            said = {"candidate": name, "prompt": clip.prompt.text, "seed": clip.seed}
            if not clip.file.exists():
                rows.append({**said, "what": "generating", "reason": _reason(clip)})
            rows += [
                {**said, "what": one.name, "reason": one.failed[clip.file]}
                for one in measured
                if clip.file in one.failed
            ]
    return rows


def _reason(clip: Clip) -> str:
    return clip.failed.read_text(encoding="utf-8").strip()


def write_scores(folder: Path, clips: Mapping[str, Sequence[Clip]], measured: Sequence[Measured]) -> None:
    """Write `scores.parquet`: a row a clip, with null where a metric has no score."""
    from datasets import Dataset, Features, Value

    rows = []
    for name, of_one in clips.items():
        for clip in of_one:
            ok = clip.file.exists()
            scored = [one.scores[clip.file] for one in measured if clip.file in one.scores]
            rows.append(
                {
                    "candidate": name,
                    "prompt": clip.prompt.text,
                    "group": clip.prompt.group,
                    "repeat": clip.repeat,
                    "seed": clip.seed,
                    "file": clip.file.relative_to(folder).as_posix() if ok else None,
                    "reason": "" if ok else _reason(clip),
                    "frames": scored[0][1] if scored else None,
                    **{one.name: one.scores[clip.file][0] if clip.file in one.scores else None for one in measured},
                }
            )
    kinds = dict.fromkeys(("candidate", "prompt", "group", "file", "reason"), Value("string"))
    kinds |= dict.fromkeys(("repeat", "seed", "frames"), Value("int64"))
    features = Features({name: kinds.get(name, Value("float64")) for name in rows[0]})
    temporary = folder / f"{SCORES}.part"
    Dataset.from_list(rows, features=features).to_parquet(str(temporary))
    os.replace(temporary, folder / SCORES)
