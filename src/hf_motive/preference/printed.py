"""Shares that were printed without an interval, and what can be said of them without the judgements.

Of n judgements by m raters of each prompt, whose answers to one prompt correlate by r, 1 + (m - 1) r tell as much as
one independent judgement. r was not printed: so the interval is given for any r, and the r up to which a preference
can be told from none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .counts import Preference
from .words import percent

#: Correlations of two raters' answers to one prompt: from strangers to one mind.
ALIKE = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)


def largest_design_effect(preference: Preference, level: float = 0.95) -> float:
    """Up to which design effect the win rate's interval leaves one half out; below 1 where it never does."""
    low, high = 0.0, 1.0
    while preference.interval("win_rate", level, design_effect=high).leaves_out(0.5) and high < preference.n:
        low, high = high, 2 * high
    if high >= preference.n:
        return float(preference.n)
    for _ in range(50):
        middle = (low + high) / 2
        apart = preference.interval("win_rate", level, design_effect=middle).leaves_out(0.5)
        low, high = (middle, high) if apart else (low, middle)
    return low


def printed(
    win: float,
    tie: float,
    loss: float,
    *,
    of: int,
    prompts: int | None = None,
    level: float = 0.95,
    names: Sequence[str] = ("a", "b"),
) -> str:
    """Printed percentages with intervals, as Markdown.

    Args:
        win, tie, loss: Percentages.
        of: Judgements.
        prompts: How many prompts they were of; None: each had its own.
        level: Of the intervals.
        names: What a and b are called.

    Raises:
        ValueError: The percentages do not add up, or there are more prompts than judgements.
    """
    preference = Preference.from_shares(win, tie, loss, n=of)
    prompts = of if prompts is None else prompts
    if not 1 <= prompts <= of:
        raise ValueError(f"{of} judgements are of 1 to {of} prompts, got {prompts}")
    raters = of / prompts
    counts = f"{preference.win} / {preference.tie} / {preference.loss}"
    lines = [
        f"{names[0]} better / no difference / {names[1]} better: {counts} of {of}, the counts nearest to "
        f"{win:g} / {tie:g} / {loss:g} %; {prompts} prompts, {raters:.3g} judgements each; "
        f"{100 * level:g} % intervals.",
        "",
        f"| answers to one prompt correlate by | design effect | {names[0]} better | {names[1]} better | "
        "win rate, ties as half |",
        "|---:|---:|---|---|---|",
    ]
    for alike in ALIKE if raters > 1 else ALIKE[:1]:
        effect = 1 + (raters - 1) * alike
        ends = [percent(preference.interval(s, level, design_effect=effect)) for s in ("win", "loss", "win_rate")]
        lines.append(f"| {alike:g} | {effect:.3g} | {' | '.join(ends)} |")
    return "\n".join([*lines, "", _told(preference, raters, level, names)])


def _told(preference: Preference, raters: float, level: float, names: Sequence[str]) -> str:
    largest = largest_design_effect(preference, level)
    better = names[0] if preference.net > 0 else names[1]
    if largest < 1:
        return "Neither side can be told to be preferred, even if all judgements were independent."
    alike = (largest - 1) / (raters - 1) if raters > 1 else math.inf
    if alike >= 1:
        return (
            f"{better} is preferred however alike the answers to one prompt are; raters who differ from one another "
            f"as persons count besides: {better} is preferred up to a design effect of {largest:.3g}."
        )
    return (
        f"{better} can be told to be preferred only if the answers to one prompt correlate by less than {alike:.2f} "
        f"(design effect {largest:.2f}), raters who differ from one another as persons not yet counted."
    )
