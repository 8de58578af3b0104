"""AnimateDiff led by a video: ControlNet on all frames, SparseCtrl on some, and video-to-video, controlled or not.

The control branch is held fixed, as the text encoder is: its residuals enter the UNet as they are. ControlNet sees the
noised frames one by one, SparseCtrl sees none of them, only the given frames and a mask that says which they are.
Video-to-video starts from the clip's own latents; a training step noises just those, so it is AnimateDiff's own.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor, nn

from tests.families import animatediff
from tests.families.animatediff import HEIGHT, LATENTS, NUM_FRAMES, TEXT_DIM, WIDTH
from tests.families.common import Variant, finish, posterior_mode_of_frames, randomise, weighted_mse

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
CHANNELS = (16, 32)
GIVEN = [0, 3]  # the frames that SparseCtrl is given
BRANCH: dict[str, Any] = {
    "block_out_channels": CHANNELS,
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_DIM,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "conditioning_embedding_out_channels": (4, 8, 8),  # as many levels as the VAE
}


# ------------------------------------------------------------------------------------------------------------- parts


def linear_ddim() -> DDIMScheduler:
    return DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, timestep_spacing="linspace")


def motion_adapter(conv_in_channels: int | None = None) -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=CHANNELS,
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
        conv_in_channels=conv_in_channels,
    )


def image_unet(**options: Any) -> UNet2DConditionModel:
    settings = {
        "sample_size": 8,
        "block_out_channels": CHANNELS,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": TEXT_DIM,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**settings, **options})


def joined(cls: type, scheduler: Any, dtype: torch.dtype, seed: int, **parts: nn.Module) -> DiffusionPipeline:
    """A pipeline of AnimateDiff's kind around its tiny VAE and text encoder, with some parts exchanged or added."""
    components = animatediff.build(seed=seed).components | {"unet": image_unet(), "motion_adapter": motion_adapter()}
    pipe = cls(**{**components, "scheduler": scheduler, **parts})
    randomise(pipe.unet, seed + 3)  # image model and motion adapter as one, after the pipeline has joined them
    return finish(pipe, dtype)


def certain(vae: nn.Module) -> nn.Module:
    """An image VAE of no spread to speak of: what a pipeline samples from it is the mode of its posterior.

    A standard deviation is never taken to be less than exp(−15); what that leaves is lost beside larger latents.
    """
    half, larger = vae.quant_conv.out_channels // 2, 64
    with torch.no_grad():
        for values in vae.quant_conv.parameters():
            values[:half] *= larger
            values[half:] = 0
        vae.quant_conv.bias[half:] = -30
    vae.register_to_config(scaling_factor=vae.config.scaling_factor / larger)
    return vae


def controlnet(seed: int) -> ControlNetModel:
    return randomise(ControlNetModel(**BRANCH, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D")), seed)


def build_controlnet(dtype: torch.dtype = torch.float32, seed: int = 0) -> AnimateDiffControlNetPipeline:
    """As with AnimateLCM: a consistency model, of which ε is predicted at the fifty timesteps it was distilled at."""
    scheduler = LCMScheduler(**BETAS, steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    return joined(AnimateDiffControlNetPipeline, scheduler, dtype, seed, controlnet=controlnet(seed + 4))


def build_sparse(
    dtype: torch.dtype = torch.float32, seed: int = 0, images: bool = False
) -> AnimateDiffSparseControlNetPipeline:
    """SparseCtrl for scribbles, in pixels, or (`images`) for images, in latents."""
    sparse = SparseControlNetModel(
        **BRANCH,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        conditioning_channels=4 if images else 3,
        use_simplified_condition_embedding=images,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
        concat_conditioning_mask=True,
    )
    scheduler = DPMSolverMultistepScheduler(
        **BETAS, steps_offset=1, algorithm_type="dpmsolver++", use_karras_sigmas=True
    )
    pipe = joined(AnimateDiffSparseControlNetPipeline, scheduler, dtype, seed, controlnet=randomise(sparse, seed + 4))
    certain(pipe.vae)
    return pipe


def build_sparse_images(dtype: torch.dtype = torch.float32, seed: int = 0) -> AnimateDiffSparseControlNetPipeline:
    return build_sparse(dtype, seed, images=True)


def build_video(dtype: torch.dtype = torch.float32, seed: int = 0) -> AnimateDiffVideoToVideoPipeline:
    return joined(AnimateDiffVideoToVideoPipeline, linear_ddim(), dtype, seed)


def build_video_controlnet(
    dtype: torch.dtype = torch.float32, seed: int = 0
) -> AnimateDiffVideoToVideoControlNetPipeline:
    cls = AnimateDiffVideoToVideoControlNetPipeline
    return joined(cls, linear_ddim(), dtype, seed, controlnet=controlnet(seed + 4))


def images(frames: Tensor) -> list[Image.Image]:
    """(F, 3, H, W) in [0, 1] as 8-bit images."""
    frames = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(frame.contiguous().numpy()) for frame in frames]


def edges(pixels: Tensor) -> Tensor:
    """A control video (F, 3, H, W) in [0, 1], of 8-bit values: each frame's horizontal differences."""
    differences = (pixels - pixels.roll(1, dims=-1)).abs().mean(1, keepdim=True).clamp(max=1).expand_as(pixels)
    return (differences * 255).round() / 255


# ------------------------------------------------------------------------------------------------- training, by hand


def linear_alphas() -> Tensor:
    return torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), 0)


def noised_and_text(pipe, pixels, caption, noise, alpha: float) -> tuple[Tensor, Tensor]:
    """√ᾱ x0 + √(1−ᾱ) ε, as (1, C, F, h, w), and the caption once a frame."""
    x0 = posterior_mode_of_frames(pipe.vae, pixels) * pipe.vae.config.scaling_factor
    with torch.no_grad():
        text, _ = pipe.encode_prompt(caption, "cpu", 1, do_classifier_free_guidance=False)
    text = text.repeat_interleave(pixels.shape[0], dim=0)
    return (alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise).to(pipe.unet.dtype), text.to(pipe.unet.dtype)


def denoise(pipe, noised: Tensor, text: Tensor, timestep: float, seen: Tensor, **control: Tensor) -> Tensor:
    """The UNet's output, with the residuals of a control branch that sees `seen`."""
    t, dtype = torch.tensor(int(timestep)), pipe.unet.dtype
    control = {name: tensor.to(dtype) for name, tensor in control.items()}
    with torch.no_grad():
        down, middle = pipe.controlnet(seen, t, encoder_hidden_states=text, **control, return_dict=False)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return pipe.unet(noised, t, encoder_hidden_states=text, **residuals).sample


def controlled_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """ε-prediction, with betas linear from 0.00085 to 0.012; the branch sees each noised frame and its control."""
    noise, alpha = noise[None].float(), float(linear_alphas()[int(timestep)])
    noised, text = noised_and_text(pipe, pixels, caption, noise, alpha)
    frames = noised[0].transpose(0, 1)  # (F, C, h, w)
    return weighted_mse(denoise(pipe, noised, text, timestep, frames, controlnet_cond=edges(pixels)), noise, weight)


def sparse_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """As above, the noise level from `sigma`, since Karras' timesteps are rounded; the frames not given are blank."""
    noise = noise[None].float()
    noised, text = noised_and_text(pipe, pixels, caption, noise, 1 - sigma**2)
    if pipe.controlnet.use_simplified_condition_embedding:
        given = posterior_mode_of_frames(pipe.vae, pixels[GIVEN]) * pipe.vae.config.scaling_factor
    else:
        given = edges(pixels)[GIVEN].transpose(0, 1)[None]
    condition = torch.zeros(1, given.shape[1], pixels.shape[0], *given.shape[-2:])
    mask = torch.zeros_like(condition[:, :1])
    condition[:, :, GIVEN], mask[:, :, GIVEN] = given, 1.0
    prediction = denoise(pipe, noised, text, timestep, noised, controlnet_cond=condition, conditioning_mask=mask)
    return weighted_mse(prediction, noise, weight)


def video_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    t, noise = torch.tensor(int(timestep)), noise[None].float()
    noised, text = noised_and_text(pipe, pixels, caption, noise, float(linear_alphas()[int(timestep)]))
    return weighted_mse(pipe.unet(noised, t, encoder_hidden_states=text).sample, noise, weight)


# ---------------------------------------------------------------------------------------------------------- variants

SHAPE = (NUM_FRAMES, HEIGHT, WIDTH, LATENTS)
CONTROLLED: dict[str, Any] = {
    "denoisers": ("unet",),
    "conditioning": lambda example: {"conditioning_frames": example["controls"]},
    "example": lambda pixels: {"controls": images(edges(pixels))},
}
SPARSE = CONTROLLED | {
    "call_kwargs": {"controlnet_frame_indices": GIVEN},
    "remark": "`conditioning` gives `conditioning_frames`, `call_kwargs` the `controlnet_frame_indices`.",
}


VARIANTS = (
    Variant(
        "animatediff-controlnet",
        "AnimateDiffControlNetPipeline",
        build_controlnet,
        controlled_step,
        *SHAPE,
        **CONTROLLED,
        remark="`conditioning` gives `conditioning_frames`; the UNet is attributed, not the ControlNet.",
    ),
    Variant(
        "animatediff-sparsectrl-scribble",
        "AnimateDiffSparseControlNetPipeline",
        build_sparse,
        sparse_step,
        *SHAPE,
        **SPARSE | {"example": lambda pixels: {"controls": images(edges(pixels)[GIVEN])}},
    ),
    Variant(
        "animatediff-sparsectrl-rgb",
        "AnimateDiffSparseControlNetPipeline",
        build_sparse_images,
        sparse_step,
        *SHAPE,
        **SPARSE | {"example": lambda pixels: {"controls": images((pixels[GIVEN] + 1) / 2)}},
    ),
    Variant(
        "animatediff-video2video",
        "AnimateDiffVideoToVideoPipeline",
        build_video,
        video_step,
        *SHAPE,
        denoisers=("unet",),
    ),
    Variant(
        "animatediff-video2video-controlnet",
        "AnimateDiffVideoToVideoControlNetPipeline",
        build_video_controlnet,
        controlled_step,
        *SHAPE,
        **CONTROLLED,
        remark="`conditioning` gives `conditioning_frames`; the UNet is attributed, not the ControlNet.",
    ),
)
