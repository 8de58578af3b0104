"""How well a prediction fits what retraining showed: the linear datamodeling score, its ceiling and its intervals."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

ROUNDS = 1000


def correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Spearman's, column by column: (S, Q) and (S, Q) to (Q,). NaN where a column does not vary."""
    a, b = (rankdata(values, axis=0) for values in (left, right))
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def mean_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Over the columns that vary; 0 where none does."""
    values = correlations(left, right)
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def predicted(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(S, Q): the sum of influence of a subset's clips on a query. Scores (N, Q), members (S, N) of 0 and 1."""
    return members.astype(float) @ scores


def ceiling(losses: np.ndarray) -> np.ndarray:
    """What a perfect prediction of the expected loss could reach against a mean over seeds: (seeds, S, Q) to (Q,).

    With r the mean correlation of two seeds, a mean over k has the reliability kr / (1 + (k - 1) r) (Spearman-Brown),
    and a perfect prediction correlates with it by that one's root.
    """
    k = len(losses)
    pairs = [correlations(losses[a], losses[b]) for a in range(k) for b in range(a)]
    r = np.clip(np.mean(pairs, axis=0), 0.0, 1.0)
    return np.sqrt(k * r / (1 + (k - 1) * r))


class Rounds:
    """The same resamples of subsets and of queries for every contender, so that differences are paired.

    Subsets and queries are both a sample: another corpus would have been halved otherwise, and asked otherwise.
    """

    def __init__(self, subsets: int, queries: int, seed: int = 0, rounds: int = ROUNDS):
        rng = np.random.default_rng(seed)
        self._subsets = rng.integers(subsets, size=(rounds, subsets))
        self._queries = rng.integers(queries, size=(rounds, queries))

    def means(self, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """(rounds,) of the mean correlation; truth and prediction (S, Q)."""
        return np.array(
            [
                mean_correlation(truth[np.ix_(s, q)], prediction[np.ix_(s, q)])
                for s, q in zip(self._subsets, self._queries, strict=True)
            ]
        )


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentiles."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
