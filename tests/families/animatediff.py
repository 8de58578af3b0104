"""AnimateDiff: a motion adapter in Stable Diffusion's UNet, ε-prediction, an image VAE taking frame by frame."""

from __future__ import annotations

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
)
from torch import Tensor

from tests.families.common import (
    Variant,
    character_tokenizer,
    finish,
    posterior_mode_of_frames,
    randomise,
    weighted_mse,
)
from tests.families.hunyuan import tiny_clip_text

NUM_FRAMES, HEIGHT, WIDTH = 6, 32, 48
LATENTS = (4, 6, 8, 12)  # (C, T, h, w)
TEXT_DIM, CHANNELS = 8, (8, 16)


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> AnimateDiffPipeline:
    tokenizer = character_tokenizer(77, bos=True)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    adapter = MotionAdapter(
        block_out_channels=CHANNELS,
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
    )
    pipe = AnimateDiffPipeline(
        vae=randomise(vae, seed + 2),
        text_encoder=tiny_clip_text(len(tokenizer), seed + 1, TEXT_DIM),
        tokenizer=tokenizer,
        unet=unet,
        motion_adapter=adapter,
        scheduler=DDIMScheduler(
            beta_schedule="linear", steps_offset=1, clip_sample=False, timestep_spacing="linspace"
        ),
    )
    randomise(pipe.unet, seed + 3)  # the two as one, after the pipeline has joined them
    return finish(pipe, dtype)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = √ᾱ x0 + √(1−ᾱ) ε with betas linear from 1e-4 to 0.02; the target is ε."""
    unet = pipe.unet
    alpha = float(torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0)[int(timestep)])
    x0, noise = posterior_mode_of_frames(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    noised = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt(caption, "cpu", 1, do_classifier_free_guidance=False)
    prediction = unet(
        noised.to(unet.dtype),
        torch.tensor(int(timestep)),
        encoder_hidden_states=embeds.repeat_interleave(pixels.shape[0], dim=0).to(unet.dtype),
    ).sample
    return weighted_mse(prediction, noise, weight)


VARIANTS = (
    Variant(
        "animatediff",
        "AnimateDiffPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        denoisers=("unet",),
    ),
)
