"""Dynamic degree, motion smoothness and their stand-ins: arithmetic on flow and frames that are known exactly.

What VBench itself gives is compared in test_vbench_oracle.py.
"""

from __future__ import annotations

import importlib.util

import datasets
import evaluate
import numpy as np
import pytest
import torch

from hf_motive import metrics
from hf_motive.lab import render_clip
from hf_motive.lab.corruptions import corrupt
from hf_motive.lab.spec import balanced_specs
from hf_motive.metrics.dynamics import is_dynamic, looked_at, padded, strengths, strongest
from hf_motive.metrics.raft import raft
from hf_motive.metrics.smoothness import smoothness
from hf_motive.metrics.stand_ins import between, dis_flow
from hf_motive.video import save_clip

from .clips import moving_square

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def numbered(frames, height=64, width=64):
    """Frame f is all f: a network below knows which frames it is given."""
    return torch.arange(frames, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, height, width)


class Moving:
    """A flow of `length` pixels from the frames in `starts`, and of none from the others."""

    def __init__(self, starts, length=10.0):
        self.starts, self.length, self.asked = set(starts), length, []

    def __call__(self, before, after):
        self.asked.append((int(before.mean()), int(after.mean())))
        flow = torch.zeros(1, 2, *before.shape[-2:])
        if self.asked[-1][0] in self.starts:
            flow[:, 0] = self.length
        return flow


# Dynamic degree ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "every"),
    [(1, 1), (4, 1), (8, 1), (11.9, 1), (12, 2), (16, 2), (20, 2), (20.1, 3), (24, 3), (29.97, 4), (60, 8)],
)
def test_about_eight_frames_a_second_are_looked_at(fps, every):
    assert looked_at(numbered(50), fps)[:, 0, 0, 0].tolist() == list(range(0, 50, every))


@pytest.mark.parametrize(
    # by the even number where a quarter of the frames is a half more: 6 → 1.5 → 2, 10 → 2.5 → 2, 14 → 3.5 → 4
    ("frames", "needed"),
    [(2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2), (9, 2), (10, 2), (11, 3), (13, 3), (14, 4), (16, 4)],
)
def test_a_quarter_of_the_frames_must_move(frames, needed):
    assert is_dynamic(numbered(frames), 8, Moving(range(needed)))
    if needed:
        assert not is_dynamic(numbered(frames), 8, Moving(range(needed - 1)))


def test_a_single_frame_never_moves_and_two_always():
    assert not is_dynamic(numbered(1), 8, Moving([]))
    assert is_dynamic(numbered(2), 8, Moving([]))
    assert not is_dynamic(numbered(2), 16, Moving([0]))  # of which one is looked at


@pytest.mark.parametrize(("height", "width"), [(256, 300), (300, 256), (64, 128)])
def test_the_threshold_is_six_pixels_of_256(height, width):
    threshold = 6 * min(height, width) / 256
    clip = numbered(5, height, width)
    assert not is_dynamic(clip, 8, Moving(range(5), threshold))  # it has to be exceeded
    assert is_dynamic(clip, 8, Moving(range(5), threshold * 1.001))


def test_the_network_is_asked_no_more_than_the_answer_takes():
    network = Moving(range(20))
    assert is_dynamic(numbered(33), 16, network)
    assert network.asked == [(0, 2), (2, 4), (4, 6), (6, 8)]  # of 17 frames, 4 pairs


def test_the_fastest_twentieth_is_what_counts():
    flow = torch.zeros(2, 10, 21)
    flow[0, 0, :7], flow[1, 0, :7] = 3, -4
    flow[1, 5, 5] = -15
    assert strongest(flow) == pytest.approx((15 + 7 * 5 + 0 + 0) / 10)  # 10 of 210 (10.5): 2 of them stand still
    with pytest.raises(ValueError, match="frames of 3 x 6 are too small: .* takes 5 %"):
        strongest(torch.zeros(2, 3, 6))
    flow[0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="the flow holds NaN or infinite values"):
        strongest(flow)


def test_frames_are_padded_and_the_padding_counts():
    frames = torch.arange(5 * 13, dtype=torch.float32).view(1, 1, 5, 13).expand(2, 3, -1, -1)
    wide = padded(frames, 8)
    assert wide.shape == (2, 3, 8, 16)
    assert torch.equal(wide[..., 1:6, 1:14], frames)  # 3 rows more: 1 above, 2 below; 3 columns: 1 before, 2 after
    assert torch.equal(wide[..., 0, 1:14], frames[..., 0, :]) and torch.equal(wide[..., 7, 14], frames[..., 4, 12])
    assert torch.equal(padded(frames[..., :4, :12], 4), frames[..., :4, :12])

    def edge(before, after):  # only the last column of the frame and its copies move
        flow = torch.zeros(1, 2, *before.shape[-2:])
        flow[:, 0, :, -4:] = 40
        return flow

    (strength,) = strengths(numbered(2, 64, 57), edge)
    assert strength == 40  # 4 of 64 columns; without its padding 1 of 57 would move, and the mean be 14


@pytest.mark.parametrize(
    ("fps", "network", "message"),
    [
        (None, Moving([]), "looks at 8 frames a second, and this clip carries no rate: pass fps="),
        (
            8,
            lambda a, b: torch.zeros(1, 2, 8, 8),
            r"gave a flow of \(1, 2, 8, 8\) for frames of \(1, 3, 64, 64\)",
        ),
        (8, lambda a, b: torch.full((1, 2, 64, 64), torch.inf), "the flow holds NaN or infinite values"),
    ],
)
def test_what_dynamic_degree_cannot_tell(fps, network, message):
    with pytest.raises(ValueError, match=message):
        is_dynamic(numbered(4), fps, network)


# Motion smoothness ------------------------------------------------------------------------------------------------


def mean(before, after):
    return (before + after) / 2


def test_the_odd_frames_are_compared_with_what_lies_between():
    levels = [10, 50, 30, 34, 40, 255]  # between 10 and 30: 20, off by 30; between 30 and 40: 35, off by 1
    clip = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 20, 30)
    asked = []

    def network(before, after):
        asked.append((before.shape, before.dtype, float(before.max())))
        return mean(before, after) + 0.3 / 255  # cut off, not rounded: it makes no difference

    expected = (255 - (30 + 1) / 2) / 255
    assert smoothness(clip, network) == pytest.approx(expected, abs=1e-12)
    assert smoothness(clip[:5], network) == pytest.approx(expected, abs=1e-12)  # nothing follows the sixth frame
    assert asked[0] == ((1, 3, 32, 32), torch.float32, pytest.approx(10 / 255))
    assert smoothness(clip, lambda a, b: mean(a, b) - 0.3 / 255) == pytest.approx(expected - (1 - 1) / 2 / 255)


def test_an_interpolated_frame_is_cut_off_to_eight_bits():
    clip = torch.full((3, 3, 16, 16), 100, dtype=torch.uint8)
    for value, level in ((100.9, 100), (101.0001, 101), (-20, 0), (300, 255)):
        score = smoothness(clip, lambda a, b, value=value: torch.full_like(a, value / 255))
        assert score == pytest.approx((255 - abs(level - 100)) / 255, abs=1e-12)


def test_padding_is_cut_off_again():
    clip = torch.randint(0, 256, (3, 3, 21, 35), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert smoothness(clip[[0, 0, 0]], lambda a, b: a) > 1 - 1 / 255
    shifted = smoothness(clip[[0, 0, 0]], lambda a, b: a.roll(1, dims=-1))
    assert shifted < 0.8


@pytest.mark.parametrize(
    ("frames", "network", "message"),
    [
        (2, mean, "takes three frames or more, the clip has 2"),
        (3, lambda a, b: a[..., :20, :20], r"a frame of \(1, 3, 20, 20\) between frames of \(1, 3, 64, 64\)"),
        (3, lambda a, b: a * torch.nan, "the interpolated frame holds NaN or infinite values"),
    ],
)
def test_what_motion_smoothness_cannot_tell(frames, network, message):
    with pytest.raises(ValueError, match=message):
        smoothness(numbered(frames), network)


# The stand-ins ----------------------------------------------------------------------------------------------------


def texture(shift, size=96):
    """(1, 3, H, W) in [0, 1]: a soft texture moved to the right by `shift` pixels."""
    noise = torch.rand(1, 3, 16, 48, generator=torch.Generator().manual_seed(3))
    image = torch.nn.functional.interpolate(noise, scale_factor=8, mode="bicubic").clamp(0, 1)
    return image[..., :size, 100 - shift : 100 - shift + size]


def test_dis_finds_a_known_flow():
    flow = dis_flow(texture(0) * 255, texture(5) * 255)
    assert flow.shape == (1, 2, 96, 96)
    inside = flow[0, :, 16:-16, 16:-16]
    assert (inside[0] - 5).abs().mean() < 0.2 and inside[1].abs().mean() < 0.2


def test_the_frame_between_two_is_half_way():
    before, middle, after = texture(0), texture(3), texture(6)
    error = (between(before, after) - middle)[..., 8:-8].abs().mean()
    assert error < 0.1 * (mean(before, after) - middle)[..., 8:-8].abs().mean()
    assert (between(before, before) - before).abs().max() < 1e-2  # DIS sees no motion of more than a trace


def test_smooth_motion_ranks_over_spoilt_motion():
    for row, spec in enumerate(balanced_specs(4, 71, static=0, moving_camera=0)):
        clip = ((render_clip(spec).frames + 1) * 127.5).round().to(torch.uint8)
        smooth = smoothness(clip, between)
        for kind in ("shuffled", "jittered", "flickering"):
            assert smooth > smoothness(corrupt(clip, kind, row), between), (spec, kind)
        assert smoothness(corrupt(clip, "frozen", row), between) > 0.99  # standing still is smooth


# The modules ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    save_clip(folder / "moving.mp4", moving_square(0, frames=17, speed=2.0), fps=16)
    save_clip(folder / "still.mp4", moving_square(1, frames=17, speed=0.0), fps=16)
    save_clip(folder / "two.mp4", moving_square(2, frames=2, speed=0.0), fps=8)
    return [str(folder / f"{name}.mp4") for name in ("moving", "still", "two")]


def test_the_stand_ins_measure_files(files):
    both = evaluate.combine([metrics.load("flow_dynamic_degree"), evaluate.load(metrics.path("warp_smoothness"))])
    result = both.compute(predictions=[*files, "nowhere.mp4"])
    assert result["flow_dynamic_degree_per_video"] == [1.0, 0.0, 1.0, None]
    assert result["flow_dynamic_degree"] == pytest.approx(2 / 3)
    assert result["flow_dynamic_degree_backend"] == "DIS medium (OpenCV)"
    assert result["flow_dynamic_degree_failed"].keys() == {3}
    moving, still, two, nowhere = result["warp_smoothness_per_video"]
    assert 0.9 < moving < still <= 1 and two is None and nowhere is None
    assert result["warp_smoothness_failed"][2] == "motion smoothness takes three frames or more, the clip has 2"
    assert result["warp_smoothness_backend"] == "warping along DIS medium (OpenCV)"


def test_a_stand_in_never_goes_by_vbenchs_name():
    for name in ("flow_dynamic_degree", "warp_smoothness"):
        metric = metrics.load(name)
        assert metric.key == name and "not VBench's" in " ".join(metric.description.split())
        assert not metric.citation.strip()


def dis(before, after):
    return dis_flow(before, after)


def test_dynamic_degree_takes_a_network(files):
    expected = metrics.load("flow_dynamic_degree").compute(predictions=files)["flow_dynamic_degree_per_video"]
    for network in (dis, f"{__name__}:dis"):
        metric = metrics.load("dynamic_degree", network=network)
        result = metric.compute(predictions=files)
        assert result["dynamic_degree_per_video"] == expected and metric.name == "dynamic_degree"
        assert result["dynamic_degree_backend"] == "dis (given)"


def test_a_rate_is_needed_where_a_video_has_none():
    clip = moving_square(0, frames=9, speed=3.0)
    metric = metrics.load("flow_dynamic_degree")
    with pytest.raises(ValueError, match="row 0: .* carries no rate: pass fps="):
        metric.compute(predictions=[clip])
    assert metrics.load("flow_dynamic_degree", fps=8).compute(predictions=[clip])["flow_dynamic_degree"] == 1


def test_motion_smoothness_takes_a_network(files):
    for network in (between, "hf_motive.metrics.stand_ins:between"):
        metric = metrics.load("motion_smoothness", network=network)
        result = metric.compute(predictions=files[:2])
        expected = metrics.load("warp_smoothness").compute(predictions=files[:2])
        assert result["motion_smoothness_per_video"] == expected["warp_smoothness_per_video"]
        assert result["motion_smoothness"] == pytest.approx(np.mean(expected["warp_smoothness_per_video"]))
        assert result["motion_smoothness_backend"] == "between (given)"


def test_weights_for_people_only_are_the_users_own():
    with pytest.raises(ValueError, match="needs network=, .*github.com/MCG-NKU/AMT, for NON-COMMERCIAL use"):
        metrics.load("motion_smoothness")


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is there")
@pytest.mark.parametrize("network", [None, "raft_large_C_T_V1-22a6c225.pth"])
def test_dynamic_degree_names_what_it_lacks(network):
    with pytest.raises(ImportError, match=r'pip install "hf-motive\[raft\]", pass network= .* flow_dynamic_degree'):
        metrics.load("dynamic_degree", network=network)


def test_a_network_that_is_none():
    with pytest.raises(ValueError, match="or a callable from two frames"):
        metrics.load("dynamic_degree", network=3)
    with pytest.raises(ValueError, match="network must be the file of the weights of torchvision's raft_large"):
        raft(3, CPU)


def test_networks_that_give_more_than_what_is_asked():
    with pytest.raises(TypeError, match=r"gave a list; expected the flow \(1, 2, H, W\) as a tensor: .* the last"):
        next(strengths(numbered(2), lambda a, b: [a[:, :2]]))
    with pytest.raises(TypeError, match=r'gave a dict; expected the frame .* that is \["imgt_pred"\]'):
        smoothness(numbered(3), lambda a, b: {"imgt_pred": a})
