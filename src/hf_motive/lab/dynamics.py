"""How each of the ten motions goes: a spec to the pose of every body, and of the camera, in every frame.

Unit of length: the pixel of a 64 × 64 clip (scaled to the spec's size at the end), of time: the frame, 1/16 s. The
image's x goes right and y goes down. Rigid motions under gravity, contact and friction are stepped by pymunk;
deforming, floating, rolling without slipping and spinning have closed forms. Speeds keep the displacement between
neighbouring frames near or below 0.4 of the object's radius, and below half of it: what optical flow can follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .shapes import Shape, make_shape
from .spec import SIZE, ClipSpec

_SUBSTEPS = 16  # physics steps a frame
_WHOLE = (0.0, 2 * np.pi)


@dataclass(frozen=True)
class Body:
    """One rigid or affinely deforming thing.

    Args:
        shape: Its region and its paint, in its own coordinates.
        matrix: (F, 2, 2). Own coordinates to world: world = matrix @ own + centre.
        centre: (F, 2) as (x, y).
        sector: The part of the shape that this body is, between two angles: an exploded object is several bodies.
    """

    shape: Shape
    matrix: np.ndarray
    centre: np.ndarray
    sector: tuple[float, float] = _WHOLE


@dataclass(frozen=True)
class Scene:
    """Bodies from back to front, and the camera: screen = zoom[t] · world + shift[t]. Pixels of the clip."""

    bodies: list[Body]
    zoom: np.ndarray  # (F,)
    shift: np.ndarray  # (F, 2)
    seed: int
    background: str


@dataclass(frozen=True)
class _Draw:
    """What the seed decides for every motion alike, so that no label changes it."""

    radius: float
    side: float  # -1 or 1: the direction along x
    speed: float  # 0.8 .. 1.2
    x: float  # -1 .. 1: where in the room there is for it
    y: float
    phase: float  # 0 .. 1


def make_scene(spec: ClipSpec) -> Scene:
    """Simulate a clip: its bodies and its camera, `spec.num_frames` poses each."""
    rng = np.random.default_rng([spec.seed, 1])
    draw = _Draw(
        radius=float(rng.uniform(9, 12.5)),
        side=float(rng.choice([-1.0, 1.0])),
        speed=float(rng.uniform(0.85, 1.15)),
        x=float(rng.uniform(-1, 1)),
        y=float(rng.uniform(-1, 1)),
        phase=float(rng.uniform()),
    )
    bodies = _MOTIONS[spec.motion](draw, make_shape(spec.shape, spec.color, draw.radius), spec.num_frames)
    zoom, shift = _camera(spec, rng)
    scale = spec.size / SIZE
    bodies = [Body(b.shape, b.matrix * scale, b.centre * scale, b.sector) for b in bodies]
    return Scene(bodies, zoom, shift * scale, spec.seed, spec.background)


def _camera(spec: ClipSpec, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    t = np.arange(spec.num_frames, dtype=float)
    angle, speed, growth = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1), rng.uniform(0.012, 0.02)
    zoom, shift = np.ones_like(t), np.zeros((len(t), 2))
    if spec.camera == "pan":
        # Through the middle of the first second, so that the object stays in view.
        shift = (t - 8)[:, None] * speed * np.array([np.cos(angle), np.sin(angle)])
    elif spec.camera == "zoom":
        zoom = (1 + growth) ** (t - 4)
        shift = (1 - zoom)[:, None] * np.array([SIZE / 2, SIZE / 2])
    return zoom, shift


# ------------------------------------------------------------------------------------------------------ small helpers


def _rotation(angle: np.ndarray) -> np.ndarray:
    """(F,) to (F, 2, 2); positive turns x towards y, clockwise on the screen."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


def _upright(frames: int) -> np.ndarray:
    return np.broadcast_to(np.eye(2), (frames, 2, 2)).copy()


def _place(draw: _Draw, room_x: float, room_y: float) -> np.ndarray:
    return np.array([SIZE / 2 + draw.x * room_x, SIZE / 2 + draw.y * room_y])


def _floor(draw: _Draw) -> float:
    return SIZE - 4 + 2.5 * draw.y


def _rigid(shape: Shape, angle: np.ndarray, centre: np.ndarray) -> list[Body]:
    return [Body(shape, _rotation(angle), centre)]


def _simulate(
    frames: int,
    shape: Shape,
    centre: tuple[float, float],
    velocity: tuple[float, float],
    *,
    gravity: float,
    floor: float | None = None,
    elasticity: float = 0.0,
    friction: float = 0.0,
    pivot: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Step pymunk. Returns the body's angle (F,) and centre (F, 2). It turns only where it hangs on a pivot."""
    import pymunk

    space = pymunk.Space()
    space.gravity = (0, gravity)
    space.iterations = 30
    space.collision_slop = 0.0
    moment = float("inf") if pivot is None else pymunk.moment_for_circle(1, 0, shape.radius)
    body = pymunk.Body(1, moment)
    body.position, body.velocity = centre, velocity
    vertices = shape.hull
    solid: pymunk.Shape = (
        pymunk.Circle(body, shape.radius) if vertices is None else pymunk.Poly(body, [tuple(v) for v in vertices])
    )
    solid.elasticity, solid.friction = elasticity, friction
    space.add(body, solid)
    if floor is not None:
        ground = pymunk.Segment(space.static_body, (-500, floor + 50), (500, floor + 50), 50)
        ground.elasticity = ground.friction = 1.0
        space.add(ground)
    if pivot is not None:
        space.add(pymunk.PivotJoint(space.static_body, body, pivot))
    angles, centres = np.zeros(frames), np.zeros((frames, 2))
    for t in range(frames):
        angles[t], centres[t] = body.angle, (body.position.x, body.position.y)
        for _ in range(_SUBSTEPS):
            space.step(1 / _SUBSTEPS)
    return angles, centres


# -------------------------------------------------------------------------------------------------------- the motions


def _compress(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Flattened against the ground under what stands on it, to 35–45 %, and back; the area stays."""
    t = np.arange(frames)
    squeeze = (0.58 + 0.06 * draw.x) * 0.5 * (1 - np.cos(2 * np.pi * t / (20 / draw.speed)))
    sy = 1 - squeeze
    matrix = np.zeros((frames, 2, 2))
    matrix[:, 0, 0], matrix[:, 1, 1] = 1 / np.sqrt(sy), sy
    bottom = _place(draw, 10, 8) + np.array([0, shape.bottom])
    centre = np.stack([np.full(frames, bottom[0]), bottom[1] - shape.bottom * sy], -1)
    return [Body(shape, matrix, centre)]


def _stretch(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Pulled at both ends, nearly sideways, to about twice its length, and back; the area stays."""
    t = np.arange(frames)
    sx = 1 + (1.0 + 0.15 * draw.x) * 0.5 * (1 - np.cos(2 * np.pi * t / (22 / draw.speed)))
    tilt = _rotation(np.full(frames, 0.3 * draw.side * draw.phase))
    scales = np.zeros((frames, 2, 2))
    scales[:, 0, 0], scales[:, 1, 1] = sx, 1 / np.sqrt(sx)
    matrix = tilt @ scales @ tilt.transpose(0, 2, 1)
    return [Body(shape, matrix, np.tile(_place(draw, 6, 14), (frames, 1)))]


def _bounce(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Dropped on the ground, with a little drift: down, up and down again, losing little."""
    floor, peak = _floor(draw), 0.4 * draw.radius * draw.speed
    gravity = peak / 6.5  # so that it meets the ground after 6.5 frames
    start = floor - shape.bottom - 0.5 * gravity * 6.5**2
    x = SIZE / 2 + 12 * draw.x
    _, centre = _simulate(
        frames, shape, (x, start), (0.5 * draw.side * draw.phase, 0), gravity=gravity, floor=floor, elasticity=0.95
    )
    return _rigid(shape, np.zeros(frames), centre)


def _roll(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Rolls on the ground without slipping: the hull's lowest point is at rest.

    With h(θ) the height of the centre above the ground, dy = -h'(θ) dθ and dx = h(θ) dθ: a disc moves evenly, a box
    tumbles over its corners.
    """
    steps = np.arange(frames * 32) / 32
    rate = 0.22 * draw.speed
    theta = rate * (steps - 0.008 * steps**2)  # rolling friction
    height = shape.support(draw.side * theta)
    distance = np.concatenate([[0], np.cumsum(0.5 * (height[1:] + height[:-1]) * np.diff(theta))])
    start = SIZE / 2 - draw.side * (SIZE / 2 - 13 + 3 * draw.x)
    x = start + draw.side * distance
    centre = np.stack([x, _floor(draw) - height], -1)[::32]
    return _rigid(shape, draw.side * theta[::32], centre)


def _explode(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Bursts after a few frames into six to eight wedges that fly apart, turn, and are slowed by the air."""
    pieces = 6 + int(3 * draw.phase)
    t = np.clip(np.arange(frames) - (2 + draw.phase), 0, None)
    flight = 0.27 * draw.radius * draw.speed * (1 - np.exp(-0.05 * t)) / 0.05
    fall = 0.5 * 0.02 * t**2
    place = _place(draw, 8, 8)
    bodies = []
    for k in range(pieces):
        low, high = 2 * np.pi * (k + draw.phase) / pieces, 2 * np.pi * (k + 1 + draw.phase) / pieces
        middle = 0.5 * (low + high)
        reach = 1 + 0.15 * np.sin(5.0 * k + 9 * draw.phase)
        turn = 0.06 * draw.side * np.cos(3.0 * k) * t
        # The wedge turns about its own middle, not about the tip that all share.
        hub = 0.6 * draw.radius * np.array([np.cos(middle), np.sin(middle)])
        matrix = _rotation(turn)
        way = flight[:, None] * reach * np.array([np.cos(middle), np.sin(middle)]) + fall[:, None] * np.array([0, 1])
        bodies.append(Body(shape, matrix, place + hub + way - matrix @ hub, (low, high)))
    return bodies


def _float(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Rises evenly like a balloon and sways a little."""
    t = np.arange(frames)
    rise, sway = 1.7 * draw.speed, 3 * draw.side * np.sin(2 * np.pi * t / 22)
    start = np.array([SIZE / 2 + 12 * draw.x, SIZE - 14 + 3 * draw.y])
    return _rigid(shape, 0.12 * draw.side * np.sin(2 * np.pi * t / 22), start + np.stack([sway, -rise * t], -1))


def _free_fall(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Let go at the top: gravity alone, out of the image at the bottom."""
    gravity = 0.027 * draw.radius * draw.speed
    start = (SIZE / 2 + 16 * draw.x, 9 + 3 * draw.y)
    _, centre = _simulate(frames, shape, start, (0, 0), gravity=gravity)
    return _rigid(shape, np.zeros(frames), centre)


def _slide(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Pushed along the ground without turning, stopped by friction after about 20 frames."""
    velocity, gravity = 0.37 * draw.radius * draw.speed, 0.4
    start = SIZE / 2 - draw.side * (SIZE / 2 - 14 + 3 * draw.x)
    floor = _floor(draw)
    _, centre = _simulate(
        frames,
        shape,
        (start, floor - shape.bottom),
        (draw.side * velocity, 0),
        gravity=gravity,
        floor=floor,
        friction=velocity / 20 / gravity,
    )
    return _rigid(shape, np.zeros(frames), centre)


def _spin(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """Turns about its centre, which stays."""
    angle = 2 * np.pi * draw.phase + draw.side * 0.27 * draw.speed * np.arange(frames)
    return _rigid(shape, angle, np.tile(_place(draw, 16, 16), (frames, 1)))


def _swing(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    """A pendulum on a string from a point near the top, let go at about 0.56 rad."""
    length, amplitude = 34 + 2 * draw.y, draw.side * (0.56 + 0.06 * draw.x)
    pivot = (SIZE / 2 + 5 * draw.x, 6 + 2 * draw.y)
    centre = (pivot[0] + length * np.sin(amplitude), pivot[1] + length * np.cos(amplitude))
    # The period of a swing is about 28 frames.
    gravity = length * (2 * np.pi * draw.speed / 28) ** 2
    turn, centres = _simulate(frames, shape, centre, (0, 0), gravity=gravity, pivot=pivot)
    string = make_shape("string", "string", length)
    hang = turn - amplitude
    return [
        Body(string, _rotation(hang), np.tile(np.array(pivot), (frames, 1))),
        Body(shape, _rotation(hang), centres),
    ]


def _rest(draw: _Draw, shape: Shape, frames: int) -> list[Body]:
    return _rigid(shape, np.zeros(frames), np.tile(_place(draw, 18, 18), (frames, 1)))


_MOTIONS: dict[str, Callable[[_Draw, Shape, int], list[Body]]] = {
    "compress": _compress,
    "bounce": _bounce,
    "roll": _roll,
    "explode": _explode,
    "float": _float,
    "free_fall": _free_fall,
    "slide": _slide,
    "spin": _spin,
    "stretch": _stretch,
    "swing": _swing,
    "rest": _rest,
}
