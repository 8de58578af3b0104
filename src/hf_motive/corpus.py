"""A folder, a file or a Hub id to a `datasets` dataset with a `video` and a `caption` column; what a row is called.

Video is never decoded here: rows hold `{"path", "bytes"}`, and a file that cannot be read costs its row when its turn
comes, not the loading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .errors import ClipError
from .video import content_id, file_name

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif", ".m4v")
_METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLES = (".jsonl", ".csv", ".parquet")
FILE_COLUMNS = ("file_name", "file_path", "path")


@dataclass(frozen=True)
class RowId:
    """A row of a dataset to its stable id: what the clip and its caption are, not where they lie.

    Args:
        video_column: Column of the video, undecoded.
        caption_column: Column of the caption.
        id_column: Column of an id to take as it is. None: the digest of the file's bytes and the caption.
        mask_column: Column of a mask to count in: the feature depends on it, as it does on the caption.
    """

    video_column: str = "video"
    caption_column: str = "caption"
    id_column: str | None = None
    mask_column: str | None = None

    def __call__(self, row: Mapping[str, Any]) -> str:
        if self.id_column is not None:
            if row[self.id_column] in (None, ""):
                raise ValueError(f"a row has nothing in column {self.id_column!r}, which is to be its id")
            return str(row[self.id_column])
        video, caption = row[self.video_column], row[self.caption_column] or ""
        if self.mask_column is not None:
            mask = np.asarray(row.get(self.mask_column), dtype=np.float32)
            caption = f"{caption}\n{hashlib.sha256(mask.tobytes()).hexdigest()}"
        try:
            return content_id(video, caption)
        except ClipError:
            # No bytes to digest: the name stands in, so that the row has an id under which to say so.
            name = video.get("path") if isinstance(video, Mapping) else video
            return hashlib.sha256(f"{name}\n{caption}".encode()).hexdigest()[:16]


def clip_name(video: Any, row: int | str) -> str:
    """What a person calls a clip: the name of its file, or its row where it has none."""
    path = video.get("path") if isinstance(video, Mapping) else video if isinstance(video, str) else None
    return file_name(path) if path else f"row {row}"


def load_clips(
    source: str | Path,
    *,
    split: str = "train",
    video_column: str = "video",
    caption_column: str = "caption",
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Load clips and captions, undecoded.

    Args:
        source: One of
            a folder with `metadata.jsonl`, `.csv` or `.parquet` (columns `file_name` and the caption);
            a folder of video files, each with its caption in a `.txt` of the same name beside it;
            a folder written by `Dataset.save_to_disk`;
            a folder of WebDataset shards (`.tar`), or one of them: each clip's caption is a `.txt` or the caption's
            key in a `.json` beside it;
            a `.jsonl`, `.csv` or `.parquet` file, its paths relative to the file;
            the id of a dataset on the Hub.
        split: Which split to take where the source has several.
        video_column: Name of the column that holds the video.
        caption_column: Name of the column that holds the caption.
        streaming: Read rows as they are needed, nothing being copied or downloaded first. Shards always stream.

    Returns:
        A dataset whose `video_column` is `Video(decode=False)`; other columns are kept.

    Raises:
        FileNotFoundError: the path looks local and is not there, or a folder holds no video.
        ValueError: there are no rows, or a column is missing; the message names those there are.
    """
    path = Path(source).expanduser()
    path = path.absolute() if path.exists() else path  # what is written of it then holds from any folder
    dataset: Dataset | IterableDataset
    if path.is_dir() and (shards := sorted(map(str, path.glob("*.tar")))):
        dataset = _from_shards(shards, video_column, caption_column)
    elif path.is_dir():
        dataset = _from_folder(path, split, caption_column)
    elif path.is_file() and path.suffix == ".tar":
        dataset = _from_shards([str(path)], video_column, caption_column)
    elif path.is_file() and path.suffix == ".parquet" and streaming:
        dataset = _stream("parquet", data_files=[str(path)])
    elif path.is_file():
        dataset = _from_table(path)
    elif path.is_absolute() or str(source).startswith((".", "~")) or path.suffix in _TABLES:
        raise FileNotFoundError(
            f"{source} does not exist: give a folder of clips, a table, or the id of a Hub dataset"
        )
    else:
        from datasets import load_dataset

        # Hub datasets may declare Video(decode=True); nothing is decoded before the cast below.
        dataset = load_dataset(str(source), split=split, streaming=streaming)
        dataset = _in_row_groups(dataset) if streaming else dataset
    dataset = undecoded(dataset, video_column, caption_column, name=str(source))
    return dataset.to_iterable_dataset() if streaming and hasattr(dataset, "to_iterable_dataset") else dataset


def undecoded(
    dataset: AnyDataset, video_column: str, caption_column: str, *others: str | None, name: str = "the dataset"
) -> AnyDataset:
    """Check the columns and cast the video to `Video(decode=False)`.

    Args:
        others: Further columns that must be there; None asks for nothing.

    Raises:
        TypeError, ValueError: as `readable`; a column is missing, or the caption is no text.
    """
    dataset = readable(dataset, name)
    check_columns(dataset.features, video_column, caption_column, *others, name=name)
    caption = dataset.features[caption_column]
    if getattr(caption, "dtype", None) not in ("string", "large_string", "null"):
        raise ValueError(
            f"column {caption_column!r} of {name} is no text but {caption}: give one caption a clip, "
            "in another column by caption_column="
        )
    return as_files(dataset, video_column)


def check_columns(
    columns: Collection[str], video_column: str, caption_column: str, *others: str | None, name: str = "the dataset"
) -> None:
    """Raise ValueError where a column is missing; None asks for nothing."""
    remedies = {video_column: "video_column=", caption_column: "caption_column="}
    for column in (*remedies, *others):
        if column is not None and column not in columns:
            remedy = f"Name the right one with {remedies[column]}" if column in remedies else "Add it, or name another"
            raise ValueError(f"{name} has no column {column!r}; its columns are {', '.join(columns)}. {remedy}")


def readable(dataset: AnyDataset, name: str = "the dataset") -> AnyDataset:
    """One split whose rows are plain Python values and whose features are known.

    Raises:
        TypeError: several splits.
        ValueError: no rows.
    """
    from datasets import Dataset

    if isinstance(dataset, dict):
        raise TypeError(f"{name} has several splits: give one, dataset[{next(iter(dataset), 'train')!r}]")
    dataset = dataset.with_format(None)
    if isinstance(dataset, Dataset):
        if dataset.num_rows == 0:
            raise ValueError(f"{name} has no rows")
    elif dataset.features is None:
        try:
            dataset = dataset._resolve_features()  # looks at the first rows of the stream
        except StopIteration:
            raise ValueError(f"{name} has no rows") from None
    return dataset


def as_files(dataset: AnyDataset, video_column: str) -> AnyDataset:
    """The dataset with its videos as `{"path", "bytes"}`: `Video` undecoded, paths as such. Features must be known.

    Of a stream no column is decoded: one bad picture beside a clip would end it.
    """
    from datasets import Dataset, Value, Video

    feature = dataset.features[video_column]
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return dataset.cast_column(video_column, Video(decode=False))
    if not isinstance(feature, Video):
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.cast_column(video_column, Video(decode=False))
    return dataset.decode(False)  # takes away the step that decodes, which a cast does not; of all columns


def _stream(builder: str, **options: Any) -> IterableDataset:
    from datasets import load_dataset

    return _in_row_groups(load_dataset(builder, split="train", streaming=True, **options))


def _in_row_groups(stream: IterableDataset) -> IterableDataset:
    """The stream with a row group of parquet as its unit: of a larger one, a file, pyarrow keeps all that it has read
    until the file ends. Other kinds of streams are what they were."""
    return stream.reshard()


def _from_shards(shards: list[str], video_column: str, caption_column: str) -> IterableDataset:
    """WebDataset shards, their columns by the names that the caller uses: a column there is named by a suffix."""
    from datasets import Video

    try:
        stream = _stream("webdataset", data_files=shards)
    except ValueError as error:
        raise ValueError(
            f"{shards[0]} cannot be read as a WebDataset shard: {error} Each of its first five clips needs the same "
            "files beside it, such as a .txt with the caption (which may be empty)"
        ) from error
    if stream.features is None:
        stream = stream._resolve_features()
    names = list(stream.features)
    for name in names:  # renaming reads rows, and would decode them
        stream = as_files(stream, name) if isinstance(stream.features[name], Video) else stream
    if video_column not in names:
        found = next((name for name in names if f".{name.rsplit('.', 1)[-1].lower()}" in VIDEO_SUFFIXES), None)
        if found is not None:
            stream = stream.rename_column(found, video_column)
    if caption_column not in names:
        if "txt" in names:
            stream = stream.rename_column("txt", caption_column)
        elif "json" in names and caption_column in stream.features["json"]:
            features = stream.features.copy()
            features[caption_column] = features["json"][caption_column]
            stream = stream.map(_from_json, fn_kwargs={"column": caption_column}, features=features)
    return stream


def _from_json(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    return {column: (row["json"] or {}).get(column)}


def _from_folder(folder: Path, split: str, caption_column: str) -> Dataset:
    from datasets import Dataset, DatasetDict, load_from_disk

    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        loaded = load_from_disk(str(folder))
        if isinstance(loaded, DatasetDict):
            if split not in loaded:
                raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(loaded)}")
            return loaded[split]
        return loaded
    for name in _METADATA_NAMES:
        if (folder / name).exists():
            return _from_table(folder / name)
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no video ({', '.join(VIDEO_SUFFIXES)}) and none of {', '.join(_METADATA_NAMES)}"
        )
    captions = [_sidecar(file) for file in files]
    return Dataset.from_dict({"video": [str(f) for f in files], caption_column: captions})


def _sidecar(video: Path) -> str | None:
    """The caption in the text file beside a clip, or None: the row then gets the status `no_caption`."""
    text = video.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.exists() else None


def _from_table(path: Path) -> Dataset:
    """A table of clips; relative paths in `file_name`, `file_path`, `path` or `video` start at the table's folder."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet
    from datasets import Dataset

    if path.suffix == ".parquet":
        dataset = Dataset.from_parquet(str(path))
    elif path.suffix == ".csv":
        dataset = Dataset(pa.csv.read_csv(path))
    elif path.suffix in (".jsonl", ".json"):
        rows = json_lines(path)
        names = dict.fromkeys(name for row in rows for name in row)  # the first row may lack some
        dataset = Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    else:
        raise ValueError(f"{path} is neither a folder nor a .jsonl, .csv or .parquet table of clips")
    if dataset.num_rows and "video" not in dataset.column_names:
        file_column = next((c for c in FILE_COLUMNS if c in dataset.column_names), None)
        if file_column is None:
            raise ValueError(
                f"{path} has neither a column 'video' nor one of {', '.join(FILE_COLUMNS)}; "
                f"its columns are {', '.join(dataset.column_names)}"
            )
        dataset = dataset.add_column("video", [_beside(path, name) for name in dataset[file_column]])
    elif dataset.num_rows and getattr(dataset.features["video"], "dtype", None) in ("string", "large_string"):
        videos = [_beside(path, name) for name in dataset["video"]]
        dataset = dataset.remove_columns("video").add_column("video", videos)
    return dataset


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl. Raises ValueError that names the line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} is no object of columns")
            rows.append(row)
    return rows


def _beside(table: Path, name: str | None) -> str | None:
    """A path of a table, which starts at the table's folder; a URL is what it is."""
    return name if name is None or "://" in name else str(table.parent / name)
