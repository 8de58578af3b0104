"""Wan as modular pipelines: the models, steps and released schedulers of the ordinary ones, put together from blocks.

Guidance is a component of its own (two with two experts), not an argument of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    ModularPipeline,
    Wan22Image2VideoModularPipeline,
    Wan22ModularPipeline,
    Wan22VaceModularPipeline,
    WanImage2VideoModularPipeline,
    WanImageToVideoPipeline,
    WanModularPipeline,
)
from torch import Tensor

from tests.families import wan, wan22, wan_control, wan_i2v
from tests.families.common import Variant, character_tokenizer, finish

#: Of an ordinary pipeline that a modular one has too.
PARTS = (
    "tokenizer",
    "text_encoder",
    "vae",
    "scheduler",
    "transformer",
    "transformer_2",
    "image_encoder",
    "image_processor",
)


def assemble(pipe: ModularPipeline, dtype: torch.dtype, seed: int, **parts: Any) -> ModularPipeline:
    """Tiny parts for whatever is not a transformer, as the pages of the ordinary pipelines make them."""
    tokenizer = character_tokenizer()
    pipe.update_components(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=3.0),
        **parts,
    )
    return finish(pipe, dtype)


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanModularPipeline:
    return assemble(WanModularPipeline(), dtype, seed, transformer=wan.tiny_transformer(seed + 3))


def build_two_experts(dtype: torch.dtype = torch.float32, seed: int = 0) -> Wan22ModularPipeline:
    return assemble(
        Wan22ModularPipeline(),
        dtype,
        seed,
        transformer=wan.tiny_transformer(seed + 3),
        transformer_2=wan.tiny_transformer(seed + 4),
        boundary_ratio=wan22.BOUNDARY,
    )


def build_i2v(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanImage2VideoModularPipeline:
    return assemble(
        WanImage2VideoModularPipeline(),
        dtype,
        seed,
        transformer=wan_i2v.tiny_transformer(seed + 3, image_dim=wan_i2v.IMAGE_DIM),
        image_encoder=wan_i2v.tiny_image_encoder(seed + 4),
        image_processor=wan_i2v.image_processor(),
    )


def build_i2v_two_experts(dtype: torch.dtype = torch.float32, seed: int = 0) -> Wan22Image2VideoModularPipeline:
    return assemble(
        Wan22Image2VideoModularPipeline(),
        dtype,
        seed,
        transformer=wan_i2v.tiny_transformer(seed + 3),
        transformer_2=wan_i2v.tiny_transformer(seed + 4),
        boundary_ratio=wan_i2v.BOUNDARY,
    )


def build_vace(dtype: torch.dtype = torch.float32, seed: int = 0) -> Wan22VaceModularPipeline:
    return assemble(
        Wan22VaceModularPipeline(),
        dtype,
        seed,
        transformer=wan_control.tiny_vace_transformer(seed + 3),
        transformer_2=wan_control.tiny_vace_transformer(seed + 4),
        boundary_ratio=wan_control.BOUNDARY,
    )


def by_hand(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An ordinary pipeline's step on the same parts; what it uses of the pipeline is `encode_prompt` and the like."""

    def training_step(pipe: ModularPipeline, *args: Any, **options: Any) -> Tensor:
        return step(WanImageToVideoPipeline(**{name: pipe.components.get(name) for name in PARTS}), *args, **options)

    return training_step


def variant(name: str, pipeline: str, build: Callable, step: Callable[..., Tensor], **options: Any) -> Variant:
    clip = (wan.NUM_FRAMES, wan.HEIGHT, wan.WIDTH, wan.LATENTS)
    return Variant(name, pipeline, build, by_hand(step), *clip, **options)


# In half precision these pipelines round the timestep they tell the model: only at some is it the one that is meant.
ONE_EXPERT = {"timesteps": (752.0, 250.0)}
TWO_EXPERTS = {"timesteps": (940.0, 500.0), "denoisers": ("transformer", "transformer_2")}

VARIANTS = (
    variant("wan2.1-modular", "WanModularPipeline", build, wan.training_step, **ONE_EXPERT),
    variant("wan2.2-modular", "Wan22ModularPipeline", build_two_experts, wan22.training_step, **TWO_EXPERTS),
    variant("wan2.1-i2v-modular", "WanImage2VideoModularPipeline", build_i2v, wan_i2v.training_step, **ONE_EXPERT),
    variant(
        "wan2.2-i2v-modular",
        "Wan22Image2VideoModularPipeline",
        build_i2v_two_experts,
        wan_i2v.training_step_two_experts,
        **TWO_EXPERTS,
    ),
    variant(
        "wan2.2-vace-modular",
        "Wan22VaceModularPipeline",
        build_vace,
        wan_control.training_step_inpainting,
        **TWO_EXPERTS,
        conditioning=wan_control.control_and_mask,
        example=wan_control.vace_example,
    ),
)
