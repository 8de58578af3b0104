"""The validation loss on held-out clips, weighted by motion and plain, at fixed noise levels with fixed noise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .draws import seed_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipelines import PipelineStep
    from .clips import Clip


@torch.no_grad()
def clip_losses(step: PipelineStep, clip: Clip, timesteps: Iterable[float], seed: int) -> Tensor:
    """(timesteps, 2) float32 on the CPU: the motion-weighted loss of one clip, and the plain one.

    The noise follows from the seed, the clip's row and the timestep: each evaluation of a run sees the same. Without
    a mask, as a clip has none in which nothing moves, the first is NaN.
    """
    losses = []
    for timestep in timesteps:
        noise_seed = seed_of(seed, "validation", clip.row, timestep)
        output = step.loss(
            clip.latents,
            clip.caption,
            noise=step.noise(noise_seed),
            timestep=timestep,
            weight=clip.weight,
            example=clip.example,
            answers=clip.answers,
            seed=noise_seed,
            grad=False,
        )
        weighted = output.loss if clip.weight is not None else torch.full_like(output.loss, float("nan"))
        losses.append(torch.stack([weighted, output.unweighted]))
    return torch.stack(losses).float().cpu()


def summary(losses: Tensor, timesteps: Iterable[float], prefix: str) -> dict[str, float]:
    """Means over clips and timesteps, and over clips for each timestep.

    Args:
        losses: (clips, timesteps, 2).
        prefix: Of the names, as in `eval_motion_loss`.
    """
    weighted, plain = losses.double().unbind(-1)
    metrics = {f"{prefix}_motion_loss": weighted.nanmean().item(), f"{prefix}_loss": plain.mean().item()}
    for timestep, values in zip(timesteps, weighted.unbind(1), strict=True):
        metrics[f"{prefix}_motion_loss_t{timestep:g}"] = values.nanmean().item()
    return metrics
