"""Cosmos 3: caption, clip, sound and actions are tokens of one sequence; the transformer reads the caption itself.

Positions are rotary and threefold: those of the video begin 15000 after the caption's. Only noised tokens carry a
timestep, and only they are predicted: given frames and given actions are clean. Sound has a scheduler of its own.
"""

from __future__ import annotations

import torch
from diffusers import (
    Cosmos3AVAEAudioTokenizer,
    Cosmos3OmniPipeline,
    Cosmos3OmniTransformer,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.families import wan, wan22_5b
from tests.families.common import Variant, character_tokenizer, finish, randomise
from tests.families.cosmos import mean_over
from tests.families.cosmos2 import given_mask, images

SHAPE = (9, 64, 96, (6, 3, 4, 6))  # frames, height, width; (C, T, h, w)
FPS, MARGIN, TIMESTEP_SCALE = 24, 15000, 0.001
SOUND = (4, 9)  # channels, latent frames of nine at 24 a second
ACTION_SHAPE = (9, 192, 320, (6, 3, 12, 20))  # the smallest canvas that the pipeline makes for actions
DOMAIN, ACTION_DIM = "av", 12  # an "av" has nine values an action; the model's are padded with zeros


def tokenizer_with_a_chat() -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer(4096)
    tokenizer.add_tokens(["<|vision_start|>"], special_tokens=True)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }} {% endfor %}"
    return tokenizer


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cosmos3OmniPipeline:
    tokenizer = tokenizer_with_a_chat()
    transformer = Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=32,
        latent_channel=6,
        latent_patch_size=2,
        patch_latent_dim=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=2,
        rope_axes_dim=(4, 2, 2),
        unified_3d_mrope_temporal_modality_margin=MARGIN,
        timestep_scale=TIMESTEP_SCALE,
        action_gen=True,
        action_dim=ACTION_DIM,
        sound_gen=True,
        sound_dim=SOUND[0],
        vocab_size=len(tokenizer),
    )
    sound_tokenizer = Cosmos3AVAEAudioTokenizer(
        sampling_rate=1536,
        vocoder_input_dim=SOUND[0],
        dec_dim=4,
        dec_c_mults=(1, 1),
        dec_strides=(8, 8),
        enc_latent_dim=2 * SOUND[0],
        encoder_enabled=False,
    )
    pipe = Cosmos3OmniPipeline(
        transformer=randomise(transformer, seed + 3),
        text_tokenizer=tokenizer,
        vae=wan22_5b.tiny_vae(seed + 2),
        scheduler=UniPCMultistepScheduler(
            use_karras_sigmas=True,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            sigma_max=200.0,
            sigma_min=0.147,
        ),
        sound_tokenizer=sound_tokenizer,
        enable_safety_checker=False,
    )
    return finish(pipe, dtype)


def grid(times: Tensor, height: int = 1, width: int = 1) -> Tensor:
    """(3, T·h·w): when and where every token is."""
    axes = torch.meshgrid(times.float(), torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def training_step(
    pipe, pixels, caption, noise, timestep, weight=None, sigma=None, frames=0, sound=False, actions=None
) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε, target ε − x0, for the latent frames after the given `frames`."""
    model, count = pipe.transformer, len(pixels)
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    given = given_mask(x0, frames)
    noised = given * x0 + (1 - given) * ((1 - sigma) * x0 + sigma * noise)
    options = {"action_mode": "forward_dynamics", "action_view_point": "ego_view"} if actions is not None else {}
    text, _ = pipe.tokenize_prompt(
        caption, num_frames=count, height=pixels.shape[-2], width=pixels.shape[-1], fps=FPS, **options
    )
    length, (_, _, duration, height, width) = len(text), x0.shape
    height, width, start = height // 2, width // 2, len(text) + MARGIN
    area, size = height * width, duration * height * width
    positions = [torch.arange(length).float().expand(3, -1), grid(start + torch.arange(duration), height, width)]
    inputs = {}
    if sound:  # silence, as far as anybody knows, with the noise that the pipeline draws after the video's
        generator = torch.Generator().manual_seed(0)
        torch.randn(x0.shape, generator=generator)
        where = torch.arange(length + size, length + size + SOUND[1])
        inputs = {
            "sound_tokens": [(sigma * torch.randn(SOUND, generator=generator)).to(model.dtype)],
            "sound_token_shapes": [(SOUND[1], 1, 1)],
            "sound_sequence_indexes": where,
            "sound_mse_loss_indexes": where,
            "sound_timesteps": torch.full((SOUND[1],), timestep),
            "sound_noisy_frame_indexes": [torch.arange(SOUND[1])],
        }
        positions.append(grid(start + torch.arange(SOUND[1]) / model.config.sound_latent_fps * FPS))
    if actions is not None:  # each leads to a frame: four to a latent frame, the first to the second frame
        steps = len(actions)
        inputs = {
            "action_tokens": [torch.nn.functional.pad(actions, (0, ACTION_DIM - actions.shape[1])).to(model.dtype)],
            "action_token_shapes": [(steps, 1, 1)],
            "action_sequence_indexes": torch.arange(length + size, length + size + steps),
            "action_mse_loss_indexes": torch.zeros(0, dtype=torch.long),
            "action_timesteps": torch.zeros(0),
            "action_noisy_frame_indexes": [torch.zeros(0, dtype=torch.long)],
            "action_domain_ids": [torch.tensor([1])],
        }
        positions.append(grid(start + (1 + torch.arange(steps)) / 4))
    positions = torch.cat(positions, dim=1)
    prediction = model(
        input_ids=torch.tensor(text),
        text_indexes=torch.arange(length),
        position_ids=positions,
        und_len=length,
        sequence_length=positions.shape[1],
        vision_tokens=[noised.to(model.dtype)],
        vision_token_shapes=[(duration, height, width)],
        vision_sequence_indexes=torch.arange(length, length + size),
        vision_mse_loss_indexes=torch.arange(length + frames * area, length + size),
        vision_timesteps=torch.full((size - frames * area,), timestep),
        vision_noisy_frame_indexes=[torch.arange(frames, duration)],
        return_dict=False,
        **inputs,
    )[0][0]
    return mean_over(1 - given, (prediction.float() - (noise - x0)) ** 2, weight)


def image_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return training_step(pipe, pixels, caption, noise, timestep, weight, sigma, frames=1)


def video_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return training_step(pipe, pixels, caption, noise, timestep, weight, sigma, frames=2)


def sound_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return training_step(pipe, pixels, caption, noise, timestep, weight, sigma, sound=True)


def moves(pixels: Tensor) -> dict[str, Tensor]:
    """Nine values for each transition between frames."""
    return {"actions": torch.randn(len(pixels) - 1, 9, generator=torch.Generator().manual_seed(7))}


def action_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    actions = moves(pixels)["actions"]
    return training_step(pipe, pixels, caption, noise, timestep, weight, sigma, frames=1, actions=actions)


def forward_dynamics(example: dict) -> dict:
    """Where the first frame goes when the actions are taken."""
    condition = CosmosActionCondition(
        mode="forward_dynamics",
        chunk_size=len(example["actions"]),
        domain_name=DOMAIN,
        resolution_tier=256,
        raw_actions=example["actions"],
        image=images(example["pixels"])[0],
    )
    return {"action": condition}


OMNI = "Cosmos3OmniPipeline"
VARIANTS = (
    Variant("cosmos3-text", OMNI, build, training_step, *SHAPE, remark="Text-to-video, unless told more."),
    Variant(
        "cosmos3-image",
        OMNI,
        build,
        image_step,
        *SHAPE,
        conditioning=lambda example: {"image": images(example["pixels"])[0]},
    ),
    Variant(
        "cosmos3-video",
        OMNI,
        build,
        video_step,
        *SHAPE,
        conditioning=lambda example: {"video": images(example["pixels"])},
        remark="Of the video, the frames at condition_frame_indexes_vision are given: the first two latent frames.",
    ),
    Variant(
        "cosmos3-sound",
        OMNI,
        build,
        sound_step,
        *SHAPE,
        call_kwargs={"enable_sound": True},
        remark="The loss is the video's; sound is silence, noised to the same level.",
    ),
    Variant(
        "cosmos3-action",
        OMNI,
        build,
        action_step,
        *ACTION_SHAPE,
        call_kwargs={"num_frames": None, "height": None, "width": None},
        conditioning=forward_dynamics,
        example=moves,
        remark="num_frames, height and width follow from the action: pass None for them in call_kwargs.",
    ),
)
