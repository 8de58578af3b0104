"""LTX-2 and LTX-2.5 as modular pipelines: each one class for four ways, which the arguments decide.

They differ in what decodes: LTX-2.5 has a second, generative decoder, `diffusion_decoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import LTX2ModularPipeline, LTX2Pipeline, LTX25ModularPipeline
from torch import Tensor

from hf_motive.pipelines.conditioning import first_frame
from tests.families import ltx2, ltx2_more, ltx2_passes
from tests.families.common import Variant, finish

SHAPE = *ltx2_more.SHAPE, ltx2.LATENTS


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTX2ModularPipeline:
    pipe = LTX2ModularPipeline()
    pipe.update_components(**ltx2.parts(seed))
    return finish(pipe, dtype)


def build_25(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTX25ModularPipeline:
    pipe = LTX25ModularPipeline()
    pipe.update_components(**ltx2.parts(seed), diffusion_decoder=ltx2_passes.build_decode(seed=seed).diffusion_decoder)
    return finish(pipe, dtype)


def by_hand(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An ordinary pipeline's step on the same parts; what it uses of the pipeline is the encoding of prompts."""

    def training_step(pipe: Any, *args: Any, **options: Any) -> Tensor:
        parts = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler", "audio_vae", "connectors", "vocoder")
        return step(LTX2Pipeline(**{name: getattr(pipe, name) for name in parts}), *args, **options)

    return training_step


def variant(way: str, step: Callable[..., Tensor], **options: Any) -> Variant:
    call_kwargs = {**ltx2.CALL_KWARGS, **options.pop("call_kwargs", {})}
    name = f"ltx2-modular{way}"
    return Variant(name, "LTX2ModularPipeline", build, by_hand(step), *SHAPE, call_kwargs=call_kwargs, **options)


VARIANTS = (
    variant("", ltx2.training_step, remark="As in LTX2Pipeline. Text-to-video, unless told more."),
    variant(
        "-i2v",
        ltx2_more.image_to_video_step,
        call_kwargs={"image_crf": 0},
        conditioning=lambda example: {"image": first_frame(example["pixels"])},
        remark="Image-to-video where `conditioning` gives an `image`. As in LTX2ImageToVideoPipeline.",
    ),
    variant(
        "-condition",
        ltx2_more.condition_step,
        conditioning=ltx2_more.first_and_last,
        remark="With `conditions`. As in LTX2ConditionPipeline.",
    ),
    variant(
        "-in-context",
        ltx2_more.reference_step,
        conditioning=ltx2_more.reference,
        example=ltx2_more.example_reference,
        remark="With `reference_conditions`. As in LTX2InContextPipeline.",
    ),
    Variant(
        "ltx2.5-modular",
        "LTX25ModularPipeline",
        build_25,
        by_hand(ltx2.training_step),
        *SHAPE,
        call_kwargs=ltx2.CALL_KWARGS,
        remark="Its generative decoder is not called; clips are encoded by its `vae`.",
    ),
)
