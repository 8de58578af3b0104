"""Dense inverse search: optical flow that needs no weights and no GPU (Kroeger et al., arXiv 1603.03590)."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from ..errors import ClipError
from .estimator import Flow

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

# Confidence, chosen on analytic motion; see benchmarks/results/flow.md.
_WINDOW = 25  # pixels: how far DIS spreads what it finds
_FLOOR = 4.0  # grey levels squared: less contrast than this is no evidence
_RAMP = (0.7, 0.95)  # correlation at which confidence begins and is full


class DISFlow:
    """OpenCV's DIS optical flow.

    Args:
        preset: "ultrafast", "fast" or "medium": slower is finer (benchmarks/results/flow.md).
        reference: "neighbour" for the flow from each frame to the next (the text of arXiv 2601.08828);
            "first" for the flow from the first frame to each other one (what its tracker gives natively). A flow from
            the first frame starts its search at the one before: DIS alone loses what has moved far.
        min_side: Frames whose shorter side is less are enlarged to it before the search, and the flow is scaled back.
            DIS matches patches of 8 pixels and stops at half or quarter resolution, which blurs the motion of small
            frames: on 64 × 64 pixels the error nearly halves. More than 128 costs in proportion to the area, gains
            little, and finds more motion in the noise of still clips (benchmarks/results/flow.md). 0 never enlarges.
        confidence: Tell how sure the flow is, which takes longer than finding it. The flow is the same without.

    Where there is no texture DIS follows the noise, by many pixels a frame, or spreads the motion of a distant edge.
    Its confidence says where that is: the correlation, in a window of 25 pixels, of a frame with the other one warped
    back by the flow; 0 up to a correlation of 0.7 and in windows that hold no contrast, 1 from 0.95.

    Deterministic: the same on any number of threads and in any order of clips.
    """

    def __init__(
        self,
        preset: str = "medium",
        reference: Literal["neighbour", "first"] = "neighbour",
        min_side: int = 128,
        confidence: bool = True,
    ):
        if preset not in _PRESETS:
            raise ValueError(f"preset must be one of {', '.join(_PRESETS)}, got {preset!r}")
        if reference not in ("neighbour", "first"):
            raise ValueError(f"reference must be 'neighbour' or 'first', got {reference!r}")
        if min_side < 0:
            raise ValueError(f"min_side must be a number of pixels, or 0 to keep the size, got {min_side}")
        self.preset = preset
        self.reference = reference
        self.min_side = min_side
        self.confidence = confidence
        self.name = f"dis-{preset}-{reference}-{min_side}" + ("" if confidence else "-flow only")

    def __repr__(self) -> str:
        return f"DISFlow(preset={self.preset!r}, reference={self.reference!r}, min_side={self.min_side})"

    def __call__(self, frames: Tensor) -> Flow:
        """Flow of one clip.

        Args:
            frames: (F, 3, H, W) in [-1, 1].

        Returns:
            Flow of (F - 1, 2, H, W) with a confidence of (F - 1, H, W) if it was asked for, both on the CPU.

        Raises:
            ClipError: `too_short` for fewer than two frames, `non_finite` for NaN or infinite pixels.
            ValueError: `frames` has another shape.
        """
        images = _grey(frames, self.min_side)
        height, width = frames.shape[2:]
        scale = np.array([width / images[0].shape[1], height / images[0].shape[0]], np.float32)
        search = cv2.DISOpticalFlow_create(_PRESETS[self.preset])  # made here: it does not pickle
        fields = np.empty((len(images) - 1, 2, height, width), np.float32)
        confidence = np.empty((len(images) - 1, height, width), np.float32) if self.confidence else None
        field = None
        for f in range(len(images) - 1):
            start = images[0] if self.reference == "first" else images[f]
            guess = field.copy() if self.reference == "first" and field is not None else None
            field = search.calc(start, images[f + 1], guess)
            fields[f] = (_shrink(field, height, width) * scale).transpose(2, 0, 1)
            if confidence is not None:
                confidence[f] = _shrink(_agreement(start, images[f + 1], field), height, width)
        return Flow(torch.from_numpy(fields), torch.from_numpy(confidence) if confidence is not None else None)


def _shrink(field: np.ndarray, height: int, width: int) -> np.ndarray:
    if field.shape[:2] == (height, width):
        return field
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA)


def _agreement(start: np.ndarray, end: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """How well each window of `start` (H, W) is found in `end` where `flow` (H, W, 2) leads: (H, W) in [0, 1]."""
    height, width = start.shape
    xs, ys = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    a = start.astype(np.float32)
    b = cv2.remap(
        end.astype(np.float32),
        xs + flow[..., 0],
        ys + flow[..., 1],
        interpolation=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # Moments about the middle grey keep float32 exact enough.
    a, b = a - 128, b - 128
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = (_window_mean(a * a) - mean_a * mean_a).clip(min=0)
    variance_b = (_window_mean(b * b) - mean_b * mean_b).clip(min=0)
    covariance = _window_mean(a * b) - mean_a * mean_b
    correlation = covariance / (np.sqrt(variance_a * variance_b) + _FLOOR)
    low, high = _RAMP
    return ((correlation - low) / (high - low)).clip(0, 1)


def _window_mean(image: np.ndarray) -> np.ndarray:
    return cv2.blur(image, (_WINDOW, _WINDOW), borderType=cv2.BORDER_REFLECT)


def _grey(frames: Tensor, min_side: int) -> list[np.ndarray]:
    """Luma of each frame, (H', W') uint8, its shorter side at least `min_side`."""
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"frames must be (F, 3, H, W), got {tuple(frames.shape)}")
    if frames.shape[0] < 2:
        raise ClipError("too_short", f"motion needs at least two frames, got {frames.shape[0]}")
    if not torch.isfinite(frames).all():
        raise ClipError("non_finite", "the clip holds NaN or infinite pixels: leave it out, or repair it")
    frames = frames.detach().cpu().float()
    grey = torch.einsum("fchw,c->fhw", frames, torch.tensor(_LUMA)).numpy()
    height, width = grey.shape[1:]
    scale = max(1.0, min_side / min(height, width))
    images = []
    for image in grey:
        if scale > 1:
            size = (round(width * scale), round(height * scale))
            image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        images.append(np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8))
    return images
