"""A dataset to a folder of files: `metadata.jsonl` and clips, the shape that `videofolder` and trainers read."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .corpus import VIDEO_SUFFIXES, as_files, check_columns
from .errors import ClipError
from .video import _decode, _file, _name, _open, load_clip, save_clip

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

METADATA = "metadata.jsonl"
_SUFFIXES = (*VIDEO_SUFFIXES, ".mpeg", ".mpg", ".ts", ".wmv", ".flv")
# FFmpeg's names of containers; others are their own suffix.
_CONTAINERS = {"mov": ".mp4", "matroska": ".mkv", "mpegts": ".ts"}
# `load_dataset` would make a split of the files that have one of these words in their name, and of no others.
_SPLIT_WORDS = re.compile(
    r"(?<![a-z])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?![a-z])", re.IGNORECASE
)
# Characters that JSON may hold as they are, but that end a line for some readers of lines.
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


def write_videofolder(
    dataset: Dataset | IterableDataset,
    folder: str | os.PathLike[str],
    *,
    video_column: str = "video",
    caption_column: str = "caption",
    caption_files: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write clips and their columns as a folder: `load_dataset("videofolder", data_dir=folder)` reads it back.

    That is also what finetrainers reads; diffusion-pipe, musubi-tuner and ai-toolkit read its folder `clips`, where
    `caption_files` puts the captions.

    `clips/00000000-<name>.mp4` are the clips, numbered by their row, so that they sort as the dataset does: best
    first, if it is `selection.best` of a dataset on disk. `metadata.jsonl` has an object a line: `file_name`, the
    caption, and the other columns.

    A clip that is a file, at a path, at a URL or as bytes, is copied byte for byte, so that `content_id` stays what it
    was; frames, arrays and decoders are encoded as mp4. A clip that cannot be read, or of which not even the first
    frame decodes, costs its row: the others are written, and what is missing is logged as a warning, with reasons.

    Left out of `metadata.jsonl` is what JSON cannot say, or `videofolder` would misread: arrays (`motion_mask`),
    bytes, images, and columns named like files (`file_name`, `*_file_name`) or like the clip (`video`). NaN and
    infinity become null, times and dates ISO 8601.

    The folder appears when it is whole: until then it is `.<name>.part` beside it, which a next run begins anew.

    Args:
        dataset: One split, map-style or streaming; of a stream one row at a time is in memory.
        folder: Where to; folders above it are made.
        video_column: Column of the clip, as `load_clip` reads it. `videofolder` will call it `video`.
        caption_column: Column of the caption.
        caption_files: Also write each caption as a text file beside its clip, for trainers that look for captions in
            `clips`. A caption that is None gets none. `load_dataset` must then be told `videofolder`: by itself it
            takes a folder with as many texts as videos for one of texts.
        overwrite: Replace a folder that has a `metadata.jsonl`. Any other is never replaced.
        progress: Show a bar.

    Returns:
        The folder.

    Raises:
        FileExistsError: There is something at `folder`, and `overwrite` is False or it is no such folder.
        TypeError: `dataset` is several splits.
        ValueError: A column is missing, there are no rows, or no clip could be read.
    """
    if isinstance(dataset, dict):
        raise TypeError(f"write one split, write_videofolder(dataset[{next(iter(dataset), 'train')!r}], ...), or each")
    folder = Path(folder).expanduser().resolve()
    _check_target(folder, overwrite)
    part = folder.with_name(f".{folder.name}.part")
    if part.exists():
        shutil.rmtree(part)
    count, left_out = write_rows(
        dataset,
        part,
        video_column=video_column,
        caption_column=caption_column,
        caption_files=caption_files,
        progress=f"writing {folder.name}" if progress else "",
    )
    if count == len(left_out):
        shutil.rmtree(part)
        raise ValueError(f"nothing to write to {folder}: {nothing_read(left_out)}")
    _replace(part, folder)
    if left_out:
        logger.warning("%s: %s", folder, not_read(left_out, count))
    return folder


def write_rows(
    dataset: Dataset | IterableDataset,
    folder: Path,
    *,
    video_column: str,
    caption_column: str,
    caption_files: bool = False,
    progress: str = "",
    publish: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None,
) -> tuple[int, dict[int, str]]:
    """What `write_videofolder` writes, into a folder that is not there yet, whatever can be read.

    Args:
        dataset, folder, video_column, caption_column, caption_files: As there.
        progress: What the bar says; empty: none is shown.
        publish: From the columns of a row and its video to the columns that are written.

    Returns:
        How many rows there are, and of those whose clip cannot be read the number and the reason.
    """
    from tqdm.auto import tqdm

    dataset = _undecoded(dataset, video_column, caption_column)
    (folder / "clips").mkdir(parents=True)
    left_out: dict[int, str] = {}
    number = -1
    with (folder / METADATA).open("w", encoding="utf-8", newline="\n") as metadata:
        total = getattr(dataset, "num_rows", None)
        for number, row in enumerate(tqdm(dataset, desc=progress, total=total, disable=not progress)):
            check_columns(row, video_column, caption_column)
            try:
                clip = _write_clip(row[video_column], folder / "clips", number)
            except ClipError as error:
                left_out[number] = error.reason
                continue
            caption = row[caption_column]
            if caption_files and caption is not None:
                clip.with_suffix(".txt").write_text(caption, encoding="utf-8", newline="\n")
            columns = {k: v for k, v in row.items() if k not in (video_column, "video") and not _names_a_file(k)}
            if publish is not None:
                columns = publish(columns, row[video_column])
            metadata.write(_line({"file_name": f"clips/{clip.name}", **columns}))
    return number + 1, left_out


def nothing_read(left_out: Mapping[int, str]) -> str:
    """Why no row was written."""
    first = next(iter(left_out.items()), None)
    if first is None:
        return "the dataset has no rows"
    return f"none of {len(left_out):,} clips could be read: row {first[0]}: {first[1]}"


def not_read(left_out: Mapping[int, str], count: int) -> str:
    """Which rows of `count` were not written, and why."""
    lines = [f"row {number}: {reason}" for number, reason in list(left_out.items())[:10]]
    some = "\n  ".join(lines + [f"and {len(left_out) - 10:,} more"] * (len(left_out) > 10))
    return f"{len(left_out)} of {count} clips could not be read and are left out\n  {some}"


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / METADATA).is_file():
        raise FileExistsError(
            f"{folder} exists and has no {METADATA}, so it is no folder of clips and is never replaced: name another"
        )
    if not overwrite:
        raise FileExistsError(f"{folder} exists: name another, or replace it, write_videofolder(..., overwrite=True)")


def _replace(part: Path, folder: Path) -> None:
    """Put the new folder in the place of the old one, which is gone only when the new one is there."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if folder.exists():
        folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    if old.exists():
        shutil.rmtree(old)


def _undecoded(dataset: Any, video_column: str, caption_column: str) -> Any:
    """The rows as Python values, and a `Video` as the file that it is."""
    dataset = dataset.with_format(None)
    if dataset.features is None:
        return dataset
    check_columns(dataset.features, video_column, caption_column)
    dataset = as_files(dataset, video_column)
    unsaid = [
        column
        for column, feature in dataset.features.items()
        if column != video_column
        and (hasattr(feature, "decode_example") or type(feature).__name__.startswith("Array"))
    ]
    return dataset.remove_columns(unsaid) if unsaid else dataset


# Clips ----------------------------------------------------------------------------------------------------------


def _write_clip(video: Any, folder: Path, number: int) -> Path:
    """Write one clip; its file. Raises ClipError if it cannot be read, and leaves nothing then."""
    if video is None:
        raise ClipError("unreadable", "the row has no video")
    # A decoder of `datasets` remembers its file.
    video = getattr(video, "_hf_encoded", None) or video
    name = _name(video)
    file = _file(video)
    stem, suffix = _stem_and_suffix(name if _has_path(video) else "")
    stem = f"{number:08d}-{stem}" if stem else f"{number:08d}"
    if file is None:
        frames = load_clip(video)
        fps = getattr(getattr(video, "metadata", None), "average_fps", None)
        save_clip(folder / f"{stem}.mp4", frames, fps or 16.0)
        return folder / f"{stem}.mp4"
    copy = folder / stem
    try:
        _copy(file, name, copy)
        next(_decode(str(copy), name))
        return copy.rename(folder / (stem + (suffix or _container(copy))))
    except ClipError:
        copy.unlink(missing_ok=True)
        raise


def _copy(file: str | bytes, name: str, to: Path) -> None:
    with _open(file, name) as source, to.open("wb") as target:
        while True:
            try:
                block = source.read(1 << 20)
            except Exception as error:  # each remote file system has its own
                raise ClipError("unreadable", f"{name} cannot be read to its end: {error}") from error
            if not block:
                return
            target.write(block)  # what goes wrong here, such as a full disk, is not the clip's fault


def _container(file: Path) -> str:
    import av

    with av.open(str(file)) as container:
        first = container.format.name.split(",")[0]
    return _CONTAINERS.get(first, f".{first}")


def _has_path(video: Any) -> bool:
    return isinstance(video, (str, os.PathLike)) or (isinstance(video, Mapping) and bool(video.get("path")))


def _stem_and_suffix(path: str) -> tuple[str, str]:
    """What of a path or URL is safe in the name of a file anywhere, and the suffix if it is a video's."""
    path = path.split("::")[0].split("?")[0] if "://" in path else path
    stem, suffix = os.path.splitext(path.replace("\\", "/").rsplit("/", 1)[-1])
    stem = _SPLIT_WORDS.sub("", re.sub(r"[^A-Za-z0-9_]+", "-", stem))
    return re.sub(r"[-_]{2,}", "-", stem)[:48].strip("-_"), suffix.lower() if suffix.lower() in _SUFFIXES else ""


# Metadata -------------------------------------------------------------------------------------------------------


def _names_a_file(column: str) -> bool:
    return column in ("file_name", "file_names") or column.endswith(("_file_name", "_file_names"))


def _line(row: Mapping[str, Any]) -> str:
    import json

    said = {}
    for column, value in row.items():
        try:
            said[column] = _say(value)
        except TypeError:
            continue
    return json.dumps(said, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS) + "\n"


def _say(value: Any) -> Any:
    """A value as JSON can say it. Raises TypeError where it cannot."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _say(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_say(inner) for inner in value]
    raise TypeError(type(value).__name__)
