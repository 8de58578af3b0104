"""Simulated physics with known motion: clips of any number, their exact flow, their labels, and a small Wan for them.

A clip is a function of a `ClipSpec`. `render_clip(spec)` gives its frames, the exact flow between them and what is
visible; `hf_motive.lab.corpus` writes folders of mp4; `hf_motive.lab.train` trains a `WanPipeline` on such clips.
Needs the extra: `pip install "hf-motive[lab]"`.
"""

from .render import LabClip, render_clip
from .spec import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    FPS,
    MODEL_FRAMES,
    MOTIONS,
    REST,
    SHAPES,
    SIZE,
    ClipSpec,
    balanced_specs,
)

__all__ = [
    "BACKGROUNDS",
    "CAMERAS",
    "COLORS",
    "FPS",
    "MODEL_FRAMES",
    "MOTIONS",
    "REST",
    "SHAPES",
    "SIZE",
    "ClipSpec",
    "LabClip",
    "balanced_specs",
    "render_clip",
]
