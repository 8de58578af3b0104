"""Flow, camera, mask: against motion that is known exactly."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from hf_motive.errors import ClipError
from hf_motive.motion import (
    DISFlow,
    MotionEstimator,
    compensate_camera,
    latent_mask,
    magnitude,
    mean_motion,
    motion_mask,
)
from hf_motive.video import load_clip, save_clip

HEIGHT, WIDTH, FRAMES = 64, 96, 6


def texture(seed: int, shortest: float, longest: float):
    """A colour at every real (x, y), a sum of plane waves: a moved picture is exact and needs no resampling."""
    draw = torch.Generator().manual_seed(seed)
    wave = 2 * math.pi / (shortest + (longest - shortest) * torch.rand(24, generator=draw))
    angle = 2 * math.pi * torch.rand(24, generator=draw)
    phase = 2 * math.pi * torch.rand(3, 24, generator=draw)

    def colour(x, y):
        across = wave * (torch.cos(angle) * x[..., None] + torch.sin(angle) * y[..., None])
        return torch.stack([torch.cos(across + p).sum(-1) / 7 for p in phase]).clamp(-1, 1)

    return colour


BACKGROUND, OBJECT = texture(0, 8, 30), texture(1, 4, 12)


class Mover:
    """A disk that is at `place(f)` = (x, y, angle, scale) in frame f."""

    def __init__(self, place, radius=12.0, colour=OBJECT):
        self.place, self.radius, self.colour = place, radius, colour

    def local(self, x, y, f):
        cx, cy, angle, scale = self.place(f)
        c, s = math.cos(angle), math.sin(angle)
        return (c * (x - cx) + s * (y - cy)) / scale, (-s * (x - cx) + c * (y - cy)) / scale

    def world(self, u, v, f):
        cx, cy, angle, scale = self.place(f)
        c, s = math.cos(angle), math.sin(angle)
        return cx + scale * (c * u - s * v), cy + scale * (s * u + c * v)


def render(movers, frames=FRAMES, size=(HEIGHT, WIDTH), pan=(0.0, 0.0), zoom=1.0, background=BACKGROUND):
    """Frames (F, 3, H, W), exact flow (F - 1, 2, H, W) and where objects are (F - 1, H, W).

    The camera at frame f looks at zoom ** f times the picture, shifted by f * pan pixels.
    """
    height, width = size
    py, px = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    centre = (width / 2, height / 2)

    def to_world(x, y, f):
        return (x - centre[0]) / zoom**f + centre[0] + f * pan[0], (y - centre[1]) / zoom**f + centre[1] + f * pan[1]

    def to_image(x, y, f):
        return (x - f * pan[0] - centre[0]) * zoom**f + centre[0], (y - f * pan[1] - centre[1]) * zoom**f + centre[1]

    images, flows, insides = [], [], []
    for f in range(frames):
        image = 0
        for dy, dx in ((-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25)):  # soft edges
            x, y = to_world(px + dx, py + dy, f)
            sample = background(x, y)
            for mover in movers:
                u, v = mover.local(x, y, f)
                sample = torch.where(u**2 + v**2 < mover.radius**2, mover.colour(u, v), sample)
            image = image + sample / 4
        images.append(image)
        if f == frames - 1:
            break
        x, y = to_world(px, py, f)
        nx, ny = x, y
        inside = torch.zeros(height, width, dtype=torch.bool)
        for mover in movers:
            u, v = mover.local(x, y, f)
            here = u**2 + v**2 < mover.radius**2
            wx, wy = mover.world(u, v, f + 1)
            nx, ny, inside = torch.where(here, wx, nx), torch.where(here, wy, ny), inside | here
        ix, iy = to_image(nx, ny, f + 1)
        flows.append(torch.stack([ix - px, iy - py]))
        insides.append(inside)
    return torch.stack(images).float(), torch.stack(flows).float(), torch.stack(insides)


def slide(x, y, vx, vy, **kwargs):
    return Mover(lambda f: (x + vx * f, y + vy * f, 0.0, 1.0), **kwargs)


def iou(mask, exact):
    """Hard overlap at a quarter of the largest motion."""
    a, b = mask > 0.25, exact > 0.25
    return ((a & b).sum() / (a | b).sum()).item()


def error(flow, exact, where):
    return torch.linalg.vector_norm(flow - exact, dim=1)[where].mean().item()


# Flow against analytic motion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mover"),
    [
        ("slow slide", slide(40, 32, 0.5, 0.25)),
        ("slide", slide(34, 32, 2.0, -1.0)),
        ("spin", Mover(lambda f: (48, 32, 0.1 * f, 1.0), radius=20)),
        ("zoom", Mover(lambda f: (48, 32, 0.0, 1.04**f), radius=16)),
    ],
)
def test_flow_is_the_analytic_flow(name, mover):
    frames, exact, inside = render([mover])
    flow, confidence = DISFlow()(frames)
    assert flow.shape == exact.shape and flow.dtype == torch.float32
    assert confidence.shape == flow.shape[:1] + flow.shape[2:]
    assert confidence.min() >= 0 and confidence.max() <= 1
    assert error(flow, exact, inside) < 0.2
    assert error(flow, exact, ~inside) < 0.1
    assert iou(motion_mask(magnitude(flow), confidence=confidence), motion_mask(magnitude(exact))) > 0.65


def test_small_frames_are_enlarged_for_the_search():
    frames, exact, inside = render([slide(34, 32, 2.0, -1.0)])
    plain = error(DISFlow(min_side=0)(frames).flow, exact, inside)
    assert error(DISFlow()(frames).flow, exact, inside) < plain / 3


def test_flow_from_the_first_frame_is_the_displacement_since_the_start():
    frames, _, inside = render([slide(30, 32, 1.5, 0.5, radius=14)])
    core = inside[0] & (magnitude(DISFlow()(frames).flow)[0] > 1)
    flow = DISFlow(reference="first")(frames).flow
    for f in range(FRAMES - 1):
        found = flow[f][:, core].median(dim=1).values
        torch.testing.assert_close(found, (f + 1) * torch.tensor([1.5, 0.5]), atol=0.2, rtol=0)


def test_opposite_movers_do_not_cancel():
    frames, exact, inside = render([slide(24, 32, 1.5, 0), slide(72, 32, -1.5, 0)])
    flow = DISFlow()(frames).flow
    assert abs(flow[:, 0][inside].mean()) < 0.1  # the signed mean of a naive score
    assert mean_motion(magnitude(flow)) == pytest.approx(mean_motion(magnitude(exact)), rel=0.25)
    assert magnitude(flow)[inside].mean() > 1.3


def test_clip_of_one_group_of_pictures_moves(tmp_path):
    """A score that reads key frames alone finds no motion in a clip that has a single one."""
    frames, exact, _ = render([slide(34, 32, 2.0, -1.0)], frames=8)
    save_clip(tmp_path / "clip.mp4", frames, 16)
    import av

    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size) == 1
    flow = DISFlow()(load_clip(tmp_path / "clip.mp4")).flow
    assert mean_motion(magnitude(flow)) == pytest.approx(mean_motion(magnitude(exact)), rel=0.3)


def test_confidence_is_low_without_texture_and_high_with():
    """On grey with grain DIS finds many pixels of motion; the confidence takes them out."""
    draw = torch.Generator().manual_seed(0)
    grain = 0.02 * torch.randn(FRAMES, 3, HEIGHT, WIDTH, generator=draw)
    flow, confidence = DISFlow()(0.1 + grain)
    assert magnitude(flow).max() > 1
    assert (magnitude(flow) * confidence).max() < 0.25
    with pytest.raises(ClipError, match="nothing moves"):
        motion_mask(magnitude(flow), confidence=confidence)
    flow, confidence = DISFlow()(render([slide(34, 32, 2.0, -1.0)])[0] + grain)
    assert confidence.mean() > 0.9


def test_estimator_repeats_pickles_and_is_named_by_its_settings():
    frames, _, _ = render([slide(34, 32, 2.0, -1.0)], frames=3)
    estimator = DISFlow("fast", reference="first", min_side=128)
    assert estimator.name == "dis-fast-first-128" and DISFlow().name == "dis-medium-neighbour-128"
    assert isinstance(estimator, MotionEstimator)
    first = estimator(frames)
    estimator(frames.flip(0))  # no state is carried from clip to clip
    again = pickle.loads(pickle.dumps(estimator))(frames)
    assert torch.equal(first.flow, again.flow) and torch.equal(first.confidence, again.confidence)


def test_estimator_does_not_depend_on_threads():
    import cv2

    frames, _, _ = render([slide(34, 32, 2.0, -1.0)], frames=3)
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = DISFlow()(frames)
        cv2.setNumThreads(2)
        two = DISFlow()(frames)
    finally:
        cv2.setNumThreads(threads)
    assert torch.equal(one.flow, two.flow) and torch.equal(one.confidence, two.confidence)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "slow"}, "preset must be one of ultrafast, fast, medium, got 'slow'"),
        ({"reference": "last"}, "reference must be 'neighbour' or 'first', got 'last'"),
        ({"min_side": -1}, "min_side must be a number of pixels, or 0 to keep the size, got -1"),
    ],
)
def test_unknown_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DISFlow(**kwargs)


def test_clips_without_motion_to_estimate():
    with pytest.raises(ClipError, match="motion needs at least two frames, got 1") as info:
        DISFlow()(torch.zeros(1, 3, 32, 32))
    assert info.value.status == "too_short"
    with pytest.raises(ClipError, match="NaN or infinite pixels") as info:
        DISFlow()(torch.full((3, 3, 32, 32), float("nan")))
    assert info.value.status == "non_finite"
    with pytest.raises(ValueError, match=r"frames must be \(F, 3, H, W\), got \(3, 32, 32\)"):
        DISFlow()(torch.zeros(3, 32, 32))


# Camera ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pan", "zoom"), [((1.0, 0.5), 1.0), ((0.0, 0.0), 1.035), ((-0.8, 0.3), 0.97)])
def test_camera_motion_is_taken_out(pan, zoom):
    mover = slide(34, 30, 3.0, 1.0, radius=14)
    frames, exact, inside = render([mover], pan=pan, zoom=zoom)
    wanted = motion_mask(inside.float())
    # The exact flow is a similarity outside of the mover: nothing is left of it.
    assert magnitude(compensate_camera(exact))[~inside].max() < 0.02
    flow, confidence = DISFlow()(frames)
    rest = compensate_camera(flow, confidence)
    assert iou(motion_mask(magnitude(rest), confidence=confidence), wanted) > 0.6
    assert magnitude(rest)[~inside].median() < 0.1
    assert iou(motion_mask(magnitude(flow), confidence=confidence), wanted) < 0.45


def test_camera_roll_is_taken_out():
    ys, xs = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    flow = 0.03 * torch.stack([-(ys - 24), xs - 32])[None]
    assert magnitude(compensate_camera(flow)).max() < 1e-3


def test_still_camera_is_left_alone():
    """An object of two fifths of the frame moves; the rest is still and stays still."""
    exact = torch.zeros(4, 2, HEIGHT, WIDTH)
    exact[:, :, :, : WIDTH * 2 // 5] = 2.0
    assert torch.equal(compensate_camera(exact), exact)
    frames, _, _ = render([slide(34, 32, 2.0, -1.0)])
    flow = DISFlow()(frames).flow
    before, after = magnitude(flow), magnitude(compensate_camera(flow))
    assert (before - after).abs().max() < 0.1
    still = torch.zeros(4, 2, HEIGHT, WIDTH)
    assert torch.equal(compensate_camera(still), still)


def test_object_before_a_plain_wall_is_not_taken_for_the_camera():
    flow = torch.randn(3, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 3  # noise of a plain wall
    confidence = torch.zeros(3, HEIGHT, WIDTH)
    flow[:, :, 20:40, 20:40] = 2.0
    confidence[:, 20:40, 20:40] = 1.0
    assert torch.equal(compensate_camera(flow, confidence), flow)


def test_camera_refuses_what_is_not_flow():
    with pytest.raises(ValueError, match=r"flow must be \(F - 1, 2, H, W\), got \(3, 8, 8\)"):
        compensate_camera(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"confidence must be \(3, 8, 8\) as flow is, got \(3, 4, 8\)"):
        compensate_camera(torch.zeros(3, 2, 8, 8), torch.zeros(3, 4, 8))
    with pytest.raises(ClipError, match="NaN or infinite"):
        compensate_camera(torch.full((3, 2, 8, 8), float("nan")))


# Mask -----------------------------------------------------------------------------------------------------------


def test_mask_is_the_papers_min_max_over_the_clip():
    motion = 1 + 4 * torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = motion_mask(motion)
    padded = torch.cat([motion, motion[-1:]])
    torch.testing.assert_close(mask, (padded - padded.min()) / (padded.max() - padded.min() + 1e-6))
    assert mask.shape == (6, 8, 8) and mask.min() == 0 and 1 - 1e-5 < mask.max() <= 1
    assert torch.equal(mask[-1], mask[-2])


def test_mask_from_the_first_frame_starts_at_nothing():
    mask = motion_mask(1 + torch.rand(5, 8, 8), reference="first")
    assert mask.shape == (6, 8, 8) and mask[0].max() == 0 and mask[1:].min() > 0


def test_mask_can_be_weighted_by_confidence():
    motion = torch.ones(2, 4, 4)
    motion[0, 0, 0] = 50.0
    confidence = torch.ones(2, 4, 4)
    confidence[0, 0, 0] = 0.0
    assert motion_mask(motion, static_threshold=0)[0, 1, 1] == 0
    assert motion_mask(motion, confidence=confidence)[0, 1, 1] > 0.99


@pytest.mark.parametrize("crf", [18, 28])
def test_still_clip_is_static_after_compression(tmp_path, crf):
    frames, _, _ = render([slide(48, 32, 0, 0)], frames=12)
    grain = 0.02 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    save_clip(tmp_path / "still.mp4", (frames + grain).clamp(-1, 1), 16, crf=crf)
    flow, confidence = DISFlow()(load_clip(tmp_path / "still.mp4"))
    with pytest.raises(ClipError, match=r"nothing moves: the largest motion is .* pixels a frame") as info:
        motion_mask(magnitude(flow), confidence=confidence)
    assert info.value.status == "static"


def test_slow_small_object_is_not_static():
    frames, exact, _ = render([slide(34, 32, 0.6, 0.2, radius=4)])
    flow, confidence = DISFlow()(frames)
    assert iou(motion_mask(magnitude(flow), confidence=confidence), motion_mask(magnitude(exact))) > 0.35


def test_nothing_at_all_is_static_whatever_the_threshold():
    with pytest.raises(ClipError, match="nothing moves"):
        motion_mask(torch.zeros(3, 8, 8), static_threshold=0)


def test_mask_refuses_what_it_cannot_weigh():
    with pytest.raises(ClipError, match="NaN or infinite") as info:
        motion_mask(torch.full((3, 8, 8), float("inf")))
    assert info.value.status == "non_finite"
    with pytest.raises(ValueError, match=r"magnitude must be \(F - 1, H, W\), got \(8, 8\)"):
        motion_mask(torch.ones(8, 8))
    with pytest.raises(ValueError, match=r"confidence must have the shape of magnitude, \(3, 8, 8\), got \(8, 8\)"):
        motion_mask(torch.ones(3, 8, 8), confidence=torch.ones(8, 8))
    with pytest.raises(ValueError, match="reference must be"):
        motion_mask(torch.ones(3, 8, 8), reference="last")


# The latent grid ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "time", "groups"),
    [
        (9, 3, [[0], [1, 2, 3, 4], [5, 6, 7, 8]]),  # Wan: causal, 4
        (17, 3, [[0], list(range(1, 9)), list(range(9, 17))]),  # LTX-Video: causal, 8
        (13, 3, [[0], list(range(1, 7)), list(range(7, 13))]),  # Mochi: causal, 6
        (8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),  # plain groups
        (16, 4, [list(range(4 * i, 4 * i + 4)) for i in range(4)]),  # both divide; 4 is a power of two, 5 is not
        (5, 1, [[0, 1, 2, 3, 4]]),
        (4, 4, [[0], [1], [2], [3]]),  # a VAE of images
    ],
)
def test_time_follows_the_vae(frames, time, groups):
    mask = torch.rand(frames, 6, 8)
    expected = torch.stack([mask[group].mean(dim=0) for group in groups])
    torch.testing.assert_close(latent_mask(mask, (time, 6, 8)), expected)


def test_grouping_can_be_told_and_is_refused():
    mask = torch.rand(16, 2, 2)
    torch.testing.assert_close(latent_mask(mask, (4, 2, 2), causal=True)[1], mask[1:6].mean(dim=0))
    with pytest.raises(
        ValueError, match=r"10 frames do not group into 3 latent frames: expected .* choose num_frames"
    ):
        latent_mask(torch.rand(10, 2, 2), (3, 2, 2))
    with pytest.raises(ValueError, match="80 frames do not group into 20 latent frames causally"):
        latent_mask(torch.rand(80, 2, 2), (20, 2, 2), causal=True)
    with pytest.raises(ValueError, match=r"mask must be \(F, H, W\), got \(2, 2\)"):
        latent_mask(torch.rand(2, 2), (1, 1, 1))


def test_motion_in_a_corner_lands_in_its_latent_cell_and_time():
    motion = torch.zeros(16, 32, 48)
    motion[5:8, 24:, 40:] = 3.0  # frames 5, 6, 7: the second group of four of a causal VAE, 5 to 8
    grid = latent_mask(motion_mask(motion), (5, 4, 6))
    assert grid.shape == (5, 4, 6)
    assert grid[2, 3, 5] == pytest.approx(0.75, abs=1e-5)
    grid[2, 3, 5] = 0
    assert grid.max() == 0


def test_resize_is_bilinear_and_stays_in_range():
    mask = torch.rand(3, 32, 48)
    grid = latent_mask(mask, (3, 4, 6))
    # Of 8 × 8 pixels, bilinear reads the four around the centre.
    expected = (mask[:, 3::8, 3::8] + mask[:, 4::8, 3::8] + mask[:, 3::8, 4::8] + mask[:, 4::8, 4::8]) / 4
    torch.testing.assert_close(grid, expected)
    assert grid.min() >= 0 and grid.max() <= 1
    uneven = latent_mask(mask, (3, 5, 7))
    assert uneven.shape == (3, 5, 7) and uneven.min() >= 0 and uneven.max() <= 1


def test_small_object_can_fall_between_the_cells_unless_antialiased():
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:11, 8:11] = 1.0
    assert latent_mask(mask, (1, 4, 4)).max() == 0
    assert latent_mask(mask, (1, 4, 4), antialias=True)[0, 1, 1] > 0.05


def test_dis_without_confidence_finds_the_same_flow() -> None:
    frames = torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    plain = DISFlow(confidence=False)(frames)
    assert plain.confidence is None
    assert torch.equal(plain.flow, DISFlow()(frames).flow)
    assert DISFlow(confidence=False).name != DISFlow().name  # which clips are static hangs on it
