"""Run VBench's own code on small clips, and write down what it gives.

To repeat recorded.json (VBench's licence is Apache-2.0, torchvision's BSD-3-Clause, CLIP's MIT, DINO's Apache-2.0):

    pip download --no-deps -d originals vbench==0.1.5 torchvision==0.29.2 openai-clip==1.0.1
    curl -Lo originals/vision_transformer.py https://raw.githubusercontent.com/facebookresearch/dino/\
7c446df5b9f45747937fb0d72314eb9f7b66930a/vision_transformer.py
    python -m tests.vbench_oracle.record originals tests/vbench_oracle/recorded.json

Nothing is installed: packages are unpacked into a folder that goes away. The tests run the same, live, with
HF_MOTIVE_VBENCH=originals. With `--files FOLDER` the mp4 files of a folder are scored, decoded by VBench's readers
(OpenCV; decord if its wheel is among the originals, PyAV if not), in place of the clips.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import networks
from .clips import CLIPS, digest, draw
from .originals import VIDEOS, clip, dino, import_vbench, unpack

#: Fewer frames than these VBench cannot score: it divides by zero, or asserts.
LEAST_FRAMES = {"subject_consistency": 2, "background_consistency": 2, "motion_smoothness": 3}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("originals", type=Path, help="the folder with what was downloaded")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--files", type=Path, help="score the mp4 files of this folder")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        unpack(args.originals, Path(folder))
        vbench = import_vbench(decode=args.files is not None)
        result = _versions(Path(folder)) | {"decoder": vbench.decoder}
        if args.files is None:
            VIDEOS.update({name: (draw(clip), clip.fps) for name, clip in CLIPS.items()})
            result["clips"] = {name: digest(frames) for name, (frames, _) in VIDEOS.items()}
            counts = {name: len(frames) for name, (frames, _) in VIDEOS.items()}
            videos = {name: f"{name}.mp4" for name in CLIPS}
        else:
            videos = {path.stem: str(path) for path in sorted(args.files.glob("*.mp4"))}
            counts = dict.fromkeys(videos, 1000)
        result["dimensions"] = {}
        for name, run in _dimensions(vbench, args.originals, Path(folder)).items():
            chosen = {key: path for key, path in videos.items() if counts[key] >= LEAST_FRAMES.get(name, 1)}
            print(name, file=sys.stderr)
            result["dimensions"][name] = _run(run, name, chosen, Path(folder))
    text = json.dumps(result, indent=1)
    args.out.write_text(
        re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"
    )  # lists on a line


def _dimensions(vbench: SimpleNamespace, originals: Path, folder: Path) -> dict[str, Callable[[str], Any]]:
    """By name: VBench's own `compute_…`, from a list of videos in a JSON file to (mean, results), networks put in."""
    encoder = dino(originals / "vision_transformer.py")
    model = clip(next(folder.rglob("clip/model.py")))
    torch.save(networks.head_weights(), folder / "sa_0_4_vit_l_14_linear.pth")
    torch.hub.load = lambda **options: encoder  # type: ignore[assignment]
    sys.modules["clip"].load = lambda name, device: (model, None)  # type: ignore[attr-defined]
    vbench.imaging_quality.MUSIQ = _Marking
    strengths: list[list[float]] = []
    dynamic, smooth = vbench.dynamic_degree, vbench.motion_smoothness

    class Dynamic(dynamic.DynamicDegree):
        def load_model(self):
            self.model = lambda before, after, iters, test_mode: (None, networks.flow(before, after))

        def check_move(self, score_list):
            strengths.append([float(score) for score in score_list])
            return super().check_move(score_list)

    class Smooth(smooth.MotionSmoothness):
        def load_model(self):
            self.model = _interpolate

    dynamic.DynamicDegree, smooth.MotionSmoothness = Dynamic, Smooth

    def dynamic_degree(videos: str) -> Any:
        strengths.clear()
        mean, results = dynamic.compute_dynamic_degree(videos, "cpu", {"model": None})
        return mean, results, strengths

    dino_options = {"repo_or_dir": "", "model": "dino_vitb16", "read_frame": False}
    return {
        "subject_consistency": lambda videos: vbench.subject_consistency.compute_subject_consistency(
            videos, "cpu", dino_options
        ),
        "background_consistency": lambda videos: vbench.background_consistency.compute_background_consistency(
            videos, "cpu", ["ViT-B/32", False]
        ),
        "motion_smoothness": lambda videos: smooth.compute_motion_smoothness(
            videos, "cpu", {"config": None, "ckpt": None}
        ),
        "dynamic_degree": dynamic_degree,
        "aesthetic_quality": lambda videos: vbench.aesthetic_quality.compute_aesthetic_quality(
            videos, "cpu", ["ViT-L/14", str(folder)]
        ),
        "imaging_quality": lambda videos: vbench.imaging_quality.compute_imaging_quality(
            videos, "cpu", {"model_path": None}
        ),
    }


def _run(run: Callable[[str], Any], name: str, videos: dict[str, str], folder: Path) -> dict[str, Any]:
    rows = [{"dimension": [name], "prompt_en": key, "video_list": [path]} for key, path in videos.items()]
    listed = folder / f"{name}.json"
    listed.write_text(json.dumps(rows))
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        mean, results, *strengths = run(str(listed))
    scores = [float(result["video_results"]) for result in results]
    if name == "imaging_quality":  # VBench divides the mean alone by 100
        scores = [score / 100 for score in scores]
    found: dict[str, Any] = {"mean": float(mean), "per_video": dict(zip(videos, scores, strict=True))}
    if strengths:
        found["strengths"] = dict(zip(videos, strengths[0], strict=True))
    return found


class _Marking(torch.nn.Module):
    """In place of pyiqa's MUSIQ."""

    def __init__(self, pretrained_model_path: Any):
        super().__init__()

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        return networks.mark(frame)


def _interpolate(before: torch.Tensor, after: torch.Tensor, time: torch.Tensor, scale_factor: float, eval: bool):
    assert time.item() == 0.5 and scale_factor == 1
    return {"imgt_pred": networks.between(before, after)}


def _versions(folder: Path) -> dict[str, Any]:
    unpacked = sorted(path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info"))
    unpacked += sorted(path.parent.name for path in folder.glob("*/PKG-INFO"))
    return {"originals": unpacked, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
