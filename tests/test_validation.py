"""The measures of motion rank a clip over itself spoilt, on seeds that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_motive import metrics
from hf_motive.lab import MODEL_FRAMES, LabClip, balanced_specs, render_clip
from hf_motive.lab.corruptions import OBJECT_CORRUPTIONS, corrupt, corrupt_object
from hf_motive.metrics.flow_statistics import NAMES, flow_statistics, frechet_distance
from hf_motive.metrics.jitter import temporal_jitter
from hf_motive.metrics.permanence import object_permanence
from hf_motive.motion import DISFlow

COUNT = 10


@cache
def scenes(seed: int) -> list[LabClip]:
    specs = balanced_specs(COUNT, seed, static=0, moving_camera=0, num_frames=MODEL_FRAMES)
    return [render_clip(spec) for spec in specs]


@cache
def clips(kind: str, seed: int = 911_001) -> list[Tensor]:
    """A clip of each motion, clean or spoilt, as uint8."""
    found = []
    for row, clip in enumerate(scenes(seed)):
        if kind in OBJECT_CORRUPTIONS:
            frames = corrupt_object(clip, kind, row)
        else:
            frames = clip.frames if kind == "clean" else corrupt(clip.frames, kind, row)
        found.append(((frames + 1) * 127.5).round().byte())
    return found


@cache
def flows(kind: str, seed: int = 911_001) -> list[Tensor]:
    estimate = DISFlow(confidence=False)
    return [estimate(clip / 127.5 - 1).flow for clip in clips(kind, seed)]


def measured(measure: Callable[..., Any], kind: str, seed: int = 911_001) -> Tensor:
    return torch.stack(
        [torch.as_tensor(measure(*one)) for one in zip(clips(kind, seed), flows(kind, seed), strict=True)]
    )


@pytest.mark.parametrize("kind", ["shuffled", "jittered", "flickering", "vanishing"])
def test_spoilt_motion_shakes_more(kind):
    apart = measured(temporal_jitter, kind) - measured(temporal_jitter, "clean")
    assert (apart > 0).float().mean() >= 0.8 and apart.mean() > 0.05


@pytest.mark.parametrize("kind", ["vanishing", "exchanged", "shuffled"])
def test_what_does_not_stay_is_missed(kind):
    apart = measured(object_permanence, "clean") - measured(object_permanence, kind)
    assert apart.min() > 0 and apart.mean() > 0.1


def test_one_that_comes_from_nowhere_is_missed_as_one_that_is_gone():
    for clip in clips("vanishing")[:2]:
        assert object_permanence(clip.flip(0)) == pytest.approx(object_permanence(clip), abs=0.1)
        assert object_permanence(clip.flip(0)) < 0.85


def test_a_change_of_light_is_no_loss():
    clip = clips("clean")[0].float()
    dimmed = torch.cat([clip[:8], 0.8 * clip[8:]]).round().byte()
    assert object_permanence(dimmed) == pytest.approx(object_permanence(clip.byte()), abs=0.03)


def test_a_frozen_clip_has_the_best_of_both_and_another_metric_catches_it():
    frozen = clips("frozen")[0]
    assert temporal_jitter(frozen) == 0 and object_permanence(frozen) == 1
    degree = metrics.load("flow_dynamic_degree", fps=16)
    found = degree.compute(predictions=[clips("clean")[0], frozen])["flow_dynamic_degree_per_video"]
    assert found == [1, 0]


def test_even_motion_has_no_jitter_and_what_turns_about_has_all_of_it():
    clip = torch.zeros(5, 3, 64, 64, dtype=torch.uint8)
    even = torch.zeros(4, 2, 64, 64)
    even[:, 0] = 3
    assert temporal_jitter(clip, even) == pytest.approx(0, abs=1e-6)
    about = even * torch.tensor([1, -1, 1, -1])[:, None, None, None]
    assert temporal_jitter(clip, about) == pytest.approx(6 / 6.2, abs=1e-4)


@pytest.mark.parametrize("measure", [temporal_jitter, object_permanence, flow_statistics])
def test_a_clips_size_and_its_type_do_not_matter(measure):
    clip = clips("clean")[1]
    usual = torch.as_tensor(measure(clip))
    assert torch.allclose(usual, torch.as_tensor(measure(clip / 127.5 - 1)), atol=1e-3)
    large = F.interpolate(clip.float(), scale_factor=3, mode="bicubic").clamp(0, 255).byte()
    assert torch.allclose(usual, torch.as_tensor(measure(large)), atol=0.3 if measure is flow_statistics else 0.03)


@pytest.mark.parametrize("measure", [temporal_jitter, object_permanence, flow_statistics])
def test_what_cannot_be_measured_is_said(measure):
    clip = clips("clean")[0]
    with pytest.raises(ValueError, match="a clip of 1 does not show this: it takes [23] frames or more"):
        measure(clip[:1])
    with pytest.raises(ValueError, match=r"a clip must be \(F, 3, H, W\), got \(17, 1, 64, 64\)"):
        measure(clip[:, :1])
    with pytest.raises(ValueError, match=r"flow must be \(16, 2, H, W\) for this clip, got \(3, 2, 64, 64\)"):
        measure(clip, torch.zeros(3, 2, 64, 64))


# --------------------------------------------------------------------------------------------------------------- sets


@pytest.mark.parametrize("kind", ["shuffled", "jittered", "frozen", "flickering", "vanishing"])
def test_a_set_of_spoilt_clips_is_farther_away(kind):
    real, clean, spoilt = (measured(flow_statistics, *which) for which in (("clean", 911_002), ("clean",), (kind,)))
    assert frechet_distance(spoilt, real) > 2 * frechet_distance(clean, real)


def test_statistics_are_as_many_for_any_clip_and_finite():
    for clip in (clips("frozen")[0], clips("shuffled")[0], clips("clean")[0][:3]):
        found = flow_statistics(clip)
        assert found.shape == (len(NAMES),) and torch.isfinite(found).all()


def test_the_distance_of_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(40_000, 3, generator=generator)
    moved = torch.randn(40_000, 3, generator=generator) * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([1.0, 0.0, 2.0])
    # means: 1 + 4; deviations: (2 - 1)^2 + (3 - 1)^2
    assert frechet_distance(draw, moved) == pytest.approx(10, rel=0.02)
    assert frechet_distance(draw, draw) == pytest.approx(0, abs=1e-6)
    few = torch.randn(8, 16, generator=generator)  # fewer than the width
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few[:1], few[1:2]) == pytest.approx(float((few[0] - few[1]).square().sum()), rel=1e-5)
    with pytest.raises(ValueError, match=r"not empty; got \(0, 3\) and \(40000, 3\)"):
        frechet_distance(draw[:0], draw)
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(draw[:3] * float("nan"), draw)


# ------------------------------------------------------------------------------------------------------------ modules


def test_the_modules_say_which_way_is_better():
    found = [
        metrics.load(name).higher_is_better
        for name in ("temporal_jitter", "object_permanence", "flow_statistics_distance")
    ]
    assert found == [False, True, False]


@pytest.mark.parametrize(
    ("name", "measure"), [("temporal_jitter", temporal_jitter), ("object_permanence", object_permanence)]
)
def test_a_module_gives_what_its_measure_gives(name, measure):
    good, bad = clips("clean")[0], clips("shuffled")[0]
    result = metrics.load(name).compute(predictions=[good, bad, good[:1]])
    assert result[f"{name}_per_video"] == [pytest.approx(measure(good)), pytest.approx(measure(bad)), None]
    assert list(result[f"{name}_failed"]) == [2] and "DIS" in result[f"{name}_backend"]


def test_the_module_of_sets_takes_sets_of_any_size_and_names_what_it_leaves_out():
    name = "flow_statistics_distance"
    metric = metrics.load(name)
    real = clips("clean", 911_002)[:3]
    result = metric.compute(predictions=[clips("clean")[0], real[0][:2]], references=real)
    expected = metric.distance(
        [metric.statistics(clip, 16.0) for clip in clips("clean")[:1]], [flow_statistics(c) for c in real]
    )
    assert result[name] == pytest.approx(expected)
    assert result[f"{name}_failed"] == {"predictions[1]": "a clip of 2 does not show this: it takes 3 frames or more"}
    with pytest.raises(ValueError, match="could use none of 1 predictions; row 0: a clip of 1"):
        metrics.load(name).compute(predictions=[real[0][:1]], references=real[:1])
    with pytest.raises(ValueError, match=r"was given no references: pass references="):
        metrics.load(name).compute(predictions=real[:1])
