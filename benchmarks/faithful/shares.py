"""Motion or appearance: of the clips that a contender ranks first for a query, how many share which of its labels?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .case import Clips
from .contenders import Contender
from .table import table
from .truth import ROUNDS, interval, resampled

FRACTION = 0.1
MOTION = "shown"
#: A label -> its name in the table. What is named is in the caption, and not in every clip what is shown.
LABELS = {
    MOTION: "motion",
    "motion": "named motion",
    "shape": "shape",
    "color": "colour",
    "background": "background",
    "look": "look",
}


def share(scores: np.ndarray, clips: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q,): of each query's top tenth, the share with its label; NaN where all scores are equal, and none is first.

    Args:
        scores: (N, Q).
        clips, queries: Labels, (N,) and (Q,).
    """
    few = max(1, round(FRACTION * len(scores)))
    top = np.argsort(-scores, axis=0, kind="stable")[:few]
    return np.where(np.ptp(scores, axis=0) > 0, (clips[top] == queries[None]).mean(0), np.nan)


def _mean(shares: np.ndarray) -> float:
    """Of those that are told; NaN where none is."""
    told = shares[~np.isnan(shares)]
    return float(told.mean()) if len(told) else np.nan


def lies(clips: Clips) -> bool:
    """Whether some show another motion than their caption names."""
    return "motion" in clips.facts[0] and bool((clips.labels("motion") != clips.labels(MOTION)).any())


def together(scores: np.ndarray, motions: np.ndarray) -> np.ndarray:
    """(N, motions): the mean over the queries of each motion, in order of `np.unique(motions)`; scores (N, Q)."""
    return np.stack([scores[:, motions == motion].mean(1) for motion in np.unique(motions)], axis=1)


def setting(contender: Contender, corpus: Clips, queries: Clips, tuning: np.ndarray) -> float:
    """That by which most of the tuning queries' top tenth show their motion: where there is no retraining to ask."""
    clips, asked = corpus.labels(MOTION), queries.labels(MOTION)[tuning]
    return max(contender.settings, key=lambda s: _mean(share(contender.scores(s)[:, tuning], clips, asked)))


@dataclass(frozen=True)
class Counted:
    """Shares of one world's reported queries.

    Attributes:
        motions: (Q,) what they show.
        shares: Contender -> label -> (Q,).
    """

    motions: np.ndarray
    shares: Mapping[str, Mapping[str, np.ndarray]]


def count(
    contenders: Sequence[Contender], settings: dict[str, float], corpus: Clips, queries: Clips, told: np.ndarray
) -> Counted:
    """As `written` takes them."""
    labels = [label for label in LABELS if label in queries.facts[0] and (label != "motion" or lies(corpus))]
    asked = {label: queries.labels(label)[told] for label in labels}
    of_corpus = {label: corpus.labels(label) for label in labels}
    found = {}
    for contender in contenders:
        scores = contender.scores(settings[contender.name])[:, told]
        found[contender.name] = {label: share(scores, of_corpus[label], asked[label]) for label in labels}
    return Counted(asked[MOTION], found)


def ahead(worlds: Sequence[Counted], reference: str) -> str:
    """Markdown: by how many points a contender's shares are above the reference's, mean over worlds that count alike.

    What not all worlds have, labels or contenders, is left out; so is who ranks none of the clips of a query.
    """
    rounds = [resampled(world.motions, ROUNDS, np.random.default_rng(number)) for number, world in enumerate(worlds)]
    labels = [label for label in LABELS if all(label in world.shares[reference] for world in worlds)]
    body = []
    for name in worlds[0].shares:
        if name == reference or not all(name in world.shares for world in worlds):
            continue
        line = [name]
        for label in labels:
            off = [100 * (world.shares[name][label] - world.shares[reference][label]) for world in worlds]
            means = [[one[chosen].mean() for chosen in r] for one, r in zip(off, rounds, strict=True)]
            low, high = interval(np.mean(means, axis=0))
            line.append(f"{np.mean([o.mean() for o in off]):+.0f} [{low:+.0f}, {high:+.0f}]")
        if not any("nan" in cell for cell in line):
            body.append(line)
    return table(["contender", *(f"same {LABELS[label]}" for label in labels)], body)


def written(
    contenders: Sequence[Contender],
    settings: dict[str, float],
    corpus: Clips,
    queries: Clips,
    told: np.ndarray,
) -> str:
    """Markdown.

    Args:
        settings: Of each contender, by name.
        told: (Q,) bool, the queries that are reported.
    """
    counted = count(contenders, settings, corpus, queries, told)
    labels = list(counted.shares[contenders[0].name])
    motions = np.unique(counted.motions)
    rounds = resampled(counted.motions, ROUNDS, np.random.default_rng(0))
    body = []
    for contender in contenders:
        scores = contender.scores(settings[contender.name])[:, told]
        line = [contender.name]
        for found in counted.shares[contender.name].values():
            if np.isnan(found).all():
                line.append("ranks none")
                continue
            means = np.array([_mean(found[chosen]) for chosen in rounds])
            low, high = interval(means[~np.isnan(means)])
            line.append(f"{_mean(found):.0%} [{low:.0%}, {high:.0%}]")
        joint = _mean(share(together(scores, counted.motions), corpus.labels(MOTION), motions))
        body.append([*line, "ranks none" if np.isnan(joint) else f"{joint:.0%}"])
    chance = [f"{(corpus.labels(label)[:, None] == queries.labels(label)[told][None]).mean():.0%}" for label in labels]
    body.append(["*by chance*", *chance, f"{(corpus.labels(MOTION)[:, None] == motions[None]).mean():.0%}"])
    header = ["contender", *(f"same {LABELS[label]}" for label in labels), "same motion, queries of a motion together"]
    return table(header, body)
