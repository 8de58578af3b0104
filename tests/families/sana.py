"""Sana: flow matching, linear attention, Gemma prompts behind a long instruction; SANA-WM follows a camera.

The image-to-video pipelines put the clean frame into the latents and give it timestep 0; the scheduler steps the other
frames, or every token at a timestep of its own. SANA-WM negates its prediction for a scheduler that counts upwards.
"""

from __future__ import annotations

import inspect

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SanaWMPipeline,
    SanaWMTransformer3DModel,
)
from diffusers.pipelines.sana_wm.cam_utils import prepare_camera
from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model

from tests.families import ltx2, wan
from tests.families.common import Variant, character_tokenizer, finish, randomise
from tests.families.cosmos import mean_over

SHAPE = (9, 32, 64, (4, 3, 4, 8))  # frames, height, width; (C, T, h, w)
WM_SHAPE = (17, 64, 96, (8, 3, 2, 3))
TEXT_DIM, HEAD_DIM = 8, 12


def tiny_gemma(vocabulary: int, seed: int) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_DIM,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=vocabulary - 1,
    )
    return randomise(Gemma2Model(config), seed)


# ------------------------------------------------------------------------------------------------------ Sana-Video


def build(dtype: torch.dtype = torch.float32, seed: int = 0, image: bool = False):
    tokenizer = character_tokenizer(4096, bos=True)
    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=HEAD_DIM,
        cross_attention_dim=2 * HEAD_DIM,
        caption_channels=TEXT_DIM,
        mlp_ratio=2.0,
        rope_max_seq_len=32,
    )
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", flow_shift=8.0, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    pipe = (SanaImageToVideoPipeline if image else SanaVideoPipeline)(
        tokenizer=tokenizer,
        text_encoder=tiny_gemma(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        transformer=randomise(transformer, seed + 3),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0) if image else scheduler,
    )
    return finish(pipe, dtype)


def build_image(dtype: torch.dtype = torch.float32, seed: int = 0) -> SanaImageToVideoPipeline:
    return build(dtype, seed, image=True)


def given_mask(x0: Tensor) -> Tensor:
    """(1, 1, T, 1, 1): 1 for the first latent frame."""
    return (torch.arange(x0.shape[2]) == 0).float().view(1, 1, -1, 1, 1)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε, target ε − x0. The model takes one timestep, or one for each patch."""
    model = pipe.transformer
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    noised, given = (1 - sigma) * x0 + sigma * noise, torch.zeros(1, 1, x0.shape[2], 1, 1)
    times = torch.tensor([timestep])
    if isinstance(pipe, SanaImageToVideoPipeline):
        given = given_mask(x0)
        noised = given * wan.encode_video(pipe, pixels[:1]) + (1 - given) * noised
        times = ((1 - given) * timestep).expand(1, 1, x0.shape[2], x0.shape[3] // 2, x0.shape[4] // 2)
    instruction = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    with torch.no_grad():
        embeds, mask, _, _ = pipe.encode_prompt(caption, False, complex_human_instruction=instruction)
    prediction = model(
        noised.to(model.dtype),
        encoder_hidden_states=embeds.to(model.dtype),
        encoder_attention_mask=mask,
        timestep=times,
        return_dict=False,
    )[0]
    return mean_over(1 - given, (prediction.float() - (noise - x0)) ** 2, weight)


# --------------------------------------------------------------------------------------------------------- SANA-WM


def build_wm(dtype: torch.dtype = torch.float32, seed: int = 0) -> SanaWMPipeline:
    tokenizer = character_tokenizer(4096, bos=True)
    transformer = SanaWMTransformer3DModel(
        in_channels=8,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,  # one block of either kind
        linear_head_dim=16,
        caption_channels=TEXT_DIM,
        mlp_ratio=2.0,
        chunk_plucker_channels=6 * 8,  # rays of the eight frames of a latent frame
        chunk_plucker_post_attn_blocks=2,
    )
    pipe = SanaWMPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_gemma(len(tokenizer), seed + 1),
        vae=ltx2.tiny_vae(seed + 2),
        transformer=randomise(transformer, seed + 3),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0),
    )
    return finish(pipe, dtype)


def camera(pixels: Tensor) -> dict[str, np.ndarray]:
    """One pose (4, 4) a frame, moving forward and to the right, and the lens [fx, fy, cx, cy] in pixels."""
    frames, _, height, width = pixels.shape
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    poses[:, 0, 3], poses[:, 2, 3] = np.linspace(0, 0.5, frames), np.linspace(0, 1, frames)
    return {"poses": poses, "lens": np.array([width, width, width / 2, height / 2], dtype=np.float32)}


def wm_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε with σ = t / 1000, target ε − x0; one timestep a latent frame, 0 for the given one."""
    model, sigma = pipe.transformer, timestep / 1000
    x0, first = ltx2.normalised(pipe.vae, pixels), ltx2.normalised(pipe.vae, pixels[:1])
    noise, given = noise[None].float(), given_mask(x0)
    noised = given * first + (1 - given) * ((1 - sigma) * x0 + sigma * noise)
    seen = camera(pixels)
    lens = np.tile(seen["lens"], (len(pixels), 1))
    rays = prepare_camera(seen["poses"], lens, target_size=pixels.shape[-2:], vae_stride=(8, 32, 32))
    with torch.no_grad():
        embeds, mask, _, _ = pipe.encode_prompt(caption, chi_prompt=DEFAULT_CHI_PROMPT)
    prediction = model(
        noised.to(model.dtype),
        ((1 - given) * timestep).view(1, 1, -1),
        embeds.to(model.dtype),
        mask=mask,
        camera_conditions=rays["raymap"][None].to(model.dtype),
        chunk_plucker=rays["chunk_plucker"][None].to(model.dtype),
        return_dict=False,
    )[0]
    return mean_over(1 - given, (prediction.float() - (noise - x0)) ** 2, weight)


VARIANTS = (
    Variant("sana-video", "SanaVideoPipeline", build, training_step, *SHAPE),
    Variant(
        "sana-image-to-video",
        "SanaImageToVideoPipeline",
        build_image,
        training_step,
        *SHAPE,
    ),
    Variant(
        "sana-wm",
        "SanaWMPipeline",
        build_wm,
        wm_step,
        *WM_SHAPE,
        conditioning=lambda example: {"c2w": example["poses"], "intrinsics": example["lens"]},
        example=camera,
        no_half="Its transformer refuses bf16 on a CPU.",
        remark="conditioning gives the camera, c2w and intrinsics; the frame is the clip's own.",
    ),
)
