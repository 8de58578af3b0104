"""Does motion go on from frame to frame, or shake?"""

from __future__ import annotations

import torch
from torch import Tensor

from .tracks import follow, grid_flow

_SHARE = 0.05  # of the pixels: those that change their motion most, or move fastest
_REST = 0.2  # 64ths of the shorter side a frame: less motion than this is little motion, not jitter


@torch.no_grad()
def temporal_jitter(clip: Tensor, flow: Tensor | None = None) -> float:
    """How much of the motion is not carried on from a frame to the next.

    The flow is followed: what has moved from frame t to t + 1 is asked how it moves on to t + 2. The change of motion,
    over the 5 % of pixels where it is greatest, is divided by the motion, of both frames together, over the 5 % where
    that is greatest. Even motion has 0, and so has none at all: **a frozen clip does not shake**, and only a measure
    of how much moves (`flow_dynamic_degree`) tells it from a good one. Motion that turns about at every frame has 1.

    Args:
        clip: (F, 3, H, W), uint8 or floats in [-1, 1], at least 3 frames.
        flow: (F - 1, 2, H', W') in pixels, where it is known; DIS estimates it where None.

    Returns:
        In [0, 1], lower is better. It is of frames, not of seconds: compare clips of one rate.

    Raises:
        ValueError: The clip is too short, or the flow does not fit to it.
    """
    fields = grid_flow(clip, flow, frames=3)
    before = fields[:-1]
    after = follow(fields[1:], before)
    change = _strongest((after - before).norm(dim=1))
    motion = _strongest(before.norm(dim=1) + after.norm(dim=1))
    return float(change.sum() / (motion + _REST).sum())


def _strongest(field: Tensor) -> Tensor:
    values = field.flatten(1)
    return values.topk(max(1, int(_SHARE * values.shape[1])), dim=1).values.mean(1)
