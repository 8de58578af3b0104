"""LTX-2 from given frames and beside reference videos: clean tokens, told timestep 0, in place of or after the clip's.

Given content is the mode of the VAE's posterior. A frame at latent index 0 takes the place of the clip's first latent
frame; one further on, and every reference video, comes as tokens of its own, whose positions say where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    LTX2ConditionPipeline,
    LTX2HDRPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
)
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from torch import Tensor

from hf_motive.pipelines.conditioning import video_frames
from tests.families import ltx2
from tests.families.common import Variant, finish

SHAPE = ltx2.NUM_FRAMES, ltx2.HEIGHT, ltx2.WIDTH
FRAME = ltx2.LATENTS[2] * ltx2.LATENTS[3]  # tokens of one latent frame


def builder(kind: type, **changes: Any) -> Callable[..., Any]:
    def build(dtype: torch.dtype = torch.float32, seed: int = 0):
        return finish(kind(**ltx2.parts(seed), **changes), dtype)

    return build


# ------------------------------------------------------------------------------------------------ what a trainer does


def spans(frames: int, height: int, width: int, single: int | None = None) -> Tensor:
    """(1, 3, S, 2): seconds, rows and columns that each token covers, [from, to); `single`: one pixel frame, there."""
    f, y, x = (torch.arange(n).float() for n in (frames, height, width))
    start, end = ((8 * f - 7).clamp(min=0), 8 * f + 1) if single is None else (f + single, f + single + 1)
    both = [
        torch.stack(torch.meshgrid(edge / ltx2.FRAME_RATE, 32 * (y + far), 32 * (x + far), indexing="ij")).flatten(1)
        for far, edge in enumerate((start, end))
    ]
    return torch.stack(both, dim=-1)[None]


def step_with_clean_tokens(
    pipe: Any,
    pixels: Tensor,
    caption: str,
    noise: Tensor,
    timestep: float,
    weight: Tensor | None,
    *,
    first_is_given: bool,
    appended: Tensor | None = None,
    positions: Tensor | None = None,
    packed: bool = True,
    **options: Any,
) -> Tensor:
    """The clip's tokens, then clean ones; the loss is the mean over the tokens of the clip that are not given."""
    sigma, noise, own = timestep / 1000, noise[None], noise[0].numel()  # tokens of the clip
    x0 = ltx2.normalised(pipe.vae, pixels)
    noised = ltx2.tokens((1 - sigma) * x0 + sigma * noise)
    given = FRAME if first_is_given else 0
    if given:
        noised = torch.cat([ltx2.tokens(ltx2.normalised(pipe.vae, pixels[:1])), noised[:, given:]], dim=1)
    hidden, coordinates = noised, spans(*noise.shape[2:])
    if appended is not None:
        hidden, coordinates = torch.cat([noised, appended], dim=1), torch.cat([coordinates, positions], dim=2)
    index = torch.arange(hidden.shape[1])
    prediction = ltx2.denoise(
        pipe,
        hidden,
        ltx2.audio_stream(hidden.shape, sigma, round(len(pixels) / 24 * 25), packed),
        caption,
        timestep,
        ((index >= given) & (index < own)).float()[None],
        video_coords=coordinates,
        **options,
    )
    error = (prediction[:, given:own] - ltx2.tokens(noise - x0)[:, given:]) ** 2
    if weight is not None:
        error = error * weight.flatten()[given:, None]
    return error.mean()


def image_to_video_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return step_with_clean_tokens(pipe, pixels, caption, noise, timestep, weight, first_is_given=True, packed=False)


def condition_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """The first frame in its place, and the last beside the clip at latent index 2, which begins at pixel frame 9."""
    last = ltx2.tokens(ltx2.normalised(pipe.vae, pixels[-1:]))
    return step_with_clean_tokens(
        pipe,
        pixels,
        caption,
        noise,
        timestep,
        weight,
        first_is_given=True,
        appended=last,
        positions=spans(1, *ltx2.LATENTS[2:], single=9),
    )


def reference_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None, **options) -> Tensor:
    """A reference video, whole, at the positions of the clip that it is to guide."""
    reference = ltx2.tokens(ltx2.normalised(pipe.vae, reference_pixels(pixels)))
    return step_with_clean_tokens(
        pipe,
        pixels,
        caption,
        noise,
        timestep,
        weight,
        first_is_given=False,
        appended=reference,
        positions=spans(*ltx2.LATENTS[1:]),
        **options,
    )


def hdr_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return reference_step(pipe, pixels, caption, noise, timestep, weight, use_cross_timestep=False)


def reference_pixels(pixels: Tensor) -> Tensor:
    """A video that goes with the clip, as a depth or edge video does: the clip's negative, mirrored."""
    return -pixels.flip(-1)


def example_reference(pixels: Tensor) -> dict[str, Any]:
    return {"reference": video_frames(reference_pixels(pixels))}


def first_and_last(example: dict[str, Any]) -> dict[str, Any]:
    frames = video_frames(example["pixels"])
    return {"conditions": [LTX2VideoCondition(frames[0], crf=0), LTX2VideoCondition(frames[-1], index=2, crf=0)]}


def reference(example: dict[str, Any]) -> dict[str, Any]:
    return {"reference_conditions": [LTX2ReferenceCondition(example["reference"])]}


def hdr_reference(example: dict[str, Any]) -> dict[str, Any]:
    return {"reference_conditions": [LTX2HDRReferenceCondition(example["reference"])]}


REMARK = "`crf=0` keeps the given frame as it is; of itself the pipeline recompresses it, as for sampling."

VARIANTS = (
    Variant(
        "ltx2-i2v",
        "LTX2ImageToVideoPipeline",
        builder(LTX2ImageToVideoPipeline),
        image_to_video_step,
        *SHAPE,
        ltx2.LATENTS,
        call_kwargs={**ltx2.CALL_KWARGS, "image_crf": 0},
        remark=REMARK.replace("`crf=0`", "`image_crf=0`"),
    ),
    Variant(
        "ltx2-condition",
        "LTX2ConditionPipeline",
        builder(LTX2ConditionPipeline),
        condition_step,
        *SHAPE,
        ltx2.LATENTS,
        call_kwargs=ltx2.CALL_KWARGS,
        conditioning=first_and_last,
        remark=REMARK,
    ),
    Variant(
        "ltx2-in-context",
        "LTX2InContextPipeline",
        builder(LTX2InContextPipeline),
        reference_step,
        *SHAPE,
        ltx2.LATENTS,
        call_kwargs=ltx2.CALL_KWARGS,
        conditioning=reference,
        example=example_reference,
        remark="Give its `reference_conditions`.",
    ),
    Variant(
        "ltx2-hdr",
        "LTX2HDRPipeline",
        builder(LTX2HDRPipeline),
        hdr_step,
        *SHAPE,
        ltx2.LATENTS,
        call_kwargs=ltx2.CALL_KWARGS,
        conditioning=hdr_reference,
        example=example_reference,
        remark="Give its `reference_conditions`; the clip's pixels are LogC3 values in [-1, 1].",
    ),
)
