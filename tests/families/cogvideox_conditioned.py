"""CogVideoX from an image, from a video and from a control video: the denoiser of the 5B model, with more channels in.

What conditions lies beside the noised latents, channel for channel, so that every latent frame is denoised: a frame's
latents and zeros (image), the latents of a whole video (control). The image's are a sample of the posterior, drawn
before anything else, as in training; training also disturbs the image with noise, which the pipeline does not.
CogVideoX 1.5 makes patches of two latent frames, and an odd number of them is padded in front with one that is never
decoded: clips of 8k + 5 frames need none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    DiffusionPipeline,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from PIL import Image
from torch import Tensor

from hf_motive.pipelines.call import CALL_SEED
from tests.families import cogvideox
from tests.families.cogvideox import HEAD_DIM, HEIGHT, LATENTS, NUM_FRAMES, TEXT_LENGTH, WIDTH, alpha_bar, rotary
from tests.families.common import Variant, finish, posterior_mode, randomise, weighted_mse

LONG, LONG_LATENTS = 13, (4, 4, 4, 6)  # the clip of CogVideoX 1.5

LEARNED_POSITIONS = {"use_learned_positional_embeddings": True, "sample_width": 6, "sample_height": 4}
TEMPORAL_PATCHES = {
    "patch_size_t": 2,
    "ofs_embed_dim": 8,
    "patch_bias": False,
    "sample_width": 8,
    "sample_height": 6,
    "sample_frames": LONG,
}


def build(
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    pipeline: type[DiffusionPipeline] = CogVideoXImageToVideoPipeline,
    in_channels: int = 8,
    ddim: bool = False,
    **config: Any,
) -> DiffusionPipeline:
    parts = cogvideox.build(seed=seed, large=True).components
    transformer = CogVideoXTransformer3DModel.from_config(
        parts["transformer"].config, in_channels=in_channels, **config
    )
    parts["transformer"] = randomise(transformer, seed + 3)
    if ddim:
        parts["scheduler"] = CogVideoXDDIMScheduler.from_config(parts["scheduler"].config)
    if "patch_size_t" in config:
        parts["vae"].register_to_config(invert_scale_latents=True)  # as CogVideoX 1.5 was trained
    return finish(pipeline(**parts), dtype)


def pil_frames(pixels: Tensor) -> list[Image.Image]:
    """(F, 3, H, W) in [-1, 1], as 8-bit images."""
    frames = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(frame.numpy()) for frame in frames]


def sample_posterior(vae: Any, frame: Tensor, generator: torch.Generator) -> Tensor:
    """A frame (3, H, W) to a sample (1, C, 1, h, w) of its posterior, raw, in fp32."""
    with torch.no_grad():
        return vae.encode(frame[None, :, None].to(vae.dtype)).latent_dist.sample(generator).float()


def padded_in_time(latents: Tensor, frames: int) -> Tensor:
    """(1, C, T', h, w) to (1, C, frames, h, w), with zeros."""
    zeros = latents.new_zeros(1, latents.shape[1], frames - latents.shape[2], *latents.shape[3:])
    return torch.cat([latents, zeros], dim=2)


def image_latents(pipe, pixels: Tensor, frames: int) -> Tensor:
    """The first frame's latents and zeros. CogVideoX 1.5 divides where it should multiply, and was trained so."""
    config = pipe.vae.config
    scale = 1 / config.scaling_factor if config.invert_scale_latents else config.scaling_factor
    latents = sample_posterior(pipe.vae, pixels[0], torch.Generator().manual_seed(CALL_SEED)) * scale
    return padded_in_time(latents, frames)


def negative(pixels: Tensor) -> dict[str, Tensor]:
    """A row with a control video: here the clip's negative, which is of 8-bit values as the clip is."""
    return {"control": -pixels}


def control_latents(pipe, pixels: Tensor, frames: int) -> Tensor:
    return posterior_mode(pipe.vae, negative(pixels)["control"]) * pipe.vae.config.scaling_factor


def positions(config, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """With temporal patches: the corner of the grid that the model was made for, and a position for each patch."""
    if config.patch_size_t is None:
        return rotary(config, frames, height, width)
    return get_3d_rotary_pos_embed(
        HEAD_DIM,
        None,
        (height // 2, width // 2),
        frames // config.patch_size_t,
        grid_type="slice",
        max_size=(config.sample_height // 2, config.sample_width // 2),
    )


def velocity_step(pipe, pixels, caption, noise, timestep, weight, condition: Tensor, **inputs: Any) -> Tensor:
    """x_t = √ᾱ x0 + √(1−ᾱ) ε beside the condition (1, C, T, h, w); the model predicts v = √ᾱ ε − √(1−ᾱ) x0."""
    model, vae = pipe.transformer, pipe.vae
    signal = alpha_bar(timestep, pipe.scheduler.config.snr_shift_scale) ** 0.5
    spread = (1 - signal**2) ** 0.5
    x0, noise = posterior_mode(vae, pixels) * vae.config.scaling_factor, noise[None].float()
    noised = signal * x0 + spread * noise
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
    prediction = model(
        hidden_states=torch.cat([noised, condition], dim=1).transpose(1, 2).to(model.dtype),  # (1, T, 2C, h, w)
        encoder_hidden_states=embeds.to(model.dtype),
        timestep=torch.tensor([int(timestep)]),
        return_dict=False,
        **inputs,
    )[0].transpose(1, 2)
    return weighted_mse(prediction, signal * noise - spread * x0, weight)


def training_step(
    pipe, pixels, caption, noise, timestep, weight=None, sigma=None, *, condition: Callable[..., Tensor]
) -> Tensor:
    config = pipe.transformer.config
    inputs = {"image_rotary_emb": positions(config, *noise.shape[1:])}
    if config.ofs_embed_dim is not None:
        inputs["ofs"] = torch.full((1,), 2.0)
    latents = condition(pipe, pixels, noise.shape[1])
    return velocity_step(pipe, pixels, caption, noise, timestep, weight, latents, **inputs)


VARIANTS = (
    Variant(
        "cogvideox-i2v",
        "CogVideoXImageToVideoPipeline",
        partial(build, **LEARNED_POSITIONS),
        partial(training_step, condition=image_latents),
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
    ),
    Variant(
        "cogvideox-1.5-i2v",
        "CogVideoXImageToVideoPipeline",
        partial(build, **TEMPORAL_PATCHES),
        partial(training_step, condition=image_latents),
        LONG,
        HEIGHT,
        WIDTH,
        LONG_LATENTS,
        remark="CogVideoX 1.5: choose 8k + 5 frames, for which no latent frame is padded.",
    ),
    Variant(
        "cogvideox-v2v",
        "CogVideoXVideoToVideoPipeline",
        partial(build, pipeline=CogVideoXVideoToVideoPipeline, in_channels=4),
        cogvideox.training_step,  # the video is where the noised latents come from, and nothing beside them
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
    ),
    Variant(
        "cogvideox-fun-control",
        "CogVideoXFunControlPipeline",
        partial(build, pipeline=CogVideoXFunControlPipeline, ddim=True),  # it has no branch for the DPM scheduler
        partial(training_step, condition=control_latents),
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        conditioning=lambda example: {"control_video": pil_frames(example["control"])},
        example=negative,
        remark="`control_video`, a list of images, sets the number of frames.",
    ),
)
