"""Where encodings are kept: pieces of a dataset, each a file that is called by what its rows are."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import ClipError
from .pipelines import digest
from .video import load_clip

if TYPE_CHECKING:
    from datasets import Dataset

    from .encodings import ClipEncoder

#: Into at least so many files an encoded dataset goes, where it has as many rows.
PIECES = 128
#: A killed run loses less than so many rows, and many processes have an equal share.
LONGEST = 32


class Piece(NamedTuple):
    """Some rows of a dataset, one after the other.

    Attributes:
        rows: Which.
        file: Of their encodings.
        known: Whether it is there.
    """

    rows: range
    file: str
    known: bool


def plan(folder: Path, contents: Sequence[str], encoder: ClipEncoder) -> list[Piece]:
    """The rows in pieces, in order: those of earlier runs, and others.

    A piece has a power of two of rows and starts at a multiple of it, so that rows that are added to a dataset leave
    its pieces what they are; longer pieces are made of shorter ones that are there. An encoding with a mask serves
    without, too.
    """
    from datasets import is_caching_enabled

    there: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if is_caching_enabled() else ():
        there.setdefault(name.rpartition("-")[0], []).append(name)

    def piece_of(rows: range) -> Piece:
        stem = f"encoded-{_hash([*contents[rows.start : rows.stop]])}"
        own, known = f"{stem}-{_masks(encoder)}.arrow", there.get(stem, [])
        if encoder.weigh is None and known and own not in known:
            own = known[0]
        return Piece(rows, str(folder / own), own in known)

    def pieces_of(rows: range, size: int) -> list[Piece]:
        whole = piece_of(rows)
        if whole.known or not there or len(rows) == 1:
            return [whole]
        size //= 2
        middle = min(rows.start + size, rows.stop)
        halves = pieces_of(range(rows.start, middle), size)
        halves += pieces_of(range(middle, rows.stop), size) if middle < rows.stop else []
        return halves if any(half.known for half in halves) else [whole]

    size = 1
    while size < LONGEST and size * PIECES < len(contents):
        size *= 2
    starts = range(0, len(contents), size)
    return [piece for start in starts for piece in pieces_of(range(start, min(start + size, len(contents))), size)]


def readable_now(piece: Piece, read: Dataset, encoder: ClipEncoder) -> Piece:
    """The piece, not known where one of its clips could not be read then and can be now: a disk may have been away."""
    from datasets import Dataset

    if not piece.known:
        return piece
    statuses = Dataset.from_file(piece.file)["encoded_status"][:]
    for row in (row for row, status in zip(piece.rows, statuses, strict=True) if status == "unreadable"):
        try:
            load_clip(read[row][encoder.video_column], encoder.standard)
        except ClipError:
            continue
        stem = piece.file.rpartition("-")[0]  # of masks that are not asked for, too
        return Piece(piece.rows, f"{stem}-{_masks(encoder)}.arrow", False)
    return piece


def _masks(encoder: ClipEncoder) -> str:
    return encoder.mask_digest or "plain"


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """A folder that is taken away with what is in it, now or, if this process is killed, by `sweep`."""
    name = folder / f".unfinished-{uuid.uuid4().hex[:16]}"
    lock = name.with_suffix(".lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        name.mkdir()
        try:
            yield name
        finally:
            shutil.rmtree(name, ignore_errors=True)
            lock.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Take away what killed processes left half-written; others hold their lock."""
    for lock in folder.glob(".unfinished-*.lock"):
        with suppress(OSError), lock.open("r+") as found:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def clip_of(video: Any) -> str | None:
    """Name and bytes of a clip, wherever it lies; None where there is none, or it cannot be told."""
    path, held = (video.get("path"), video.get("bytes")) if isinstance(video, Mapping) else (video, None)
    return _clip(path, None if held is None else len(held))


def clips_of(dataset: Dataset, column: str) -> list[str | None]:
    """`clip_of` of every row, without reading any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = dataset.data.column(column)
    paths: list[Any] = [None] * len(values)
    sizes: list[Any] = [None] * len(values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        paths = values.to_pylist()
    elif pa.types.is_struct(values.type) and {"path", "bytes"} <= {field.name for field in values.type}:
        paths = [path for chunk in values.chunks for path in pc.struct_field(chunk, "path").to_pylist()]
        held = [pc.struct_field(chunk, "bytes") for chunk in values.chunks]
        sizes = [size for chunk in held for size in pc.binary_length(chunk).to_pylist()]
    rows = range(len(values)) if dataset._indices is None else dataset._indices.column(0).to_pylist()
    return [_clip(paths[row], sizes[row]) for row in rows]


def _clip(path: Any, size: int | None) -> str | None:
    if size is None:
        try:
            size = os.stat(os.path.expanduser(path)).st_size
        except (OSError, ValueError, TypeError):
            return None
    return f"{os.path.basename(path or '')} {size}"


def contents(read: Dataset, given: Dataset, encoder: ClipEncoder) -> Iterator[str]:
    """Of each row 32 hexadecimal digits of what its encoding depends on, the mask's settings aside."""
    common = [encoder.digest, encoder.video_column, encoder.caption_column]
    if not _are_files(read, encoder.video_column):
        for row in range(len(read)):
            yield _hash([*common, given._fingerprint, read.column_names, row])
        return
    for name, feature in read.features.items():  # pictures beside the clip as they are kept, too
        if is_dataclass(feature) and getattr(feature, "decode", False):
            read = read.cast_column(name, replace(feature, decode=False))  # type: ignore[type-var]
    for values in read:
        yield _hash([*common, _content(values)])


def _are_files(dataset: Dataset, column: str) -> bool:
    """Whether a column names files, and holds none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = dataset.data.column(column)
    if not (pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0):
        return False
    return all(pc.all(pc.is_null(pc.struct_field(chunk, "bytes"))).as_py() in (True, None) for chunk in values.chunks)


def _content(value: Any) -> Any:
    """A value of a row as JSON: of a file its name, size and time of change; of bytes and long lists a digest."""
    if isinstance(value, Mapping):
        if value.get("bytes") is None and isinstance(value.get("path"), str):
            return _file(value["path"])
        return {name: _content(part) for name, part in value.items()}
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, str):
        return _file(value) if os.path.isfile(value) else value
    if isinstance(value, list):
        try:
            array = np.asarray(value)
        except ValueError:  # ragged
            return [_content(part) for part in value]
        return array if array.dtype.kind in "biuf" else [_content(part) for part in value]
    return value if value is None or isinstance(value, (int, float)) else repr(value)


def _file(path: str) -> list[Any]:
    try:
        facts = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):
        return [path]  # not there, or not on this machine
    return [os.path.abspath(os.path.expanduser(path)), facts.st_size, facts.st_mtime_ns]


def _hash(value: Any) -> str:
    return hashlib.sha256(digest.text(value).encode()).hexdigest()[:32]
