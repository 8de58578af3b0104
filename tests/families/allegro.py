"""Allegro: ε-prediction as an ancestral Euler sampler sees it, (x0 + σ ε) / √(σ² + 1), and masked T5 prompts.

Its VAE encodes and decodes in tiles alone, and of whole tiles alone: what no tile covers stays zero without a word.
The released tiles of 24 × 320 × 320, stepping by 16, 200 and 240, fit clips of 16 i + 24 frames, 200 j + 320 rows and
240 k + 320 columns.
"""

from __future__ import annotations

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    EulerAncestralDiscreteScheduler,
)
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

from tests.families.cogvideox import TEXT_DIM, tiny_t5
from tests.families.common import Variant, character_tokenizer, finish, posterior_mode, randomise, weighted_mse

NUM_FRAMES, HEIGHT, WIDTH = 8, 32, 48
LATENTS = (4, 2, 4, 6)  # (C, T, h, w)
HEAD_DIM, TEXT_LENGTH = 12, 512
CALL_KWARGS = {"clean_caption": False}  # which asks for beautifulsoup4


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> AllegroPipeline:
    tokenizer = character_tokenizer(TEXT_LENGTH)
    vae = AutoencoderKLAllegro(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=4, scaling_factor=0.13
    )
    vae.enable_tiling()
    vae.kernel = vae.stride = (NUM_FRAMES, HEIGHT, WIDTH)  # one tile
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        cross_attention_dim=24,
        sample_height=4,
        sample_width=6,
        sample_frames=2,
        caption_channels=TEXT_DIM,
    )
    pipe = AllegroPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(len(tokenizer), seed + 1),
        vae=randomise(vae, seed + 2),
        transformer=randomise(transformer, seed + 3),
        scheduler=EulerAncestralDiscreteScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )
    return finish(pipe, dtype)


def alpha_bar(timestep: float) -> float:
    """ᾱ of betas linear from 1e-4 to 0.02; between two whole timesteps √(1/ᾱ − 1), σ, is what is interpolated."""
    alphas = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0)
    sigmas = (1 / alphas - 1).sqrt()
    below = min(int(timestep), 998)
    sigma = torch.lerp(sigmas[below], sigmas[below + 1], timestep - below)
    return float(1 / (1 + sigma**2))


def rotary(config, *grid: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """A table of cosines and sines an axis, its positions interpolated, and each token's place in all three."""
    scales = (config.interpolation_scale_t, config.interpolation_scale_h, config.interpolation_scale_w)
    tables = [
        get_1d_rotary_pos_embed(HEAD_DIM // 3, torch.arange(size) / scale, use_real=True, repeat_interleave_real=False)
        for size, scale in zip(grid, scales, strict=True)
    ]
    return tables, torch.cartesian_prod(*map(torch.arange, grid)).T.unsqueeze(1)  # (3, 1, S)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = √ᾱ x0 + √(1−ᾱ) ε, as it was trained; the target is ε."""
    model, alpha = pipe.transformer, alpha_bar(timestep)
    x0, noise = posterior_mode(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    noised = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    with torch.no_grad():
        embeds, mask, _, _ = pipe.encode_prompt(
            caption, do_classifier_free_guidance=False, clean_caption=False, max_sequence_length=TEXT_LENGTH
        )
    frames, height, width = noise.shape[2:]
    prediction = model(
        hidden_states=noised.to(model.dtype),
        encoder_hidden_states=embeds[:, None].to(model.dtype),
        encoder_attention_mask=mask,
        timestep=torch.tensor([timestep]),
        image_rotary_emb=rotary(model.config, frames, height // 2, width // 2),
        return_dict=False,
    )[0]
    return weighted_mse(prediction, noise, weight)


VARIANTS = (
    Variant(
        "allegro",
        "AllegroPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        call_kwargs=CALL_KWARGS,
        remark="Call `vae.enable_tiling()`, and choose clips of 16i+24 frames, 200j+320 rows, 240k+320 columns.",
    ),
)
