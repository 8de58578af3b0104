"""Motion made wrong on purpose: what a metric must rank below the clip it came from, and what a bad corpus holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .render import LabClip, render_background, render_clip
from .spec import COLORS, SHAPES

_FLICKER = 0.3
_SHIFT = 3  # pixels by which a jittered frame of 64 x 64 is off at most; larger frames in proportion


def corrupt(frames: Tensor, kind: str, seed: int = 0) -> Tensor:
    """A clip with its motion spoilt and every single frame left as it was (but for a shift, when jittered, and for its
    light, when flickering).

    Args:
        frames: (F, 3, H, W), any values.
        kind: One of `CORRUPTIONS`. "shuffled": frames in random order, never the one they came in. "jittered": each
            frame moved by up to 3 pixels of 64 either way, at random, as by a camera that shakes. "frozen": one frame
            all the time. "reversed": backwards. "flickering": each frame lighter or darker at random, by up to 30 % of
            its contrast with black.
        seed: Of what is drawn.

    Returns:
        (F, 3, H, W), of the same dtype.

    Raises:
        ValueError: `kind` is not known.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}; got {kind!r}")
    return CORRUPTIONS[kind](frames, np.random.default_rng(seed))


def corrupt_object(clip: LabClip, kind: str, seed: int = 0) -> Tensor:
    """A simulated clip in which what was there does not stay; the background does.

    Args:
        clip: Of at least 4 frames.
        kind: One of `OBJECT_CORRUPTIONS`. "vanishing": from a frame in the middle half on the object is gone, for good
            in half of the clips and for 2 to 4 frames in the others. "exchanged": from such a frame on it is one of
            another shape and colour, which moves alike.
        seed: Of what is drawn.

    Returns:
        (F, 3, H, W) in [-1, 1].

    Raises:
        ValueError: `kind` is not known.
    """
    if kind not in OBJECT_CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(OBJECT_CORRUPTIONS)}; got {kind!r}")
    rng = np.random.default_rng(seed)
    count = len(clip.frames)
    first, last = int(rng.integers(count // 4, 3 * count // 4)), count
    if kind == "vanishing":
        if rng.random() < 0.5:
            last = min(count, first + int(rng.integers(2, 5)))
        other = render_background(clip.spec)
    else:
        shape = rng.choice([name for name in SHAPES if name != clip.spec.shape])
        color = rng.choice([name for name in COLORS if name != clip.spec.color])
        other = render_clip(replace(clip.spec, shape=str(shape), color=str(color))).frames
    return torch.cat([clip.frames[:first], other[first:last], clip.frames[last:]])


def _shuffled(frames: Tensor, rng: np.random.Generator) -> Tensor:
    order = np.arange(len(frames))
    while len(frames) > 1 and (order == np.arange(len(frames))).all():
        order = rng.permutation(len(frames))
    return frames[torch.from_numpy(order)]


def _jittered(frames: Tensor, rng: np.random.Generator) -> Tensor:
    height, width = frames.shape[-2:]
    reach = max(1, round(_SHIFT * min(height, width) / 64))
    moved = []
    for frame in frames:
        dy, dx = rng.integers(-reach, reach + 1, size=2)
        # Edges are repeated, so that no border comes in that the clip does not have.
        rows = (torch.arange(height) - int(dy)).clamp(0, height - 1)
        columns = (torch.arange(width) - int(dx)).clamp(0, width - 1)
        moved.append(frame[:, rows][:, :, columns])
    return torch.stack(moved)


def _frozen(frames: Tensor, rng: np.random.Generator) -> Tensor:
    return frames[int(rng.integers(len(frames)))].expand_as(frames).clone()


def _reversed(frames: Tensor, rng: np.random.Generator) -> Tensor:
    return frames.flip(0)


def _flickering(frames: Tensor, rng: np.random.Generator) -> Tensor:
    whole = not frames.is_floating_point()
    black, white = (0, 255) if whole else (-1, 1)
    gain = torch.from_numpy(rng.uniform(-_FLICKER, _FLICKER, len(frames))).float()[:, None, None, None] + 1
    lit = ((frames - black) * gain + black).clamp(black, white)
    return lit.round().to(frames.dtype) if whole else lit.to(frames.dtype)


CORRUPTIONS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "shuffled": _shuffled,
    "jittered": _jittered,
    "frozen": _frozen,
    "reversed": _reversed,
    "flickering": _flickering,
}
OBJECT_CORRUPTIONS = ("vanishing", "exchanged")
