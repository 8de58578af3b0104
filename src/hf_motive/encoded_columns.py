"""Encodings of all rows of a dataset: a `datasets` map in pieces, each kept on disk once it is done."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .corpus import check_columns, undecoded
from .pipelines import digest
from .processes import processes

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from .encodings import ClipEncoder

logger = logging.getLogger(__name__)

#: Of a row, in the order in which they are added.
COLUMNS = ("encoded", "encoded_status", "encoded_reason", "encoded_mask", "encoded_settings")
#: Into so many files an encoded dataset goes, however long it is: what a killed run loses is less than one of them.
PIECES = 128
#: Bytes of encodings to hold before they are written.
BUFFER = 2**25


def features() -> Features:
    """Name -> `datasets` feature of the columns that are added."""
    from datasets import Features, Value

    # A blob has megabytes: offsets of 32 bits would end at a few hundred rows of one table.
    return Features(encoded=Value("large_binary"), **dict.fromkeys(COLUMNS[1:], Value("string")))


def add_encodings(
    dataset: Dataset, encoder: ClipEncoder, *, cache_dir: str | Path | None = None, progress: bool = True
) -> Dataset:
    """Put beside each clip what the frozen parts of a pipeline say about it.

    Every clip is encoded once: the same call finds it on disk, in another process too, and a killed one goes on where
    it was. Under `accelerate launch` every process encodes its share, and all get all rows. A clip counts as changed
    when its file's name, size or time of change do, or its caption; of clips that are in the dataset itself, when the
    dataset's fingerprint does. Without `datasets.enable_caching()` all are encoded anew.

    Args:
        dataset: Rows with a video and a caption, on disk or in memory.
        encoder: What encodes them.
        cache_dir: Where the encodings are kept; with several machines, on a file system that they share. None: in a
            folder of the cache of `datasets` (`HF_DATASETS_CACHE`).
        progress: Show a bar with clips per second and time left (main process only).

    Returns:
        `dataset` with these columns, in place of those of an earlier encoding; as it is, where its own will do:
        `encoded`: what `read_encoding` reads; null where the clip could not be encoded;
        `encoded_status`, `encoded_reason`: `ok`, or what is wrong with the clip;
        `encoded_mask`: `ok`, or why there is no motion mask (`static`); null where none was asked for;
        `encoded_settings`: digests of what it was encoded with.

    Raises:
        TypeError: Several splits, or a stream.
        ValueError: No rows, or a column is missing.
        OSError: The disk is full. What is encoded so far is kept.
    """
    from accelerate.utils import broadcast_object_list
    from datasets import Dataset, IterableDataset, concatenate_datasets, config
    from tqdm.auto import tqdm

    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "encodings are kept on disk, beside clips that are there: a stream has no place for them. Write the clips "
            "that you want first, with `hf-motive select` or write_videofolder, and load that folder"
        )
    given = undecoded(dataset, encoder.video_column, encoder.caption_column)
    if encoder.columns is not None:
        check_columns(given.features, encoder.video_column, encoder.caption_column, *encoder.columns)
    if is_encoded(dataset, encoder):
        return dataset

    state = processes()
    rest = dataset.remove_columns([name for name in COLUMNS if name in dataset.column_names])
    read = given.remove_columns([name for name in COLUMNS if name in given.column_names])
    if encoder.columns is not None:
        wanted = {encoder.video_column, encoder.caption_column, *encoder.columns}
        read = read.select_columns([name for name in read.column_names if name in wanted])
    folder = Path(cache_dir or Path(config.HF_DATASETS_CACHE) / "hf_motive_encodings").expanduser().absolute()
    size = -(-len(read) // PIECES)
    pieces = [range(start, min(start + size, len(read))) for start in range(0, len(read), size)]
    plan: list[Any] = [None, None]
    if state.is_main_process:  # one process looks, for a dataset may have another fingerprint in each of them
        plan = _plan(folder, [*_contents(read, dataset, encoder, pieces)], encoder)
    files, missing = broadcast_object_list(plan)
    bar = tqdm(
        total=len(read),
        initial=len(read) - sum(len(pieces[piece]) for piece in missing),
        desc="Encoding",
        unit="clip",
        smoothing=0.05,
        disable=not (progress and missing and state.is_main_process),
    )
    others = {piece for place, piece in enumerate(missing) if place % state.num_processes != state.process_index}
    with bar:
        for piece in missing[state.process_index :: state.num_processes]:
            _encode(read.select(pieces[piece]), encoder, files[piece], bar)
            ready = {other for other in others if os.path.exists(files[other])}
            bar.update(sum(len(pieces[other]) for other in ready))
            others -= ready
        state.wait_for_everyone()
        bar.update(sum(len(pieces[other]) for other in others))
    lacking = [file for file in files if not os.path.exists(file)]
    if lacking:
        raise FileNotFoundError(
            f"{lacking[0]} was encoded by another process and is not here: give a cache_dir on a file system that all "
            "processes share"
        )
    encoded = concatenate_datasets([Dataset.from_file(file) for file in files])
    if state.is_main_process:
        _report(encoded)
    return concatenate_datasets([rest, encoded], split=dataset.split, axis=1)


def is_encoded(dataset: Dataset, encoder: ClipEncoder) -> bool:
    """Whether every row has the columns of `add_encodings`, and they are what the encoder gives."""
    if not set(COLUMNS) <= set(dataset.column_names):
        return False
    found = dataset.select_columns(["encoded_settings"]).with_format(None)
    return all(encoder.accepts(identity) for identity in set(found["encoded_settings"][:]))


def _plan(folder: Path, contents: Sequence[str], encoder: ClipEncoder) -> list[Any]:
    """The file of each piece, and which pieces are to be encoded. An encoding with a mask serves without, too."""
    from datasets import is_caching_enabled

    folder.mkdir(parents=True, exist_ok=True)
    there: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        there.setdefault(name.rpartition("-")[0], []).append(name)
    files, missing = [], []
    for piece, content in enumerate(contents):
        stem = f"encoded-{content}"
        own = f"{stem}-{encoder.mask_digest or 'plain'}.arrow"
        known = there.get(stem, [])
        name = own if own in known or encoder.weigh is not None or not known else known[0]
        if not is_caching_enabled():
            name = own
            (folder / own).unlink(missing_ok=True)
        elif name in known:
            files.append(str(folder / name))
            continue
        files.append(str(folder / name))
        missing.append(piece)
    return [files, missing]


def _encode(piece: Dataset, encoder: ClipEncoder, file: str, bar: Any) -> None:
    """Write the encodings of some rows to a file, which is there when it is complete."""

    def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
        columns = encoder(row)
        bar.update()
        return columns

    with _without_bars():
        try:
            piece.map(
                columns_of,
                remove_columns=piece.column_names,
                features=features(),
                cache_file_name=file,
                load_from_cache_file=False,
                new_fingerprint=hashlib.sha256(Path(file).stem.encode()).hexdigest()[:32],
                writer_batch_size=max(1, BUFFER // (4 * math.prod(encoder.step.latent_shape))),
            )
        except OSError as error:
            error.add_note(
                f"while encodings were written to {Path(file).parent}; what is there is kept. If the disk is full, "
                "make room or name another place by cache_dir="
            )
            raise


@contextmanager
def _without_bars() -> Iterator[None]:
    """One bar over all pieces, in place of those that `datasets` shows for each."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    with warnings.catch_warnings():  # a variable of the environment may insist on them
        warnings.simplefilter("ignore")
        disable_progress_bars()
        try:
            yield
        finally:
            if not before:
                enable_progress_bars()


def _report(encoded: Dataset) -> None:
    statuses = encoded["encoded_status"][:]
    bad = Counter(status for status in statuses if status != "ok")
    if bad:
        first = next(row for row, status in enumerate(statuses) if status != "ok")
        counts = ", ".join(f"{count} {status}" for status, count in bad.most_common())
        logger.warning(
            "%d of %d clips could not be encoded (%s). They stay; encoded_reason says why, of the first: %s",
            bad.total(),
            len(statuses),
            counts,
            encoded["encoded_reason"][first],
        )


# -------------------------------------------------------------------------------------------- what a row depends on


def _contents(read: Dataset, given: Dataset, encoder: ClipEncoder, pieces: Sequence[range]) -> Iterator[str]:
    """Of each piece 32 hexadecimal digits of its rows and of what they are encoded with, the mask aside."""
    common = [encoder.digest, encoder.video_column, encoder.caption_column]
    if not _are_files(read, encoder.video_column):
        for piece in pieces:
            yield _hash([*common, given._fingerprint, read.column_names, piece.start, piece.stop])
        return
    for name, feature in read.features.items():  # pictures beside the clip as they are kept, too
        if is_dataclass(feature) and getattr(feature, "decode", False):
            read = read.cast_column(name, replace(feature, decode=False))  # type: ignore[type-var]
    for piece in pieces:
        yield _hash([*common, [_content(row) for row in read.select(piece)]])


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
    return value


def _file(path: str) -> list[Any]:
    try:
        facts = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):
        return [path]  # not there, or not on this machine
    return [os.path.abspath(os.path.expanduser(path)), facts.st_size, facts.st_mtime_ns]


def _hash(value: Any) -> str:
    return hashlib.sha256(digest.text(value).encode()).hexdigest()[:32]
