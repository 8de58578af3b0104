"""ModelScope text-to-video (and Zeroscope, the same network): a UNet with temporal layers, ε-prediction, an image VAE.

The scheduler steps frames as a batch of images, (T, C, h, w). The video-to-video pipeline starts from the clip's own
latents and takes its size and length from the clip; a training step noises just those, so both have one step.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    VideoToVideoSDPipeline,
)
from torch import Tensor

from tests.families.common import (
    Variant,
    character_tokenizer,
    finish,
    posterior_mode_of_frames,
    randomise,
    scaled_linear_alphas,
    weighted_mse,
)
from tests.families.hunyuan import tiny_clip_text

NUM_FRAMES, HEIGHT, WIDTH = 6, 32, 48
LATENTS = (4, 6, 8, 12)  # (C, T, h, w)
TEXT_DIM = 8


def build(dtype: torch.dtype = torch.float32, seed: int = 0, cls: type = TextToVideoSDPipeline) -> DiffusionPipeline:
    tokenizer = character_tokenizer(77, bos=True)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    unet = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = cls(
        vae=randomise(vae, seed + 2),
        text_encoder=tiny_clip_text(len(tokenizer), seed + 1, TEXT_DIM),
        tokenizer=tokenizer,
        unet=randomise(unet, seed + 3),
        scheduler=scheduler,
    )
    return finish(pipe, dtype)


def build_video(dtype: torch.dtype = torch.float32, seed: int = 0) -> DiffusionPipeline:
    return build(dtype, seed, VideoToVideoSDPipeline)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = √ᾱ x0 + √(1−ᾱ) ε; the target is ε."""
    unet, alpha = pipe.unet, float(scaled_linear_alphas()[int(timestep)])
    x0, noise = posterior_mode_of_frames(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    noised = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt(caption, "cpu", 1, do_classifier_free_guidance=False)
    prediction = unet(
        noised.to(unet.dtype), torch.tensor(int(timestep)), encoder_hidden_states=embeds.to(unet.dtype)
    ).sample
    return weighted_mse(prediction, noise, weight)


SHAPE = (NUM_FRAMES, HEIGHT, WIDTH, LATENTS)

VARIANTS = (
    Variant("modelscope", "TextToVideoSDPipeline", build, training_step, *SHAPE, denoisers=("unet",)),
    Variant("zeroscope-v2v", "VideoToVideoSDPipeline", build_video, training_step, *SHAPE, denoisers=("unet",)),
)
