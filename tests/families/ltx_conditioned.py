"""LTX-Video from given frames: clean tokens, told timestep 0, among the noised ones.

Image-to-video keeps the first latent frame as given. The condition pipeline (0.9.5) does so with any frame: one at
index 0 takes the place of the first latent frame, one further on comes as tokens of its own, with their own position.
The given frames are *samples* of the VAE's posterior, drawn with the pipeline's generator.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXEulerAncestralRFScheduler,
    LTXI2VLongMultiPromptPipeline,
    LTXImageToVideoPipeline,
    LTXLatentUpsamplePipeline,
)
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from torch import Tensor

from hf_motive.pipelines.conditioning import video_frames
from tests.families import ltx
from tests.families.common import Variant, finish, per_channel, posterior_mode, randomise

SHAPE = ltx.NUM_FRAMES, ltx.HEIGHT, ltx.WIDTH


def build_image_to_video(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTXImageToVideoPipeline:
    return finish(LTXImageToVideoPipeline(**ltx.build(seed=seed).components), dtype)


def build_condition(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTXConditionPipeline:
    parts = ltx.build(seed=seed).components
    return finish(LTXConditionPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler()}), dtype)


def build_long(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTXI2VLongMultiPromptPipeline:
    parts = ltx.build(seed=seed).components
    return finish(LTXI2VLongMultiPromptPipeline(**{**parts, "scheduler": LTXEulerAncestralRFScheduler()}), dtype)


def build_upsample(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTXLatentUpsamplePipeline:
    upsampler = LTXLatentUpsamplerModel(in_channels=8, mid_channels=32, num_blocks_per_stage=1)
    vae = ltx.build(seed=seed).vae
    return finish(LTXLatentUpsamplePipeline(vae=vae, latent_upsampler=randomise(upsampler, seed + 5)), dtype)


# ------------------------------------------------------------------------------------------------ what a trainer does


def normalised(vae: Any, latents: Tensor) -> Tensor:
    return (latents - per_channel(vae.latents_mean)) / per_channel(vae.latents_std)


def given_frame(vae: Any, frame: Tensor, generator: torch.Generator) -> Tensor:
    """(1, 3, H, W) to the latents (1, C, 1, h, w) of a frame that the denoiser is shown."""
    with torch.no_grad():
        return normalised(
            vae, vae.encode(frame.transpose(0, 1)[None].to(vae.dtype)).latent_dist.sample(generator).float()
        )


def tokens(latents: Tensor) -> Tensor:
    """(1, C, T, h, w) to (1, T·h·w, C)."""
    return latents.flatten(2).transpose(1, 2)


def velocity(pipe: Any, hidden: Tensor, per_token: Tensor, caption: str, timestep: float, **positions: Any) -> Tensor:
    """The model's prediction for tokens (1, S, C); `per_token` (1, S) is 0 where a token is given, 1 elsewhere."""
    with torch.no_grad():
        embeds, mask, _, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=128)
    return pipe.transformer(
        hidden_states=hidden.to(pipe.transformer.dtype),
        encoder_hidden_states=embeds,
        timestep=timestep * per_token,
        encoder_attention_mask=mask,
        return_dict=False,
        **positions,
    )[0]


def loss_of_later_frames(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Tokens (1, T·h·w, C) against (1, C, T, h, w): the mean over all latent frames but the given first."""
    error = (prediction.transpose(1, 2).unflatten(2, target.shape[2:]) - target) ** 2
    if weight is not None:
        error = error * weight
    return error[:, :, 1:].mean()


def image_to_video_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """The first latent frame is the given image's, clean; the others as in text-to-video."""
    vae, sigma = pipe.vae, timestep / 1000
    _, frames, height, width = noise.shape
    first = given_frame(vae, pixels[:1], torch.Generator().manual_seed(0))
    x0, noise = normalised(vae, posterior_mode(vae, pixels)), noise[None]
    noised = torch.cat([first, ((1 - sigma) * x0 + sigma * noise)[:, :, 1:]], dim=2)
    per_token = torch.ones(1, frames, height, width)
    per_token[:, 0] = 0
    prediction = velocity(
        pipe,
        tokens(noised),
        per_token.flatten(1),
        caption,
        timestep,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(8 / ltx.FRAME_RATE, 32, 32),
    )
    return loss_of_later_frames(prediction, noise - x0, weight)


def positions(frames: int, height: int, width: int, frame_index: int = 0) -> Tensor:
    """(1, 3, S): second, row and column of each token's first pixel; latent frames begin at pixels 0, 1, 9, 17, …"""
    f, y, x = (torch.arange(n).float() for n in (frames, height, width))
    seconds = ((8 * f - 7).clamp(min=0) + frame_index) / ltx.FRAME_RATE
    return torch.stack(torch.meshgrid(seconds, 32 * y, 32 * x, indexing="ij")).flatten(1)[None]


def condition_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """First and last frame given: one inside the clip, one before its tokens, placed at the last frame's time."""
    vae, sigma = pipe.vae, timestep / 1000
    _, frames, height, width = noise.shape
    generator = torch.Generator().manual_seed(0)
    torch.randn(1, *noise.shape, generator=generator)  # the pipeline draws its initial latents before the frames
    first = given_frame(vae, pixels[:1], generator)
    last = given_frame(vae, pixels[-1:], generator)
    x0, noise = normalised(vae, posterior_mode(vae, pixels)), noise[None]
    noised = torch.cat([first, ((1 - sigma) * x0 + sigma * noise)[:, :, 1:]], dim=2)
    clean, own = 2 * height * width, frames * height * width  # tokens given, tokens of the clip
    prediction = velocity(
        pipe,
        torch.cat([tokens(last), tokens(noised)], dim=1),
        (torch.arange(own + height * width) >= clean).float()[None],
        caption,
        timestep,
        video_coords=torch.cat(
            [positions(1, height, width, frame_index=len(pixels) - 1), positions(frames, height, width)], dim=2
        ),
    )
    return loss_of_later_frames(prediction[:, -own:], noise - x0, weight)


def first_and_last(example: dict[str, Any]) -> dict[str, Any]:
    frames = video_frames(example["pixels"])
    return {"conditions": [LTXVideoCondition(image=frames[i], frame_index=i) for i in (0, len(frames) - 1)]}


VARIANTS = (
    Variant("ltx-i2v", "LTXImageToVideoPipeline", build_image_to_video, image_to_video_step, *SHAPE, ltx.LATENTS),
    Variant(
        "ltx-condition",
        "LTXConditionPipeline",
        build_condition,
        condition_step,
        *SHAPE,
        ltx.LATENTS,
        call_kwargs={"image_cond_noise_scale": 0.0},
        conditioning=first_and_last,
        remark="Give its `conditions`; of itself it generates from the caption alone.",
    ),
    Variant(
        "ltx-long",
        "LTXI2VLongMultiPromptPipeline",
        build_long,
        None,
        *SHAPE,
        None,
        refused="was over without scheduler.step",
        remark="Its window loop draws its own initial latents and skips the last timestep of each schedule.",
    ),
    Variant(
        "ltx-upsample",
        "LTXLatentUpsamplePipeline",
        build_upsample,
        None,
        *SHAPE,
        None,
        refused="no denoiser",
        remark="Enlarges latents; it has no denoiser.",
    ),
)
