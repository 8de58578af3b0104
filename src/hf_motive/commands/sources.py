"""What lies at a path or under an id of the Hub: a run, an index, a scored dataset, a model. Scores without videos."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from pyarrow import Table

T = TypeVar("T")

RESULTS = "influence.parquet"
COLUMN_HELP = "None: what the run was told, or {!r}."
_TABLES = (".parquet", ".jsonl", ".csv")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_INDEX_HAS_NO_SCORES = "{} is an index: it has features, and no scores yet. Give its run's folder"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """What lies at a place.

    Attributes:
        kind: `run`, the output folder of `score`; `index`; `dataset`, a table or folder here; `model`, the folder in
            which a training ended; `hub`, a dataset there.
        name: As the user wrote it.
        scored: Where the scored rows are, as `load_clips` takes it; None where there are none.
        index: Folder of the index; None where there is none.
    """

    kind: Literal["run", "index", "dataset", "model", "hub"]
    name: str
    scored: str | None = None
    index: Path | None = None


def find(source: str | Path) -> Source:
    """Look at what lies at a path, or has this id on the Hub.

    Raises:
        FileNotFoundError: Nothing is there, or nothing that this library writes or reads.
    """
    from ..hub.model_facts import is_model_folder

    path, name = Path(source).expanduser(), str(source)
    if path.is_file() and path.suffix in _TABLES:
        return Source("dataset", name, str(path))
    if path.is_dir():
        if (path / "index.json").exists():
            return Source("index", name, None, path)
        index = path / "index" if (path / "index" / "index.json").exists() else None
        if (path / RESULTS).exists():
            return Source("run", name, str(path / RESULTS), index)
        if index is not None:
            return Source("run", name, None, index)
        if any((path / file).exists() for file in (*_METADATA, "state.json", "dataset_dict.json")):
            return Source("dataset", name, str(path))
        if is_model_folder(path):
            return Source("model", name)
    elif not path.exists() and _HUB_ID.fullmatch(name) and not name.startswith(".") and path.suffix not in _TABLES:
        return Source("hub", name, name)
    raise FileNotFoundError(
        f"{source} {'is none of these' if path.exists() else 'does not exist'}: give the output folder of `hf-motive "
        "score`, an index, a scored table (.parquet, .jsonl, .csv), a saved dataset, a folder with metadata.jsonl, "
        "the folder of a trained model, or the id of a dataset on the Hub"
    )


def selection_path(output: str | Path) -> Path:
    """Where `select` says how the rows were chosen: in a folder of theirs, or beside a file."""
    path = Path(output)
    return path.with_suffix(".selection.json") if path.suffix in _TABLES else path / "selection.json"


def read_selection(source: Source) -> dict[str, Any] | None:
    """What `select` left, or None where it left nothing."""
    if source.kind != "dataset" or source.scored is None:
        return None
    path = selection_path(source.scored)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def selected_from(source: Source, selection: dict[str, Any]) -> str:
    """What a selection was taken from: its path, which is kept relative to the selection, or its id on the Hub."""
    assert source.scored is not None
    path = selection_path(source.scored).parent / selection["source"]
    return str(path) if path.exists() else selection["source"]


def job_of(source: Source) -> dict[str, Any]:
    """The options that a run was told; of an index those of its run. Empty where nothing says."""
    from ..scoring import JOB

    if source.kind not in ("run", "index"):
        return {}
    folder = Path(source.name).expanduser()
    path = (folder.resolve().parent if source.kind == "index" else folder) / JOB
    return json.loads(path.read_text(encoding="utf-8"))["arguments"] if path.exists() else {}


def columns_of(source: Source, video_column: str | None = None, caption_column: str | None = None) -> dict[str, Any]:
    """`video_column` and `caption_column`: as given here, as run or selection say, or `video` and `caption`."""
    known = job_of(source) | (read_selection(source) or {})
    if source.scored is not None and (Path(source.scored) / "metadata.jsonl").exists():
        known.pop("video_column", None)  # there it is called `video`, whatever it was
    told = {"video_column": video_column, "caption_column": caption_column}
    return {name: told[name] or known.get(name) or name.removesuffix("_column") for name in told}


def published_name(corpus: str | None) -> str | None:
    """An id of the Hub as it is; of a folder or file of this machine its own name."""
    if corpus is None:
        return None
    path = Path(corpus).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() or corpus.startswith(".") else corpus


def load_scored(source: Source, split: str, columns: dict[str, Any]) -> Dataset | IterableDataset:
    """The scored rows with their videos, undecoded.

    Raises:
        ValueError: It has not been scored.
        FileNotFoundError: A run that has not ended.
    """
    from ..corpus import load_clips
    from ..scoring import JOB, load_run

    if source.kind == "index":
        raise ValueError(_INDEX_HAS_NO_SCORES.format(source.name))
    if source.kind == "model":
        raise ValueError(f"{source.name} is a trained model, which has no rows: give what was scored")
    dataset: Any
    if source.kind == "run" and (Path(source.name).expanduser() / JOB).exists():
        dataset = load_run(Path(source.name).expanduser())
    elif source.scored is None:
        raise FileNotFoundError(f"{source.name} holds no scores yet: run the same `hf-motive score` again, to its end")
    elif source.kind == "hub":
        place = source.scored
        try:
            dataset = _from_hub(source.name, lambda: load_clips(place, split=split, **columns))
        except Exception as error:
            if is_index_on_hub(source.name):
                raise ValueError(_INDEX_HAS_NO_SCORES.format(source.name)) from error
            raise
    else:
        with _named(source.scored):
            dataset = load_clips(source.scored, split=split, **columns)
    names = dataset.column_names or []
    if "influence_rank" not in names:
        raise ValueError(
            f"{source.name} has no influence columns: score it first (`hf-motive score`). Its columns are "
            f"{', '.join(names)}"
        )
    if (
        source.kind == "dataset"
        and source.scored is not None
        and Path(source.scored).is_dir()
        and "file_name" in names
    ):
        dataset = dataset.remove_columns("file_name")  # the place in that folder, which the video column says
    return dataset


def read_scores(source: Source, split: str) -> tuple[Table, list[str]]:
    """The columns of scores and motion, and the names of all columns. Videos are not read.

    Raises:
        ValueError: No such split.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from ..corpus import json_lines

    assert source.scored is not None
    path = Path(source.scored)
    if source.kind == "hub":
        return _hub_scores(source.name, split)
    if path.is_dir() and not any((path / name).exists() for name in _METADATA):
        from datasets import DatasetDict, load_from_disk

        saved = load_from_disk(str(path))
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise ValueError(f"{path} has no split {split!r}; it has {', '.join(saved)}: choose by --split")
            saved = saved[split]
        chosen = saved.select_columns(_wanted(saved.features.arrow_schema)).with_format("arrow")
        return chosen[:], saved.column_names
    if path.is_dir():
        path = next(path / name for name in _METADATA if (path / name).exists())
    if path.suffix == ".parquet":
        with _named(str(path)):
            schema = pq.read_schema(path)
            return pq.read_table(path, columns=_wanted(schema)), schema.names
    if path.suffix == ".csv":
        with _named(str(path)):
            table = pa.csv.read_csv(path)
    else:
        with _named(str(path)):
            table = pa.Table.from_pylist(json_lines(path))
    return table.select(_wanted(table.schema)), table.column_names


def _hub_scores(repo_id: str, split: str) -> tuple[Table, list[str]]:
    """Of Parquet files only the bytes of these columns; a `metadata.jsonl` whole, without the clips beside it."""
    return _from_hub(repo_id, lambda: _read_hub_scores(repo_id, split))


def _read_hub_scores(repo_id: str, split: str) -> tuple[Table, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from huggingface_hub import HfFileSystem

    files = HfFileSystem()
    there = [str(path) for path in files.find(f"datasets/{repo_id}")]
    split_file = re.compile(rf"(.*/)?{re.escape(split)}(-[^/]*\.parquet|/metadata\.jsonl)")
    paths = sorted(path for path in there if split_file.fullmatch(path))
    if not paths:
        raise FileNotFoundError(
            f"it has no {split}-*.parquet and no {split}/metadata.jsonl: choose another split by --split, or "
            "download it and give the folder"
        )
    tables, names = [], []
    for path in paths:
        with files.open(path) as file:
            if path.endswith(".jsonl"):
                rows = pa.Table.from_pylist([json.loads(line) for line in file.read().splitlines() if line])
                table, names = rows.select(_wanted(rows.schema)), rows.column_names
            else:
                parquet = pq.ParquetFile(file)
                names = parquet.schema_arrow.names
                table = parquet.read(columns=_wanted(parquet.schema_arrow))
        tables.append(table)
    return pa.concat_tables(tables, promote_options="default"), names


def is_index_on_hub(repo_id: str) -> bool:
    """Whether a dataset repository holds an index."""
    from huggingface_hub import HfApi

    return _from_hub(repo_id, lambda: HfApi().file_exists(repo_id, "index.json", repo_type="dataset"))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Arrow does not say which file it cannot read."""
    from pyarrow import ArrowInvalid

    try:
        yield
    except ArrowInvalid as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def _from_hub(repo_id: str, call: Callable[[], T]) -> T:
    """Make a call as a push does, again where that helps.

    An id may be a path that was mistyped: what the Hub says is then only half of what to say.
    """
    from ..hub.retries import persist, secrets_of

    try:
        return persist(call, f"reading {repo_id}", secrets=secrets_of(None), go_on="")
    except OSError as error:
        said = str(error) or type(error).__name__
        raise OSError(f"{repo_id} does not exist here, and cannot be had from the Hub: {said}") from error


def _wanted(schema: Any) -> list[str]:
    import pyarrow.types as types

    return [
        entry.name
        for entry in schema
        if entry.name.startswith(("influence", "motion_", "rival_"))
        and (
            types.is_floating(entry.type)
            or types.is_integer(entry.type)
            or types.is_string(entry.type)
            or types.is_large_string(entry.type)
            or types.is_null(entry.type)
        )
    ]
