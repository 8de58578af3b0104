"""What comes of a choice: fine-tune the base on it, and ask it for clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_motive import MotiveTrainer, MotiveTrainingArguments
from hf_motive.lab import ClipSpec
from hf_motive.lab.evaluate import generate
from hf_motive.lab.spec import FPS
from hf_motive.video import save_clip

from .world import CLIP


def train_once(pipe: Any, rows: Any, folder: Path, **settings: Any) -> None:
    """Fine-tune the pipeline and keep its denoiser in FOLDER/transformer; one that lies there is taken as it is."""
    weights = folder / "transformer"
    if weights.exists():
        pipe.transformer = type(pipe.transformer).from_pretrained(weights)
        return
    fine_tune(pipe, rows, folder / "training", **settings)
    partial = folder / "transformer.partial"
    pipe.transformer.save_pretrained(partial)
    partial.rename(weights)


def fine_tune(pipe: Any, rows: Any, folder: Path, *, clips_seen: int, seed: int, lr: float, batch: int) -> None:
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


def ask(pipe: Any, specs: Sequence[ClipSpec], *, seed: int, steps: int, folder: Path) -> None:
    """Generate a clip a prompt: FOLDER/clips.npy, (N, F, 3, H, W) uint8, which is measured, and mp4 files to look at.

    Clip i has the noise of `seed + i`, whatever was trained: methods are compared on equal noise.
    """
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast on a CPU that has it
        clips = generate(pipe, specs, steps=steps, guidance=3.0, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "clips.npy", ((clips + 1) * 127.5).round().clamp(0, 255).byte().numpy())
    for i, clip in enumerate(clips):
        save_clip(folder / f"{i:03d}.mp4", clip, fps=FPS)
    (folder / "specs.json").write_text(json.dumps([spec.to_dict() for spec in specs], indent=1), encoding="utf-8")


def asked(folder: Path) -> tuple[np.ndarray, list[ClipSpec]]:
    """What `ask` left."""
    specs = json.loads((folder / "specs.json").read_text("utf-8"))
    return np.load(folder / "clips.npy"), [ClipSpec(**spec) for spec in specs]
