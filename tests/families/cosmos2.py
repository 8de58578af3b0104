"""Cosmos 2 and 2.5: velocities, a timestep in [0, 1] for every latent frame, given frames in place of noised ones.

Cosmos 2 adds σ ε with σ up to 80; its network sees the clip at t = σ / (1 + σ), and the pipeline turns its velocity
into the noise that the scheduler steps with. Cosmos 2.5 mixes noise linearly; its prompt is every layer of Qwen2.5-VL.
Text-, image- and video-to-world are one pipeline, told apart by what its call is given.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2_5_TransferPipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict
from diffusers.utils import is_torchvision_available
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.families import wan
from tests.families.cogvideox import TEXT_DIM, tiny_t5
from tests.families.common import Variant, character_tokenizer, finish, randomise
from tests.families.cosmos import Harmless, embed_prompt, first_frame_alone, mean_over, tiny_transformer

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
FPS, GIVEN_SIGMA = 16, 0.0001  # defaults of the Cosmos 2 pipeline
GIVEN_TIMESTEP = 0.0001  # default of the Cosmos 2.5 pipeline
GIVEN_FRAMES = 5  # two latent frames, the default of the Cosmos 2.5 pipeline
HIDDEN, QWEN_DIM, QWEN_LAYERS = 36, 16, 2

if not is_torchvision_available():  # of which the pipeline uses one function, to turn an image into a tensor in [0, 1]
    functional = SimpleNamespace(to_tensor=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    pipeline_cosmos2_5_predict.torchvision = SimpleNamespace(transforms=SimpleNamespace(functional=functional))


def sharp_vae(seed: int) -> AutoencoderKLWan:
    """A VAE whose posterior has no width: pipelines draw the given frames from it, a training step takes the mode."""
    vae = wan.tiny_vae(seed)
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.z_dim :] = 0
        vae.quant_conv.bias[vae.config.z_dim :] = -30  # of the logarithm of the variance
    return vae


def tiny_qwen_vl(vocabulary: int, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": QWEN_DIM,
            "intermediate_size": 32,
            "num_hidden_layers": QWEN_LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": 1,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_heads": 2,
            "out_hidden_size": QWEN_DIM,
        },
    )
    return randomise(Qwen2_5_VLForConditionalGeneration(config), seed)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer(512)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'][0]['text'] }} {% endfor %}"
    return tokenizer


# ------------------------------------------------------------------------------------------------------- Cosmos 2


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cosmos2VideoToWorldPipeline:
    tokenizer = character_tokenizer(512)
    pipe = Cosmos2VideoToWorldPipeline(
        text_encoder=tiny_t5(len(tokenizer), seed + 1),
        tokenizer=tokenizer,
        transformer=tiny_transformer(seed + 3, 5, extra_pos_embed_type=None),
        vae=sharp_vae(seed + 2),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=Harmless(),
    )
    return finish(pipe, dtype)


def given_mask(x0: Tensor, frames: int) -> Tensor:
    """(1, 1, T, 1, 1): 1 for the first `frames` latent frames."""
    return (torch.arange(x0.shape[2]) < frames).float().view(1, 1, -1, 1, 1)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = x0 + σ ε with σ = timestep / 1000; seen as the flow (1 − t) x_t = (1 − t) x0 + t ε, of velocity ε − x0.

    The scheduler is told noise: the velocity's error is weighed by 1 / (1 + σ)².
    """
    model, sigma = pipe.transformer, timestep / 1000
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    t, given = sigma / (1 + sigma), given_mask(x0, 1)
    condition = wan.encode_video(pipe, first_frame_alone(pixels, pixels[:1]))  # the frame, repeated
    model_input = given * condition + (1 - given) * (1 - t) * (x0 + sigma * noise)
    velocity = model(
        hidden_states=model_input.to(model.dtype),
        timestep=(given * GIVEN_SIGMA / (1 + GIVEN_SIGMA) + (1 - given) * t).to(model.dtype),
        encoder_hidden_states=embed_prompt(pipe, caption),
        fps=FPS,
        condition_mask=given.expand(1, 1, *x0.shape[2:]).to(model.dtype),
        padding_mask=torch.zeros(1, 1, *pixels.shape[-2:], dtype=model.dtype),
        return_dict=False,
    )[0]
    return mean_over(1 - given, ((velocity.float() - (noise - x0)) / (1 + sigma)) ** 2, weight)


# ----------------------------------------------------------------------------------------------------- Cosmos 2.5

PROMPT_PROJECTION = {
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": QWEN_DIM * QWEN_LAYERS,
    "encoder_hidden_states_channels": TEXT_DIM,
}
IMAGE_CONTEXT = {"img_context_dim_in": 6, "img_context_dim_out": HIDDEN}  # zeros, in the released pipeline


def parts_2_5(seed: int, **options) -> dict:
    tokenizer = chat_tokenizer()
    return {
        "text_encoder": tiny_qwen_vl(len(tokenizer), seed + 1),
        "tokenizer": tokenizer,
        "transformer": tiny_transformer(seed + 3, 5, extra_pos_embed_type=None, **PROMPT_PROJECTION, **options),
        "vae": sharp_vae(seed + 2),
        "scheduler": UniPCMultistepScheduler(
            use_karras_sigmas=True,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            sigma_max=200.0,
            sigma_min=0.01,
        ),
        "safety_checker": Harmless(),
    }


def build_predict(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cosmos2_5_PredictBasePipeline:
    return finish(Cosmos2_5_PredictBasePipeline(**parts_2_5(seed)), dtype)


def build_transfer(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cosmos2_5_TransferPipeline:
    controlnet = CosmosControlNetModel(
        n_controlnet_blocks=2,
        in_channels=10,  # control latents, padded with zeros, and two masks
        latent_channels=6,
        model_channels=HIDDEN,
        num_attention_heads=2,
        attention_head_dim=HIDDEN // 2,
        mlp_ratio=2,
        text_embed_dim=TEXT_DIM,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        img_context_dim_in=IMAGE_CONTEXT["img_context_dim_in"],
        img_context_dim_out=HIDDEN,
        **PROMPT_PROJECTION,
    )
    parts = parts_2_5(seed, controlnet_block_every_n=1, img_context_num_tokens=3, **IMAGE_CONTEXT)
    return finish(Cosmos2_5_TransferPipeline(controlnet=randomise(controlnet, seed + 4), **parts), dtype)


def velocity_step(pipe, pixels, caption, noise, sigma, weight, frames=0, given_clip=None, controls=None) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε, target ε − x0; the model's timestep is σ itself, and nearly 0 for given frames."""
    model = pipe.transformer
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    given = given_mask(x0, frames)
    noised = (1 - sigma) * x0 + sigma * noise
    if given_clip is not None:
        noised = given * wan.encode_video(pipe, given_clip) + (1 - given) * noised
    inputs = {
        "timestep": given * GIVEN_TIMESTEP + (1 - given) * sigma,
        "encoder_hidden_states": embed_prompt(pipe, caption),
        "condition_mask": given.expand(1, 1, *x0.shape[2:]).to(model.dtype),
        "padding_mask": torch.zeros(1, 1, *pixels.shape[-2:], dtype=model.dtype),
        "return_dict": False,
    }
    residuals = None
    if controls is not None:
        image = torch.zeros(1, model.config.img_context_num_tokens, model.config.img_context_dim_in)
        inputs["encoder_hidden_states"] = (inputs["encoder_hidden_states"], image.to(model.dtype))
        with torch.no_grad():  # of the two, the transformer is attributed
            residuals = pipe.controlnet(
                controls_latents=wan.encode_video(pipe, controls).to(model.dtype),
                latents=noised.to(model.dtype),
                **inputs,
            )[0]
    prediction = model(hidden_states=noised.to(model.dtype), block_controlnet_hidden_states=residuals, **inputs)[0]
    return mean_over(1 - given, (prediction.float() - (noise - x0)) ** 2, weight)


def text_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return velocity_step(pipe, pixels, caption, noise, sigma, weight)


def image_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """Black frames follow the image."""
    clip = first_frame_alone(pixels, torch.tensor(-1.0))
    return velocity_step(pipe, pixels, caption, noise, sigma, weight, 1, clip)


def video_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """The last of the given frames is repeated."""
    given = pixels[:GIVEN_FRAMES]
    clip = torch.cat([given, given[-1:].expand(len(pixels) - len(given), -1, -1, -1)])
    return velocity_step(pipe, pixels, caption, noise, sigma, weight, 2, clip)


def control_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return velocity_step(pipe, pixels, caption, noise, sigma, weight, controls=-pixels)


def images(pixels: Tensor) -> list[Image.Image]:
    """(F, 3, H, W) in [-1, 1] as 8-bit images."""
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in ((pixels + 1) * 127.5).round().byte()]


SHAPE = (NUM_FRAMES, HEIGHT, WIDTH, LATENTS)
VARIANTS = (
    Variant("cosmos2-video", "Cosmos2VideoToWorldPipeline", build, training_step, *SHAPE),
    Variant(
        "cosmos2.5-text",
        "Cosmos2_5_PredictBasePipeline",
        build_predict,
        text_step,
        *SHAPE,
        remark="Text-to-world unless conditioning gives an image or a video.",
    ),
    Variant(
        "cosmos2.5-image",
        "Cosmos2_5_PredictBasePipeline",
        build_predict,
        image_step,
        *SHAPE,
        conditioning=lambda example: {"image": images(example["pixels"])[0]},
    ),
    Variant(
        "cosmos2.5-video",
        "Cosmos2_5_PredictBasePipeline",
        build_predict,
        video_step,
        *SHAPE,
        conditioning=lambda example: {"video": images(example["pixels"])[:GIVEN_FRAMES]},
        remark="Of a video the pipeline takes the last five frames: give the clip's first five.",
    ),
    Variant(
        "cosmos2.5-transfer",
        "Cosmos2_5_TransferPipeline",
        build_transfer,
        control_step,
        *SHAPE,
        call_kwargs={"num_frames_per_chunk": NUM_FRAMES},
        conditioning=lambda example: {"controls": example["edges"]},
        example=lambda pixels: {"edges": images(-pixels)},
        remark="num_frames_per_chunk must be num_frames; the transformer is attributed, not the ControlNet.",
    ),
)
