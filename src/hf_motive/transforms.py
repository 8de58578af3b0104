"""What the attributor knows about a clip, as columns of a dataset, whether it lies on disk or streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import TYPE_CHECKING, Any

import numpy as np

from .corpus import RowId, clip_name, undecoded
from .index import GradientIndex
from .influence import influence
from .storage import canonical_json
from .uncertainty import uncertainty

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from torch import Tensor

#: Columns of text; every other influence column is a number, NaN where the row is not ranked.
TEXT_COLUMNS = (
    "influence_status",
    "influence_reason",
    "influence_id",
    "influence_settings",
    "influence_queries",
    "influence_model",
)
#: What a cheaper choice would go by.
RIVAL_COLUMNS = ("rival_random", "rival_whole_clip", "rival_whole_clip_rank")
_PREFIX, _MOTION = "influence_", "motion_mean"
_ERROR = "influence_error"
_RESERVED = {"influence_votes", "influence_rank", "influence_draws", *TEXT_COLUMNS}


def group_columns(names: Iterable[str]) -> list[str]:
    """Those of a dataset's columns that hold the influence on one query or group of queries."""
    return [name for name in names if name.startswith(_PREFIX) and name not in _RESERVED and not is_error(name)]


def is_error(name: str) -> bool:
    """Whether a column holds standard errors of another."""
    return name.startswith(_ERROR)


def error_column(score: str) -> str:
    """The column with the standard errors of a column of scores: `influence` -> `influence_error`,
    `influence_rank` -> `influence_error_rank`, `influence_<group>` -> `influence_error_<group>`."""
    return _ERROR + score.removeprefix("influence")


def is_score(name: str) -> bool:
    """Whether a column is one of those that `influence_columns` makes."""
    return name in ("influence", _MOTION, *RIVAL_COLUMNS) or name.startswith(_PREFIX)


def is_reserved(group: str) -> bool:
    """Whether `influence_<group>` is the name of another column."""
    name = f"{_PREFIX}{group}"
    return name in _RESERVED or is_error(name)


def check_groups(groups: Iterable[str]) -> None:
    """Raise ValueError where a group of queries would take the name of another column."""
    for group in groups:
        if is_reserved(group):
            raise ValueError(f"a group of queries cannot be called {group!r}: influence_{group} is another column")


def settings_digest(index: GradientIndex) -> str:
    """16 hexadecimal digits of all that a feature depends on: equal digests may be compared."""
    return hashlib.sha256(canonical_json(index.settings["features"])).hexdigest()[:16]


def queries_digest(ids: Iterable[str]) -> str:
    """16 hexadecimal digits of a set of queries, in any order."""
    return hashlib.sha256(canonical_json(sorted(set(ids)))).hexdigest()[:16]


@dataclass(frozen=True)
class Rivals:
    """What the columns of a cheaper choice are made from: the features without a mask, and a seed.

    Attributes:
        index: The clips' features by the plain loss.
        query_index: The queries'.
        seed: Of the random column.
    """

    index: GradientIndex
    query_index: GradientIndex
    seed: int = 0


def influence_columns(
    ids: Sequence[str],
    index: GradientIndex,
    query_ids: Sequence[str],
    query_index: GradientIndex,
    *,
    groups: Sequence[str] | None = None,
    fraction: float = 0.1,
    percentile: float | None = None,
    rivals: Rivals | None = None,
    model: str | None = None,
) -> dict[str, list]:
    """Score, vote and rank; see `MotiveAttributor.influence` for what the columns hold.

    Args:
        ids: The id of each row of the corpus, in order.
        index: Holds the clips' features; rows that it lacks get the status `failed` and say so.
        query_ids: Ids of the queries; those without a feature are left out.
        query_index: Holds the queries' features.
        groups: The group of each query: adds a column `influence_<group>` for each.
        fraction: Share of the clips to keep.
        percentile: Cut-off of a vote; None: 100 · (1 - fraction).
        rivals: Adds the columns of `rival_…`.
        model: Digest of the model that the features are of; None where it is not known.

    Returns:
        Column -> one value a row.

    Raises:
        ValueError: no query, or no clip, has a feature (the message counts the reasons), or a group would take the
            name of another column.
    """
    statuses, reasons, mean_motion = _rows(ids, index)
    ranked = [row for row, status in enumerate(statuses) if status == "ok"]
    query_rows = _rows(query_ids, query_index)[0]
    asking = [row for row, status in enumerate(query_rows) if status == "ok"]
    for what, left, all_statuses in (("query", asking, query_rows), ("clip", ranked, statuses)):
        if not left:
            counts = ", ".join(f"{all_statuses.count(s)} {s}" for s in sorted(set(all_statuses))) or "there is none"
            raise ValueError(f"no {what} has a feature, so there is nothing to rank: {counts}")
    asked_by = [query_ids[row] for row in asking]
    clips = [ids[row] for row in ranked]
    result = influence(
        _features(index, clips),
        query_index.features(asked_by),
        fraction=fraction,
        percentile=percentile,
    )

    def column(values: Any, rows: Sequence[int] = ranked) -> list[float]:
        full = np.full(len(ids), np.nan)
        full[rows] = np.asarray(values, dtype=np.float64)
        return full.tolist()

    columns: dict[str, list] = {
        "influence": column(result.mean),
        "influence_votes": column(result.votes),
        "influence_rank": column(result.rank),
        "influence_status": statuses,
        "influence_reason": reasons,
        "influence_id": list(ids),
        "influence_settings": [settings_digest(index)] * len(ids),
        "influence_queries": [queries_digest(asked_by)] * len(ids),
        "influence_model": [model] * len(ids),
        "motion_mean": mean_motion,
    }
    members: dict[str, list[int]] = {}
    if groups is not None:
        check_groups(groups)
        names = [groups[row] for row in asking]
        members = {name: [i for i, other in enumerate(names) if other == name] for name in sorted(set(names))}
        for name, positions in members.items():
            columns[f"{_PREFIX}{name}"] = column(result.scores[:, positions].mean(dim=1))
    if index.draws > 1:
        errors = uncertainty(
            lambda: (part for _, part in index.chunks(ids=clips, by_draw=True)),
            query_index.features_by_draw(asked_by),
            groups=members,
            fraction=fraction,
            percentile=percentile,
        )
        columns["influence_draws"] = [float(index.draws)] * len(ids)
        columns[error_column("influence")] = column(errors.mean)
        columns[error_column("influence_rank")] = column(errors.rank)
        columns |= {error_column(f"{_PREFIX}{name}"): column(error) for name, error in errors.groups.items()}
    if rivals is not None:
        both = [row for row in ranked if rivals.index.status(ids[row]) == "ok"]
        asked = [identity for identity in asked_by if rivals.query_index.status(identity) == "ok"]
        whole = influence(
            _features(rivals.index, [ids[row] for row in both]),
            rivals.query_index.features(asked),
            fraction=fraction,
            percentile=percentile,
        )
        columns |= {
            "rival_random": column([_uniform(rivals.seed, ids[row]) for row in ranked]),
            "rival_whole_clip": column(whole.mean, both),
            "rival_whole_clip_rank": column(whole.rank, both),
        }
    return columns


def add_influence(
    dataset: Dataset | IterableDataset,
    columns: Mapping[str, Sequence],
    row_id: RowId,
    names: Sequence[str] | None = None,
) -> Dataset | IterableDataset:
    """Put columns beside the rows that they were computed for, in place of those of an earlier scoring.

    Args:
        dataset: The rows. Those of a stream are found by their id, whatever order they come in; its media are not
            decoded, so that a filter by influence need not (`.decode()` decodes them again).
        columns: From `influence_columns`, `influence_id` among them.
        row_id: A row to its id.
        names: The clips' names, by which a stream's copies of one clip are told apart.
    """
    from datasets import Dataset, Features

    if isinstance(dataset, Dataset):
        stale = _stale(dataset.features, columns)
        if _MOTION in stale and "motion_status" in dataset.column_names:  # from add_motion, which knows of more rows
            known = zip(columns[_MOTION], dataset.with_format(None)[_MOTION], strict=True)
            columns = {**columns, _MOTION: [_or(mean, earlier) for mean, earlier in known]}
        dataset = dataset.remove_columns(stale)
        for name, values in columns.items():
            dataset = dataset.add_column(name, list(values), feature=_feature(name))
        return dataset
    stream = undecoded(dataset, row_id.video_column, row_id.caption_column).decode(False)
    stale = _stale(stream.features, columns)
    features = {name: feature for name, feature in stream.features.items() if name not in stale}
    features |= {name: _feature(name) for name in columns}
    left = [name for name in stale if name not in columns]
    return stream.map(
        _Lookup(columns, row_id, names), with_indices=True, features=Features(features), remove_columns=left
    )


class _Lookup:
    """A row of a stream, and its place, to its influence columns, found by its id.

    Of rows with one id the first is ranked. It is known by the clip's name; where copies share that, by its place,
    which is another one in a share of the stream (a worker's, a process') or after shuffling: there, a copy of the
    same name may be ranked as well, or none.
    """

    def __init__(self, columns: Mapping[str, Sequence], row_id: RowId, names: Sequence[str] | None):
        self.row_id = row_id
        self.columns = {
            name: values if name in TEXT_COLUMNS else np.asarray(values) for name, values in columns.items()
        }
        self.first: dict[str, int] = {}
        self.copies: dict[str, list[int]] = {}  # id -> the later rows
        for row, identity in enumerate(columns["influence_id"]):
            if self.first.setdefault(identity, row) != row:
                self.copies.setdefault(identity, []).append(row)
        self.name_of_first: dict[str, str] = {}
        for identity, rows in self.copies.items():
            name = names[self.first[identity]] if names is not None else ""
            if name and name not in [names[row] for row in rows]:
                self.name_of_first[identity] = name

    def _is_first(self, identity: str, example: Mapping[str, Any], place: int) -> bool:
        if identity in self.name_of_first:
            return clip_name(example[self.row_id.video_column], "") == self.name_of_first[identity]
        return place == self.first[identity]

    def __call__(self, example: Mapping[str, Any], place: int) -> dict[str, Any]:
        identity = self.row_id(example)
        row = self.first.get(identity)
        if row is None:
            found: dict[str, Any] = {name: None if name in TEXT_COLUMNS else float("nan") for name in self.columns}
            return found | {
                "influence_status": "failed",
                "influence_reason": "the stream had no such row when it was ranked",
                "influence_id": identity,
            }
        if identity in self.copies and not self._is_first(identity, example, place):
            row = self.copies[identity][0]
        columns = {name: values[row] for name, values in self.columns.items()}
        if "motion_status" in example:
            columns[_MOTION] = _or(columns[_MOTION], example.get(_MOTION))
        return columns


def _stale(features: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """Columns that new ones replace: those of their names, and the numbers of an earlier scoring."""
    scored = "influence_settings" in features
    numbers = [name for name, feature in features.items() if getattr(feature, "dtype", None) == "float64"]
    return [name for name in features if name in columns or (scored and is_score(name) and name in numbers)]


def _or(value: float, earlier: float | None) -> float:
    return value if value == value or earlier is None else earlier  # NaN is not itself


def _feature(name: str) -> Any:
    from datasets import Value

    return Value("string" if name in TEXT_COLUMNS else "float64")


def _uniform(seed: int, identity: str) -> float:
    """A number in [0, 1) that depends on the seed and the clip, and on neither order nor number of clips."""
    return int.from_bytes(hashlib.sha256(f"{seed} {identity}".encode()).digest()[:6], "big") / 2**48


def _features(index: GradientIndex, ids: Sequence[str]) -> Iterator[Tensor]:
    return (features for _, features in index.chunks(ids=ids))


def _rows(ids: Sequence[str], index: GradientIndex) -> tuple[list[str], list[str], list[float]]:
    """Status, reason and mean motion of each id. The second row of one id is a duplicate: it is not ranked twice."""
    known = index.rows(dict.fromkeys(i for i in ids if i in index))  # in the order in which they are first met here
    first: dict[str, int] = {}
    statuses: list[str] = []
    reasons: list[str] = []
    motion: list[float] = []
    mean: float | None
    for row, identity in enumerate(ids):
        if identity in first:
            status = "duplicate"
            reason = f"the same clip and caption as row {first[identity]} (id {identity})"
            mean = motion[first[identity]]
        elif identity in index:
            entry = next(known)
            status, reason, mean = intern(entry.status), entry.reason, entry.facts.get("mean_motion")
        else:
            status, reason, mean = "failed", "not in the index: run MotiveAttributor.index on this dataset", None
        first.setdefault(identity, row)
        statuses.append(status)
        reasons.append(reason)
        motion.append(float("nan") if mean is None else float(mean))
    return statuses, reasons, motion
