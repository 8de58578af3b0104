"""The table: every contender's truth beside its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .contenders import Contender
from .truth import Rounds, ceiling, interval, mean_correlation, predicted


@dataclass(frozen=True)
class Retrained:
    """What retraining showed.

    Attributes:
        members: (S, N) of 0 and 1, which clips each subset holds.
        losses: (seeds, S, 2, Q, timesteps): the motion-weighted and the plain one.
        timesteps: At which they were measured.
        seconds: Of a training and measurement, median.
    """

    members: np.ndarray
    losses: np.ndarray
    timesteps: tuple[float, ...]
    seconds: float


def read(folder: Path, names: Sequence[str], seeds: Sequence[int], of: int, timesteps: tuple[float, ...]) -> Retrained:
    """Of the subsets that all seeds have finished."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name in names:
        paths = [folder / "models" / f"{name}-{seed}.npz" for seed in seeds]
        if all(path.exists() for path in paths):
            found[name] = [dict(np.load(path)) for path in paths]
    if len(found) < 3:
        raise SystemExit(f"{len(found)} subsets are finished in {folder}: a correlation takes three")
    members = np.zeros((len(found), of), dtype=int)
    for row, models in enumerate(found.values()):
        members[row, models[0]["chosen"]] = 1
    losses = np.array([[models[s]["losses"].mean(-1) for models in found.values()] for s in range(len(seeds))])
    seconds = float(np.median([model["seconds"][-1] for models in found.values() for model in models]))
    return Retrained(members, losses, timesteps, seconds)


@dataclass(frozen=True)
class Row:
    """A contender's line: means over the reported queries, (low, high) 95 %, and the difference to the reference."""

    contender: Contender
    setting: float
    lds: float
    within: tuple[float, float]
    ahead: tuple[float, float, float] | None
    by_timestep: list[float]
    plain: float


def rows(
    retrained: Retrained, contenders: Sequence[Contender], groups: np.ndarray, tuning: np.ndarray, reference: str
) -> list[Row]:
    """Every contender's line.

    Args:
        groups: (Q,) labels of the queries, as `truth.resampled` takes them.
        tuning: (Q,) bool: by which queries a contender's setting is chosen; the others are reported.
        reference: Name of the contender that the others are compared with.
    """
    masked, plain = (retrained.losses[:, :, kind].mean(0) for kind in (0, 1))  # (S, Q, timesteps)
    told = ~tuning
    truth, rounds = -masked.mean(-1)[:, told], Rounds(len(masked), groups[told])
    found: dict[str, tuple[Contender, float, np.ndarray, np.ndarray]] = {}
    for contender in contenders:
        by_setting = {s: predicted(contender.scores(s), retrained.members) for s in contender.settings}
        setting = max(
            by_setting, key=lambda s: mean_correlation(-masked.mean(-1)[:, tuning], by_setting[s][:, tuning])
        )
        sums = by_setting[setting][:, told]
        found[contender.name] = (contender, setting, sums, rounds.means(truth, sums))
    against = found[reference][3]
    lines = []
    for name, (contender, setting, sums, means) in found.items():
        difference = means - against
        lines.append(
            Row(
                contender,
                setting,
                mean_correlation(truth, sums),
                interval(means),
                None
                if name == reference
                else (
                    mean_correlation(truth, sums) - mean_correlation(truth, found[reference][2]),
                    *interval(difference),
                ),
                [mean_correlation(-masked[:, told, t], sums) for t in range(masked.shape[-1])],
                mean_correlation(-plain.mean(-1)[:, told], sums),
            )
        )
    return lines


def ceilings(retrained: Retrained, told: np.ndarray) -> tuple[float, list[float], float]:
    """Of the motion-weighted loss over all timesteps and at each, and of the plain one."""
    masked, plain = (retrained.losses[:, :, kind][:, :, told] for kind in (0, 1))
    return (
        ceiling(masked.mean(-1)),
        [ceiling(masked[..., t]) for t in range(masked.shape[-1])],
        ceiling(plain.mean(-1)),
    )


def written(retrained: Retrained, lines: Sequence[Row], groups: np.ndarray, told: np.ndarray, dim: int) -> str:
    """Markdown; `dim` numbers are a feature."""
    whole, each, plain = ceilings(retrained, told)
    losses = retrained.losses[:, :, 0][:, :, told].mean(-1)
    low, high = interval(Rounds(losses.shape[1], groups[told]).ceilings(losses))
    levels = [f"at {t:.0f}" for t in retrained.timesteps]
    header = ["contender", "LDS", "95 %", "less the paper's", *levels, "plain loss", "λ", "passes", "bytes a clip"]
    body = [
        [
            "*the ceiling*",
            f"*{whole:.2f}*",
            f"*[{low:.2f}, {high:.2f}]*",
            "",
            *(f"*{value:.2f}*" for value in each),
            f"*{plain:.2f}*",
            "",
            "",
            "",
        ]
    ]
    for row in lines:
        contender = row.contender
        ahead = "" if row.ahead is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row.ahead)
        body.append(
            [
                contender.name,
                f"**{row.lds:.2f}**",
                "[{:.2f}, {:.2f}]".format(*row.within),
                ahead,
                *(f"{value:.2f}" for value in row.by_timestep),
                f"{row.plain:.2f}",
                f"{row.setting:g}" if len(contender.settings) > 1 else "",
                "{} + {}".format(*contender.passes) if any(contender.passes) else "",
                f"{4 * (contender.dim or dim) * contender.numbers:,}" if contender.numbers else "0",
            ]
        )
    return table(header, body)


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body])
