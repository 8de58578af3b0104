"""Cosmos 3 as modular pipelines: the parts and steps of the ordinary one; which way it goes, its arguments decide.

The distilled pipeline knows the few noise levels that it was distilled at, and no others: its schedule is a setting of
the pipeline, and each of its steps leaps to the clip and noises it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    Cosmos3DistilledModularPipeline,
    Cosmos3OmniModularPipeline,
    FlowMatchEulerDiscreteScheduler,
    ModularPipeline,
)

from tests.families import cosmos3
from tests.families.common import Variant, finish
from tests.families.cosmos2 import images

DISTILLED_AT = (0.999, 0.75, 0.5, 0.25)
PARTS = ("text_tokenizer", "transformer", "vae", "scheduler")


def assemble(pipe: ModularPipeline, dtype: torch.dtype, seed: int, **others: Any) -> ModularPipeline:
    ordinary = cosmos3.build(seed=seed)
    pipe.update_components(**{name: getattr(ordinary, name) for name in PARTS} | others)
    pipe.disable_safety_checker()
    return finish(pipe, dtype)


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cosmos3OmniModularPipeline:
    sound_tokenizer = cosmos3.build(seed=seed).sound_tokenizer
    return assemble(Cosmos3OmniModularPipeline(), dtype, seed, sound_tokenizer=sound_tokenizer)


def build_distilled(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cosmos3DistilledModularPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    pipe = Cosmos3DistilledModularPipeline()
    return assemble(pipe, dtype, seed, scheduler=scheduler, distilled_sigmas=list(DISTILLED_AT))


def variant(name: str, step: Callable, shape: tuple = cosmos3.SHAPE, **options: Any) -> Variant:
    return Variant(name, "Cosmos3OmniModularPipeline", build, step, *shape, **options)


def distilled(name: str, step: Callable, **options: Any) -> Variant:
    few_steps = {"num_inference_steps": len(DISTILLED_AT)}
    pipeline = "Cosmos3DistilledModularPipeline"
    return Variant(name, pipeline, build_distilled, step, *cosmos3.SHAPE, call_kwargs=few_steps, **options)


def first_image(example: dict) -> dict:
    return {"image": images(example["pixels"])[0]}


def as_video(example: dict) -> dict:
    return {"video": images(example["pixels"])}


VARIANTS = (
    variant("cosmos3-modular-text", cosmos3.training_step, remark="Text-to-video, unless told more."),
    variant("cosmos3-modular-image", cosmos3.image_step, conditioning=first_image),
    variant("cosmos3-modular-video", cosmos3.video_step, conditioning=as_video),
    variant(
        "cosmos3-modular-sound",
        cosmos3.sound_step,
        call_kwargs={"enable_sound": True},
        refused="second stream",
        remark="Sound is not served here, as it is in Cosmos3OmniPipeline.",
    ),
    variant(
        "cosmos3-modular-action",
        cosmos3.action_step,
        cosmos3.ACTION_SHAPE,
        call_kwargs={"num_frames": None, "height": None, "width": None},
        conditioning=cosmos3.forward_dynamics,
        example=cosmos3.moves,
    ),
    distilled(
        "cosmos3-distilled-modular",
        cosmos3.training_step,
        remark="`call_kwargs` gives `num_inference_steps`, the number of `distilled_sigmas`, "
        "which are all the noise levels there are.",
    ),
    distilled("cosmos3-distilled-modular-image", cosmos3.image_step, conditioning=first_image),
    distilled("cosmos3-distilled-modular-video", cosmos3.video_step, conditioning=as_video),
)
