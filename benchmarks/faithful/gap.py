"""Between what a score predicts and what could be: which part of the queries' losses it misses, whether there is a sum
over clips to be found at all, and what is noise of its draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .contenders import Contender, side_by_side
from .first_order import KINDS
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


def left_out(truth: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(S, Q): of each subset what a sum over its clips says, whose terms are learned from the other subsets alone.

    By the smallest terms that explain those; a little ridge, on whose strength hardly anything depends.

    Args:
        truth: (S, Q).
        members: (S, N) of 0 and 1, half of the clips each.
    """
    kernel = (members - 0.5) @ (members - 0.5).T
    strength = 0.3 * np.trace(kernel) / len(kernel)
    found = np.zeros(truth.shape)
    for s in range(len(truth)):
        others = np.arange(len(truth)) != s
        within = kernel[np.ix_(others, others)] + strength * np.eye(others.sum())
        found[s] = kernel[s, others] @ np.linalg.solve(within, truth[others] - truth[others].mean(0))
    return found


def additive(retrained: Retrained, groups: np.ndarray, told: np.ndarray) -> str:
    """Sentences: whether a loss is a sum over clips at all.

    Of N random terms, what S others tell spans S/N of the variance. Learned from losses of reliability r, and held
    against others of that reliability, they correlate by r √(S/N), were the reliable part a sum.

    Args:
        groups: (Q,) labels of the queries.
        told: (Q,) bool, the queries that are reported.
    """
    truth = -retrained.losses[:, :, 0][:, :, told].mean(-1)  # (seeds, S, Q)
    (halves, clips), seeds = retrained.members.shape, range(len(truth))
    learned = [left_out(seed, retrained.members) for seed in truth]
    others = [(a, b) for a in seeds for b in seeds if a != b]
    own = np.mean([mean_correlation(truth[a], learned[a]) for a in seeds])
    other = np.mean([mean_correlation(truth[a], learned[b]) for a, b in others])
    rounds = Rounds(halves, groups[told])
    low, high = interval(np.mean([rounds.means(truth[a], learned[b]) for a, b in others], axis=0))
    reliability = np.mean([mean_correlation(truth[a], truth[b]) for a, b in others])
    return (
        f"*Sums.* Terms for each of the {clips} clips that are learned, without any gradient, from the losses after "
        f"the other {halves - 1} halves under one seed predict those after the half that is left out under another "
        f"seed by {other:.2f} [{low:.2f}, {high:.2f}], and under the same seed by {own:.2f}. Were what seeds agree on "
        f"a sum over clips, so few halves would tell about {reliability * np.sqrt((halves - 1) / clips):.2f} of it."
    )


def exact(retrained: Retrained, found: Mapping[str, np.ndarray], groups: np.ndarray, told: np.ndarray) -> str:
    """Markdown: what exact gradients of the trainings' own showings predict, by the weights that they are taken at.

    Args:
        found: Place -> (kinds, seeds, epochs, N, Q), of `first_order.read`.
        groups: (Q,) labels of the queries.
        told: (Q,) bool, the queries that are reported.
    """
    truth = -retrained.losses[:, :, 0][:, :, told].mean(-1)  # (seeds, S, Q)
    seeds, rounds = range(len(truth)), Rounds(truth.shape[1], groups[told])
    common = np.mean([mean_correlation(truth[a], truth[b]) for a in seeds for b in seeds if a != b])
    body = [["*the most that can be*", "", "*1*", "", "*1*", f"*{np.sqrt(max(common, 0)):.2f}*", ""]]
    for place, values in found.items():
        for kind, terms in zip(KINDS, values, strict=True):
            sums = [predicted(seed, retrained.members) for seed in terms[..., told].sum(1)]
            low, high = interval(rounds.means(truth.mean(0), np.sum(sums, axis=0)))
            own = np.mean([mean_correlation(truth[a], sums[a]) for a in seeds])
            other = np.mean([mean_correlation(truth[a], sums[b]) for a in seeds for b in seeds if a != b])
            both = f"**{mean_correlation(truth.mean(0), np.sum(sums, axis=0)):.2f}** [{low:.2f}, {high:.2f}]"
            showings = [predicted(showing, retrained.members) for seed in terms[..., told] for showing in seed]
            alone = np.mean([mean_correlation(truth.mean(0), showing) for showing in showings])
            agree = mean_correlation(*sums[:2])
            body.append([place, kind, both, *(f"{value:.2f}" for value in (agree, own, other, alone))])
    return table(
        [
            "taken at",
            "gradient",
            "mean of the seeds",
            "two seeds' agree",
            "a seed, by its own noise",
            "by another's",
            "mean of the seeds, by one showing of each clip",
        ],
        body,
    )


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
    unlike = np.mean(
        [
            mean_correlation(truth, predicted(side_by_side(clips[:, :, a]) @ other.T, retrained.members))
            for b, other in ((b, side_by_side(queries[told][:, :, b])) for b in range(noises))
            for a in range(noises)
            if a != b
        ]
    )
    found = f"{one / np.sqrt(agree):.2f} [{low:.2f}, {high:.2f}]" if agree > 0 else "nobody knows what"
    return (
        f"*Draws.* What `MotiveAttributor(pipe)` predicts with one noise at each timestep and with another agrees by "
        f"{agree:.2f}; so from {one:.2f} with one noise, endless noises would come to {found}. With a clip's gradient "
        f"under one noise and a query's under another it predicts {unlike:.2f}."
    )
