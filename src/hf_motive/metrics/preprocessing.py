"""Frames as VBench hands them to each network, to the letter: sizes, interpolation, order of the steps, constants.

What is easy to get wrong: frames are floats in 0..255 while they are resized, so nothing is rounded to 8 bits after
it, and what bicubic interpolation overshoots stays; nothing is antialiased; the longer side is cut off to whole
pixels, not rounded; the crop's odd pixel falls as Python rounds halves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

#: How imaging quality brings frames to MUSIQ's size.
RESIZING = ("longer", "shorter", "shorter_centercrop", "none")


def for_dino(frames: Tensor) -> Tensor:
    """The shorter side to 224, bilinearly, uncropped; ImageNet's mean and deviation.

    Args:
        frames: (F, 3, H, W) uint8.

    Returns:
        (F, 3, H', W') float32.
    """
    return _normalised(shorter_side(frames, 224, "bilinear"), *_IMAGENET)


def for_clip(frames: Tensor) -> Tensor:
    """The shorter side to 224, bicubically, the centre of 224 x 224; CLIP's mean and deviation.

    Args:
        frames: (F, 3, H, W) uint8.

    Returns:
        (F, 3, 224, 224) float32.
    """
    return _normalised(centre(shorter_side(frames, 224, "bicubic"), 224), *_CLIP)


def for_musiq(frames: Tensor, resize: str = "longer") -> Tensor:
    """Sides above 512 brought down to it, bilinearly; values in [0, 1].

    Args:
        frames: (F, 3, H, W) uint8.
        resize: One of `RESIZING`. "longer", VBench's default: the longer side is at most 512. "shorter": the shorter
            is. "shorter_centercrop": and a frame that was resized is cropped to 512 x 512. "none": as they are.

    Returns:
        (F, 3, H', W') float32.

    Raises:
        ValueError: There is no such `resize`.
    """
    if resize not in RESIZING:
        raise ValueError(f"resize must be one of {', '.join(RESIZING)}; got {resize!r}")
    frames = frames.to(torch.float32)
    height, width = frames.shape[-2:]
    side = max(height, width) if resize == "longer" else min(height, width)
    if resize != "none" and side > 512:
        scale = 512.0 / side
        frames = _resized(frames, (int(scale * height), int(scale * width)), "bilinear")
        if resize == "shorter_centercrop":
            frames = centre(frames, 512)
    return frames / 255.0


def shorter_side(frames: Tensor, size: int, mode: str) -> Tensor:
    """Frames (F, 3, H, W) in 0..255 with their shorter side at `size` and the longer at the whole pixels it makes."""
    height, width = frames.shape[-2:]
    if height <= width:
        return _resized(frames, (size, int(size * width / height)), mode)
    return _resized(frames, (int(size * height / width), size), mode)


def centre(frames: Tensor, size: int) -> Tensor:
    """The middle `size` x `size` of frames that are not smaller."""
    top, left = (round((side - size) / 2) for side in frames.shape[-2:])
    return frames[..., top : top + size, left : left + size]


def _resized(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    frames = frames.to(torch.float32)
    if tuple(frames.shape[-2:]) == size:
        return frames
    return F.interpolate(frames, size=size, mode=mode, align_corners=False, antialias=False)


def _normalised(frames: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    channels = (1, 3, 1, 1)
    return (frames / 255.0 - torch.tensor(mean).view(channels)) / torch.tensor(deviation).view(channels)
