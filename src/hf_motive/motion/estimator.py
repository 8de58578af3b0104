"""What an estimator of motion is: frames in, flow out."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Flow(NamedTuple):
    """Where each pixel goes.

    Attributes:
        flow: (F - 1, 2, H, W), float32, pixels; channel 0 is x (to the right), channel 1 is y (down). Between
            neighbours, field f lies on the pixels of frame f and leads to frame f + 1: pixels per frame. From the
            first frame, field f lies on the pixels of frame 0 and leads to frame f + 1: pixels since the clip's start.
        confidence: (F - 1, H, W) in [0, 1], or None where the estimator has none.
    """

    flow: Tensor
    confidence: Tensor | None = None


@runtime_checkable
class MotionEstimator(Protocol):
    """Anything that turns frames into flow. Called from one thread at a time, which need not be the main one.

    Attributes:
        name: The estimator with its settings, e.g. "dis-medium-neighbour-128". It becomes part of an index's identity:
            two estimators whose flow may differ need different names.
    """

    name: str

    def __call__(self, frames: Tensor) -> Flow:
        """Estimate the flow of one clip: frames (F, 3, H, W) in [-1, 1], at least two of them."""
        ...
