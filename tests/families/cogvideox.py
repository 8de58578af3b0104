"""CogVideoX: frames first, v-prediction on a shifted, zero-terminal-SNR schedule; 2B as DDIM, 5B as DPM and rotary."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from tests.families.common import (
    Variant,
    character_tokenizer,
    finish,
    posterior_mode,
    randomise,
    scaled_linear_alphas,
    weighted_mse,
)

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
TEXT_DIM, TEXT_LENGTH, HEAD_DIM = 16, 226, 16


def tiny_t5(vocabulary: int, seed: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    return randomise(T5EncoderModel(config), seed)


def build(dtype: torch.dtype = torch.float32, seed: int = 0, large: bool = False) -> CogVideoXPipeline:
    tokenizer = character_tokenizer(TEXT_LENGTH)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=0.7 if large else 1.15258426,
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=TEXT_DIM,
        num_layers=2,
        sample_width=8,
        sample_height=6,
        sample_frames=9,
        max_text_seq_length=TEXT_LENGTH,
        use_rotary_positional_embeddings=large,
    )
    scheduler = (CogVideoXDPMScheduler if large else CogVideoXDDIMScheduler)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        snr_shift_scale=1.0 if large else 3.0,
        timestep_spacing="trailing",
    )
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(len(tokenizer), seed + 1),
        vae=randomise(vae, seed + 2),
        transformer=randomise(transformer, seed + 3),
        scheduler=scheduler,
    )
    return finish(pipe, dtype)


def alpha_bar(timestep: float, snr_shift_scale: float) -> float:
    """ᾱ_t: latent diffusion's, its SNR divided by the shift, then √ᾱ moved and scaled to end at zero."""
    alphas = scaled_linear_alphas()
    snr = alphas / (1 - alphas) / snr_shift_scale
    root = (snr / (1 + snr)).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return float(root[int(timestep)] ** 2)


def rotary(config, frames: int, height: int, width: int) -> tuple[Tensor, Tensor] | None:
    """The tables of the 5B model for a latent grid; the crop is taken from the grid that the model was made for."""
    if not config.use_rotary_positional_embeddings:
        return None
    grid, base = (height // 2, width // 2), (config.sample_width // 2, config.sample_height // 2)
    return get_3d_rotary_pos_embed(HEAD_DIM, get_resize_crop_region_for_grid(grid, *base), grid, frames)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = √ᾱ x0 + √(1−ᾱ) ε, v = √ᾱ ε − √(1−ᾱ) x0.

    diffusers' own script compares x0 under the weight 1/(1−ᾱ), which is the squared error of v.
    """
    model = pipe.transformer
    signal = alpha_bar(timestep, pipe.scheduler.config.snr_shift_scale) ** 0.5
    spread = (1 - signal**2) ** 0.5
    x0, noise = posterior_mode(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    noised = signal * x0 + spread * noise
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
    prediction = model(
        hidden_states=noised.transpose(1, 2).to(model.dtype),  # (1, T, C, h, w)
        encoder_hidden_states=embeds.to(model.dtype),
        timestep=torch.tensor([int(timestep)]),
        image_rotary_emb=rotary(model.config, *noise.shape[2:]),
        return_dict=False,
    )[0].transpose(1, 2)
    return weighted_mse(prediction, signal * noise - spread * x0, weight)


VARIANTS = (
    Variant(
        "cogvideox-ddim",
        "CogVideoXPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
    ),
    Variant(
        "cogvideox-dpm",
        "CogVideoXPipeline",
        partial(build, large=True),
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
    ),
)
