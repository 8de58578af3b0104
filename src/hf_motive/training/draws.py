"""What the training sees when, as functions of a seed and a number: which clip, at which noise level, with what noise.

The clips are shown one after the other: all of them in some order, then all of them in another. A clip's number in
that sequence is its draw. Nothing else decides what is drawn, so that processes, batch sizes and restarts do not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """What one showing of a clip draws.

    Attributes:
        position: On the pipeline's schedule, 0 the noisiest.
        seed: Of the noise.
        call_seed: Of what the pipeline and its denoiser draw.
        without_caption: Whether the caption is left out.
    """

    position: int
    seed: int
    call_seed: int
    without_caption: bool


class Draws:
    """A draw's number to what it draws.

    Args:
        seed: Of the run.
        positions: Of the schedule, to draw from.
        density: "uniform", "logit_normal" or "mode", over the positions, as diffusers' training scripts take them.
        logit_mean, logit_std, mode_scale: Of the density.
        caption_dropout: Share of draws without a caption, in [0, 1].
    """

    def __init__(
        self,
        seed: int,
        positions: range,
        density: str = "uniform",
        *,
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        mode_scale: float = 1.29,
        caption_dropout: float = 0.0,
    ):
        self.seed, self.positions, self.caption_dropout = seed, positions, caption_dropout
        self._density: dict[str, Any] = {
            "weighting_scheme": density,
            "logit_mean": logit_mean,
            "logit_std": logit_std,
            "mode_scale": mode_scale,
        }

    def __call__(self, number: int) -> Draw:
        from diffusers.training_utils import compute_density_for_timestep_sampling

        generator = torch.Generator().manual_seed(seed_of(self.seed, "draw", number))
        u = float(compute_density_for_timestep_sampling(batch_size=1, generator=generator, **self._density))
        place = min(max(int(u * len(self.positions)), 0), len(self.positions) - 1)
        without = float(torch.rand((), generator=generator)) < self.caption_dropout
        # Seeds of their own: two generators of one seed begin alike, and the noise would know the timestep.
        noise, call = (seed_of(self.seed, what, number) for what in ("noise", "call"))
        return Draw(self.positions[place], noise, call, without)


class DrawOrder(Sampler):
    """(draw, row) of every clip that one epoch shows, for all processes: Accelerate deals the batches out.

    An epoch is a whole number of optimizer steps; the last one is filled up from the next order of the clips.

    Args:
        rows: Number of clips.
        clips_a_step: Clips that one optimizer step sees, over all processes.
        seed: Of the orders.
        steps_done: How many optimizer steps were done before, which says the epoch. Asked, and not told by
            `set_epoch`, which does not reach through the samplers that skip to where a resumed run was.
    """

    def __init__(self, rows: int, clips_a_step: int, seed: int, steps_done: Callable[[], int] = lambda: 0):
        self.rows, self.seed, self.steps_done = rows, seed, steps_done
        self.steps = math.ceil(rows / clips_a_step)
        self._length = self.steps * clips_a_step

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, turn, order = self.steps_done() // self.steps, -1, []
        for draw in range(epoch * self._length, (epoch + 1) * self._length):
            if draw // self.rows != turn:
                turn = draw // self.rows
                generator = torch.Generator().manual_seed(seed_of(self.seed, "order", turn))
                order = torch.randperm(self.rows, generator=generator).tolist()
            yield draw, order[draw % self.rows]


def seed_of(*parts: object) -> int:
    """A seed in [0, 2⁶³) that depends on all parts: near seeds of one generator would start alike."""
    text = " ".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
