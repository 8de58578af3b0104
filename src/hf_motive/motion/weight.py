"""From a clip's pixels to the weight of its loss: flow, its size, the mask, the latent grid."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

from torch import Tensor

from .clip import clip_motion
from .dis import DISFlow
from .estimator import MotionEstimator
from .mask import latent_mask, mean_motion


@dataclass(frozen=True)
class MotionWeight:
    """How much moves where, on a latent grid.

    Attributes:
        estimator: Frames to flow.
        grid: (T, h, w) of the latents.
        reference: "neighbour" or "first": the frame that the flow starts from.
        compensate_camera: Subtract the camera's motion first.
        weigh_confidence: Multiply by the estimator's confidence.
    """

    estimator: MotionEstimator
    grid: tuple[int, int, int]
    reference: str = "neighbour"
    compensate_camera: bool = False
    weigh_confidence: bool = False

    def __call__(self, pixels: Tensor, row: Mapping[str, Any] | None = None) -> tuple[Tensor, float]:
        """The weight (T, h, w) in [0, 1] and the mean flow in pixels per frame.

        Args:
            pixels: (F, 3, H, W) in [-1, 1].
            row: Not looked at.

        Raises:
            ClipError: `static`, when nothing moves: its mask would be 0/0.
        """
        measured = clip_motion(pixels, self.estimator, compensate=self.compensate_camera)
        mask = measured.mask(self.reference, weigh_confidence=self.weigh_confidence)
        return latent_mask(mask, self.grid), mean_motion(measured.magnitude)

    def settings(self) -> dict[str, Any]:
        """What a weight depends on, as JSON values."""
        return {
            "estimator": self.estimator.name,
            "grid": list(self.grid),
            "reference": self.reference,
            "compensate_camera": self.compensate_camera,
            "weigh_confidence": self.weigh_confidence,
        }


def one_at_a_time(weigh: Any) -> AbstractContextManager[Any]:
    """What threads enter to weigh clips: a lock, as an estimator may keep what two would disturb; DIS does not."""
    stateless = isinstance(weigh, MotionWeight) and type(weigh.estimator) is DISFlow
    return nullcontext() if stateless else Lock()
