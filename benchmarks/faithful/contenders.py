"""Who predicts: each contender gives every clip of the corpus a score for every query, from the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .case import Clips

Features = dict[str, dict[str, np.ndarray]]  # of gradients.read
AS_IT_IS, BY_TENSOR, BY_PARAMETER = 0, 1, 2  # the projections of gradients.Gradients.of
#: Of the mean eigenvalue of ΦΦᵀ; the one that is taken is chosen by the tuning queries.
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Contender:
    """A way to score.

    Attributes:
        name: In the table.
        scores: `settings -> (N, Q)`, larger where training on the clip lowers the query's loss the more.
        settings: What is tried on the tuning queries; () where there is nothing to choose.
        passes: (forward, backward) passes through the denoiser for a clip.
        numbers: Kept for a clip, in features of D'.
    """

    name: str
    scores: Callable[[float], np.ndarray]
    passes: tuple[int, int]
    numbers: int = 1
    settings: tuple[float, ...] = field(default=(0.0,))


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-30)


def averaged(draws: np.ndarray) -> np.ndarray:
    """(N, K, D) to (N, D): units of every draw, their mean, its unit. What `hf_motive.draws.average` does."""
    return unit(unit(draws.astype(np.float64)).mean(1))


def ridge(clips: np.ndarray, queries: np.ndarray, strength: float) -> np.ndarray:
    """φ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i, by the N × N matrix ΦΦᵀ; λ is `strength` times its mean eigenvalue. (N, Q)."""
    kernel = clips @ clips.T
    level = strength * np.trace(kernel) / len(kernel)
    return np.linalg.solve(kernel + level * np.eye(len(kernel)), clips @ queries.T)


def contenders(corpus: Clips, queries: Clips, features: Features, timesteps: tuple[float, ...]) -> list[Contender]:
    """All of them, in the order of the table.

    Args:
        timesteps: Those of the draws, one noise each.
    """
    own = timesteps.index(751.0) if 751.0 in timesteps else 0
    every = slice(None)

    def of(what: str, output: str, draws: int | slice = every, projection: int = AS_IT_IS) -> np.ndarray:
        chosen = features[what][output][:, draws if isinstance(draws, slice) else [draws], projection]
        return chosen.astype(np.float64)

    def pair(clip: str, query: str | None = None, draws: int | slice = every, projection: int = AS_IT_IS):
        """Averaged features of the corpus and of the queries."""
        return (
            averaged(of("corpus", clip, draws, projection)),
            averaged(of("queries", query or clip, draws, projection)),
        )

    def cosine(*arguments, **more) -> Callable[[float], np.ndarray]:
        def scores(_: float) -> np.ndarray:
            clips, asked = pair(*arguments, **more)
            return clips @ asked.T

        return scores

    def dot(clip: str, query: str, projection: int = AS_IT_IS) -> Callable[[float], np.ndarray]:
        """Without bringing a clip's gradient to norm 1: a step is as long as its gradient."""
        return lambda _: (
            of("corpus", clip, projection=projection).sum(1)
            @ unit(of("queries", query, projection=projection).sum(1)).T
        )

    def kernel(*arguments, **more) -> Callable[[float], np.ndarray]:
        return lambda strength: ridge(*pair(*arguments, **more), strength)

    def conditional(_: float) -> np.ndarray:
        """What the caption adds: with it less without it, draw by draw."""
        clips, asked = (averaged(of(w, "masked") - of(w, "uncaptioned")) for w in ("corpus", "queries"))
        return clips @ asked.T

    def das(strength: float) -> np.ndarray:
        """The change of the output itself: squared, so without a sign, and by how wrong the clip still is."""
        residual = np.sqrt(np.linalg.norm(of("corpus", "masked").sum(1), axis=1))
        return (ridge(*pair("output"), strength) * residual[:, None]) ** 2

    def matched(_: float) -> np.ndarray:
        """Only equal draws are compared: the mean of their cosines."""
        clips, asked = (unit(of(w, "masked")) for w in ("corpus", "queries"))
        return np.einsum("ikd,qkd->iq", clips, asked) / clips.shape[1]

    k, n = len(timesteps), len(corpus)
    pictures, asked = corpus.latents.flatten(1).numpy(), queries.latents.flatten(1).numpy()
    centre = pictures.mean(0)
    rng = np.random.default_rng(0)
    by_chance = rng.standard_normal((n, len(queries)))
    motion = np.repeat(corpus.labels("mean_motion")[:, None], len(queries), axis=1)
    each = dict(passes=(k, k))
    tuned = dict(settings=RIDGES, **each)
    return [
        Contender("random", lambda _: by_chance, (0, 0), 0),
        Contender("motion magnitude", lambda _: motion, (0, 0), 0),
        Contender("VAE similarity", lambda _: unit(pictures - centre) @ unit(asked - centre).T, (0, 0)),
        Contender("whole-clip gradient", cosine("plain", draws=own), (1, 1)),
        Contender("the paper's score", cosine("masked", draws=own), (1, 1)),
        *(
            Contender(f"the same at timestep {t:.0f}", cosine("masked", draws=i), (1, 1))
            for i, t in enumerate(timesteps)
            if i != own
        ),
        Contender("whole clip, all draws", cosine("plain"), **each),
        Contender("masked, all draws", cosine("masked"), **each),
        Contender("masked, all draws, equal ones only", matched, numbers=k, **each),
        Contender("centred over time", cosine("centred"), **each),
        Contender("caption less no caption", conditional, (2 * k, 2 * k)),
        Contender("tensors to one length", cosine("masked", projection=BY_TENSOR), **each),
        Contender("parameters by second moments", cosine("masked", projection=BY_PARAMETER), **each),
        Contender("mask on the query alone", cosine("plain", "masked"), **each),
        Contender("mask on the query, clip's own length", dot("plain", "masked"), **each),
        Contender("the same, second moments", dot("plain", "masked", BY_PARAMETER), **each),
        Contender("mask on the query, second moments", cosine("plain", "masked", projection=BY_PARAMETER), **each),
        Contender("ridge, masked", kernel("masked"), **tuned),
        Contender("ridge, mask on the query alone", kernel("plain", "masked"), **tuned),
        Contender("ridge, masked, second moments", kernel("masked", projection=BY_PARAMETER), **tuned),
        Contender("ridge, query's mask, second moments", kernel("plain", "masked", projection=BY_PARAMETER), **tuned),
        Contender("ridge, plain", kernel("plain"), **tuned),
        Contender("D-TRAK with the mask", kernel("square"), **tuned),
        Contender("DAS with the mask", das, **tuned),
    ]
