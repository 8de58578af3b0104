"""DIS against exact flow, on clips of the lab: settings compared on one set, the defaults by category on another.

    python benchmarks/flow.py                     # both tables, and benchmarks/results/flow.md
    python benchmarks/flow.py --clips 20 --stdout # quicker, nothing written

The clips pass through h264 as those of a corpus do. What is compared:

- end-point error: mean length of the difference, in pixels per frame, over pixels that stay visible, and over those of
  the object alone;
- overlap of the motion mask with the mask of the exact flow, at full resolution: IoU where both exceed 0.25, and soft
  IoU, sum of minima over sum of maxima. Under a moving camera the exact mask is that of the object's motion against
  the background, with a similarity fitted to the exact flow of the background subtracted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hf_motive.errors import ClipError
from hf_motive.lab import FPS, MODEL_FRAMES, MOTIONS, balanced_specs, render_clip
from hf_motive.motion import DISFlow, compensate_camera, latent_mask, magnitude, motion_mask
from hf_motive.video import load_clip, save_clip

SELECTION_SEED, REPORT_SEED = 7001, 7002
LEVEL = 0.25
SETTINGS = [
    ("medium", 0),
    ("medium", 128),
    ("medium", 192),
    ("medium", 256),
    ("fast", 0),
    ("fast", 256),
    ("ultrafast", 256),
]


class Case(NamedTuple):
    """A clip as it is read back, and what is known about it."""

    motion: str
    camera: str
    frames: Tensor
    flow: Tensor
    visible: Tensor
    objects: Tensor
    mask: Tensor  # of the exact motion against the background


class Scores(NamedTuple):
    """Of one clip; nan where a clip was taken to be static."""

    error: float
    object_error: float
    iou: float
    soft: float
    iou_sure: float
    soft_sure: float
    iou_rest: float
    soft_rest: float
    milliseconds: float


def cases(clips: int, seed: int) -> list[Case]:
    """Half of the clips with a still camera, half with one that pans or zooms."""
    specs = [
        spec
        for moving in (0.0, 1.0)
        for spec in balanced_specs(
            clips // 2, seed + int(moving), static=0, moving_camera=moving, num_frames=MODEL_FRAMES
        )
    ]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for spec in specs:
            clip = render_clip(spec)
            save_clip(Path(folder, "clip.mp4"), clip.frames, FPS, crf=20)
            own = magnitude(clip.flow - _camera(clip.flow, ~clip.objects[:-1]))
            found.append(
                Case(
                    spec.motion,
                    "still" if spec.camera == "still" else "moving",
                    load_clip(Path(folder, "clip.mp4")),
                    clip.flow,
                    clip.visible,
                    clip.objects[:-1],
                    motion_mask(own, static_threshold=0),
                )
            )
    return found


def _camera(flow: Tensor, background: Tensor) -> Tensor:
    """The affine field through the exact flow of the background."""
    height, width = flow.shape[2:]
    ys, xs = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    basis = torch.stack([xs, ys, torch.ones_like(xs)], dim=-1)
    fields = []
    for field, where in zip(flow.double(), background, strict=True):
        solution = torch.linalg.lstsq(basis[where], field[:, where].T).solution
        fields.append((basis @ solution).permute(2, 0, 1))
    return torch.stack(fields).to(flow.dtype)


def overlap(mask: Tensor, exact: Tensor) -> tuple[float, float]:
    """IoU at the level, and soft IoU."""
    a, b = mask > LEVEL, exact > LEVEL
    hard = (a & b).sum() / (a | b).sum()
    return hard.item(), (torch.minimum(mask, exact).sum() / torch.maximum(mask, exact).sum()).item()


def score(case: Case, estimator: DISFlow) -> Scores:
    start = time.process_time()
    flow, confidence = estimator(case.frames)
    milliseconds = (time.process_time() - start) * 1e3 / len(flow)
    error = torch.linalg.vector_norm(flow - case.flow, dim=1)

    def masked(motion: Tensor, sure: Tensor | None) -> tuple[float, float]:
        try:
            return overlap(motion_mask(magnitude(motion), confidence=sure), case.mask)
        except ClipError:
            return float("nan"), float("nan")

    return Scores(
        error[case.visible].mean().item(),
        error[case.visible & case.objects].mean().item(),
        *masked(flow, None),
        *masked(flow, confidence),
        *masked(compensate_camera(flow, confidence), confidence),
        milliseconds,
    )


def mean(scores: Iterable[Scores]) -> Scores:
    return Scores(*torch.tensor(list(scores), dtype=torch.float64).nanmean(dim=0).tolist())


def row(name: str, *groups: str) -> str:
    return f"| {name} | " + " | ".join(groups) + " |"


def overlaps(scores: Scores) -> list[str]:
    return [
        f"{scores.iou:.2f} / {scores.soft:.2f}",
        f"{scores.iou_sure:.2f} / {scores.soft_sure:.2f}",
        f"{scores.iou_rest:.2f} / {scores.soft_rest:.2f}",
    ]


def static_counts(count: int, estimator: DISFlow) -> tuple[int, int]:
    """Of `count` clips in which nothing moves, how many are flagged without and with the confidence."""
    plain = sure = 0
    with tempfile.TemporaryDirectory() as folder:
        for spec in balanced_specs(count, REPORT_SEED + 9, static=1.0, num_frames=MODEL_FRAMES):
            save_clip(Path(folder, "clip.mp4"), render_clip(spec).frames, FPS, crf=20)
            flow, confidence = estimator(load_clip(Path(folder, "clip.mp4")))
            for weight in (None, confidence):
                try:
                    motion_mask(magnitude(flow), confidence=weight)
                except ClipError:
                    plain += weight is None
                    sure += weight is not None
    return plain, sure


def report(clips: int) -> str:
    lines = [
        "# DIS against exact flow",
        "",
        f"`python benchmarks/flow.py --clips {clips}`: a set is {clips} clips of `hf_motive.lab`, 64 × 64 pixels,",
        f"{MODEL_FRAMES} frames, through h264 (crf 20), half with a still camera, half with one that pans or zooms.",
        "EPE: end-point error in pixels per frame, over all visible pixels and over those of the object. Masks: IoU",
        "at 0.25 / soft IoU, against the exact motion of the object relative to the background. *plain* is the",
        "paper's mask, *sure* the same weighted by the estimator's confidence, *compensated* that with the",
        "camera's motion subtracted as well. Milliseconds are of the processor, confidence included.",
        "",
        f"## Settings (selection set, seed {SELECTION_SEED})",
        "",
        "| preset, min_side | ms a pair | EPE all | EPE object | still: plain | sure | compensated "
        "| moving camera: plain | sure | compensated |",
        "|" + "---|" * 10,
    ]
    chosen = cases(clips, SELECTION_SEED)
    for preset, side in SETTINGS:
        estimator = DISFlow(preset, min_side=side)
        by_camera = defaultdict(list)
        for case in chosen:
            by_camera[case.camera].append(score(case, estimator))
        total = mean(by_camera["still"] + by_camera["moving"])
        lines.append(
            row(
                f"{preset}, {side}",
                f"{total.milliseconds:.1f}",
                f"{total.error:.2f}",
                f"{total.object_error:.2f}",
                *overlaps(mean(by_camera["still"])),
                *overlaps(mean(by_camera["moving"])),
            )
        )
    default = DISFlow()
    lines += [
        "",
        f"## The default, {default!r}, by category (report set, seed {REPORT_SEED})",
        "",
        "| motion | EPE all | EPE object | still: plain | sure | compensated "
        "| moving camera: plain | sure | compensated |",
        "|" + "---|" * 9,
    ]
    scores = defaultdict(list)
    grids = []
    called_static = 0
    for case in cases(clips, REPORT_SEED):
        found = score(case, default)
        called_static += found.iou_sure != found.iou_sure
        scores[case.motion, case.camera].append(found)
        grid = (1 + (MODEL_FRAMES - 1) // 4, 8, 8)
        grids.append(overlap(latent_mask(case.mask, grid), latent_mask(case.mask, grid, antialias=True)))
    for motion in (*MOTIONS, None):
        still, moving = (
            [s for (name, kind), found in scores.items() if kind == camera and motion in (None, name) for s in found]
            for camera in ("still", "moving")
        )
        total = mean(still + moving)
        lines.append(
            row(
                motion or "**all**",
                f"{total.error:.2f}",
                f"{total.object_error:.2f}",
                *overlaps(mean(still)),
                *overlaps(mean(moving)),
            )
        )
    count = max(10, clips // 4)
    plain, sure = static_counts(count, default)
    bilinear = torch.tensor(grids).nanmean(dim=0).tolist()
    lines += [
        "",
        f"- Of {count} clips in which nothing moves, {plain} are flagged static without the confidence, {sure} with",
        f"  it; of {clips} in which something does, {called_static}.",
        "- On the latent grid (5 × 8 × 8), the exact mask resized bilinearly (the paper) against the one of all",
        f"  pixels of a cell (`antialias=True`): IoU {bilinear[0]:.2f} / {bilinear[1]:.2f}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=80, help="clips a set, half of them with a moving camera")
    parser.add_argument("--stdout", action="store_true", help="print only, do not write benchmarks/results/flow.md")
    arguments = parser.parse_args()
    text = report(arguments.clips)
    print(text)
    if not arguments.stdout:
        path = Path(__file__).parent / "results" / "flow.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
