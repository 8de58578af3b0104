"""Choosing clips by a column: thin lines over `datasets`, in which a row without a score is never chosen.

A score is a number a row: a rank (`influence_rank`, `rival_whole_clip_rank`) is best when it is least, every other
column (`influence`, `influence_votes`, `influence_<group>`, `motion_mean`, one of your own) when it is largest.

A dataset on disk gives its rows best first, ties in the dataset's order. A stream is read once for its scores and
gives a stream in its own order, with all rows that tie with the last.

With `confidence`, a row is on one side of the cut only where its score's standard error leaves no doubt: where it
would be there even if the score were as wrong as that confidence allows (Student's t). The cut is taken as known.
Of few draws hardly any row is certain, of the ranks, which go by votes, next to none; by influence more are
(benchmarks/results/intervals.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .corpus import readable
from .draws import quantile
from .influence import selection_size
from .transforms import error_column

if TYPE_CHECKING:
    from .corpus import AnyDataset

#: Columns that count from the best, 0, upwards.
RANKS = ("influence_rank", "rival_whole_clip_rank")
_DRAWS = "influence_draws"


def best(
    dataset: AnyDataset,
    fraction: float = 0.1,
    *,
    count: int | None = None,
    by: str = "influence_rank",
    confidence: float | None = None,
) -> AnyDataset:
    """The best rows: a share of those that have a score, or a count.

    Args:
        dataset: With the column.
        fraction: In (0, 1], of the rows that have a score, rounded up.
        count: In place of the fraction; all of them where there are fewer.
        by: Column of the score.
        confidence: In [0.5, 1): of these rows only those that are certain to be among them, each by itself, with this
            probability; it takes scores of several draws. None: all.

    Raises:
        ValueError: No such column, no row has a score, a count below 1, or there are no standard errors.
    """
    _check_count(count)
    order, scores, *doubt = _order(dataset, by, *_doubt_columns(dataset, by, confidence))
    size = min(selection_size(len(order), fraction) if count is None else count, len(order))
    if confidence is None or size == len(order):
        return _take(dataset, order[:size], by, scores)
    first_left_out = _Doubt(by, _draws(doubt[1]), confidence, level=float(scores[order[size]]))
    return _take_by(dataset, first_left_out.is_better, order, scores, doubt[0], by)


def without_worst(
    dataset: AnyDataset, fraction: float = 0.1, *, by: str = "influence_rank", confidence: float | None = None
) -> AnyDataset:
    """All rows that have a score but the worst share of them (rounded up), in the dataset's order.

    Args:
        dataset, fraction, by: As `best` takes them.
        confidence: In [0.5, 1): leave out only those of the worst that are certain to be among them.
    """
    order, scores, *doubt = _order(dataset, by, *_doubt_columns(dataset, by, confidence))
    size = len(order) - selection_size(len(order), fraction)
    if confidence is None or size == 0:
        return _take(dataset, np.sort(order[:size]), by, scores)
    last_kept = _Doubt(by, _draws(doubt[1]), confidence, level=float(scores[order[size - 1]]))
    return _take_by(dataset, last_kept.is_no_worse, np.sort(order), scores, doubt[0], by)


def best_of_each(dataset: AnyDataset, count: int, group_column: str, *, by: str = "influence_rank") -> AnyDataset:
    """The best `count` rows of each value of a column (a caption, a motion), best first within and in sorted order."""
    _check_count(count)
    order, scores, groups = _order(dataset, by, group_column)
    chosen: dict[Any, list[int]] = {}
    for row in order:
        members = chosen.setdefault(_key(groups[row]), [])
        if len(members) < count:
            members.append(int(row))
    if not hasattr(dataset, "select"):
        levels = {group: _level(scores[members], by) for group, members in chosen.items()}
        return dataset.filter(
            lambda score, group: _key(group) in levels and _reaches(score, levels[_key(group)], by),
            input_columns=[by, group_column],
        )
    return dataset.select([row for group in sorted(chosen, key=_place) for row in chosen[group]])


def _doubt_columns(dataset: AnyDataset, by: str, confidence: float | None) -> tuple[str, ...]:
    """What it takes to know how sure a score is."""
    if confidence is None:
        return ()
    columns = (error_column(by), _DRAWS)
    if by.startswith("influence") and not all(column in dataset.features for column in columns):
        raise ValueError(
            f"how sure {by!r} is, is not known (there is no column {columns[0]!r}): score with several draws, "
            "as by --noise_draws 4"
        )
    if not by.startswith("influence"):
        raise ValueError(f"{by!r} has no standard error: confidence is about influence, influence_rank and its groups")
    return columns


def _draws(column: list) -> int:
    counts = {int(count) for count in column if count is not None and count == count}
    if len(counts) != 1:
        raise ValueError(f"rows of {sorted(counts)} draws in one dataset: score them together")
    return counts.pop()


class _Doubt:
    """Whether a score is on one side of a level for sure."""

    def __init__(self, by: str, draws: int, confidence: float, level: float):
        self.sign = 1 if by in RANKS else -1
        self.errors, self.level = quantile(draws, confidence), self.sign * level

    def is_better(self, score: float | None, error: float | None) -> bool:
        """For sure. What has no score or error is neither."""
        if score is None or error is None:
            return False
        return bool(self.sign * score + self.errors * error < self.level)

    def is_no_worse(self, score: float | None, error: float | None) -> bool:
        """It is not sure to be worse."""
        if score is None or error is None:
            return False
        return bool(self.sign * score - self.errors * error <= self.level)


def _key(group: Any) -> Any:
    """A value to group by: what has none is one group, and a list or mapping is what it says."""
    if group is None or group != group:  # NaN
        return None
    return group if isinstance(group, (str, int, float)) else str(group)


def _place(key: Any) -> tuple[int, float, str]:
    """In order: rows without a value, numbers, texts."""
    if key is None:
        return (0, 0.0, "")
    return (2, 0.0, key) if isinstance(key, str) else (1, float(key), "")


def _check_count(count: int | None) -> None:
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, got {count}")


def _order(dataset: AnyDataset, by: str, *others: str) -> tuple[Any, ...]:
    """Rows from best to worst, those without a score (null or NaN) left out; all scores; the other columns."""
    dataset = readable(dataset)
    for column in (by, *others):
        if column not in dataset.features:
            raise ValueError(
                f"no column {column!r} to choose by; there are {', '.join(dataset.features)}. "
                "MotiveAttributor.influence adds influence columns, add_motion those of motion"
            )
    if hasattr(dataset, "select"):
        columns: list[Any] = [dataset[column][:] for column in (by, *others)]
    else:
        read = [[row[column] for column in (by, *others)] for row in dataset]
        columns = [list(column) for column in zip(*read, strict=True)] or [[], *([] for _ in others)]
    try:
        scores = np.asarray([np.nan if score is None else score for score in columns[0]], dtype=np.float64)
    except (TypeError, ValueError):
        scores = np.empty((0, 0))
    if scores.ndim != 1:
        raise ValueError(f"column {by!r} holds no numbers to choose by")
    rows = np.flatnonzero(~np.isnan(scores))
    if not len(rows):
        raise ValueError(f"no row has a score in column {by!r}")
    ascending = scores[rows] if by in RANKS else -scores[rows]
    return rows[np.argsort(ascending, kind="stable")], scores, *columns[1:]


def _take(dataset: AnyDataset, rows: np.ndarray, by: str, scores: np.ndarray) -> AnyDataset:
    if hasattr(dataset, "select"):
        return dataset.select(rows.tolist())
    if not len(rows):
        return dataset.take(0)
    level = _level(scores[rows], by)
    return dataset.filter(lambda score: _reaches(score, level, by), input_columns=by)


def _take_by(
    dataset: AnyDataset,
    keep: Callable[[float | None, float | None], bool],
    rows: np.ndarray,
    scores: np.ndarray,
    errors: list,
    by: str,
) -> AnyDataset:
    """Those of some rows that are kept by score and standard error, in the order given; of a stream in its own."""
    if hasattr(dataset, "select"):
        return dataset.select([int(row) for row in rows if keep(scores[row], errors[row])])
    return dataset.filter(keep, input_columns=[by, error_column(by)])


def _level(scores: np.ndarray, by: str) -> float:
    """The worst of some scores."""
    return float(scores.max() if by in RANKS else scores.min())


def _reaches(score: float | None, level: float, by: str) -> bool:
    """Whether a row is at least as good; one without a score never is."""
    return score is not None and bool(score <= level if by in RANKS else score >= level)
