"""Any clip as a file that browsers play."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F

from ..errors import ClipError
from ..video import _file, _name, _open, load_clip, save_clip

_CODECS = {"h264": "video/mp4", "vp8": "video/webm", "vp9": "video/webm", "av1": "video/mp4"}
_PIXELS = ("yuv420p", "yuvj420p")  # Safari and phones play no other


class Embedded(NamedTuple):
    """A file's bytes, their MIME type, and how long it plays."""

    data: bytes
    mime: str
    seconds: float


def embed(video: Any, fps: float) -> Embedded:
    """A clip as an mp4 or a webm: as it is where browsers play it, as h264 where not.

    Args:
        video: As for `load_clip`.
        fps: Of videos that are frames and not files.

    Raises:
        ClipError: It cannot be read.
    """
    name, file = _name(video), _file(video)
    if file is not None:
        with _open(file, name) as opened:
            data = opened.read()
        mime, rate, seconds = _probe(data, name)
        if mime is not None:
            return Embedded(data, mime, seconds)
        video, fps = data, rate or fps
    clip = load_clip(video)
    height, width = clip.shape[2:]
    # yuv420p needs even sides: a side that is odd gets its last line twice.
    clip = F.pad(clip, (0, width % 2, 0, height % 2), mode="replicate")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        save_clip(path, clip, fps)
        return Embedded(path.read_bytes(), "video/mp4", len(clip) / fps)


def _probe(data: bytes, name: str) -> tuple[str | None, float | None, float]:
    """The MIME type if browsers play it as it is, frames per second, seconds."""
    import io

    import av

    try:
        opened: Any = av.open(io.BytesIO(data), metadata_errors="replace")
        with opened as container:
            if not container.streams.video:
                raise ClipError("unreadable", f"{name} holds no video stream ({container.format.long_name})")
            stream = container.streams.video[0]
            mime = _CODECS.get(stream.codec_context.name.removeprefix("lib").split("_")[0])
            if mime is None and "dav1d" in stream.codec_context.name:
                mime = "video/mp4"
            holder = "video/webm" if "webm" in container.format.name else "video/mp4"
            plays = mime is not None and stream.codec_context.pix_fmt in _PIXELS
            plays = plays and ("mp4" in container.format.name or "webm" in container.format.name)
            rate = stream.average_rate or stream.guessed_rate or Fraction(0)
            next(container.decode(stream))  # a page must not hold what will not play
            return holder if plays else None, float(rate) or None, (container.duration or 0) / 1e6
    except (av.FFmpegError, OSError, StopIteration) as error:
        reason = getattr(error, "strerror", None) or "no frame decodes"
        raise ClipError("unreadable", f"{name} is not a video that FFmpeg can read: {reason}") from error
