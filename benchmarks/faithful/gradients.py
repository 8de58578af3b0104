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

from .case import Case, Clips, check, whole

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
BASE = "base"  # of the attributor's features: by the default projection, at the checkpoint that trainings start from
_MOMENTS = "moments.pt"
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


def adaptive(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameter -> by what Adam multiplies its gradient: 1/√v of the second moments v, and an ε."""
    typical = torch.cat([m.flatten() for m in moments.values()]).mean().sqrt()
    # A parameter with hardly any gradient would have an enormous scale: ε is relative to what is typical.
    return {name: (m.sqrt() + 0.01 * typical).reciprocal() for name, m in moments.items()}


class Second:
    """Parameters weighted as Adam weights them: half on either side of a product, as that of a clip and a query."""

    def __init__(self, moments: dict[str, Tensor]):
        self._scales = {name: scale.sqrt() for name, scale in adaptive(moments).items()}

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
        return {name: (total / n).cpu() for name, total in found.items()}

    def of(self, clips: Clips, moments: dict[str, Tensor], what: str) -> dict[str, np.ndarray]:
        """Each output's features.

        Returns:
            name -> (N, draws, projections, dim) float32: as it is, and for `WEIGHTED` ones also with every parameter
            tensor scaled to one length, with the parameters scaled by their second moments, and of the cross-attention
            alone.
        """
        moments = {name: moment.to(self.attributor.step.device) for name, moment in moments.items()}
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
        return {name: torch.stack(vectors).cpu().numpy() for name, vectors in found.items()}

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


def compute(
    made: Case, folder: Path, draws: Draws, dim: int, probe: int = 60, share: tuple[int, int] = (1, 1)
) -> None:
    """Everything of the base, into FOLDER; stopped, it goes on.

    Args:
        probe: Clips whose gradients give the second moments.
        share: k, n: the k-th of every n parts; for n processes.
    """
    check(folder, {"draws": draws._asdict(), "dim": dim, "probe": probe})
    gradients = Gradients(made.pipeline(), draws, dim)
    if not (folder / _MOMENTS).exists():
        with whole(folder / _MOMENTS) as partial:
            torch.save(gradients.moments(made.corpus, probe), partial)
    moments = read_moments(folder)
    for name, what, part in _parts(made, share):
        path = folder / f"{name}.npz"
        if not path.exists():
            gradients.outputs = SETS[what]
            with whole(path) as partial:
                np.savez(partial, **gradients.of(part, moments, name))


def read_moments(folder: Path) -> dict[str, Tensor]:
    """Parameter -> means of its squared gradients, as `compute` left them."""
    return torch.load(folder / _MOMENTS)


def complete(made: Case, folder: Path) -> bool:
    """Whether `compute` is done, by whatever processes."""
    return all((folder / f"{name}.npz").exists() for name, _, _ in _parts(made, (1, 1)))


def _parts(made: Case, share: tuple[int, int]) -> list[tuple[str, str, Clips]]:
    """(name of a file, which of `SETS`, its clips); the corpus last."""
    every = [
        (f"{what}-{start:05d}", what, clips.part(start, start + _PART))
        for what, clips in ((what, getattr(made, what)) for what in reversed(SETS))
        for start in range(0, len(clips), _PART)
    ]
    return every[share[0] - 1 :: share[1]]


def read(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Each of `SETS` -> name of an output -> (N, draws, projections, dim), as `compute` left them."""
    found = {}
    for what in SETS:
        parts = [np.load(path) for path in sorted(folder.glob(f"{what}-?????.npz"))]
        found[what] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
    return found


def through_attributor(
    made: Case, folder: Path, noises: int, checkpoints: Sequence[Path], share: tuple[int, int] = (1, 1)
) -> None:
    """The features that users get, into FOLDER; stopped, it goes on.

    Args:
        noises: At each of the default timesteps, by the default projection; by the other there is one.
        checkpoints: States of the denoiser, beside the base.
        share: As `compute` takes it.
    """
    check(folder, {"noises": noises, "checkpoints": [path.name for path in checkpoints]})
    pipe = made.pipeline()
    several = {"projection": "fastfood", "noise_draws": noises}
    variants: list[tuple[str, dict[str, Any], Path | None]] = [(BASE, several, None)]
    variants += [(f"checkpoint {path.stem}", several, path) for path in checkpoints]
    variants.append(("factored", {"projection": "factored", "noise_draws": 1}, None))
    base = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    for variant, settings, checkpoint in variants:
        pipe.transformer.load_state_dict(base if checkpoint is None else torch.load(checkpoint, map_location="cpu"))
        attributor = MotiveAttributor(pipe, **world.CLIP, encoded_column="encoded", **settings)
        for name, what, part in _parts(made, share):
            path = folder / variant / f"{name}.npy"
            if what != "samples" and not path.exists():
                index = attributor.index(part.rows, path.with_suffix(""))
                features = index.features_by_draw(attributor.ids(part.rows))
                with whole(path) as partial:
                    np.save(partial, features.unflatten(1, (-1, settings["noise_draws"])).numpy())


def read_attributor(folder: Path, sizes: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each variant that `through_attributor` has finished, features of the corpus and of the queries.

    Args:
        sizes: How many clips "corpus" and "queries" have.

    Returns:
        Variant -> two arrays (N, timesteps, noises, D).
    """
    found = {}
    for path in sorted(folder.glob("*")):
        parts = {what: [np.load(part) for part in sorted(path.glob(f"{what}-?????.npy"))] for what in sizes}
        if all(sum(map(len, parts[what])) == size for what, size in sizes.items()):
            found[path.name] = (np.concatenate(parts["corpus"]), np.concatenate(parts["queries"]))
    return found
