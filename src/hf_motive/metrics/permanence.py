"""Does what is there stay there?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .tracks import follow, grid_flow, grid_frames

_WINDOW = 7  # cells of the grid: what is lost must be as large as this to count in full
_SEARCH = 1  # cells by which the flow may be wrong


@torch.no_grad()
def object_permanence(clip: Tensor, flow: Tensor | None = None) -> float:
    """How much of what a frame shows is found in the next, and the other way about, at the worst place and time.

    Each frame is compared with the next one taken back along the flow, to within one cell of a grid of 64, and each
    with the one before it taken along: what cannot be found is lost, or came from nowhere. The difference, as a share
    of the way from black to white, is averaged over windows of 7 × 7 cells, so that the thin strip which a moving
    thing covers and uncovers counts for little. A change of light of the whole frame is taken out. 1 less the greatest
    loss: one object that is gone for a single frame decides. **A frozen clip has 1.**

    Args:
        clip: (F, 3, H, W), uint8 or floats in [-1, 1], at least 2 frames.
        flow: (F - 1, 2, H', W') in pixels, where it is known; DIS estimates it where None.

    Returns:
        In [0, 1], higher is better.

    Raises:
        ValueError: The clip is too short, or the flow does not fit to it.
    """
    fields = grid_flow(clip, flow)
    frames = grid_frames(clip)
    lost = _lost(frames[:-1], frames[1:], fields)
    # Back along the same flow, turned about: motion between two frames is short, so it is nearly that of the place.
    come = _lost(frames[1:], frames[:-1], -fields)
    return 1 - float(torch.maximum(lost, come).clamp(0, 1))


def _lost(frames: Tensor, others: Tensor, fields: Tensor) -> Tensor:
    found = follow(others, fields)
    light = (frames.mean((2, 3), keepdim=True) + 1e-3) / (found.mean((2, 3), keepdim=True) + 1e-3)
    found = F.pad(found * light, (_SEARCH,) * 4, mode="replicate")
    height, width = frames.shape[-2:]
    reach = range(2 * _SEARCH + 1)
    apart = torch.stack(
        [(frames - found[..., y : y + height, x : x + width]).abs().mean(1) for y in reach for x in reach]
    ).amin(0)
    return F.avg_pool2d(apart[:, None], _WINDOW, 1, _WINDOW // 2).max()
