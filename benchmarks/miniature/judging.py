"""What is measured of a generated clip, and what it is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_motive.lab import render_clip
from hf_motive.lab.autoencoder import decode_whole, encode_whole
from hf_motive.lab.classifier import CLASSES, clip_features, fit_classifier
from hf_motive.lab.spec import FPS, MODEL_FRAMES, MOTIONS, balanced_specs
from hf_motive.metrics import load
from hf_motive.metrics.flow_statistics import flow_statistics

from .outcome import asked
from .world import REFERENCE_SEED

#: Modules that need neither weights nor a reference; what they say is in docs/metrics.md.
MODULES = ("temporal_jitter", "object_permanence", "warp_smoothness", "flow_dynamic_degree")


class Judge:
    """The classifier of motions, the modules, and the flow of simulated clips as the pipeline's VAE shows them.

    Args:
        folder: Where the flow statistics of the simulated clips are kept.
        vae: The pipeline's.
        reference: How many clips are simulated.
        fitted_to: How many clips the classifier is fitted to.
    """

    def __init__(self, folder: Path, vae: Any, reference: int, fitted_to: int):
        self.classifier = fit_classifier(fitted_to)
        self.modules = {name: load(name) for name in MODULES}
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "reference.pt").exists():
            specs = balanced_specs(reference, REFERENCE_SEED, static=0, moving_camera=0, num_frames=MODEL_FRAMES)
            flow = torch.stack([flow_statistics(_through(vae, render_clip(spec).frames)) for spec in specs])
            torch.save({"flow": flow, "motions": [spec.motion for spec in specs]}, folder / "reference.partial")
            (folder / "reference.partial").rename(folder / "reference.pt")

    def measure(self, folder: Path) -> None:
        """Measure what a model was asked for: FOLDER/measured.json, a row a clip, and FOLDER/flow.pt (N, D); once."""
        if (folder / "measured.json").exists():
            return
        rows, statistics = [], []
        for pixels, spec in zip(*asked(folder), strict=True):
            clip = torch.from_numpy(pixels)
            standard = clip / 127.5 - 1
            probabilities = self.classifier.probabilities(clip_features([standard]))[0]
            row = {
                "prompt": spec.caption,
                "motion": spec.motion,
                "seen": CLASSES[int(probabilities.argmax())],
                "probability": float(probabilities[CLASSES.index(spec.motion)]),
            }
            rows.append(row | {name: module.score(clip, FPS) for name, module in self.modules.items()})
            statistics.append(flow_statistics(standard))
        torch.save(torch.stack(statistics), folder / "flow.pt")
        partial = folder / "measured.partial"
        partial.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        partial.rename(folder / "measured.json")


def measured(folder: Path) -> tuple[list[dict[str, Any]], Tensor]:
    """What `Judge.measure` left: a row a clip, and their flow statistics (N, D)."""
    rows = json.loads((folder / "measured.json").read_text("utf-8"))
    return rows, torch.load(folder / "flow.pt", weights_only=True)


def reference(folder: Path, motion: str | None) -> Tensor:
    """Flow statistics (N, D) of the simulated clips of a motion, or of all."""
    kept = torch.load(folder / "reference.pt", weights_only=True)
    assert set(kept["motions"]) <= set(MOTIONS)
    rows = [i for i, name in enumerate(kept["motions"]) if motion in (None, name)]
    return kept["flow"][rows]


@torch.no_grad()
def _through(vae: Any, frames: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        decoded = decode_whole(vae, encode_whole(vae, frames.transpose(0, 1)[None])[0])
    return decoded[0].float().transpose(0, 1).clamp(-1, 1)
