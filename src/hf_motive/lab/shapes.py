"""The objects: signed distance, convex hull and paint, each in the object's own coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .spec import COLORS

_STRING = (0.12, 0.11, 0.10)


@dataclass(frozen=True)
class Shape:
    """A shape of one size and colour.

    Args:
        name: One of `SHAPES`, or "string".
        color: RGB in 0..1.
        radius: Pixels; the shapes of one radius have about the same area. For a string, its length.
    """

    name: str
    color: tuple[float, float, float]
    radius: float

    @cached_property
    def outline(self) -> np.ndarray | None:
        """(N, 2) corners in order; None for the ball."""
        r = self.radius
        if self.name == "string":
            return np.array([[-0.7, 0], [0.7, 0], [0.7, r], [-0.7, r]])
        if self.name == "box":
            return 0.88 * r * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]])
        corners, reach, start = {"triangle": (3, 1.35, -90), "hexagon": (6, 1.08, 0), "star": (10, 1.4, -90)}.get(
            self.name, (0, 0, 0)
        )
        if not corners:
            return None
        angle = np.deg2rad(start) + 2 * np.pi * np.arange(corners) / corners
        length = np.full(corners, reach * r)
        if self.name == "star":
            length[1::2] *= 0.55
        return length[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)

    @cached_property
    def hull(self) -> np.ndarray | None:
        """(N, 2) corners of the convex hull; None for the ball."""
        return self.outline[::2] if self.name == "star" and self.outline is not None else self.outline

    @cached_property
    def reach(self) -> float:
        """The distance of the farthest point from the origin."""
        return self.radius if self.outline is None else float(np.linalg.norm(self.outline, axis=1).max())

    @property
    def bottom(self) -> float:
        """How far the shape reaches below its centre when it is upright."""
        return float(self.support(np.zeros(1))[0])

    def support(self, angle: np.ndarray) -> np.ndarray:
        """How far the shape reaches below its centre after a turn by `angle` (…,)."""
        if self.hull is None:
            return np.full(np.shape(angle), self.radius)
        x, y = self.hull.T
        return (np.sin(angle)[..., None] * x + np.cos(angle)[..., None] * y).max(-1)

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Signed distance to the outline, negative inside."""
        if self.outline is None:
            return np.hypot(x, y) - self.radius
        nearest = np.full(x.shape, np.inf)
        inside = np.zeros(x.shape, bool)
        for a, b in zip(self.outline, np.roll(self.outline, -1, 0), strict=True):
            ex, ey = b - a
            dx, dy = x - a[0], y - a[1]
            along = np.clip((dx * ex + dy * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (dx - along * ex) ** 2 + (dy - along * ey) ** 2)
            crosses = (a[1] > y) != (b[1] > y)
            if ey != 0:
                inside ^= crosses & (dx < ex * dy / ey)
        return np.sqrt(nearest) * np.where(inside, -1, 1)

    def paint(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """RGB (…, 3) in 0..1: a light band, and a dark spot on one side, which make a turn visible in every shape."""
        color = np.broadcast_to(np.array(self.color), (*x.shape, 3))
        if self.name == "string":
            return color
        r = self.radius
        shade = 1 - 0.18 * np.clip((x * x + y * y) / (r * r), 0, 1.5)
        band = np.clip(0.5 + (0.2 * r - np.abs(y)) / 1.2, 0, 1)
        spot = np.clip(0.5 + (0.24 * r - np.hypot(x - 0.5 * r, y)) / 1.2, 0, 1)
        painted = color * shade[..., None]
        painted = painted + band[..., None] * 0.75 * (np.array([1.0, 1.0, 1.0]) - painted)
        return painted + spot[..., None] * (np.array([0.08, 0.08, 0.1]) - painted)


def make_shape(name: str, color: str, radius: float) -> Shape:
    return Shape(name, _STRING if color == "string" else COLORS[color], radius)
