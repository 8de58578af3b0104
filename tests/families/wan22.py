"""Wan 2.2 A14B: Wan 2.1 with two transformers, one for t at or above 875, one below."""

from __future__ import annotations

import torch
from diffusers import WanPipeline
from torch import Tensor

from tests.families import wan
from tests.families.common import Variant, character_tokenizer, finish

BOUNDARY = 0.875


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanPipeline:
    tokenizer = character_tokenizer()
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=3.0),
        transformer=wan.tiny_transformer(seed + 3),
        transformer_2=wan.tiny_transformer(seed + 4),
        boundary_ratio=BOUNDARY,
    )
    return finish(pipe, dtype)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    expert = pipe.transformer if timestep >= 1000 * BOUNDARY else pipe.transformer_2
    sigma = wan.noise_level(timestep, sigma)
    return wan.flow_step(pipe, expert, pixels, caption, noise, torch.tensor([timestep]), sigma, weight)


VARIANTS = (
    Variant(
        "wan2.2-a14b",
        "WanPipeline",
        build,
        training_step,
        wan.NUM_FRAMES,
        wan.HEIGHT,
        wan.WIDTH,
        wan.LATENTS,
        timesteps=(940.0, 500.0),
        denoisers=("transformer", "transformer_2"),
    ),
)
