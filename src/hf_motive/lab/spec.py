"""What a clip of the lab is: its labels and the seed of everything else, and how a balanced set of them is drawn."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# The ten categories of arXiv 2601.08828, each with the words that stand for it in a caption.
MOTIONS: dict[str, str] = {
    "compress": "is squeezed flat",
    "bounce": "bounces up and down",
    "roll": "rolls along",
    "explode": "explodes into pieces",
    "float": "floats upward",
    "free_fall": "falls freely",
    "slide": "slides to a stop",
    "spin": "spins in place",
    "stretch": "is stretched out",
    "swing": "swings on a string",
}
REST = "rest"  # the object of a static clip
_PHRASES = {**MOTIONS, REST: "stays still"}

SHAPES = ("ball", "box", "triangle", "star", "hexagon")
COLORS: dict[str, tuple[float, float, float]] = {  # RGB in 0..1
    "red": (0.88, 0.12, 0.12),
    "green": (0.10, 0.68, 0.20),
    "blue": (0.12, 0.28, 0.92),
    "yellow": (0.96, 0.84, 0.10),
    "purple": (0.58, 0.14, 0.78),
    "orange": (0.98, 0.50, 0.05),
}
BACKGROUNDS = ("striped", "checkered", "dotted", "wavy", "marbled")
CAMERAS: dict[str, str] = {"still": "", "pan": " while the camera pans", "zoom": " while the camera zooms in"}

SIZE = 64  # pixels, of the model and of the clips
FPS = 16
MODEL_FRAMES = 17  # 4 k + 1, as a causal VAE that compresses time by 4 takes them
CLIP_FRAMES = 25


@dataclass(frozen=True)
class ClipSpec:
    """One clip. Equal specs give equal clips, bit for bit on one machine and one set of library versions.

    Args:
        motion: One of `MOTIONS`, or "rest".
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        background: One of `BACKGROUNDS`.
        camera: "still", "pan" or "zoom".
        seed: Fixes what the labels leave open: size, place, direction, speed, tints, the texture's phase.
        num_frames: Frames, at 16 per second. A shorter clip is the start of a longer one.
        size: Height and width in pixels. Everything scales with it, so speed in pixels per frame does too.
    """

    motion: str
    shape: str
    color: str
    background: str
    camera: str = "still"
    seed: int = 0
    num_frames: int = CLIP_FRAMES
    size: int = SIZE

    def __post_init__(self):
        for name, known in (
            ("motion", _PHRASES),
            ("shape", SHAPES),
            ("color", COLORS),
            ("background", BACKGROUNDS),
            ("camera", CAMERAS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        if self.num_frames < 1 or self.size < 16:
            raise ValueError(
                f"a clip needs num_frames >= 1 and size >= 16, got num_frames={self.num_frames}, size={self.size}"
            )

    @property
    def caption(self) -> str:
        """Plain words, e.g. "a red ball bounces up and down in front of a striped background"."""
        article = "an" if self.color[0] in "aeiou" else "a"
        return (
            f"{article} {self.color} {self.shape} {_PHRASES[self.motion]} "
            f"in front of a {self.background} background{CAMERAS[self.camera]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values; `ClipSpec(**spec.to_dict())` is the spec again."""
        return asdict(self)


def balanced_specs(
    clips: int,
    seed: int,
    *,
    static: float = 0.05,
    moving_camera: float = 0.15,
    num_frames: int = CLIP_FRAMES,
    size: int = SIZE,
) -> list[ClipSpec]:
    """Specs whose labels are balanced and independent of each other.

    The motions share the moving clips equally (to within one). Within each motion, every value of every other label
    comes equally often (to within one), in an order drawn anew for each label: so no label tells anything about
    another beyond chance.

    Args:
        clips: How many.
        seed: Another seed draws other clips: sets of different seeds have no clip in common (up to 2^20 clips each).
        static: Share of clips in which nothing moves: an object at rest under a still camera.
        moving_camera: Share of the other clips in which the camera pans or zooms.
        num_frames, size: See `ClipSpec`.

    Returns:
        Shuffled specs.
    """
    if clips < 0 or not 0 <= static <= 1 or not 0 <= moving_camera <= 1:
        raise ValueError(
            f"clips must be >= 0, static and moving_camera in [0, 1]; got {clips}, {static}, {moving_camera}"
        )
    rng = np.random.default_rng([seed, 0])
    resting = round(clips * static)
    motions = _cycle(tuple(MOTIONS), clips - resting, rng)
    specs = []
    for motion in (*MOTIONS, REST):
        count = resting if motion == REST else motions.count(motion)
        cameras = ["still"] * count
        if motion != REST:
            # Rounded up or down at random, so that small sets keep the share too.
            moving = int(count * moving_camera + rng.random())
            cameras[:moving] = _cycle(("pan", "zoom"), moving, rng)
            rng.shuffle(cameras)
        labels = [_cycle(values, count, rng) for values in (SHAPES, tuple(COLORS), BACKGROUNDS)]
        specs += [
            (motion, shape, color, background, camera)
            for shape, color, background, camera in zip(*labels, cameras, strict=True)
        ]
    rng.shuffle(specs)
    return [
        ClipSpec(motion, shape, color, background, camera, seed * 2**20 + i, num_frames, size)
        for i, (motion, shape, color, background, camera) in enumerate(specs)
    ]


def _cycle(values: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """`count` values, each as often as the others to within one, in random order; who gets one more is random too."""
    order = [values[i] for i in rng.permutation(len(values))]
    cycle = [order[i % len(values)] for i in range(count)]
    rng.shuffle(cycle)
    return cycle
