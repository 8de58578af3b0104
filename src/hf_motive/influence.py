"""From features to ranked clips: cosine, votes, mean influence, rank (arXiv 2601.08828).

Plain tensors in, plain tensors out: nothing here knows a model, a clip or an index.

The law of this module: **a result is the same bit for bit whatever the chunk size, the order of the clips or queries,
the number of threads or the BLAS.** Floating-point sums depend on their order; these do not, because they
are exact: unit vectors are rounded to multiples of 2⁻²⁶ and held as whole numbers, so that every product and, by
Cauchy–Schwarz, every partial sum of a dot product is an integer below 2⁵³, which float64 holds. The rounding moves an
entry by at most 2⁻²⁷ ≈ 7.5e-9 and a cosine by about 1e-8: less than the float32 of a score can show near 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

_GRID = 2.0**26
# Rows held in float64 at a time: 1,024 × 512 × 8 bytes = 4 MB, so that the passes over them stay in a CPU's cache.
_BLOCK = 1024
_MEAN_GRID = 2.0**40


@dataclass(frozen=True)
class Influence:
    """How N clips bear on Q queries.

    Attributes:
        scores: (N, Q) float32 in [-1, 1], the influence of each clip on each query. Negative: training on the clip
            works against what the query shows.
        cutoffs: (Q,) float32, each query's percentile; a clip above it has that query's vote.
        mean: (N,) float64 in [-1, 1], the mean of `scores` over queries.
        votes: (N,) int64 in [0, Q].
        rank: (N,) int64, 0 for the best clip, N - 1 for the worst; no two are equal.
    """

    scores: Tensor
    cutoffs: Tensor
    mean: Tensor
    votes: Tensor
    rank: Tensor

    def top(self, fraction: float = 0.1) -> Tensor:
        """(K,) int64 positions of the best clips, best first; see `select`."""
        return select(self.rank, fraction)


def influence(
    features: Tensor | Iterable[Tensor], queries: Tensor, *, fraction: float = 0.1, percentile: float | None = None
) -> Influence:
    """Score, vote and rank N clips for Q queries (arXiv 2601.08828).

    Args:
        features: (N, D) clip features, or an iterable of (n, D) chunks, e.g. `(f for _, f in index.chunks())`.
            Their length does not matter: every positive factor of a feature cancels.
        queries: (Q, D) query features, likewise.
        fraction: The share of clips that will be kept; only sets the default of `percentile`.
        percentile: A query's cut-off τ in [0, 100). The paper leaves it open; the default is the percentile of the
            selection, 100·(1 - fraction), so that each query votes for as many clips as will be kept.

    Returns:
        Influence, on the device of `queries`.

    Memory: the scores (4·N·Q bytes), as much again while chunks are joined, and about 100 MB.

    Raises:
        ValueError: no clips, no queries, shapes that do not match, or a feature that is not finite or all zeros.
    """
    if percentile is None:
        percentile = float(100 * (1 - _exact_fraction(fraction)))
    scores = cosine(features, queries)
    levels = cutoffs(scores, percentile)
    counts = votes(scores, levels)
    mean = mean_influence(scores)
    return Influence(scores=scores, cutoffs=levels, mean=mean, votes=counts, rank=rank(counts, mean))


def cosine(features: Tensor | Iterable[Tensor], queries: Tensor) -> Tensor:
    """Cosine of every clip with every query: (N, Q) float32 in [-1, 1] (arXiv 2601.08828).

    Both sides are normalised here, in float64; features that are unit vectors already lose nothing by it.

    Args:
        features: (N, D) of any float dtype, or an iterable of (n, D) chunks, read once and in order. A memory-mapped
            tensor is read piece by piece.
        queries: (Q, D). The computation runs on their device.

    Raises:
        ValueError: as `influence`; a bad feature is named by its position in the corpus.
    """
    if queries.ndim != 2 or queries.numel() == 0:
        raise ValueError(f"queries must be (Q, D) with Q >= 1, got {tuple(queries.shape)}: give at least one query")
    width = queries.shape[1]
    right = _grid_units(queries, "query", 0).T  # (D, Q)
    chunks: Iterable[Tensor] = [features] if isinstance(features, Tensor) else features
    # Grows by doubling: a list of small parts, kept between large temporaries, would fragment the heap to 1.5 GB at a
    # million clips. Memory that is reserved and not yet written costs nothing.
    scores = torch.empty((0, len(queries)), dtype=torch.float32, device=queries.device)
    start = 0
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != width:
            raise ValueError(
                f"features must be (N, D) with the queries' D = {width}, got {tuple(chunk.shape)}: "
                "project clips and queries with the same projection"
            )
        end = start + len(chunk)
        if end > len(scores):
            grown = scores.new_empty((end if len(scores) == 0 else max(end, 2 * len(scores)), len(queries)))
            grown[:start] = scores[:start]
            scores = grown
        for begin, block in _blocks(chunk):
            left = _grid_units(block.to(queries.device), "clip", start + begin)
            scores[start + begin : start + begin + len(block)] = (left @ right).div_(_GRID**2)
        start = end
    if start == 0:
        raise ValueError("there are no clips to score: every row of the corpus was left out, or the corpus is empty")
    scores = scores if len(scores) == start else scores[:start].clone()
    return scores.clamp_(-1.0, 1.0)  # the grid may carry a unit vector's own square past 1 by 1e-8


def cutoffs(scores: Tensor, percentile: float = 90.0) -> Tensor:
    """Each query's cut-off τ over the clips: (Q,) of the scores' dtype.

    It is the largest score that is not above the percentile (an order statistic). `numpy.percentile` interpolates
    between it and the next larger score, which no score can exceed differently: the votes are the same.

    Args:
        scores: (N, Q).
        percentile: in [0, 100). At 90, and without ties, a tenth of the clips lies above.
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile must be in [0, 100), got {percentile}; 90 gives each query a tenth of the clips")
    k = math.floor((len(scores) - 1) * _decimal(percentile) / 100) + 1
    # One column at a time: kthvalue over the whole matrix would copy it, with int64 indices beside it.
    return torch.stack([scores[:, q].contiguous().kthvalue(k).values for q in range(scores.shape[1])])


def votes(scores: Tensor, levels: Tensor) -> Tensor:
    """For how many queries each clip is above the cut-off: (N,) int64 in [0, Q] (arXiv 2601.08828).

    Above is strict: where many clips tie at the cut-off, none of them has the vote.

    Args:
        scores: (N, Q).
        levels: (Q,) from `cutoffs`.
    """
    out = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    for begin, block in _blocks(scores):
        out[begin : begin + len(block)] = (block > levels).sum(dim=1)
    return out


def mean_influence(scores: Tensor) -> Tensor:
    """Mean over queries: (N,) float64 in [-1, 1], to 2⁻⁴¹, summed exactly so that the order of queries is nothing.

    Args:
        scores: (N, Q) in [-1, 1].
    """
    out = torch.empty(len(scores), dtype=torch.float64, device=scores.device)
    for begin, block in _blocks(scores):
        whole = (block.double() * _MEAN_GRID).round_().long().sum(dim=1)  # integers: exact for Q < 2**23
        out[begin : begin + len(block)] = whole.double() / _MEAN_GRID / scores.shape[1]
    return out


def rank(counts: Tensor, mean: Tensor) -> Tensor:
    """(N,) int64 ranks, 0 best: by votes, ties by mean influence, then by position, so that no two are equal.

    The paper leaves ties open; votes are small integers, so most clips tie.

    Args:
        counts: (N,) votes. All zeros ranks by mean influence alone.
        mean: (N,) mean influence.
    """
    order = torch.argsort(mean, descending=True, stable=True)
    order = order[torch.argsort(counts[order], descending=True, stable=True)]
    out = torch.empty_like(order)
    out[order] = torch.arange(len(order), device=order.device)
    return out


def select(ranks: Tensor, fraction: float = 0.1) -> Tensor:
    """(K,) int64 positions of the best K = ceil(fraction · N) clips, best first: never fewer than asked, never none.

    Args:
        ranks: (N,) from `rank`.
        fraction: in (0, 1]. Taken as the decimal that it is written as: 0.1 of 30 is 3, not ceil(3.0000000000000004).
    """
    return torch.argsort(ranks)[: selection_size(len(ranks), fraction)]


def selection_size(count: int, fraction: float) -> int:
    """K = ceil(fraction · count): how many of `count` ranked clips `select` keeps."""
    return math.ceil(_exact_fraction(fraction) * count)


def _blocks(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    for begin in range(0, len(values), _BLOCK):
        yield begin, values[begin : begin + _BLOCK]


def _grid_units(vectors: Tensor, what: str, start: int) -> Tensor:
    """Unit vectors times 2²⁶, rounded: (n, D) whole numbers in float64. Each step is IEEE's: the same anywhere."""
    values = vectors.double()
    if vectors.dtype == torch.float64:  # whose squares may overflow; the square of any float32 is a normal float64
        values = values / values.abs().amax(dim=1, keepdim=True)
    squares = values.square()
    while squares.shape[1] > 1:  # a fixed tree: torch.sum may take another order for another shape
        half = squares.shape[1] // 2
        pairs = squares[:, :half] + squares[:, half : 2 * half]
        squares = torch.cat([pairs, squares[:, 2 * half :]], dim=1) if squares.shape[1] % 2 else pairs
    bad = ~(torch.isfinite(squares) & (squares > 0)).squeeze(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        found = "holds NaN or infinity" if bool(vectors[first].any()) else "is all zeros and has no direction"
        raise ValueError(f"the feature of {what} {start + first} {found}: leave it out, or compute it again")
    return values.mul_(_GRID / squares.sqrt_()).round_()


def _decimal(value: float) -> Fraction:
    return Fraction(str(float(value)))


def _exact_fraction(fraction: float) -> Fraction:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}; 0.1 keeps a tenth of the clips")
    return _decimal(fraction)
