"""Wan video-to-video: a clip to start from, or a clip to edit.

- Wan 2.1's text-to-video model can start from a noised clip. Training knows nothing of that: the noised clip is the
  training clip, and the step is text-to-video's.
- Lucy Edit: Wan 2.2 5B with the latents of the clip to edit in channels behind the noised result.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LucyEditPipeline, WanVideoToVideoPipeline
from torch import Tensor

from tests.families import wan, wan22_5b
from tests.families.common import Variant, character_tokenizer, finish, weighted_mse
from tests.families.wan_i2v import tiny_transformer, to_pil


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanVideoToVideoPipeline:
    parts = wan.build(seed=seed).components
    del parts["transformer_2"]
    return finish(WanVideoToVideoPipeline(**parts), dtype)


def build_lucy(dtype: torch.dtype = torch.float32, seed: int = 0) -> LucyEditPipeline:
    tokenizer = character_tokenizer()
    pipe = LucyEditPipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan22_5b.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=5.0),
        transformer=tiny_transformer(seed + 3, in_channels=12, out_channels=6),
        expand_timesteps=True,
    )
    finish(pipe, dtype).vae.float()  # as released: the call hands it float32 frames
    return pipe


def before_the_edit(pixels: Tensor) -> Tensor:
    """A clip of which the clip could be an edit: its mirror image in other colours. 8-bit values stay 8-bit."""
    return -pixels.flip(-1)


def source_of(example: dict[str, Any]) -> dict[str, Any]:
    return {"video": example["source"]}


def training_step_lucy(
    pipe, pixels, caption, noise, timestep, weight=None, sigma=None, source=before_the_edit
) -> Tensor:
    sigma = wan.noise_level(timestep, sigma)
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    tokens = noised[0, 0, :, ::2, ::2].numel()  # patches of 1 × 2 × 2
    prediction = pipe.transformer(
        hidden_states=torch.cat([noised, wan.encode_video(pipe, source(pixels))], dim=1).to(pipe.transformer.dtype),
        timestep=torch.full((1, tokens), timestep),
        encoder_hidden_states=wan.embed_prompt(pipe, caption),
        return_dict=False,
    )[0]
    return weighted_mse(prediction, noise - x0, weight)


VARIANTS = (
    Variant(
        "wan2.1-v2v",
        "WanVideoToVideoPipeline",
        build,
        wan.training_step,
        wan.NUM_FRAMES,
        wan.HEIGHT,
        wan.WIDTH,
        wan.LATENTS,
        remark="the step of text-to-video: the clip to start from is the clip itself",
    ),
    Variant(
        "lucy-edit",
        "LucyEditPipeline",
        build_lucy,
        training_step_lucy,
        wan22_5b.NUM_FRAMES,
        wan22_5b.HEIGHT,
        wan22_5b.WIDTH,
        wan22_5b.LATENTS,
        conditioning=source_of,
        example=lambda pixels: {"source": to_pil(before_the_edit(pixels))},
        remark="`conditioning` gives the clip before the edit as `video`; untold, a clip is its own source",
    ),
)
