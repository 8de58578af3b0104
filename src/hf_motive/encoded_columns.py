"""Encodings of all rows of a dataset: a `datasets` map in pieces, each kept on disk once it is done."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ahead import ahead, idle_threads
from .corpus import check_columns, undecoded
from .encoded_pieces import Piece, clips_of, contents, own_folder, plan, readable_now, sweep
from .processes import processes

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from .encodings import ClipEncoder

logger = logging.getLogger(__name__)

#: Of a row, in the order in which they are added.
COLUMNS = ("encoded", "encoded_status", "encoded_reason", "encoded_mask", "encoded_clip", "encoded_settings")
#: Bytes of encodings to hold before they are written.
BUFFER = 2**25


def features() -> Features:
    """Name -> `datasets` feature of the columns that are added."""
    from datasets import Features, Value

    # A blob has megabytes: offsets of 32 bits would end at a few hundred rows of one table.
    return Features(encoded=Value("large_binary"), **dict.fromkeys(COLUMNS[1:], Value("string")))


def add_encodings(
    dataset: Dataset,
    encoder: ClipEncoder,
    *,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Dataset:
    """Put beside each clip what the frozen parts of a pipeline say about it.

    Every clip is encoded once: the same call finds it on disk, in another process too, and a killed one goes on where
    it was. Under `accelerate launch` every process encodes its share, and all get all rows. A clip counts as changed
    when its file's name, size or time of change do, or its caption; of clips that are in the dataset itself, when the
    dataset's fingerprint does; one that could not be read is tried again. Without
    `datasets.enable_caching()` all are encoded anew.

    Args:
        dataset: Rows with a video and a caption, on disk or in memory.
        encoder: What encodes them.
        cache_dir: Where the encodings are kept; with several machines, on a file system that they share. None: in a
            folder of the cache of `datasets` (`HF_DATASETS_CACHE`).
        workers: Threads that read, decode and find the motion of the next clips; see `MotiveAttributor`.
        progress: Show a bar with clips per second and time left (main process only).

    Returns:
        `dataset` with these columns, in place of those of an earlier encoding; as it is, where its own will do:
        `encoded`: what `read_encoding` reads; null where the clip could not be encoded;
        `encoded_status`, `encoded_reason`: `ok`, or what is wrong with the clip;
        `encoded_mask`: `ok`, or why there is no motion mask (`static`); null where none was asked for;
        `encoded_clip`: name and bytes of the clip; where they are others, it is encoded anew;
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
    encoder.refresh()
    if is_encoded(dataset, encoder):
        return dataset

    state = processes()
    rest = dataset.remove_columns([name for name in COLUMNS if name in dataset.column_names])
    read = given.remove_columns([name for name in COLUMNS if name in given.column_names])
    if encoder.columns is not None:
        wanted = {encoder.video_column, encoder.caption_column, *encoder.columns}
        read = read.select_columns([name for name in read.column_names if name in wanted])
    folder = Path(cache_dir or Path(config.HF_DATASETS_CACHE) / "hf_motive_encodings").expanduser().absolute()
    planned: list[Any] = [None]
    if state.is_main_process:  # one process looks, for a dataset may have another fingerprint in each of them
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        found = plan(folder, [*contents(read, dataset, encoder)], encoder)
        planned = [[readable_now(piece, read, encoder) for piece in found]]
        for piece in planned[0]:
            if not piece.known:  # without caching, one that is there does not count
                Path(piece.file).unlink(missing_ok=True)
    pieces: list[Piece] = broadcast_object_list(planned)[0]
    missing = [*{piece.file: piece for piece in pieces if not piece.known}.values()]  # copies are encoded once
    bar = tqdm(
        total=len(read),
        initial=len(read) - sum(len(piece.rows) for piece in missing),
        desc="Encoding",
        unit="clip",
        smoothing=0.05,
        disable=not (progress and missing and state.is_main_process),
    )
    workers = idle_threads(encoder.step.device) if workers is None else workers
    mine = missing[state.process_index :: state.num_processes]
    others = [piece for piece in missing if piece not in mine]
    with bar:
        if mine:
            with own_folder(folder) as workshop:
                for piece in mine:
                    _encode(read.select(piece.rows), encoder, piece.file, workshop, bar, workers)
                    ready = [other for other in others if os.path.exists(other.file)]
                    bar.update(sum(len(other.rows) for other in ready))
                    others = [other for other in others if other not in ready]
        state.wait_for_everyone()
        bar.update(sum(len(other.rows) for other in others))
    lacking = [piece.file for piece in pieces if not os.path.exists(piece.file)]
    if lacking:
        raise FileNotFoundError(
            f"{lacking[0]} was encoded by another process and is not here: give a cache_dir on a file system that all "
            "processes share"
        )
    encoded = concatenate_datasets([Dataset.from_file(piece.file) for piece in pieces])
    if state.is_main_process:
        _report(encoded)
        if progress and missing:
            size = sum(os.path.getsize(file) for file in {piece.file for piece in pieces})
            tqdm.write(f"Encodings of {len(read)} clips: {size / 1e6:,.1f} MB in {folder}", file=sys.stderr)
    if rest._indices is not None:  # else the encodings, too, would be copied
        with _without_bars():
            rest = rest.map(batched=True, batch_size=64, writer_batch_size=64)
    return concatenate_datasets([rest, encoded], split=dataset.split, axis=1)


def is_encoded(dataset: Dataset, encoder: ClipEncoder) -> bool:
    """Whether every row has the columns of `add_encodings`, and they are what the encoder gives of its clip."""
    if not {*COLUMNS, encoder.video_column} <= set(dataset.column_names):
        return False
    found = dataset.select_columns(["encoded_settings"]).with_format(None)
    if not all(encoder.accepts(identity) for identity in set(found["encoded_settings"][:])):
        return False
    return not other_clips(dataset, encoder.video_column)


def other_clips(dataset: Dataset, video_column: str) -> list[int]:
    """The rows whose clip is not that which was encoded, by its name and size, or was not there then.

    Of a clip that is away it is not known, nor of one that was encoded from elsewhere.
    """
    columns = ["encoded_clip", "encoded_status"]
    if not {*columns, video_column} <= set(dataset.column_names):
        return []
    found = dataset.select_columns(columns).with_format(None)
    rows = zip(clips_of(dataset, video_column), found["encoded_clip"][:], found["encoded_status"][:], strict=True)
    return [
        row
        for row, (clip, before, status) in enumerate(rows)
        if clip is not None and clip != before and (before is not None or status != "ok")
    ]


def _encode(rows: Dataset, encoder: ClipEncoder, file: str, workshop: Path, bar: Any, workers: int) -> None:
    """Write the encodings of some rows to a file, which is there when it is complete."""
    unfinished = workshop / Path(file).name
    prepared = ahead(rows, encoder.prepare, workers)

    def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
        columns = encoder.finish(row, next(prepared))
        bar.update()
        return columns

    with _without_bars(), closing(prepared):
        try:
            rows.map(
                columns_of,
                remove_columns=rows.column_names,
                features=features(),
                cache_file_name=str(unfinished),
                load_from_cache_file=False,
                new_fingerprint=hashlib.sha256(Path(file).stem.encode()).hexdigest()[:32],
                writer_batch_size=max(1, BUFFER // (4 * math.prod(encoder.step.latent_shape))),
            )
            os.replace(unfinished, file)
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
