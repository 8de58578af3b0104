"""Text2Video-Zero: an image model made to generate clips without any training on clips.

Its call draws the latents of one frame, denoises them for a while, and makes all other frames from them: shifted
along a motion field, and noised with noise of its own. There is no place where a clip's noised frames could be put in.
`call_kwargs` switch off what a schedule of one timestep cannot follow, so that this is what the refusal says.
"""

from __future__ import annotations

import torch
from diffusers import (
    EulerDiscreteScheduler,
    PNDMScheduler,
    TextToVideoZeroPipeline,
    TextToVideoZeroSDXLPipeline,
)

from tests.families import animatediff
from tests.families.animatediff import HEIGHT, NUM_FRAMES, WIDTH
from tests.families.animatediff_control import image_unet
from tests.families.animatediff_more import sdxl_text, sdxl_unet
from tests.families.common import Variant, finish, randomise

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> TextToVideoZeroPipeline:
    parts = animatediff.build(seed=seed)
    pipe = TextToVideoZeroPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=randomise(image_unet(), seed + 3),
        scheduler=PNDMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return finish(pipe, dtype)


def build_sdxl(dtype: torch.dtype = torch.float32, seed: int = 0) -> TextToVideoZeroSDXLPipeline:
    pipe = TextToVideoZeroSDXLPipeline(
        vae=animatediff.build(seed=seed).vae,
        **sdxl_text(seed),
        unet=randomise(sdxl_unet(), seed + 3),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )
    return finish(pipe, dtype)


REFUSED = {
    "training_step": None,
    "num_frames": NUM_FRAMES,
    "height": HEIGHT,
    "width": WIDTH,
    "latent_shape": None,
    "denoisers": ("unet",),
    "refused": "not one to one",
    "remark": "An image model: all frames but the first are made from the first, so a clip cannot be put in.",
}

AT_ONCE = {"t0": 0, "t1": 0}  # the frames part at the very step that is taken

VARIANTS = (
    Variant(
        "text2video-zero", "TextToVideoZeroPipeline", build, **REFUSED, call_kwargs=AT_ONCE | {"guidance_scale": 7.5}
    ),
    Variant("text2video-zero-sdxl", "TextToVideoZeroSDXLPipeline", build_sdxl, **REFUSED, call_kwargs=AT_ONCE),
)
