"""Several (timestep, noise) draws of one clip: their mean, and what it would be without each of them."""

from __future__ import annotations

import torch
from torch import Tensor


def average(draws: Tensor) -> Tensor:
    """The feature of unit vectors, one a draw: their mean, brought to norm 1.

    Args:
        draws: (..., K, D).

    Returns:
        (..., D) float32, of norm 1; zeros where the draws cancel.
    """
    if draws.shape[-2] == 1:
        return draws.select(-2, 0).float()
    mean = draws.double().mean(-2)
    return torch.nn.functional.normalize(mean, dim=-1, eps=1e-12).float()


def without(draws: Tensor, draw: int) -> Tensor:
    """The feature that all draws but one would have given: (..., K, D) with K > 1 to (..., D)."""
    left = [k for k in range(draws.shape[-2]) if k != draw]
    if not left:
        raise ValueError("one draw does not show how much another would differ: score with several, as noise_draws=4")
    return average(draws[..., left, :])


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
