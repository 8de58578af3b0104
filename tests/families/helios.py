"""Helios: Wan's parts, and a transformer that sees what was before the clip in three resolutions.

A clip is one chunk; a longer video is made chunk by chunk, which is not one training step. The history before a text's
first chunk is zeros. An image is history, too: its latent leads, and the last latent of the image standing still for a
chunk comes just before the clip. Both are drawn from the posterior; the history is at timestep 0 and not predicted.
The pyramid starts a chunk at a quarter of its size and grows it while it denoises.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from torch import Tensor

from hf_motive.pipelines.call import CALL_SEED
from tests.families import wan
from tests.families.common import Variant, character_tokenizer, finish, per_channel, randomise, weighted_mse
from tests.families.wan_i2v import to_pil

CLIP = (wan.NUM_FRAMES, wan.HEIGHT, wan.WIDTH)
CHUNK, HISTORY = 3, (16, 2, 1)  # latent frames: of a clip; of the history, from far to near
ONE_CHUNK = {"num_latent_frames_per_chunk": CHUNK}


def build(
    pipeline: type[DiffusionPipeline], stages: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> DiffusionPipeline:
    tokenizer = character_tokenizer()
    transformer = HeliosTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=wan.TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_dim=(4, 4, 4),
        guidance_cross_attn=True,
        zero_history_timestep=True,
        has_multi_term_memory_patch=True,
    )
    pipe = pipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=HeliosScheduler(
            stages=stages,
            stage_range=[i / stages for i in range(stages + 1)],
            use_dynamic_shifting=True,
            # By default 1/3, where the noise's covariance is singular: whether it can be factorised is up to rounding.
            gamma=0.3,
        ),
        transformer=randomise(transformer, seed + 3),
    )
    return finish(pipe, dtype)


def image_history(pipe: HeliosPipeline, image: Tensor) -> tuple[Tensor, Tensor]:
    """(1, C, 1, h, w) of the image, and of the last moment of a chunk that shows nothing else."""
    config, generator = pipe.vae.config, torch.Generator().manual_seed(CALL_SEED)
    latents = []
    for frames in (1, 4 * (CHUNK - 1) + 1):
        still = image[None, :, None].expand(-1, -1, frames, -1, -1).to(pipe.vae.dtype)
        with torch.no_grad():
            drawn = pipe.vae.encode(still).latent_dist.sample(generator=generator)[:, :, -1:].float()
        latents.append((drawn - per_channel(config.latents_mean)) / per_channel(config.latents_std))
    return latents[0], latents[1]


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None, from_image: bool = False) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε with σ = t / 1000; the model predicts ε − x0."""
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    noised = (1 - timestep / 1000) * x0 + timestep / 1000 * noise
    past = torch.zeros(1, x0.shape[1], 1 + sum(HISTORY), *x0.shape[3:])
    if from_image:
        past[:, :, :1], past[:, :, -1:] = image_history(pipe, pixels[0])
    lead, far, middle, near = past.to(pipe.transformer.dtype).split((1, *HISTORY), dim=2)
    at_lead, at_far, at_middle, at_near, here = torch.arange(1 + sum(HISTORY) + CHUNK).split((1, *HISTORY, CHUNK))
    prediction = pipe.transformer(
        hidden_states=noised.to(pipe.transformer.dtype),
        timestep=torch.tensor([timestep]),
        encoder_hidden_states=wan.embed_prompt(pipe, caption),
        indices_hidden_states=here[None],
        indices_latents_history_short=torch.cat([at_lead, at_near])[None],
        indices_latents_history_mid=at_middle[None],
        indices_latents_history_long=at_far[None],
        latents_history_short=torch.cat([lead, near], dim=2),
        latents_history_mid=middle,
        latents_history_long=far,
        return_dict=False,
    )[0]
    return weighted_mse(prediction, noise - x0, weight)


def from_first_frame(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"image": to_pil(example["pixels"][:1])[0]}


VARIANTS = (
    Variant(
        "helios",
        "HeliosPipeline",
        functools.partial(build, HeliosPipeline, 1),
        training_step,
        *CLIP,
        wan.LATENTS,
        call_kwargs=ONE_CHUNK,
        remark="One chunk: `num_frames` = 4 · (`num_latent_frames_per_chunk` − 1) + 1.",
    ),
    Variant(
        "helios-i2v",
        "HeliosPipeline",
        functools.partial(build, HeliosPipeline, 1),
        functools.partial(training_step, from_image=True),
        *CLIP,
        wan.LATENTS,
        call_kwargs=ONE_CHUNK | {"add_noise_to_image_latents": False},
        conditioning=from_first_frame,
        remark="`conditioning` gives the image that comes before the clip.",
    ),
    Variant(
        "helios-pyramid",
        "HeliosPyramidPipeline",
        functools.partial(build, HeliosPyramidPipeline, 3),
        None,
        wan.NUM_FRAMES,
        64,  # a quarter of it is one patch
        64,
        None,
        call_kwargs=ONE_CHUNK,
        refused="more than one round|resolution",
        remark="A chunk grows while it is denoised: a resolution pyramid has no single timestep.",
    ),
)
