"""Does a clip move as an interpolation of it does? VBench's motion smoothness with any network, to the letter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .dynamics import padded

#: Two frames (1, 3, H, W) in [0, 1], H and W multiples of 16, to the one in the middle between them.
Interpolation = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def smoothness(clip: Tensor, network: Interpolation, device: torch.device | str = "cpu") -> float:
    """How near the odd frames are to what an interpolation of the even ones puts in their place.

    Frames are counted from 0. Where the last frame is an odd one nothing follows it, and it is not compared. What the
    network gives is cut off to 8 bits, not rounded, as VBench does: it makes up to one grey level.

    Args:
        clip: (F, 3, H, W) uint8, three frames or more.
        network: Gives the frame between two.
        device: Where frames are taken for it.

    Returns:
        (255 − d) / 255, in [0, 1], with the mean absolute difference d in 8-bit units.

    Raises:
        ValueError: There are fewer than three frames, or the network's frame is not finite or has another shape.
    """
    if len(clip) < 3:
        raise ValueError(f"motion smoothness takes three frames or more, the clip has {len(clip)}")
    even, odd = clip[::2].split(1), clip[1::2]
    differences = [
        _difference(dropped, _between(before, after, network, device))
        for before, after, dropped in zip(even[:-1], even[1:], odd, strict=False)
    ]
    return (255 - sum(differences) / len(differences)) / 255


def _between(before: Tensor, after: Tensor, network: Interpolation, device: torch.device | str) -> Tensor:
    """The frame (3, H, W) uint8 between two of (1, 3, H, W) uint8."""
    height, width = before.shape[-2:]
    ends = [padded(frame.to(device) / 255.0, 16) for frame in (before, after)]
    middle = network(*ends)
    if not isinstance(middle, Tensor):
        raise TypeError(
            f"the network gave a {type(middle).__name__}; expected the frame between two as a tensor (1, 3, H, W): of "
            'what AMT gives that is ["imgt_pred"]'
        )
    if middle.shape != ends[0].shape:
        raise ValueError(
            f"the network gave a frame of {tuple(middle.shape)} between frames of {tuple(ends[0].shape)}; "
            "expected the same shape"
        )
    if not torch.isfinite(middle).all():
        raise ValueError("the interpolated frame holds NaN or infinite values")
    top, left = (-height % 16) // 2, (-width % 16) // 2
    middle = middle[0, :, top : top + height, left : left + width]
    return (middle.float() * 255).clamp(0, 255).to(torch.uint8).cpu()


def _difference(a: Tensor, b: Tensor) -> float:
    return (a.int() - b.int()).abs().double().mean().item()
