"""EasyAnimate 5.1: flow matching, prompts of a chat model with their padding, conditions beside the noised latents.

The inpainting model sees the mask of what is known, scaled as latents are, and the latents of the known pixels: so it
makes videos from an image. Its call disturbs those pixels with noise; `call_kwargs` switch that off, so that there is
one right answer. The control model sees the latents of the control video, and those of a reference image or zeros.

The call of the control pipeline fails in diffusers 0.42.1, whatever it is given: it passes `encode_prompt` an argument
that the method does not take, and decodes with a method that the class lacks. A subclass mends it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKLMagvit,
    DiffusionPipeline,
    EasyAnimateControlPipeline,
    EasyAnimateInpaintPipeline,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from tests.families.common import Variant, character_tokenizer, finish, posterior_mode, randomise, weighted_mse
from tests.families.hunyuan import TEXT_DIM
from tests.families.hunyuan15 import tiny_qwen

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
TEXT_LENGTH = 256
CHAT = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'][0]['text'] }}\n{% endfor %}[assistant]"
)


class MendedControlPipeline(EasyAnimateControlPipeline):
    """The call as it was meant."""

    def encode_prompt(self, *args: Any, text_encoder_index: int = 0, **kwargs: Any) -> Any:
        return super().encode_prompt(*args, **kwargs)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]


def build(
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    pipeline: type[DiffusionPipeline] = EasyAnimatePipeline,
    in_channels: int = 4,
) -> DiffusionPipeline:
    tokenizer = character_tokenizer(TEXT_LENGTH)
    tokenizer.chat_template = CHAT
    vae = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7125,
    )
    vae.register_to_config(cache_mag_vae=True)  # which the inpainting pipeline reads, though no VAE class declares it
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=8,
        add_norm_text_encoder=True,
        text_embed_dim=TEXT_DIM,
    )
    pipe = pipeline(
        vae=randomise(vae, seed + 2),
        text_encoder=tiny_qwen(len(tokenizer), seed + 1),
        tokenizer=tokenizer,
        transformer=randomise(transformer, seed + 3),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return finish(pipe, dtype)


# ------------------------------------------------------------------------------------------------------- conditions


def as_video(pixels: Tensor) -> Tensor:
    """(F, 3, H, W) in [-1, 1] to (1, 3, F, H, W) in [0, 1], as the pipelines take videos."""
    return (pixels.transpose(0, 1)[None] + 1) / 2


def first_frame_known(example: Any) -> dict[str, Tensor]:
    """From an image to a video: all but the first frame is to be painted."""
    video = as_video(example["pixels"])
    mask = torch.full_like(video[:, :1], 255)
    mask[:, :, 0] = 0
    return {"video": video, "mask_video": mask}


def inpaint_latents(pipe, pixels: Tensor, shape: torch.Size) -> Tensor:
    """(1, 1 + C, T, h, w): where the first latent frame stands alone, its mask is the first frame's."""
    black = torch.full_like(pixels, -1)
    black[0] = pixels[0]
    known = torch.zeros(1, 1, *shape[1:])
    known[:, :, 0] = 1
    return torch.cat([known, posterior_mode(pipe.vae, black)], dim=1) * pipe.vae.config.scaling_factor


def control_and_reference(pixels: Tensor) -> dict[str, Tensor]:
    """A row with a control video, here the clip's negative, and a reference image, here its last frame."""
    return {"control": -pixels, "reference": pixels[-1:]}


def control_latents(pipe, pixels: Tensor, shape: torch.Size) -> Tensor:
    """(1, 2C, T, h, w): the control video, and the reference in the place of the first frame."""
    row = control_and_reference(pixels)
    control, image = (posterior_mode(pipe.vae, row[name]) for name in ("control", "reference"))
    reference = torch.zeros_like(control)
    reference[:, :, :1] = image
    return torch.cat([control, reference], dim=1) * pipe.vae.config.scaling_factor


# ------------------------------------------------------------------------------------------------------- the step


def training_step(
    pipe, pixels, caption, noise, timestep, weight=None, sigma=None, **conditions: Callable[..., Tensor]
) -> Tensor:
    """σ = t / 1000, x_t = (1 − σ) x0 + σ ε, target ε − x0; all frames are denoised, beside what conditions them."""
    model, sigma = pipe.transformer, timestep / 1000
    x0, noise = posterior_mode(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    with torch.no_grad():
        embeds = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)[0]
    prediction = model(
        noised.to(model.dtype),
        timestep=torch.tensor([timestep], dtype=model.dtype),
        encoder_hidden_states=embeds.to(model.dtype),
        return_dict=False,
        **{name: latents(pipe, pixels, noise.shape[1:]).to(model.dtype) for name, latents in conditions.items()},
    )[0]
    return weighted_mse(prediction, noise - x0, weight)


VARIANTS = (
    Variant("easyanimate", "EasyAnimatePipeline", build, training_step, NUM_FRAMES, HEIGHT, WIDTH, LATENTS),
    Variant(
        "easyanimate-inpaint",
        "EasyAnimateInpaintPipeline",
        partial(build, pipeline=EasyAnimateInpaintPipeline, in_channels=9),
        partial(training_step, inpaint_latents=inpaint_latents),
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        call_kwargs={"noise_aug_strength": 0.0},
        conditioning=first_frame_known,
        remark="`video` in [0, 1] and `mask_video`, 255 where it is to be painted, are tensors (1, C, F, H, W).",
    ),
    Variant(
        "easyanimate-control",
        "EasyAnimateControlPipeline",
        partial(build, pipeline=EasyAnimateControlPipeline, in_channels=12),
        None,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        None,
        conditioning=lambda example: {"control_video": as_video(-example["pixels"])},
        refused="text_encoder_index",
        remark="Its own call fails in diffusers 0.42.1; a subclass of two methods mends it.",
    ),
    Variant(
        "easyanimate-control-mended",
        "EasyAnimateControlPipeline",
        partial(build, pipeline=MendedControlPipeline, in_channels=12),
        partial(training_step, control_latents=control_latents),
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        conditioning=lambda example: {
            "control_video": as_video(example["control"]),
            "ref_image": as_video(example["reference"]),
        },
        example=control_and_reference,
        remark="A subclass whose encode_prompt ignores text_encoder_index, and with a decode_latents.",
    ),
)
