"""What came of a choice: fine-tune the base on it, generate, measure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_motive import MotiveTrainer, MotiveTrainingArguments
from hf_motive.lab import ClipSpec
from hf_motive.lab.evaluate import generate
from hf_motive.lab.spec import FPS
from hf_motive.video import save_clip

from .judging import Judge
from .world import CLIP


def fine_tune(pipe: Any, rows: Any, *, clips_seen: int, seed: int, lr: float, batch: int, folder: Path) -> None:
    """Train all of the denoiser, in place, until so many clips have been seen."""
    arguments = MotiveTrainingArguments(
        str(folder),
        **CLIP,
        clips_seen=clips_seen,
        per_device_train_batch_size=batch,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=5,
        seed=seed,
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        logging_steps=10_000,
        disable_tqdm=True,
        sample_count=0,
        report_to=[],
    )
    MotiveTrainer(pipe, arguments, rows).train()


def outcome(pipe: Any, judge: Judge, specs: Sequence[ClipSpec], *, seed: int, steps: int, folder: Path) -> None:
    """Generate a clip a prompt, measure each, and leave mp4 files, `clips.json` and `flow.pt` in FOLDER.

    Clip i has the noise of seed `1000 * seed + i`, whatever was trained: candidates are compared on equal noise.
    """
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast on a CPU that has it
        clips = generate(pipe, specs, steps=steps, guidance=3.0, seed=1000 * seed)
    rows, statistics = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for i, (spec, clip) in enumerate(zip(specs, clips, strict=True)):
        name = f"{i:03d}.mp4"
        save_clip(folder / name, clip, fps=FPS)
        measured, flow_statistics = judge(clip, spec)
        rows.append({"file": name, "prompt": spec.caption, "motion": spec.motion, "seed": seed, **measured})
        statistics.append(flow_statistics)
    torch.save(torch.stack(statistics), folder / "flow.pt")
    (folder / "clips.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def measured(folder: Path) -> tuple[list[dict[str, Any]], Tensor]:
    """What `outcome` left: a row a clip, and their flow statistics (N, D)."""
    rows = json.loads((folder / "clips.json").read_text("utf-8"))
    return rows, torch.load(folder / "flow.pt", weights_only=True)
