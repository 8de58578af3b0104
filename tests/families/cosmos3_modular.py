"""Cosmos 3 as modular pipelines: the parts and steps of the ordinary one; which way it goes, its arguments decide.

One way is theirs alone: control videos are clean tokens before the clip's in the sequence, at the clip's positions.

The distilled pipeline knows the few noise levels that it was distilled at, and no others: its schedule is a setting of
the pipeline, and each of its steps leaps to the clip and noises it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    Cosmos3DistilledModularPipeline,
    Cosmos3OmniModularPipeline,
    FlowMatchEulerDiscreteScheduler,
    ModularPipeline,
)
from diffusers.modular_pipelines.cosmos.encoders import _SYSTEM_PROMPT_TRANSFER
from torch import Tensor

from tests.families import cosmos3, wan
from tests.families.common import Variant, finish, weighted_mse
from tests.families.cosmos2 import images

DISTILLED_AT = (0.999, 0.75, 0.5, 0.25)
PARTS = ("text_tokenizer", "transformer", "vae", "scheduler")


def assemble(pipe: ModularPipeline, dtype: torch.dtype, seed: int, **others: Any) -> ModularPipeline:
    ordinary = cosmos3.build(seed=seed)
    pipe.update_components(**{name: getattr(ordinary, name) for name in PARTS} | others)
    pipe.disable_safety_checker()
    return finish(pipe, dtype)


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cosmos3OmniModularPipeline:
    sound_tokenizer = cosmos3.build(seed=seed).sound_tokenizer
    return assemble(Cosmos3OmniModularPipeline(), dtype, seed, sound_tokenizer=sound_tokenizer)


def build_distilled(dtype: torch.dtype = torch.float32, seed: int = 0) -> Cosmos3DistilledModularPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    pipe = Cosmos3DistilledModularPipeline()
    return assemble(pipe, dtype, seed, scheduler=scheduler, distilled_sigmas=list(DISTILLED_AT))


def two_controls(pixels: Tensor) -> dict[str, Tensor]:
    """(F, 3, H, W) each, in [-1, 1]. At the same positions, their order is of no account."""
    return {"edge": -pixels, "depth": pixels.flip(-1)}


def as_controls(example: dict) -> dict:
    return {"control_videos": {name: images(example[name]) for name in ("edge", "depth")}}


def control_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε, target ε − x0; the caption has a system prompt of its own, and no word on the clip."""
    x0, noise = wan.encode_video(pipe, pixels), noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    controls = [wan.encode_video(pipe, control) for control in two_controls(pixels).values()]
    tokenizer = pipe.text_tokenizer
    turns = [{"role": "system", "content": _SYSTEM_PROMPT_TRANSFER}, {"role": "user", "content": caption}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    text = torch.tensor([*text, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|vision_start|>")])
    duration, height, width = x0.shape[2], x0.shape[3] // 2, x0.shape[4] // 2
    length, size, items = len(text), duration * height * width, len(controls) + 1
    where = cosmos3.grid(length + cosmos3.MARGIN + torch.arange(duration), height, width)
    nothing = torch.zeros(0, dtype=torch.long)
    prediction = pipe.transformer(
        input_ids=text,
        text_indexes=torch.arange(length),
        position_ids=torch.cat([torch.arange(length).float().expand(3, -1), *[where] * items], dim=1),
        und_len=length,
        sequence_length=length + items * size,
        vision_tokens=[tokens.to(pipe.transformer.dtype) for tokens in (*controls, noised)],
        vision_token_shapes=[(duration, height, width)] * items,
        vision_sequence_indexes=torch.arange(length, length + items * size),
        vision_mse_loss_indexes=torch.arange(length + len(controls) * size, length + items * size),
        vision_timesteps=torch.full((size,), timestep),
        vision_noisy_frame_indexes=[nothing] * len(controls) + [torch.arange(duration)],
        return_dict=False,
    )[0][-1]
    return weighted_mse(prediction, noise - x0, weight)


def variant(name: str, step: Callable, shape: tuple = cosmos3.SHAPE, **options: Any) -> Variant:
    return Variant(name, "Cosmos3OmniModularPipeline", build, step, *shape, **options)


def distilled(name: str, step: Callable, **options: Any) -> Variant:
    few_steps = {"num_inference_steps": len(DISTILLED_AT)}
    pipeline = "Cosmos3DistilledModularPipeline"
    return Variant(name, pipeline, build_distilled, step, *cosmos3.SHAPE, call_kwargs=few_steps, **options)


def first_image(example: dict) -> dict:
    return {"image": images(example["pixels"])[0]}


def as_video(example: dict) -> dict:
    return {"video": images(example["pixels"])}


VARIANTS = (
    variant("cosmos3-modular-text", cosmos3.training_step, remark="Text-to-video, unless told more."),
    variant("cosmos3-modular-image", cosmos3.image_step, conditioning=first_image),
    variant("cosmos3-modular-video", cosmos3.video_step, conditioning=as_video),
    variant(
        "cosmos3-modular-sound",
        cosmos3.sound_step,
        call_kwargs={"enable_sound": True},
        remark="The loss is the video's; sound is silence, noised to the same level.",
    ),
    variant(
        "cosmos3-modular-action",
        cosmos3.action_step,
        cosmos3.ACTION_SHAPE,
        call_kwargs={"num_frames": None, "height": None, "width": None},
        conditioning=cosmos3.forward_dynamics,
        example=cosmos3.moves,
    ),
    variant(
        "cosmos3-modular-controls",
        control_step,
        conditioning=as_controls,
        example=two_controls,
        remark="`conditioning` gives `control_videos`; a clip is one chunk of `num_video_frames_per_chunk`.",
    ),
    distilled(
        "cosmos3-distilled-modular",
        cosmos3.training_step,
        remark="`call_kwargs` gives `num_inference_steps`, the number of `distilled_sigmas`, "
        "which are all the noise levels there are.",
    ),
    distilled("cosmos3-distilled-modular-image", cosmos3.image_step, conditioning=first_image),
    distilled("cosmos3-distilled-modular-video", cosmos3.video_step, conditioning=as_video),
)
