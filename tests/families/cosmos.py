"""Cosmos 1: EDM preconditioning of data that spread by 0.5, and `scheduler.step` called twice a timestep.

The network sees x_t / √(σ² + 0.25) and the timestep ln(σ) / 4; of its two calls of `step` the first makes the estimate
of the clip, the second goes on from it. Latents are normalised by a mean and spread of their own for every latent
frame. Video-to-world overwrites the given frames in the input and in the estimate, and marks them in one more channel.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKLCosmos,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    CosmosVideoToWorldPipeline,
    EDMEulerScheduler,
)
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.transformers import transformer_cosmos
from diffusers.utils import is_torchvision_available
from torch import Tensor
from torch.nn.functional import interpolate

from tests.families.cogvideox import TEXT_DIM, tiny_t5
from tests.families.common import Variant, character_tokenizer, finish, posterior_mode, randomise

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
FPS = 30  # the pipeline's default
SIGMA_DATA = 0.5
# The noise with which the given frames are disturbed: off, so that there is one right answer.
GIVEN_FRAMES = {"augment_sigma": 0.0}

if not is_torchvision_available():  # of which the models use one function, to resize a mask of zeros
    transforms = SimpleNamespace(
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
        functional=SimpleNamespace(
            resize=lambda image, size, interpolation: interpolate(image, size, mode=interpolation)
        ),
    )
    transformer_cosmos.transforms = controlnet_cosmos.transforms = transforms


class Harmless:
    """Stands for the safety checker, without which no Cosmos pipeline runs, and finds everything safe."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, frames):
        return frames


def tiny_transformer(seed: int, channels: int, **options) -> CosmosTransformer3DModel:
    """`channels`: of the latents, plus one where given frames are marked."""
    transformer = CosmosTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=18,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=TEXT_DIM,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        **options,
    )
    return randomise(transformer, seed)


def build(dtype: torch.dtype = torch.float32, seed: int = 0, given: bool = False):
    tokenizer = character_tokenizer(512)
    vae = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(4,),
        resolution=32,
        num_layers=1,
        patch_size=4,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        latents_mean=torch.linspace(-0.3, 0.4, 16).tolist(),  # (C, T) flattened, for up to four latent frames
        latents_std=torch.linspace(0.6, 1.4, 16).tolist(),
    )
    scheduler = EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80.0,
        sigma_data=SIGMA_DATA,
        sigma_schedule="karras",
        prediction_type="epsilon",
        rho=7.0,
        final_sigmas_type="sigma_min",
    )
    pipe = (CosmosVideoToWorldPipeline if given else CosmosTextToWorldPipeline)(
        text_encoder=tiny_t5(len(tokenizer), seed + 1),
        tokenizer=tokenizer,
        transformer=tiny_transformer(seed + 3, 5 if given else 4),
        vae=randomise(vae, seed + 2),
        scheduler=scheduler,
        safety_checker=Harmless(),
    )
    finish(pipe, dtype).vae.float()  # torch has no pooling in half precision on a CPU
    return pipe


def build_given(dtype: torch.dtype = torch.float32, seed: int = 0) -> CosmosVideoToWorldPipeline:
    return build(dtype, seed, given=True)


def encode(vae: AutoencoderKLCosmos, pixels: Tensor) -> Tensor:
    """Pixels (F, 3, H, W) to latents (1, C, T, h, w), normalised to a standard deviation of `SIGMA_DATA`."""
    latents = posterior_mode(vae, pixels)
    mean, std = (
        torch.tensor(values).view(1, latents.shape[1], -1, 1, 1)[:, :, : latents.shape[2]]
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - mean) / std * SIGMA_DATA


def embed_prompt(pipe, caption: str) -> Tensor:
    with torch.no_grad():
        return pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=512)[0]


def first_frame_alone(pixels: Tensor, fill: Tensor) -> Tensor:
    """The clip as video-to-world encodes it: after its first frame, `fill`."""
    return torch.cat([pixels[:1], fill.expand_as(pixels[1:])])


def mean_over(denoised: Tensor, error: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean of squared errors (1, C, T, h, w) over the positions (1, 1, T, 1, 1) that are denoised."""
    error = error if weight is None else error * weight[None, None]
    return (error * denoised).sum() / denoised.expand_as(error).sum()


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = x0 + σ ε; the estimate of x0 is c_skip x_t + c_out F, and EDM weighs it to the squared error of F."""
    model, sigma = pipe.transformer, float(torch.tensor(4.0 * timestep, dtype=torch.float64).exp())
    x0, noise = encode(pipe.vae, pixels), noise[None].float()
    noised = x0 + sigma * noise
    total = (sigma**2 + SIGMA_DATA**2) ** 0.5
    c_in, c_skip, c_out = 1 / total, SIGMA_DATA**2 / total**2, sigma * SIGMA_DATA / total
    model_input, given, extra = noised * c_in, torch.zeros(1, 1, x0.shape[2], 1, 1), {}
    if isinstance(pipe, CosmosVideoToWorldPipeline):
        given[:, :, 0] = 1
        # Zeros, grey, follow the frame. It is scaled as a clip without noise is: to a standard deviation of one.
        condition = encode(pipe.vae, first_frame_alone(pixels, torch.zeros(1))) / SIGMA_DATA
        model_input = given * condition + (1 - given) * model_input
        extra = {"condition_mask": given.expand(1, 1, *x0.shape[2:]).to(model.dtype)}
    output = model(
        hidden_states=model_input.to(model.dtype),
        timestep=torch.tensor([timestep], dtype=model.dtype),
        encoder_hidden_states=embed_prompt(pipe, caption),
        fps=FPS,
        padding_mask=torch.zeros(1, 1, *pixels.shape[-2:], dtype=model.dtype),
        return_dict=False,
        **extra,
    )[0]
    target = (x0 - c_skip * noised) / c_out
    return mean_over(1 - given, (output.float() - target) ** 2, weight)


SHAPE = (NUM_FRAMES, HEIGHT, WIDTH, LATENTS)
VARIANTS = (
    Variant("cosmos1-text", "CosmosTextToWorldPipeline", build, training_step, *SHAPE),
    Variant(
        "cosmos1-video",
        "CosmosVideoToWorldPipeline",
        build_given,
        training_step,
        *SHAPE,
        call_kwargs=GIVEN_FRAMES,
        remark="Pass augment_sigma=0.0 in call_kwargs, or the given frame is disturbed by fixed noise.",
    ),
)
