"""Selections by a column: who is in, in which order, and that nobody without a score is."""

from __future__ import annotations

import pytest
from datasets import Dataset

from hf_motive.selection import best, best_of_each, without_worst

NAN = float("nan")
SCORED = Dataset.from_dict(
    {
        "name": list("abcdefg"),
        "motion": ["roll", "spin", "roll", "spin", "roll", "spin", "spin"],
        "influence": [0.1, NAN, -0.4, 0.9, 0.3, 0.2, None],
        "influence_rank": [3.0, NAN, 4.0, 0.0, 1.0, 2.0, NAN],
    }
)


def names(dataset: Dataset) -> str:
    return "".join(dataset["name"][:])


@pytest.mark.parametrize("by", ["influence_rank", "influence"])
def test_the_best_come_first_and_nobody_without_a_score(by):
    assert names(best(SCORED, 0.2, by=by)) == "d"
    assert names(best(SCORED, 0.21, by=by)) == "de", "a share is rounded up, of the rows that have a score"
    assert names(best(SCORED, count=3, by=by)) == "def"
    assert names(best(SCORED, count=100, by=by)) == "defac"
    assert names(best(SCORED, 1.0, by=by)) == "defac"


def test_the_worst_are_dropped_and_the_order_stays():
    assert names(without_worst(SCORED, 0.2)) == "adef"
    assert names(without_worst(SCORED, 0.5)) == "de"
    assert names(without_worst(SCORED, 0.2, by="influence")) == "adef"


def test_the_best_of_each_group():
    assert names(best_of_each(SCORED, 1, "motion")) == "ed"
    assert names(best_of_each(SCORED, 2, "motion", by="influence")) == "eadf"
    assert names(best_of_each(SCORED, 9, "motion")) == "eacdf"


def test_ties_keep_the_order_of_rows():
    tied = Dataset.from_dict({"name": list("abc"), "influence": [1.0, 2.0, 2.0]})
    assert names(best(tied, 1.0, by="influence")) == "bca"


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="no column 'influence_votes' to choose by; there are name, motion"):
        best(SCORED, by="influence_votes")
    with pytest.raises(ValueError, match="no column 'kind' to choose by"):
        best_of_each(SCORED, 1, "kind")
    with pytest.raises(ValueError, match="no row has a score in column 'influence'"):
        best(SCORED.select([1, 6]), by="influence")
