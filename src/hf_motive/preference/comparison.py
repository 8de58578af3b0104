"""Judgements to win, tie and loss, with intervals that know that judgements share prompts and raters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clusters import bootstrap, spread, tails
from .counts import SHARES, Preference, Share, sign_test
from .intervals import Interval, checked_level, reach
from .judgements import Table, table

_DRAWS = 2000
_FEW = 10  # clusters; with fewer an interval hangs on which ones they happened to be


@dataclass(frozen=True)
class Comparison:
    """How often a was preferred to b, and how far that would be from what other prompts and raters say.

    Args:
        preference: The counts.
        prompts, raters: How many.
        level: Of all intervals.
        intervals: Share -> Wilson's interval of as many independent judgements as these are worth: n / design effect,
            the design effect estimated over prompts and raters, with Student's t for few of them. The ones to report.
        bootstrap: Share -> percentile interval of the bootstrap over prompts and raters, wider where there are few of
            them; None where it has no width (nothing varies) or there is but one prompt.
        independent: Share -> Wilson's interval if every judgement were independent: too narrow when they are not.
        design_effect: How many judgements tell as much of the win rate as one independent judgement; at least 1.
        p_value: Exact sign test, two-sided: prompts that a wins against prompts that b wins.
        prompts_won: Prompts at which a has more wins than losses, as many, fewer.
        notes: What a reader of the figures must know.
    """

    preference: Preference
    prompts: int
    raters: int
    level: float
    intervals: dict[Share, Interval]
    bootstrap: dict[Share, Interval | None]
    independent: dict[Share, Interval]
    design_effect: float
    p_value: float
    prompts_won: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """All judgements."""
        return self.preference.n

    @property
    def win_rate(self) -> float:
        """Wins and half of the ties, in [0, 1]."""
        return self.preference.win_rate

    def interval(self, share: Share = "win_rate") -> Interval:
        """The one to report. Raises ValueError where there is no such share."""
        if share not in SHARES:
            raise ValueError(f"there is no share {share!r}; there are {', '.join(SHARES)}")
        return self.intervals[share]

    @property
    def is_apart(self) -> bool:
        """Whether one side is preferred: the win rate's interval leaves one half out."""
        return self.interval("win_rate").leaves_out(0.5)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **self.preference.to_dict(),
            "prompts": self.prompts,
            "raters": self.raters,
            "level": self.level,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "bootstrap": {name: list(ends) if ends else None for name, ends in self.bootstrap.items()},
            "independent": {name: list(ends) for name, ends in self.independent.items()},
            "design_effect": self.design_effect,
            "p_value": self.p_value,
            "prompts_won": list(self.prompts_won),
            "notes": list(self.notes),
        }

    def markdown(self, a: str = "a", b: str = "b") -> str:
        """A table for a document, and the notes."""
        from .words import markdown

        return markdown(self, a, b)

    def text(self, a: str = "a", b: str = "b") -> str:
        """A few lines for a terminal."""
        from .words import text

        return text(self, a, b)

    def __str__(self) -> str:
        return self.text()


def compare(judgements: Iterable[Mapping[str, Any]], level: float = 0.95, seed: int = 0) -> Comparison:
    """Count judgements, and say how sure the counts are.

    Args:
        judgements: Rows with "prompt" and "choice" ("a", "b" or "tie"), and with "rater" where there are several.
            Prompts are taken as drawn from all prompts one might ask, raters from all people one might ask: a prompt
            or a rater who says much the same many times is not many.
        level: Of the intervals, in (0, 1).
        seed: Of the bootstrap.

    Raises:
        ValueError: There are no judgements, or a row is not one.
    """
    checked_level(level)
    rows = table(judgements)
    preference = Preference(*(int((rows.choice == choice).sum()) for choice in (1, 0, -1)))
    prompts, raters = len(rows.prompts), len(rows.raters)
    values = _values(rows)
    effects = _design_effects(values, rows, level)
    intervals = {
        share: preference.interval(share, level, design_effect=effect, errors=errors)
        for share, (effect, errors) in effects.items()
    }
    net = np.bincount(rows.prompt, weights=rows.choice)
    won = (int((net > 0).sum()), int((net == 0).sum()), int((net < 0).sum()))
    return Comparison(
        preference=preference,
        prompts=prompts,
        raters=raters,
        level=level,
        intervals=intervals,
        bootstrap=_bootstrap(values, rows, level, seed),
        independent={share: preference.interval(share, level) for share in SHARES},
        design_effect=effects["win_rate"][0],
        p_value=sign_test(won[0], won[2]),
        prompts_won=won,
        notes=_notes(preference, prompts, raters),
    )


def design_effect(judgements: Iterable[Mapping[str, Any]]) -> float:
    """How many of these judgements tell as much of the win rate as one independent judgement; at least 1.

    What `minimum_sample` wants to know, from a pilot with as many raters a prompt as there shall be.

    Raises:
        ValueError: There are no judgements, or a row is not one.
    """
    rows = table(judgements)
    values = _values(rows)
    return _design_effects(values, rows, 0.95)["win_rate"][0]


def _values(rows: Table) -> dict[str, np.ndarray]:
    """Share -> (n,) what each judgement counts for."""
    return {
        "win": (rows.choice == 1).astype(float),
        "tie": (rows.choice == 0).astype(float),
        "loss": (rows.choice == -1).astype(float),
        "win_rate": (rows.choice + 1) / 2,
    }


def _design_effects(values: dict[str, np.ndarray], rows: Table, level: float) -> dict[Share, tuple[float, float]]:
    """Share -> design effect, and how many standard errors its interval reaches."""
    n, prompts, raters = len(rows), len(rows.prompts), len(rows.raters)
    if prompts == n and raters == 1:  # a judgement a prompt: independent, and nothing is estimated
        return {share: (1.0, reach(level)) for share in SHARES}
    found: dict[str, tuple[float, float]] = {}
    for share, value in values.items():
        over = spread(value, rows.prompt, rows.rater)
        alone = value.var() / (n - 1) if n > 1 else 0.0
        if alone and math.isfinite(over.variance) and over.variance:
            found[share] = (max(1.0, over.variance / alone), over.errors(level))
    # What never varied (all won, or no tie at all) says nothing of clusters: it is taken to be as clustered as the
    # others are, and where nothing varied as much as can be, each prompt (or each rater) a single judgement.
    fewest = min(prompts, raters) if raters > 1 else prompts
    worst = max(found.values()) if found else (n / fewest, reach(level))
    effects = {share: found.get(share, worst) for share in values}
    effects["net"] = effects["win_rate"]
    return effects  # type: ignore[return-value]


def _bootstrap(values: dict[str, np.ndarray], rows: Table, level: float, seed: int) -> dict[Share, Interval | None]:
    found: dict[Share, Interval | None] = dict.fromkeys(SHARES)
    prompts, raters = len(rows.prompts), len(rows.raters)
    if prompts < 2:
        return found
    means = bootstrap(np.stack(list(values.values()), axis=1), rows.prompt, rows.rater, _DRAWS, seed)
    ends = np.quantile(means, tails(level, min(prompts, raters) if raters > 1 else prompts), axis=0)
    for share, low, high in zip(values, *ends.tolist(), strict=True):
        if high > low:
            found[share] = Interval(low, high)  # type: ignore[index]
    if (rate := found["win_rate"]) is not None:
        found["net"] = Interval(2 * rate.low - 1, 2 * rate.high - 1)
    return found


def _notes(preference: Preference, prompts: int, raters: int) -> tuple[str, ...]:
    notes = []
    if prompts == 1:
        notes.append("one prompt: nothing is said of other prompts")
    elif prompts < _FEW:
        notes.append(f"{prompts} prompts are few: the intervals hang on which ones they are; ten or more are better")
    if raters == 1 and preference.n > prompts:
        notes.append("several judgements a prompt from one rater: the prompts are what is counted as drawn")
    elif 1 < raters < 5:
        notes.append(f"{raters} raters say little of other raters")
    if max(preference.win, preference.tie, preference.loss) == preference.n:
        notes.append(
            "every judgement is the same: a bootstrap has no width, and Wilson's interval counts "
            "each prompt or each rater, whichever are fewer, as one judgement"
        )
    return tuple(notes)
