"""HunyuanVideo 1.5 as a modular pipeline: one class for both ways, which an `image` among the arguments decides.

Its prompts have their released lengths, 1000 + 256 + 729 tokens: they are properties of the class. In diffusers 0.42.1
the block that prepares the latents puts zeros in the place of the image's SigLIP tokens, which an earlier block had
computed: image-to-video sees the given frame as latents alone, and the step here does as the pipeline does.
"""

from __future__ import annotations

import torch
from diffusers import HunyuanVideo15ModularPipeline, HunyuanVideo15Pipeline
from torch import Tensor

from tests.families import hunyuan15
from tests.families.common import Variant, posterior_mode
from tests.families.framepack import IMAGE_DIM, tiny_siglip
from tests.families.hunyuan15 import HEIGHT, LATENTS, NUM_FRAMES, WIDTH
from tests.families.svd import first_frame

SHARED = ("text_encoder", "tokenizer", "transformer", "vae", "scheduler", "text_encoder_2", "tokenizer_2", "guider")


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> HunyuanVideo15ModularPipeline:
    image_encoder, feature_extractor = tiny_siglip(seed + 5)
    pipe = HunyuanVideo15ModularPipeline()
    pipe.update_components(**hunyuan15.parts(seed), image_encoder=image_encoder, feature_extractor=feature_extractor)
    return pipe if dtype == torch.float32 else pipe.to(dtype)


def flow_step(pipe, pixels, caption, noise, timestep, weight, given: Tensor | None) -> Tensor:
    """The ordinary pipeline's, of the same parts; without image tokens, for the reason above."""
    ordinary = HunyuanVideo15Pipeline(**{name: getattr(pipe, name) for name in SHARED})
    no_tokens = torch.zeros(1, pipe.vision_num_semantic_tokens, IMAGE_DIM)
    return hunyuan15.flow_step(ordinary, pixels, caption, noise, timestep, weight, given, no_tokens)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return flow_step(pipe, pixels, caption, noise, timestep, weight, None)


def training_step_i2v(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    given = posterior_mode(pipe.vae, pixels[:1]) * pipe.vae.config.scaling_factor
    return flow_step(pipe, pixels, caption, noise, timestep, weight, given)


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
        remark=hunyuan15.GLYPHS,
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
        remark="Image-to-video where `conditioning` gives an `image`. diffusers 0.42.1 loses its SigLIP tokens on "
        "the way: HunyuanVideo15ImageToVideoPipeline does not.",
    ),
)
