"""Clips of odd sizes, lengths and rates, drawn with whole numbers: the same bytes on every machine."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np


class Clip(NamedTuple):
    """What is drawn.

    Attributes:
        frames: How many.
        height: Pixels.
        width: Pixels.
        fps: Frames per second.
        moves: The frames whose step from the one before moves the square; the others stand still. None: all.
        step: Pixels.
        seed: Of the textures.
        flips: Every second frame is a negative.
    """

    frames: int
    height: int
    width: int
    fps: float
    moves: tuple[int, ...] | None = None
    step: int = 7
    seed: int = 0
    flips: bool = False


CLIPS = {
    # The count of pairs, at 8 frames a second: of 6 frames 2 pairs (1.5), of 10 also 2 (2.5), of 14 4 (3.5).
    "one": Clip(1, 64, 64, 8),
    "two_still": Clip(2, 64, 64, 8, moves=()),
    "three_still": Clip(3, 64, 80, 8, moves=()),
    "six_one_pair": Clip(6, 120, 200, 8, moves=(3,)),
    "six_two_pairs": Clip(6, 120, 200, 8, moves=(2, 5)),
    "ten_one_pair": Clip(10, 65, 91, 8, moves=(9,), seed=1),
    "ten_two_pairs": Clip(10, 65, 91, 8, moves=(1, 9), seed=1),
    "fourteen_three_pairs": Clip(14, 64, 64, 8, moves=(2, 6, 13), seed=2),
    "fourteen_four_pairs": Clip(14, 64, 64, 8, moves=(2, 6, 8, 13), seed=2),
    # Rates: 12 is 1.5 times 8 and takes every 2nd frame, 20 is 2.5 times and takes every 2nd as well.
    "slow": Clip(5, 97, 64, 4, seed=3),
    "twelve": Clip(7, 130, 74, 12, moves=(2, 3), seed=4),
    "sixteen": Clip(12, 120, 200, 16, seed=5),
    "twenty": Clip(9, 72, 128, 20, moves=(2, 7), seed=6),
    "twenty_four": Clip(25, 48, 64, 24, seed=7),
    "ntsc": Clip(11, 90, 160, 30000 / 1001, seed=8),
    "fast": Clip(17, 64, 96, 60, moves=(1, 2, 3), seed=9),
    # Sizes: whole and cut-off pixels at 224, above 512, more than twice as high as wide.
    "square": Clip(4, 224, 224, 16, seed=10),
    "sixty_by_79": Clip(4, 60, 79, 16, seed=11),
    "wide": Clip(3, 360, 640, 24, step=31, seed=12),
    "large": Clip(3, 600, 640, 8, step=31, seed=15),  # its threshold is 14 pixels
    "tall": Clip(3, 530, 250, 8, step=19, seed=13),  # 5.9, and 12.4 if the longer side decided
    "negatives": Clip(5, 100, 150, 16, seed=14, flips=True),
    # Cosines below zero, which count as zero: of DINO's features, and of CLIP's.
    "below_zero_subject": Clip(3, 64, 81, 8, step=31, seed=34, flips=True),
    "below_zero_background": Clip(3, 64, 81, 8, step=31, seed=28, flips=True),
}


def draw(clip: Clip) -> np.ndarray:
    """(F, H, W, 3) uint8: a textured square that goes to the right, and round, over a textured ground."""
    random = np.random.RandomState(clip.seed)  # its numbers are the same in every version of numpy
    ground = _texture(random, clip.height, clip.width)
    side = min(clip.height, clip.width) // 2
    square = _texture(random, side, side)
    top, left = clip.height // 3, clip.width // 3
    frames = []
    for f in range(clip.frames):
        if f and (clip.moves is None or f in clip.moves):
            left += clip.step
        frame = ground.copy()
        frame[top : top + side, (left + np.arange(side)) % clip.width] = square
        frames.append(255 - frame if clip.flips and f % 2 else frame)
    return np.stack(frames)


def digest(frames: np.ndarray) -> str:
    """The first 16 hexadecimal digits of SHA-256 of the frames."""
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()[:16]


def _texture(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Blocks of 6 pixels, their edges softened."""
    blocks = random.randint(0, 256, (height // 6 + 1, width // 6 + 1, 3))
    image = blocks.repeat(6, axis=0).repeat(6, axis=1)[:height, :width]
    for axis in (0, 1, 0, 1):
        image = (image + np.roll(image, 1, axis)) // 2
    return image.astype(np.uint8)
