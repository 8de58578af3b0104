"""What leaves this machine: rows with their clips and an index, without the names of this machine's folders."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..corpus import FILE_COLUMNS
from ..index import GradientIndex
from ..storage import IndexCorruptError, canonical_json
from ..video import file_name

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

#: Bytes of a parquet file, about: what is in memory at a time, and sent again at most when a connection is lost.
SHARD_BYTES = 256 * 2**20
# A path from the root or from above, on either kind of system, at the start or after a space, quote or bracket.
_ABSOLUTE = re.compile(
    r"(?<![^\s'\"(\[=:,])(?:file://)?(?:[A-Za-z]:[\\/]|(?:\.\.)?/|~/)(?:[^\s'\"/\\]+[\\/])*([^\s'\"/\\]*)"
)

# Where people's files lie; those of this machine are looked up.
_ROOTS = {"home", "Users", "root", "mnt", "media", "data", "tmp", "scratch", "workspace"}


def without_folders(text: str, folder: str = "") -> str:
    """A text for people in which each absolute path, and each below `folder`, is its last name."""
    if folder not in ("", "/", "."):
        text = text.replace(folder.rstrip("/") + "/", "")
    return _ABSOLUTE.sub(lambda found: found[1] or found[0], text)


# Rows -----------------------------------------------------------------------------------------------------------


def embedded(dataset: Dataset | IterableDataset, video_column: str, shard_bytes: int = SHARD_BYTES) -> IterableDataset:
    """The rows as they are published: the clip as bytes with its file's name. Nothing is written to the disk.

    A clip that is not there becomes null, so that its row keeps its status and its reason. A dataset is cut into files
    of about `shard_bytes`; a stream keeps its shards, of which one at a time is in memory when it is pushed.
    """
    from datasets import Dataset, Value, Video

    if isinstance(dataset, Dataset):
        dataset = dataset.with_format(None)
    elif dataset.features is None:
        dataset = dataset._resolve_features()
    features = dataset.features
    feature = features[video_column]
    dataset = without_decoding(dataset)
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        dataset = dataset.cast_column(video_column, Video(decode=False))
        features = dataset.features
    if isinstance(dataset, Dataset):
        shards = min(len(dataset), 1 + int(_bytes(dataset, video_column) / shard_bytes))
        stream = dataset.to_iterable_dataset(num_shards=max(1, shards))
    else:
        stream = dataset
    tokens = getattr(dataset, "_token_per_repo_id", None)
    publish = _Publish(video_column if isinstance(features[video_column], Video) else None, tokens, features)
    # Rows of a stream one by one: where one has no number, its column has another type, and they make no table.
    size = 16 if isinstance(dataset, Dataset) else 1
    return stream.with_format("arrow").map(publish, batched=True, batch_size=size, features=features)


def without_decoding(dataset: Any) -> Any:
    """A stream that was loaded to be decoded without the step that does it, which no cast takes away."""
    from datasets import Dataset

    return dataset if isinstance(dataset, Dataset) or dataset.features is None else dataset.decode(False)


def _bytes(dataset: Dataset, video_column: str) -> float:
    """About how many bytes the rows have with their clips, from a few hundred of them."""
    from datasets import Video

    rows = range(0, len(dataset), max(1, len(dataset) // 256))
    sample = dataset.select(rows)
    files = 0
    if isinstance(dataset.features[video_column], Video):
        for cell in sample.cast_column(video_column, Video(decode=False))[video_column]:
            path = (cell or {}).get("path")
            if cell and cell.get("bytes") is None and path and os.path.isfile(path):
                files += os.path.getsize(path)
    held = sum(table.nbytes for table in sample.with_format("arrow").iter(batch_size=64))
    return (held + files) * len(dataset) / max(1, len(rows))


class _Publish:
    """An Arrow table of rows to one that may leave the machine."""

    def __init__(self, video_column: str | None, tokens: Mapping[str, Any] | None, features: Mapping[str, Any]):
        self.video_column, self.tokens, self.features = video_column, tokens, features

    def __call__(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa
        from datasets import Video
        from datasets.features.features import get_nested_type

        folders = [""] * len(table)
        if self.video_column is not None:
            place = table.column_names.index(self.video_column)
            cells = table.column(place).to_pylist()
            folders = [os.path.dirname(str((cell or {}).get("path") or "")) for cell in cells]
            # The type is not the table's: a stream of files has "bytes" of type null.
            column = pa.array([self._cell(cell) for cell in cells], type=Video().pa_type)
            table = table.set_column(place, self.video_column, column)
        for place, field in enumerate(table.schema):
            if field.name != self.video_column and _holds_text(field.type):
                texts = table.column(place).to_pylist()
                cleaned = [clean(text, folder, field.name) for text, folder in zip(texts, folders, strict=True)]
                if cleaned != texts:
                    table = table.set_column(place, field, pa.array(cleaned, type=field.type))
            elif pa.types.is_null(field.type) and field.name in self.features:
                nulls = pa.nulls(len(table), get_nested_type(self.features[field.name]))
                table = table.set_column(place, field.name, nulls)
        return table

    def _cell(self, cell: dict[str, Any] | None) -> dict[str, Any] | None:
        if cell is None or (cell.get("bytes") is None and not cell.get("path")):
            return None
        path = cell.get("path")
        data = cell.get("bytes")
        if data is None:
            try:
                data = self._read(str(path))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
                logger.warning("%s is published without its clip: %s", file_name(str(path)), error.strerror or error)
                return None
        return {"bytes": data, "path": file_name(str(path)) if path else None}

    def _read(self, path: str) -> bytes:
        if "://" not in path:
            return Path(path).read_bytes()
        import pyarrow as pa
        from datasets import Video

        cell = pa.array([{"bytes": None, "path": path}], type=Video().pa_type)
        return Video().embed_storage(cell, token_per_repo_id=self.tokens)[0].as_py()["bytes"]


def publishable(columns: Mapping[str, Any], video: Any) -> dict[str, Any]:
    """Columns of a row without this machine's folders, given its video."""
    video = getattr(video, "_hf_encoded", None) or video
    path = video.get("path") if isinstance(video, Mapping) else video
    folder = os.path.dirname(str(path)) if isinstance(path, (str, os.PathLike)) else ""
    return {name: clean(value, folder, name) for name, value in columns.items()}


def clean(value: Any, folder: str, column: str) -> Any:
    """A reason without any folder. Of another text that is a path as a whole, below the folder of its row's clip or
    on a machine like this one, the last name; so inside of lists and structs, too."""
    if isinstance(value, Mapping):
        return {name: clean(inner, folder, name) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(clean(inner, folder, column) for inner in value)
    if not isinstance(value, str) or ("/" not in value and "\\" not in value):
        return value
    if column in ("influence_reason", "motion_reason"):
        return without_folders(value, folder)
    below = folder not in ("", "/") and value.startswith(folder.rstrip("/") + "/")
    return file_name(value) if below or _is_local(value, column in FILE_COLUMNS) else value


def _is_local(text: str, of_a_file: bool) -> bool:
    """Whether a text is a path of a machine: `/m/0dgw9r` is none, unless its column is one of files."""
    found = re.fullmatch(r"(?:file://)?(?:([A-Za-z]:[\\/]|~[\\/])|/([^/\s]+)/)[^\n]*", text)
    if found is None:
        return False
    return bool(found[1]) or of_a_file or found[2] in _ROOTS or os.path.isdir(f"/{found[2]}")


def _holds_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):  # arrays of numbers
        return False
    return any(_holds_text(kind.field(place).type) for place in range(kind.num_fields))


# An index -------------------------------------------------------------------------------------------------------


def snapshot(index: GradientIndex, folder: str | Path) -> GradientIndex:
    """Copy what `index` has read into a folder, though writers append meanwhile, and open it there.

    Each shard is copied as far as it is trusted, so no torn row comes along: what lies before is never changed. The
    copy has the digest of `index` as it is now, unless a reason names a folder of this machine, which is left out.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = json.loads((index.path / "index.json").read_text(encoding="utf-8"))
    header["settings"]["provenance"] = provenance(header["settings"]["provenance"])
    (folder / "index.json").write_text(json.dumps(header, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for shard in index._shards:
        if not shard.end:
            continue
        with open(shard.rows_path, "rb") as source, open(folder / shard.rows_path.name, "wb") as target:
            left = shard.end
            while left > 0:
                line = _some(source.readline(), shard.rows_path)
                left -= len(line)
                target.write(_published(line))
        with open(shard.features_path, "rb") as source, open(folder / shard.features_path.name, "wb") as target:
            left = shard.count * shard.record_bytes
            while left > 0:
                block = _some(source.read(min(left, 1 << 24)), shard.features_path)
                left -= len(block)
                target.write(block)
    return GradientIndex.open(folder)


def _some(data: bytes, path: Path) -> bytes:
    if not data:
        raise IndexCorruptError(f"{path} is shorter than when it was opened: open the index again")
    return data


def provenance(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance in which a pipeline that came from a folder of this machine is its last name."""
    recorded = dict(recorded)
    source = recorded.get("pipeline")
    if isinstance(source, str):
        recorded["pipeline"] = _pipeline_name(source)
    return recorded


def _pipeline_name(source: str) -> str:
    cached = re.search(r"models--([^/\\]+?)--([^/\\]+)", source)
    if cached:  # the Hub's cache: its folder says the id
        return f"{cached[1]}/{cached[2]}"
    parts = source.replace("\\", "/").split("/")
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and parts[0] not in (".", "..") and not os.path.exists(source)
    return source if is_id else file_name(source)


def _published(line: bytes) -> bytes:
    if b'"provenance":' not in line and b"/" not in line and b"\\" not in line:
        return line
    record = json.loads(line)
    before = canonical_json(record)
    if "provenance" in record and "id" not in record:
        record["provenance"] = provenance(record["provenance"])
    elif record.get("reason"):
        record["reason"] = without_folders(record["reason"])
    after = canonical_json(record)
    return line if after == before else after + b"\n"
