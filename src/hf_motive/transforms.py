"""What the attributor knows about a clip, as columns of a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .index import GradientIndex
from .influence import influence

if TYPE_CHECKING:
    from datasets import Dataset


def add_influence(
    dataset: Dataset,
    ids: Sequence[str],
    index: GradientIndex,
    query_ids: Sequence[str],
    query_index: GradientIndex,
    *,
    groups: Sequence[str] | None = None,
    fraction: float = 0.1,
    percentile: float | None = None,
) -> Dataset:
    """Add the influence columns; see `MotiveAttributor.influence` for what they hold.

    Args:
        dataset: The clips.
        ids: The id of each of its rows, in order.
        index: Holds the clips' features; rows that it lacks get the status `failed` and say so.
        query_ids: Ids of the queries; those without a feature are left out.
        query_index: Holds the queries' features.
        groups: The group of each query: adds a column `influence_<group>` for each.
        fraction: Share of the clips to keep.
        percentile: Cut-off of a vote; None: 100 · (1 - fraction).

    Raises:
        ValueError: no query, or no clip, has a feature; the message counts the reasons.
    """
    statuses, reasons, mean_motion = _rows(ids, index)
    ranked = [row for row, status in enumerate(statuses) if status == "ok"]
    query_rows = _rows(query_ids, query_index)[0]
    asking = [row for row, status in enumerate(query_rows) if status == "ok"]
    for what, left, all_statuses in (("query", asking, query_rows), ("clip", ranked, statuses)):
        if not left:
            counts = ", ".join(f"{all_statuses.count(s)} {s}" for s in sorted(set(all_statuses))) or "there is none"
            raise ValueError(f"no {what} has a feature, so there is nothing to rank: {counts}")
    result = influence(
        index.features([ids[row] for row in ranked]),
        query_index.features([query_ids[row] for row in asking]),
        fraction=fraction,
        percentile=percentile,
    )

    def column(values) -> list[float]:
        full = np.full(len(ids), np.nan)
        full[ranked] = np.asarray(values, dtype=np.float64)
        return full.tolist()

    columns: dict[str, list] = {
        "influence": column(result.mean),
        "influence_votes": column(result.votes),
        "influence_rank": column(result.rank),
        "influence_status": statuses,
        "influence_reason": reasons,
        "motion_mean": mean_motion,
    }
    if groups is not None:
        names = [groups[row] for row in asking]
        for name in sorted(set(names)):
            members = [i for i, other in enumerate(names) if other == name]
            columns[f"influence_{name}"] = column(result.scores[:, members].mean(dim=1))
    stale = [name for name in columns if name in dataset.column_names]
    dataset = dataset.remove_columns(stale)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def _rows(ids: Sequence[str], index: GradientIndex) -> tuple[list[str], list[str], list[float]]:
    """Status, reason and mean motion of each id. The second row of one id is a duplicate: it is not ranked twice."""
    known = {row.id: row for row in index.rows(dict.fromkeys(i for i in ids if i in index))}
    seen: dict[str, int] = {}
    statuses, reasons, motion = [], [], []
    for row, identity in enumerate(ids):
        entry = known.get(identity)
        if entry is None:
            status, reason = "failed", "not in the index: run MotiveAttributor.index on this dataset"
        elif identity in seen:
            status, reason = "duplicate", f"the same clip and caption as row {seen[identity]} (id {identity})"
        else:
            status, reason = entry.status, entry.reason
        seen.setdefault(identity, row)
        statuses.append(status)
        reasons.append(reason)
        mean = entry.facts.get("mean_motion") if entry is not None else None
        motion.append(float("nan") if mean is None else float(mean))
    return statuses, reasons, motion
