"""Between what a score predicts and what could be predicted: which part is noise of its draws, and which part of the
queries' losses it misses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .contenders import Contender, side_by_side
from .table import Retrained, table
from .truth import Rounds, ceiling, interval, mean_correlation, predicted

#: Name of a part of the queries' losses -> (S, Q) and (Q,) labels to its (S, columns), for losses and sums alike.
PARTS = {
    "each query": lambda values, groups: values,
    "mean of a motion's queries": lambda values, groups: means(values, groups),
    "mean of all queries": lambda values, groups: values.mean(1, keepdims=True),
    "each less the mean of all": lambda values, groups: values - values.mean(1, keepdims=True),
}


def means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(S, groups) of (S, Q)."""
    return np.stack([values[:, groups == group].mean(1) for group in np.unique(groups)], axis=1)


def parts(
    retrained: Retrained,
    contenders: Sequence[Contender],
    settings: dict[str, float],
    groups: np.ndarray,
    told: np.ndarray,
) -> str:
    """Markdown: LDS of each contender by part of the losses, below each part's ceiling.

    Args:
        settings: Of each contender, by name.
        groups: (Q,) labels of the queries.
        told: (Q,) bool, the queries that are reported.
    """
    losses = retrained.losses[:, :, 0][:, :, told].mean(-1)  # (seeds, S, Q)
    asked = groups[told]
    body = [
        [
            "*the ceiling*",
            *(f"*{ceiling(np.stack([of(seed, asked) for seed in losses])):.2f}*" for of in PARTS.values()),
        ]
    ]
    truth = -losses.mean(0)
    for contender in contenders:
        sums = predicted(contender.scores(settings[contender.name])[:, told], retrained.members)
        cells = [f"{mean_correlation(of(truth, asked), of(sums, asked)):.2f}" for of in PARTS.values()]
        body.append([contender.name, *cells])
    return table(["LDS of", *PARTS], body)


def draws(retrained: Retrained, clips: np.ndarray, queries: np.ndarray, groups: np.ndarray, told: np.ndarray) -> str:
    """A sentence: what more draws of the attributor's own features could still bring.

    Two predictions that each have one noise at every timestep agree by r; so either agrees with that of endless noises
    by the root of r, and its own correlation with the truth is that of endless noises times this root.

    Args:
        clips, queries: (N, timesteps, noises, D).
    """
    truth = -retrained.losses[:, :, 0][:, :, told].mean((0, -1))
    noises = clips.shape[2]
    sums = [
        predicted(side_by_side(clips[:, :, n]) @ side_by_side(queries[told][:, :, n]).T, retrained.members)
        for n in range(noises)
    ]
    pairs = [(a, b) for a in range(noises) for b in range(a)]
    one = np.mean([mean_correlation(truth, s) for s in sums])
    agree = np.mean([mean_correlation(sums[a], sums[b]) for a, b in pairs])
    rounds = Rounds(len(truth), groups[told])
    endless = np.mean([rounds.means(truth, s) for s in sums], axis=0) / np.sqrt(
        np.maximum(np.mean([rounds.means(sums[a], sums[b]) for a, b in pairs], axis=0), 1e-9)
    )
    low, high = interval(endless)
    return (
        f"*Draws.* What `MotiveAttributor(pipe)` predicts with one noise at each timestep and with another agrees by "
        f"{agree:.2f}; so from {one:.2f} with one noise, endless noises would come to {one / np.sqrt(agree):.2f} "
        f"[{low:.2f}, {high:.2f}]."
    )
