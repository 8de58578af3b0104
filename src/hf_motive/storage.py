"""The files of a gradient index, and what keeps them valid at every instant. `index.py` states the law they obey."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT = "hf_motive.gradient_index"
VERSION = 1


class IndexLockedError(RuntimeError):
    """Another process, or another object of this process, is writing the shard."""


class IndexCorruptError(ValueError):
    """The files break the law of the format in a way that no crash of a writer explains."""


class Shard:
    """The two files of one writer. `end` and `count`: bytes of rows and number of features that are trusted."""

    def __init__(self, folder: Path, name: str, dim: int):
        self.name, self.dim, self.record_bytes = name, dim, 4 * dim
        self.rows_path = folder / f"shard-{name}.rows.jsonl"
        self.features_path = folder / f"shard-{name}.features"
        self.end = self.count = 0
        self._map: Tensor | None = None
        self._fds: tuple[int, int] | None = None  # features, rows

    def scan(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(offset, record) of the complete lines since the last scan."""
        if not self.rows_path.exists():
            return
        available, torn = 0, ""
        with open(self.rows_path, "rb") as file:
            file.seek(self.end)
            for line in file:
                if torn:
                    raise IndexCorruptError(
                        f"{self.rows_path}, byte {self.end}: {torn}, and it is not the last line, which no crash "
                        "explains. Restore the shard's two files, or delete both: its clips are then computed again"
                    )
                if not line.endswith(b"\n"):
                    return  # torn, or being written at this moment
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict) or not ("id" in record or "provenance" in record):
                    torn = "this line is not a row"
                    continue
                position = record.get("position")
                if position is not None:
                    if position >= available and self.features_path.exists():
                        available = self.features_path.stat().st_size // self.record_bytes
                    if position != self.count or position >= available:
                        torn = f"the line names feature {position}; {self.count} come before it, {available} are there"
                        continue
                    self.count += 1
                offset, self.end = self.end, self.end + len(line)
                yield offset, record

    def features(self) -> Tensor:
        """All trusted features, (count, dim) float32: a private (copy-on-write) map of the file."""
        if self._map is None or len(self._map) < self.count:
            if self.count == 0:
                return torch.empty((0, self.dim), dtype=torch.float32)
            shape = (self.count, self.dim)
            self._map = torch.from_numpy(np.memmap(self.features_path, dtype="<f4", mode="c", shape=shape))
        return self._map

    def lock(self) -> None:
        """Open for writing as the only writer. The kernel drops the lock with the process, however it ends."""
        import fcntl

        flags = os.O_RDWR | os.O_CREAT
        self._fds = (os.open(self.features_path, flags, 0o644), os.open(self.rows_path, flags, 0o644))
        try:
            fcntl.flock(self._fds[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.unlock()
            raise IndexLockedError(
                f"shard {self.name!r} of {self.rows_path.parent} is being written by another process: give each "
                f"writer its own, e.g. shard='{self.name}-2', or wait until that one has ended"
            ) from error
        except BaseException:
            self.unlock()
            raise
        _sync_folder(self.rows_path.parent)

    def unlock(self) -> None:
        fds, self._fds = self._fds, None
        for fd in fds or ():
            os.close(fd)

    def cut(self) -> None:
        """Cut off what a crash left behind the last trusted row."""
        if self._fds is None:
            raise RuntimeError(f"shard {self.name!r} is not open for writing")
        for fd, size in zip(self._fds, (self.count * self.record_bytes, self.end), strict=True):
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
                os.fsync(fd)

    def write(self, line: bytes, feature: bytes | None) -> int:
        """Feature, sync, line, sync. Returns the line's offset; after any exception the files are as they were."""
        if self._fds is None:
            raise RuntimeError(f"shard {self.name!r} is not open for writing: open the index again")
        before = self.end, self.count
        try:
            if feature is not None:
                _write_synced(self._fds[0], feature, self.count * self.record_bytes)
                self.count += 1
            _write_synced(self._fds[1], line, self.end)
            self.end += len(line)
        except BaseException:
            self.end, self.count = before
            try:
                self.cut()
            except OSError:
                self.unlock()  # not even that works: write no more, the next writer will cut
            raise
        return before[0]


def _write_synced(fd: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):  # a nearly full disk takes a part, and refuses the next
        done += os.pwrite(fd, data[done:], offset + done)
    os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish_header(path: Path, header: Mapping[str, Any]) -> None:
    """Write index.json so that it appears whole or not at all; where several processes try, the first wins."""
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".index-{os.getpid()}.json"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(header, file, indent=2, sort_keys=True, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path / "index.json")
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(temporary, path / "index.json")
        _sync_folder(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    file = path / "index.json"
    if not file.exists():
        raise FileNotFoundError(f"{path} holds no index (no index.json): make one with MotiveAttributor.index")
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IndexCorruptError(f"{file} is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise IndexCorruptError(f"{file} is not the header of a gradient index: 'format' is not {FORMAT!r}")
    if header["version"] != VERSION:
        raise ValueError(
            f"{path} has format version {header['version']}; this hf_motive reads {VERSION}: use the one that wrote it"
        )
    return header


def canonical_json(value: Any) -> bytes:
    """The one JSON spelling of a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
