"""Stable Video Diffusion: EDM preconditioning, v-prediction, conditioned on the clip's first frame, no prompt.

The frame comes in twice: as a CLIP embedding, and as unscaled latents beside the noised ones. The pipeline disturbs it
with noise of its own; `call_kwargs` switch that off, so that there is one right answer. The timestep is ln(σ) / 4.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.families.common import Variant, finish, posterior_mode_of_frames, randomise, weighted_mse

NUM_FRAMES, HEIGHT, WIDTH = 5, 32, 48
LATENTS = (4, 5, 8, 12)  # (C, T, h, w)
FPS, MOTION_BUCKET = 7, 127  # the pipeline's defaults
CALL_KWARGS = {"noise_aug_strength": 0.0}


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> StableVideoDiffusionPipeline:
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        block_out_channels=(32, 32, 32),
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(64, 64),  # 32 groups: with one channel a group, the norms would hide the timestep
        layers_per_block=1,
        num_attention_heads=2,
        cross_attention_dim=8,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=NUM_FRAMES,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    pipe = StableVideoDiffusionPipeline(
        vae=randomise(vae, seed + 2),
        image_encoder=randomise(CLIPVisionModelWithProjection(vision), seed + 1),
        unet=randomise(unet, seed + 3),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(size=224, crop_size=224),
    )
    return finish(pipe, dtype)


def first_frame(pixels: Tensor) -> Image.Image:
    """Frame 0 of (F, 3, H, W) in [-1, 1], as 8-bit values."""
    return Image.fromarray(((pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = x0 + σ ε. The network sees x_t / √(σ²+1); the denoised clip is x_t / (σ²+1) − σ / √(σ²+1) · output.

    EDM weighs (denoised − x0)² by (σ²+1) / σ², which makes it the squared error of the output.
    """
    unet, vae = pipe.unet, pipe.vae
    sigma = float(torch.tensor(4.0 * timestep, dtype=torch.float64).exp())
    x0, noise = posterior_mode_of_frames(vae, pixels) * vae.config.scaling_factor, noise[None].float()
    noised = x0 + sigma * noise
    condition = posterior_mode_of_frames(vae, pixels[:1]).expand_as(noised)  # beside every frame, and not scaled
    with torch.no_grad():
        embeds = pipe._encode_image(first_frame(pixels), "cpu", 1, do_classifier_free_guidance=False)
    model_input = torch.cat([noised / (sigma**2 + 1) ** 0.5, condition], dim=1)
    output = unet(
        model_input.transpose(1, 2).to(unet.dtype),  # (1, T, 2C, h, w)
        torch.tensor(timestep, dtype=torch.float32),
        encoder_hidden_states=embeds.to(unet.dtype),
        added_time_ids=torch.tensor([[FPS - 1, MOTION_BUCKET, CALL_KWARGS["noise_aug_strength"]]], dtype=unet.dtype),
        return_dict=False,
    )[0].transpose(1, 2)
    target = (noised / (sigma**2 + 1) - x0) * (sigma**2 + 1) ** 0.5 / sigma
    return weighted_mse(output, target, weight)


VARIANTS = (
    Variant(
        "stable-video-diffusion",
        "StableVideoDiffusionPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        denoisers=("unet",),
        call_kwargs=CALL_KWARGS,
    ),
)
