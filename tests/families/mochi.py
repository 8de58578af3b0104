"""Mochi 1: flow matching with time running backwards, timestep 1000 · (1 − σ), and normalised 12-channel latents."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
from torch import Tensor

from tests.families.cogvideox import TEXT_DIM, tiny_t5
from tests.families.common import (
    Variant,
    character_tokenizer,
    finish,
    per_channel,
    posterior_mode,
    randomise,
    weighted_mse,
)

NUM_FRAMES, HEIGHT, WIDTH = 13, 32, 48
LATENTS = (12, 3, 4, 6)  # (C, T, h, w)


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> MochiPipeline:
    tokenizer = character_tokenizer(256)
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False, False, False, False, True),
    )
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=8,
        max_sequence_length=256,
    )
    pipe = MochiPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(len(tokenizer), seed + 1),
        vae=randomise(vae, seed + 2),
        transformer=randomise(transformer, seed + 3),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )
    return finish(pipe, dtype)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """σ = 1 − t / 1000, x_t = (1 − σ) x0 + σ ε; the model predicts x0 − ε, the way that its time runs."""
    model, config, sigma = pipe.transformer, pipe.vae.config, 1 - timestep / 1000
    x0 = posterior_mode(pipe.vae, pixels)
    x0 = (x0 - per_channel(config.latents_mean)) * config.scaling_factor / per_channel(config.latents_std)
    noise = noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    with torch.no_grad():
        embeds, mask, _, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=256)
    prediction = model(
        hidden_states=noised.to(model.dtype),
        encoder_hidden_states=embeds.to(model.dtype),
        timestep=torch.tensor([timestep], dtype=model.dtype),
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    return weighted_mse(prediction, x0 - noise, weight)


VARIANTS = (Variant("mochi", "MochiPipeline", build, training_step, NUM_FRAMES, HEIGHT, WIDTH, LATENTS),)
