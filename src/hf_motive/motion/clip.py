"""From the frames of a clip to how it moves: the estimator, the camera and the mask, one after the other."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .camera import compensate_camera
from .estimator import MotionEstimator
from .mask import magnitude, motion_mask


class ClipMotion(NamedTuple):
    """How a clip moves.

    Attributes:
        magnitude: (F - 1, H, W), pixels a frame; without the camera's share where that is compensated.
        camera: Mean length of the camera's share of the flow, pixels a frame; None where it was not asked for.
        confidence: (F - 1, H, W) in [0, 1], or None where the estimator has none.
    """

    magnitude: Tensor
    camera: float | None
    confidence: Tensor | None

    def mask(self, reference: str, *, weigh_confidence: bool = False) -> Tensor:
        """(F, H, W) in [0, 1]; see `motion_mask`.

        Args:
            reference: What the flow was estimated from.
            weigh_confidence: Multiply the motion by the confidence (not in the paper). In any case the confidence
                decides whether anything moves at all: estimators invent motion in flat regions.

        Raises:
            ClipError: `static`, or `non_finite`.
        """
        weighed = motion_mask(self.magnitude, reference=reference, confidence=self.confidence)
        return weighed if weigh_confidence else motion_mask(self.magnitude, reference=reference)


def clip_motion(
    frames: Tensor, estimator: MotionEstimator, *, compensate: bool = False, measure_camera: bool = False
) -> ClipMotion:
    """Measure a clip's motion.

    Args:
        frames: (F, 3, H, W) in [-1, 1].
        estimator: Frames to flow and confidence.
        compensate: Subtract the camera's motion before the magnitude is taken.
        measure_camera: Measure the camera's motion also where it is left in.
    """
    flow, confidence = estimator(frames)
    camera = None
    if compensate or measure_camera:
        steady = compensate_camera(flow, confidence)
        camera = magnitude(flow - steady).double().mean().item()
        flow = steady if compensate else flow
    return ClipMotion(magnitude(flow), camera, confidence)
