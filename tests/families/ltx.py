"""LTX-Video: flow matching on packed tokens (B, S, C), a masked T5 prompt, rotary positions in seconds and pixels."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel
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

NUM_FRAMES, HEIGHT, WIDTH = 17, 96, 128
LATENTS = (8, 3, 3, 4)  # (C, T, h, w)
FRAME_RATE = 25  # the pipeline's default


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTXPipeline:
    tokenizer = character_tokenizer(128)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        scaling_factor=1.0,
    )
    randomise(vae, seed + 2)
    vae.latents_mean.copy_(torch.linspace(-0.4, 0.4, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT_DIM,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    pipe = LTXPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(len(tokenizer), seed + 1),
        vae=vae,
        transformer=randomise(transformer, seed + 3),
        scheduler=scheduler,
    )
    return finish(pipe, dtype)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """σ = t / 1000, x_t = (1 − σ) x0 + σ ε, target ε − x0; the model sees one token for each latent position."""
    model, vae, sigma = pipe.transformer, pipe.vae, timestep / 1000
    _, frames, height, width = noise.shape
    x0 = (posterior_mode(vae, pixels) - per_channel(vae.latents_mean)) / per_channel(vae.latents_std)
    noise = noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    with torch.no_grad():
        embeds, mask, _, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=128)
    prediction = model(
        hidden_states=noised.flatten(2).transpose(1, 2).contiguous().to(model.dtype),  # (1, T·h·w, C)
        encoder_hidden_states=embeds.to(model.dtype),
        timestep=torch.tensor([timestep]),
        encoder_attention_mask=mask,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(8 / FRAME_RATE, 32, 32),
        return_dict=False,
    )[0]
    return weighted_mse(prediction.transpose(1, 2).unflatten(2, (frames, height, width)), noise - x0, weight)


VARIANTS = (Variant("ltx-video", "LTXPipeline", build, training_step, NUM_FRAMES, HEIGHT, WIDTH, LATENTS),)
