"""Helios as modular pipelines: the parts and steps of the ordinary ones; guidance is a component, and off.

Their noise is drawn within the loop over chunks, each chunk anew; the pyramids draw it at a quarter of the size. In
diffusers 0.42.1 they tell the model the timestep without its fraction, unlike HeliosPipeline.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    HeliosDMDScheduler,
    HeliosModularPipeline,
    HeliosPipeline,
    HeliosPyramidDistilledModularPipeline,
    HeliosPyramidModularPipeline,
    ModularPipeline,
    SchedulerMixin,
)
from torch import Tensor, nn

from tests.families import helios, wan
from tests.families.common import Variant, finish

STAGES = 3
NO_NOISE_ON_IMAGES = dict.fromkeys(
    ("image_noise_sigma_min", "image_noise_sigma_max", "video_noise_sigma_min", "video_noise_sigma_max"), 0.0
)


def build(
    pipeline: type[ModularPipeline],
    stages: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scheduler: type[SchedulerMixin] | None = None,
) -> ModularPipeline:
    parts = helios.build(HeliosPipeline, stages, seed=seed).components
    if scheduler is not None:
        parts["scheduler"] = scheduler.from_config(parts["scheduler"].config)
    pipe = pipeline()
    pipe.update_components(**parts)
    return finish(pipe, dtype)


def without_fraction(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return args, kwargs | {"timestep": kwargs["timestep"].long()}


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None, **options) -> Tensor:
    """The ordinary pipeline's, of the same parts; the noise level keeps the fraction, and the model is not told it."""
    names = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    ordinary = HeliosPipeline(**{name: getattr(pipe, name) for name in names})
    told = pipe.transformer.register_forward_pre_hook(without_fraction, with_kwargs=True)
    try:
        return helios.training_step(ordinary, pixels, caption, noise, timestep, weight, sigma, **options)
    finally:
        told.remove()


VARIANTS = (
    Variant(
        "helios-modular",
        "HeliosModularPipeline",
        functools.partial(build, HeliosModularPipeline, 1),
        training_step,
        *helios.CLIP,
        wan.LATENTS,
        call_kwargs=helios.ONE_CHUNK,
        remark="One chunk, as of HeliosPipeline; the model is told the timestep without its fraction.",
    ),
    Variant(
        "helios-modular-i2v",
        "HeliosModularPipeline",
        functools.partial(build, HeliosModularPipeline, 1),
        functools.partial(training_step, from_image=True),
        *helios.CLIP,
        wan.LATENTS,
        call_kwargs=helios.ONE_CHUNK | NO_NOISE_ON_IMAGES,
        conditioning=helios.from_first_frame,
        remark="`conditioning` gives the image that comes before the clip.",
    ),
    Variant(
        "helios-modular-pyramid",
        "HeliosPyramidModularPipeline",
        functools.partial(build, HeliosPyramidModularPipeline, STAGES),
        None,
        wan.NUM_FRAMES,
        64,  # a quarter of it is one patch
        64,
        None,
        call_kwargs=helios.ONE_CHUNK,
        refused="more than one round|resolution",
        remark="A chunk grows while it is denoised: a resolution pyramid has no single timestep.",
    ),
    Variant(
        "helios-modular-pyramid-distilled",
        "HeliosPyramidDistilledModularPipeline",
        functools.partial(build, HeliosPyramidDistilledModularPipeline, STAGES, scheduler=HeliosDMDScheduler),
        None,
        wan.NUM_FRAMES,
        64,
        64,
        None,
        call_kwargs=helios.ONE_CHUNK,
        refused="more than one round|resolution",
        remark="A chunk grows while it is denoised: a resolution pyramid has no single timestep.",
    ),
)
