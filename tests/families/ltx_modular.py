"""LTX-Video as a modular pipeline: one class for both ways, which an `image` among the arguments decides.

Parts and steps are the ordinary pipelines'. The given first frame is a sample of the VAE's posterior, drawn before
anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import LTXModularPipeline, LTXPipeline
from torch import Tensor

from hf_motive.pipelines.conditioning import first_frame
from tests.families import ltx, ltx_conditioned
from tests.families.common import Variant, finish


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTXModularPipeline:
    pipe = LTXModularPipeline()
    pipe.update_components(**ltx.build(seed=seed).components)
    return finish(pipe, dtype)


def by_hand(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An ordinary pipeline's step on the same parts; what it uses of the pipeline is `encode_prompt`."""

    def training_step(pipe: LTXModularPipeline, *args: Any, **options: Any) -> Tensor:
        parts = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
        return step(LTXPipeline(**{name: getattr(pipe, name) for name in parts}), *args, **options)

    return training_step


# In half precision text-to-video rounds the timestep that it tells the model: these two stay as they are.
SHAPE = ltx.NUM_FRAMES, ltx.HEIGHT, ltx.WIDTH, ltx.LATENTS, (676.0, 171.0)

VARIANTS = (
    Variant("ltx-modular", "LTXModularPipeline", build, by_hand(ltx.training_step), *SHAPE),
    Variant(
        "ltx-modular-i2v",
        "LTXModularPipeline",
        build,
        by_hand(ltx_conditioned.image_to_video_step),
        *SHAPE,
        conditioning=lambda example: {"image": first_frame(example["pixels"])},
        remark="Image-to-video where `conditioning` gives an `image`.",
    ),
)
