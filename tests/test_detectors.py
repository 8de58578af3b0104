"""benchmarks/faithful/detectors.py: what each says of a clip whose object and flow are known."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from faithful.detectors import DETECTORS

from hf_motive.lab import ClipSpec, render_clip

GRID = (5, 8, 8)


def weights(**told) -> dict[str, torch.Tensor | None]:
    spec = ClipSpec(
        **{"motion": "roll", "shape": "box", "color": "red", "background": "dotted", "num_frames": 17, **told}
    )
    pixels = render_clip(spec).frames
    return {detector.name: detector.weight(pixels, asdict(spec), GRID) for detector in DETECTORS}


def test_all_find_what_moves() -> None:
    found = weights()
    exact = found["exact flow"]
    for name, weight in found.items():
        assert weight is not None and weight.shape == GRID and weight.min() >= 0 and weight.max() <= 1, name
        if name != "no mask":
            together = torch.corrcoef(torch.stack([exact.flatten(), weight.flatten()]))[0, 1]
            assert together > (0.2 if "two pixels" in name else 0.4), name
    assert (found["no mask"] == 1).all()


def test_only_those_that_should_see_an_object_at_rest() -> None:
    found = weights(motion="rest")
    seen = {name for name, weight in found.items() if weight is not None}
    assert {"no mask", "the object, moving or not"} <= seen
    assert not {"DIS", "exact flow", "DIS, camera compensated"} & seen


def test_a_moving_camera_is_told_from_a_moving_object() -> None:
    found = weights(camera="pan", background="striped")
    whole, left = found["exact flow"], found["exact flow, camera compensated"]
    assert whole.median() > 0.02 and left.median() < 0.001, "the background is at rest again"
    assert left.max() > 0.5, "and the object moves on"


@pytest.mark.parametrize("noise", ["half a pixel", "two pixels"])
def test_noise_is_the_same_each_time(noise: str) -> None:
    name = f"exact flow, noise of {noise}"
    first, again = weights()[name], weights()[name]
    assert torch.equal(first, again) and not torch.equal(first, weights()["exact flow"])
