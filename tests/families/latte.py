"""Latte: an image VAE taking frame by frame, ε-prediction beside a learned variance, T5 prompts cut to their length.

The denoiser returns twice the latent channels. The second half, the variance of a sampling step, is a sampler's
matter: it is not part of the denoising loss, and its weights get no gradient.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
from torch import Tensor

from tests.families.cogvideox import TEXT_DIM, tiny_t5
from tests.families.common import (
    Variant,
    character_tokenizer,
    finish,
    posterior_mode_of_frames,
    randomise,
    weighted_mse,
)

NUM_FRAMES, HEIGHT, WIDTH = 6, 32, 48
LATENTS = (4, 6, 8, 12)  # (C, T, h, w)
CALL_KWARGS = {"clean_caption": False}  # which asks for beautifulsoup4


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> LattePipeline:
    tokenizer = character_tokenizer(120)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    transformer = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=TEXT_DIM,
        video_length=NUM_FRAMES,
    )
    pipe = LattePipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(len(tokenizer), seed + 1),
        vae=randomise(vae, seed + 2),
        transformer=randomise(transformer, seed + 3),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False),
    )
    return finish(pipe, dtype)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = √ᾱ x0 + √(1−ᾱ) ε with betas linear from 1e-4 to 0.02; the first half of the output is to be ε."""
    model = pipe.transformer
    alpha = float(torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0)[int(timestep)])
    x0, noise = posterior_mode_of_frames(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    noised = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    with torch.no_grad():
        tokens = torch.tensor([pipe.tokenizer(caption.lower().strip()).input_ids])  # no padding is left
        embeds = pipe.text_encoder(tokens)[0]
    output = model(
        noised.to(model.dtype),
        timestep=torch.tensor([int(timestep)]),
        encoder_hidden_states=embeds.to(model.dtype),
        return_dict=False,
    )[0]
    return weighted_mse(output[:, : noise.shape[1]], noise, weight)


VARIANTS = (
    Variant(
        "latte",
        "LattePipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        call_kwargs=CALL_KWARGS,
        remark="Clips of as many frames as the denoiser's `video_length`; its learned variance is not scored.",
    ),
)
