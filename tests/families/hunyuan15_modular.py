"""HunyuanVideo 1.5 as a modular pipeline: one class for both ways, which an `image` among the arguments decides.

Its prompts have their released lengths, 1000 + 256 + 729 tokens: they are properties of the class.
"""

from __future__ import annotations

import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15ModularPipeline, HunyuanVideo15Pipeline
from torch import Tensor

from tests.families import hunyuan15
from tests.families.common import Variant
from tests.families.framepack import IMAGE_DIM, tiny_siglip
from tests.families.hunyuan15 import HEIGHT, LATENTS, NUM_FRAMES, WIDTH
from tests.families.svd import first_frame

SHARED = ("text_encoder", "tokenizer", "transformer", "vae", "scheduler", "text_encoder_2", "tokenizer_2", "guider")
IMAGE_PARTS = ("image_encoder", "feature_extractor")


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> HunyuanVideo15ModularPipeline:
    image_encoder, feature_extractor = tiny_siglip(seed + 5)
    pipe = HunyuanVideo15ModularPipeline()
    pipe.update_components(**hunyuan15.parts(seed), image_encoder=image_encoder, feature_extractor=feature_extractor)
    return pipe if dtype == torch.float32 else pipe.to(dtype)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """The ordinary pipeline's, of the same parts."""
    ordinary = HunyuanVideo15Pipeline(**{name: getattr(pipe, name) for name in SHARED})
    no_image = torch.zeros(1, pipe.vision_num_semantic_tokens, IMAGE_DIM)
    return hunyuan15.flow_step(ordinary, pixels, caption, noise, timestep, weight, None, no_image)


def training_step_i2v(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    ordinary = HunyuanVideo15ImageToVideoPipeline(**{name: getattr(pipe, name) for name in SHARED + IMAGE_PARTS})
    return hunyuan15.training_step_i2v(ordinary, pixels, caption, noise, timestep, weight)


VARIANTS = (
    Variant(
        "hunyuanvideo-1.5-modular",
        "HunyuanVideo15ModularPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
    ),
    Variant(
        "hunyuanvideo-1.5-modular-i2v",
        "HunyuanVideo15ModularPipeline",
        build,
        training_step_i2v,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        conditioning=lambda example: {"image": first_frame(example["pixels"])},
        example=lambda pixels: {},
        remark="Give it an `image` by `conditioning`, and it is image-to-video.",
    ),
)
