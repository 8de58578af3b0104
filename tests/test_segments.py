"""Influence cut into parts: do they add up to the influence that the attributor itself gives? Where do they lie?"""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import WanPipeline
from PIL import Image

from hf_motive import ClipError, MotiveAttributor
from hf_motive.cli import main
from hf_motive.corpus import load_clips
from hf_motive.explaining import Explanation, Window, queries_of
from hf_motive.index import IndexMismatchError
from hf_motive.lab import FPS, ClipSpec, render_clip
from hf_motive.motion import latent_mask
from hf_motive.motion.mask import latent_frames
from hf_motive.motion_columns import MotionFeatures, add_motion
from hf_motive.parts import Parts, read_parts, write_parts
from hf_motive.regions import labelled_regions, moving_regions
from hf_motive.scoring import load_run
from hf_motive.segments import time_segments, window_starts
from hf_motive.video import ClipStandard, clip_seconds, load_clip, save_clip
from tests.clips import write_corpus
from tests.families import wan

LAB = Path(__file__).parents[1] / "examples" / "lab"
STANDARD = {"num_frames": 17, "height": 64, "width": 64, "timesteps": [751.0]}
CLIP = ClipStandard(17, 64, 64, 16.0)


@pytest.fixture(scope="module")
def pipe():
    return WanPipeline.from_pretrained(LAB / "pipeline")


@pytest.fixture(scope="module")
def attributor(pipe):
    return MotiveAttributor(pipe, **STANDARD)


@pytest.fixture(scope="module")
def clips():
    return load_clips(LAB / "corpus").select(range(1, 3))


@pytest.fixture(scope="module")
def queries(attributor, tmp_path_factory):
    """Two queries, as an index."""
    rows = load_clips(LAB / "queries").select([0, 5])
    return attributor.index(rows, tmp_path_factory.mktemp("asked") / "index", progress=False)


@pytest.fixture(scope="module")
def explained(attributor, clips, queries):
    """The first clip, by its moving objects."""
    return attributor.explain(clips[0], queries, regions="motion")


def influence_of(attributor, row, queries):
    """(Q,) as the attributor has it: unit feature times unit features."""
    feature = attributor.feature(row["video"], row["caption"], row).vector.double()
    return feature @ queries.features(queries.ids("ok")).double().T


# -------------------------------------------------------------------------------------------------- they add up


@pytest.mark.parametrize("how", [{"seconds": 0.01}, {"regions": "motion"}, {"regions": "labels", "seconds": 0.25}])
def test_the_shares_add_up_to_the_influence(attributor, clips, queries, how):
    labels = np.zeros((64, 64), np.int64)
    labels[:30, :21], labels[:30, 21:] = 1, 2
    row = {**clips[0], "labels": labels}
    explanation = attributor.explain(row, queries, **how)
    shares = explanation.windows[0].shares
    expected = influence_of(attributor, row, queries)
    print(how, "parts", tuple(shares.shape), "off by", (shares.double().sum((0, 1)) - expected).abs().max().item())
    assert shares.double().sum((0, 1)).numpy() == pytest.approx(expected.numpy(), abs=2e-6)
    assert explanation.influence.numpy() == pytest.approx(expected.numpy(), abs=2e-6)
    assert sum(part["influence"] for part in explanation.segments()) == pytest.approx(expected.mean().item(), abs=2e-6)
    assert sum(part["influence"] for part in explanation.regions()) == pytest.approx(expected.mean().item(), abs=2e-6)
    assert sum(part["motion"] for part in explanation.segments()) == pytest.approx(1, abs=1e-6)
    assert shares.shape[0] == {0.5: 2, 0.01: 5, 0.25: 4}[how.get("seconds", 0.5)]
    edges, values = explanation.curve()
    assert (values * np.diff(edges)).sum() == pytest.approx(expected.mean().item(), abs=2e-6)


def test_it_is_the_influence_that_the_columns_have(attributor, clips, queries, tmp_path):
    index = attributor.index(clips, tmp_path / "index", progress=False)
    scored = attributor.influence(clips, index, queries, per_query=True)
    explained = attributor.segments(clips, queries, per_query=True, progress=False)
    assert explained["explained_influence"] == pytest.approx(scored["influence"], abs=2e-6)
    for row, one in zip(explained, scored, strict=True):
        for number, name in enumerate(row["explained_queries"]):
            total = sum(part["by_query"][number] for part in row["explained_segments"])
            assert total == pytest.approx(one[f"influence_{name}"], abs=2e-6)


@pytest.mark.parametrize("settings", [{"noise_draws": 2}, {"projection": "factored"}, {"center_error": True}])
def test_they_add_up_over_several_draws_and_factored(pipe, clips, settings, tmp_path):
    attributor = MotiveAttributor(pipe, **STANDARD, **settings)
    queries = attributor.index(load_clips(LAB / "queries").select([3]), tmp_path / "index", progress=False)
    explanation = attributor.explain(clips[1], queries, regions="motion")
    expected = influence_of(attributor, clips[1], queries)
    assert explanation.windows[0].shares.double().sum((0, 1)).numpy() == pytest.approx(expected.numpy(), abs=2e-6)


def test_a_part_is_the_gradient_of_the_loss_with_its_weight(attributor, clips, queries):
    """Against a forward pass of its own, with the part's weight, for one segment."""
    from hf_motive.gradients import GradientProjector

    row, step = clips[1], attributor.step
    pixels = load_clip(row["video"], CLIP)
    weight, _ = attributor.motion_weight(pixels)
    second = weight.clone()
    second[:3] = 0
    vectors = []
    for part in (weight, second):
        with GradientProjector(attributor.parameters, attributor.projection, step.denoisers.values()) as projector:
            loss = step.loss(
                step.encode(pixels), row["caption"], noise=step.noise(0), timestep=751.0, weight=part
            ).loss
            vectors.append(projector.project(loss).vector)
    expected = vectors[1] / vectors[0].norm()
    found = attributor.explain(row, queries).windows[0].parts.vectors[1, 0]
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_gradient_checkpointing_changes_nothing(attributor, clips, queries, explained):
    denoiser = attributor.step.pipeline.transformer
    plain = explained.windows[0].shares
    denoiser.enable_gradient_checkpointing()
    denoiser.train()
    try:
        again = attributor.explain(clips[0], queries, regions="motion").windows[0].shares
    finally:
        denoiser.eval()
        denoiser.disable_gradient_checkpointing()
    assert again.numpy() == pytest.approx(plain.numpy(), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- time


def test_segments_follow_the_vae_and_have_seconds():
    assert latent_frames(17, 5) == [range(1), range(1, 5), range(5, 9), range(9, 13), range(13, 17)]
    halves = time_segments(CLIP, 5, 0.5)
    assert [(part.start, part.end, part.latent) for part in halves] == [
        (0.0, 9 / 16, range(3)),
        (9 / 16, 17 / 16, range(3, 5)),
    ]
    assert [part.latent for part in time_segments(CLIP, 5, 1e-3)] == [range(n, n + 1) for n in range(5)]
    assert [part.latent for part in time_segments(CLIP, 5, 60)] == [range(5)]
    wan = time_segments(ClipStandard(81, 480, 832, 16.0), 21, 1.0)
    assert [round(part.end, 2) for part in wan] == [1.06, 2.06, 3.06, 4.06, 5.06]
    with pytest.raises(ValueError, match="give fps="):
        time_segments(ClipStandard(17, 64, 64, None), 5, 0.5)
    with pytest.raises(ValueError, match="positive length"):
        time_segments(CLIP, 5, 0)


def test_latent_frames_are_those_of_the_mask():
    for frames, time in ((17, 5), (16, 4), (8, 8), (25, 7)):
        for latent, group in enumerate(latent_frames(frames, time)):
            mask = torch.zeros(frames, 1, 1)
            mask[group.start : group.stop] = 1
            assert latent_mask(mask, (time, 1, 1)).flatten().tolist() == [float(t == latent) for t in range(time)]


def test_windows_cover_a_clip_to_its_end():
    assert window_starts(17 / 16, CLIP) == window_starts(0.2, CLIP) == [0.0]
    assert [round(16 * start) for start in window_starts(49 / 16, CLIP)] == [0, 8, 16, 24, 32]
    assert [round(16 * start) for start in window_starts(50 / 16, CLIP, 17 / 16)] == [0, 17, 33]
    with pytest.raises(ValueError, match="stride must be from 0.0625 s"):
        window_starts(3.0, CLIP, 2.0)


def test_a_window_is_the_clip_that_starts_there(tmp_path):
    frames = render_clip(ClipSpec("roll", "ball", "red", "dotted", num_frames=49)).frames
    save_clip(tmp_path / "long.mp4", frames, fps=FPS)
    everything = load_clip(tmp_path / "long.mp4")
    assert clip_seconds(tmp_path / "long.mp4", 16.0) == pytest.approx(49 / 16, abs=1e-3)
    for start in (0, 5, 32):
        window = load_clip(tmp_path / "long.mp4", CLIP, start=start / 16)
        assert torch.equal(window, everything[start : start + 17])
    with pytest.raises(ClipError, match="too_short|16 frames|standard asks"):
        load_clip(tmp_path / "long.mp4", CLIP, start=36 / 16)
    with pytest.raises(ValueError, match="give the standard fps"):
        load_clip(tmp_path / "long.mp4", ClipStandard(17, 64, 64, None), start=1.0)


def joined(first: str, second: str, seed: int = 0) -> torch.Tensor:
    """(49, 3, 64, 64): 25 frames of one motion, then 24 of another, of the same object before the same background."""
    parts = [ClipSpec(motion, "ball", "red", "dotted", seed=seed + n) for n, motion in enumerate((first, second))]
    return torch.cat([render_clip(part).frames for part in parts])[:49]


def test_windows_over_a_long_clip(attributor, queries, tmp_path):
    row = {"video": joined("explode", "swing"), "caption": "a red ball in front of a dotted background"}
    explanation = attributor.explain(row, queries, whole=True, seconds=0.5, stride=1.0)
    assert [round(16 * window.parts.start) for window in explanation.windows] == [0, 16, 32]
    for window in explanation.windows[1:2]:  # each is scored as a clip of its own
        first = round(window.parts.start * 16)
        alone = influence_of(attributor, {**row, "video": row["video"][first : first + 17]}, queries)
        assert window.influence.numpy() == pytest.approx(alone.numpy(), abs=2e-6)
    segments = explanation.segments()
    assert [round(part["start"], 3) for part in segments] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert segments[-1]["end"] == pytest.approx(49 / 16)
    assert sum(part["motion"] for part in segments) == pytest.approx(1)
    assert explanation.influence.shape == (2,)
    with Image.open(explanation.plot(tmp_path / "long.png")) as image:
        assert image.size == (1600, 780)
    with pytest.raises(ClipError) as too_short:
        attributor.explain({**row, "video": row["video"][:9]}, queries, whole=True)
    assert too_short.value.status == "too_short"


def test_a_window_in_which_nothing_moves_has_no_share(attributor, queries):
    rolling = render_clip(ClipSpec("roll", "ball", "red", "dotted", num_frames=17)).frames
    row = {"video": torch.cat([rolling[:1].expand(34, -1, -1, -1), rolling]), "caption": "a red ball rolls along"}
    explanation = attributor.explain(row, queries, whole=True, stride=17 / 16)
    assert [bool(window.shares.any()) for window in explanation.windows] == [False, False, True]
    assert [part["influence"] != 0 for part in explanation.segments()] == [False] * 4 + [True] * 2
    assert explanation.segments()[-1]["end"] == pytest.approx(51 / 16)
    assert len(explanation.regions()) == 1
    with pytest.raises(ClipError, match="nothing moves"):
        attributor.explain({**row, "video": row["video"][:34]}, queries, whole=True)


def test_where_windows_overlap_the_curve_is_their_mean():
    def window(start: float, shares: list[float]) -> Window:
        parts = Parts(
            start, [(start, start + 1), (start + 1, start + 2)], ["all"], [None], torch.zeros(2, 1, 4),
            torch.tensor([[0.5], [0.5]]), torch.ones(1, 2, 1, 1), torch.zeros(0, 1, 1, 3, dtype=torch.uint8), [],
        )  # fmt: skip
        table = torch.tensor(shares).view(2, 1, 1)
        return Window(parts, table, table.sum((0, 1)))

    explanation = Explanation("a clip", ["a query"], [window(0, [0.1, 0.2]), window(1, [0.6, 0.4])], 1.5)
    edges, values = explanation.curve()
    assert edges.tolist() == [0, 1, 2, 3]
    assert values == pytest.approx([0.1, 0.4, 0.4])
    segments = explanation.segments()
    assert [part["influence"] for part in segments] == pytest.approx([0.1 + 0.2, 0.2 + 0.4])
    assert explanation.best() == (1.5, 3.0)
    assert explanation.influence.tolist() == pytest.approx([0.65])


# --------------------------------------------------------------------------------------------------------- space


def test_moving_objects_are_found_and_followed():
    weight = torch.zeros(3, 8, 8)
    for frame in range(3):
        weight[frame, 1:4, frame : frame + 3] = 0.8  # goes right, and overlaps itself
    weight[:, 6:8, 0:2] = 0.5  # another, which stays
    weight[2, 7, 7] = 0.2
    found = moving_regions(weight, most=2)
    assert found.names == ["object 1", "object 2", "rest"]
    assert torch.equal(found.masks.sum(0), torch.ones(3, 8, 8))
    assert torch.equal(found.masks[0], (weight == 0.8).float())
    assert torch.equal(found.masks[1], (weight == 0.5).float())
    assert found.boxes()[0] == (0.0, 1 / 8, 5 / 8, 4 / 8)
    assert moving_regions(weight, most=9).names == ["object 1", "object 2", "object 3", "rest"]


def test_labels_go_the_clips_way():
    standard = ClipStandard(5, 32, 32, 16.0)
    wide = np.zeros((48, 96), np.int32)
    wide[:, 48:] = 7  # the right half; the middle is cropped to a square
    static = labelled_regions(wide, None, standard, (2, 4, 4))
    assert static.names == ["region 7", "rest"]
    assert static.masks[0, :, :, 3].min() > 0.99 and static.masks[0, :, :, 0].max() < 0.01
    assert (static.masks.sum(0) - 1).abs().max() < 1e-6
    assert static.masks[0].mean() == pytest.approx(0.5, abs=0.01)
    moving = np.zeros((10, 32, 32), np.uint8)
    moving[5:, :16] = 1  # from the middle of a clip of 10 frames, in its upper half
    video = np.zeros((10, 32, 32, 3), np.uint8)
    later = labelled_regions(moving, video, standard, (2, 4, 4), start=5 / 16)
    assert later.masks[0, :, :2].min() > 0.99
    assert labelled_regions(moving, video, standard, (2, 4, 4)).masks[0].max() < 0.01
    with pytest.raises(ValueError, match="a number a region"):
        labelled_regions(wide.astype(np.float32), None, standard, (2, 4, 4))
    with pytest.raises(ValueError, match="at most 32"):
        labelled_regions(np.arange(64).reshape(8, 8), None, standard, (2, 4, 4))


def test_two_objects_are_two_regions(attributor, queries):
    """Two lab clips side by side, each squeezed to half the width."""
    halves = [render_clip(ClipSpec(m, "ball", "red", "dotted", seed=3)).frames for m in ("swing", "spin")]
    video = torch.cat([torch.nn.functional.interpolate(half, (64, 32), mode="bilinear") for half in halves], dim=3)
    row = {"video": video, "caption": "two red balls"}
    explanation = attributor.explain(row, queries, seconds=60, regions="motion", objects=2)
    boxes = explanation.windows[0].parts.boxes
    assert explanation.windows[0].parts.regions == ["object 1", "object 2", "rest"]
    sides = sorted((box[0] + box[2]) / 2 for box in boxes[:2])
    assert sides[0] < 0.5 < sides[1]


def test_a_region_where_nothing_moves_has_no_share(attributor, clips, queries):
    labels = np.zeros((64, 64), np.uint8)
    weight, _ = attributor.motion_weight(load_clip(clips[0]["video"], CLIP))
    corner = (weight[:, :2, :2] == 0).all()
    labels[: 8 if corner else 64, :8] = 1
    explanation = attributor.explain({**clips[0], "labels": Image.fromarray(labels)}, queries, regions="labels")
    first = explanation.regions()[0]
    assert (first["region"], first["influence"] == 0) == ("region 1", bool(corner))


# ------------------------------------------------------------------------------------------------------- datasets


def test_a_bad_clip_costs_one_row(attributor, clips, queries, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    still = render_clip(ClipSpec("rest", "ball", "red", "dotted", num_frames=17)).frames
    save_clip(tmp_path / "still.mp4", still, fps=FPS)
    rows = [{"video": str(tmp_path / name), "caption": "a ball"} for name in ("broken.mp4", "still.mp4", "gone.mp4")]
    rows.append({"video": clips[0]["video"]["path"], "caption": clips[0]["caption"]})
    found = attributor.segments(Dataset.from_list(rows), queries, progress=False)
    assert found["explained_status"] == ["unreadable", "static", "unreadable", "ok"]
    assert found["explained_segments"][:3] == [None] * 3 and len(found["explained_segments"][3]) == 2
    assert np.isnan(found["explained_best_start"][:3]).all() and found["explained_reason"][3] == ""
    assert "explained_queries" not in found.column_names
    kept = found.filter(lambda start: start >= 0, input_columns="explained_best_start")
    assert len(kept) == 1
    again = attributor.segments(found.select([0]), queries, progress=False)  # in place of the earlier columns
    assert again.column_names == found.column_names
    with pytest.raises(TypeError, match="a stream is scored first"):
        attributor.segments(clips.to_iterable_dataset(), queries)


def test_parts_are_kept_and_other_queries_cost_nothing(attributor, clips, queries, tmp_path, monkeypatch):
    few = clips.select([0])
    first = attributor.segments(few, queries, tmp_path / "parts", regions="motion", progress=False)
    assert len(list((tmp_path / "parts").iterdir())) == 1
    monkeypatch.setattr("hf_motive.explaining._vectors", lambda *_: pytest.fail("a gradient was computed"))
    again = attributor.segments(few, queries, tmp_path / "parts", regions="motion", progress=False)
    assert again["explained_regions"] == first["explained_regions"]
    with pytest.raises(pytest.fail.Exception, match="a gradient"):
        attributor.segments(few, queries, tmp_path / "parts", regions="motion", seconds=0.3, progress=False)


def test_parts_survive_the_disk(explained, tmp_path):
    windows = [window.parts for window in explained.windows]
    write_parts(tmp_path / "clip.safetensors", windows)
    (found,) = read_parts(tmp_path / "clip.safetensors")
    for name, value in vars(windows[0]).items():
        same = torch.equal(getattr(found, name), value) if torch.is_tensor(value) else getattr(found, name) == value
        assert same, name


def test_labels_from_a_column(attributor, clips, queries):
    labels = np.zeros((2, 64, 64), np.int64)
    labels[0, :, :32], labels[1, :, 32:] = 1, 1
    rows = [{**row, "areas": areas.tolist()} for row, areas in zip(clips.select(range(2)), labels, strict=True)]
    rows[1]["areas"] = None
    found = attributor.segments(Dataset.from_list(rows), queries, regions="areas", progress=False)
    assert [part["region"] for part in found[0]["explained_regions"]] == ["region 1", "rest"]
    assert found["explained_status"] == ["ok", "failed"] and "areas" in found["explained_reason"][1]
    with pytest.raises(ValueError, match="no column 'parts' of regions"):
        attributor.segments(clips, queries, regions="parts")


def test_encodings_from_columns(attributor, pipe, clips, queries, explained):
    encoded = attributor.encode(clips.select([0]), progress=False)
    reading = MotiveAttributor(pipe, encoded_column="encoded", **STANDARD)
    found = reading.segments(encoded, queries, progress=False)
    assert found["explained_influence"][0] == pytest.approx(explained.influence.double().mean().item(), abs=2e-6)
    with pytest.raises(ValueError, match="make the attributor without encoded_column"):
        reading.explain(encoded[0], queries, whole=True)


def test_masks_from_a_column(attributor, pipe, clips, queries, explained, tmp_path):
    """A column's mask is what is cut: where it says that nothing moves, there is no share."""
    taking = MotiveAttributor(pipe, mask_column="motion_mask", **STANDARD)
    features = MotionFeatures(attributor.config.standard, attributor.step.latent_shape[1:])
    masked, asked = (add_motion(rows, features) for rows in (clips, load_clips(LAB / "queries").select([0])))
    own = taking.index(asked, tmp_path / "asked", progress=False)
    row = masked[0]
    mask = np.array(row["motion_mask"])
    mask[3:] = 0
    row["motion_mask"] = mask.tolist()
    found = taking.explain(row, own, seconds=0.01)
    shares = found.windows[0].shares.double().sum(1)
    assert shares.sum(0).numpy() == pytest.approx(influence_of(taking, row, own).numpy(), abs=2e-6)
    assert len(shares) == 5 and shares[:3].abs().max() > 1e-3 and not shares[3:].any()
    rows = Dataset.from_list([row, {**masked[1], "motion_mask": None}], features=masked.features)
    both = taking.segments(rows, own, progress=False)
    assert both["explained_status"][0] == "ok" and both["explained_status"][1] != "ok", both["explained_reason"]
    with pytest.raises(ValueError, match="make the attributor without encoded_column and mask_column"):
        taking.explain(row, own, whole=True)


def test_queries_must_be_comparable(attributor, clips, queries, tmp_path):
    other = copy.copy(attributor)
    other.config, other._settings = replace(attributor.config, seed=1), None
    with pytest.raises(IndexMismatchError, match="seed: 1 in the attributor, 0 in"):
        other.explain(clips[0], queries)
    rows = load_clips(LAB / "queries").select([0])
    asked = queries_of(attributor, rows)
    assert asked.names == ["0000.mp4"]
    place = queries.ids("ok").index(attributor.ids(rows)[0])
    assert asked.features[0].tolist() == queries_of(attributor, queries).features[place].tolist()
    assert torch.equal(queries_of(attributor, rows, queries.path).features, asked.features)


# -------------------------------------------------------------------------------------------- pictures, command


def test_the_picture_is_written(explained, tmp_path):
    explanation = explained
    for name in ("clip.png", "clip.svg"):
        explanation.plot(tmp_path / name)
    with Image.open(tmp_path / "clip.png") as image:
        assert image.size == (2000, 780)
        assert len(image.convert("RGB").getcolors(2**24)) > 100  # frames are in it
    assert (tmp_path / "clip.svg").read_text().count("<svg") == 1
    before = (tmp_path / "clip.svg").read_bytes()
    assert explanation.plot(tmp_path / "clip.svg").read_bytes() == before
    with pytest.raises(ValueError, match=".png or .svg"):
        explanation.plot(tmp_path / "clip.pdf")
    rows = explanation.rows()
    assert json.loads(json.dumps(rows)) == rows
    total = sum(row["influence"] for row in rows)
    assert total == pytest.approx(explanation.influence.double().mean().item(), abs=1e-6)


def test_the_command_explains_the_best_of_a_run(tmp_path, capsys):
    wan.build().save_pretrained(tmp_path / "pipeline")
    write_corpus(tmp_path / "corpus", range(3))
    write_corpus(tmp_path / "queries", range(100, 102))
    sizes = f"--num_frames {wan.NUM_FRAMES} --height {wan.HEIGHT} --width {wan.WIDTH} --projection_dim 64"
    places = [f"--{name}={tmp_path / name}" for name in ("pipeline", "corpus", "queries")]
    main(["score", *places, f"--output={tmp_path / 'run'}", "--threads=1", *sizes.split()])
    capsys.readouterr()
    main(["explain", str(tmp_path / "run"), "--count=1", "--regions=motion", "--picture=svg"])
    said = capsys.readouterr().out
    best = next(row for row in load_run(tmp_path / "run") if row["influence_rank"] == 0)
    (found,) = json.loads((tmp_path / "run" / "explained" / "explained.json").read_text())
    assert found["influence_id"] == best["influence_id"] and f"{Path(found['clip']).stem}-" in said
    assert found["influence"] == pytest.approx(best["influence"], abs=2e-6)
    assert sum(part["influence"] for part in found["segments"]) == pytest.approx(best["influence"], abs=2e-6)
    with open(tmp_path / "run" / "explained" / "explained.csv") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["influence"]) for row in rows) == pytest.approx(best["influence"], abs=2e-6)
    assert len(list((tmp_path / "run" / "explained").glob("*.svg"))) == 1
    main(["explain", str(tmp_path / "run"), "--clips", "002.mp4", "--whole", "--output", str(tmp_path / "two")])
    assert len(list((tmp_path / "two").glob("002-*.png"))) == 1
    with pytest.raises(SystemExit, match="no clip of the run is called 'nine.mp4'; the first is '000.mp4'"):
        main(["explain", str(tmp_path / "run"), "--clips", "nine.mp4"])
    with pytest.raises(SystemExit, match="job.json: give the output folder"):
        main(["explain", str(tmp_path)])
