"""Motion made wrong on purpose: what a metric must rank below the clip it came from, and what a bad corpus holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_SHIFT = 3  # pixels by which a jittered frame of 64 x 64 is off at most; larger frames in proportion


def corrupt(frames: Tensor, kind: str, seed: int = 0) -> Tensor:
    """A clip with its motion spoilt and every single frame left as it was (but for a shift, when jittered).

    Args:
        frames: (F, 3, H, W), any values.
        kind: One of `CORRUPTIONS`. "shuffled": frames in random order, never the one they came in. "jittered": each
            frame moved by up to 3 pixels of 64 either way, at random, as by a camera that shakes. "frozen": one frame
            all the time. "reversed": backwards.
        seed: Of what is drawn.

    Returns:
        (F, 3, H, W), of the same dtype.

    Raises:
        ValueError: `kind` is not known.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}; got {kind!r}")
    return CORRUPTIONS[kind](frames, np.random.default_rng(seed))


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


CORRUPTIONS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "shuffled": _shuffled,
    "jittered": _jittered,
    "frozen": _frozen,
    "reversed": _reversed,
}
