"""What becomes of the loss without the clips that a contender ranks first, without those it ranks last, and with the
first alone; against as many clips by chance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hf_motive.influence import cutoffs, mean_influence, rank, votes

from .contenders import Contender
from .table import table
from .truth import ROUNDS, interval, resampled

FRACTION = 0.1
KINDS = ("without the best", "without the worst", "the best alone")
CHANCE = "by chance"


class Choice(NamedTuple):
    """What one model is trained on.

    Attributes:
        kind: One of `KINDS`.
        method: A contender's name, or `CHANCE`.
        number: Which of several choices by chance; 0 for a contender.
        chosen: The clips that are trained on.
    """

    kind: str
    method: str
    number: int
    chosen: np.ndarray

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.kind} {self.method} {self.number}".lower())


def ranking(scores: np.ndarray) -> np.ndarray:
    """Clips by votes over the queries, ties by mean influence, best first: scores (N, Q) of any scale to (N,)."""
    largest = np.abs(scores).max(0)
    scaled = torch.from_numpy(np.ascontiguousarray(scores / np.where(largest > 0, largest, 1))).float()
    counts = votes(scaled, cutoffs(scaled, 100 * (1 - FRACTION)))
    return np.argsort(rank(counts, mean_influence(scaled)).numpy())


def choices(contenders: Sequence[Contender], settings: dict[str, float], chances: int) -> Iterator[Choice]:
    """Of chance, and of every contender; nothing where there is none to compare with chance."""
    if not contenders:
        return
    for number in range(chances):
        order = np.random.default_rng([72_001, number]).permutation(len(contenders[0].scores(0.0)))
        yield from _of(CHANCE, number, order)
    for contender in contenders:
        yield from _of(contender.name, 0, ranking(contender.scores(settings[contender.name])))


def _of(method: str, number: int, order: np.ndarray) -> Iterator[Choice]:
    few = round(FRACTION * len(order))
    for kind, chosen in zip(KINDS, (order[few:], order[:-few], order[:few]), strict=True):
        yield Choice(kind, method, number, np.sort(chosen))


def written(folder: Path, every: Sequence[Choice], seeds: Sequence[int], groups: np.ndarray) -> str:
    """Markdown: how much higher the queries' loss is than after as many clips by chance; "" before any is done.

    The difference is taken query by query and seed by seed, in thousandths; intervals by bootstrap over the queries.

    Args:
        groups: (Q,) labels of the queries, as `truth.resampled` takes them.
    """
    losses: dict[tuple[str, str], list[np.ndarray]] = {}
    for choice in every:
        paths = [folder / "models" / f"{choice.name}-{seed}.npz" for seed in seeds]
        models = [np.load(path) for path in paths if path.exists()]
        # Of a ranking by other gradients, such as another machine's, a file of that name tells nothing.
        if len(models) == len(seeds) and all(np.array_equal(model["chosen"], choice.chosen) for model in models):
            found = np.array([model["losses"][0].mean((1, 2)) for model in models])  # (seeds, Q)
            losses.setdefault((choice.kind, choice.method), []).append(found)
    # Whatever is left out by chance, nine tenths are nine tenths.
    both = [found for kind in KINDS[:2] for found in losses.get((kind, CHANCE), [])]
    by_chance = dict(zip(KINDS, [both, both, losses.get((KINDS[2], CHANCE), [])], strict=True))
    rounds = resampled(groups, ROUNDS, np.random.default_rng(0))
    methods = list(dict.fromkeys(method for _, method in losses if method != CHANCE))
    if not methods:
        return ""
    body = []
    for method in methods:
        cells = []
        for kind in KINDS:
            if (kind, method) not in losses or not by_chance[kind]:
                cells.append("")
                continue
            difference = 1000 * (losses[kind, method][0] - np.mean(by_chance[kind], axis=0)).mean(0)
            means = np.array([difference[chosen].mean() for chosen in rounds])
            cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(difference.mean(), *interval(means)))
        body.append([method, *cells])
    spread = [", ".join(f"{1000 * found.mean():.1f}" for found in by_chance[kind]) for kind in KINDS]
    return table(["", *KINDS], [["*by chance, each choice's loss*", *spread], *body])
