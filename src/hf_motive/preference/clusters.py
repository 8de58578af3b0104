"""The spread of a mean whose judgements share prompts and raters.

Judgements of one prompt resemble each other, and so do those of one rater: 17 raters on 50 prompts are 850 judgements
and tell as much as between 17 and 850 independent ones. Prompts and raters are crossed, so both are counted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .intervals import reach


class Spread(NamedTuple):
    """Variance of a mean, and what it was estimated from.

    Args:
        variance: NaN where it cannot be told (one prompt, one rater).
        parts: (variance, clusters) over prompts and over raters.
    """

    variance: float
    parts: tuple[tuple[float, int], ...]

    def errors(self, level: float) -> float:
        """How many standard errors an interval reaches to each side.

        Student's t of prompts and that of raters, weighed by what each adds to the variance (Cochran's t): with two
        raters it is large where they differ, and hardly more than that of the prompts where they do not.
        """
        total = sum(variance for variance, _ in self.parts)
        squares = sum(variance * reach(level, clusters - 1) ** 2 for variance, clusters in self.parts)
        return math.sqrt(squares / total)


def spread(values: np.ndarray, prompt: np.ndarray, rater: np.ndarray) -> Spread:
    """Cluster-robust variance of `values.mean()` over prompts and raters, crossed.

    The variance over prompts and that over raters, less what both count (the judgements themselves): Cameron, Gelbach
    and Miller (2011).

    Args:
        values: (n,) what each judgement counts for.
        prompt, rater: (n,) numbers from 0. One rater tells nothing of others: only prompts are counted then.
    """
    rest = values - values.mean()
    parts = [part for part in (_between(rest, prompt), _between(rest, rater)) if part[1] > 1]
    if not parts:
        return Spread(math.nan, ())
    both = _between(rest, prompt * (rater.max() + 1) + rater)[0] if len(parts) > 1 else 0.0
    variance = max(sum(variance for variance, _ in parts) - both, *(variance for variance, _ in parts))
    return Spread(variance, tuple(parts))


def _between(rest: np.ndarray, group: np.ndarray) -> tuple[float, int]:
    """Variance of the mean if groups are independent, and how many groups there are."""
    sums = np.bincount(group, weights=rest)
    groups = len(np.unique(group))
    return (float((sums**2).sum()) * groups / (groups - 1) / len(rest) ** 2 if groups > 1 else 0.0), groups


def bootstrap(values: np.ndarray, prompt: np.ndarray, rater: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Means of `values` with prompts and, independently, raters drawn again (Owen's pigeonhole bootstrap).

    Args:
        values: (n, k) what each judgement counts for, in k respects.
        prompt, rater: (n,) numbers from 0. With one rater only prompts are drawn.
        draws: How many.
        seed: The same seed gives the same draws.

    Returns:
        (draws, k). A judgement counts as often as its prompt was drawn times as often as its rater was.
    """
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, 200):
        size = min(200, draws - start)
        weights = _drawn(rng, prompt, size) * (_drawn(rng, rater, size) if rater.max() > 0 else 1)
        total = weights.sum(1, keepdims=True)
        with np.errstate(invalid="ignore"):  # where no rater drawn judged a prompt drawn
            found.append(weights @ values / total)
    means = np.concatenate(found)
    return means[np.isfinite(means).all(1)]


def _drawn(rng: np.random.Generator, group: np.ndarray, draws: int) -> np.ndarray:
    """(draws, n): how often the group of each judgement was drawn."""
    groups = int(group.max()) + 1
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)[:, group].astype(float)


def tails(level: float, clusters: int) -> tuple[float, float]:
    """Which quantiles of a bootstrap over so few clusters are the ends of the interval.

    The plain ones, (1 ± level) / 2, lie too close together: a bootstrap's variance is smaller by (n - 1) / n than the
    mean's, and it knows nothing of Student's t. They are moved out by as much as that makes.
    """
    from scipy.stats import norm, t

    low = float(norm.cdf(math.sqrt(clusters / (clusters - 1)) * t.ppf((1 - level) / 2, clusters - 1)))
    return low, 1 - low
