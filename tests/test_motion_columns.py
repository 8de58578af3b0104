"""Motion as columns: of real mp4 files, through every way in which `datasets` maps."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Video
from datasets import Image as ImageFeature
from datasets.fingerprint import Hasher
from PIL import Image

from hf_motive import motion
from hf_motive.errors import ClipError
from hf_motive.motion_columns import LEVELS, MotionFeatures, add_motion, stored_mask
from hf_motive.video import ClipStandard, load_clip, save_clip
from tests.clips import moving_square

STANDARD = ClipStandard(num_frames=9, height=32, width=48, fps=16.0)
GRID = (3, 4, 6)
FEATURES = MotionFeatures(STANDARD, GRID)
NUMBERS = ("motion_mean", "motion_peak", "motion_camera", "motion_moving")


class Counted(motion.DISFlow):
    """DIS that leaves a byte in a file for every clip that it sees, in whatever process."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def __call__(self, frames):
        with open(self.path, "ab") as log:
            log.write(b".")
        return super().__call__(frames)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Dataset:
    """Two that move, one that does not, one too short, one that is no video, and a row without one."""
    folder = tmp_path_factory.mktemp("clips")
    for name, options in {"a": {}, "b": {}, "still": {"speed": 0.0}, "short": {"frames": 4}}.items():
        save_clip(folder / f"{name}.mp4", moving_square(ord(name[0]), **options), fps=16)
    (folder / "broken.mp4").write_bytes(b"no video")
    names = ["a", "b", "still", "short", "broken"]
    videos = [str(folder / f"{name}.mp4") for name in names]
    return Dataset.from_dict({"video": [*videos, None], "caption": [*names, "none"]}).cast_column("video", Video())


@pytest.fixture(scope="module")
def mapped(clips) -> Dataset:
    return add_motion(clips, FEATURES)


def rows(dataset) -> list[dict]:
    return [{k: v for k, v in row.items() if k.startswith("motion")} for row in dataset.remove_columns("video")]


def same(one: list[dict], other: list[dict]) -> bool:
    np.testing.assert_equal(one, other)  # NaN equals NaN
    return True


def test_the_columns_are_what_motion_says(clips, mapped):
    assert mapped.features["motion_mask"] == Array3D(GRID, "uint8")
    assert mapped.features["video"] == Video(), "the video column is as it was"
    assert mapped["motion_status"][:] == ["ok", "ok", "static", "too_short", "unreadable", "unreadable"]
    path = clips.cast_column("video", Video(decode=False))[0]["video"]["path"]
    frames = load_clip(path, STANDARD)
    flow, confidence = motion.DISFlow()(frames)
    size = motion.magnitude(flow)
    row = rows(mapped)[0]
    assert row["motion_mean"] == pytest.approx(size.mean().item(), rel=1e-6)
    assert size.mean() < row["motion_peak"] <= size.max()
    assert row["motion_moving"] == pytest.approx((size > 0.3).double().mean().item())
    still = motion.magnitude(flow - motion.compensate_camera(flow, confidence))
    assert row["motion_camera"] == pytest.approx(still.mean().item(), rel=1e-5)
    mask = motion.latent_mask(motion.motion_mask(size), GRID)
    stored = torch.as_tensor(np.asarray(row["motion_mask"], dtype=np.float32)) / LEVELS
    assert (stored - mask).abs().max() <= 0.5 / LEVELS + 1e-6


def test_a_bad_clip_costs_one_row_and_says_why(mapped):
    found = rows(mapped)
    assert all(row["motion_mask"] is None for row in found[2:])
    assert found[2]["motion_mean"] < 0.3, "a static clip has its numbers"
    assert all(math.isnan(found[3][name]) for name in NUMBERS)
    assert "too_short" in found[3]["motion_status"] and found[3]["motion_reason"]
    moving = mapped.filter(lambda peak: peak > 0.3, input_columns="motion_peak")
    assert moving["caption"][:] == ["a", "b"], "rows without a number never slip into a selection"


@pytest.mark.parametrize(
    "options",
    [
        {"batched": True, "batch_size": 1},
        {"batched": True, "batch_size": 2},
        {"batched": True, "batch_size": None},
        {"num_proc": 2},
        {"num_proc": 2, "batched": True, "batch_size": 2},
    ],
    ids=str,
)
def test_every_way_of_mapping_gives_the_same(options, clips, mapped):
    assert same(rows(add_motion(clips, FEATURES, load_from_cache_file=False, **options)), rows(mapped))


@pytest.mark.parametrize("batch", [{}, {"batched": True, "batch_size": 4}], ids=str)
@pytest.mark.parametrize("format", [None, "numpy", "torch"])
def test_a_dataset_with_a_format_gives_the_same(format, batch, clips, mapped):
    formatted = add_motion(clips.with_format(format), FEATURES, load_from_cache_file=False, **batch)
    assert formatted.format["type"] == format
    assert same(rows(formatted.with_format(None)), rows(mapped))
    stream = add_motion(clips.to_iterable_dataset(num_shards=2).with_format(format), FEATURES, **batch)
    assert isinstance(stream, IterableDataset)
    assert same(rows(stream.with_format(None)), rows(mapped))


def test_map_alone_takes_files(clips, mapped):
    files = clips.cast_column("video", Video(decode=False))
    names = [video and video["path"] for video in files["video"]]
    paths = files.remove_columns("video").add_column("video", names)
    for dataset in (files, paths, files.with_format("numpy")):
        assert same(rows(dataset.map(FEATURES).with_format(None)), rows(mapped))
    assert same(rows(files.to_iterable_dataset().map(FEATURES, batched=True, batch_size=3)), rows(mapped))
    with pytest.raises(ValueError, match=r"no column 'clip'; its columns are video, caption.*video_column="):
        files.map(MotionFeatures(STANDARD, GRID, video_column="clip"))


def test_splits(clips):
    splits = add_motion(DatasetDict(train=clips.select([0]), test=clips.select([2, 4])), FEATURES)
    expected = {"train": ["ok"], "test": ["static", "unreadable"]}
    assert {name: split["motion_status"][:] for name, split in splits.items()} == expected
    streams = IterableDatasetDict({name: split.to_iterable_dataset() for name, split in splits.items()})
    streams = add_motion(streams, FEATURES)
    assert {name: [row["motion_status"] for row in rows(split)] for name, split in streams.items()} == expected


def test_columns_can_be_removed_in_the_same_call(clips):
    assert "caption" not in add_motion(clips, FEATURES, remove_columns="caption").column_names
    assert "video" not in add_motion(clips, FEATURES, remove_columns=["video"]).column_names


def test_what_is_written_is_what_is_read(mapped, tmp_path):
    mapped = mapped.cast_column("video", Video(decode=False))
    mapped.to_parquet(tmp_path / "x.parquet")
    mapped.save_to_disk(tmp_path / "saved")
    table = Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    for read in (table, Dataset.load_from_disk(tmp_path / "saved")):
        assert read.features == mapped.features
        assert same(rows(read), rows(mapped))


@pytest.mark.parametrize("format", [None, "numpy", "torch"])
def test_a_mask_is_read_back_from_any_format(format, mapped):
    dataset = mapped.remove_columns("video").with_format(format)
    mask, mean = stored_mask(dataset[0], "motion_mask", GRID)
    assert torch.equal(mask, torch.tensor(rows(mapped)[0]["motion_mask"]) / LEVELS)
    assert mean == pytest.approx(rows(mapped)[0]["motion_mean"])
    for row, status in ((2, "static"), (5, "unreadable")):
        with pytest.raises(ClipError) as caught:  # and not a weight of NaN
            stored_mask(dataset[row], "motion_mask", GRID)
        assert (caught.value.status, caught.value.reason) == (status, mapped["motion_reason"][row])
    with pytest.raises(ValueError, match=r"float64 from 0 to \d+; expected whole numbers in 0..255, or floating"):
        stored_mask({"motion_mask": np.asarray(mapped["motion_mask"][0]) * 1.0}, "motion_mask", GRID)


@pytest.mark.parametrize("grid", [(3, 4), (0, 4, 6), (3, 4, 6.0), (4, 4, 6)], ids=str)
def test_a_wrong_grid_is_refused_at_once(grid):
    with pytest.raises(ValueError, match=r"grid must be \(T, h, w\), three whole|9 frames do not group into 4"):
        MotionFeatures(STANDARD, grid)


def run_afresh(folder, log, settings: str) -> int:
    """Map in an interpreter of its own; how many clips were estimated."""
    log.write_bytes(b"")
    script = f"""
from datasets import Dataset
from hf_motive.motion_columns import MotionFeatures, add_motion
from tests.test_motion_columns import GRID, STANDARD, Counted
features = MotionFeatures(STANDARD, {settings})
add_motion(Dataset.load_from_disk({str(folder)!r}), features)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
    return len(log.read_bytes())


def test_the_same_settings_compute_nothing_and_others_compute_anew(clips, tmp_path):
    log, folder = tmp_path / "log", tmp_path / "saved"
    clips.save_to_disk(folder)
    counted = f"estimator=Counted({str(log)!r})"
    assert run_afresh(folder, log, f"GRID, {counted}") == 3, "a clip that cannot be read is not estimated"
    assert run_afresh(folder, log, f"list(GRID), {counted}") == 0, "the same grid"

    def run(grid=GRID, **settings) -> int:
        log.write_bytes(b"")
        add_motion(Dataset.load_from_disk(str(folder)), MotionFeatures(STANDARD, grid, Counted(str(log)), **settings))
        return len(log.read_bytes())

    assert run() == 0
    assert run(torch.Size(GRID)) == 0
    assert run(compensate_camera=True) == 3
    assert run(compensate_camera=True) == 0
    assert run((3, 2, 3)) == 3


def test_another_version_computes_anew(monkeypatch):
    before = Hasher.hash(FEATURES)
    FEATURES({"video": moving_square(1)})
    assert Hasher.hash(MotionFeatures(STANDARD, GRID)) == Hasher.hash(FEATURES) == before
    monkeypatch.setattr("hf_motive.motion_columns.__version__", "0.0.0")
    assert Hasher.hash(FEATURES) != before


def test_a_compensated_camera_is_measured_all_the_same(clips):
    found = rows(add_motion(clips.select([0]), MotionFeatures(STANDARD, GRID, compensate_camera=True)))[0]
    plain = rows(add_motion(clips.select([0]), FEATURES))[0]
    assert found["motion_camera"] == plain["motion_camera"]
    assert found["motion_mean"] != plain["motion_mean"]


def test_a_missing_column_is_named(clips):
    with pytest.raises(ValueError, match=r"no column 'clip'; its columns are video, caption.*video_column="):
        add_motion(clips, MotionFeatures(STANDARD, GRID, video_column="clip"))


def test_frames_in_place_of_files():
    clip = moving_square(1)
    array = ((clip + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(frame) for frame in array]
    expected = FEATURES({"video": array})
    assert expected["motion_status"] == "ok"
    for video in (images, list(array), torch.from_numpy(array), [image.convert("RGBA") for image in images]):
        assert same([FEATURES({"video": video})], [expected])
        for batch in ([video, video], [None, video]):
            found = FEATURES({"video": batch})
            assert found["motion_status"][0] in ("ok", "unreadable") and len(found["motion_mask"]) == 2
            np.testing.assert_array_equal(found["motion_mask"][1], expected["motion_mask"])
    column = Dataset.from_dict({"video": [images, images]}, features=Features(video=List(ImageFeature())))
    for options in ({}, {"batched": True}):
        mask = add_motion(column, FEATURES, **options)[1]["motion_mask"]
        np.testing.assert_array_equal(mask, expected["motion_mask"])
