"""LTX-2.5 in passes: rendering on whole segments is one denoising pass; what refines, enlarges or decodes is refused.

A rendering pass can generate keyframes beside the clip, in slots of their own, which no clip gives a target for:
`generate_slots=False`. It takes its schedule as an argument, of the sigmas themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2DFRPipeline,
    LTX2DFRTemporalRefinePipeline,
    LTX2LatentUpsamplePipeline,
    LTX2VideoDiffusionDecodePipeline,
    LTXEulerAncestralRFScheduler,
)
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoderModel
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from torch import Tensor

from tests.families import ltx2
from tests.families.common import Variant, finish, randomise
from tests.families.ltx2_more import FRAME, SHAPE, step_with_clean_tokens

#: A rendering works on whole segments, of at least 24 frames.
CANVAS_FRAMES, CANVAS_LATENTS = 25, (8, 4, 3, 4)
SIGMAS = torch.linspace(1, 1 / 999, 999).tolist()


def build_rendering(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTX2DFRPipeline:
    """As LTX-2.5 has it: its own embedding for frames that stand for one pixel frame, and a plain scheduler."""
    parts = ltx2.parts(seed, use_keyframes_abs_pos_embedding=True)
    return finish(LTX2DFRPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler()}), dtype)


def tiny_upsampler(seed: int, **options: Any) -> LTX2LatentUpsamplerModel:
    model = LTX2LatentUpsamplerModel(
        in_channels=8, mid_channels=32, num_blocks_per_stage=1, use_rational_resampler=False, **options
    )
    return randomise(model, seed)


def build_refine(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTX2DFRTemporalRefinePipeline:
    parts = ltx2.parts(seed, use_keyframes_abs_pos_embedding=True)
    parts["scheduler"] = LTXEulerAncestralRFScheduler(eta=0.5)
    upsampler = tiny_upsampler(seed + 7, spatial_upsample=False, temporal_upsample=True)
    return finish(LTX2DFRTemporalRefinePipeline(**parts, temporal_latent_upsampler=upsampler), dtype)


def build_upsample(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTX2LatentUpsamplePipeline:
    vae = ltx2.tiny_vae(seed + 2)
    return finish(LTX2LatentUpsamplePipeline(vae=vae, latent_upsampler=tiny_upsampler(seed + 7)), dtype)


def build_decode(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTX2VideoDiffusionDecodePipeline:
    decoder = LTX2VideoDiffusionDecoderModel(
        latent_channels=8,
        decoder_head_dim=8,
        decoder_stage_channels=(64, 32, 16, 16, 8),
        decoder_stage_depths=(1,) * 5,
        decoder_stage_kernels=((3, 3, 3),) * 4,
        decoder_stage5_kernel=(3, 3, 3),
        decoder_t_emb_dim=8,
    )
    pipe = LTX2VideoDiffusionDecodePipeline(
        diffusion_decoder=randomise(decoder, seed + 8),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=ltx2.tiny_vae(seed + 2),
    )
    return finish(pipe, dtype)


def rendering_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """Without slots the clip alone; its first latent frame is marked as one that stands for one pixel frame."""
    marked = (torch.arange(noise[0].numel()) < FRAME).float().view(1, -1, 1)
    return step_with_clean_tokens(
        pipe, pixels, caption, noise, timestep, weight, first_is_given=False, video_keyframes_mask=marked
    )


def previous_pass(example: dict[str, Any]) -> dict[str, Any]:
    """What a refining pass takes from the one before it."""
    return {
        "latents": torch.zeros(1, *ltx2.LATENTS),
        "keyframes_latents": torch.zeros(1, ltx2.LATENTS[0], 1, *ltx2.LATENTS[2:]),
        "keyframe_positions": [ltx2.NUM_FRAMES - 1],
        "audio_latents": torch.zeros(ltx2.AUDIO),
    }


VARIANTS = (
    Variant(
        "ltx2-dfr",
        "LTX2DFRPipeline",
        build_rendering,
        rendering_step,
        CANVAS_FRAMES,
        ltx2.HEIGHT,
        ltx2.WIDTH,
        CANVAS_LATENTS,
        call_kwargs={"sigmas": SIGMAS, "generate_slots": False, **ltx2.CALL_KWARGS},
        remark="`generate_slots=False`, a long list of `sigmas`, and a multiple of 24 or 32 frames, and one.",
    ),
    Variant(
        "ltx2-dfr-slots",
        "LTX2DFRPipeline",
        build_rendering,
        None,
        CANVAS_FRAMES,
        ltx2.HEIGHT,
        ltx2.WIDTH,
        None,
        call_kwargs={"sigmas": SIGMAS, **ltx2.CALL_KWARGS},
        refused="never decodes",
        remark="As it is by default, it generates keyframes that no clip has.",
    ),
    Variant(
        "ltx2-dfr-refine",
        "LTX2DFRTemporalRefinePipeline",
        build_refine,
        None,
        *SHAPE,
        None,
        call_kwargs={"sigmas": SIGMAS, **ltx2.CALL_KWARGS},
        conditioning=previous_pass,
        refused="was over without scheduler.step",
        remark="Refines another pass's latents, tile by tile, and skips the last timestep of each schedule.",
    ),
    Variant(
        "ltx2-upsample",
        "LTX2LatentUpsamplePipeline",
        build_upsample,
        None,
        *SHAPE,
        None,
        refused="no denoiser",
        remark="Enlarges latents; it has no denoiser.",
    ),
    Variant(
        "ltx2-decode",
        "LTX2VideoDiffusionDecodePipeline",
        build_decode,
        None,
        *SHAPE,
        None,
        refused="no denoiser",
        remark="Decodes latents to pixels; what it denoises are pixels, inside the decoder.",
    ),
)
