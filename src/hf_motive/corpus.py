"""A folder, a file or a Hub id to a `datasets.Dataset` with a `video` and a `caption` column.

Video is never decoded here: rows hold `{"path", "bytes"}`, and a file that cannot be read costs its row when its turn
comes, not the loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif", ".m4v")
_METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILE_COLUMNS = ("file_name", "file_path", "path")


def load_clips(
    source: str | Path, *, split: str = "train", video_column: str = "video", caption_column: str = "caption"
) -> Dataset:
    """Load clips and captions, undecoded.

    Args:
        source: One of
            a folder with `metadata.jsonl`, `.csv` or `.parquet` (columns `file_name` and the caption);
            a folder of video files, each with its caption in a `.txt` of the same name beside it;
            a folder written by `Dataset.save_to_disk`;
            a `.jsonl`, `.csv` or `.parquet` file, its paths relative to the file;
            the id of a dataset on the Hub.
        split: Which split to take where the source has several.
        video_column: Name of the column that holds the video.
        caption_column: Name of the column that holds the caption.

    Returns:
        A dataset whose `video_column` is `Video(decode=False)`; other columns are kept.

    Raises:
        FileNotFoundError: the path looks local and is not there, or a folder holds no video.
        ValueError: there are no rows, or a column is missing; the message names those there are.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        dataset = _from_folder(path, split, caption_column)
    elif path.is_file():
        dataset = _from_table(path)
    elif path.is_absolute() or str(source).startswith((".", "~")) or path.suffix in (".jsonl", ".csv", ".parquet"):
        raise FileNotFoundError(
            f"{source} does not exist: give a folder of clips, a table, or the id of a Hub dataset"
        )
    else:
        from datasets import load_dataset

        # Hub datasets may declare Video(decode=True); nothing is decoded before the cast below.
        dataset = load_dataset(str(source), split=split)
    return undecoded(dataset, video_column, caption_column, name=str(source))


def undecoded(dataset: Dataset, video_column: str, caption_column: str, *, name: str = "the dataset") -> Dataset:
    """Check the two columns and cast the video column to `Video(decode=False)`. Raises ValueError as `load_clips`."""
    from datasets import Value, Video

    if dataset.num_rows == 0:
        raise ValueError(f"{name} has no rows: nothing to score")
    for column, what in ((video_column, "video"), (caption_column, "caption")):
        if column not in dataset.column_names:
            raise ValueError(
                f"{name} has no column {column!r}; its columns are {', '.join(dataset.column_names)}. "
                f"Name the right one with {what}_column="
            )
    feature = dataset.features[video_column]
    if isinstance(feature, Video) or (isinstance(feature, Value) and feature.dtype in ("string", "large_string")):
        dataset = dataset.cast_column(video_column, Video(decode=False))
    return dataset


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
    """A table of clips; relative paths in `file_name`, `file_path` or `path` start at the table's folder."""
    import json

    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet
    from datasets import Dataset

    if path.suffix == ".parquet":
        dataset = Dataset.from_parquet(str(path))
    elif path.suffix == ".csv":
        dataset = Dataset(pa.csv.read_csv(path))
    elif path.suffix in (".jsonl", ".json"):
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        dataset = Dataset.from_list(rows)
    else:
        raise ValueError(f"{path} is neither a folder nor a .jsonl, .csv or .parquet table of clips")
    if dataset.num_rows and "video" not in dataset.column_names:
        file_column = next((c for c in _FILE_COLUMNS if c in dataset.column_names), None)
        if file_column is None:
            raise ValueError(
                f"{path} has neither a column 'video' nor one of {', '.join(_FILE_COLUMNS)}; "
                f"its columns are {', '.join(dataset.column_names)}"
            )
        videos = [str(path.parent / name) for name in dataset[file_column]]
        dataset = dataset.add_column("video", videos)
    return dataset
