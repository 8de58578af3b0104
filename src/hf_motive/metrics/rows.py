"""What a metric is given, as rows of a column {"path", "bytes"}; and such a row, as a clip.

A row holds a path, the bytes of a file, or frames that came as an array: a mark and two npy blocks, the frames and
their rate.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ClipError
from ..video import read_clip

if TYPE_CHECKING:
    from datasets import Dataset

_FRAMES = b"\x93FRAMES"  # a mark of its own: the bytes of a file of numpy's may be among the videos
_REFUSED = b"\x93REFUSED"  # what could not be packed keeps its place, and its reason
_PADDING = b"\x93PADDING"


def rows_of(videos: Any, name: str = "predictions") -> Iterable[Any]:
    """The videos of a column, a list or a stacked array, one after another, files undecoded.

    Args:
        videos: A list, or any iterable, of what `pack` takes; an array or tensor (N, F, 3, H, W) or (N, F, H, W, 3);
            a column of a dataset (`dataset["video"]`), decoded or not.
        name: How messages call it.

    Raises:
        TypeError: It is a whole dataset, or nothing that holds videos.
        ValueError: It is one video, and not several of them.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(videos, (Dataset, IterableDataset, DatasetDict, IterableDatasetDict)):
        raise TypeError(f'{name} is a whole {type(videos).__name__}: pass its column of videos, dataset["video"]')
    if isinstance(videos, (str, bytes, os.PathLike, Mapping)):
        raise ValueError(f"{name} is one video ({type(videos).__name__}): pass a list of videos, [video]")
    if isinstance(videos, (np.ndarray, Tensor)):
        if videos.ndim not in (1, 5):
            raise ValueError(
                f"{name} has the shape {tuple(videos.shape)}; expected videos (N, F, 3, H, W): "
                "pass a list of videos, [video], where they differ in size or where there is one"
            )
        return videos
    if not isinstance(videos, Iterable):
        raise TypeError(f"{name} is a {type(videos).__name__}: pass a list of videos")
    return _undecoded(videos)


def _undecoded(videos: Any) -> Any:
    """A column of a dataset as it lies on the disk: nothing is decoded twice, and torchcodec is not needed."""
    from datasets import Dataset, IterableDataset, Video

    source, column = getattr(videos, "source", None), getattr(videos, "column_name", None)
    if hasattr(videos, "to_pylist"):  # a column in Arrow's format
        return videos.to_pylist()
    if isinstance(source, (Dataset, IterableDataset)) and isinstance((source.features or {}).get(column), Video):
        return source.cast_column(column, Video(decode=False))[column]
    return videos


def pack(video: Any) -> dict[str, Any]:
    """One video as a row.

    Args:
        video: What `hf_motive.video.load_clip` takes. A path or the bytes of a file stay what they are; frames are
            kept as uint8: floats in [-1, 1] are rounded to 8 bits, as a file would.

    Raises:
        TypeError: It is no kind of video.
    """
    encoded = getattr(video, "_hf_encoded", None)  # a decoder that datasets made knows its file
    if isinstance(encoded, Mapping):
        video = encoded
    if video is None:
        return {"path": "", "bytes": None}
    if isinstance(video, Mapping) and ("bytes" in video or "path" in video):
        return _row(video.get("path") or "", video.get("bytes"))
    if isinstance(video, (str, os.PathLike)):
        return _row(video, None)
    if isinstance(video, (bytes, bytearray, memoryview)):
        return {"path": "", "bytes": bytes(video)}
    try:
        frames, rate = read_clip(video)
    except ClipError as error:
        return _refused(error.status, error.reason)
    block = io.BytesIO()
    block.write(_FRAMES)
    np.save(block, frames.numpy())
    np.save(block, np.float64(rate or 0.0))
    return {"path": "", "bytes": block.getvalue()}


def _row(path: str | os.PathLike[str], data: bytes | None) -> dict[str, Any]:
    text = os.fsdecode(path)
    try:
        text.encode()
    except UnicodeEncodeError:  # a table holds text, and this name is none
        name = text.encode(errors="backslashreplace").decode()
        return _refused("unreadable", f"the name {os.path.basename(name)} is not UTF-8: rename the file")
    return {"path": text, "bytes": data}


def _refused(status: str, reason: str) -> dict[str, Any]:
    return {"path": "", "bytes": _REFUSED + f"{status}\n{reason}".encode()}


def unpack(row: Mapping[str, Any]) -> tuple[Tensor, float | None]:
    """A row as a clip.

    Returns:
        The frames, (F, 3, H, W) uint8 at their own size, all of them; and their rate in frames per second, None where
        the video has none.

    Raises:
        ClipError: It cannot be read.
    """
    path, data = row.get("path") or None, row.get("bytes")
    if data is not None and data.startswith(_REFUSED):
        status, reason = data[len(_REFUSED) :].decode().split("\n", 1)
        raise ClipError(status, reason)
    if data is not None and data.startswith(_FRAMES):
        block = io.BytesIO(data)
        block.seek(len(_FRAMES))
        frames, rate = np.load(block), float(np.load(block))
        return torch.from_numpy(frames), rate or None
    return read_clip({"path": path, "bytes": data})


# Columns on the disk ------------------------------------------------------------------------------------------------


def tables(columns: Mapping[str, Any], size: int = 64 << 20, rows: int = 1000) -> Iterator[dict[str, list[Any]]]:
    """Columns of videos as packed tables of a size that fits into memory: one video at a time is held besides.

    Args:
        columns: Videos by the column's name, as for `rows_of`; None is an empty column. A column that is shorter than
            another is filled up with rows that `is_padding` knows.
        size: Bytes that end a table.
        rows: Rows that end a table.
    """
    empty: Sequence[Any] = ()
    packed = (map(pack, rows_of(empty if videos is None else videos, name)) for name, videos in columns.items())
    table: dict[str, list[Any]] = {name: [] for name in columns}
    held = count = 0
    for row in zip_longest(*packed, fillvalue={"path": "", "bytes": _PADDING}):
        for cells, cell in zip(table.values(), row, strict=True):
            cells.append(cell)
            held += len(cell["bytes"] or b"")
        count += 1
        if held >= size or count == rows:
            yield table
            table, held, count = {name: [] for name in columns}, 0, 0
    if count:
        yield table


def is_padding(row: Mapping[str, Any]) -> bool:
    """Does the row only fill a column up to the length of another?"""
    return row["bytes"] == _PADDING


class Stored:
    """A dataset whose columns are read a row at a time: `evaluate` asks for `data[name][:]`, all videos at once."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def set_format(self, type: str | None = None) -> None:
        self.dataset.set_format(type=type)

    def __getitem__(self, name: str) -> _Column:
        return _Column(self.dataset.select_columns(name), name)


class _Column(Sequence):
    def __init__(self, dataset: Dataset, name: str):
        self.dataset = dataset
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self if index == slice(None) else self.dataset[index][self.name]
