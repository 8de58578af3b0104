"""Backgrounds: textures over the whole plane, so that a camera can move over them."""

from __future__ import annotations

import colorsys

import numpy as np


def paint_background(name: str, seed: int, points: np.ndarray) -> np.ndarray:
    """A texture at points of the world.

    Args:
        name: One of `BACKGROUNDS`.
        seed: Fixes the two muted tints, the size of the pattern, its angle and its phase.
        points: (…, 2) as (x, y), in pixels of a 64 × 64 clip.

    Returns:
        RGB (…, 3) in 0..1, float64. A faint irregular shading lies over each pattern, so that every direction of
        motion shows.
    """
    rng = np.random.default_rng([seed, 2])
    hue, step, period = rng.uniform(), rng.uniform(0.15, 0.3), rng.uniform(11, 16)
    angle = rng.uniform(0, np.pi)
    phase = rng.uniform(0, 2 * np.pi, 8)
    waves = rng.normal(size=(4, 2))
    light = np.array(colorsys.hsv_to_rgb(hue, 0.18, 0.92))
    dark = np.array(colorsys.hsv_to_rgb((hue + step) % 1, 0.22, 0.66))

    c, s = np.cos(angle), np.sin(angle)
    x, y = points[..., 0] * c + points[..., 1] * s, points[..., 1] * c - points[..., 0] * s
    u, v = 2 * np.pi * x / period + phase[0], 2 * np.pi * y / period + phase[1]
    if name == "striped":
        mix = _soft(np.sin(u))
    elif name == "checkered":
        mix = _soft(2 * np.sin(u / 1.4) * np.sin(v / 1.4))
    elif name == "dotted":
        mix = _soft(1.4 * (np.cos(u) + np.cos(v) - 0.9))
    elif name == "wavy":
        mix = _soft(np.sin(u + 1.6 * np.sin(v / 1.7)))
    elif name == "marbled":
        mix = 0.5 + 0.5 * np.sin(u / 2 + 1.5 * np.sin(v / 2.1 + phase[2]) + 1.5 * np.sin(0.7 * u + 0.4 * v + phase[3]))
    else:
        raise ValueError(f"unknown background {name!r}")
    shade = sum(np.sin((points @ w) * (2 * np.pi / 22) + p) for w, p in zip(waves, phase[4:], strict=True))
    return (dark + mix[..., None] * (light - dark)) * (1 + 0.035 * shade[..., None])


def _soft(wave: np.ndarray) -> np.ndarray:
    """A wave's sign with soft edges, 0..1."""
    return 0.5 + 0.5 * np.tanh(2.2 * wave)
