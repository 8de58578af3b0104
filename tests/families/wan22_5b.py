"""Wan 2.2 TI2V 5B: a patchified residual VAE (16 × 16 × 4), and one timestep a token."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor

from tests.families import wan
from tests.families.common import Variant, character_tokenizer, finish, randomise

NUM_FRAMES, HEIGHT, WIDTH = 9, 64, 96
LATENTS = (6, 3, 4, 6)  # (C, T, h, w)


def tiny_vae(seed: int) -> AutoencoderKLWan:
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=6,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
        latents_mean=[-0.2, 0.1, 0.4, -0.3, 0.0, 0.2],
        latents_std=[0.6, 1.1, 0.8, 1.4, 0.9, 1.2],
    )
    return randomise(vae, seed)


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanPipeline:
    tokenizer = character_tokenizer()
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=5.0),
        transformer=wan.tiny_transformer(seed + 3, channels=6),
        expand_timesteps=True,
    )
    return finish(pipe, dtype)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    _, frames, height, width = noise.shape
    per_token = torch.full((1, frames * (height // 2) * (width // 2)), timestep)  # patches of 1 × 2 × 2
    sigma = wan.noise_level(timestep, sigma)
    return wan.flow_step(pipe, pipe.transformer, pixels, caption, noise, per_token, sigma, weight)


VARIANTS = (Variant("wan2.2-5b", "WanPipeline", build, training_step, NUM_FRAMES, HEIGHT, WIDTH, LATENTS),)
