"""Selections by a column: who is in, in which order, and that nobody without a score is."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_motive.commands.select import SelectArguments, choose
from hf_motive.selection import best, best_of_each, without_worst

NAN = float("nan")
DRAWS = 4
T_90 = 1.6377  # Student's t, one side, three degrees of freedom
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


def unsure(errors: list[float | None], by: str = "influence") -> Dataset:
    column = "influence_error" if by == "influence" else "influence_error_rank"
    return SCORED.add_column(column, errors).add_column("influence_draws", [float(DRAWS)] * len(SCORED))


def test_only_those_that_are_certain_to_be_among_the_best():
    """By influence: d 0.9, e 0.3, f 0.2, a 0.1, c -0.4. The first that two leave out is f, at 0.2."""
    just, too_much = 0.0999 / T_90, 0.1001 / T_90
    for error, kept in ((just, "de"), (too_much, "d"), (0.0, "de")):
        table = unsure([0.0, NAN, 0.0, 0.1, error, 5.0, None])
        assert names(best(table, count=2, by="influence", confidence=0.9)) == kept
        stream = best(table.to_iterable_dataset(), count=2, by="influence", confidence=0.9)
        assert sorted(row["name"] for row in stream) == sorted(kept)
    assert names(best(table, count=5, by="influence", confidence=0.9)) == "defac", "nothing is left out"
    assert names(best(unsure([9.0] * 7), count=2, by="influence", confidence=0.9)) == ""
    ranks = unsure([0.0, NAN, 0.0, 1.99 / T_90, 1.01 / T_90, 0.0, None], by="influence_rank")
    assert names(best(ranks, count=2, confidence=0.9)) == "d", "ranks count downwards; the first left out has 2"
    assert names(best(ranks, count=2, confidence=0.5)) == "de"


def test_only_those_that_are_certain_to_be_among_the_worst_are_dropped():
    """The worst two by influence are a, 0.1, and c, -0.4; the last that is kept anyway is f, at 0.2."""
    for error, kept in ((0.0999 / T_90, "def"), (0.1001 / T_90, "adef")):
        table = unsure([error, NAN, 0.2 / T_90, 9.0, 9.0, 9.0, None])
        assert names(without_worst(table, 0.4, by="influence", confidence=0.9)) == kept
        stream = without_worst(table.to_iterable_dataset(), 0.4, by="influence", confidence=0.9)
        assert sorted(row["name"] for row in stream) == sorted(kept)


def test_confidence_needs_standard_errors():
    with pytest.raises(ValueError, match="no column 'influence_error_rank'.*--noise_draws 4"):
        best(SCORED, 0.4, confidence=0.9)
    with pytest.raises(ValueError, match="'name' has no standard error"):
        without_worst(SCORED, 0.4, by="name", confidence=0.9)
    with pytest.raises(ValueError, match=r"\[0.5, 1\)"):
        best(unsure([0.1] * 7), 0.4, by="influence", confidence=0.2)
    mixed = SCORED.add_column("influence_error", [0.1] * 7).add_column("influence_draws", [2.0] * 3 + [4.0] * 4)
    with pytest.raises(ValueError, match=r"rows of \[2, 4\] draws"):
        best(mixed, 0.4, by="influence", confidence=0.9)


def test_the_command_says_how_certain_and_refuses_an_empty_selection():
    table = unsure([0.0, NAN, 0.0, 0.1, 9.0, 5.0, None])
    kept, numbers = choose(table, SelectArguments("run", "out", by="influence", count=2, confidence=0.9))
    assert names(kept) == "d" and "each with 90 % confidence: 1 of 5 rows" in numbers["selection"]
    with pytest.raises(ValueError, match="of no row is it certain to 90 %"):
        choose(unsure([9.0] * 7), SelectArguments("run", "out", by="influence", count=2, confidence=0.9))
    with pytest.raises(ValueError, match="leave out --worst"):
        SelectArguments("run", "out", worst=True, confidence=0.9)
