"""Everything that the contenders are made of: of each clip and each (timestep, noise), projected gradients of several
outputs of one forward pass, as they are and weighted by layer and by parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from miniature import world
from torch import Tensor
from tqdm.auto import tqdm

from hf_motive import MotiveAttributor
from hf_motive.encoded_blob import read_encoding
from hf_motive.gradients import GradientProjector
from hf_motive.projection import Fastfood

from .case import Case, Clips

Scale = Callable[[str, Tensor], Tensor | None]  # None: that parameter is left out

#: What is differentiated. e: the error of the prediction v, (C, T, h, w); w: the motion mask.
OUTPUTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "masked": lambda v, e, w: (w * e**2).mean(),  # the paper's
    "plain": lambda v, e, w: (e**2).mean(),  # what training descends
    "centred": lambda v, e, w: (w * (e - e.mean(-3, keepdim=True)) ** 2).mean(),  # less what is the same in all frames
    "square": lambda v, e, w: (w * v**2).mean(),  # D-TRAK's
    "output": lambda v, e, w: (w * v).mean(),  # DAS's
}
UNCAPTIONED = "uncaptioned"  # "masked" with an empty prompt
_PART = 40  # clips a file: what a stop can cost
#: The clips of a case, and which gradients of them are computed.
SETS = {"corpus": (*OUTPUTS, UNCAPTIONED), "queries": (*OUTPUTS, UNCAPTIONED), "samples": ("masked",)}
#: Those that are projected with layers and parameters weighted, too.
WEIGHTED = ("masked", "plain", "centred")


class Draws(NamedTuple):
    """Where gradients are taken. Noise n has the seed n, as in `MotiveAttributor`."""

    timesteps: tuple[float, ...] = (500.0, 751.0, 900.0)
    noises: int = 1


class Several:
    """One projection that is several, each of a gradient that is scaled first, one after another."""

    def __init__(self, dim: int, scales: Sequence[Scale]):
        self.parts = [(Fastfood(dim=dim, seed=0), scale) for scale in scales]
        self.dim = dim * len(scales)

    def settings(self) -> dict[str, Any]:
        return {"kind": "several", "parts": [part.settings() for part, _ in self.parts]}

    def stream(self) -> _SeveralStreams:
        return _SeveralStreams(self)

    def fold(self, name: str, gradient: Tensor, offset: int = 0) -> Tensor:
        stream = self.stream()
        stream.add(name, gradient, offset)
        return stream.total()

    def finish(self, total: Tensor) -> Tensor:
        pieces = total.chunk(len(self.parts))
        return torch.cat([part.finish(piece) for (part, _), piece in zip(self.parts, pieces, strict=True)])


class _SeveralStreams:
    def __init__(self, law: Several):
        self._streams = [(part.stream(), scale) for part, scale in law.parts]

    def add(self, name: str, gradient: Tensor, offset: int = 0) -> Tensor:
        scaled = [(stream, scale(name, gradient)) for stream, scale in self._streams]
        added = [stream.add(name, part, offset) for stream, part in scaled if part is not None]
        return added[0]

    def total(self) -> Tensor:
        return torch.cat([stream.total() for stream, _ in self._streams])


def as_it_is(name: str, gradient: Tensor) -> Tensor:
    return gradient


def unit(name: str, gradient: Tensor) -> Tensor:
    """Every parameter tensor counts alike."""
    return gradient / gradient.norm().clamp_min(1e-30)


def cross_attention(name: str, gradient: Tensor) -> Tensor | None:
    """Where the caption meets the clip, and nowhere else."""
    return gradient if ".attn2." in name else None


class Second:
    """Second moments v of the gradients of training, as Adam has them; g/v^(1/4) on both sides is g/√v between."""

    def __init__(self, moments: dict[str, Tensor]):
        typical = torch.cat([m.flatten() for m in moments.values()]).mean().sqrt()
        # A parameter with hardly any gradient would have an enormous scale: Adam's ε, relative to what is typical.
        self._scales = {name: (m.sqrt() + 0.01 * typical).rsqrt() for name, m in moments.items()}

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        return gradient * self._scales[name]


class Gradients:
    """The gradients of one checkpoint.

    Args:
        pipe: The pipeline at that checkpoint.
        draws: Where they are taken.
        dim: Of each projection.

    Attributes:
        outputs: Which are computed, names of `OUTPUTS`, and `UNCAPTIONED`.
    """

    def __init__(self, pipe: Any, draws: Draws, dim: int):
        self.attributor = MotiveAttributor(pipe, **world.CLIP)
        self.draws, self.dim = draws, dim
        self.outputs: Sequence[str] = (*OUTPUTS, UNCAPTIONED)
        self._silence = self.attributor.step.answers("", {})

    def moments(self, clips: Clips, count: int) -> dict[str, Tensor]:
        """Means of the squared gradients of the plain loss over the first clips and all draws."""
        step, parameters = self.attributor.step, self.attributor.parameters
        found = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        n = 0
        for blob, caption in zip(clips.rows["encoded"][:count], clips.rows["caption"][:count], strict=True):
            encoding = read_encoding(blob)
            for place in self._places():
                out = step.loss(encoding.latents, caption, answers=encoding.answers, **place)
                gradients = torch.autograd.grad(out.loss, list(parameters.values()))
                for name, gradient in zip(parameters, gradients, strict=True):
                    found[name] += gradient**2
                n += 1
        return {name: total / n for name, total in found.items()}

    def of(self, clips: Clips, moments: dict[str, Tensor], what: str) -> dict[str, np.ndarray]:
        """Each output's features.

        Returns:
            name -> (N, draws, projections, dim) float32: as it is, and for `WEIGHTED` ones also with every parameter
            tensor scaled to one length, with the parameters scaled by their second moments, and of the cross-attention
            alone.
        """
        weighted = [as_it_is, unit, Second(moments), cross_attention]
        once, often = (Several(self.dim, scales) for scales in ([as_it_is], weighted))
        found: dict[str, list[list[Tensor]]] = {name: [] for name in self.outputs}
        rows = zip(clips.rows["encoded"], clips.rows["caption"], strict=True)
        for blob, caption in tqdm(rows, total=len(clips), desc=what):
            encoding = read_encoding(blob)
            here: dict[str, list[Tensor]] = {name: [] for name in self.outputs}
            for place in self._places():
                for name, vector in self._at(encoding, caption, place, once, often).items():
                    here[name].append(vector.view(-1, self.dim))
            for name, vectors in here.items():
                found[name].append(torch.stack(vectors))
        return {name: torch.stack(vectors).numpy() for name, vectors in found.items()}

    def _places(self) -> list[dict[str, Any]]:
        noises = [self.attributor.step.noise(n) for n in range(self.draws.noises)]
        return [{"timestep": t, "noise": noise} for t in self.draws.timesteps for noise in noises]

    def _at(self, encoding: Any, caption: str, place: dict[str, Any], once: Several, often: Several) -> dict:
        step, parameters = self.attributor.step, self.attributor.parameters
        modules, found = list(step.denoisers.values()), {}
        for law in (once, often):
            names = [n for n in self.outputs if n in OUTPUTS and (n in WEIGHTED) == (law is often)]
            if not names:
                continue
            with GradientProjector(parameters, law, modules) as projector:
                out = step.loss(encoding.latents, caption, weight=encoding.weight, answers=encoding.answers, **place)
                for name in names:
                    value = OUTPUTS[name](out.prediction, out.prediction - out.target, out.weight)
                    found[name] = projector.project(value, retain_graph=name != names[-1]).vector
        if UNCAPTIONED in self.outputs:
            with GradientProjector(parameters, once, modules) as projector:
                out = step.loss(encoding.latents, "", weight=encoding.weight, answers=self._silence, **place)
                found[UNCAPTIONED] = projector.project(out.loss).vector
        return found


def compute(made: Case, folder: Path, draws: Draws, dim: int, probe: int = 60) -> None:
    """Everything of the base, into FOLDER; stopped, it goes on.

    Args:
        probe: Clips whose gradients give the second moments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gradients = Gradients(made.pipeline(), draws, dim)
    moments_path = folder / "moments.pt"
    if not moments_path.exists():
        torch.save(gradients.moments(made.corpus, probe), moments_path)
    moments = torch.load(moments_path)
    for what, outputs in reversed(SETS.items()):
        clips: Clips = getattr(made, what)
        gradients.outputs = outputs
        for start in range(0, len(clips), _PART):
            path = folder / f"{what}-{start:05d}.npz"
            if not path.exists():
                part = clips.part(start, start + _PART)
                partial = folder / f"{path.stem}.partial.npz"
                np.savez(partial, **gradients.of(part, moments, path.stem))
                partial.rename(path)


def read(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Each of `SETS` -> name of an output -> (N, draws, projections, dim), as `compute` left them."""
    found = {}
    for what in SETS:
        parts = [np.load(path) for path in sorted(folder.glob(f"{what}-[0-9]*[0-9].npz"))]
        found[what] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
    return found


def through_attributor(pipe: Any, corpus: Clips, queries: Clips, folder: Path) -> None:
    """The features that users get, by default settings and by both projections, into FOLDER; stopped, it goes on."""
    for projection in ("fastfood", "factored"):
        attributor = MotiveAttributor(pipe, **world.CLIP, encoded_column="encoded", projection=projection)
        for what, clips in (("queries", queries), ("corpus", corpus)):
            path = folder / f"{projection}-{what}.npy"
            if not path.exists():
                index = attributor.index(clips.rows, folder / f"{projection}-{what}")
                np.save(path, index.features(attributor.ids(clips.rows)).numpy())


def read_attributor(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Projection -> features of corpus and queries, (N, K·D) and (Q, K·D), of what `through_attributor` has done."""
    found = {}
    for path in sorted(folder.glob("*-corpus.npy")):
        name = path.stem.removesuffix("-corpus")
        found[name] = (np.load(path), np.load(folder / f"{name}-queries.npy"))
    return found
