"""Choosing clips by a column: thin lines over `datasets`, in which a row without a score is never chosen.

A score is a number a row: `influence_rank` is best when it is least, every other column (`influence`,
`influence_votes`, `influence_<group>`, `motion_mean`, one of your own) when it is largest. Ties keep the rows' order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .influence import selection_size

if TYPE_CHECKING:
    from datasets import Dataset

#: Columns that count from the best, 0, upwards.
RANKS = ("influence_rank",)


def best(dataset: Dataset, fraction: float = 0.1, *, count: int | None = None, by: str = "influence_rank") -> Dataset:
    """The best rows, best first: a share of those that have a score, or a count.

    Args:
        dataset: With the column.
        fraction: In (0, 1], of the rows that have a score, rounded up.
        count: In place of the fraction; all of them where there are fewer.
        by: Column of the score.

    Raises:
        ValueError: No such column, or no row has a score.
    """
    order = _order(dataset, by)
    return dataset.select(order[: selection_size(len(order), fraction) if count is None else count])


def without_worst(dataset: Dataset, fraction: float = 0.1, *, by: str = "influence_rank") -> Dataset:
    """All rows that have a score but the worst share of them (rounded up), in the dataset's order."""
    order = _order(dataset, by)
    return dataset.select(sorted(order[: len(order) - selection_size(len(order), fraction)]))


def best_of_each(dataset: Dataset, count: int, group_column: str, *, by: str = "influence_rank") -> Dataset:
    """The best `count` rows of each value of a column (a caption, a motion), best first within and in sorted order."""
    if group_column not in dataset.column_names:
        raise ValueError(f"no column {group_column!r} to group by; there are {', '.join(dataset.column_names)}")
    groups = dataset[group_column][:]
    chosen: dict[object, list[int]] = {}
    for row in _order(dataset, by):
        members = chosen.setdefault(groups[row], [])
        if len(members) < count:
            members.append(row)
    return dataset.select([row for group in sorted(chosen, key=str) for row in chosen[group]])


def _order(dataset: Dataset, by: str) -> list[int]:
    """Rows from best to worst; those without a score (null or NaN) are not among them."""
    if by not in dataset.column_names:
        raise ValueError(
            f"no column {by!r} to choose by; there are {', '.join(dataset.column_names)}. "
            "MotiveAttributor.influence adds influence columns, add_motion those of motion"
        )
    scores = np.asarray([np.nan if score is None else score for score in dataset[by][:]], dtype=np.float64)
    rows = np.flatnonzero(~np.isnan(scores))
    if not len(rows):
        raise ValueError(f"no row has a score in column {by!r}")
    scores = scores[rows] if by in RANKS else -scores[rows]
    return rows[np.argsort(scores, kind="stable")].tolist()
