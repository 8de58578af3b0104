"""The camera's share of the motion, and what is left without it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ..errors import ClipError

_GRID = 32  # about so many points along the longer side vote on the camera's motion
# A vector agrees with the camera's motion when it differs by less than this share of the shorter side; the bounds, in
# pixels, are what DIS gets wrong on a still background and what a slow object moves.
_TOLERANCE = 1 / 960
_TOLERANCE_BOUNDS = (0.1, 0.5)


def compensate_camera(flow: Tensor, confidence: Tensor | None = None) -> Tensor:
    """Subtract the dominant global motion: pan, tilt, zoom and roll of the camera.

    A similarity (shift, scale, rotation) is fitted to a grid of each field's vectors by RANSAC, so what moves by
    itself does not count as long as it covers less than half of the frame. Depth is not modelled: under a travelling
    camera the parallax of what is near remains. Where stillness explains a field as well as the fit does, or nothing
    fits, the field is kept as it is.

    The paper has no formula for this (arXiv 2601.08828 speaks of down-weighting by spatial uniformity): it is an
    option.

    Args:
        flow: (F - 1, 2, H, W), pixels.
        confidence: (F - 1, H, W) in [0, 1]. If given, a place of less than 0.5 counts as still: a plain wall does not
            show whether the camera moves, and the one object before it must not be taken for the camera.

    Returns:
        (F - 1, 2, H, W), pixels: the motion against the background.

    Raises:
        ClipError: `non_finite`.
        ValueError: the shapes are others.
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow must be (F - 1, 2, H, W), got {tuple(flow.shape)}")
    if not torch.isfinite(flow).all():
        raise ClipError("non_finite", "the flow holds NaN or infinite values")
    height, width = flow.shape[2:]
    if confidence is not None and confidence.shape != (len(flow), height, width):
        raise ValueError(f"confidence must be {(len(flow), height, width)} as flow is, got {tuple(confidence.shape)}")
    step = max(1, max(height, width) // _GRID)
    ys, xs = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    points = np.stack([xs, ys], axis=-1).reshape(-1, 2).astype(np.float32)
    pixels = np.stack(np.mgrid[:height, :width][::-1], axis=-1).astype(np.float32)  # (H, W, 2) as x, y
    tolerance = float(np.clip(min(height, width) * _TOLERANCE, *_TOLERANCE_BOUNDS))
    rest = flow.detach().cpu().float().clone()
    for f, field in enumerate(rest):
        vectors = field[:, ys, xs].reshape(2, -1).T.numpy()
        sure = np.ones(len(points), bool)
        if confidence is not None:
            sure = (confidence[f].cpu()[ys, xs] >= 0.5).flatten().numpy()
        if sure.sum() < 2:
            continue
        matrix, agree = cv2.estimateAffinePartial2D(
            points[sure],
            points[sure] + vectors[sure],
            method=cv2.RANSAC,
            ransacReprojThreshold=tolerance,
            confidence=0.999,
        )
        still = ~sure | (np.linalg.norm(vectors, axis=1) < tolerance)
        if matrix is None or still.sum() >= agree.sum():
            continue
        camera = pixels @ matrix[:, :2].T + matrix[:, 2] - pixels
        field -= torch.from_numpy(camera.astype(np.float32)).permute(2, 0, 1)
    return rest.to(flow.device)
