"""SkyReels V2: Wan's VAE, prompts and flow, with whole-clip models (text, image) and diffusion-forcing models.

Image-to-video concatenates the first frame and its mask to the latents' channels, beside a CLIP embedding. Diffusion
forcing gives every latent frame a timestep of its own: what the clip starts from (an image, the end of another clip)
is put in place of its frames, clean, at timestep 0, and is out of the loss; an image to end with follows the clip. The
pipelines step one latent frame at a time, each with a scheduler of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
)
from torch import Tensor

from tests.families import wan, wan_i2v
from tests.families.common import Variant, character_tokenizer, finish, randomise, weighted_mse
from tests.families.wan_i2v import IMAGE_DIM, to_pil

CLIP = (wan.NUM_FRAMES, wan.HEIGHT, wan.WIDTH, wan.LATENTS)
TEXT_SHIFT, IMAGE_SHIFT = 8.0, 5.0  # flow_shift, as the model cards ask for
HISTORY = 5  # frames of the clip before, two in latents


def transformer_parts(channels: int = 4, image: bool = False) -> dict[str, Any]:
    """The configuration of a tiny transformer of Wan's build, or of a model derived from it."""
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": channels,
        "out_channels": 4,
        "text_dim": wan.TEXT_DIM,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "rope_max_seq_len": 32,
        **({"image_dim": IMAGE_DIM, "added_kv_proj_dim": 24} if image else {}),
    }


def build(
    pipeline: type[DiffusionPipeline],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    shift: float = TEXT_SHIFT,
    image: bool = False,
    forcing: bool = False,
) -> DiffusionPipeline:
    """`image`: the first frame beside the latents; `forcing`: a model that is also told the frame rate."""
    tokenizer = character_tokenizer()
    channels = 4 + (4 + 4 if image else 0)  # a mask for each frame that a latent frame holds, and the frame itself
    parts = transformer_parts(channels, image)
    vision = {}
    if image:
        vision = {"image_encoder": wan_i2v.tiny_image_encoder(seed + 4), "image_processor": wan_i2v.image_processor()}
    pipe = pipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=wan.scheduler(shift),
        transformer=randomise(SkyReelsV2Transformer3DModel(**parts, inject_sample_info=forcing), seed + 3),
        **vision,
    )
    return finish(pipe, dtype)


def forcing_step(
    pipe, pixels, caption, noise, timestep, weight=None, sigma=None, *, given: int = 0, last: bool = False
) -> Tensor:
    """The first `given` frames are known: clean, at timestep 0, and not to be predicted.

    `last`: so is the last one, which the model sees as an image of its own, one latent frame after the clip.
    """
    sigma = wan.noise_level(timestep, sigma)
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    known, frames = (given + 3) // 4, x0.shape[2]  # in latents
    noised = (1 - sigma) * x0 + sigma * noise
    if known:
        noised[:, :, :known] = wan.encode_video(pipe, pixels[:given])
    if last:
        noised = torch.cat([noised, wan.encode_video(pipe, pixels[-1:])], dim=2)
    timesteps = torch.zeros(1, noised.shape[2], dtype=torch.int64)
    timesteps[:, known:frames] = int(timestep)
    model = pipe.transformer
    prediction = model(
        hidden_states=noised.to(model.dtype),
        timestep=timesteps,
        encoder_hidden_states=wan.embed_prompt(pipe, caption),
        enable_diffusion_forcing=True,
        fps=[1],  # the embedding of 24 frames a second; 16 is 0
        return_dict=False,
    )[0]
    velocity = noise - x0
    weight = None if weight is None else weight[known:]
    return weighted_mse(prediction[:, :, known:frames], velocity[:, :, known:], weight)


def history(example: Mapping[str, Any]) -> dict[str, Any]:
    """The clip's own first frames, as the end of a clip that is to be continued."""
    return {"video": to_pil(example["pixels"][:HISTORY])}


def built(pipeline: type[DiffusionPipeline], **options: Any):
    return functools.partial(build, pipeline, **options)


VARIANTS = (
    Variant(
        "skyreels-v2",
        "SkyReelsV2Pipeline",
        built(SkyReelsV2Pipeline),
        wan.training_step,  # another transformer, the same step
        *CLIP,
    ),
    Variant(
        "skyreels-v2-i2v",
        "SkyReelsV2ImageToVideoPipeline",
        built(SkyReelsV2ImageToVideoPipeline, shift=IMAGE_SHIFT, image=True),
        wan_i2v.training_step,
        *CLIP,
    ),
    Variant(
        "skyreels-v2-df",
        "SkyReelsV2DiffusionForcingPipeline",
        built(SkyReelsV2DiffusionForcingPipeline, forcing=True),
        forcing_step,
        *CLIP,
        remark="All frames are at one timestep (`ar_step=0`).",
    ),
    Variant(
        "skyreels-v2-df-i2v",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        built(SkyReelsV2DiffusionForcingImageToVideoPipeline, shift=IMAGE_SHIFT, forcing=True),
        functools.partial(forcing_step, given=1),
        *CLIP,
        remark="The first latent frame is given: it is out of the loss.",
    ),
    Variant(
        "skyreels-v2-df-flf2v",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        built(SkyReelsV2DiffusionForcingImageToVideoPipeline, shift=IMAGE_SHIFT, forcing=True),
        functools.partial(forcing_step, given=1, last=True),
        *CLIP,
        conditioning=wan_i2v.first_and_last,
        remark="`conditioning` gives `image` and `last_image`; the first latent frame alone is out of the loss.",
    ),
    Variant(
        "skyreels-v2-df-v2v",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        built(SkyReelsV2DiffusionForcingVideoToVideoPipeline, forcing=True),
        functools.partial(forcing_step, given=HISTORY),
        13,
        wan.HEIGHT,
        wan.WIDTH,
        (4, 4, 4, 6),
        conditioning=history,
        call_kwargs={"overlap_history": HISTORY, "base_num_frames": 13},
        remark="`conditioning` gives the first `overlap_history` frames, to be continued; set `base_num_frames` to "
        "`num_frames`.",
    ),
)
