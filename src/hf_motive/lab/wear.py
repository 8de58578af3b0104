"""Exact flow as an estimator may find it in a blurred clip: weaker, smeared, uneven, with holes and noise.

A classifier that is fitted to exact flow alone learns what no estimator can see: the turn inside an object whose paint
the VAE has blurred away, say. What is drawn here is the loss of the lab's clips under DIS, and under DIS after a VAE:
of the shift of an object at least a third is found, of its turn sometimes a tenth.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Shares of the exact flow that are left, each drawn once a clip, even in the logarithm.
_SHIFT = (0.3, 1.1)  # of everything
_TURN = (0.12, 1.0)  # of the object's turn, besides
_SHAPE = (0.35, 1.1)  # of what deforms or parts it, besides
_UNEVEN = 0.6  # of a single field, besides: a VAE that compresses time makes some fields weak
_HOLES = 0.8  # how much of an object may go unseen
_BLUR = 3.0  # pixels of 64, at most: standard deviation of the smear
_NOISE = 0.25  # pixels of 64, at most: standard deviation, near what moves; a quarter of it elsewhere


def worn(flow: Tensor, generator: torch.Generator) -> Tensor:
    """Another draw of what an estimator may make of a clip's flow.

    Args:
        flow: (F - 1, 2, H, W), exact, pixels per frame, under a still camera: what moves is the object.
        generator: Of all that is drawn.

    Returns:
        (F - 1, 2, H, W), float32.
    """
    flow = flow.float()
    fields, _, height, width = flow.shape
    unit = min(height, width) / 64
    found = _weakened(flow, generator) * _logarithmic(fields, _UNEVEN, 1.2, generator)[:, None, None, None]
    found = found * (1 - _hole(fields, height, width, generator))
    found = _smeared(found, _uniform(_BLUR, generator) * unit)
    near = F.avg_pool2d((found.norm(dim=1, keepdim=True) > 0.1 * unit).float(), 11, 1, 5)
    noise = F.interpolate(
        torch.randn(fields, 2, 8, 8, generator=generator), size=(height, width), mode="bicubic", align_corners=False
    )
    return found + _uniform(_NOISE, generator) * unit * noise * (0.25 + near)


def _weakened(flow: Tensor, generator: torch.Generator) -> Tensor:
    """Each field as the object's shift, its turn and the rest, each by its own factor."""
    height, width = flow.shape[-2:]
    moving = (flow.norm(dim=1) > 0.05).float()
    size = moving.sum((1, 2)).clamp(min=1)
    shift = ((flow * moving[:, None]).sum((2, 3)) / size[:, None])[:, :, None, None] * moving[:, None]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    dx = (x - ((x * moving).sum((1, 2)) / size)[:, None, None]) * moving
    dy = (y - ((y * moving).sum((1, 2)) / size)[:, None, None]) * moving
    rest = (flow - shift) * moving[:, None]
    rate = (dx * rest[:, 1] - dy * rest[:, 0]).sum((1, 2)) / (dx**2 + dy**2).sum((1, 2)).clamp(min=1)
    turn = torch.stack([-dy, dx], 1) * rate[:, None, None, None]
    whole, turned, shaped = (float(_logarithmic(1, *bounds, generator)) for bounds in (_SHIFT, _TURN, _SHAPE))
    return whole * (shift + turned * turn + shaped * (rest - turn))


def _hole(fields: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(fields, 1, H, W) in 0..1: where the estimator does not follow; much the same places in every field."""
    ground = torch.randn(1, 1, 8, 8, generator=generator) + 0.6 * torch.randn(fields, 1, 8, 8, generator=generator)
    ground = F.interpolate(ground, size=(height, width), mode="bicubic", align_corners=False)
    return torch.sigmoid(4 * (2.5 * _uniform(_HOLES, generator) - 2 - ground))


def _smeared(flow: Tensor, sigma: float) -> Tensor:
    if sigma < 0.3:
        return flow
    reach = math.ceil(2.5 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    fields = flow.flatten(0, 1)[:, None]
    fields = F.conv2d(fields, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(fields, kernel.view(1, 1, -1, 1), padding=(reach, 0)).view_as(flow)


def _uniform(top: float, generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator)) * top


def _logarithmic(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    spread = torch.rand(count, generator=generator) * math.log(high / low)
    return low * torch.exp(spread)
