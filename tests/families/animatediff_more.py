"""AnimateDiff's relatives: perturbed-attention guidance, the SDXL backbone, and PIA, which animates a first frame.

SDXL's UNet is told of two text encoders, a pooled embedding and three sizes. PIA's UNet reads, beside the noised
latents, the first frame's latents on every frame and a mask: one number a frame, how like the first it is to be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AnimateDiffPAGPipeline,
    AnimateDiffSDXLPipeline,
    EulerDiscreteScheduler,
    PIAPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.families.animatediff import HEIGHT, LATENTS, NUM_FRAMES, TEXT_DIM, WIDTH
from tests.families.animatediff_control import (
    certain,
    image_unet,
    joined,
    linear_alphas,
    linear_ddim,
    motion_adapter,
    noised_and_text,
    video_step,
)
from tests.families.common import (
    Variant,
    character_tokenizer,
    posterior_mode_of_frames,
    randomise,
    scaled_linear_alphas,
    weighted_mse,
)

POOLED_DIM, TIME_DIM = 12, 8
LIKENESS = (1.0, 0.9, 0.85, 0.85, 0.85, 0.8)  # PIA's mask for small motion (motion_scale=0), frame by frame


# ------------------------------------------------------------------------------------------------------------- parts


def sdxl_unet() -> UNet2DConditionModel:
    return image_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=2 * TEXT_DIM,  # the two encoders' states side by side
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_DIM,
        projection_class_embeddings_input_dim=6 * TIME_DIM + POOLED_DIM,
    )


def sdxl_text(seed: int) -> dict[str, Any]:
    """Both of SDXL's text encoders, with their tokenizers. Of each, the last state but one is taken."""
    tokenizer = character_tokenizer(77, bos=True)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=2 * TEXT_DIM,
        projection_dim=POOLED_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=0,
    )
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder": randomise(CLIPTextModel(config), seed + 1),
        "text_encoder_2": randomise(CLIPTextModelWithProjection(config), seed + 5),
    }


def build_pag(dtype: torch.dtype = torch.float32, seed: int = 0) -> AnimateDiffPAGPipeline:
    return joined(AnimateDiffPAGPipeline, linear_ddim(), dtype, seed)


def build_sdxl(dtype: torch.dtype = torch.float32, seed: int = 0) -> AnimateDiffSDXLPipeline:
    pipe = joined(AnimateDiffSDXLPipeline, linear_ddim(), dtype, seed, unet=sdxl_unet(), **sdxl_text(seed))
    pipe.vae.register_to_config(scaling_factor=0.13025)
    return pipe


def build_pia(dtype: torch.dtype = torch.float32, seed: int = 0) -> PIAPipeline:
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    pipe = joined(PIAPipeline, scheduler, dtype, seed, motion_adapter=motion_adapter(conv_in_channels=9))
    certain(pipe.vae)
    return pipe


# ------------------------------------------------------------------------------------------------- training, by hand


def sdxl_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """ε-prediction, with betas linear; original size, crop and target size are those of an uncropped clip."""
    unet, vae, noise = pipe.unet, pipe.vae, noise[None].float()
    alpha = float(linear_alphas()[int(timestep)])
    x0 = posterior_mode_of_frames(vae, pixels) * 0.13025
    noised = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(caption, device="cpu", do_classifier_free_guidance=False)
    height, width = pixels.shape[2:]
    prediction = unet(
        noised.to(unet.dtype),
        torch.tensor(int(timestep)),
        encoder_hidden_states=text.repeat_interleave(pixels.shape[0], dim=0).to(unet.dtype),
        added_cond_kwargs={
            "text_embeds": pooled.to(unet.dtype),
            "time_ids": torch.tensor([[height, width, 0, 0, height, width]], dtype=unet.dtype),
        },
    ).sample
    return weighted_mse(prediction, noise, weight)


def pia_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = x0 + σ ε, of which the network sees x_t / √(σ²+1); timesteps lie between the 1000 of training; ε."""
    unet, vae, noise = pipe.unet, pipe.vae, noise[None].float()
    alphas = scaled_linear_alphas()
    sigma = float(np.interp(timestep, np.arange(1000), ((1 - alphas) / alphas).sqrt().numpy()))
    noised, text = noised_and_text(pipe, pixels, caption, noise, 1 / (sigma**2 + 1))
    first = posterior_mode_of_frames(vae, pixels[:1]) * vae.config.scaling_factor
    mask = torch.tensor(LIKENESS).view(1, 1, -1, 1, 1).expand(1, 1, *noised.shape[2:])
    prediction = unet(
        torch.cat([noised, mask.to(unet.dtype), first.expand_as(noised).to(unet.dtype)], dim=1),
        torch.tensor(timestep, dtype=torch.float32),
        encoder_hidden_states=text,
    ).sample
    return weighted_mse(prediction, noise, weight)


# ---------------------------------------------------------------------------------------------------------- variants

SHAPE = (NUM_FRAMES, HEIGHT, WIDTH, LATENTS)

VARIANTS = (
    Variant(
        "animatediff-pag",
        "AnimateDiffPAGPipeline",
        build_pag,
        video_step,  # guidance by perturbed attention is off in training: AnimateDiff's own step
        *SHAPE,
        denoisers=("unet",),
    ),
    Variant("animatediff-sdxl", "AnimateDiffSDXLPipeline", build_sdxl, sdxl_step, *SHAPE, denoisers=("unet",)),
    Variant(
        "pia",
        "PIAPipeline",
        build_pia,
        pia_step,
        *SHAPE,
        denoisers=("unet",),
        remark="`motion_scale`, the same for every clip, belongs in `call_kwargs`.",
    ),
)
