"""From flow to the weight of each latent location (arXiv 2601.08828)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ClipError

#: Pixels. A clip whose magnitude exceeds this in less than one of a thousand places is static. In still, textured h264
#: clips DIS finds up to 0.27 there, mostly 0.1; in the slowest of the lab's moving ones 0.6.
STATIC_THRESHOLD = 0.3
_STATIC_SHARE = 1e-3
_ZETA = 1e-6


def magnitude(flow: Tensor) -> Tensor:
    """Length of each displacement: (F - 1, 2, H, W) to (F - 1, H, W), pixels (M in arXiv 2601.08828).

    Lengths, not signed components: two objects that move against each other do not cancel.
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow must be (F - 1, 2, H, W), got {tuple(flow.shape)}")
    return torch.linalg.vector_norm(flow.float(), dim=1)


def mean_motion(magnitude: Tensor) -> float:
    """Mean magnitude over all fields and pixels, in the flow's unit: the paper's baseline "motion magnitude"."""
    return magnitude.double().mean().item()


def motion_mask(
    magnitude: Tensor,
    *,
    reference: Literal["neighbour", "first"] = "neighbour",
    confidence: Tensor | None = None,
    static_threshold: float = STATIC_THRESHOLD,
) -> Tensor:
    """Magnitude to a mask, min–max normalised over all frames and pixels of the clip.

    W = (M − min M) / (max M − min M + ζ), ζ = 1e-6 (arXiv 2601.08828).

    There is one field less than there are frames. Between neighbours, frame f is weighted by the flow that leaves it,
    whose pixels are its own; the last frame repeats the field of the one before. From the first frame, frame f is
    weighted by its displacement since the start, and frame 0, which is displaced by nothing, gets M = 0.

    Args:
        magnitude: (F - 1, H, W), pixels.
        reference: What the flow was estimated from; see `DISFlow`.
        confidence: (F - 1, H, W) in [0, 1]. If given, M is multiplied by it. The paper's mask is without, and its
            tracker does not need it; DIS does.
        static_threshold: Pixels. A clip is static when its M is less in all but a thousandth of all places and frames:
            its mask would be the estimator's noise, and 0/0 without noise.

    Returns:
        (F, H, W), float32 in [0, 1].

    Raises:
        ClipError: `static`, or `non_finite`.
        ValueError: shapes do not fit, or an unknown reference.
    """
    if magnitude.ndim != 3 or 0 in magnitude.shape:
        raise ValueError(f"magnitude must be (F - 1, H, W), got {tuple(magnitude.shape)}")
    if reference not in ("neighbour", "first"):
        raise ValueError(f"reference must be 'neighbour' or 'first', got {reference!r}")
    motion = magnitude.float()
    if confidence is not None:
        if confidence.shape != magnitude.shape:
            raise ValueError(
                f"confidence must have the shape of magnitude, {tuple(magnitude.shape)}, got {tuple(confidence.shape)}"
            )
        motion = motion * confidence.float()
    if not torch.isfinite(motion).all():
        raise ClipError("non_finite", "the motion magnitude holds NaN or infinite values")
    # The k-th largest: a single wild vector does not make a clip move. (torch.quantile is slow at this size.)
    k = max(1, int(motion.numel() * _STATIC_SHARE))
    most = motion.flatten().topk(k).values[-1].item()
    if not most >= static_threshold or most == 0:
        raise ClipError(
            "static",
            f"nothing moves: the largest motion is {most:.2g} pixels a frame; expected at least {static_threshold:g}: "
            "leave the clip out, or lower static_threshold",
        )
    if reference == "first":
        motion = torch.cat([torch.zeros_like(motion[:1]), motion])
    else:
        motion = torch.cat([motion, motion[-1:]])
    least = motion.min()
    return (motion - least) / (motion.max() - least + _ZETA)


def latent_mask(
    mask: Tensor, grid: tuple[int, int, int], *, causal: bool | None = None, antialias: bool = False
) -> Tensor:
    """A mask of pixels to a mask of latents, following the VAE.

    Time: where the VAE keeps all frames, so does the mask. In a causal VAE the first latent frame is the first pixel
    frame, and each later one takes the mean of its group of (F - 1) / (T - 1) frames. Otherwise each latent frame
    takes the mean of F / T frames. The paper leaves this open.

    Space: bilinear, as in the paper (arXiv 2601.08828). Bilinear reads the four pixels around the centre
    of a latent cell and no others: of 8 × 8 pixels it sees 2 × 2, so an object of a few pixels can fall between.
    `antialias=True` weighs in all pixels of the cell.

    Args:
        mask: (F, H, W).
        grid: (T, h, w) of the latents.
        causal: Which of the two groupings. None: the one that divides evenly; where both do (16 frames to 4: groups of
            4, or 1 and groups of 5), the one of a ratio that is a power of two, and causal if that does not decide.
        antialias: See above.

    Returns:
        (T, h, w), float32, in the range of `mask`.

    Raises:
        ValueError: F frames do not group into T.
    """
    if mask.ndim != 3:
        raise ValueError(f"mask must be (F, H, W), got {tuple(mask.shape)}")
    frames, time = mask.shape[0], grid[0]
    mask = mask.float()
    if time != frames:
        first, group = _grouping(frames, time, causal)
        later = mask[first:].unflatten(0, (-1, group)).mean(dim=1)
        mask = torch.cat([mask[:first], later])
    if tuple(mask.shape[1:]) != tuple(grid[1:]):
        size = (grid[1], grid[2])
        mask = F.interpolate(mask[:, None], size=size, mode="bilinear", align_corners=False, antialias=antialias)[:, 0]
    return mask


def latent_frames(frames: int, time: int, causal: bool | None = None) -> list[range]:
    """Which of F pixel frames each of T latent frames stands for, as `latent_mask` has it.

    Raises:
        ValueError: F frames do not group into T.
    """
    if time == frames:
        return [range(frame, frame + 1) for frame in range(frames)]
    first, group = _grouping(frames, time, causal)
    later = [range(start, start + group) for start in range(first, frames, group)]
    return [range(1)] * first + later


def _grouping(frames: int, time: int, causal: bool | None) -> tuple[int, int]:
    """How many first frames stand alone (0 or 1), and how many of the others make a group."""
    ways = {}
    if 1 < time < frames and (frames - 1) % (time - 1) == 0:
        ways[True] = (1, (frames - 1) // (time - 1))
    if 0 < time < frames and frames % time == 0:
        ways[False] = (0, frames // time)
    if causal is not None:
        ways = {kind: way for kind, way in ways.items() if kind == causal}
    if not ways:
        kind = {None: "", True: " causally", False: " in plain groups"}[causal]
        raise ValueError(
            f"{frames} frames do not group into {time} latent frames{kind}: expected (F - 1) / (T - 1) or F / T to be "
            "whole; choose num_frames as the VAE does (4k + 1 for Wan)"
        )
    # True sorts before False: causal wins where the ratios do not decide.
    return min(ways.items(), key=lambda item: (item[1][1].bit_count() != 1, not item[0]))[1]
