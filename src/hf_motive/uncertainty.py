"""How sure influence and ranks are: what they would have been had one of the (timestep, noise) draws been left out.

A draw's noise is shared by all clips and all queries, so everything is computed once more without it, ranks included:
what a draw does to all clips alike moves no rank, and is not counted as if it did. What few draws say of one clip's
error is mostly chance; so each has a part of what they say of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .draws import moderated, standard_error, without
from .influence import influence


@dataclass(frozen=True)
class Uncertainty:
    """Standard errors over the draws, float64.

    Attributes:
        draws: K.
        mean: (N,) of the mean influence.
        rank: (N,) of the rank, in ranks.
        groups: Name -> (N,) of the mean influence on a group of queries.
    """

    draws: int
    mean: Tensor
    rank: Tensor
    groups: dict[str, Tensor]


def uncertainty(
    features: Callable[[], Iterable[Tensor]],
    queries: Tensor,
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    fraction: float = 0.1,
    percentile: float | None = None,
) -> Uncertainty:
    """The standard errors of what `influence` says of N clips for Q queries: the jackknife over K draws, `moderated`.

    It takes K passes over the features, and the memory of one and K numbers a clip and column.

    Args:
        features: Gives the clips' features by draw, in chunks (n, K, D), each time it is called.
        queries: (Q, K, D), likewise.
        groups: Name -> positions of its queries.
        fraction, percentile: As `influence` takes them.

    Raises:
        ValueError: There is only one draw.
    """
    draws, groups = queries.shape[1], groups or {}
    means, ranks = [], []
    by_group: dict[str, list[Tensor]] = {name: [] for name in groups}
    for draw in range(draws):
        left = influence(
            (without(chunk, draw) for chunk in features()),
            without(queries, draw),
            fraction=fraction,
            percentile=percentile,
        )
        means.append(left.mean)
        ranks.append(left.rank)
        for name, members in groups.items():
            by_group[name].append(left.scores[:, list(members)].mean(dim=1))

    def error(values: list[Tensor]) -> Tensor:
        return moderated(standard_error(torch.stack(values)), draws)

    return Uncertainty(draws, error(means), error(ranks), {name: error(values) for name, values in by_group.items()})
