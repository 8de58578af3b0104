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
    """Over the columns; one that does not vary predicts nothing, and counts as 0."""
    return float(np.nan_to_num(correlations(left, right)).mean())


def predicted(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(S, Q): the sum of influence of a subset's clips on a query. Scores (N, Q), members (S, N) of 0 and 1."""
    return members.astype(float) @ scores


def ceiling(losses: np.ndarray) -> float:
    """What a perfect prediction of the expected loss could reach against a mean over seeds: losses (seeds, S, Q).

    With r the mean correlation of two seeds, a mean over k has the reliability kr / (1 + (k - 1) r) (Spearman-Brown),
    and a perfect prediction correlates with it by that one's root. r is the mean over all queries: root by root, the
    scatter of each one's r would pull the mean down.
    """
    k = len(losses)
    r = max(0.0, float(np.mean([mean_correlation(losses[a], losses[b]) for a in range(k) for b in range(a)])))
    return float(np.sqrt(k * r / (1 + (k - 1) * r)))


def resampled(groups: np.ndarray, rounds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Bootstrap of queries that come in groups: groups are drawn, and of each one as many of its queries as it has.

    Args:
        groups: (Q,) labels. What the queries of a motion have in common is a sample, too.

    Returns:
        For each round, positions of queries.
    """
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return [
        np.concatenate(
            [rng.choice(members[g], len(members[g])) for g in rng.integers(len(members), size=len(members))]
        )
        for _ in range(rounds)
    ]


class Rounds:
    """The same resamples of subsets and of queries for every contender, so that differences are paired.

    Subsets and queries are both a sample: another corpus would have been halved otherwise, and asked otherwise.

    Args:
        subsets: S.
        groups: (Q,) labels, as `resampled` takes them.
    """

    def __init__(self, subsets: int, groups: np.ndarray, seed: int = 0, rounds: int = ROUNDS):
        rng = np.random.default_rng(seed)
        self._rounds = list(
            zip(rng.integers(subsets, size=(rounds, subsets)), resampled(groups, rounds, rng), strict=True)
        )

    def means(self, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """(rounds,) of the mean correlation; truth and prediction (S, Q)."""
        return np.array([mean_correlation(truth[np.ix_(s, q)], prediction[np.ix_(s, q)]) for s, q in self._rounds])

    def ceilings(self, losses: np.ndarray) -> np.ndarray:
        """(rounds,) of the ceiling; losses (seeds, S, Q)."""
        return np.array([ceiling(losses[:, s][:, :, q]) for s, q in self._rounds])


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentiles."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
