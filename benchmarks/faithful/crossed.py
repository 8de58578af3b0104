"""A corpus in which every motion has a look of its own, and queries that move so under another motion's look: a score
that goes by looks finds the wrong clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from miniature.world import WorldClip

from hf_motive.lab import ClipSpec
from hf_motive.lab.spec import BACKGROUNDS, COLORS, MODEL_FRAMES, MOTIONS, SHAPES, balanced_specs

CORPUS_SEED, QUERY_SEED = 61_201, 61_202
OWN = 0.8  # of the corpus: clips that have their own motion's look; the others have that of another

#: motion -> shape, colour and background; no two motions have all three in common.
LOOKS = {
    motion: (SHAPES[i % len(SHAPES)], tuple(COLORS)[i % len(COLORS)], BACKGROUNDS[(i + i // 5) % len(BACKGROUNDS)])
    for i, motion in enumerate(MOTIONS)
}


def look(clip: Mapping[str, Any]) -> str:
    """The motion whose look a clip has."""
    looks = {look: motion for motion, look in LOOKS.items()}
    return looks[clip["shape"], clip["color"], clip["background"]]


def corpus_clips(count: int) -> list[WorldClip]:
    """Every motion alike (to within one), all of them shown as their captions say."""
    rng = np.random.default_rng(CORPUS_SEED)
    return [
        _clip(spec, spec.motion if rng.random() < OWN else _another(spec.motion, rng))
        for spec in balanced_specs(count, CORPUS_SEED, static=0, moving_camera=0, num_frames=MODEL_FRAMES)
    ]


def query_clips(per_motion: int) -> list[WorldClip]:
    """Motion after motion, and none under its own look."""
    rng = np.random.default_rng(QUERY_SEED)
    specs = balanced_specs(per_motion * len(MOTIONS), QUERY_SEED, static=0, moving_camera=0, num_frames=MODEL_FRAMES)
    ordered = sorted(specs, key=lambda spec: list(MOTIONS).index(spec.motion))
    return [_clip(spec, _another(spec.motion, rng)) for spec in ordered]


def _clip(spec: ClipSpec, look: str) -> WorldClip:
    shape, color, background = LOOKS[look]
    return WorldClip(replace(spec, shape=shape, color=color, background=background), "good", spec.motion)


def _another(motion: str, rng: np.random.Generator) -> str:
    others = [other for other in MOTIONS if other != motion]
    return others[rng.integers(len(others))]
