"""Do raters agree more than chance would make them? Krippendorff's alpha."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .intervals import Interval, checked_level
from .judgements import table

_DRAWS = 1000


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha: 1 full agreement, 0 as chance would have it, below 0 worse than chance.

    Args:
        nominal: Every disagreement weighs the same; None where it cannot be told.
        ordinal: A tie is nearer to a win than a loss is; None where it cannot be told.
        nominal_interval, ordinal_interval: Bootstrap over what was judged; None where it cannot be told.
        raters: How many.
        units: How many pairs two or more raters judged.
        level: Of the intervals.
        untold: Why it cannot be told; None where it can.
    """

    nominal: float | None
    ordinal: float | None
    nominal_interval: Interval | None
    ordinal_interval: Interval | None
    raters: int
    units: int
    level: float
    untold: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.untold:
            return f"agreement between raters: cannot be told, {self.untold}"

        def shown(value: float | None, ends: Interval | None) -> str:
            return f"{value:.2f}" + (f" ({ends.low:.2f} to {ends.high:.2f})" if ends else "")

        return (
            f"agreement between {self.raters} raters over {self.units} pairs (Krippendorff's alpha, "
            f"{100 * self.level:g} %): {shown(self.nominal, self.nominal_interval)} nominal, "
            f"{shown(self.ordinal, self.ordinal_interval)} ordinal"
        )


def agreement(judgements: Iterable[Mapping[str, Any]], level: float = 0.95, seed: int = 0) -> Agreement:
    """Krippendorff's alpha of judgements.

    Args:
        judgements: As of `compare`. What raters agree on is a pair: the row's "pair" where it has one, else its
            prompt.
        level: Of the intervals, in (0, 1).
        seed: Of the bootstrap over pairs.

    Raises:
        ValueError: There are no judgements, a row is not one, or a rater judged a pair twice.
    """
    checked_level(level)
    rows = table(judgements)
    raters = len(rows.raters)
    counts = np.zeros((int(rows.unit.max()) + 1, 3), dtype=int)
    np.add.at(counts, (rows.unit, rows.choice + 1), 1)
    judged, repeats = np.unique(np.stack([rows.unit, rows.rater]), axis=1, return_counts=True)
    if raters > 1 and (repeats > 1).any():
        unit, rater = judged[:, int(repeats.argmax())]
        prompt = rows.prompts[rows.prompt[rows.unit == unit][0]]
        raise ValueError(
            f"{rows.raters[rater]!r} judged {prompt!r} {repeats.max()} times: where a prompt has several pairs "
            '(seeds), give each row a "pair", so that it is known who judged the same thing'
        )
    counts = counts[counts.sum(1) > 1]
    untold = None
    if raters == 1:
        untold = "there is one rater; let a second judge some of the same pairs"
    elif not len(counts):
        untold = "no two raters judged the same pair; let some pairs be judged by several"
    elif (counts.sum(0) > 0).sum() == 1:
        untold = "every judgement is the same: chance would agree as well"
    if untold:
        return Agreement(None, None, None, None, raters, len(counts) if raters > 1 else 0, level, untold)
    nominal, ordinal = _alphas(counts)
    chosen = np.random.default_rng(seed).integers(len(counts), size=(_DRAWS, len(counts)))
    drawn = [_alphas(counts[row]) for row in chosen if (counts[row].sum(0) > 0).sum() > 1]
    tail = (1 - level) / 2
    ends = np.quantile(np.array(drawn), (tail, 1 - tail), axis=0).T.tolist() if len(counts) > 1 else (None, None)
    intervals = [Interval(*pair) if pair else None for pair in ends]
    return Agreement(nominal, ordinal, intervals[0], intervals[1], raters, len(counts), level)


def _alphas(counts: np.ndarray) -> tuple[float, float]:
    """Nominal and ordinal alpha of (pairs, 3) counts of b, tie, a."""
    from krippendorff import alpha

    return (
        float(alpha(value_counts=counts, value_domain=[-1, 0, 1], level_of_measurement="nominal")),
        float(alpha(value_counts=counts, value_domain=[-1, 0, 1], level_of_measurement="ordinal")),
    )
