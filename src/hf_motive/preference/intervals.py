"""How sure a share is: Wilson's interval, also where ties count as half and where judgements come in clusters."""

from __future__ import annotations

import math
from typing import NamedTuple


class Interval(NamedTuple):
    """Both ends, as shares in [0, 1] (a net preference in [-1, 1])."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def leaves_out(self, value: float) -> bool:
        """Whether `value` lies outside: of a win rate's interval, 0.5 outside means one side is preferred."""
        return not self.low <= value <= self.high


def checked_level(level: float) -> float:
    """`level`, if it is one.

    Raises:
        ValueError: It is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is the share of intervals that hold the truth, between 0 and 1 (0.95), got {level}")
    return level


def reach(level: float, df: float = math.inf) -> float:
    """How many standard errors an interval reaches to each side: 1.96 at 0.95, more with few degrees of freedom."""
    from scipy.stats import norm, t

    tail = (1 + checked_level(level)) / 2
    return float(norm.ppf(tail) if math.isinf(df) else t.ppf(tail, df))


def wilson(share: float, n: float, level: float = 0.95, *, ties: float = 0.0, errors: float | None = None) -> Interval:
    """Wilson's score interval: all shares that the one seen is not too far from, judged by their own variance.

    Never empty, never outside [0, 1], right even at 0 and 1 and for few judgements.

    Args:
        share: What was seen, in [0, 1]; with `ties`, wins and half of the ties.
        n: Judgements; fewer, and perhaps no whole number, where they come in clusters (n / design effect).
        level: In (0, 1).
        ties: Share of judgements that count as half, at least: each takes a quarter from the variance p (1 - p).
        errors: How many standard errors to reach, where n rests on a variance that was estimated from few clusters;
            None: `reach(level)`.

    Raises:
        ValueError: A share is outside [0, 1], n is not positive, or `level` is no level.
    """
    if not (0 <= share <= 1 and 0 <= ties <= 1):
        raise ValueError(f"a share lies in [0, 1], got {share} (ties {ties})")
    if not n > 0:
        raise ValueError(f"an interval needs at least one judgement, got {n}")
    checked_level(level)
    k = (reach(level) if errors is None else errors) ** 2 / n
    # (share - p)² <= k (p (1 - p) - ties / 4), solved for p
    middle = (share + k / 2) / (1 + k)
    half = math.sqrt(max(0.0, middle**2 - (share**2 + k * ties / 4) / (1 + k)))
    return Interval(max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def minimum_sample(share: float, half_width: float, level: float = 0.95, design_effect: float = 1.0) -> int:
    """How many judgements make Wilson's interval about `share` reach no further than `half_width` to each side.

    Args:
        share: What one expects to see, in [0, 1]; 0.5 asks for most.
        half_width: In (0, 0.5): half of high - low.
        level: In (0, 1).
        design_effect: By how much judgements in clusters tell less than independent ones: with m raters a prompt
            whose answers correlate by ρ, 1 + (m - 1) ρ. What a pilot had: `design_effect(judgements)`.

    Raises:
        ValueError: An argument is out of its range.
    """
    if not 0 < half_width < 0.5:
        raise ValueError(f"half_width is a share between 0 and 0.5 (0.03 is ± 3 %), got {half_width}")
    if not design_effect >= 1:
        raise ValueError(f"design_effect is at least 1 (independent judgements), got {design_effect}")
    low, high = 0, 1
    while wilson(share, high, level).half_width > half_width:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wilson(share, middle, level).half_width > half_width else (low, middle)
    return math.ceil(high * design_effect - 1e-9)
