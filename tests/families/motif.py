"""Motif-Video: Wan's VAE, T5Gemma 2 for prompts and images, a guider, and conditioning channels even without an image.

The denoiser sees [noised | given frame and zeros | mask], 2C + 1 channels, all zero in text-to-video. The image comes
in a second time as tokens of the text encoder's own vision tower. The transformer's last single-stream blocks are a
decoder, which reads the noised tokens again. The pipelines hand their scheduler sigmas and a shift that grows with the
number of tokens: flow-matching Euler takes both; the DPM solver that their documentation names takes no sigmas.
"""

from __future__ import annotations

import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    FlowMatchEulerDiscreteScheduler,
    MotifVideoImage2VideoPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
)
from torch import Tensor
from transformers import (
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    T5Gemma2Encoder,
    T5Gemma2EncoderConfig,
    T5Gemma2TextConfig,
)

from hf_motive.pipelines.call import CALL_SEED
from tests.families.common import Variant, character_tokenizer, finish, per_channel, randomise, weighted_mse
from tests.families.wan import encode_video, tiny_vae

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
TEXT_DIM, IMAGE_DIM, IMAGE_SIZE = 16, 8, 32
CALL_KWARGS = {"max_sequence_length": 64}


def tiny_text_encoder(vocabulary: int, seed: int) -> T5Gemma2Encoder:
    text = T5Gemma2TextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
        dropout_rate=0.0,
    )
    vision = SiglipVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=IMAGE_SIZE // 2,
        vision_use_head=False,
    )
    config = T5Gemma2EncoderConfig(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=vocabulary - 1,
        boi_token_index=vocabulary - 2,
        eoi_token_index=vocabulary - 3,
    )
    return randomise(T5Gemma2Encoder(config, eoi_token_index=vocabulary - 3), seed)


def parts(seed: int) -> dict:
    """What both pipelines have; as released, one checkpoint serves both."""
    tokenizer = character_tokenizer(bos=True)
    transformer = MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=2,
        num_decoder_layers=1,
        text_embed_dim=TEXT_DIM,
        image_embed_dim=IMAGE_DIM,
        rope_axes_dim=(2, 4, 4),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": tiny_vae(seed + 2),
        "text_encoder": tiny_text_encoder(len(tokenizer) + 3, seed + 1),
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed + 3),
        "guider": AdaptiveProjectedGuidance(guidance_scale=8.0, adaptive_projected_guidance_rescale=12.0),
        "feature_extractor": SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
    }


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> MotifVideoPipeline:
    return finish(MotifVideoPipeline(**parts(seed)), dtype)


def build_i2v(dtype: torch.dtype = torch.float32, seed: int = 0) -> MotifVideoImage2VideoPipeline:
    return finish(MotifVideoImage2VideoPipeline(**parts(seed)), dtype)


def flow_step(pipe, pixels, caption, noise, timestep, weight, given: Tensor | None, image_embeds) -> Tensor:
    """σ = t / 1000, x_t = (1 − σ) x0 + σ ε, target ε − x0; `given`: clean latents (1, C, 1, h, w) of frame 0."""
    model, sigma = pipe.transformer, timestep / 1000
    x0, noise = encode_video(pipe, pixels), noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    condition, mask = torch.zeros_like(noised), torch.zeros_like(noised[:, :1])
    if given is not None:
        condition[:, :, :1], mask[:, :, 0] = given, 1
    with torch.no_grad():
        embeds, _, embeds_mask, _ = pipe.encode_prompt(caption, **CALL_KWARGS)
    prediction = model(
        hidden_states=torch.cat([noised, condition, mask], dim=1).to(model.dtype),
        timestep=torch.tensor([timestep]),
        encoder_hidden_states=embeds,
        encoder_attention_mask=embeds_mask,
        image_embeds=image_embeds,
        return_dict=False,
    )[0]
    return weighted_mse(prediction, noise - x0, weight)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return flow_step(pipe, pixels, caption, noise, timestep, weight, None, None)


def training_step_i2v(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """The image's latents are a sample of the posterior, drawn after the latents that the pipeline starts from."""
    vae, tower = pipe.vae, pipe.text_encoder.vision_tower
    generator = torch.Generator().manual_seed(CALL_SEED)
    torch.randn(noise[None].shape, generator=generator)
    with torch.no_grad():
        raw = vae.encode(pixels[:1].transpose(0, 1)[None].to(vae.dtype)).latent_dist.sample(generator).float()
        embeds = pipe._get_image_embeds(tower, pipe.feature_extractor, (pixels[:1] + 1) / 2, "cpu")
    given = (raw - per_channel(vae.config.latents_mean)) / per_channel(vae.config.latents_std)
    return flow_step(pipe, pixels, caption, noise, timestep, weight, given, embeds)


VARIANTS = (
    Variant(
        "motif-video",
        "MotifVideoPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        call_kwargs=CALL_KWARGS,
    ),
    Variant(
        "motif-video-i2v",
        "MotifVideoImage2VideoPipeline",
        build_i2v,
        training_step_i2v,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        call_kwargs=CALL_KWARGS,
    ),
)
