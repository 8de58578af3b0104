"""Space cut into regions: what a user has drawn, or the moving objects that the motion mask itself shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .motion.mask import latent_mask
from .segments import rate_of
from .video import ClipStandard, clip_seconds, load_clip

#: What no region takes.
REST = "rest"
#: Share of the largest weight from which a place counts as moving, where regions are found from the motion.
MOVING = 0.1
#: Labels that a user may draw; each is a backward pass a segment.
MOST_LABELS = 32


@dataclass(frozen=True)
class Regions:
    """A partition of the latent grid in space, which may change from frame to frame.

    Attributes:
        names: R names.
        masks: (R, T, h, w) float32 in [0, 1]: which share of each place is the region's. They add up to 1 everywhere.
    """

    names: list[str]
    masks: Tensor

    def boxes(self) -> list[tuple[float, float, float, float] | None]:
        """Of each region the box that it stays in, all frames together: (left, top, right, bottom) in [0, 1] of the
        standard clip's width and height; None where no place is mostly the region's."""
        found: list[tuple[float, float, float, float] | None] = []
        for mask in self.masks:
            rows, columns = ((mask.amax(0) > 0.5).any(side).nonzero().flatten() for side in (1, 0))
            height, width = mask.shape[1:]
            if not len(rows):
                found.append(None)
                continue
            left, right = columns[0].item() / width, (columns[-1].item() + 1) / width
            top, bottom = rows[0].item() / height, (rows[-1].item() + 1) / height
            found.append((left, top, right, bottom))
        return found


def whole_frame(grid: tuple[int, int, int]) -> Regions:
    """One region, which is all."""
    return Regions(["all"], torch.ones(1, *grid))


def moving_regions(weight: Tensor, most: int = 3) -> Regions:
    """The objects that move: connected places of a motion mask, followed from frame to frame where they overlap.

    A place moves where its weight is a tenth of the largest. Objects that touch are one region; one that jumps by more
    than its size between two latent frames is several; and under a moving camera everything is one.

    Args:
        weight: (T, h, w) in [0, 1], a motion mask.
        most: How many regions at most, those with the most weight; everything else is the last region, `rest`.

    Returns:
        `object 1`, `object 2`, … by falling weight, and `rest`.
    """
    from scipy import ndimage

    values = weight.numpy()
    near = np.ones((3, 3, 3), dtype=bool)
    near[[0, 2]] = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]  # from frame to frame: the same place
    labels, count = ndimage.label(values > MOVING * values.max(), structure=near)
    numbers = np.arange(1, count + 1)
    sizes = ndimage.sum_labels(values, labels, numbers)
    largest = numbers[np.argsort(-sizes, kind="stable")][:most]
    masks = [torch.from_numpy(labels == number).float() for number in largest]
    rest = torch.ones_like(weight) - sum(masks, torch.zeros_like(weight))
    return Regions([*(f"object {n}" for n in range(1, len(masks) + 1)), REST], torch.stack([*masks, rest]))


def labelled_regions(
    labels: Any, video: Any, standard: ClipStandard, grid: tuple[int, int, int], start: float = 0.0
) -> Regions:
    """What a user has drawn, on the latent grid.

    Args:
        labels: Whole numbers (H, W) for all frames, or (F, H, W), spread evenly over the clip's length; an image. Each
            number is a region, 0 is the rest. H × W has the proportions of the source's frames, at any size: labels go
            the clip's way, resized to cover the standard's size and cropped in the middle.
        video: The clip, whose length is asked for where labels have frames.
        standard: With a rate.
        grid: (T, h, w).
        start: Seconds at which the standard clip begins.

    Returns:
        `region 1`, `region 2`, … by their numbers, and `rest` (also where nothing is 0: it is then empty). A place on
        a border belongs to each side by its area.

    Raises:
        ValueError: They are not such numbers, or too many.
    """
    drawn = np.asarray(labels)
    if drawn.ndim not in (2, 3) or 0 in drawn.shape or drawn.dtype.kind not in "iub":
        raise ValueError(
            f"regions must be whole numbers (H, W) or (F, H, W), got {drawn.dtype} of shape {drawn.shape}: a number a "
            "region, 0 for the rest"
        )
    numbers = [int(number) for number in np.unique(drawn) if number != 0]
    if len(numbers) > MOST_LABELS or (numbers and numbers[0] < 0):
        raise ValueError(
            f"regions must be numbered from 1, at most {MOST_LABELS} of them, got {len(numbers)} from {numbers[0]}"
        )
    fps = rate_of(standard)
    if drawn.ndim == 2:
        drawn, source_fps, start = np.broadcast_to(drawn, (standard.num_frames, *drawn.shape)), fps, 0.0
    else:
        source_fps = len(drawn) / clip_seconds(video, fps)
    masks = []
    for number in [*numbers, 0]:
        picture = np.where(drawn == number, np.uint8(255), np.uint8(0))
        clip = load_clip(np.broadcast_to(picture[..., None], (*picture.shape, 3)), standard, source_fps, start=start)
        in_time = latent_mask((clip[:, 0] + 1) / 2, (grid[0], *clip.shape[2:]))
        masks.append(F.interpolate(in_time[:, None], size=grid[1:], mode="area")[:, 0])
    stacked = torch.stack(masks)
    return Regions([*(f"region {n}" for n in numbers), REST], stacked / stacked.sum(0))
