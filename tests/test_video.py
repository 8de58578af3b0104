"""Clips of every kind, good and bad. The files are real: PyAV writes them here."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hf_motive.errors import ClipError
from hf_motive.video import ClipStandard, content_id, load_clip, save_clip

HEIGHT, WIDTH = 32, 48


def grey_of(index: int) -> int:
    """Frame `index` is grey of this level: which frame was picked can be read off."""
    return 16 + 5 * index


def write(path, stamps, *, rate=1000, rotation=None, images=None, **options):
    """A file with frame i, of grey `grey_of(i)`, at stamps[i] milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index, stamp in enumerate(stamps):
            image = images[index] if images is not None else np.full((HEIGHT, WIDTH, 3), grey_of(index), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def every(milliseconds, count):
    return [round(i * milliseconds) for i in range(count)]


def picked(clip):
    """Which source frame each frame of the clip is."""
    levels = (clip.mean(dim=(1, 2, 3)) + 1) * 127.5
    return [round((level - 16) / 5) for level in levels.tolist()]


def standard(num_frames=5, fps=16.0, height=HEIGHT, width=WIDTH):
    return ClipStandard(num_frames, height, width, fps)


def moving(frames=9, height=HEIGHT, width=WIDTH):
    """Smooth frames (F, 3, H, W) in [-1, 1], each different, no two sides alike."""
    f, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x / width * 1.6 - 0.8, y / height * 1.6 - 0.8, (f / frames * 1.6 - 0.8)], dim=1)


# Which frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamps", "fps", "expected"),
    [
        (every(1000 / 16, 6), 16, [0, 1, 2, 3, 4]),
        (every(1000 / 32, 12), 16, [0, 2, 4, 6, 8]),
        (every(1000 / 8, 4), 16, [0, 0, 1, 1, 2]),  # between two, the earlier
        (every(1000 / 24, 12), 16, [0, 1, 3, 4, 6]),  # 62.5 ms is nearest to 41.7 or 83.3: the earlier
        (every(1000 / 30, 12), 10, [0, 3, 6, 9, 11]),  # the last by the tolerance
        ([0, 10, 20, 300, 310, 320, 380], 10, [0, 2, 3, 3, 6]),  # variable rate: by time, not by number
        ([500, 600, 700, 800, 900], 10, [0, 1, 2, 3, 4]),  # time counts from the first frame
    ],
)
def test_frames_are_picked_by_time_stamp(tmp_path, stamps, fps, expected):
    path = write(tmp_path / "clip.mkv", stamps)
    assert picked(load_clip(path, standard(fps=float(fps)))) == expected


def test_negative_time_stamps_count_from_the_first_frame(tmp_path):
    path = write(tmp_path / "clip.mkv", [0, 100, 200, 300, 400], bf=2)
    frames = list(av.open(str(path)).decode(video=0))
    assert picked(load_clip(path, standard(3, 5.0))) == [0, 2, 4]
    assert len(frames) == 5


def test_frames_without_time_stamps_follow_each_other(tmp_path):
    """A raw h264 stream has no container to hold times: they come from the rate."""
    with av.open(str(tmp_path / "raw.h264"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv444p"
        for index in range(12):
            image = np.full((HEIGHT, WIDTH, 3), grey_of(index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert picked(load_clip(tmp_path / "raw.h264", standard(5, 12.5))) == [0, 2, 4, 6, 8]


def test_first_frames_as_they_come_and_all(tmp_path):
    path = write(tmp_path / "clip.mkv", [0, 10, 20, 300, 310, 320, 330])
    assert picked(load_clip(path, standard(fps=None))) == [0, 1, 2, 3, 4]
    assert picked(load_clip(path)) == [0, 1, 2, 3, 4, 5, 6]


def test_source_rate_stands_in_for_the_time_stamps(tmp_path):
    path = write(tmp_path / "clip.mkv", every(1000, 9))
    assert picked(load_clip(path, standard(5, 16.0), source_fps=32.0)) == [0, 2, 4, 6, 8]
    images = [Image.new("L", (WIDTH, HEIGHT), grey_of(i)) for i in range(9)]
    assert picked(load_clip(images, standard(5, 16.0), source_fps=32.0)) == [0, 2, 4, 6, 8]
    assert picked(load_clip(images, standard(5, 16.0))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_source_rate_must_be_a_rate(value):
    with pytest.raises(ValueError, match="source_fps must be a positive number"):
        load_clip(np.zeros((3, 8, 8, 3), np.uint8), source_fps=value)


def test_a_clip_may_end_half_a_frame_early(tmp_path):
    """Five frames at 10 fps end with the one due at 400 ms."""
    exact = write(tmp_path / "exact.mkv", every(100, 4), rate=10)  # its last frame lasts until 400 ms
    assert picked(load_clip(exact, standard(5, 10.0))) == [0, 1, 2, 3, 3]
    path = write(tmp_path / "short.mkv", every(80, 4), rate=Fraction(25, 2))  # until 320 ms
    with pytest.raises(ClipError) as info:
        load_clip(path, standard(5, 10.0))
    assert info.value.status == "too_short"
    assert str(info.value) == (
        f"{path.name} has 4 frames (0.32 s); the standard asks for 5 frames at 10 fps (0.40 s): "
        "lower num_frames, or leave the clip out"
    )
    assert len(load_clip(path, standard(4, 10.0))) == 4


def test_decoding_stops_when_the_last_frame_is_known(tmp_path, monkeypatch):
    import hf_motive.video as video

    path = write(tmp_path / "clip.mkv", every(20, 45), g=10)
    converted = []
    to_rgb = video._rgb
    monkeypatch.setattr(video, "_rgb", lambda frame, name: converted.append(frame.pts) or to_rgb(frame, name))
    seen = []
    intact = video._intact
    monkeypatch.setattr(video, "_intact", lambda *args: (seen.append(f) or f for f in intact(*args)))
    assert picked(load_clip(path, standard(3, 10.0))) == [0, 5, 10]
    assert converted == [0, 100, 200]
    assert len(seen) == 11


# Size, orientation, colour --------------------------------------------------------------------------------------


def test_resize_covers_and_crops_the_centre():
    """A column of white left of the middle half, one right: both are cut away by the crop."""
    frames = torch.full((2, 3, 20, 80), -1.0)
    frames[..., :20] = 1.0
    frames[..., 60:] = 1.0
    clip = load_clip(frames, ClipStandard(2, 10, 10, None))
    assert clip.shape == (2, 3, 10, 10) and clip.max() < -0.5
    tall = load_clip(frames.transpose(2, 3), ClipStandard(2, 10, 20, None))
    assert tall.shape == (2, 3, 10, 20) and tall.max() < -0.5


def test_resize_is_antialiased():
    """Stripes of two pixels in eight: sampled at the centre of each eight they are all there is."""
    stripes = torch.full((1, 3, 64, 64), -1.0)
    stripes[..., 3::8] = stripes[..., 4::8] = 1.0
    assert load_clip(stripes, ClipStandard(1, 8, 8, None)).max() < 0


def test_same_size_is_not_resampled():
    frames = moving()
    assert torch.equal(load_clip(frames, standard(9, 16.0)), frames)


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_rotation_is_applied(tmp_path, turn):
    """Phones write the sensor's frame, and beside it by how much to turn it against the clock."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2] = 255  # upper left
    path = write(tmp_path / "clip.mp4", every(50, 3), images=[image] * 3, rotation=turn)
    clip = load_clip(path)
    expected = torch.from_numpy(np.rot90(image, k=(turn // 90) % 4).copy()).permute(2, 0, 1) / 127.5 - 1
    assert clip.shape == (3, *expected.shape)
    assert (clip - expected).abs().mean() < 0.05


def test_pixels_that_are_not_square(tmp_path):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 40, 40, "yuv444p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        image = np.zeros((40, 40, 3), np.uint8)
        image[:, 10:30] = 255  # shown, the picture is 80 wide and this the middle 40
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert load_clip(path, ClipStandard(2, 40, 40, None))[..., 2:-2].min() > 0.9
    assert load_clip(path, ClipStandard(2, 20, 40, None))[..., :8].max() < -0.9


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "size"),
    [
        ("mp4", "libx264", "yuv420p", (HEIGHT, WIDTH)),
        ("mp4", "libx264", "yuv444p", (33, 51)),
        ("mkv", "libx264", "yuv420p10le", (HEIGHT, WIDTH)),
        ("mkv", "libx264", "gray", (HEIGHT, WIDTH)),
        ("mkv", "ffv1", "bgra", (HEIGHT, WIDTH)),
        ("mkv", "ffv1", "gray16le", (33, 51)),
        ("webm", "libvpx-vp9", "yuva420p", (HEIGHT, WIDTH)),
        ("avi", "mpeg4", "yuv420p", (HEIGHT, WIDTH)),
        ("gif", "gif", "rgb8", (HEIGHT, WIDTH)),
    ],
)
def test_formats(tmp_path, suffix, codec, pix_fmt, size):
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        for index in range(6):
            image = np.full((*size, 3), 40 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    clip = load_clip(path)
    assert clip.shape == (6, 3, *size) and clip.dtype == torch.float32
    levels = (clip.mean(dim=(1, 2, 3)) + 1) * 127.5
    # A GIF has 8 levels; FFmpeg reads grey as full range, even where x264 wrote the narrow one.
    tolerance = 20 if suffix == "gif" else 16 if pix_fmt == "gray" else 5
    torch.testing.assert_close(levels, 40.0 * torch.arange(6), atol=tolerance, rtol=0)
    assert len(load_clip(path, standard(5, 10.0))) == 5


# Kinds ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_is_the_same_clip(tmp_path):
    path = write(tmp_path / "clip.mp4", every(50, 6))
    data = path.read_bytes()
    expected = load_clip(path)
    for video in (str(path), data, {"path": str(path), "bytes": None}, {"path": "elsewhere.mp4", "bytes": data}):
        assert torch.equal(load_clip(video), expected)
        assert content_id(video, "a ball") == content_id(path, "a ball")
    assert torch.equal(load_clip(path.as_uri()), expected)


def test_every_kind_of_frames_is_the_same_clip():
    frames = torch.randint(0, 256, (4, 3, 8, 12), dtype=torch.uint8)
    expected = frames.float() / 127.5 - 1
    array = frames.permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(image) for image in array]
    alpha = [image.convert("RGBA") for image in images]
    for video in (frames, array, images, tuple(images), alpha, list(array), list(frames), frames.numpy()):
        assert torch.equal(load_clip(video), expected)
    torch.testing.assert_close(load_clip(expected.double().numpy()), expected)
    torch.testing.assert_close(load_clip(expected.permute(0, 2, 3, 1)), expected)


class _Decoded(NamedTuple):
    data: torch.Tensor
    pts_seconds: float
    duration_seconds: float


class RecordedDecoder:
    """torchcodec's `VideoDecoder` as far as it is used: `len` and `get_frame_at(index)` of `Frame(data, pts_seconds,
    duration_seconds)`, data uint8 (C, H, W). Written after its documentation, since torchcodec need not load here."""

    def __init__(self, stamps):
        self.stamps = stamps

    def __len__(self):
        return len(self.stamps)

    def get_frame_at(self, index):
        return _Decoded(torch.full((3, HEIGHT, WIDTH), grey_of(index), dtype=torch.uint8), self.stamps[index], 0.1)


def test_torchcodec_decoder_by_its_contract():
    assert picked(load_clip(RecordedDecoder([0, 0.01, 0.02, 0.3, 0.31, 0.32, 0.33]), standard(5, 10.0))) == [
        0,
        2,
        3,
        3,
        6,
    ]
    assert picked(load_clip(RecordedDecoder([0, 0.5, 1]))) == [0, 1, 2]
    with pytest.raises(ClipError, match="has no frames"):
        load_clip(RecordedDecoder([]))


def test_torchcodec_decoder(tmp_path):
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError):  # RuntimeError: it found no FFmpeg that it can load
        pytest.skip("torchcodec does not load here")
    path = write(tmp_path / "clip.mp4", [0, 10, 20, 300, 310, 320, 330])
    clip = load_clip(VideoDecoder(str(path)), standard(5, 10.0))
    assert picked(clip) == picked(load_clip(path, standard(5, 10.0)))


# Bad input ------------------------------------------------------------------------------------------------------


def refused(video, clip_standard=None, **kwargs):
    with pytest.raises(ClipError) as info:
        load_clip(video, clip_standard, **kwargs)
    return info.value.status, str(info.value)


def test_files_that_are_no_video(tmp_path):
    empty, text, tty = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "text.txt"
    empty.touch()
    text.write_text("not a video " * 100)
    tty.write_text("not a video " * 100)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for video, message in [
        (empty, f"{empty.name} is empty (0 bytes): fetch it again, or leave the clip out"),
        (b"", "a clip of 0 bytes is empty (0 bytes): fetch it again, or leave the clip out"),
        (text, f"{text.name} is not a video that FFmpeg can read: Invalid data found when processing input"),
        (tty, f"{tty.name} holds no video stream (Tele-typewriter)"),
        (sound, f"{sound.name} holds no video stream (WAV / WAVE (Waveform Audio))"),
        (tmp_path / "none.mp4", "none.mp4 is not there: a path is relative to where the program was started"),
        (tmp_path, f"{tmp_path.name} is not a file"),
        (None, "the row has no video"),
        ({"path": None, "bytes": None}, "the video has neither bytes nor a path: the row is empty"),
    ]:
        assert refused(video) == ("unreadable", message)
    assert refused("nowhere://clip.mp4")[1].startswith("clip.mp4 cannot be opened: Protocol not known")


@pytest.mark.parametrize("faststart", [False, True])
def test_truncated_files(tmp_path, faststart):
    """Cut in the middle: with its index at the end nothing is known; at the start, what was written still decodes."""
    path = tmp_path / "whole.mp4"
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (20, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write(path, every(100, 20), images=images, bf=0)
    if faststart:
        fast = tmp_path / "fast.mp4"
        with av.open(str(path)) as source, av.open(str(fast), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = fast
    data = path.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 6 // 10])
    status, message = refused(cut, standard(20, 10.0))
    assert status == "unreadable"
    if not faststart:
        assert message == f"{cut.name} is not a video that FFmpeg can read: Invalid data found when processing input"
        return
    assert message.startswith(f"{cut.name} is truncated or damaged: 1") and " frames of 20 decode" in message
    assert message.endswith("; fetch it again, or leave the clip out")
    # What is asked for is whole, so the clip is good.
    assert torch.equal(load_clip(cut, standard(9, 10.0)), load_clip(path, standard(9, 10.0)))


def test_too_few_frames():
    image = Image.new("RGB", (WIDTH, HEIGHT))
    assert refused([image], standard(5, 16.0)) == (
        "too_short",
        "a clip given as list is a still image: it has 1 frame (0.06 s); the standard asks for 5 frames at 16 fps "
        "(0.25 s): lower num_frames, or leave the clip out",
    )
    assert refused([image] * 3, standard(5, None)) == (
        "too_short",
        "a clip given as list has 3 frames; the standard asks for 5 frames: lower num_frames, or leave the clip out",
    )
    assert refused([]) == ("unreadable", "a clip given as list has no frames")
    assert refused(np.zeros((0, 8, 8, 3), np.uint8)) == ("unreadable", "a clip given as ndarray has no frames")


def test_still_picture_file_is_too_short(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "still.png")
    status, message = refused(tmp_path / "still.png", standard(5, 16.0))
    assert status == "too_short" and "is a still image" in message


def test_arrays_that_are_no_clip():
    assert refused(torch.zeros(3, 8, 8)) == (
        "unreadable",
        "an array of shape (3, 8, 8) is not a clip; expected (F, H, W, 3) or (F, 3, H, W): of a batch pass one clip, "
        "video[0]",
    )
    status, message = refused(torch.zeros(4, 5, 8, 8, dtype=torch.uint8))
    assert status == "unreadable" and "frames of shape (5, 8, 8); expected (H, W, 3) or (3, H, W)" in message
    assert "frames of shape (3, 8, 3)" in refused(np.zeros((4, 3, 8, 3), np.uint8))[1]  # either way round
    assert "frames of torch.int64; expected uint8 in 0..255" in refused(torch.zeros(4, 3, 8, 8, dtype=torch.int64))[1]
    assert "holds a str; expected PIL images" in refused(["a.png", "b.png"])[1]
    with pytest.raises(TypeError, match="cannot read a clip from int: pass a path, bytes"):
        load_clip(3)


def test_floats_in_other_units_are_refused_not_guessed():
    frames = moving()
    status, message = refused((frames + 1) * 127.5)
    assert status == "unreadable" and "expected [-1, 1]: for values in 0..255 pass video.astype('uint8')" in message
    status, message = refused((frames + 1) / 2)
    assert status == "unreadable" and "look like [0, 1]; expected [-1, 1]: pass 2 * video - 1" in message
    bright = frames.clone()
    bright[0] = 0.5  # one bright frame is no reason
    assert torch.equal(load_clip(bright), bright)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_floats_that_are_not_finite(value):
    frames = moving()
    frames[3, 1, 5, 5] = value
    status, message = refused(frames)
    assert status == "non_finite" and "NaN or infinite values" in message


def test_frames_of_several_sizes():
    images = [Image.new("RGB", (48, 32)), Image.new("RGB", (64, 32))]
    assert "changes its size, (H, W) = (32, 48), (32, 64)" in refused(images)[1]
    assert load_clip(images, ClipStandard(2, 16, 16, None)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ({"height": 480.0}, "height must be a whole number of at least 1, got 480.0"),
        ({"fps": 0}, "fps must be a positive number, or None to take the frames as they come, got 0"),
    ],
)
def test_standard_is_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClipStandard(**kwargs)
    assert ClipStandard().to_dict() == {"num_frames": 81, "height": 480, "width": 832, "fps": 16.0}


# Identity and writing -------------------------------------------------------------------------------------------


def test_content_id_is_the_content_not_the_place(tmp_path):
    path = write(tmp_path / "a.mp4", every(50, 3))
    moved = tmp_path / "b.mp4"
    moved.write_bytes(path.read_bytes())
    assert content_id(path, "x") == content_id(moved, "x")
    assert len(content_id(path)) == 16 and int(content_id(path), 16) >= 0
    other = write(tmp_path / "c.mp4", every(60, 3))
    frames = torch.randint(0, 256, (4, 3, 8, 12), dtype=torch.uint8)
    ids = [
        content_id(path, "x"),
        content_id(path, "y"),
        content_id(path),
        content_id(other, "x"),
        content_id(frames),
        content_id(frames.roll(1, 0)),
        content_id(frames[:3]),
        content_id(frames.transpose(2, 3)),
        content_id(b"a", "b"),
        content_id(b"ab", ""),
    ]
    assert len(set(ids)) == len(ids)
    assert content_id(frames) == content_id(frames.numpy()) == content_id(list(frames))
    with pytest.raises(ClipError, match="is not there"):
        content_id(tmp_path / "none.mp4")


@pytest.mark.parametrize("size", [(32, 48), (33, 51)])
def test_saved_clip_reads_back(tmp_path, size):
    frames = moving(9, *size)
    save_clip(tmp_path / "clip.mp4", frames, 16)
    back = load_clip(tmp_path / "clip.mp4", ClipStandard(9, *size, 16.0))
    assert (back - frames).abs().mean() < 0.02
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == 16
        assert container.streams.video[0].codec_context.name == "h264"
    save_clip(tmp_path / "again.mp4", frames, 16)
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.mp4", "clip.mp4"]


def test_save_refuses_what_is_no_clip(tmp_path):
    with pytest.raises(ValueError, match=r"frames must be \(F, 3, H, W\), got \(3, 8, 8\)"):
        save_clip(tmp_path / "clip.mp4", torch.zeros(3, 8, 8))
    for bad in (torch.full((2, 3, 8, 8), 2.0), torch.full((2, 3, 8, 8), float("nan")), torch.zeros(2, 3, 8, 8).byte()):
        with pytest.raises(ValueError, match=r"finite floats in \[-1, 1\]"):
            save_clip(tmp_path / "clip.mp4", bad)
    assert list(tmp_path.iterdir()) == []


def test_lists_of_numbers_are_what_datasets_makes_of_arrays():
    from datasets import Array4D, Dataset, Features

    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)
    dataset = Dataset.from_dict({"video": [frames]}, features=Features(video=Array4D((3, 8, 10, 3), "uint8")))
    listed = dataset[0]["video"]
    assert isinstance(listed, list)
    assert torch.equal(load_clip(listed), load_clip(frames)) and content_id(listed) == content_id(frames)
    assert refused([[[[0, 0, 0]]], [[[0, 0, 0], [1, 1, 1]]]])[1] == "the frames, as lists of numbers, differ in size"


def test_a_clip_cut_without_encoding_it_anew_is_whole(tmp_path) -> None:
    """Such a file holds frames that its edit list leaves out: they are not missing. Those of its end still may be."""
    save_clip(tmp_path / "whole.mp4", torch.rand(30, 3, 64, 64) * 2 - 1, 16)
    index_first = {"movflags": "faststart"}
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(tmp_path / "cut.mp4"), "w", options=index_first) as cut,
    ):
        stream = whole.streams.video[0]
        copied = cut.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is None:
                continue
            start = round(7 / 16 / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copied
            cut.mux(packet)
    with av.open(str(tmp_path / "cut.mp4")) as cut:
        assert cut.streams.video[0].frames == 30
    expected = load_clip(tmp_path / "whole.mp4")[7:]
    assert torch.equal(load_clip(tmp_path / "cut.mp4"), expected)
    data = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "damaged.mp4").write_bytes(data[: len(data) * 8 // 10])
    with pytest.raises(ClipError, match="damaged.mp4 is truncated or damaged: .* frames of 30 decode"):
        load_clip(tmp_path / "damaged.mp4")
