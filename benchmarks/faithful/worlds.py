"""One table over several worlds: a mean over them says more than the one by which something was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .table import table
from .truth import Rounds, ceiling, interval, mean_correlation


@dataclass(frozen=True)
class World:
    """What one of them showed, of the reported queries.

    Attributes:
        losses: (seeds, S, Q), motion-weighted, mean over timesteps.
        groups: (Q,) labels of the queries.
        sums: Contender -> (S, Q), the sum of influence of a half's clips.
    """

    losses: np.ndarray
    groups: np.ndarray
    sums: Mapping[str, np.ndarray]


def together(worlds: Mapping[str, World], references: Sequence[str]) -> str:
    """Markdown: each contender's LDS in each world, their mean, and by how much that is ahead of the references'.

    Each world counts as much as another. Halves and queries of one are resampled apart from those of another, and
    alike for all contenders.

    Args:
        worlds: Name -> it.
        references: Names of contenders.
    """
    names = [name for name in next(iter(worlds.values())).sums if all(name in world.sums for world in worlds.values())]
    truths = {key: -world.losses.mean(0) for key, world in worlds.items()}
    rounds = {
        key: Rounds(len(truths[key]), world.groups, seed=number) for number, (key, world) in enumerate(worlds.items())
    }
    found = {
        name: [mean_correlation(truths[key], world.sums[name]) for key, world in worlds.items()] for name in names
    }
    means = {
        name: np.mean([rounds[key].means(truths[key], world.sums[name]) for key, world in worlds.items()], axis=0)
        for name in names
    }
    tops = [ceiling(world.losses) for world in worlds.values()]
    body = [["*the ceiling*", *(f"*{top:.2f}*" for top in tops), f"*{np.mean(tops):.2f}*", *[""] * len(references)]]
    for name in names:
        low, high = interval(means[name])
        line = [
            name,
            *(f"{value:.2f}" for value in found[name]),
            f"**{np.mean(found[name]):.2f}** [{low:.2f}, {high:.2f}]",
        ]
        for reference in references:
            ahead = np.mean(found[name]) - np.mean(found[reference])
            low, high = interval(means[name] - means[reference])
            line.append("" if name == reference else f"{ahead:+.2f} [{low:+.2f}, {high:+.2f}]")
        body.append(line)
    return table(["contender", *worlds, "mean", *(f"less {reference}" for reference in references)], body)
