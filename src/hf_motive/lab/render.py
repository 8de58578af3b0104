"""A simulated scene to frames, exact flow and visibility.

Everything in a scene moves by an affine map from one frame to the next, so the flow of a pixel is not estimated: the
point of the body (or of the background) under the pixel's centre is carried to its place in the next frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .backgrounds import paint_background
from .dynamics import Body, Scene, make_scene
from .spec import SIZE, ClipSpec

_SAMPLES = 2  # a side of a pixel; edges between samples are smoothed by the distance to them


class LabClip(NamedTuple):
    """A clip and what is known about it.

    frames: (F, 3, H, W) float32 in [-1, 1].
    flow: (F-1, 2, H, W) float32, (dx, dy) in pixels from frame t to frame t + 1, of whatever is under the pixel's
        centre in frame t.
    visible: (F-1, H, W) bool, whether that point is seen in frame t + 1 as well: neither covered nor out of the image.
    objects: (F, H, W) bool, where the object is (with its string, or its pieces).
    spec: What the clip was made from; its labels and caption.
    """

    frames: Tensor
    flow: Tensor
    visible: Tensor
    objects: Tensor
    spec: ClipSpec


def render_clip(spec: ClipSpec) -> LabClip:
    """Simulate and draw a clip.

    Raises:
        ImportError: pymunk is missing (`pip install "hf-motive[lab]"`).
    """
    scene = make_scene(spec)
    size, frames = spec.size, spec.num_frames
    pixels = np.empty((frames, size, size, 3), np.float32)
    owner = np.empty((frames, size, size), np.int16)
    grid = _grid(size)
    centres = _centres(size)
    still = bool((scene.zoom == scene.zoom[0]).all() and (scene.shift == scene.shift[0]).all())
    canvas = None
    for t in range(frames):
        if canvas is None or not still:
            world = (grid - scene.shift[t]) / scene.zoom[t]
            canvas = paint_background(scene.background, scene.seed, world * (SIZE / size))
        image = canvas.copy()
        for body in scene.bodies:
            _draw(image, body, scene, t, grid)
        owner[t] = _owner(scene, t, centres)
        pixels[t] = _pooled(image)
    flow, visible = _flow(scene, owner, centres)
    return LabClip(
        frames=_frames(pixels),
        flow=torch.from_numpy(flow),
        visible=torch.from_numpy(visible),
        objects=torch.from_numpy(owner > 0),
        spec=spec,
    )


def render_flow(spec: ClipSpec) -> Tensor:
    """`render_clip(spec).flow` alone, (F-1, 2, H, W), in a fifth of the time: nothing is painted."""
    scene = make_scene(spec)
    centres = _centres(spec.size)
    owner = np.stack([_owner(scene, t, centres) for t in range(spec.num_frames)])
    return torch.from_numpy(_flow(scene, owner, centres)[0])


def render_background(spec: ClipSpec) -> Tensor:
    """`render_clip(spec).frames` without the object, (F, 3, H, W)."""
    scene = make_scene(spec)
    grid = _grid(spec.size)
    worlds = ((grid - shift) / zoom for zoom, shift in zip(scene.zoom, scene.shift, strict=True))
    images = (paint_background(scene.background, scene.seed, world * (SIZE / spec.size)) for world in worlds)
    return _frames(np.stack([_pooled(image) for image in images]))


def _grid(size: int) -> np.ndarray:
    """The samples (2 H, 2 W, 2) as (x, y)."""
    return np.stack(np.meshgrid(*[(np.arange(size * _SAMPLES) + 0.5) / _SAMPLES] * 2), -1)


def _pooled(image: np.ndarray) -> np.ndarray:
    """Samples (2 H, 2 W, 3) to pixels (H, W, 3)."""
    size = len(image) // _SAMPLES
    return image.reshape(size, _SAMPLES, size, _SAMPLES, 3).mean((1, 3)).astype(np.float32)


def _frames(pixels: np.ndarray) -> Tensor:
    """(F, H, W, 3) in 0..1 to (F, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.clip(pixels * 2 - 1, -1, 1)).permute(0, 3, 1, 2).contiguous()


def _centres(size: int) -> np.ndarray:
    """The pixels' centres (H, W, 2) as (x, y)."""
    return np.stack(np.meshgrid(*[np.arange(size) + 0.5] * 2), -1)


def _owner(scene: Scene, t: int, centres: np.ndarray) -> np.ndarray:
    """(H, W) int16: the body that is in front at each pixel's centre, counted from 1; 0 is the background."""
    owner = np.zeros(centres.shape[:2], np.int16)
    for number, body in enumerate(scene.bodies, start=1):
        rows, columns = _box(body, scene, t, len(owner), 1)
        inside = _distance(body, scene, t, centres[rows, columns]) < 0
        owner[rows, columns][inside] = number
    return owner


def _pose(body: Body, scene: Scene, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Own coordinates to the screen: a matrix (2, 2) and a translation (2,)."""
    return scene.zoom[t] * body.matrix[t], scene.zoom[t] * body.centre[t] + scene.shift[t]


def _box(body: Body, scene: Scene, t: int, size: int, samples: int) -> tuple[slice, slice]:
    """The samples that the body can touch."""
    matrix, centre = _pose(body, scene, t)
    radius = body.shape.reach
    first, last = body.sector
    if last - first < np.pi / 2:
        # A narrow wedge lies in a circle about its own middle.
        radius *= 0.58
        middle = (first + last) / 2
        centre = centre + matrix @ (radius * np.array([np.cos(middle), np.sin(middle)]))
    reach = float(np.linalg.norm(matrix)) * radius + 1.5  # Frobenius: at least the largest stretch
    low = np.clip(np.floor((centre - reach) * samples), 0, size * samples).astype(int)
    high = np.clip(np.ceil((centre + reach) * samples), 0, size * samples).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _own(body: Body, scene: Scene, t: int, points: np.ndarray) -> np.ndarray:
    matrix, centre = _pose(body, scene, t)
    return (points - centre) @ np.linalg.inv(matrix).T


def _distance(body: Body, scene: Scene, t: int, points: np.ndarray) -> np.ndarray:
    """Signed distance on the screen, in pixels; exact at the outline, near enough beside it."""
    x, y = np.moveaxis(_own(body, scene, t, points), -1, 0)
    distance = body.shape.distance(x, y)
    low, high = body.sector
    if high - low < np.pi:
        distance = np.maximum(
            distance, np.maximum(x * np.sin(low) - y * np.cos(low), y * np.cos(high) - x * np.sin(high))
        )
    return distance * np.sqrt(abs(np.linalg.det(_pose(body, scene, t)[0])))


def _draw(image: np.ndarray, body: Body, scene: Scene, t: int, grid: np.ndarray) -> None:
    rows, columns = _box(body, scene, t, image.shape[0] // _SAMPLES, _SAMPLES)
    points = grid[rows, columns]
    alpha = np.clip(0.5 - _distance(body, scene, t, points) * _SAMPLES, 0, 1)[..., None]
    color = body.shape.paint(*np.moveaxis(_own(body, scene, t, points), -1, 0))
    image[rows, columns] += alpha * (color - image[rows, columns])


def _flow(scene: Scene, owner: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    frames, size, _ = owner.shape
    flow = np.zeros((max(frames - 1, 0), 2, size, size), np.float32)
    visible = np.zeros((max(frames - 1, 0), size, size), bool)
    for t in range(frames - 1):
        world = (centres - scene.shift[t]) / scene.zoom[t]
        target = scene.zoom[t + 1] * world + scene.shift[t + 1]
        for number, body in enumerate(scene.bodies, start=1):
            mine = owner[t] == number
            matrix, centre = _pose(body, scene, t + 1)
            target[mine] = _own(body, scene, t, centres[mine]) @ matrix.T + centre
        flow[t] = (target - centres).transpose(2, 0, 1)
        cell = np.floor(target).astype(int)
        inside = ((cell >= 0) & (cell < size)).all(-1)
        cell = np.clip(cell, 0, size - 1)
        visible[t] = inside & (owner[t + 1][cell[..., 1], cell[..., 0]] == owner[t])
    return flow, visible
