"""Wan image-to-video: the given frames come in as latents, beside the noised ones or in place of them.

- Wan 2.1: sixteen more channels hold the latents of a clip whose unknown frames are grey, four more say which frames
  are known; CLIP's view of the image joins the text. With a last frame, both are known, and CLIP sees both.
- Wan 2.2 A14B: the same channels, two experts, no CLIP.
- Wan 2.2 5B: the first latent frame is the image's own, clean, at timestep 0; its tokens are out of the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.families import wan, wan22_5b
from tests.families.common import Variant, character_tokenizer, finish, randomise, weighted_mse

BOUNDARY = 0.9
IMAGE_DIM, IMAGE_TOKENS = 8, 17


def tiny_transformer(
    seed: int, out_channels: int = 4, image_dim: int | None = None, image_tokens: int | None = None, **options: Any
) -> WanTransformer3DModel:
    """`image_tokens`: of the two images together, where the model tells first and last apart."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=options.pop("in_channels", 2 * out_channels + 4),
        out_channels=out_channels,
        text_dim=wan.TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        image_dim=image_dim,
        added_kv_proj_dim=24 if image_dim else None,
        pos_embed_seq_len=image_tokens,
        **options,
    )
    return randomise(transformer, seed)


def tiny_image_encoder(seed: int) -> CLIPVisionModel:
    """Of which the last hidden state but one is used."""
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    return randomise(CLIPVisionModel(config), seed)


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size=224, crop_size=224)


def build(dtype: torch.dtype = torch.float32, seed: int = 0, last_frame: bool = False) -> WanImageToVideoPipeline:
    tokenizer = character_tokenizer()
    pipe = WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=16.0 if last_frame else 3.0),
        transformer=tiny_transformer(
            seed + 3, image_dim=IMAGE_DIM, image_tokens=2 * IMAGE_TOKENS if last_frame else None
        ),
        image_encoder=tiny_image_encoder(seed + 4),
        image_processor=image_processor(),
    )
    return finish(pipe, dtype)


def build_with_last_frame(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanImageToVideoPipeline:
    return build(dtype, seed, last_frame=True)


def build_two_experts(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanImageToVideoPipeline:
    tokenizer = character_tokenizer()
    pipe = WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=5.0),
        transformer=tiny_transformer(seed + 3),
        transformer_2=tiny_transformer(seed + 4),
        boundary_ratio=BOUNDARY,
    )
    return finish(pipe, dtype)


def build_5b(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanImageToVideoPipeline:
    tokenizer = character_tokenizer()
    pipe = WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan22_5b.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=5.0),
        transformer=wan.tiny_transformer(seed + 3, channels=6),
        expand_timesteps=True,
    )
    return finish(pipe, dtype)


# -------------------------------------------------------------------------------------------------- images


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(F, 3, H, W) in [-1, 1] as 8-bit images."""
    values = ((pixels + 1) * 127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in values]


def first_and_last(example: dict[str, Any]) -> dict[str, Any]:
    first, *_, last = to_pil(example["pixels"])
    return {"image": first, "last_image": last}


def embed_images(pipe: WanImageToVideoPipeline, images: list[Image.Image]) -> Tensor:
    """(images, tokens, D)"""
    with torch.no_grad():
        return pipe.encode_image(images, "cpu").to(pipe.transformer.dtype)


# -------------------------------------------------------------------------------------------------- steps by hand


def known_frames(pipe: WanImageToVideoPipeline, pixels: Tensor, known: tuple[int, ...]) -> Tensor:
    """(1, 4 + C, T, h, w): the mask of the known frames, then the latents of the clip with the others grey.

    The mask has one channel for each of the four frames behind a latent frame; the first latent frame has but one
    frame behind it, which fills all four.
    """
    given = torch.zeros_like(pixels)
    given[list(known)] = pixels[list(known)]
    latents = wan.encode_video(pipe, given)
    is_known = torch.zeros(len(pixels))
    is_known[list(known)] = 1
    mask = torch.cat([is_known[:1].expand(4), is_known[1:]]).reshape(-1, 4).T  # (4, T)
    return torch.cat([mask[None, :, :, None, None].expand(-1, -1, -1, *latents.shape[-2:]), latents], dim=1)


def concatenated_step(pipe, model, pixels, caption, noise, timestep, sigma, weight, condition, **inputs) -> Tensor:
    """A flow step with `condition` (1, K, T, h, w) in channels behind the noised clip."""
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    prediction = model(
        hidden_states=torch.cat([noised, condition], dim=1).to(model.dtype),
        timestep=torch.tensor([timestep]),
        encoder_hidden_states=wan.embed_prompt(pipe, caption),
        return_dict=False,
        **inputs,
    )[0]
    return weighted_mse(prediction, noise - x0, weight)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None, known=(0,)) -> Tensor:
    return concatenated_step(
        pipe,
        pipe.transformer,
        pixels,
        caption,
        noise,
        timestep,
        wan.noise_level(timestep, sigma),
        weight,
        known_frames(pipe, pixels, known),
        encoder_hidden_states_image=embed_images(pipe, to_pil(pixels[list(known)])),
    )


def training_step_with_last_frame(pipe, pixels, *args, **options) -> Tensor:
    return training_step(pipe, pixels, *args, **options, known=(0, len(pixels) - 1))


def training_step_two_experts(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    expert = pipe.transformer if timestep >= 1000 * BOUNDARY else pipe.transformer_2
    sigma, condition = wan.noise_level(timestep, sigma), known_frames(pipe, pixels, (0,))
    return concatenated_step(pipe, expert, pixels, caption, noise, timestep, sigma, weight, condition)


def training_step_5b(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    sigma = wan.noise_level(timestep, sigma)
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    noised[:, :, :1] = wan.encode_video(pipe, pixels[:1])
    _, _, frames, height, width = noised.shape
    per_token = torch.full((1, frames, height // 2 * (width // 2)), timestep)  # patches of 1 × 2 × 2
    per_token[:, 0] = 0
    prediction = pipe.transformer(
        hidden_states=noised.to(pipe.transformer.dtype),
        timestep=per_token.flatten(1),
        encoder_hidden_states=wan.embed_prompt(pipe, caption),
        return_dict=False,
    )[0]
    weight = None if weight is None else weight[1:]
    return weighted_mse(prediction[:, :, 1:], (noise - x0)[:, :, 1:], weight)


CLIP = (wan.NUM_FRAMES, wan.HEIGHT, wan.WIDTH, wan.LATENTS)
PIPELINE = "WanImageToVideoPipeline"

VARIANTS = (
    Variant("wan2.1-i2v", PIPELINE, build, training_step, *CLIP),
    Variant(
        "wan2.1-flf2v",
        PIPELINE,
        build_with_last_frame,
        training_step_with_last_frame,
        *CLIP,
        conditioning=first_and_last,
        remark="`conditioning` gives the last frame",
    ),
    Variant(
        "wan2.2-a14b-i2v",
        PIPELINE,
        build_two_experts,
        training_step_two_experts,
        *CLIP,
        timesteps=(940.0, 500.0),
        denoisers=("transformer", "transformer_2"),
    ),
    Variant(
        "wan2.2-5b-i2v",
        PIPELINE,
        build_5b,
        training_step_5b,
        wan22_5b.NUM_FRAMES,
        wan22_5b.HEIGHT,
        wan22_5b.WIDTH,
        wan22_5b.LATENTS,
        remark="the first latent frame is given, and out of the loss",
    ),
)
