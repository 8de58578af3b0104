"""The six dimensions of VBench against what VBench's own code gave (tests/vbench_oracle), and gives.

The same frames, the same small networks, and otherwise each its own: reading, preprocessing, DINO's and CLIP's code,
formula, mean. HF_MOTIVE_VBENCH=<folder with the originals> runs VBench as well: tests/vbench_oracle/record.py says how
to fill that folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from hf_motive import metrics
from hf_motive.lab import ClipSpec, render_clip
from hf_motive.metrics.dynamics import looked_at, strengths
from hf_motive.video import save_clip

from .clips import moving_square
from .vbench_oracle import networks
from .vbench_oracle.clips import CLIPS, digest, draw

FOLDER = Path(__file__).with_name("vbench_oracle")
DIMENSIONS = tuple(json.loads((FOLDER / "recorded.json").read_text())["dimensions"])
TOLERANCE = 1e-5  # float32 of two implementations of a transformer; the others agree to 1e-7

live = pytest.mark.skipif(
    "HF_MOTIVE_VBENCH" not in os.environ,
    reason="HF_MOTIVE_VBENCH is not set to a folder with VBench's originals (tests/vbench_oracle/record.py)",
)


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The small networks, as each of our modules takes them."""
    folder = tmp_path_factory.mktemp("networks")
    clip = networks.save_clip(folder / "clip")
    return {
        "subject_consistency": {"network": networks.save_dino(folder / "dino")},
        "background_consistency": {"network": clip},
        "motion_smoothness": {"network": networks.between},
        "dynamic_degree": {"network": networks.flow},
        "aesthetic_quality": {"network": clip, "head": networks.head_weights()},
        "imaging_quality": {"network": networks.mark},
    }


def record(*arguments: str, out: Path) -> dict:
    command = [sys.executable, "-m", "tests.vbench_oracle.record", os.environ["HF_MOTIVE_VBENCH"], str(out)]
    done = subprocess.run([*command, *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def differences(theirs: dict, ours: dict, name: str) -> list[float]:
    """Of each video, and of the mean."""
    of_videos = [abs(a - b) for a, b in zip(theirs["per_video"].values(), ours[f"{name}_per_video"], strict=True)]
    return [*of_videos, abs(theirs["mean"] - ours[name])]


@pytest.fixture(scope="module", params=["recorded", pytest.param("live", marks=live)])
def original(request, tmp_path_factory):
    if request.param == "recorded":
        return json.loads((FOLDER / "recorded.json").read_text())
    return record(out=tmp_path_factory.mktemp("record") / "live.json")


def test_the_clips_are_those_that_were_recorded(original):
    assert original["clips"] == {name: digest(draw(clip)) for name, clip in CLIPS.items()}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_our_figures_are_vbenchs(original, options, name):
    theirs = original["dimensions"][name]
    metric = metrics.load(name, **options[name])
    scores, frames = [], []
    for video in theirs["per_video"]:
        clip = torch.from_numpy(draw(CLIPS[video])).permute(0, 3, 1, 2)
        scores.append(metric.score(clip, CLIPS[video].fps))
        frames.append(len(clip))
    ours = {name: metric.mean(scores, frames), f"{name}_per_video": scores}
    worst = max(differences(theirs, ours, name))
    print(f"\n{name}: {len(scores)} clips, {worst:.1e}")
    assert worst <= (0 if name == "dynamic_degree" else TOLERANCE)
    assert max(scores) - min(scores) > 1e-2, "figures that are all the same would show nothing"


def test_pairs_of_frames_move_as_much(original):
    for video, theirs in original["dimensions"]["dynamic_degree"]["strengths"].items():
        clip = torch.from_numpy(draw(CLIPS[video])).permute(0, 3, 1, 2)
        assert list(strengths(looked_at(clip, CLIPS[video].fps), networks.flow)) == pytest.approx(theirs, rel=1e-6)


def test_what_is_easily_got_wrong_is_among_the_clips(original):
    """Half of the count to the even number, two still frames, the threshold of the shorter side."""
    dynamic = {name for name, value in original["dimensions"]["dynamic_degree"]["per_video"].items() if value}
    assert {"two_still", "six_two_pairs", "ten_two_pairs", "fourteen_four_pairs", "tall"} <= dynamic
    assert not {"one", "three_still", "six_one_pair", "ten_one_pair", "fourteen_three_pairs", "large"} & dynamic


@pytest.mark.parametrize("name", ["subject_consistency", "background_consistency"])
def test_a_cosine_below_zero_is_among_the_clips(options, name):
    metric = metrics.load(name, **options[name])
    features = metric.embed(torch.from_numpy(draw(CLIPS[f"below_zero_{name.split('_')[0]}"])).permute(0, 3, 1, 2))
    assert torch.nn.functional.cosine_similarity(features[:-1], features[1:]).min() < -1e-3


@live
def test_the_two_rafts_are_one():
    """torchvision's network computes what the original does, padding and rate of pixels included."""
    command = [sys.executable, "-m", "tests.vbench_oracle.raft", os.environ["HF_MOTIVE_VBENCH"]]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(f"\nRAFT: {found}")
    assert found["difference"] < 1e-4 * found["longest"]


@live
def test_files_that_vbench_decodes_itself(tmp_path, options):
    """From the file on: VBench decodes with OpenCV and decord, we do with PyAV."""
    folder = tmp_path / "files"
    folder.mkdir()
    for row, fps in enumerate((8.0, 16.0, 24.0)):
        spec = ClipSpec("bounce", "ball", "red", "checkered", camera="pan" if row else "still", seed=row)
        save_clip(folder / f"bounce{row}.mp4", render_clip(spec).frames, fps=fps)
    save_clip(folder / "square.mp4", moving_square(1, frames=13, height=120, width=200), fps=12)
    theirs = record("--files", str(folder), out=tmp_path / "files.json")
    files = sorted(folder.glob("*.mp4"))
    for name in DIMENSIONS:
        ours = metrics.load(name, **options[name]).compute(predictions=files)
        worst = max(differences(theirs["dimensions"][name], ours, name))
        print(f"\n{name}: {len(files)} files, decoded by OpenCV and {theirs['decoder']}: {worst:.1e}")
        assert worst <= (0 if name == "dynamic_degree" else 1e-3)  # versions of FFmpeg may differ in a grey level
