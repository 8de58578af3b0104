"""Selections by a column: who is in, in which order, and that nobody without a score is."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_motive.commands.select import SelectArguments, choose
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


def test_whatever_the_format_and_the_kind_of_group():
    groups = {
        "numbers": [1, 10, 2, 9, 2, 1, 1],
        "lists": [["a"], ["b"], None, ["a"], ["b"], ["a"], None],
        "floats": [1.0, float("nan"), None, 1.0, float("nan"), 2.0, 2.0],
    }
    table = SCORED
    for name, values in groups.items():
        table = table.add_column(name, values)
    for form in (None, "numpy", "torch", "pandas"):
        shown = table.with_format(form)
        assert names(best(shown, count=2).with_format(None)) == "de"
        for name in groups:
            chosen = best_of_each(shown, 1, name, by="influence").with_format(None)
            stream = best_of_each(table.to_iterable_dataset(), 1, name, by="influence")
            assert sorted(chosen["name"]) == sorted(row["name"] for row in stream)
    few = best_of_each(table, 1, "numbers", by="influence")
    assert few["numbers"][:] == sorted(few["numbers"][:]), "in the order of numbers, not of texts"


def test_what_cannot_be_chosen_from_is_said():
    for column in ("name", "lists"):
        with pytest.raises(ValueError, match=f"column '{column}' holds no numbers"):
            best(SCORED.add_column("lists", [[1.0]] * 7), by=column)
    with pytest.raises(TypeError, match=r"the dataset has several splits: give one, dataset\['train'\]"):
        best(DatasetDict(train=SCORED))
    with pytest.raises(ValueError, match="the dataset has no rows"):
        best(IterableDataset.from_generator(lambda: iter(())))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        best(SCORED, count=0)


def test_what_is_selected_of_a_stream_is_what_is_printed():
    """Among equals the command takes as many as it says, of a stream too."""
    rows = {"influence_id": list("abcd"), "influence_status": ["ok"] * 4, "influence_votes": [1.0, 2.0, 1.0, 1.0]}
    table = Dataset.from_dict(rows)
    for dataset in (table, table.to_iterable_dataset()):
        kept, numbers = choose(dataset, SelectArguments("run", "out", by="influence_votes", count=2))
        assert sorted(row["influence_id"] for row in kept) == ["a", "b"] and numbers["kept"] == 2
