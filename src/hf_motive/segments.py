"""Time cut into segments: the latent frames of the standard clip, and windows of its length over a longer one."""

from __future__ import annotations

import math
from typing import NamedTuple

from .motion.mask import latent_frames
from .video import ClipStandard

#: A window's last frame may be due so many frames after its clip has ended: time stamps are rounded.
_ROUNDING = 1e-3


class Segment(NamedTuple):
    """A stretch of the standard clip.

    Attributes:
        start, end: Seconds from the clip's first frame; the end is where the next segment starts.
        latent: Which latent frames these are.
    """

    start: float
    end: float
    latent: range


def rate_of(standard: ClipStandard) -> float:
    """Frames per second of the standard clip.

    Raises:
        ValueError: It has none: its frames come as they are, and no segment could be told in seconds.
    """
    if standard.fps is None:
        raise ValueError(
            "the standard clip has no rate (fps=None), so that its segments have no times: give fps=, such as 16"
        )
    return standard.fps


def time_segments(standard: ClipStandard, time: int, seconds: float) -> list[Segment]:
    """The latent frames of a standard clip, in segments of about so many seconds.

    A latent frame is the least that a segment can be, and the VAE decides how long that is: its first one stands for
    the first pixel frame alone, where it is causal, and each later one for its group (4 frames in Wan). It goes to the
    segment in which its middle lies.

    Args:
        standard: With a rate.
        time: T, number of latent frames.
        seconds: Length of a segment.

    Returns:
        Segments that follow each other without a gap, from 0 to num_frames / fps.

    Raises:
        ValueError: `seconds` is not positive, or the standard has no rate.
    """
    fps = rate_of(standard)
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds must be the positive length of a segment, got {seconds}; 0.5 is usual")
    groups = latent_frames(standard.num_frames, time)
    places = [math.floor((group.start + group.stop) / 2 / fps / seconds) for group in groups]
    firsts = [frame for frame in range(time) if frame == 0 or places[frame] != places[frame - 1]]
    return [
        Segment(groups[first].start / fps, groups[last - 1].stop / fps, range(first, last))
        for first, last in zip(firsts, [*firsts[1:], time], strict=True)
    ]


def window_starts(length: float, standard: ClipStandard, stride: float | None = None) -> list[float]:
    """Where the windows of a long clip start: one every `stride`, and the last flush with the clip's end.

    Args:
        length: Of the clip, in seconds.
        standard: What a window is brought to; with a rate.
        stride: Seconds between the starts of two windows. None: half a window.

    Returns:
        Seconds from the clip's first frame, whole frames of the standard; [0] where the clip is not longer than a
        window (whether it is long enough, `load_clip` says).

    Raises:
        ValueError: `stride` is not positive, or it is longer than a window: what lies between two would not be seen.
    """
    fps = rate_of(standard)
    window = standard.num_frames
    step = window // 2 if stride is None else round(stride * fps)
    if not 1 <= max(step, stride is None) <= window:
        raise ValueError(
            f"stride must be from {1 / fps:g} s, a frame, to {window / fps:g} s, a window, got {stride}; None is half "
            "a window"
        )
    last = math.floor(length * fps + _ROUNDING) - window
    if last <= 0:
        return [0.0]
    starts = [*range(0, last, max(step, 1)), last]
    return [start / fps for start in starts]
