"""Flow as the motion measures look at it: on a grid of 64, along what moves, the same whatever the size of a clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..motion import DISFlow

#: The shorter side of the grid; flow is in 64ths of it, so that a clip's size says nothing.
GRID = 64
_SEARCHED = 128  # pixels of the shorter side in which DIS looks: it enlarges smaller frames to as many
_DIS = DISFlow(confidence=False)


def grid_frames(clip: Tensor) -> Tensor:
    """A clip (F, 3, H, W), uint8 or floats in [-1, 1], as (F, 3, h, w) in [0, 1] with a shorter side of `GRID`.

    Raises:
        ValueError: It has another shape.
    """
    if clip.ndim != 4 or clip.shape[1] != 3:
        raise ValueError(f"a clip must be (F, 3, H, W), got {tuple(clip.shape)}")
    frames = clip.float() / 255 if clip.dtype == torch.uint8 else (clip.float() + 1) / 2
    return _resized(frames, GRID)


def grid_flow(clip: Tensor, flow: Tensor | None = None, *, frames: int = 2) -> Tensor:
    """A clip's flow (F - 1, 2, h, w), in 64ths of the shorter side a frame.

    Args:
        clip: (F, 3, H, W), uint8 or floats in [-1, 1].
        flow: (F - 1, 2, H', W'), where it is known, in pixels of its own size; DIS estimates it where None.
        frames: How many the clip must have at least.

    Raises:
        ValueError: The clip is too short, or the flow does not fit to it.
    """
    if clip.ndim != 4 or clip.shape[1] != 3:
        raise ValueError(f"a clip must be (F, 3, H, W), got {tuple(clip.shape)}")
    if len(clip) < frames:
        raise ValueError(f"a clip of {len(clip)} does not show this: it takes {frames} frames or more")
    if flow is None:
        seen = clip.float() / 127.5 - 1 if clip.dtype == torch.uint8 else clip.float()
        if min(seen.shape[-2:]) > _SEARCHED:
            seen = _resized(seen, _SEARCHED)
        flow = _DIS(seen.clamp(-1, 1)).flow
    if flow.ndim != 4 or flow.shape[1] != 2 or len(flow) != len(clip) - 1:
        raise ValueError(f"flow must be ({len(clip) - 1}, 2, H, W) for this clip, got {tuple(flow.shape)}")
    flow = flow.float() * (GRID / min(flow.shape[-2:]))
    return _resized(flow, GRID)


def follow(field: Tensor, flow: Tensor) -> Tensor:
    """What fields (N, C, h, w) hold where `flow` (N, 2, h, w) leads; beyond the edges, what they hold there."""
    height, width = field.shape[-2:]
    x = torch.arange(width, device=field.device) + flow[:, 0]
    y = torch.arange(height, device=field.device)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _resized(images: Tensor, side: int) -> Tensor:
    height, width = images.shape[-2:]
    if min(height, width) == side:
        return images
    scale = side / min(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if scale < 1:
        return F.interpolate(images, size=size, mode="area")
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
