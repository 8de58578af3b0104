"""FramePack: one window of latent frames is denoised, in front of the image and of what was generated before.

The pipeline goes through a video window by window; a training step is one window. The clip is the image and the window
that touches it, 1 + 4·`latent_window_size` frames, so the image is latent frame 0 and out of the loss, and there is no
history: zeros, at their places in time. The released window of 9 latent frames makes clips of 37 frames.
"""

from __future__ import annotations

import functools

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
)
from torch import Tensor
from transformers import LlamaModel, SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from hf_motive.pipelines.call import CALL_SEED
from tests.families.common import Variant, character_tokenizer, finish, randomise, weighted_mse
from tests.families.hunyuan import POOLED_DIM, TEXT_DIM, template_tokenizer, tiny_clip_text
from tests.families.hunyuan_i2v import noise_clip, tiny_llama, tiny_vae

WINDOW = 2  # latent frames
NUM_FRAMES, HEIGHT, WIDTH = 1 + 4 * WINDOW, 32, 48
LATENTS = (4, 1 + WINDOW, 4, 6)  # (C, T, h, w)
GUIDANCE, IMAGE_DIM = 6.0, 8


def tiny_siglip(
    seed: int, width: int = IMAGE_DIM, size: int = 32
) -> tuple[SiglipVisionModel, SiglipImageProcessorPil]:
    """Four tokens an image, and the processor that goes with it."""
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return randomise(SiglipVisionModel(config), seed), SiglipImageProcessorPil(size={"height": 32, "width": 32})


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> HunyuanVideoFramepackPipeline:
    tokenizer, tokenizer_2 = template_tokenizer(), character_tokenizer(77, bos=True)
    image_encoder, feature_extractor = tiny_siglip(seed + 5)
    transformer = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        guidance_embeds=True,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        rope_axes_dim=(2, 4, 4),
        has_image_proj=True,
        image_proj_dim=IMAGE_DIM,
        has_clean_x_embedder=True,
    )
    pipe = HunyuanVideoFramepackPipeline(
        text_encoder=randomise(LlamaModel(tiny_llama(len(tokenizer))), seed + 1),
        tokenizer=tokenizer,
        transformer=randomise(transformer, seed + 3),
        vae=tiny_vae(seed + 2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=tiny_clip_text(len(tokenizer_2), seed + 4, POOLED_DIM),
        tokenizer_2=tokenizer_2,
        image_encoder=image_encoder,
        feature_extractor=feature_extractor,
    )
    return finish(pipe, dtype)


def training_step(inverted, pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """`inverted`: the order in time is image, window, history; otherwise image, history, window.

    Places in time are counted over all frames. History is kept at three rates: its nearest frame whole, beside the
    image, the next 2 at half and the next 16 at a quarter of the resolution. In the forward order the image is the
    latest frame of the history too. The image's latents are a sample of the posterior, the first number drawn.
    """
    model, vae = pipe.transformer, pipe.vae
    noised, target = noise_clip(pipe, pixels, noise, timestep)
    with torch.no_grad():
        posterior = vae.encode(pixels[:1].transpose(0, 1)[None].to(vae.dtype)).latent_dist
        image = posterior.sample(torch.Generator().manual_seed(CALL_SEED)).float() * vae.config.scaling_factor
        embeds, pooled, mask = pipe.encode_prompt(caption, max_sequence_length=256)
        processed = pipe.feature_extractor(images=(pixels[:1] + 1) / 2, return_tensors="pt", do_rescale=False)
        image_embeds = pipe.image_encoder(processed.pixel_values.to(pipe.image_encoder.dtype)).last_hidden_state
    history = torch.zeros(1, 4, 16, *noise.shape[-2:])
    if inverted:
        window, nearest, half, quarter = torch.arange(1, 20 + WINDOW).split([WINDOW, 1, 2, 16])
        latest = history[:, :, :1]
    else:
        quarter, half, nearest, window = torch.arange(1, 20 + WINDOW).split([16, 2, 1, WINDOW])
        latest = image
    prediction = model(
        hidden_states=noised[:, :, 1:].to(model.dtype),
        timestep=torch.tensor([timestep]),
        encoder_hidden_states=embeds.to(model.dtype),
        encoder_attention_mask=mask.to(model.dtype),
        pooled_projections=pooled.to(model.dtype),
        image_embeds=image_embeds.to(model.dtype),
        guidance=torch.tensor([GUIDANCE * 1000], dtype=model.dtype),
        indices_latents=window,
        latents_clean=torch.cat([image, latest], dim=2).to(model.dtype),
        indices_latents_clean=torch.cat([torch.tensor([0]), nearest]),
        latents_history_2x=history[:, :, :2].to(model.dtype),
        indices_latents_history_2x=half,
        latents_history_4x=history.to(model.dtype),
        indices_latents_history_4x=quarter,
        return_dict=False,
    )[0]
    return weighted_mse(prediction, target[:, :, 1:], None if weight is None else weight[1:])


VARIANTS = (
    Variant(
        "framepack",
        "HunyuanVideoFramepackPipeline",
        build,
        functools.partial(training_step, True),
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        half_cosine=0.5,
        call_kwargs={"latent_window_size": WINDOW, "num_frames": NUM_FRAMES - 4},
        remark="A clip is the image and one window, 1 + 4·latent_window_size frames; `call_kwargs` must ask for one "
        'window alone, {"num_frames": 33} for clips of 37.',
    ),
    Variant(
        "framepack-f1",
        "HunyuanVideoFramepackPipeline",
        build,
        functools.partial(training_step, False),
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        half_cosine=0.5,
        call_kwargs={"latent_window_size": WINDOW, "sampling_type": "vanilla"},
        remark="A clip is the image and the first window, 1 + 4·latent_window_size frames.",
    ),
)
