"""How a clip moves, as a few numbers, and how far two sets of clips are apart in them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..motion import compensate_camera
from .tracks import follow, grid_flow

_MOVING = 0.3  # 64ths of the shorter side a frame: less is no motion

#: What is measured, in this order, and its spread over clips of simulated motion, which makes it a unit.
_UNITS = {
    "speed": 0.25,
    "speed_spread": 0.15,
    "speed_peak": 0.2,
    "moving_share": 0.08,
    "moving_spread": 0.15,
    "sideways": 0.3,
    "downward": 0.45,
    "downward_later": 0.9,
    "speed_later": 0.3,
    "speeding_up": 0.04,
    "change": 0.1,
    "straight": 0.1,
    "growth": 0.3,
    "turning": 0.3,
    "camera": 0.2,
    "camera_change": 0.1,
}
NAMES = tuple(_UNITS)


@torch.no_grad()
def flow_statistics(clip: Tensor, flow: Tensor | None = None) -> Tensor:
    """How a clip moves, against its background: `NAMES` says what each number is about.

    Speed of what moves, how it is spread over the frames, its peak; the share of the picture that moves, and how it
    changes; whether motion goes sideways or down, and whether more so later; whether things speed up, over the clip
    and from frame to frame along their tracks, which shows a clip that runs backwards; how much motion changes from
    frame to frame, and whether it keeps its direction; whether it spreads and turns; the camera's motion, and its
    change.

    Args:
        clip: (F, 3, H, W), uint8 or floats in [-1, 1], at least 3 frames, of any size and length.
        flow: (F - 1, 2, H', W') in pixels, where it is known; DIS estimates it where None.

    Returns:
        (16,), float32, each of a spread of about 1 over clips that move differently. Motion is taken per frame, in
        parts of the shorter side: compare clips of one rate.

    Raises:
        ValueError: The clip is too short, or the flow does not fit to it.
    """
    whole = grid_flow(clip, flow, frames=3)
    fields = compensate_camera(whole)
    speed = fields.norm(dim=1)
    moving = (speed > _MOVING).float()
    weight = speed * moving
    share = moving.mean((1, 2))
    pace = weight.sum((1, 2)) / (moving.sum((1, 2)) + 4)  # of each field; four cells that move are hardly any
    down = (fields[:, 1] * weight).sum((1, 2))
    drop = down / (weight.sum((1, 2)) + 1)
    before, after = fields[:-1], follow(fields[1:], fields[:-1])
    first, then = before.norm(dim=1), after.norm(dim=1)
    carried = torch.maximum(first, then)
    carried = carried * (carried > _MOVING)
    kept = carried.sum() + 1
    cosine = (before * after).sum(1) / (first * then + 0.05)
    outward, around = _about_centre(fields, weight)
    camera = (whole - fields).mean((2, 3))
    found = [
        torch.log1p(pace.mean()),
        _spread(pace) / (pace.mean() + 0.3),
        torch.log1p(pace.max() / (pace.median() + 0.3)),
        share.mean().sqrt(),
        _spread(share) / (share.mean() + 0.02),
        (fields[:, 0].abs() * weight).sum() / (fields.abs() * weight[:, None]).sum().clamp(min=1),
        down.sum() / (speed * weight).sum().clamp(min=1),
        _later(drop),
        _later(pace) / (pace.mean() + 0.3),
        ((then - first) / (then + first + 0.1) * carried).sum() / kept,
        ((after - before).norm(dim=1) / (then + first + 0.1) * carried).sum() / kept,
        (cosine * carried).sum() / kept,
        outward.mean(),
        around.abs().mean(),
        torch.log1p(camera.norm(dim=1).mean()),
        torch.log1p(camera.diff(dim=0).norm(dim=1).mean()),
    ]
    return torch.stack(found) / torch.tensor(list(_UNITS.values()))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance between two sets of statistics, each taken for a normal distribution: squared distance of
    the means, plus trace(A + B - 2 (A B)^½) of the covariances.

    Covariances of few clips are uncertain, and correlations most of all: those are shrunk by n / (n + D).

    Args:
        a: (N, D), of one clip or more; of one clip alone the covariance counts as none.
        b: (M, D).

    Returns:
        From 0, lower is nearer. It falls with the number of clips: compare sets of one size.

    Raises:
        ValueError: A set is empty, the widths differ, or a value is not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"two sets must be (N, D) and (M, D), not empty; got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("the statistics hold NaN or infinite values")
    a, b = a.double(), b.double()
    one, other = _covariance(a), _covariance(b)
    root = _root(one)
    common = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + one.trace() + other.trace() - 2 * common
    return max(0.0, float(distance))


def _covariance(values: Tensor) -> Tensor:
    count, width = values.shape
    if count == 1:
        return values.new_zeros(width, width)
    centred = values - values.mean(0)
    covariance = centred.T @ centred / (count - 1)
    diagonal = torch.diag(covariance.diagonal())
    return diagonal + (covariance - diagonal) * count / (count + width)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _about_centre(fields: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Motion away from the centre of what moves, and around it, of each field."""
    height, width = fields.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    share = weight / (weight.sum((1, 2), keepdim=True) + 1)
    dx = x - (share * x).sum((1, 2), keepdim=True)
    dy = y - (share * y).sum((1, 2), keepdim=True)
    u, v = (fields - (share[:, None] * fields).sum((2, 3), keepdim=True)).unbind(1)
    size = (share * (dx**2 + dy**2)).sum((1, 2)).sqrt() + 1
    return (share * (dx * u + dy * v)).sum((1, 2)) / size, (share * (dx * v - dy * u)).sum((1, 2)) / size


def _spread(values: Tensor) -> Tensor:
    return values.std(correction=0)


def _later(values: Tensor) -> Tensor:
    """How much greater the second half is than the first, on average."""
    half = len(values) // 2
    return values[-half:].mean() - values[:half].mean()
