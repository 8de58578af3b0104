"""Wan 2.1 text-to-video: flow matching, 5-D latents, UMT5 prompts padded with zeros to 512 tokens."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from tests.families.common import (
    Variant,
    character_tokenizer,
    finish,
    per_channel,
    posterior_mode,
    randomise,
    weighted_mse,
)

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
TEXT_DIM = 16


def tiny_text_encoder(vocabulary: int, seed: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=vocabulary, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    return randomise(UMT5EncoderModel(config), seed)


def tiny_vae(seed: int) -> AutoencoderKLWan:
    """The released compression, 8 × 8 × 4, with four latent channels of unequal mean and spread."""
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[-0.2, 0.1, 0.4, -0.3],
        latents_std=[0.6, 1.1, 0.8, 1.4],
    )
    return randomise(vae, seed)


def tiny_transformer(seed: int, channels: int = 4) -> WanTransformer3DModel:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    return randomise(transformer, seed)


def scheduler(flow_shift: float = 3.0) -> UniPCMultistepScheduler:
    """As released with Wan2.1-T2V-1.3B; the larger models differ in `flow_shift` alone."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, num_train_timesteps=1000
    )


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanPipeline:
    tokenizer = character_tokenizer()
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_text_encoder(len(tokenizer), seed + 1),
        vae=tiny_vae(seed + 2),
        scheduler=scheduler(),
        transformer=tiny_transformer(seed + 3),
    )
    return finish(pipe, dtype)


def encode_video(pipe: WanPipeline, pixels: Tensor) -> Tensor:
    """Pixels (F, 3, H, W) to normalised latents (1, C, T, h, w): mode of the posterior, then (z − mean) / std."""
    config = pipe.vae.config
    return (posterior_mode(pipe.vae, pixels) - per_channel(config.latents_mean)) / per_channel(config.latents_std)


def embed_prompt(pipe: WanPipeline, caption: str) -> Tensor:
    """(1, 512, D): 512 tokens, as the model was trained and as the pipeline's call asks for."""
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=512)
    return embeds.to(pipe.transformer.dtype)


def flow_step(pipe, model, pixels, caption, noise, timestep, sigma, weight) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε; the model predicts the velocity ε − x0. `timestep` as the model takes it."""
    x0, noise = encode_video(pipe, pixels), noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    prediction = model(
        hidden_states=noised.to(model.dtype),
        timestep=timestep,
        encoder_hidden_states=embed_prompt(pipe, caption),
        return_dict=False,
    )[0]
    return weighted_mse(prediction, noise - x0, weight)


def noise_level(timestep: float, sigma: float | None) -> float:
    """t = ⌊1000 σ⌋: the released schedule keeps whole timesteps, so the σ behind one is to be given."""
    if sigma is None:
        return (timestep + 0.5) / 1000
    if not -0.001 <= 1000 * sigma - timestep <= 1.001:  # the rounding of σ may sit just beside a whole timestep
        raise ValueError(f"sigma {sigma} does not belong to timestep {timestep}")
    return sigma


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    sigma = noise_level(timestep, sigma)
    return flow_step(pipe, pipe.transformer, pixels, caption, noise, torch.tensor([timestep]), sigma, weight)


VARIANTS = (Variant("wan2.1", "WanPipeline", build, training_step, NUM_FRAMES, HEIGHT, WIDTH, LATENTS),)
