"""How far `PipelineStep` is from a training step written by hand: of the loss, and of every parameter's gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_motive.pipelines import PipelineStep
from tests.families.common import Variant, example_pixels

CAPTION = "a red ball bounces"

# A gradient that is zero by algebra (a key's bias under softmax, a query before a single key) is rounding noise in
# both steps: a parameter's gradient is measured against at least this share of the norm of the whole gradient.
SMALLEST_SHARE = 1e-4


class Difference(NamedTuple):
    """Relative differences between the pipeline's step and the hand-written one; `cosine` is the smallest met."""

    loss: float
    gradient: float  # of all parameters at once: ‖g − h‖ / ‖h‖
    parameter: float  # the worst single parameter
    cosine: float  # between the two whole gradients

    def worst(self, other: Difference) -> Difference:
        return Difference(*(max(a, b) for a, b in zip(self[:3], other[:3], strict=True)), min(self[3], other[3]))


def example_weight(shape: tuple[int, ...]) -> Tensor:
    """(T, h, w) in [0, 1], with zeros: no two positions alike, so a transposed layout cannot pass."""
    weight = torch.rand(shape[1:], generator=torch.Generator().manual_seed(5))
    return (weight * 1.5 - 0.5).clamp(min=0)


def pipeline_step(variant: Variant, pipe: Any, **options: Any) -> PipelineStep:
    pixels = example_pixels(variant.num_frames, variant.height, variant.width)
    return PipelineStep(
        pipe,
        num_frames=variant.num_frames,
        height=variant.height,
        width=variant.width,
        call_kwargs=variant.call_kwargs,
        **{
            "conditioning": variant.conditioning,
            "example": variant.row(pixels) if variant.example else None,
            **options,
        },
    )


def gradients(variant: Variant, pipe: Any, loss: Tensor) -> dict[str, Tensor]:
    """Every denoiser parameter's gradient in fp64; one that got none counts as zero."""
    parameters = {
        f"{denoiser}.{name}": parameter
        for denoiser in variant.denoisers
        for name, parameter in getattr(pipe, denoiser).named_parameters()
    }
    for parameter in parameters.values():
        parameter.grad = None
    loss.backward()
    return {
        name: torch.zeros_like(parameter, dtype=torch.float64) if parameter.grad is None else parameter.grad.double()
        for name, parameter in parameters.items()
    }


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor], loss: Tensor, by_hand: Tensor) -> Difference:
    norm = math.sqrt(sum(float(h.square().sum()) for h in theirs.values()))
    our_norm = math.sqrt(sum(float(g.square().sum()) for g in ours.values()))
    apart = {name: float((ours[name] - h).norm()) for name, h in theirs.items()}
    return Difference(
        loss=abs(float(loss) - float(by_hand)) / abs(float(by_hand)),
        gradient=math.sqrt(sum(d * d for d in apart.values())) / norm,
        parameter=max(apart[name] / max(float(h.norm()), SMALLEST_SHARE * norm) for name, h in theirs.items()),
        cosine=sum(float((ours[name] * h).sum()) for name, h in theirs.items()) / (norm * our_norm),
    )


def compare(variant: Variant, pipe: Any, step: PipelineStep, timestep: float, weighted: bool) -> Difference:
    """One clip through `step` and through the variant's own training step, at the schedule's nearest timestep."""
    pixels = example_pixels(variant.num_frames, variant.height, variant.width)
    latents, noise = step.encode(pixels), step.noise(seed=3)
    weight = example_weight(step.latent_shape) if weighted else None
    level = step.resolve_timestep(timestep)
    out = step.loss(latents, CAPTION, noise=noise, timestep=timestep, weight=weight, example=variant.row(pixels))
    ours = gradients(variant, pipe, out.loss)
    by_hand = variant.training_step(pipe, pixels, CAPTION, noise, level.timestep, weight, sigma=level.sigma)
    return difference(ours, gradients(variant, pipe, by_hand), out.loss.detach(), by_hand.detach())
