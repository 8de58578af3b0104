"""What a choice of clips does to the queries' loss: fine-tune on it, and measure.

Everything random is a function of the seed, the clip and how often it has been seen, so that two choices under one
seed differ by their clips and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .case import Clips, whole

_CHECKPOINTS = 73_001  # seed of the training that checkpoints are taken of; no half has it


@dataclass(frozen=True)
class Training:
    """AdamW as `MotiveTrainer` sets it up, all parameters, bfloat16 autocast."""

    epochs: int = 3
    batch: int = 8
    lr: float = 3e-4
    warmup: int = 5


@dataclass(frozen=True)
class Measurement:
    """At which noise levels, and with how many noises each, the queries' loss is taken."""

    timesteps: tuple[float, ...] = (250.0, 500.0, 751.0, 900.0)
    noises: int = 2


class Model:
    """A denoiser that can be set back to the base.

    Args:
        pipe: The base.
        compiled: Compile it: half a minute at first, and a third of the time after that.
        precise: Compute in float32, not in bfloat16, which does not see steps that are very small.
    """

    def __init__(self, pipe: Any, compiled: bool = False, precise: bool = False):
        self.precise = precise
        self.denoiser, self.device = pipe.transformer.train(), pipe.transformer.device
        self.shift = float(pipe.scheduler.config.flow_shift)
        self._base = {name: value.clone() for name, value in self.denoiser.state_dict().items()}
        self._forward: Callable[..., Any] = torch.compile(self.denoiser) if compiled else self.denoiser

    def reset(self) -> None:
        self.denoiser.load_state_dict(self._base)

    def squared_error(self, clean: Tensor, captions: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """(B, C, T, h, w): of the velocity, noise − clean, at x = (1 − σ) clean + σ noise."""
        clean, captions, noise, sigma = (part.to(self.device) for part in (clean, captions, noise, sigma))
        blend = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=not self.precise):
            predicted = self._forward((1 - blend) * clean + blend * noise, sigma * 1000, captions, return_dict=False)
        return (predicted[0].float() - (noise - clean)) ** 2


def showings(chosen: Sequence[int], of: int, seed: int, epochs: int) -> list[tuple[int, int]]:
    """(clip, how often it was seen before): the order of the whole corpus, from which the others are left out."""
    wanted, order = set(int(clip) for clip in chosen), []
    for epoch in range(epochs):
        order += [(int(c), epoch) for c in np.random.default_rng([seed, epoch]).permutation(of) if int(c) in wanted]
    return order


def draw(shape: Sequence[int], seed: int, clip: int, showing: int, epochs: int, shift: float) -> tuple[Tensor, float]:
    """The noise and σ of a showing.

    σ is spread as the scheduler's shift spreads it, and evenly over a clip's showings: left to chance, one clip would
    be seen at high noise three times and another never, which says nothing of the clips.
    """
    rng = np.random.default_rng([seed, clip])
    turn, place = rng.integers(epochs), rng.random()
    u = ((turn + showing) % epochs + place) / epochs
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)) + showing)
    return torch.randn(shape, generator=generator), float(shift * u / (1 + (shift - 1) * u))


def schedule(
    chosen: Sequence[int], of: int, seed: int, settings: Training
) -> list[tuple[float, list[tuple[int, int]]]]:
    """Of every step its learning rate, and its showings; what does not fill a batch at the end is left out."""
    order = showings(chosen, of, seed, settings.epochs)
    steps = len(order) // settings.batch
    return [
        (
            settings.lr * min((step + 1) / settings.warmup, (steps - step) / steps),
            order[step * settings.batch : (step + 1) * settings.batch],
        )
        for step in range(steps)
    ]


def fine_tune(
    model: Model,
    corpus: Clips,
    chosen: Sequence[int],
    seed: int,
    settings: Training,
    after: Callable[[int, int], None] = lambda done, steps: None,
    adaptive: bool = True,
) -> None:
    """From the base, in place. `after` is called at every step.

    Args:
        adaptive: AdamW, of gradients that are clipped. False: gradient descent, and nothing but.
    """
    model.reset()
    steps = schedule(chosen, len(corpus), seed, settings)
    parameters = list(model.denoiser.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0) if adaptive else torch.optim.SGD(parameters)
    for done, (lr, seen) in enumerate(steps):
        drawn = [
            draw(corpus.latents.shape[1:], seed, clip, showing, settings.epochs, model.shift) for clip, showing in seen
        ]
        rows = torch.tensor([clip for clip, _ in seen])
        noise, sigma = torch.stack([n for n, _ in drawn]), torch.tensor([s for _, s in drawn])
        for group in optimizer.param_groups:
            group["lr"] = lr
        model.squared_error(corpus.latents[rows], corpus.captions[rows], noise, sigma).mean().backward()
        if adaptive:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after(done + 1, len(steps))


def keep_checkpoints(model: Model, corpus: Clips, folder: Path, settings: Training, count: int) -> list[Path]:
    """FOLDER/K.pt for K = 1 to `count`: states of the denoiser in a training on the whole corpus, evenly spaced."""
    folder.mkdir(parents=True, exist_ok=True)

    def after(done: int, steps: int) -> None:
        at = [round(k * steps / count) for k in range(1, count + 1)]
        if done in at:
            with whole(folder / f"{at.index(done) + 1}.pt") as partial:
                torch.save(model.denoiser.state_dict(), partial)

    if not (folder / f"{count}.pt").exists():
        fine_tune(model, corpus, range(len(corpus)), _CHECKPOINTS, settings, after)
    return [folder / f"{k}.pt" for k in range(1, count + 1)]


@torch.no_grad()
def losses(model: Model, queries: Clips, settings: Measurement) -> np.ndarray:
    """(2, Q, timesteps, noises) float64: the motion-weighted and the plain loss of each query."""
    found = np.zeros((2, len(queries), len(settings.timesteps), settings.noises))
    for cells, weighted, plain in measured(model, queries, settings):
        for cell, one, other in zip(cells, weighted.tolist(), plain.tolist(), strict=True):
            found[(0, *cell)], found[(1, *cell)] = one, other
    return found


def measured(
    model: Model, queries: Clips, settings: Measurement, batch: int = 8
) -> Iterator[tuple[list[tuple[int, int, int]], Tensor, Tensor]]:
    """Batches of (query, timestep, noise), with (B,) motion-weighted and plain losses, float64.

    The weighted one is a mean over the weight, so that a query with much motion counts no more than one with little.
    """
    cells = [(q, t, n) for t in range(len(settings.timesteps)) for n in range(settings.noises)
             for q in range(len(queries))]  # fmt: skip
    noises = [torch.randn(queries.latents.shape[1:], generator=torch.Generator().manual_seed(90_001 + n))
              for n in range(settings.noises)]  # fmt: skip
    for start in range(0, len(cells), batch):
        part = cells[start : start + batch]
        rows = torch.tensor([q for q, _, _ in part])
        sigma = torch.tensor([settings.timesteps[t] / 1000 for _, t, _ in part])
        noise = torch.stack([noises[n] for _, _, n in part])
        squares = model.squared_error(queries.latents[rows], queries.captions[rows], noise, sigma).mean(1).double()
        weight = queries.weights[rows].to(model.device).double()
        yield part, (squares * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)), squares.mean((1, 2, 3))
