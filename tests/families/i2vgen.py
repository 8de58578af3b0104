"""I2VGen-XL: v-prediction on a cosine schedule that ends in pure noise, conditioned on the clip's first frame.

The frame comes in twice: as a CLIP embedding, and as scaled latents followed, for every later frame, by a constant
that says where in the clip it stands. The prompt's states are those before the text encoder's last layer, normed.
diffusers 0.42.1 looks for that norm in `text_encoder.text_model`, which transformers 5 no longer has: one line before
the first call gives it back. (`clip_skip=None` works without, but conditions on states the model was not trained on.)
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet
from diffusers.pipelines.deprecated.i2vgen_xl.pipeline_i2vgen_xl import _center_crop_wide, _resize_bilinear
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.families.animatediff_control import certain
from tests.families.common import (
    Variant,
    character_tokenizer,
    finish,
    posterior_mode_of_frames,
    randomise,
    weighted_mse,
)
from tests.families.svd import first_frame

NUM_FRAMES, HEIGHT, WIDTH = 5, 32, 48
LATENTS = (4, 5, 8, 12)  # (C, T, h, w)
TEXT_DIM, IMAGE_SIZE = 8, 32
FPS = 16  # the pipeline's default


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> I2VGenXLPipeline:
    tokenizer = character_tokenizer(77, bos=True)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=2 * TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        projection_dim=TEXT_DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    unet = I2VGenXLUNet(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        steps_offset=1,
    )
    pipe = I2VGenXLPipeline(
        vae=certain(randomise(vae, seed + 2)),
        text_encoder=randomise(CLIPTextModel(text), seed + 1),
        tokenizer=tokenizer,
        image_encoder=randomise(CLIPVisionModelWithProjection(vision), seed + 4),
        feature_extractor=CLIPImageProcessor(size=IMAGE_SIZE, crop_size=IMAGE_SIZE),
        unet=randomise(unet, seed + 3),
        scheduler=scheduler,
    )
    vars(pipe.text_encoder)["text_model"] = pipe.text_encoder  # the line: an alias, not a submodule
    return finish(pipe, dtype)


def cosine_alphas() -> Tensor:
    """ᾱ of the cosine schedule, its square root then shifted and stretched so that the last timestep is pure noise."""

    def level(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / 1000) / level(i / 1000), 0.999) for i in range(1000)]
    root = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0).sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = √ᾱ x0 + √(1−ᾱ) ε; the target is v = √ᾱ ε − √(1−ᾱ) x0. The first frame is denoised like the others."""
    unet, vae, noise = pipe.unet, pipe.vae, noise[None].float()
    alpha = float(cosine_alphas()[int(timestep)])
    x0 = posterior_mode_of_frames(vae, pixels) * vae.config.scaling_factor
    noised = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    first = posterior_mode_of_frames(vae, pixels[:1]) * vae.config.scaling_factor
    later = torch.linspace(0, 1, pixels.shape[0])[1:].view(1, 1, -1, 1, 1).expand(*first.shape[:2], -1, *x0.shape[3:])
    square = _resize_bilinear(_center_crop_wide(first_frame(pixels), (WIDTH, WIDTH)), (IMAGE_SIZE, IMAGE_SIZE))
    tokens = pipe.tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt").input_ids
    pipe._guidance_scale = 1.0  # read by the helper
    with torch.no_grad():
        states = pipe.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        text = pipe.text_encoder.final_layer_norm(states)
        image = pipe._encode_image(square, "cpu", 1)
    prediction = unet(
        noised.to(unet.dtype),
        torch.tensor(int(timestep)),
        fps=torch.tensor([FPS]),
        image_latents=torch.cat([first, later], dim=2).to(unet.dtype),
        image_embeddings=image.to(unet.dtype),
        encoder_hidden_states=text.to(unet.dtype),
        return_dict=False,
    )[0]
    return weighted_mse(prediction, alpha**0.5 * noise - (1 - alpha) ** 0.5 * x0, weight)


VARIANTS = (
    Variant(
        "i2vgen-xl",
        "I2VGenXLPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        denoisers=("unet",),
        remark="With transformers 5, first `vars(pipe.text_encoder)['text_model'] = pipe.text_encoder`.",
    ),
)
