"""Wan with control: a branch beside the transformer (VACE), or pose and face videos (Animate).

Both put reference images as whole latent frames before the clip's. Those frames are noised and denoised like the clip,
and thrown away before decoding. A trainer noises the reference's own latents there; they are out of the loss here. The
noise on them is the pipeline's own, of the seed that every call has.

- VACE: the branch sees the control video's known and unknown part, encoded apart, and the mask as one channel for each
  of the 8 × 8 pixels behind a latent.
- Animate: the condition in channels, as in Wan 2.1 image-to-video, is the reference, then the clip so far: nothing in
  mode "animate"; in mode "replace" the background, and where it is to be kept. Faces drive a motion encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from torch import Tensor

from hf_motive.pipelines.call import CALL_SEED
from tests.families import wan
from tests.families.common import Variant, character_tokenizer, finish, randomise, weighted_mse
from tests.families.wan_i2v import IMAGE_DIM, embed_images, image_processor, known_frames, tiny_image_encoder, to_pil

BOUNDARY = 0.875
FACE_SIZE = 16


def build_vace(
    dtype: torch.dtype = torch.float32, seed: int = 0, boundary_ratio: float | None = None
) -> WanVACEPipeline:
    tokenizer = character_tokenizer()
    pipe = WanVACEPipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=3.0),
        transformer=tiny_vace_transformer(seed + 3),
        transformer_2=tiny_vace_transformer(seed + 4) if boundary_ratio else None,
        boundary_ratio=boundary_ratio,
    )
    return finish(pipe, dtype)


def build_vace_two_experts(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanVACEPipeline:
    return build_vace(dtype, seed, boundary_ratio=BOUNDARY)


def tiny_vace_transformer(seed: int) -> WanVACETransformer3DModel:
    transformer = WanVACETransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=wan.TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        vace_layers=[0, 2],
        vace_in_channels=2 * 4 + 8 * 8,
    )
    return randomise(transformer, seed)


def build_animate(dtype: torch.dtype = torch.float32, seed: int = 0) -> WanAnimatePipeline:
    transformer = WanAnimateTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        text_dim=wan.TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        image_dim=IMAGE_DIM,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=FACE_SIZE,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    tokenizer = character_tokenizer()
    pipe = WanAnimatePipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        vae=wan.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=5.0),
        transformer=randomise(transformer, seed + 3),
        image_encoder=tiny_image_encoder(seed + 4),
        image_processor=image_processor(),
    )
    return finish(pipe, dtype)


# -------------------------------------------------------------------------------------------------- what is given


def control_clip(pixels: Tensor) -> Tensor:
    """The clip without colour and mirrored; 8-bit values stay 8-bit."""
    return pixels[:, :1].flip(-1).expand(-1, 3, -1, -1)


def unknown(pixels: Tensor) -> Tensor:
    """(F, 3, H, W) of zeros and ones: what is to be made, a box that grows with time, not aligned with the latents."""
    mask = torch.zeros_like(pixels)
    for i, frame in enumerate(mask):
        frame[:, 3 : 13 + i, 5 : 23 + 2 * i] = 1
    return mask


def reference(pixels: Tensor) -> Tensor:
    """(1, 3, H, W)"""
    return pixels[-1:].flip(-2)


def face_clip(pixels: Tensor) -> Tensor:
    return pixels[:, :, :FACE_SIZE, :FACE_SIZE]


def vace_example(pixels: Tensor) -> dict[str, Any]:
    return {
        "control": to_pil(control_clip(pixels)),
        "mask": to_pil(2 * unknown(pixels) - 1),
        "reference": to_pil(reference(pixels)),
    }


def control_and_mask(example: dict[str, Any]) -> dict[str, Any]:
    return {"video": example["control"], "mask": example["mask"]}


def control_mask_and_reference(example: dict[str, Any]) -> dict[str, Any]:
    return {**control_and_mask(example), "reference_images": example["reference"]}


def animate_example(pixels: Tensor) -> dict[str, Any]:
    return {
        "reference": to_pil(reference(pixels))[0],
        "pose": to_pil(control_clip(pixels)),
        "face": to_pil(face_clip(pixels)),
        "background": to_pil(pixels.flip(-1)),
        "character": to_pil(2 * unknown(pixels) - 1),
    }


def animated(example: dict[str, Any]) -> dict[str, Any]:
    return {"image": example["reference"], "pose_video": example["pose"], "face_video": example["face"]}


def replaced(example: dict[str, Any]) -> dict[str, Any]:
    return {**animated(example), "background_video": example["background"], "mask_video": example["character"]}


# -------------------------------------------------------------------------------------------------- steps by hand


def noised_behind_references(clip: Tensor, references: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """(1, C, R + T, h, w): both noised to the same level."""
    shape = (1, clip.shape[1], references.shape[2] + clip.shape[2], *clip.shape[3:])
    own = torch.randn(shape, generator=torch.Generator().manual_seed(CALL_SEED))[:, :, : references.shape[2]]
    return (1 - sigma) * torch.cat([references, clip], dim=2) + sigma * torch.cat([own, noise], dim=2)


def pixels_as_channels(mask: Tensor, frames: int) -> Tensor:
    """(F, 3, H, W) of zeros and ones to (1, 64, T, h, w); each latent frame has the mask of a frame amid its own."""
    amid = ((torch.arange(frames) + 0.5) * len(mask) / frames).long()
    blocks = mask[amid, 0].unflatten(1, (-1, 8)).unflatten(3, (-1, 8))  # (T, h, 8, w, 8)
    return blocks.permute(2, 4, 0, 1, 3).flatten(0, 1)[None]


def vace_step(pipe, model, pixels, caption, noise, timestep, sigma, weight, with_reference) -> Tensor:
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    control, mask = control_clip(pixels), unknown(pixels)
    known_and_unknown = [wan.encode_video(pipe, control * part) for part in (1 - mask, mask)]
    control = torch.cat([*known_and_unknown, pixels_as_channels(mask, x0.shape[2])], dim=1)
    references = wan.encode_video(pipe, reference(pixels))[:, :, : int(with_reference)]
    room = torch.zeros_like(control[:, x0.shape[1] :, : references.shape[2]])  # nothing unknown, nothing masked
    control = torch.cat([torch.cat([references, room], dim=1), control], dim=2)
    prediction = model(
        hidden_states=noised_behind_references(x0, references, noise, sigma).to(model.dtype),
        timestep=torch.tensor([timestep]),
        encoder_hidden_states=wan.embed_prompt(pipe, caption),
        control_hidden_states=control.to(model.dtype),
        return_dict=False,
    )[0]
    return weighted_mse(prediction[:, :, references.shape[2] :], noise - x0, weight)


def training_step_vace(pipe, pixels, caption, noise, timestep, weight=None, sigma=None, with_reference=True) -> Tensor:
    sigma = wan.noise_level(timestep, sigma)
    return vace_step(pipe, pipe.transformer, pixels, caption, noise, timestep, sigma, weight, with_reference)


def training_step_inpainting(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    expert = pipe.transformer if timestep >= 1000 * BOUNDARY else pipe.transformer_2
    sigma = wan.noise_level(timestep, sigma)
    return vace_step(pipe, expert, pixels, caption, noise, timestep, sigma, weight, with_reference=False)


def animate_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None, replace=False) -> Tensor:
    model, sigma = pipe.transformer, wan.noise_level(timestep, sigma)
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    given = known_frames(pipe, reference(pixels), (0,))
    if replace:
        latents = wan.encode_video(pipe, pixels.flip(-1))
        kept = 1 - unknown(pixels)[:, 0, ::8, ::8]  # (F, h, w): of each 8 × 8 pixels the first decides
        kept = torch.cat([kept[:1].expand(4, -1, -1), kept[1:]]).unflatten(0, (-1, 4)).transpose(0, 1)[None]
        so_far = torch.cat([kept, latents], dim=1)
    else:
        so_far = known_frames(pipe, torch.zeros_like(pixels), ())
    noised = noised_behind_references(x0, given[:, 4:], noise, sigma)
    condition = torch.cat([given, so_far], dim=2)
    prediction = model(
        hidden_states=torch.cat([noised, condition], dim=1).to(model.dtype),
        timestep=torch.tensor([timestep]),
        encoder_hidden_states=wan.embed_prompt(pipe, caption),
        encoder_hidden_states_image=embed_images(pipe, to_pil(reference(pixels))),
        pose_hidden_states=wan.encode_video(pipe, control_clip(pixels)).to(model.dtype),
        face_pixel_values=face_clip(pixels).transpose(0, 1)[None].to(model.dtype),
        return_dict=False,
    )[0]
    return weighted_mse(prediction[:, :, 1:], noise - x0, weight)


def training_step_replace(*args, **options) -> Tensor:
    return animate_step(*args, **options, replace=True)


CLIP = (wan.NUM_FRAMES, wan.HEIGHT, wan.WIDTH, wan.LATENTS)

VARIANTS = (
    Variant(
        "wan2.1-vace",
        "WanVACEPipeline",
        build_vace,
        training_step_vace,
        *CLIP,
        conditioning=control_mask_and_reference,
        example=vace_example,
        remark="`conditioning` gives the control video, the mask and at most one reference image",
    ),
    Variant(
        "wan2.2-vace-inpainting",
        "WanVACEPipeline",
        build_vace_two_experts,
        training_step_inpainting,
        *CLIP,
        timesteps=(940.0, 500.0),
        denoisers=("transformer", "transformer_2"),
        conditioning=control_and_mask,
        example=vace_example,
    ),
    Variant(
        "wan2.2-animate",
        "WanAnimatePipeline",
        build_animate,
        animate_step,
        *CLIP,
        conditioning=animated,
        example=animate_example,
        remark="`conditioning` gives the reference image and the pose and face videos, as long as the clip",
    ),
    Variant(
        "wan2.2-animate-replace",
        "WanAnimatePipeline",
        build_animate,
        training_step_replace,
        *CLIP,
        call_kwargs={"mode": "replace"},
        conditioning=replaced,
        example=animate_example,
    ),
)
