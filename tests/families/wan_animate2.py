"""Wan-Animate 2, modular: the transformer reads a driving video once; every step attends to its keys and values there.

That attention is FlexAttention, which has no backward on a CPU: the variants are refused there, by that reason. As in
the first Wan-Animate, a latent frame of the reference image comes before the clip's and is thrown away.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    WanAnimate2DistilledModularPipeline,
    WanAnimate2ModularPipeline,
    WanAnimate2Transformer3DModel,
)
from torch import Tensor

from tests.families import wan, wan_control, wan_i2v
from tests.families.common import Variant, character_tokenizer, finish, randomise


def build(
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    pipeline: type[WanAnimate2ModularPipeline] = WanAnimate2ModularPipeline,
) -> WanAnimate2ModularPipeline:
    transformer = WanAnimate2Transformer3DModel(
        in_dim=2 * 4 + 4,
        dim=32,
        ffn_dim=32,
        freq_dim=16,
        text_dim=wan.TEXT_DIM,
        out_dim=4,
        num_heads=2,
        num_layers=2,
        use_img_emb=False,  # with it, the image encoder must be 1280 wide
    )
    with torch.compiler.set_stance("force_eager"):  # it would be compiled, which takes half a minute
        grid = (wan.LATENTS[1], wan.HEIGHT // 16 * (wan.WIDTH // 16))
        transformer.block_masks[grid] = transformer.create_mask(*grid, "cpu")
    tokenizer = character_tokenizer()
    pipe = pipeline()
    pipe.update_components(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, num_train_timesteps=1000
        ),
        transformer=randomise(transformer, seed + 3),
        image_encoder=wan_i2v.tiny_image_encoder(seed + 4),
    )
    return finish(pipe, dtype)


def build_distilled(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanAnimate2ModularPipeline:
    return build(dtype, seed, WanAnimate2DistilledModularPipeline)


def example(pixels: Tensor) -> dict[str, Any]:
    return {
        "reference": wan_i2v.to_pil(wan_control.reference(pixels))[0],
        "driving": wan_i2v.to_pil(wan_control.control_clip(pixels)),
    }


def driven(example: dict[str, Any]) -> dict[str, Any]:
    return {"image": example["reference"], "driving_video": example["driving"]}


def variant(name: str, pipeline: str, build: Any) -> Variant:
    return Variant(
        name,
        pipeline,
        build,
        None,
        wan.NUM_FRAMES,
        wan.HEIGHT,
        wan.WIDTH,
        None,
        conditioning=driven,
        example=example,
        refused="no backward",
        remark="FlexAttention has no backward on a CPU",
    )


VARIANTS = (
    variant("wan-animate2", "WanAnimate2ModularPipeline", build),
    variant("wan-animate2-distilled", "WanAnimate2DistilledModularPipeline", build_distilled),
)
