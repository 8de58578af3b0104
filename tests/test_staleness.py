"""Scores of another model: a warning, or an error where one asks for it."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset, load_from_disk

from hf_motive.attributor import MotiveAttributor
from hf_motive.corpus import load_clips
from hf_motive.hub.checks import _digests
from hf_motive.pipelines import digest
from hf_motive.training.staleness import check_scores, digests_of
from hf_motive.training.weights import TrainedWeights
from tests.clips import write_corpus
from tests.families import wan

OURS, THEIRS = "0" * 16, "1" * 16


def rows(*models: str | None) -> Dataset:
    return Dataset.from_dict(
        {
            "influence": [0.5] * len(models),
            "influence_rank": [float(row) for row in range(len(models))],
            "influence_settings": ["a"] * len(models),
            "influence_queries": ["b"] * len(models),
            "influence_model": list(models),
        }
    )


def test_scores_of_the_model_that_is_trained(caplog):
    check_scores(rows(OURS, None, OURS), OURS, strict=True)
    assert not caplog.records
    check_scores(rows(OURS, OURS).to_iterable_dataset(), OURS, strict=True)


@pytest.mark.parametrize(
    "dataset, message",
    [
        (rows(OURS, THEIRS), f"another model \\({THEIRS}\\) than the one that is trained \\({OURS}\\)"),
        (rows(None, None), "cannot be told"),
        (rows(OURS).remove_columns("influence_model"), "cannot be told"),
        (rows(THEIRS).to_iterable_dataset(), "another model"),
    ],
)
def test_scores_of_another_model(dataset, message, caplog):
    with caplog.at_level(logging.WARNING):
        check_scores(dataset, OURS)
    assert len(caplog.records) == 1 and "Score" in caplog.text
    with pytest.raises(ValueError, match=message):
        check_scores(dataset, OURS, strict=True)


def test_no_scores():
    with pytest.raises(ValueError, match="no influence columns.*caption.*MotiveAttributor"):
        check_scores(Dataset.from_dict({"caption": ["a"]}), OURS)


def test_digests_for_a_card():
    assert digests_of(Dataset.from_dict({"caption": ["a"]})) is None
    assert digests_of(rows(OURS, THEIRS)) == {"settings": "a", "queries": "b", "model": f"{OURS}, {THEIRS}"}
    assert digests_of(rows(None)) == {"settings": "a", "queries": "b"}


def test_no_clip_of_a_selection_is_copied(tmp_path):
    """A selection's rows are not written anew to look at one column of text."""
    scored = rows(OURS, OURS, THEIRS).add_column("video", [bytes(2**20)] * 3)
    scored.save_to_disk(tmp_path / "scored")
    chosen = load_from_disk(tmp_path / "scored").select([2, 0])
    before = sum(path.stat().st_size for path in tmp_path.rglob("*.*"))
    assert digests_of(chosen)["model"] == f"{OURS}, {THEIRS}"
    assert _digests(chosen)["influence_settings"] == {"a"}
    with pytest.raises(ValueError, match="stale"):
        check_scores(chosen, OURS, strict=True)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) - before < 2**19


def test_an_attributor_names_its_model_and_a_training_knows_it(tmp_path):
    settings = {"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH, "fps": 16.0}
    pipe = wan.build()
    write_corpus(tmp_path / "clips", range(2))
    clips = load_clips(tmp_path / "clips")
    attributor = MotiveAttributor(pipe, projection_dim=64, **settings)
    index = attributor.index(clips, tmp_path / "index", progress=False)
    scored = attributor.influence(clips, index, clips.select([0]), progress=False)
    (model,) = set(scored["influence_model"])
    assert model == digest.model({"transformer": pipe.transformer})

    check_scores(scored, TrainedWeights(pipe).base["model"], strict=True)
    other = wan.build(seed=1)
    with pytest.raises(ValueError, match="stale"):
        check_scores(scored, TrainedWeights(other).base["model"], strict=True)
    again = MotiveAttributor(other, projection_dim=64, **settings).influence(clips, index, index, progress=False)
    assert set(again["influence_model"]) == {None}, "it says nothing about an index that another model made"
