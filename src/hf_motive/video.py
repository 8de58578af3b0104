"""A clip, whatever it comes as, to a float tensor (F, 3, H, W) in [-1, 1].

Every kind of clip becomes one thing: frames in the order of their presentation, each with its time and a way to get
its pixels. Which frames the standard clip takes is decided on the times alone, so only those frames are converted to
RGB and resized, one after another, and decoding stops once the last of them is known.

Clips are standardised because length biases the score (arXiv 2601.08828: correlation 78 % when they are not).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ClipError

# Floats may leave [-1, 1] by rounding; by more they are in other units.
_RANGE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ClipStandard:
    """What every clip is brought to before it is compared with another.

    Args:
        num_frames: Frames of the clip, counted from its start. A shorter clip is refused.
        height: Pixels. The clip is resized to cover (height, width), then centre cropped.
        width: Pixels.
        fps: Frames per second: frame k is the source frame whose time stamp is nearest to k / fps after the first
            frame's. None takes the first `num_frames` frames as they come.
    """

    num_frames: int = 81
    height: int = 480
    width: int = 832
    fps: float | None = 16.0

    def __post_init__(self):
        for name in ("num_frames", "height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps must be a positive number, or None to take the frames as they come, got {self.fps}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


class _Frame(NamedTuple):
    time: float  # seconds, increasing, from any origin
    duration: float  # seconds until the next frame is due; 0 where nothing tells
    pixels: Callable[[], np.ndarray | Tensor]  # uint8 or float in [-1, 1]; (H, W, 3) or (3, H, W)
    aspect: float = 1.0  # width of a pixel over its height
    rate: float | None = None  # frames per second, as the file has it on average


def load_clip(
    video: Any, standard: ClipStandard | None = None, source_fps: float | None = None, *, start: float = 0.0
) -> Tensor:
    """Bring a clip to a standard.

    Args:
        video: One of
            a path or URL that fsspec can open;
            the bytes of a file;
            the `{"path", "bytes"}` of `datasets.Video(decode=False)`;
            a torchcodec `VideoDecoder`;
            a list of PIL images, or of frames as below;
            an array or tensor (F, H, W, 3) or (F, 3, H, W): uint8 in 0..255, or floating point in [-1, 1].
            Rotation side data is applied, alpha is dropped, pixels that are not square are made square.
        standard: Frame count, rate and size. None: all frames at their native size.
        source_fps: Frames per second of the source, in place of its time stamps. Frames without time stamps (images,
            arrays) are taken to be at the standard's rate where this is None.
        start: Seconds after the first frame at which the standard clip begins; it takes a standard with a rate.

    Returns:
        (F, 3, H, W), float32 in [-1, 1], on the CPU.

    A clip is long enough when the standard's last frame, due at (num_frames - 1) / fps, falls before the end of its
    own last frame, or by less than half a frame of the standard after it. A damaged file of which all wanted frames
    decode is a good clip.

    Raises:
        ClipError: `unreadable` (no such file, no video in it, broken before the wanted frames, not frames at all, or
            floats that are not in [-1, 1]), `too_short`, or `non_finite` (NaN or infinity in an array).
        TypeError: `video` is of none of these kinds.
        ValueError: `source_fps` is not a positive number, or `start` is negative or without a rate.
    """
    if not 0 <= start < float("inf") or (start and (standard is None or standard.fps is None)):
        raise ValueError(f"start={start} must be at least 0 seconds, of a standard with a rate: give the standard fps")
    if source_fps is not None and not 0 < source_fps < float("inf"):
        raise ValueError(f"source_fps must be a positive number of frames per second, got {source_fps}")
    name = _name(video)
    default_fps = source_fps or (standard.fps if standard else None) or 1.0
    frames = _frames(video, name, default_fps)
    if source_fps is not None:
        frames = (f._replace(time=i / source_fps, duration=1 / source_fps) for i, f in enumerate(frames))
    if standard is None:
        return _all(frames, name)
    if standard.fps is None:
        return _first(frames, standard, name)
    return _resample(frames, standard, name, start)


def clip_seconds(video: Any, fps: float) -> float:
    """How long a clip is: from its first frame to the end of its last. Its frames are decoded, and none is converted.

    Args:
        video: As for `load_clip`.
        fps: Frames per second of what carries no times (images, arrays).

    Raises:
        ClipError, TypeError: As `load_clip`.
    """
    start, end = None, 0.0
    for frame in _frames(video, _name(video), fps):
        start = frame.time if start is None else start
        end = frame.time + frame.duration - start
    return end


def read_clip(video: Any) -> tuple[Tensor, float | None]:
    """A clip as it is: all frames at their own size in 8 bits, and their rate.

    Args:
        video: As for `load_clip`. Floats are rounded, as in a file.

    Returns:
        (F, 3, H, W) uint8, on the CPU; and frames per second on average, None where the video carries no rate.

    Raises:
        ClipError: As `load_clip`.
        TypeError: `video` is of none of its kinds.
    """
    name = _name(video)
    clip, rate = [], None
    for frame in _frames(video, name, 1.0):
        pixels = _upright(frame.pixels(), name)
        clip.append(pixels if pixels.dtype == torch.uint8 else eight_bits(_float(pixels, name)))
        rate = frame.rate
    return _stack(clip, name, "bring its frames to one size, or leave it out"), rate


def eight_bits(frames: Tensor) -> Tensor:
    """Floats in [-1, 1] to the nearest of 0..255, uint8."""
    return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _all(frames: Iterator[_Frame], name: str) -> Tensor:
    clip = [_tensor(frame.pixels(), name) for frame in frames]
    return _stack(clip, name, "give load_clip a ClipStandard, which brings all frames to one size")


def _stack(clip: list[Tensor], name: str, remedy: str) -> Tensor:
    sizes = sorted({tuple(frame.shape[1:]) for frame in clip})
    if len(sizes) > 1:
        raise ClipError(
            "unreadable",
            f"{name} changes its size, (H, W) = {', '.join(map(str, sizes))}: {remedy}",
        )
    return torch.stack(clip)


def _first(frames: Iterator[_Frame], standard: ClipStandard, name: str) -> Tensor:
    clip = _empty(standard)
    count = 0
    for frame in frames:
        clip[count] = _fit(frame, standard, name)
        count += 1
        if count == standard.num_frames:
            return clip
    raise _too_short(name, count, None, standard)


def _resample(frames: Iterator[_Frame], standard: ClipStandard, name: str, offset: float = 0.0) -> Tensor:
    """Frame k is the source frame nearest in time to offset + k / fps; of two equally near, the earlier."""
    assert standard.fps is not None
    clip = _empty(standard)
    k = 0  # the next frame of the standard clip that is still missing
    count = 0
    start = 0.0
    before: _Frame | None = None
    fitted: tuple[float, Tensor] | None = None  # a slow source gives several frames of the clip

    def take(frame: _Frame) -> None:
        nonlocal k, fitted
        if fitted is None or fitted[0] != frame.time:
            fitted = (frame.time, _fit(frame, standard, name))
        clip[k] = fitted[1]
        k += 1

    for frame in frames:
        count += 1
        if before is None:
            start = frame.time + offset
            before = frame
        # The time is compared in frames of the standard, with room for the rounding of time stamps.
        while k < standard.num_frames and k <= (frame.time - start) * standard.fps + 1e-6:
            wanted = start + k / standard.fps
            take(before if wanted - before.time <= frame.time - wanted + 1e-6 / standard.fps else frame)
        if k == standard.num_frames:
            return clip
        before = frame
    assert before is not None  # no frames at all is an error of _frames
    end = before.time - start + before.duration
    while k < standard.num_frames and k / standard.fps <= end + 0.5 / standard.fps + 1e-6:
        take(before)
    if k < standard.num_frames:
        raise _too_short(name, count, end, standard)
    return clip


def _too_short(name: str, count: int, seconds: float | None, standard: ClipStandard) -> ClipError:
    length = f"{count} frame{'s' * (count != 1)}" + (f" ({seconds:.2f} s)" if seconds is not None else "")
    still = "is a still image: it" if count == 1 else ""
    wanted = f"{standard.num_frames} frames"
    if standard.fps is not None:
        wanted += f" at {standard.fps:g} fps ({(standard.num_frames - 1) / standard.fps:.2f} s)"
    return ClipError(
        "too_short",
        f"{name} {still + ' ' if still else ''}has {length}; the standard asks for {wanted}: "
        "lower num_frames, or leave the clip out",
    )


def _empty(standard: ClipStandard) -> Tensor:
    return torch.empty(standard.num_frames, 3, standard.height, standard.width)


def _tensor(pixels: np.ndarray | Tensor, name: str) -> Tensor:
    """One frame to (3, H, W), float32 in [-1, 1]."""
    return _float(_upright(pixels, name), name)


def _upright(pixels: np.ndarray | Tensor, name: str) -> Tensor:
    """One frame to (3, H, W), its values as they are."""
    frame = _as_tensor(pixels)
    if frame.ndim != 3 or (frame.shape[0] == 3) == (frame.shape[-1] == 3) or 0 in frame.shape:
        raise ClipError(
            "unreadable",
            f"{name} has frames of shape {tuple(frame.shape)}; expected (H, W, 3) or (3, H, W), "
            "that is a clip (F, H, W, 3) or (F, 3, H, W)",
        )
    return frame if frame.shape[0] == 3 else frame.permute(2, 0, 1)


def _float(frame: Tensor, name: str) -> Tensor:
    """A frame's values to float32 in [-1, 1]."""
    if frame.dtype == torch.uint8:
        return frame.to(torch.float32) / 127.5 - 1
    if not frame.is_floating_point():
        raise ClipError(
            "unreadable", f"{name} has frames of {frame.dtype}; expected uint8 in 0..255 or floats in [-1, 1]"
        )
    return frame.to(torch.float32)


def _as_tensor(pixels: np.ndarray | Tensor) -> Tensor:
    if isinstance(pixels, np.ndarray):
        # torch has neither the negative strides of a turned frame nor read-only memory: those are copied.
        return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    return pixels.detach().cpu()


def _fit(frame: _Frame, standard: ClipStandard, name: str) -> Tensor:
    """Resize to cover the standard's size, then crop the centre. Frame by frame: no native clip is held as floats."""
    image = _tensor(frame.pixels(), name)
    height, width = image.shape[1:]
    scale = max(standard.height / height, standard.width / (width * frame.aspect))
    size = (
        max(standard.height, round(height * scale)),
        max(standard.width, round(width * frame.aspect * scale)),
    )
    if size != (height, width):
        image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        image = image.clamp(-1, 1)
    top, left = (size[0] - standard.height) // 2, (size[1] - standard.width) // 2
    return image[:, top : top + standard.height, left : left + standard.width]


# Kinds of clips -------------------------------------------------------------------------------------------------


def _frames(video: Any, name: str, fps: float) -> Iterator[_Frame]:
    """The frames of any kind of clip; `fps` times those that have no time of their own."""
    file = _file(video)
    if file is not None:
        return _decode(file, name)
    if _is_decoder(video):
        return _from_decoder(video, name)
    return _from_sequence(_sequence(video), name, fps)


def _file(video: Any) -> str | bytes | None:
    """The path or the bytes of an encoded clip; None if `video` is not one."""
    if video is None:
        raise ClipError("unreadable", "the row has no video")
    if isinstance(video, Mapping) and ("bytes" in video or "path" in video):
        video = video.get("bytes") if video.get("bytes") is not None else video.get("path")
        if video is None:
            raise ClipError("unreadable", "the video has neither bytes nor a path: the row is empty")
    if isinstance(video, (bytes, bytearray, memoryview)):
        return bytes(video)
    if isinstance(video, (str, os.PathLike)):
        return os.fspath(video)
    return None


def file_name(path: str | os.PathLike[str]) -> str:
    """The file's own name of a path or URL, which says nothing of the folders of this machine."""
    path = os.fspath(path).split("::")[0]
    path = path.split("?")[0] if "://" in path else path
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _name(video: Any) -> str:
    """How messages call the clip: they are recorded, and published with the scores."""
    if isinstance(video, Mapping):
        if video.get("path"):
            return file_name(video["path"])
        video = video.get("bytes") or b""
    if isinstance(video, (str, os.PathLike)):
        return file_name(video)
    if isinstance(video, (bytes, bytearray, memoryview)):
        return f"a clip of {len(video):,} bytes"
    return f"a clip given as {type(video).__name__}"


def _open(file: str | bytes, name: str) -> AbstractContextManager[Any]:
    """A seekable binary file."""
    if isinstance(file, bytes):
        size: int | None = len(file)
        opened: Any = io.BytesIO(file)
    elif "://" in file:
        import fsspec

        try:
            opened = fsspec.open(file, "rb").open()
        except (OSError, ValueError, ImportError) as error:
            raise ClipError("unreadable", f"{name} cannot be opened: {_without_place(error)}") from error
        size = None
    else:
        path = Path(file)
        if not path.exists():
            raise ClipError("unreadable", f"{name} is not there: a path is relative to where the program was started")
        if not path.is_file():
            raise ClipError("unreadable", f"{name} is not a file")
        try:
            opened = path.open("rb")
        except OSError as error:
            raise ClipError("unreadable", f"{name} cannot be opened: {error.strerror}") from error
        size = path.stat().st_size
    if size == 0:
        opened.close()
        raise ClipError("unreadable", f"{name} is empty (0 bytes): fetch it again, or leave the clip out")
    return opened


def _without_place(error: Exception) -> str:
    """What a file system says, without the folder that the file is in."""
    if not isinstance(error, OSError) or "/" not in str(error):
        return str(error)
    return error.strerror or type(error).__name__


def _decode(file: str | bytes, name: str) -> Iterator[_Frame]:
    """Frames of an encoded clip, decoded as they are asked for."""
    import av

    with _open(file, name) as opened:
        try:
            container = av.open(opened, metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise ClipError("unreadable", f"{name} is not a video that FFmpeg can read: {error.strerror}") from error
        with container:
            # FFmpeg draws text files as terminal output: that is no clip.
            if not container.streams.video or container.format.name == "tty":
                raise ClipError("unreadable", f"{name} holds no video stream ({container.format.long_name})")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            period = float(1 / rate) if rate else 0.0
            average = float(stream.average_rate) if stream.average_rate else None
            aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            declared = stream.frames
            count, time, broken = 0, 0.0, None
            cut: list[None] = []  # one for each frame that the file's edit list leaves out
            try:
                for frame in _intact(container, stream, cut):
                    unit = frame.time_base or stream.time_base  # a frame left in the decoder may have lost its own
                    stamp = float(frame.pts * unit) if frame.pts is not None else None
                    # A frame without a time stamp, or with one in the past, follows its predecessor.
                    if count == 0:
                        time = stamp if stamp is not None else 0.0
                    else:
                        time = stamp if stamp is not None and stamp > time else time + period
                    duration = float(frame.duration * unit) if frame.duration else period
                    count += 1
                    yield _Frame(time, duration, lambda frame=frame: _rgb(frame, name), aspect, average)
            except (av.FFmpegError, OSError) as error:
                broken = error.strerror
            if broken is None and count + len(cut) >= declared and count > 0:
                return
            # Asked for more frames than there are, so it matters that some are missing.
            found = f"{count} frame{'s' * (count != 1)}" + (f" of {declared} decode" if declared else " decode")
            raise ClipError(
                "unreadable",
                f"{name} is truncated or damaged: {found}{f' ({broken})' if broken else ''}; "
                "fetch it again, or leave the clip out",
            )


def _intact(container: Any, stream: Any, cut: list[None]) -> Iterator[Any]:
    """Decoded frames in the order of presentation, up to the first damaged packet; `cut` grows with each that a file
    cut without encoding it anew (`ffmpeg -c copy`) holds only so that others can be decoded."""
    for packet in container.demux(stream):
        if packet.is_discard:
            cut.append(None)
        if packet.is_corrupt:
            yield from stream.decode(None)  # what is whole before it is still in the decoder
            return
        yield from packet.decode()


def _rgb(frame: Any, name: str) -> np.ndarray:
    """(H, W, 3) uint8, upright."""
    if frame.is_corrupt:
        raise ClipError("unreadable", f"{name} has a damaged frame at {frame.time} s: fetch it again, or leave it out")
    # Rotation is how far, in degrees against the clock, the frame is to be turned for display.
    return np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)


def _is_decoder(video: Any) -> bool:
    """A torchcodec `VideoDecoder`, known by what is called here, so that torchcodec need not be installed."""
    return callable(getattr(video, "get_frame_at", None)) and hasattr(video, "__len__")


def _from_decoder(decoder: Any, name: str) -> Iterator[_Frame]:
    if len(decoder) == 0:
        raise ClipError("unreadable", f"{name} has no frames")
    rate = getattr(getattr(decoder, "metadata", None), "average_fps", None)
    for index in range(len(decoder)):
        try:
            frame = decoder.get_frame_at(index)
        except (RuntimeError, IndexError) as error:
            raise ClipError("unreadable", f"{name} does not decode at frame {index}: {error}") from error
        yield _Frame(float(frame.pts_seconds), float(frame.duration_seconds), lambda data=frame.data: data, rate=rate)


def _sequence(video: Any) -> Sequence[Any] | np.ndarray | Tensor:
    if isinstance(video, (np.ndarray, Tensor)):
        if video.ndim != 4:
            raise ClipError(
                "unreadable",
                f"an array of shape {tuple(video.shape)} is not a clip; expected (F, H, W, 3) or (F, 3, H, W): "
                "of a batch pass one clip, video[0]",
            )
        return video
    if isinstance(video, (list, tuple)):
        if video and isinstance(video[0], list):  # what `datasets` makes of arrays
            try:
                array = np.asarray(video)
            except ValueError:
                raise ClipError("unreadable", "the frames, as lists of numbers, differ in size") from None
            return _sequence(array.astype(np.uint8) if array.dtype == np.int64 else array)
        return video
    raise TypeError(
        f"cannot read a clip from {type(video).__name__}: pass a path, bytes, {{'path', 'bytes'}}, a torchcodec "
        "VideoDecoder, a list of PIL images, or an array of frames"
    )


def _from_sequence(frames: Sequence[Any] | np.ndarray | Tensor, name: str, fps: float) -> Iterator[_Frame]:
    if len(frames) == 0:
        raise ClipError("unreadable", f"{name} has no frames")
    _check_floats(frames, name)
    for index in range(len(frames)):
        yield _Frame(index / fps, 1 / fps, lambda index=index: _pixels(frames[index], name))


def _pixels(frame: Any, name: str) -> np.ndarray | Tensor:
    if isinstance(frame, (np.ndarray, Tensor)):
        return frame
    if hasattr(frame, "convert"):  # a PIL image of any mode
        return np.asarray(frame.convert("RGB"))
    raise ClipError("unreadable", f"{name} holds a {type(frame).__name__}; expected PIL images or arrays of frames")


def _check_floats(frames: Sequence[Any] | np.ndarray | Tensor, name: str) -> None:
    """Refuse floats whose units can only be guessed, looking at the whole clip: one frame may be all bright."""
    low, high = float("inf"), float("-inf")
    for frame in frames:
        if not isinstance(frame, (np.ndarray, Tensor)):
            continue
        values = _as_tensor(frame)
        if not values.is_floating_point() or values.numel() == 0:
            continue
        if not torch.isfinite(values).all():
            raise ClipError("non_finite", f"{name} holds NaN or infinite values: leave the clip out, or repair it")
        least, most = torch.aminmax(values)
        low, high = min(low, least.item()), max(high, most.item())
    if high < low:
        return
    if low < -1 - _RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise ClipError(
            "unreadable",
            f"{name} has floats from {low:.3g} to {high:.3g}; expected [-1, 1]: "
            "for values in 0..255 pass video.astype('uint8')",
        )
    if low >= 0:
        # diffusers' output_type "np" and "pt" are in [0, 1]: read as [-1, 1] they would be a pale clip, silently.
        raise ClipError(
            "unreadable",
            f"{name} has floats from {low:.3g} to {high:.3g}, which look like [0, 1]; expected [-1, 1]: "
            "pass 2 * video - 1 (if the clip is that bright, pass uint8)",
        )


# Identity and writing -------------------------------------------------------------------------------------------


def content_id(video: Any, caption: str = "") -> str:
    """A stable name for a row: what the clip and its caption are, not where they lie.

    Args:
        video: As for `load_clip`. A file is hashed as it is, undecoded: its path and its bytes give the same id.
        caption: Part of the identity: the same clip under another caption is another row.

    Returns:
        16 hexadecimal digits of a SHA-256.

    Raises:
        ClipError: `unreadable`, if the file cannot be opened or there are no frames.
    """
    name = _name(video)
    digest = hashlib.sha256()
    file = _file(video)
    if isinstance(file, bytes):
        digest.update(file)
    elif file is not None:
        with _open(file, name) as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    else:
        for frame in _frames(video, name, fps=1.0):
            pixels = _as_tensor(frame.pixels()).contiguous().numpy()
            digest.update(f"{pixels.dtype}{pixels.shape}".encode())
            digest.update(pixels)
    # Hashing the content's hash keeps the end of the content and the start of the caption apart.
    return hashlib.sha256(digest.digest() + caption.encode()).hexdigest()[:16]


def save_clip(path: str | os.PathLike[str], frames: Tensor, fps: float = 16.0, *, crf: int = 18) -> None:
    """Write an h264 mp4. The file appears when it is complete, and not before.

    Args:
        path: Where to; the folder must exist.
        frames: (F, 3, H, W) in [-1, 1]. Colour is halved in resolution (yuv420p, what players expect) where both
            sides are even, and kept (yuv444p) where not.
        fps: Frames per second.
        crf: x264's constant rate factor: 18 looks lossless, 23 is its default, each 6 halve the size.

    Raises:
        ValueError: `frames` is not such a tensor.
    """
    import av

    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be (F, 3, H, W), got {tuple(frames.shape)}")
    if not frames.is_floating_point() or not (frames.abs() <= 1 + _RANGE_TOLERANCE).all():
        raise ValueError("frames must be finite floats in [-1, 1]")
    path = Path(path)
    pixels = eight_bits(frames.detach().cpu().float())
    height, width = frames.shape[2:]
    partial = path.with_name(f".{path.name}.partial")
    try:
        # Bit-exact: no time of creation in the file, so the same frames are the same bytes, and the same content_id.
        with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(10_000))
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
            # One thread, and no macroblock tree: x264 with it writes other bytes from run to run.
            stream.options = {"crf": str(crf), "mbtree": "0"}
            stream.codec_context.thread_count = 1
            for image in pixels.permute(0, 2, 3, 1).contiguous().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
