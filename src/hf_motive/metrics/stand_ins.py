"""DIS optical flow where VBench has a network: what its motion measures become without any weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..motion import DISFlow

_DIS = DISFlow(confidence=False)
BACKEND = "DIS medium (OpenCV)"


def dis_flow(before: Tensor, after: Tensor) -> Tensor:
    """The flow (1, 2, H, W) between two frames (1, 3, H, W) in 0..255, in pixels: a `dynamics.PairFlow`."""
    return _DIS(torch.cat([before, after]) / 127.5 - 1).flow


def between(before: Tensor, after: Tensor) -> Tensor:
    """The frame in the middle of two (1, 3, H, W) in [0, 1]: a `smoothness.Interpolation`.

    Both are warped half of the way along the flow between them, and their mean is taken. The flow from the middle to
    either end is what the two flows, forth and back, agree on where they are: a quarter of their difference.
    """
    forth, back = _DIS(torch.cat([before, after, before]) * 2 - 1).flow.split(1)
    half = (forth - back) / 4
    return (_warped(before, -half) + _warped(after, half)) / 2


def _warped(frame: Tensor, flow: Tensor) -> Tensor:
    """What a frame (1, 3, H, W) shows where a flow (1, 2, H, W) leads; beyond its edges, what it shows there."""
    height, width = frame.shape[-2:]
    flow = flow.to(frame.device)
    x = torch.arange(width, device=frame.device) + flow[:, 0]
    y = torch.arange(height, device=frame.device)[:, None] + flow[:, 1]
    # Pixel centres, with the edges of the image at -1 and 1.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(frame, grid, mode="bilinear", padding_mode="border", align_corners=False)
