"""What an index or a scored dataset is, and whether two are comparable: plain data, for people and for programs.

Videos are not read: of a table or a dataset on the Hub only the columns of scores and motion are, by name.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .sources import Source, find, is_index_on_hub, read_scores, read_selection

if TYPE_CHECKING:
    from pyarrow import Table

    from ..index import GradientIndex

_BINS = 12


# What is said ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distribution:
    """Numbers in numbers. NaN and null are left out; `edges` has one more than `counts`.

    Attributes:
        count: How many.
        negative: How many are below 0.
        mean, minimum, low, median, high, maximum: `low` and `high` cut off a tenth at either end.
        edges, counts: A histogram of equal bins, none of which holds numbers of both signs.
    """

    count: int
    negative: int
    mean: float
    minimum: float
    low: float
    median: float
    high: float
    maximum: float
    edges: list[float]
    counts: list[int]

    @classmethod
    def of(cls, values: Any) -> Distribution | None:
        """None where there are no numbers."""
        numbers = np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return None
        low, median, high = np.quantile(numbers, (0.1, 0.5, 0.9)).tolist()
        width = _round_up(max(float(numbers.max() - numbers.min()), 1e-9) / _BINS)
        first, last = math.floor(numbers.min() / width), math.floor(numbers.max() / width) + 1
        bins = np.clip(np.floor(numbers / width).astype(int), first, last - 1) - first
        return cls(
            count=len(numbers),
            negative=int((numbers < 0).sum()),
            mean=float(numbers.mean()),
            minimum=float(numbers.min()),
            low=low,
            median=median,
            high=high,
            maximum=float(numbers.max()),
            edges=[round(edge * width, 12) for edge in range(first, last + 1)],
            counts=np.bincount(bins, minlength=last - first).tolist(),
        )


@dataclass(frozen=True)
class ShardDescription:
    """One writer's files. `torn`: bytes behind the last complete row, which a crash or a writer at work leaves."""

    name: str
    rows: int
    torn: int
    being_written: bool


@dataclass(frozen=True)
class IndexDescription:
    """A gradient index. `settings`: all that a feature depends on; `written_by`: what is recorded and not compared."""

    source: str
    rows: int
    statuses: dict[str, int]
    dim: int
    settings_digest: str
    settings: dict[str, Any]
    written_by: list[dict[str, Any]]
    digest: str
    shards: list[ShardDescription]
    motion: Distribution | None
    bytes: int
    kind: str = "index"


@dataclass(frozen=True)
class ScoredDescription:
    """A scored dataset. Digests are those of its rows: more than one where it was put together."""

    source: str
    rows: int
    statuses: dict[str, int]
    reasons: dict[str, str]
    influence: Distribution | None
    groups: dict[str, Distribution | None]
    motion: Distribution | None
    influence_settings: list[str]
    influence_queries: list[str]
    columns: list[str]
    selection: str | None
    bytes: int | None
    index: IndexDescription | None = None
    kind: str = "scored dataset"


@dataclass(frozen=True)
class Comparison:
    """Two of them.

    Attributes:
        comparable: None where one of them does not say how it was made.
        differences: Setting -> its two values.
        shared: How many ids both have; None where one has none.
        both_ranked: How many clips both rank.
        spearman: Rank correlation over these, in [-1, 1]; None for fewer than two.
        top: How many clips are the top tenth of these.
        top_shared: How many of the top tenth are the same.
        verdict: In a sentence.
    """

    comparable: bool | None
    verdict: str
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    shared: int | None = None
    both_ranked: int = 0
    spearman: float | None = None
    top: int = 0
    top_shared: int = 0


# How it is found ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One of the things to inspect, opened once."""

    source: Source
    index: GradientIndex | None
    table: Table | None
    columns: list[str]


def open_subject(source: str | Path, split: str = "train") -> Subject:
    """Open what lies there, for reading: a run may be writing.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: It is a dataset without scores.
        IndexCorruptError: It is an index, and broken.
    """
    from ..index import GradientIndex

    found = find(source)
    if found.kind == "hub" and is_index_on_hub(found.name):
        from ..hub import load_index

        found = replace(found, kind="index", scored=None)
        return Subject(found, load_index(found.name), None, [])
    index = None if found.index is None else GradientIndex.open(found.index)
    if found.scored is None:
        return Subject(found, index, None, [])
    table, columns = read_scores(found, split)
    if "influence_rank" not in columns:
        raise ValueError(
            f"{source} has no influence columns: it has not been scored (`hf-motive score`). Its columns are "
            f"{', '.join(columns)}"
        )
    return Subject(found, index, table, columns)


def describe(subject: Subject) -> IndexDescription | ScoredDescription:
    """What it is."""
    index = None if subject.index is None else _describe_index(subject.source.name, subject.index)
    if subject.table is None:
        assert index is not None
        return index
    from ..transforms import group_columns

    columns = {name: subject.table[name].to_pylist() for name in subject.table.column_names}
    statuses = columns.get("influence_status") or []
    reasons: dict[str, str] = {}
    for status, reason in zip(statuses, columns.get("influence_reason") or [None] * len(statuses), strict=True):
        if status != "ok":
            reasons.setdefault(status, reason or "")
    return ScoredDescription(
        source=subject.source.name,
        rows=subject.table.num_rows,
        statuses=dict(Counter(map(str, statuses)).most_common()),
        reasons=reasons,
        influence=Distribution.of(columns.get("influence", [])),
        groups={
            name.removeprefix("influence_"): Distribution.of(columns[name]) for name in group_columns(list(columns))
        },
        motion=Distribution.of(columns.get("motion_mean", [])),
        influence_settings=_different(columns.get("influence_settings")),
        influence_queries=_different(columns.get("influence_queries")),
        columns=subject.columns,
        selection=(read_selection(subject.source) or {}).get("selection"),
        bytes=_size(subject.source.scored),
        index=index,
    )


def compare(one: Subject, other: Subject) -> Comparison:
    """Whether their features, and for two scored datasets their ranks, may be held against each other."""
    from ..index import IndexMismatchError

    differences: dict[str, tuple[Any, Any]] = {}
    known = True
    if one.index is not None and other.index is not None:
        try:
            one.index.check_comparable(other.index)
        except IndexMismatchError as error:
            differences |= error.differences
    else:
        made, also = _settings(one), _settings(other)
        known = bool(made and also)
        if known and (made != also or len(made) > 1):
            differences["settings"] = (", ".join(made), ", ".join(also))
    both_scored = one.table is not None and other.table is not None
    if both_scored:
        asked, also = (_different(_column(subject, "influence_queries")) for subject in (one, other))
        known = known and bool(asked and also)
        if asked and also and (asked != also or len(asked) > 1):
            differences["queries"] = (", ".join(asked), ", ".join(also))
    comparable = False if differences else True if known else None
    if comparable:
        verdict = "comparable: the same settings" + " and the same queries" * both_scored
    elif comparable is None:
        verdict = "it cannot be told: one of them has no influence_settings or influence_queries, score it again"
    elif list(differences) == ["queries"]:
        verdict = "not comparable as they stand: the same settings, but influence on different queries"
    else:
        verdict = "not comparable: the features were computed differently"
    mine, theirs = _ranks(one), _ranks(other)
    if mine is None or theirs is None:
        return Comparison(comparable, verdict, differences)
    shared = mine.keys() & theirs.keys()
    if not both_scored:
        return Comparison(comparable, verdict, differences, len(shared))
    ranked = sorted(identity for identity in shared if mine[identity] >= 0 and theirs[identity] >= 0)
    first, second = (_places([ranks[identity] for identity in ranked]) for ranks in (mine, theirs))
    top = math.ceil(len(ranked) / 10)
    return Comparison(
        comparable,
        verdict,
        differences,
        len(shared),
        both_ranked=len(ranked),
        spearman=float(np.corrcoef(first, second)[0, 1]) if len(ranked) > 1 else None,
        top=top,
        top_shared=int(((first < top) & (second < top)).sum()),
    )


def to_json(value: Any) -> str:
    """A description or a comparison, or several by name, as JSON; what is not a number there is null."""
    plain = {name: asdict(part) for name, part in value.items()} if isinstance(value, dict) else asdict(value)
    return json.dumps(_finite(plain), indent=2, ensure_ascii=False, allow_nan=False)


# Inside ---------------------------------------------------------------------------------------------------------


def _describe_index(name: str, index: GradientIndex) -> IndexDescription:
    from ..transforms import settings_digest

    return IndexDescription(
        source=name,
        rows=len(index),
        statuses=index.counts(),
        dim=index.dim,
        settings_digest=settings_digest(index),
        settings=index.settings["features"],
        written_by=index.provenances,
        digest=index.digest(),
        shards=list(_shards(index.path, index.draws * index.dim)),
        motion=Distribution.of(row.facts.get("mean_motion") for row in index.rows()),
        bytes=_size(index.path) or 0,
    )


def _shards(folder: Path, dim: int) -> Iterator[ShardDescription]:
    import fcntl

    from ..storage import Shard

    for path in sorted(folder.glob("shard-*.rows.jsonl")):
        shard = Shard(folder, path.name.removeprefix("shard-").removesuffix(".rows.jsonl"), dim)
        rows = sum("id" in record for _, record in shard.scan())
        features = shard.features_path.stat().st_size if shard.features_path.exists() else 0
        torn = path.stat().st_size - shard.end + features - shard.count * shard.record_bytes
        with open(path, "rb") as file:
            try:  # a shared lock, given back at once: a writer holds the exclusive one
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                busy = False
            except BlockingIOError:
                busy = True
        yield ShardDescription(shard.name, rows, max(0, torn), busy)


def _column(subject: Subject, name: str) -> list[Any] | None:
    known = subject.table is not None and name in subject.table.column_names
    return subject.table[name].to_pylist() if known and subject.table is not None else None


def _settings(subject: Subject) -> list[str]:
    """Digests of the settings, from the index or from the rows."""
    if subject.index is None:
        return _different(_column(subject, "influence_settings"))
    from ..transforms import settings_digest

    return [settings_digest(subject.index)]


def _ranks(subject: Subject) -> dict[str, float] | None:
    """Id -> rank, NaN where it has none. Of several rows with one id, the one that is ranked."""
    if subject.table is None:
        assert subject.index is not None
        return dict.fromkeys(subject.index.ids(), math.nan)
    ids, ranks = _column(subject, "influence_id"), _column(subject, "influence_rank")
    if ids is None or ranks is None:
        return None
    found: dict[str, float] = {}
    for identity, rank in zip(ids, ranks, strict=True):
        if math.isnan(found.get(identity, math.nan)):
            found[identity] = math.nan if rank is None else rank
    return found


def _places(ranks: Sequence[float]) -> np.ndarray:
    """Ranks among these alone: 0, 1, 2, ..."""
    return np.argsort(np.argsort(np.asarray(ranks), kind="stable"), kind="stable").astype(np.float64)


def _different(values: Sequence[Any] | None) -> list[str]:
    return sorted({str(value) for value in values or () if value is not None})


def _round_up(width: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= width * (1 - 1e-9))


def _size(path: str | Path | None) -> int | None:
    """Bytes on disk, of a folder all of it; None for what is not on this disk."""
    if path is None or not Path(path).exists():
        return None
    if Path(path).is_file():
        return Path(path).stat().st_size
    return sum(os.path.getsize(os.path.join(folder, file)) for folder, _, files in os.walk(path) for file in files)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The command ----------------------------------------------------------------------------------------------------


@dataclass
class InspectArguments:
    """What to look at."""

    source: str = field(
        metadata={
            "help": "A run, an index or a scored dataset, by its path or its id on the Hub; or the folder of a model."
        }
    )
    other: str | None = field(default=None, metadata={"help": "Another: are the two comparable?"})
    split: str = field(default="train", metadata={"help": "Split of datasets that have several."})
    json: bool = field(default=False, metadata={"help": "Print the same as JSON."})


def inspect(arguments: InspectArguments) -> int:
    """Print what one or two are. Returns the exit status: 3 where two are not comparable, or it cannot be told."""
    from .inspect_report import print_comparison, print_description

    names = [arguments.source] if arguments.other is None else [arguments.source, arguments.other]
    models = [name for name in names if find(name).kind == "model"]
    if models:
        from .inspect_model import describe_model, print_model

        if len(names) > 1:
            raise ValueError(f"{models[0]} is a trained model: what is compared are scores, and it has none")
        model = describe_model(models[0])
        print(to_json(model)) if arguments.json else print_model(model)
        return 0
    subjects = [open_subject(name, arguments.split) for name in names]
    descriptions = [describe(subject) for subject in subjects]
    comparison = compare(*subjects) if len(subjects) == 2 else None
    if arguments.json:
        parts = {"source": descriptions[0], "other": descriptions[-1], "comparison": comparison}
        print(to_json(parts if comparison else descriptions[0]))
    else:
        for description in descriptions:
            print_description(description, settings=comparison is None)
        if comparison:
            print_comparison(comparison, names[0], names[1])
    return 0 if comparison is None or comparison.comparable else 3
