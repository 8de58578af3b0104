"""The attributor against the paper's score computed the long way, and against what can be wrong with a clip."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_motive import MotiveAttributor, motion
from hf_motive.config import AttributionConfig
from hf_motive.corpus import load_clips
from hf_motive.errors import ClipError
from hf_motive.index import GradientIndex, IndexMismatchError
from hf_motive.motion_columns import MotionFeatures, add_motion
from tests.clips import moving_square, write_corpus, write_metadata
from tests.families import wan, wan_i2v

STANDARD = {"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH, "fps": 16.0}
SMALL = {**STANDARD, "projection_dim": 64}


@pytest.fixture(scope="module")
def attributor():
    return MotiveAttributor(wan.build(), **SMALL)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, range(6))
    return load_clips(folder)


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    write_corpus(folder, range(100, 103))
    return load_clips(folder)


# ------------------------------------------------------------------------------------------------ the paper's score


def paper_score(attributor, pipe, clips: list[tuple[torch.Tensor, str]]) -> torch.Tensor:
    """Cosines of motion-weighted gradients, (n, n): plain autograd, a training step written by hand, the mask by the
    formula, and the explicit Fastfood matrix. No hooks, no PipelineStep, no streaming."""
    parameters = dict(pipe.transformer.named_parameters())
    matrix = attributor.projection.matrix({f"transformer.{n}": p.numel() for n, p in parameters.items()})
    scheduled = attributor.step.resolve_timestep(751.0)
    noise = torch.randn(attributor.step.latent_shape, generator=torch.Generator().manual_seed(0))
    features = []
    for pixels, caption in clips:
        flow = motion.DISFlow()(pixels).flow
        size = flow.square().sum(dim=1).sqrt()
        size = torch.cat([size, size[-1:]])
        mask = (size - size.min()) / (size.max() - size.min() + 1e-6)
        groups = [mask[:1], *(mask[1 + 4 * g : 5 + 4 * g] for g in range((len(mask) - 1) // 4))]
        grid = torch.stack([group.mean(dim=0) for group in groups])[:, None]
        weight = torch.nn.functional.interpolate(grid, attributor.step.latent_shape[2:], mode="bilinear")[:, 0]
        loss = wan.training_step(pipe, pixels, caption, noise, scheduled.timestep, weight, sigma=scheduled.sigma)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        feature = matrix @ torch.cat([g.reshape(-1) for g in gradients]).double()
        features.append(feature / feature.norm())
    stacked = torch.stack(features)
    return stacked @ stacked.T


def test_the_score_is_the_papers(attributor):
    attributor = MotiveAttributor(attributor.step.pipeline, preset="paper", **SMALL)
    clips = [(moving_square(s, frames=9, height=32, width=48), f"clip number {s}") for s in range(4)]
    expected = paper_score(attributor, attributor.step.pipeline, clips)
    features = torch.stack([attributor.feature(pixels, caption).vector for pixels, caption in clips]).double()
    largest = (features @ features.T - expected).abs().max().item()
    print(f"paper's score by plain autograd and explicit matrix: largest difference {largest:.2e}")
    assert largest < 1e-5
    off_diagonal = expected[~torch.eye(4, dtype=torch.bool)]
    assert off_diagonal.std() > 1e-3  # the clips do differ, so the agreement says something


def test_the_preset_is_the_papers_and_the_default_differs_by_what_retraining_says():
    config, default = AttributionConfig(preset="paper"), AttributionConfig()
    differing = {name for name, value in default.to_dict().items() if value != config.to_dict()[name]}
    assert differing == {"preset", "timesteps"} and len(default.timesteps) == 3
    assert AttributionConfig(preset="paper", timesteps=[300]).timesteps == [300.0]
    assert AttributionConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="preset must be one of motive, paper, got 'papers'"):
        AttributionConfig(preset="papers")
    assert (config.num_frames, config.height, config.width, config.fps) == (81, 480, 832, 16.0)
    assert config.timesteps == [751.0] and config.noise_draws == 1 and config.projection_dim == 512
    assert config.motion_weighted and config.parameters is None and config.flow_reference == "neighbour"


# ------------------------------------------------------------------------------------------------ what settings do


def test_the_mask_and_the_mean_over_time_change_the_feature(attributor):
    pixels = moving_square(1, frames=9, height=32, width=48)
    masked = attributor.feature(pixels, "a square").vector
    plain = (
        MotiveAttributor(attributor.step.pipeline, motion_weighted=False, **SMALL).feature(pixels, "a square").vector
    )
    assert 0.05 < float(masked @ plain) < 0.9999
    centred = MotiveAttributor(attributor.step.pipeline, center_error=True, **SMALL)
    assert 0.05 < float(masked @ centred.feature(pixels, "a square").vector) < 0.9999
    assert centred.settings() != attributor.settings()
    assert masked.norm() == pytest.approx(1, abs=1e-6)


def test_several_draws_stand_side_by_side(attributor):
    pixels = moving_square(2, frames=9, height=32, width=48)
    pipe = attributor.step.pipeline
    many = MotiveAttributor(pipe, timesteps=[400.0, 751.0], noise_draws=2, **SMALL).feature(pixels, "a").vector
    singles = []
    for timestep in (400.0, 751.0):
        single = MotiveAttributor(pipe, timesteps=[timestep], **SMALL)
        for draw in range(2):
            single._noises = [single.step.noise(draw)]
            singles.append(single.feature(pixels, "a").vector)
    torch.testing.assert_close(many, torch.cat(singles) / 2, rtol=1e-4, atol=1e-6)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"timesteps must be .* in \[0, 1000\], got \[1200.0\]"):
        AttributionConfig(timesteps=[1200])
    with pytest.raises(ValueError, match="flow_reference must be 'neighbour' or 'first', got 'last'"):
        AttributionConfig(flow_reference="last")
    with pytest.raises(TypeError, match="unknown setting 'timestep'; the settings are num_frames, .*timesteps"):
        AttributionConfig.from_dict({"timestep": 3})
    with pytest.raises(ValueError, match="noise_draws must be at least 1"):
        AttributionConfig(noise_draws=0)


# ------------------------------------------------------------------------------------------------ many clips


def test_columns(attributor, corpus, queries, tmp_path):
    index = attributor.index(corpus, tmp_path / "index", progress=False)
    assert len(index) == 6 and index.counts() == {"ok": 6}
    assert all(row.facts["coverage"] == 1.0 and row.facts["mean_motion"] > 0.05 for row in index.rows())
    scored = attributor.influence(corpus, index, queries, group_column="kind", fraction=0.5, progress=False)

    # Against the definition, from the features themselves.
    clip = torch.stack([attributor.feature(r["video"], r["caption"]).vector for r in corpus]).double()
    query = torch.stack([attributor.feature(r["video"], r["caption"]).vector for r in queries]).double()
    cosine = clip @ query.T
    np.testing.assert_allclose(scored["influence"], cosine.mean(dim=1), atol=1e-6)
    right = [i for i, kind in enumerate(queries["kind"]) if kind == "right"]
    np.testing.assert_allclose(scored["influence_right"], cosine[:, right].mean(dim=1), atol=1e-6)
    assert sorted(scored["influence_rank"]) == list(range(6))
    votes, rank = np.array(scored["influence_votes"]), np.array(scored["influence_rank"])
    assert (np.diff(votes[np.argsort(rank)]) <= 0).all()
    assert set(scored["influence_status"]) == {"ok"}
    best = scored.filter(lambda rank: rank < 2, input_columns="influence_rank")
    assert len(best) == 2
    # A second call finds all features there, and a query index serves as well as the queries.
    again = attributor.influence(corpus, index, GradientIndex.open(f"{index.path}-queries"), fraction=0.5)
    assert again["influence"][:] == scored["influence"][:]
    # Scoring the scored dataset again replaces its columns.
    assert attributor.influence(scored, index, queries, progress=False).column_names.count("influence") == 1


def test_features_do_not_depend_on_order_or_interruption(attributor, corpus, tmp_path):
    whole = attributor.index(corpus, tmp_path / "whole", progress=False)
    attributor.index(corpus.select([4, 1]), tmp_path / "parts", progress=False)
    parts = attributor.index(corpus.select([5, 4, 3, 2, 1, 0]), tmp_path / "parts", progress=False)
    assert parts.digest() == whole.digest()


def test_a_different_seed_refuses_to_mix(attributor, corpus, queries, tmp_path):
    attributor.index(corpus.select([0]), tmp_path / "index", progress=False)
    other = MotiveAttributor(attributor.step.pipeline, **{**SMALL, "seed": 1})
    with pytest.raises(IndexMismatchError, match=r"seed: 0 in the index, 1 in this run"):
        other.index(corpus, tmp_path / "index", progress=False)


def test_a_moved_pipeline_is_the_same(attributor, corpus, tmp_path):
    """The weights count, not the folder that they lie in; which may be given as a Path."""
    attributor.index(corpus.select([0]), tmp_path / "index", progress=False)
    attributor.step.pipeline.save_pretrained(tmp_path / "moved")
    moved = type(attributor.step.pipeline).from_pretrained(tmp_path / "moved")
    index = MotiveAttributor(moved, **SMALL).index(corpus.select([0, 1]), tmp_path / "index", progress=False)
    assert index.counts() == {"ok": 2}
    assert str(tmp_path / "moved") in [provenance["pipeline"] for provenance in index.provenances]


def test_other_weights_refuse_to_mix(attributor, corpus, tmp_path):
    attributor.index(corpus.select([0]), tmp_path / "index", progress=False)
    pipe = wan.build()
    with torch.no_grad():
        next(pipe.transformer.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(IndexMismatchError, match="weights"):
        MotiveAttributor(pipe, **SMALL).index(corpus, tmp_path / "index", progress=False)


# ------------------------------------------------------------------------------------------------ what may be wrong


def test_a_bad_clip_costs_one_row(attributor, queries, tmp_path):
    rows = write_corpus(tmp_path, range(3))
    write_corpus(tmp_path, range(50, 51), frames=5)
    write_corpus(tmp_path, range(51, 52), speed=0.0)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = (tmp_path / "000.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    rows += [
        {"file_name": "050.mp4", "caption": "five frames"},
        {"file_name": "051.mp4", "caption": "a square at rest"},
        {"file_name": "text.mp4", "caption": "a letter"},
        {"file_name": "empty.mp4", "caption": "nothing"},
        {"file_name": "cut.mp4", "caption": "the beginning of a square"},
        {"file_name": "gone.mp4", "caption": "a missing square"},
        {"file_name": "001.mp4", "caption": None},
        {"file_name": "001.mp4", "caption": "  "},
        rows[0],  # the same clip and caption again
    ]
    write_metadata(tmp_path, [{"kind": "", **row} for row in rows])
    corpus = load_clips(tmp_path)
    index = attributor.index(corpus, tmp_path / "index", progress=False)
    scored = attributor.influence(corpus, index, queries, progress=False)
    expected = ["ok"] * 3 + ["too_short", "static", *["unreadable"] * 4, "no_caption", "no_caption", "duplicate"]
    assert scored["influence_status"][:] == expected
    reasons = dict(zip(rows_of(corpus), scored["influence_reason"], strict=True))
    assert "5 frames" in reasons[3] and "nothing moves" in reasons[4] and "gone.mp4" in reasons[8]
    assert "as row 0" in reasons[11] and "require_caption=False" in reasons[9]
    unranked = [s != "ok" for s in expected]
    for column in ("influence", "influence_votes", "influence_rank"):
        assert [math.isnan(v) for v in scored[column]] == unranked
    # Rows without a score enter no selection, from neither end.
    assert len(scored.filter(lambda r: r < 100, input_columns="influence_rank")) == 3
    assert len(scored.filter(lambda r: r >= 0, input_columns="influence_rank")) == 3
    # Nor does it matter which thread met the bad clip, or whether the rows came as a stream.
    busy = MotiveAttributor(attributor.step.pipeline, **SMALL, workers=2)
    for name, rows in (("ahead", corpus), ("stream", corpus.to_iterable_dataset())):
        assert busy.index(rows, tmp_path / name, progress=False).digest() == index.digest(), name


def test_an_estimator_is_asked_by_one_thread_at_a_time(attributor, corpus, tmp_path):
    inside, most, threads = 0, 0, set()

    class Counting(motion.DISFlow):
        """Not DISFlow itself: of a subclass it is not known what it keeps."""

        def __call__(self, frames):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            threads.add(threading.get_ident())
            time.sleep(0.01)
            inside -= 1
            return super().__call__(frames)

    counting = MotiveAttributor(attributor.step.pipeline, **SMALL, estimator=Counting(), workers=3)
    index = counting.index(corpus, tmp_path / "counted", progress=False)
    assert index.counts() == {"ok": 6} and len(threads) > 1 and most == 1


def rows_of(dataset: Dataset) -> range:
    return range(len(dataset))


def test_a_failed_row_is_tried_again_on_request(attributor, tmp_path):
    rows = write_corpus(tmp_path, range(2))
    good = (tmp_path / "001.mp4").read_bytes()
    (tmp_path / "001.mp4").unlink()
    options = {"id_column": "file_name"}
    with_ids = MotiveAttributor(attributor.step.pipeline, **SMALL, **options)
    index = with_ids.index(load_clips(tmp_path), tmp_path / "index", progress=False)
    assert index.counts() == {"ok": 1, "unreadable": 1}
    (tmp_path / "001.mp4").write_bytes(good)
    assert with_ids.index(load_clips(tmp_path), tmp_path / "index", progress=False).status("001.mp4") == "unreadable"
    index = with_ids.index(load_clips(tmp_path), tmp_path / "index", retry_failed=True, progress=False)
    assert index.counts() == {"ok": 2} and len(index) == len(rows)


def test_nan_weights_cost_rows_not_the_run(corpus, tmp_path):
    pipe = wan.build()
    attributor = MotiveAttributor(pipe, **SMALL)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.fill_(float("nan"))
    index = attributor.index(corpus.select([0, 1]), tmp_path / "index", progress=False)
    assert index.counts() == {"non_finite": 2}


def test_no_queries_and_no_rows(attributor, corpus, tmp_path):
    index = attributor.index(corpus.select([0]), tmp_path / "index", progress=False)
    with pytest.raises(ValueError, match="the query dataset has no rows"):
        attributor.influence(corpus, index, corpus.select([]), progress=False)
    with pytest.raises(ValueError, match="has no rows"):
        attributor.index(corpus.select([]), tmp_path / "index", progress=False)
    static = Dataset.from_dict({"video": [str(tmp_path / "gone.mp4")], "caption": ["a"]})
    with pytest.raises(ValueError, match="no query has a feature, so there is nothing to rank: 1 unreadable"):
        attributor.influence(corpus, index, static, progress=False)


def test_a_clip_that_was_not_indexed_says_so(attributor, corpus, queries, tmp_path):
    index = attributor.index(corpus.select([0, 1, 2]), tmp_path / "index", progress=False)
    scored = attributor.influence(corpus, index, queries, progress=False)
    assert scored["influence_status"][:] == ["ok"] * 3 + ["failed"] * 3
    assert "run MotiveAttributor.index" in scored["influence_reason"][3]


def test_empty_captions_can_be_allowed(attributor):
    pixels = moving_square(1, frames=9, height=32, width=48)
    with pytest.raises(ClipError, match="no caption"):
        attributor.feature(pixels, None)
    silent = MotiveAttributor(attributor.step.pipeline, require_caption=False, **SMALL)
    assert torch.equal(silent.feature(pixels, None).vector, silent.feature(pixels, "").vector)


# ------------------------------------------------------------------------------------------------------ conditioning


def test_rows_condition_an_image_pipeline(corpus, tmp_path):
    """First and last frame of a Wan that takes both: the first untold, the last from a column of the dataset."""
    (variant,) = [variant for variant in wan_i2v.VARIANTS if variant.name == "wan2.1-flf2v"]
    colours = [Image.new("RGB", (wan.WIDTH, wan.HEIGHT), colour) for colour in ("red", "green", "red", "blue")]
    stills = [ImageFeature().encode_example(image) for image in colours]
    clips = corpus.select([0, 0, 0, 1]).add_column("still", stills, feature=ImageFeature())
    clips = clips.add_column("name", list("abcd"))
    attributor = MotiveAttributor(
        variant.build(),
        **{**SMALL, "num_frames": variant.num_frames, "height": variant.height, "width": variant.width},
        conditioning=lambda row: {"last_image": row["still"]},
        example=clips[0],
        id_column="name",
    )
    assert attributor.settings()["pipeline"]["conditioning"] == {"image": "the clip", "last_image": "told"}
    index = attributor.index(clips, tmp_path)
    assert index.counts()["ok"] == 4, index.counts()
    red, green, again, _ = index.features(["a", "b", "c", "d"])
    assert torch.equal(torch.as_tensor(red), torch.as_tensor(again)), "the same clip and stills"
    assert not torch.allclose(torch.as_tensor(red), torch.as_tensor(green), atol=1e-4), "the still has no say"


def test_masks_in_a_column_are_taken_and_not_computed(attributor, corpus, queries, tmp_path):
    def refuses(frames):
        raise AssertionError("the flow is in the column")

    refuses.name = "none"
    grid = attributor.step.latent_shape[1:]
    features = MotionFeatures(attributor.config.standard, grid)
    clips, asking = add_motion(corpus, features), add_motion(queries, features)
    taken = MotiveAttributor(attributor.step.pipeline, **SMALL, mask_column="motion_mask", estimator=refuses)
    assert taken.settings()["estimator"] == "column motion_mask"
    index = taken.index(clips, tmp_path / "taken")
    computed = attributor.index(corpus, tmp_path / "computed")
    one, other = (
        torch.as_tensor(i.features(a.ids(c))) for i, a, c in ((index, taken, clips), (computed, attributor, corpus))
    )
    assert torch.cosine_similarity(one, other).min() > 0.999, "a byte a cell is enough"
    scored = taken.influence(clips, index, asking)
    assert scored["influence_status"][:] == ["ok"] * len(clips)
    assert scored["motion_mean"][:] == clips["motion_mean"][:]
    with pytest.raises(ValueError, match="no column 'motion_mask' to take the mask from.*add_motion"):
        taken.feature(corpus[0]["video"], "a square", corpus[0])
    coarse = add_motion(corpus.select([0]), MotionFeatures(attributor.config.standard, (grid[0], 2, 2)))
    with pytest.raises(ValueError, match=r"are \(3, 2, 2\), but the pipeline's latent grid is \(3, 4, 6\)"):
        taken.feature(coarse[0]["video"], "a square", coarse[0])
    changed = clips.map(lambda row: {"motion_mask": [[[255] * grid[2]] * grid[1]] * grid[0]}, features=clips.features)
    assert not set(taken.ids(changed)) & set(taken.ids(clips)), "another mask is another feature"
    # A mask by itself will do: how much the clip moves is then not known.
    alone = clips.select([0]).select_columns(["video", "caption", "motion_mask"])
    unknown = taken.index(alone, tmp_path / "alone")
    assert unknown.counts() == {"ok": 1} and next(unknown.rows()).facts["mean_motion"] is None
    # On a stream it is the same.
    streamed = taken.index(clips.to_iterable_dataset(), tmp_path / "streamed", progress=False)
    assert streamed.digest() == index.digest()
