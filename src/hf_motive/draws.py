"""Several (timestep, noise) draws of one clip: one feature of them, and what it would be without each."""

from __future__ import annotations

from torch import Tensor

#: As many draws' worth of the whole corpus goes into each clip's variance. Few draws agree by chance for some clips,
#: and those would pass for certain: benchmarks/results/intervals.md has what that comes to.
_OF_ALL = 4


def side_by_side(draws: Tensor) -> Tensor:
    """The feature of several draws: one beside the other, so that only equal draws are compared.

    The dot product of two such features is the mean over the draws of their cosines. Draws that were averaged first
    would compare every draw with every other, of which retraining says that it predicts less (docs/faithfulness.md).

    Args:
        draws: (..., K, D), a unit vector a draw.

    Returns:
        (..., K·D), of norm 1; one draw as it is.
    """
    count = draws.shape[-2]
    feature = draws.flatten(-2)
    return feature if count == 1 else feature / count**0.5


def without(draws: Tensor, draw: int) -> Tensor:
    """The feature that all draws but one would have given: (..., K, D) with K > 1 to (..., (K - 1)·D)."""
    left = [k for k in range(draws.shape[-2]) if k != draw]
    if not left:
        raise ValueError("one draw does not show how much another would differ: score with several, as noise_draws=4")
    return side_by_side(draws[..., left, :])


def standard_error(values: Tensor) -> Tensor:
    """The jackknife's standard error of a statistic of K draws.

    The draws are shared by all clips and queries, so that what is common to them is left out of every value at once:
    what two clips' errors have in common is in none of the statistics that compare them.

    Args:
        values: (K, ...) the statistic without each of the draws, K > 1.

    Returns:
        (...) float64.
    """
    count = len(values)
    return ((count - 1) * values.double().var(0, correction=0)).sqrt()


def moderated(errors: Tensor, draws: int) -> Tensor:
    """Standard errors of all clips, each variance drawn towards their mean, as an empirical Bayes prior would.

    Args:
        errors: (N,) each by itself.
        draws: K > 1, of which each is.

    Returns:
        (N,), whose mean square is that of `errors`.
    """
    own, variances = draws - 1, errors.square()
    return ((own * variances + _OF_ALL * variances.mean()) / (own + _OF_ALL)).sqrt()


def quantile(draws: int, confidence: float) -> float:
    """How many standard errors a one-sided bound is away: Student's t with K - 1 degrees of freedom.

    Args:
        draws: K > 1.
        confidence: In [0.5, 1).
    """
    from scipy.stats import t

    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be in [0.5, 1), got {confidence}; 0.9 is usual")
    return float(t.ppf(confidence, draws - 1))
