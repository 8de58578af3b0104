"""Who says what moves: the masks of several detectors for the same clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_motive.errors import ClipError
from hf_motive.lab import ClipSpec, render_clip
from hf_motive.motion import DISFlow
from hf_motive.motion.clip import clip_motion
from hf_motive.motion.estimator import Flow, MotionEstimator
from hf_motive.motion.mask import latent_mask


@dataclass(frozen=True)
class Detector:
    """A way from frames to a mask.

    Attributes:
        name: In the table.
        estimator: `row of the dataset -> MotionEstimator`; None: the same weight everywhere.
        reference, camera, confidence: As `MotionWeight` has them.
        exact: It knows the flow by which the clip was drawn, which only an unspoilt clip of the lab has.
    """

    name: str
    estimator: Callable[[dict[str, Any]], MotionEstimator] | None
    reference: str = "neighbour"
    camera: bool = False
    confidence: bool = False
    exact: bool = False

    def weight(self, pixels: Tensor, row: dict[str, Any], grid: tuple[int, int, int]) -> Tensor | None:
        """(T, h, w) in [0, 1]; None where nothing moves."""
        if self.estimator is None:
            return torch.ones(grid)
        try:
            motion = clip_motion(pixels, self.estimator(row), compensate=self.camera)
            return latent_mask(motion.mask(self.reference, weigh_confidence=self.confidence), grid)
        except ClipError:
            return None


class _Exact:
    """The flow that a clip of the lab was drawn by, with noise of so many pixels on each component if asked for."""

    name = "exact"

    def __init__(self, row: dict[str, Any], noise: float = 0.0):
        self.spec = ClipSpec(**{name: row[name] for name in ClipSpec.__dataclass_fields__})
        self.noise = noise

    def __call__(self, frames: Tensor) -> Flow:
        flow = render_clip(self.spec).flow[: len(frames) - 1].float()
        generator = torch.Generator().manual_seed(self.spec.seed)
        return Flow(flow + self.noise * torch.randn(flow.shape, generator=generator))


class _Objects:
    """Where the object is, whether it moves or not: what a segmentation would say."""

    name = "objects"

    def __init__(self, row: dict[str, Any]):
        self.spec = ClipSpec(**{name: row[name] for name in ClipSpec.__dataclass_fields__})

    def __call__(self, frames: Tensor) -> Flow:
        inside = render_clip(self.spec).objects[: len(frames) - 1].float()
        return Flow(torch.stack([inside, torch.zeros_like(inside)], dim=1))


def _dis(**settings: Any) -> Callable[[dict[str, Any]], MotionEstimator]:
    estimator = DISFlow(**settings)
    return lambda row: estimator


DETECTORS = (
    Detector("DIS", _dis()),
    Detector("DIS, ultrafast", _dis(preset="ultrafast")),
    Detector("DIS from the first frame", _dis(reference="first"), reference="first"),
    Detector("DIS, camera compensated", _dis(), camera=True),
    Detector("DIS times its confidence", _dis(), confidence=True),
    Detector("no mask", None),
    Detector("exact flow", _Exact, exact=True),
    Detector("exact flow, noise of half a pixel", lambda row: _Exact(row, 0.5), exact=True),
    Detector("exact flow, noise of two pixels", lambda row: _Exact(row, 2.0), exact=True),
    Detector("exact flow, camera compensated", _Exact, camera=True, exact=True),
    Detector("the object, moving or not", _Objects, exact=True),
)
