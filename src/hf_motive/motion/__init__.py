"""How much moves where: optical flow, its magnitude, the camera's share of it, and the mask that weights a loss."""

from __future__ import annotations

from .camera import compensate_camera
from .clip import ClipMotion, clip_motion
from .dis import DISFlow
from .estimator import Flow, MotionEstimator
from .mask import STATIC_THRESHOLD, latent_mask, magnitude, mean_motion, motion_mask
from .weight import MotionWeight

__all__ = [
    "STATIC_THRESHOLD",
    "ClipMotion",
    "DISFlow",
    "Flow",
    "MotionEstimator",
    "MotionWeight",
    "clip_motion",
    "compensate_camera",
    "latent_mask",
    "magnitude",
    "mean_motion",
    "motion_mask",
]
