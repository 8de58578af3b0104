"""MiniMax-H3: one sequence of text, sound and video rows; the velocity points at the data, and t = 1 is the clip.

Its VAE takes pixels normalised as for ImageNet, in chunks of 17 frames to 5 latent frames, and its clips last at least
five seconds. Sound is made with the video, and is noised here to the same level.
"""

from __future__ import annotations

import warnings

import torch
from diffusers import (
    AutoencoderKLMiniMaxH3,
    AutoencoderKLMiniMaxH3Audio,
    MiniMaxH3ModularPipeline,
    MiniMaxH3Scheduler,
    MiniMaxH3Transformer3DModel,
)
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLTextConfig, Qwen3VLVisionConfig

from tests.families.common import (
    Variant,
    character_tokenizer,
    finish,
    per_channel,
    posterior_mode,
    randomise,
    weighted_mse,
)

NUM_FRAMES, HEIGHT, WIDTH = 124, 32, 64  # 7 · 17 + 5 frames: no fewer are allowed
LATENTS = (4, 37, 2, 4)  # (C, T, h, w): 7 · 5 + 2 latent frames
AUDIO = (207, 4)  # latents of each of two channels, 40 a second; their size
TEXT_DIM = 8
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny_vae(seed: int) -> AutoencoderKLMiniMaxH3:
    vae = AutoencoderKLMiniMaxH3(
        latent_channels=4,
        block_out_channels=(4,) * 6,
        layers_per_block=1,
        norm_num_groups=2,
        decoder_num_layers=1,
        decoder_num_attention_heads=1,
        decoder_attention_head_dim=8,
        latents_mean=(-0.3, -0.1, 0.1, 0.3),
        latents_std=(0.6, 0.9, 1.2, 1.5),
    )
    return randomise(vae, seed)


def tiny_audio_vae(seed: int) -> AutoencoderKLMiniMaxH3Audio:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, on an old kind of weight normalisation
        vae = AutoencoderKLMiniMaxH3Audio(
            encoder_dim=2,
            latent_dim=8,
            latent_channels=4,
            num_attention_heads=2,
            decoder_dim=128,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    return randomise(vae, seed)


def tiny_qwen(vocabulary: int, seed: int) -> Qwen3VLForConditionalGeneration:
    """Narrow, and 51 layers deep: the prompt is the hidden state behind the 50th."""
    text = Qwen3VLTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_DIM,
        intermediate_size=8,
        num_hidden_layers=51,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]},
    )
    vision = Qwen3VLVisionConfig(
        depth=1,
        hidden_size=8,
        intermediate_size=8,
        num_heads=1,
        out_hidden_size=TEXT_DIM,
        deepstack_visual_indexes=[0],
    )
    config = Qwen3VLConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    return randomise(Qwen3VLForConditionalGeneration(config), seed, gain=0.5)


class TextProcessor:
    """In the place of Qwen3-VL's, which needs torchvision: of text it only says that none is an image."""

    def create_mm_token_type_ids(self, ids: list[list[int]]) -> list[list[int]]:
        return [[0] * len(one) for one in ids]


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> MiniMaxH3ModularPipeline:
    tokenizer = character_tokenizer()
    transformer = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=4,
        text_dim=TEXT_DIM,
        freq_dim=16,
        time_embed_hidden_dim=16,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    pipe = MiniMaxH3ModularPipeline()
    pipe.update_components(
        text_encoder=tiny_qwen(len(tokenizer), seed + 1),
        tokenizer=tokenizer,
        processor=TextProcessor(),
        vae=tiny_vae(seed + 2),
        audio_vae=tiny_audio_vae(seed + 4),
        transformer=randomise(transformer, seed + 3),
        scheduler=MiniMaxH3Scheduler(shift=12.0),
        audio_scheduler=MiniMaxH3Scheduler(shift=3.0),
    )
    return finish(pipe, dtype)


# ------------------------------------------------------------------------------------------------ what a trainer does


def rows(latents: Tensor) -> Tensor:
    """(1, C, T, h, w) to (1, T·h/2·w/2, 4C): patches of two by two."""
    return latents.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def latents_of(rows: Tensor, frames: int, height: int, width: int) -> Tensor:
    grid = rows.reshape(1, frames, height // 2, width // 2, -1, 2, 2)
    return grid.permute(0, 4, 1, 2, 5, 3, 6).reshape(1, -1, frames, height, width)


def positions(text: int, sound: int, frames: int, height: int, width: int) -> Tensor:
    """(S, 3): time, row and column. One unit is a letter, or a fortieth of a second; media begin behind the text."""
    side = (height * width) ** 0.5
    y, x = (32 * ((1 - n / side) / 2 + torch.arange(n // 2) * 2 / side) for n in (height, width))
    span = 5 / 3 * torch.tensor([1, 4, 4, 4, 4] * (frames // 5 + 1))[: frames - 1]  # pixel frames in a latent frame
    time = torch.cat([torch.zeros(1), span.cumsum(0)])
    video = torch.stack(torch.meshgrid(time, y, x, indexing="ij"), dim=-1).reshape(-1, 3)
    sounds = [torch.stack([torch.arange(sound), torch.zeros(sound), edge.expand(sound)], -1) for edge in (x[0], x[-1])]
    media = torch.cat([*sounds, video])
    media[:, 0] += text
    letters = torch.zeros(text, 3)
    letters[:, 0] = torch.arange(text)
    return torch.cat([letters, media])


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = t·x0 + (1 − t)·ε, target x0 − ε, for the video alone; sound is silence, noised like it."""
    model, config, noise = pipe.transformer, pipe.vae.config, noise[None].float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    latents = posterior_mode(pipe.vae, ((pixels + 1) / 2 - mean) / std)
    x0 = (latents - per_channel(config.latents_mean)) / per_channel(config.latents_std)
    noised = rows(timestep * x0 + (1 - timestep) * noise)
    generator = torch.Generator().manual_seed(0)
    torch.randn(noise.shape, generator=generator)  # the pipeline draws the sound behind the video
    sound = (1 - timestep) * torch.randn(2 * AUDIO[0], AUDIO[1], generator=generator)[None]
    ids = torch.tensor([pipe.tokenizer(caption, add_special_tokens=False).input_ids])
    with torch.no_grad():
        text = pipe.text_encoder.model(ids, output_hidden_states=True).hidden_states[50]
    kinds = torch.tensor([1] * ids.shape[1] + [2] * sound.shape[1] + [0] * noised.shape[1])
    prediction = model(
        hidden_states=noised,
        audio_hidden_states=sound,
        encoder_hidden_states=text,
        timestep=torch.tensor([timestep]),
        timestep_indices=torch.zeros_like(kinds),
        token_tags=kinds,
        position_ids=positions(ids.shape[1], AUDIO[0], *noise.shape[2:]),
        video_indices=(kinds == 0).nonzero()[:, 0],
        audio_indices=(kinds == 2).nonzero()[:, 0],
        text_indices=(kinds == 1).nonzero()[:, 0],
        return_dict=False,
    )[0]
    return weighted_mse(latents_of(prediction, *noise.shape[2:]), x0 - noise, weight)


VARIANTS = (
    Variant(
        "minimax-h3-modular",
        "MiniMaxH3ModularPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        remark="Text-to-video, of clips of 17·n + 5 frames and at least five seconds. The loss is the video's; "
        "sound is silence, noised to the same level, which in sampling it is not.",
    ),
)
