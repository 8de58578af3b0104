"""Motion as columns: of real mp4 files, through every way in which `datasets` maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, DatasetDict, IterableDataset, Video

from hf_motive import motion
from hf_motive.motion_columns import LEVELS, MotionFeatures, add_motion
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
    """Two that move, one that does not, one too short, one that is no video."""
    folder = tmp_path_factory.mktemp("clips")
    for name, options in {"a": {}, "b": {}, "still": {"speed": 0.0}, "short": {"frames": 4}}.items():
        save_clip(folder / f"{name}.mp4", moving_square(ord(name[0]), **options), fps=16)
    (folder / "broken.mp4").write_bytes(b"no video")
    names = ["a", "b", "still", "short", "broken"]
    return Dataset.from_dict({"video": [str(folder / f"{n}.mp4") for n in names], "caption": names}).cast_column(
        "video", Video()
    )


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
    assert mapped["motion_status"][:] == ["ok", "ok", "static", "too_short", "unreadable"]
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
    "options", [{"batched": True, "batch_size": 2}, {"num_proc": 2}], ids=["batched", "two processes"]
)
def test_every_way_of_mapping_gives_the_same(options, clips, mapped):
    assert same(rows(add_motion(clips, FEATURES, load_from_cache_file=False, **options)), rows(mapped))


def test_streams_and_splits(clips, mapped):
    stream = add_motion(clips.cast_column("video", Video(decode=False)).to_iterable_dataset(num_shards=2), FEATURES)
    assert isinstance(stream, IterableDataset)
    assert same(rows(stream), rows(mapped))
    splits = add_motion(DatasetDict(train=clips.select([0]), test=clips.select([2, 4])), FEATURES)
    assert {name: split["motion_status"][:] for name, split in splits.items()} == {
        "train": ["ok"],
        "test": ["static", "unreadable"],
    }


def test_the_same_settings_compute_nothing_and_others_compute_anew(clips, tmp_path):
    log = tmp_path / "log"
    folder = tmp_path / "saved"
    clips.save_to_disk(folder)

    def run(**settings) -> int:
        log.write_bytes(b"")
        add_motion(Dataset.load_from_disk(str(folder)), MotionFeatures(STANDARD, GRID, Counted(str(log)), **settings))
        return len(log.read_bytes())

    assert run() == 3, "a clip that cannot be read is not estimated"
    assert run() == 0
    assert run(compensate_camera=True) == 3
    assert run(compensate_camera=True) == 0


def test_a_compensated_camera_is_measured_all_the_same(clips):
    found = rows(add_motion(clips.select([0]), MotionFeatures(STANDARD, GRID, compensate_camera=True)))[0]
    plain = rows(add_motion(clips.select([0]), FEATURES))[0]
    assert found["motion_camera"] == plain["motion_camera"]
    assert found["motion_mean"] != plain["motion_mean"]


def test_a_missing_column_is_named(clips):
    with pytest.raises(ValueError, match=r"no column 'clip'; its columns are video, caption.*video_column="):
        add_motion(clips, MotionFeatures(STANDARD, GRID, video_column="clip"))


def test_frames_in_place_of_files():
    frames = [moving_square(1)[:, :, :, :].permute(0, 2, 3, 1).numpy()]
    row = FEATURES({"video": frames[0]})
    assert row["motion_status"] == "ok"
    batch = FEATURES({"video": frames})
    np.testing.assert_array_equal(batch["motion_mask"][0], row["motion_mask"])
