"""The model's own clips for the queries' captions: most move otherwise than they were asked to, and are failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hf_motive.lab import ClipSpec
from hf_motive.lab.classifier import CLASSES, clip_features, fit_classifier
from hf_motive.lab.evaluate import generate
from hf_motive.lab.spec import FPS
from hf_motive.video import save_clip


def write_samples(
    pipe: Any, queries: Path, folder: Path, *, steps: int, fitted_to: int, count: int, seed: int = 0
) -> None:
    """FOLDER/clips/*.mp4 and FOLDER/metadata.jsonl, once: for each query a clip by the pipeline from its caption.

    Args:
        queries: Folder of clips of the lab, of which the first `count` are queries.
        steps: Of sampling.
        fitted_to: Simulated clips that the judge of motions is fitted to.

    Of each clip the metadata says what the query's does, its seed among it, and `shown`, the motion that the judge
    sees in it: where that is not `motion`, the clip is a failure.
    """
    if (folder / "metadata.jsonl").exists():
        return
    lines = (queries / "metadata.jsonl").read_text("utf-8").splitlines()[:count]
    specs = [ClipSpec(**{name: row[name] for name in ClipSpec.__dataclass_fields__}) for row in map(json.loads, lines)]
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast on a CPU that has it
        clips = generate(pipe, specs, steps=steps, guidance=3.0, seed=seed)
    seen = fit_classifier(fitted_to)(clip_features(list(clips))).tolist()
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    lines = []
    for place, (spec, clip, motion) in enumerate(zip(specs, clips, seen, strict=True)):
        name = f"clips/{place:04d}.mp4"
        save_clip(folder / name, clip, fps=FPS, crf=20)
        told = {"kind": "sample", "shown": CLASSES[motion], **spec.to_dict()}
        lines.append(json.dumps({"file_name": name, "caption": spec.caption, **told}))
    partial = folder / "metadata.jsonl.partial"
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(folder / "metadata.jsonl")
