"""The validation loss on held-out clips, weighted by motion and plain, at fixed noise levels with fixed noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .draws import seed_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipelines import PipelineStep
    from ..pipelines.schedule import ScheduledTimestep
    from .clips import Clip


@torch.no_grad()
def clip_losses(step: PipelineStep, clip: Clip, timesteps: Iterable[float | ScheduledTimestep], seed: int) -> Tensor:
    """(timesteps, 2) float32 on the CPU: the motion-weighted loss of one clip, and the plain one.

    The noise follows from the seed, the clip's row and the timestep: each evaluation of a run sees the same. Without
    a mask, as a clip has none in which nothing moves, the first is NaN.
    """
    losses = []
    for timestep in timesteps:
        noise_seed = seed_of(seed, "validation", clip.row, _level(timestep))
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


def summary(losses: Tensor, timesteps: Iterable[float | ScheduledTimestep], prefix: str) -> dict[str, float]:
    """Means over clips and timesteps, and over clips for each timestep.

    Args:
        losses: (clips, timesteps, 2).
        prefix: Of the names, as in `eval_motion_loss`.
    """
    weighted, plain = losses.double().unbind(-1)
    metrics = {f"{prefix}_motion_loss": weighted.nanmean().item(), f"{prefix}_loss": plain.mean().item()}
    for timestep, values in zip(timesteps, weighted.unbind(1), strict=True):
        metrics[f"{prefix}_motion_loss_t{_level(timestep):g}"] = values.nanmean().item()
    return metrics


def validation_timesteps(step: PipelineStep, told: list[float] | None, trained: Sequence[str]) -> list[Any]:
    """Where the validation loss is taken: in the reach of every denoiser that is trained.

    Args:
        told: In [0, 1000], by the user; None: 250, 500 and 750, or of a pipeline with several denoisers the quartiles
            of each trained one's part of the schedule.
        trained: Names of the denoisers.

    Raises:
        ValueError: At none of the told ones a trained denoiser is asked.
    """
    if len(step.denoisers) == 1:
        return told or [250.0, 500.0, 750.0]
    reaches = {name: step.positions(name) for name in trained}
    if told is None:
        places = {reach[len(reach) * quarter // 4] for reach in reaches.values() if reach for quarter in (1, 2, 3)}
        return [step.scheduled(place) for place in sorted(places, reverse=True)]
    asked = [step.resolve_timestep(timestep).position for timestep in told]
    for name, reach in reaches.items():
        if not any(place in reach for place in asked):
            raise ValueError(
                f"at none of eval_timesteps {told} is {name} asked, which is trained: leave them out, or take some "
                f"between {step.scheduled(reach[-1]).timestep:g} and {step.scheduled(reach[0]).timestep:g}"
            )
    return list(told)


def _level(timestep: float | ScheduledTimestep) -> float:
    return timestep if isinstance(timestep, (int, float)) else timestep.timestep
