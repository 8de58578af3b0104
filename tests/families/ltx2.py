"""LTX-2: flow matching of video and audio together, on packed tokens, prompted by all hidden states of a Gemma 3.

The denoiser sees two streams at one noise level and predicts both; the step takes the video's prediction, and audio is
an input. Audio that nobody gives is at its mean, zeros, with noise of that level; the noise is the pipeline's draw.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

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
AUDIO = (1, 2, 18, 4)  # (1, C, L, M): 17 frames at 24 a second, 25 audio latents a second
FRAME_RATE = 24.0  # the pipelines' default
TEXT_DIM, TEXT_LENGTH = 8, 32
CALL_KWARGS = {"max_sequence_length": TEXT_LENGTH}


def tiny_gemma(vocabulary: int, seed: int) -> Gemma3ForConditionalGeneration:
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            vocab_size=vocabulary + 1,
            hidden_size=TEXT_DIM,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            pad_token_id=0,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        ),
        mm_tokens_per_image=4,
        image_token_index=vocabulary,
    )
    return randomise(Gemma3ForConditionalGeneration(config), seed)


def tiny_vae(seed: int) -> AutoencoderKLLTX2Video:
    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_causal=False,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    randomise(vae, seed)
    vae.latents_mean.copy_(torch.linspace(-0.4, 0.4, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    return vae


def tiny_audio_vae(seed: int) -> AutoencoderKLLTX2Audio:
    vae = AutoencoderKLLTX2Audio(base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=16)
    randomise(vae, seed)
    vae.latents_mean.copy_(torch.linspace(-0.3, 0.3, 8))
    vae.latents_std.copy_(torch.linspace(0.6, 1.4, 8))
    return vae


def parts(seed: int = 0, **transformer: Any) -> dict[str, Any]:
    """The components of every LTX-2 pipeline, by name; keyword arguments add to the transformer's configuration."""
    tokenizer = character_tokenizer(TEXT_LENGTH)
    tokenizer.padding_side = "left"  # as Gemma's; some pipelines read it before they set it
    connectors = LTX2TextConnectors(
        caption_channels=TEXT_DIM,
        text_proj_in_factor=3,  # hidden states of the text encoder
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=4,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=TEXT_LENGTH,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=4,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=TEXT_LENGTH,
        rope_type="split",
    )
    denoiser = LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT_DIM,
        rope_type="split",
        **transformer,
    )
    vocoder = LTX2Vocoder(
        in_channels=32,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": tiny_gemma(len(tokenizer), seed + 1),
        "vae": tiny_vae(seed + 2),
        "transformer": randomise(denoiser, seed + 3),
        "audio_vae": tiny_audio_vae(seed + 4),
        "connectors": randomise(connectors, seed + 5),
        "vocoder": randomise(vocoder, seed + 6),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=1.0,
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
    }


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> LTX2Pipeline:
    return finish(LTX2Pipeline(**parts(seed)), dtype)


# ------------------------------------------------------------------------------------------------ what a trainer does


def normalised(vae: AutoencoderKLLTX2Video, pixels: Tensor) -> Tensor:
    """Pixels (F, 3, H, W) to the latents (1, C, T, h, w) that the denoiser is trained on."""
    return (posterior_mode(vae, pixels) - per_channel(vae.latents_mean)) / per_channel(vae.latents_std)


def tokens(latents: Tensor) -> Tensor:
    """(1, C, T, h, w) to (1, T·h·w, C): one token a position."""
    return latents.flatten(2).transpose(1, 2).contiguous()


def audio_stream(video_draws: tuple[int, ...], sigma: float, length: int = AUDIO[2], packed: bool = False) -> Tensor:
    """Silence (1, L, C·M), zeros, with noise from the generator that has drawn the video's before it."""
    generator = torch.Generator().manual_seed(0)
    torch.randn(video_draws, generator=generator)
    _, channels, _, bins = AUDIO
    if packed:  # some siblings draw in the layout of the tokens
        return sigma * torch.randn(1, length, channels * bins, generator=generator)
    return sigma * torch.randn(1, channels, length, bins, generator=generator).transpose(1, 2).flatten(2)


def denoise(
    pipe: Any, hidden: Tensor, audio: Tensor, caption: str, timestep: float, per_token: Tensor, **options: Any
) -> Tensor:
    """The velocity of each token; `per_token` (1, S) is 1 where a token is at the timestep, 0 where it is clean."""
    model, level = pipe.transformer, torch.tensor([timestep])
    with torch.no_grad():
        embeds, mask = pipe._get_gemma_prompt_embeds(caption, max_sequence_length=TEXT_LENGTH)
        text, audio_text, mask = pipe.connectors(embeds, mask, padding_side="left")
    return model(
        hidden_states=hidden.to(model.dtype),
        audio_hidden_states=audio.to(model.dtype),
        encoder_hidden_states=text,
        audio_encoder_hidden_states=audio_text,
        timestep=level * per_token,
        audio_timestep=level,
        sigma=level,
        audio_sigma=level,
        encoder_attention_mask=mask,
        audio_encoder_attention_mask=mask,
        num_frames=LATENTS[1],
        height=LATENTS[2],
        width=LATENTS[3],
        fps=FRAME_RATE,
        audio_num_frames=audio.shape[1],
        return_dict=False,
        **{"use_cross_timestep": True, **options},
    )[0]


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """σ = t / 1000 for both streams, x_t = (1 − σ) x0 + σ ε, target ε − x0, for the video alone."""
    sigma, noise = timestep / 1000, noise[None].float()
    x0 = normalised(pipe.vae, pixels)
    noised = tokens((1 - sigma) * x0 + sigma * noise)
    audio = audio_stream(x0.shape, sigma)
    prediction = denoise(pipe, noised, audio, caption, timestep, torch.ones(1, noised.shape[1]))
    return weighted_mse(prediction.transpose(1, 2).unflatten(2, LATENTS[1:]), noise - x0, weight)


VARIANTS = (
    Variant(
        "ltx2",
        "LTX2Pipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        call_kwargs=CALL_KWARGS,
        remark="The loss is the video's; audio is silence, noised to the same level.",
    ),
)
