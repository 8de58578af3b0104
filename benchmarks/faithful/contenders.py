"""Who predicts: each contender gives every clip of the corpus a score for every query, from the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .case import Clips
from .gradients import BASE

Features = dict[str, dict[str, np.ndarray]]  # of gradients.read
Scores = Callable[[float], np.ndarray]
PAPER = "the paper's score"
DEFAULT = "masked, equal draws"  # with more numbers than MotiveAttributor(pipe) keeps, as the others
FAILURES = "unlike the model's own failures"
AS_IT_IS, BY_TENSOR, BY_PARAMETER, CROSS_ATTENTION = range(4)  # the projections of gradients.Gradients.of
#: Of the mean eigenvalue of ΦΦᵀ; the one that is taken is chosen by the tuning queries.
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Contender:
    """A way to score.

    Attributes:
        name: In the table.
        scores: `settings -> (N, Q)`, larger where training on the clip lowers the query's loss the more.
        dim: D', where it is not that of the others.
        settings: What is tried on the tuning queries; () where there is nothing to choose.
        passes: (forward, backward) passes through the denoiser for a clip.
        numbers: Features of D' that are kept of a clip.
    """

    name: str
    scores: Scores
    passes: tuple[int, int]
    numbers: int = 1
    settings: tuple[float, ...] = (0.0,)
    dim: int | None = None


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-30)


def averaged(draws: np.ndarray) -> np.ndarray:
    """(N, K, D) to (N, D): the unit of the mean of units. Every draw of a clip meets every draw of a query."""
    return unit(unit(draws).mean(1))


def side_by_side(draws: np.ndarray) -> np.ndarray:
    """(N, K, D) to (N, KD), of norm 1: a dot product is the mean of the cosines of equal draws."""
    n, k, d = draws.shape
    return (unit(draws) / np.sqrt(k)).reshape(n, k * d)


def ridge(clips: np.ndarray, queries: np.ndarray, strength: float) -> np.ndarray:
    """φ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i, by the N × N matrix ΦΦᵀ; λ is `strength` times its mean eigenvalue. (N, Q)."""
    kernel = clips @ clips.T
    level = strength * np.trace(kernel) / len(kernel)
    return np.linalg.solve(kernel + level * np.eye(len(kernel)), clips @ queries.T)


def failures(samples: Clips, draws: np.ndarray, queries: Clips) -> np.ndarray:
    """(Q, KD), draws side by side: of each query, the clip that the model made of its caption.

    0 where that moves as it was asked to, or not at all.

    Args:
        draws: (N, K, projections, D) of the samples.
    """
    found = np.zeros((len(queries), draws.shape[1] * draws.shape[3]))
    failed = np.flatnonzero(samples.labels("shown") != samples.labels("motion"))
    places = {seed: place for place, seed in enumerate(queries.labels("seed").tolist())}
    for sample, feature in zip(failed, side_by_side(draws[failed][:, :, AS_IT_IS].astype(np.float64)), strict=True):
        seed = int(samples.labels("seed")[sample])
        if seed in places:  # a query in which nothing moves is none
            found[places[seed]] = feature
    return found


class Pairs:
    """Features of the corpus and of the queries, by what is differentiated on either side."""

    def __init__(self, features: Features):
        self.features = features

    def gradients(self, what: str, output: str, draws: int | None = None, projection: int = AS_IT_IS) -> np.ndarray:
        """(N, K, D) float64."""
        chosen = self.features[what][output][:, :, projection]
        return (chosen if draws is None else chosen[:, [draws]]).astype(np.float64)

    def of(
        self, clip: str, query: str | None = None, draws: int | None = None, projection: int = AS_IT_IS
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws side by side; `draws`: only that one."""
        return (
            side_by_side(self.gradients("corpus", clip, draws, projection)),
            side_by_side(self.gradients("queries", query or clip, draws, projection)),
        )

    def cosine(self, *arguments: Any, **more: Any) -> Scores:
        def scores(_: float) -> np.ndarray:
            clips, asked = self.of(*arguments, **more)
            return clips @ asked.T

        return scores

    def ridge(self, *arguments: Any, **more: Any) -> Scores:
        return lambda strength: ridge(*self.of(*arguments, **more), strength)

    def averaged(self, output: str) -> Scores:
        return lambda _: averaged(self.gradients("corpus", output)) @ averaged(self.gradients("queries", output)).T

    def dot(self, clip: str, query: str) -> Scores:
        """Without bringing a clip's gradient to norm 1: a step is as long as its gradient."""

        def scores(_: float) -> np.ndarray:
            clips = self.gradients("corpus", clip)
            return clips.reshape(len(clips), -1) @ side_by_side(self.gradients("queries", query)).T

        return scores

    def caption(self) -> Scores:
        """What the caption adds: the gradient with it less that without, draw by draw."""

        def scores(_: float) -> np.ndarray:
            clips, asked = (
                side_by_side(self.gradients(what, "masked") - self.gradients(what, "uncaptioned"))
                for what in ("corpus", "queries")
            )
            return clips @ asked.T

        return scores

    def das(self) -> Scores:
        """The change of the output itself, squared, so without a sign; for how wrong the clip still is, which weighs
        it, the length of its loss's gradient stands."""

        def scores(strength: float) -> np.ndarray:
            residual = np.sqrt(np.linalg.norm(self.gradients("corpus", "masked").sum(1), axis=1))
            return (ridge(*self.of("output"), strength) * residual[:, None]) ** 2

        return scores


def attributor(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Iterator[Contender]:
    """What users get: with more and more noises, at several checkpoints, and by the factored projection."""
    sides = {variant: [side.astype(np.float64) for side in pair] for variant, pair in found.items()}

    def of(told: str, pair: list[np.ndarray]) -> Contender:
        """(N, draws..., D) on either side."""
        a, b = (side_by_side(side.reshape(len(side), -1, side.shape[-1])) for side in pair)
        k = int(np.prod(pair[0].shape[1:-1]))
        return Contender(told, lambda _: a @ b.T, (k, k), k, dim=pair[0].shape[-1])

    checkpoints = sorted(variant for variant in sides if variant.startswith("checkpoint"))
    if BASE in sides:
        places = {"": [BASE]}
        if checkpoints:
            places[f" at {1 + len(checkpoints)} checkpoints of a training on all"] = [BASE, *checkpoints]
            places[" at the last of them alone"] = checkpoints[-1:]
        for (place, variants), noises in product(places.items(), (1, 2, 4, 8)):
            if noises <= sides[BASE][0].shape[2]:
                told = f", noise_draws={noises}" if noises > 1 else ""
                pair = [np.concatenate([sides[name][i][:, :, :noises] for name in variants], axis=2) for i in (0, 1)]
                yield of(f"MotiveAttributor(pipe{told}){place}", pair)
    if "factored" in sides:
        yield of("MotiveAttributor(pipe, projection='factored')", sides["factored"])


def contenders(
    corpus: Clips,
    queries: Clips,
    samples: Clips,
    features: Features,
    attributed: dict[str, tuple[np.ndarray, np.ndarray]],
    timesteps: tuple[float, ...],
) -> list[Contender]:
    """All of them, in the order of the table.

    Args:
        samples: The model's own clips for the queries' captions.
        features: Of `gradients.read`.
        attributed: Of `gradients.read_attributor`.
        timesteps: Those of the draws, one noise each.
    """
    pairs = Pairs(features)
    failed = failures(samples, features["samples"]["masked"], queries)
    own = timesteps.index(751.0)
    k, n = len(timesteps), len(corpus)
    pictures, asked = corpus.latents.flatten(1).numpy(), queries.latents.flatten(1).numpy()
    centre = pictures.mean(0)
    by_chance = np.random.default_rng(0).standard_normal((n, len(queries)))
    motion = np.repeat(corpus.labels("mean_motion")[:, None], len(queries), axis=1)
    of_corpus, of_queries = pairs.of("masked")
    label = (corpus.labels("shown")[:, None] == queries.labels("shown")[None]).astype(float)
    every: dict[str, Any] = dict(passes=(k, k), numbers=k)
    tuned: dict[str, Any] = dict(settings=RIDGES, **every)
    one: dict[str, Any] = dict(passes=(1, 1), settings=RIDGES)
    second, cross = dict(projection=BY_PARAMETER), dict(projection=CROSS_ATTENTION)
    return [
        Contender("random", lambda _: by_chance, (0, 0), 0),
        Contender("motion magnitude", lambda _: motion, (0, 0), 0),
        Contender(
            "VAE similarity",
            lambda _: unit(pictures - centre) @ unit(asked - centre).T,
            (0, 0),
            dim=pictures.shape[1],
        ),
        Contender("the label: shows the same motion", lambda _: label, (0, 0), 0),
        Contender("whole-clip gradient", pairs.cosine("plain", draws=own), (1, 1)),
        Contender(PAPER, pairs.cosine("masked", draws=own), (1, 1)),
        *(
            Contender(f"the same at timestep {t:.0f}", pairs.cosine("masked", draws=i), (1, 1))
            for i, t in enumerate(timesteps)
            if i != own
        ),
        Contender("the paper's, ridge", pairs.ridge("masked", draws=own), **one),
        Contender("query's mask, ridge, one draw", pairs.ridge("plain", "masked", draws=own), **one),
        Contender("masked, draws averaged", pairs.averaged("masked"), (k, k)),
        Contender(DEFAULT, pairs.cosine("masked"), **every),
        *attributor(attributed),
        Contender("whole clip", pairs.cosine("plain"), **every),
        Contender("centred over time", pairs.cosine("centred"), **every),
        Contender("caption less no caption", pairs.caption(), (2 * k, 2 * k), k),
        Contender("tensors to one length", pairs.cosine("masked", projection=BY_TENSOR), **every),
        Contender("cross-attention alone", pairs.cosine("masked", **cross), **every),
        Contender("cross-attention alone, centred over time", pairs.cosine("centred", **cross), **every),
        Contender("cross-attention alone, query's mask alone", pairs.cosine("plain", "masked", **cross), **every),
        Contender("second moments, centred over time", pairs.cosine("centred", **second), **every),
        Contender("second moments", pairs.cosine("masked", **second), **every),
        Contender("query's mask alone", pairs.cosine("plain", "masked"), **every),
        Contender("query's mask alone, clip's own length", pairs.dot("plain", "masked"), **every),
        Contender("query's mask alone, second moments", pairs.cosine("plain", "masked", **second), **every),
        Contender("ridge, masked", pairs.ridge("masked"), **tuned),
        Contender("ridge, cross-attention alone", pairs.ridge("masked", **cross), **tuned),
        Contender("ridge, masked, second moments", pairs.ridge("masked", **second), **tuned),
        Contender("ridge, query's mask alone", pairs.ridge("plain", "masked"), **tuned),
        Contender("ridge, query's mask alone, second moments", pairs.ridge("plain", "masked", **second), **tuned),
        Contender("ridge, whole clip", pairs.ridge("plain"), **tuned),
        Contender(FAILURES, lambda _: -of_corpus @ failed.T, **every),
        Contender("queries less failures", lambda _: of_corpus @ (of_queries - failed).T, **every),
        Contender("D-TRAK with the mask", pairs.ridge("square"), **tuned),
        Contender("DAS with the mask", pairs.das(), (k, 2 * k), k, settings=RIDGES),
    ]
