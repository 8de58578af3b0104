"""AnyFlow: Wan's parts and a flow map, which is told the timestep it starts from and the one it is to arrive at.

The mean velocity over no distance is flow matching's own velocity: `use_mean_velocity=False` asks for that, and makes
the loss the flow-matching part of a flow map's training. The default asks for the way from the timestep to the clip.

The causal model makes a clip chunk by chunk, each after those before it; a clip of one chunk has one denoising loop.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
)
from torch import Tensor, nn

from tests.families import wan
from tests.families.common import Variant, character_tokenizer, finish, randomise, weighted_mse

CLIP = (wan.NUM_FRAMES, wan.HEIGHT, wan.WIDTH)
INSTANT = {"use_mean_velocity": False}
PARTS = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,  # the fewest that FlexAttention takes unpadded
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": wan.TEXT_DIM,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def parts(transformer: nn.Module, seed: int) -> dict[str, Any]:
    tokenizer = character_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": wan.tiny_text_encoder(len(tokenizer), seed + 1),
        "vae": wan.tiny_vae(seed + 2),
        "scheduler": FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0),
        "transformer": randomise(transformer, seed + 3),
    }


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> AnyFlowPipeline:
    transformer = AnyFlowTransformer3DModel(**PARTS)
    return finish(AnyFlowPipeline(**parts(transformer, seed)), dtype)


def build_causal(dtype: torch.dtype = torch.float32, seed: int = 0) -> AnyFlowFARPipeline:
    transformer = AnyFlowFARTransformer3DModel(
        compressed_patch_size=(1, 2, 2), full_chunk_limit=1, chunk_partition=(3,), **PARTS
    )
    return finish(AnyFlowFARPipeline(**parts(transformer, seed)), dtype)


def flow_map_step(pipe, pixels, caption, noise, timestep, weight, arrive_at: float) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε with σ = t / 1000; on the straight line between them every mean velocity is ε − x0."""
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    noised = (1 - timestep / 1000) * x0 + timestep / 1000 * noise
    per_frame = torch.ones(1, x0.shape[2], dtype=torch.float64)
    model = pipe.transformer
    prediction = model(
        hidden_states=noised.transpose(1, 2).to(model.dtype),  # (1, T, C, h, w)
        timestep=timestep * per_frame,
        r_timestep=arrive_at * per_frame,
        encoder_hidden_states=wan.embed_prompt(pipe, caption),
        return_dict=False,
    )[0]
    return weighted_mse(prediction.transpose(1, 2), noise - x0, weight)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return flow_map_step(pipe, pixels, caption, noise, timestep, weight, arrive_at=timestep)


def training_step_to_clip(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return flow_map_step(pipe, pixels, caption, noise, timestep, weight, arrive_at=0.0)


VARIANTS = (
    Variant(
        "anyflow",
        "AnyFlowPipeline",
        build,
        training_step,
        *CLIP,
        wan.LATENTS,
        call_kwargs=INSTANT,
        remark="`use_mean_velocity=False` in `call_kwargs` makes the loss that of flow matching.",
    ),
    Variant("anyflow-mean-velocity", "AnyFlowPipeline", build, training_step_to_clip, *CLIP, wan.LATENTS),
    Variant(
        "anyflow-far",
        "AnyFlowFARPipeline",
        build_causal,
        None,
        *CLIP,
        None,
        call_kwargs=INSTANT,
        refused="no backward",
        remark="FlexAttention has no backward on a CPU.",
    ),
)
