"""Gradient features on disk: what `MotiveAttributor.index` writes and everything that ranks or publishes clips reads.

An index is a folder of open formats, valid at every instant:

    index.json                    format, version, dim, draws, dtype, settings; written once, atomically
    shard-<name>.features         raw little-endian float32, `draws` unit vectors of `dim` numbers a record
    shard-<name>.rows.jsonl       one JSON object a line: id, status, reason, position, checksum, facts

Its law:

1. A row exists when its line is complete (it ends in a newline). The feature is written and synced to disk before the
   line, so a line never speaks of a feature that is not there. Only the last line and the last feature can be torn by
   a crash: readers ignore them, and the next writer of the shard cuts them off.
2. A shard has one writer at a time (`flock`); different shards are written by different processes at the same time.
   Readers see the union, so a restart with another number of processes knows every row.
3. An `ok` row is final. A row of any other status may be tried again: the later line, or an `ok` line in any shard,
   supersedes it. Should two shards hold an id with equal right, the one whose name sorts first counts.
4. Rows are read in the order of their ids, so that what is read does not depend on who wrote it, when, or how often
   the run was interrupted. `GradientIndex.digest` is the proof.

POSIX only: it stands on `flock`, `pwrite` and `link`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draws import side_by_side
from .errors import STATUSES
from .storage import (
    FORMAT,
    VERSION,
    IndexCorruptError,
    IndexLockedError,
    Shard,
    canonical_json,
    publish_header,
    read_header,
)

__all__ = [
    "GradientIndex",
    "IndexCorruptError",
    "IndexLockedError",
    "IndexMismatchError",
    "IndexWriteError",
    "Row",
]

_SECTIONS = ("features", "provenance")
_NO_FEATURE = -1


class IndexMismatchError(ValueError):
    """Features of different settings would be mixed or compared. `differences`: name -> (left value, right value)."""

    def __init__(self, message: str, differences: Mapping[str, tuple[Any, Any]]):
        super().__init__(message)
        self.differences = dict(differences)


class IndexWriteError(OSError):
    """A row could not be written (disk full, I/O error). The index was rolled back to the row before it."""


@dataclass(frozen=True)
class Row:
    """What is known of a clip besides its feature. `checksum` is None where there is no feature (status not `ok`)."""

    id: str
    status: str
    reason: str = ""
    checksum: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class GradientIndex:
    """Append-only features with the identity, status and facts of each clip. See the module's docstring for the law.

    Make one with `create_or_open` (to write, and to read what is there) or `open` (to read). An object sees the rows
    that were there when it was opened, those that it appended, and after `refresh` those of all other writers.

    Memory: about 200 bytes a row for ids and offsets. Features are memory-mapped; reasons and facts stay on disk.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], shard: str | None = None):
        self.path = Path(path)
        self.dim: int = header["dim"]
        self.draws: int = header.get("draws", 1)
        self.settings: dict[str, dict[str, Any]] = header["settings"]
        self._provenances: list[dict[str, Any]] = [self.settings["provenance"]]
        self._shards: list[Shard] = []
        # Row storage in columns: a dict of tuples would take three times the memory at a million rows.
        self._slots: dict[str, int] = {}
        self._shard_of, self._position = array("q"), array("q")
        self._offset, self._status = array("q"), array("b")
        self._sorted: list[str] | None = None
        self._writer: Shard | None = None
        if shard is not None:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", shard):
                raise ValueError(f"shard must be made of letters, digits, '-' and '_', e.g. '00000'; got {shard!r}")
            self._writer = Shard(self.path, shard, self.draws * self.dim)
            self._shards.append(self._writer)
            self._writer.lock()
        try:
            self.refresh()
            if self._writer is not None:
                self._writer.cut()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create_or_open(
        cls,
        path: str | Path,
        settings: Mapping[str, Mapping[str, Any]],
        dim: int,
        shard: str = "00000",
        draws: int = 1,
    ) -> GradientIndex:
        """Open one shard of an index for writing; make the index if there is none.

        Args:
            path: The folder.
            settings: `{"features": {...}, "provenance": {...}}`, JSON values. `features` is all that a feature depends
                on (pipeline, weights digest, timesteps, seed, projection, ...) and must equal that of the index.
                `provenance` (library versions, corpus name, ...) is recorded and may differ from writer to writer.
            dim: Numbers a feature, D'.
            shard: This writer's own name, e.g. `f"{process_index:05d}"`.
            draws: Features a clip, K: one for each (timestep, noise).

        Raises:
            IndexMismatchError: the index holds features of other settings; the message lists each.
            IndexLockedError: the shard has a writer already.
        """
        path = Path(path)
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "dim": int(dim),
            "dtype": "<f4",
            "settings": _checked_settings(settings),
        }
        for what, number in (("dim", dim), ("draws", draws)):
            if number < 1:
                raise ValueError(f"{what} must be at least 1, got {number}")
        if draws > 1:  # an index of one draw is what it was before there were several
            header["draws"] = int(draws)
        if not (path / "index.json").exists():
            if any(path.glob("shard-*")):
                raise IndexCorruptError(
                    f"{path} holds shards but no index.json: restore that file or empty the folder"
                )
            try:
                publish_header(path, header)
            except OSError as error:
                raise IndexWriteError(
                    error.errno, f"no index can be made in {path}: {error.strerror or error}. Give another folder"
                ) from error
        found = read_header(path)
        differences = _differences(found, header)
        if differences:
            raise IndexMismatchError(
                f"{path} holds features that were computed differently:\n"
                + _table(differences, "the index", "this run")
                + "\nGive another folder, or the settings of the index.",
                differences,
            )
        index = cls(path, found, shard)
        try:
            index._record_provenance(header["settings"]["provenance"])
        except BaseException:
            index.close()
            raise
        return index

    @classmethod
    def open(cls, path: str | Path) -> GradientIndex:
        """Open for reading; takes no lock, so a run may be writing. Raises FileNotFoundError if there is no index."""
        return cls(path, read_header(Path(path)))

    # Writing

    def append(
        self,
        id: str,
        feature: Tensor | np.ndarray | None,
        status: str = "ok",
        reason: str = "",
        **facts: str | int | float | bool | None,
    ) -> None:
        """Write one row; it is on disk when this returns.

        Args:
            id: The clip's stable name (`content_id`).
            feature: (dim,), or (draws, dim) where there are several; real and finite, kept as float32, for status
                `ok`; None for every other status.
            status: One of `hf_motive.errors.STATUSES`.
            reason: Why the row has no feature: for people.
            facts: JSON scalars (mean_motion, loss, ...); None where unknown. `digest` counts them: keep timings out.

        Raises:
            ValueError: the id has an `ok` row already, or an argument does not fit.
            IndexWriteError: the disk refused. The row is not there; all rows before it are.
        """
        if self._writer is None:
            raise RuntimeError(f"{self.path} is open for reading: open it with GradientIndex.create_or_open to append")
        record = self._checked_row(id, feature, status, reason, facts)
        if id in self._slots:
            known = self.row(id)
            if known.status == "ok":
                raise ValueError(f"id {id!r} has a feature in {self.path} already: skip ids that are `in` the index")
            if (known.status, known.reason, known.facts) == (status, reason, facts):
                return  # tried again, with the same outcome: nothing new to say
        data = None
        if feature is not None:
            data = _feature_bytes(id, feature, self.draws, self.dim)
            record |= {"position": self._writer.count, "checksum": _checksum(data)}
        self._add(self._shards.index(self._writer), self._write(record, data, f"row {id!r}"), record)

    def close(self) -> None:
        """Release the shard's lock. Reading goes on working."""
        if self._writer is not None:
            self._writer.unlock()
            self._writer = None

    def __enter__(self) -> GradientIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, id: object) -> bool:
        """Whether the index has a row of this id, of any status."""
        return id in self._slots

    def status(self, id: str) -> str | None:
        """The row's status, or None where there is no row."""
        slot = self._slots.get(id)
        return None if slot is None else STATUSES[self._status[slot]]

    def counts(self) -> dict[str, int]:
        """Rows by status, in the order of `STATUSES`, those that occur."""
        totals = np.bincount(np.asarray(self._status, dtype=np.int64), minlength=len(STATUSES))
        return {status: int(n) for status, n in zip(STATUSES, totals, strict=True) if n}

    @property
    def provenances(self) -> list[dict[str, Any]]:
        """Under what the rows were written: the creator's `provenance`, then each other one that a writer brought."""
        return list(self._provenances)

    def ids(self, status: str | None = None, stored_order: bool = False) -> list[str]:
        """Ids in canonical order (sorted), or in the order on disk, which reads a cold disk sequentially."""
        if self._sorted is None:
            self._sorted = sorted(self._slots)
        code = None if status is None else STATUSES.index(status)
        ids = [i for i in self._sorted if code is None or self._status[self._slots[i]] == code]
        if stored_order:
            slots = np.fromiter(map(self._slots.__getitem__, ids), np.int64, len(ids))
            order = np.lexsort((np.asarray(self._offset)[slots], np.asarray(self._shard_of)[slots]))
            ids = [ids[place] for place in order.tolist()]
        return ids

    def row(self, id: str) -> Row:
        """The row of one id. Raises KeyError."""
        if id not in self._slots:
            raise KeyError(f"{id!r} is not in {self.path}")
        return next(self.rows([id]))

    def rows(self, ids: Iterable[str] | None = None) -> Iterator[Row]:
        """The rows, in canonical order or in that of `ids`; read from disk as they are asked for."""
        files: dict[int, Any] = {}
        try:
            for id in self.ids() if ids is None else ids:
                slot = self._slots[id]
                shard = self._shard_of[slot]
                if shard not in files:
                    files[shard] = open(self._shards[shard].rows_path, "rb")  # noqa: SIM115  closed below
                files[shard].seek(self._offset[slot])
                record = json.loads(files[shard].readline())
                yield Row(record["id"], record["status"], record["reason"], record["checksum"], record["facts"])
        finally:
            for file in files.values():
                file.close()

    def features(self, ids: Iterable[str]) -> Tensor:
        """Features of `ids`, in their order: (n, draws·dim) float32; see `draws.side_by_side`.

        Neighbours on disk come as a view of the memory map (private to this process: writing to it changes no file),
        others as a copy. Raises KeyError for an id without a feature.
        """
        return side_by_side(self.features_by_draw(ids))

    def features_by_draw(self, ids: Iterable[str]) -> Tensor:
        """As `features`, each draw's own: (n, draws, dim) float32."""
        ids = list(ids)
        # In columns, not id by id: at a million rows this is what a new query waits for.
        slots = np.fromiter(map(self._slots.get, ids, repeat(-1)), np.int64, len(ids))
        missing = slots < 0
        if not missing.any():
            positions, shards = np.asarray(self._position)[slots], np.asarray(self._shard_of)[slots]
            missing = positions == _NO_FEATURE
        if missing.any():
            id = ids[int(missing.argmax())]
            raise KeyError(f"{id!r} has no feature in {self.path}; its status is {self.status(id)!r}")
        used = np.unique(shards)
        if len(used) == 1:
            stored = self._shards[used[0]].features()
            if (np.diff(positions) == 1).all():
                out = stored[positions[0] : positions[-1] + 1]
            else:
                out = stored.index_select(0, torch.from_numpy(positions))
        else:
            out = torch.empty((len(ids), self.draws * self.dim), dtype=torch.float32)
            for number in used:
                chosen = np.flatnonzero(shards == number)
                out[chosen] = self._shards[number].features()[positions[chosen]]
        return out.view(len(ids), self.draws, self.dim)

    def chunks(
        self, size: int = 4096, ids: Iterable[str] | None = None, by_draw: bool = False
    ) -> Iterator[tuple[list[str], Tensor]]:
        """(ids, features (n, draws·dim)), n <= size, over all `ok` rows in canonical order or over `ids` in theirs.

        Args:
            size: Rows at a time.
            ids: Which.
            by_draw: Features as `features_by_draw` gives them.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        wanted = self.ids("ok") if ids is None else list(ids)
        for start in range(0, len(wanted), size):
            part = wanted[start : start + size]
            yield part, self.features_by_draw(part) if by_draw else self.features(part)

    def refresh(self) -> GradientIndex:
        """Take in the rows that other writers have added since. Returns self."""
        for path in sorted(self.path.glob("shard-*.rows.jsonl")):
            name = path.name.removeprefix("shard-").removesuffix(".rows.jsonl")
            if all(shard.name != name for shard in self._shards):
                self._shards.append(Shard(self.path, name, self.draws * self.dim))
        for number, shard in enumerate(self._shards):
            for offset, record in shard.scan():
                self._add(number, offset, record)
        return self

    def digest(self) -> str:
        """sha256 over settings["features"], dim, and all rows and features in canonical order.

        Equal digests: the same index, whatever the number of writers, their order and their interruptions.
        """
        what = {"dim": self.dim, "features": self.settings["features"]}
        total = hashlib.sha256(canonical_json(what | ({"draws": self.draws} if self.draws > 1 else {})))
        for row in self.rows():
            total.update(canonical_json([row.id, row.status, row.reason, row.facts]))
            if row.status == "ok":
                total.update(self._bytes(row.id))
        return total.hexdigest()

    def verify(self) -> None:
        """Compare every feature with its checksum. Raises IndexCorruptError that names the rows that differ."""
        bad = [
            row.id
            for row in self.rows(self.ids("ok", stored_order=True))
            if _checksum(self._bytes(row.id)) != row.checksum
        ]
        if bad:
            raise IndexCorruptError(
                f"{len(bad)} of {len(self)} features in {self.path} are not what was written, e.g. {bad[:5]}: "
                "restore the .features files, or delete the shards that hold them and run again"
            )

    def check_comparable(self, other: GradientIndex) -> None:
        """Raise IndexMismatchError, listing every difference, unless both hold features of the same settings."""
        ours, theirs = (
            {"dim": index.dim, "draws": index.draws, "settings": index.settings} for index in (self, other)
        )
        differences = _differences(ours, theirs)
        if differences:
            raise IndexMismatchError(
                f"the features of {self.path} and {other.path} cannot be compared:\n"
                + _table(differences, str(self.path), str(other.path))
                + "\nCompute one of them again with the settings of the other.",
                differences,
            )

    # Inside

    def _checked_row(self, id: str, feature: Any, status: str, reason: str, facts: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(id, str) or not id:
            raise ValueError(f"id must be a non-empty string, got {id!r}")
        if status not in STATUSES:
            raise ValueError(f"status of {id!r} must be one of {STATUSES}, got {status!r}")
        if (feature is None) == (status == "ok"):
            raise ValueError(
                f"row {id!r} has status {status!r} and {'no' if feature is None else 'a'} feature: "
                "give a feature with status 'ok', and None with every other status"
            )
        for name, value in facts.items():
            if not isinstance(value, str | int | float | bool | None):
                raise ValueError(
                    f"fact {name!r} of {id!r} must be a JSON scalar, got {type(value).__name__} {value!r}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"fact {name!r} of {id!r} is {value}, which JSON cannot hold: pass None")
        return {"id": id, "status": status, "reason": reason, "position": None, "checksum": None, "facts": facts}

    def _bytes(self, id: str) -> bytes:
        slot = self._slots[id]
        return self._shards[self._shard_of[slot]].features()[self._position[slot]].numpy().tobytes()

    def _write(self, record: dict[str, Any], data: bytes | None, what: str) -> int:
        assert self._writer is not None
        try:
            return self._writer.write(canonical_json(record) + b"\n", data)
        except OSError as error:
            raise IndexWriteError(
                error.errno,
                f"{what} could not be written to {self._writer.rows_path}: {error.strerror or error}. The {len(self)} "
                "rows before it are safe. Make room (or move the whole folder to a larger disk) and run the same "
                "command again: it goes on where it stopped",
            ) from error

    def _record_provenance(self, provenance: dict[str, Any]) -> None:
        if provenance not in self._provenances:
            self._write({"provenance": provenance}, None, "the provenance")
            self._provenances.append(provenance)

    def _add(self, shard: int, offset: int, record: Mapping[str, Any]) -> None:
        """Enter a line of a shard. Which of two lines of one id stands must not depend on the order of reading."""
        if "provenance" in record:
            if record["provenance"] not in self._provenances:
                self._provenances.append(record["provenance"])
            return
        id, status = record["id"], STATUSES.index(record["status"])
        position = _NO_FEATURE if record["position"] is None else record["position"]
        slot = self._slots.get(id)
        if slot is None:
            self._slots[id] = len(self._shard_of)
            self._shard_of.append(shard)
            self._position.append(position)
            self._offset.append(offset)
            self._status.append(status)
            self._sorted = None
            return
        # Smaller is stronger: ok first, then the shard's name, then the later line of one shard.
        new = (position == _NO_FEATURE, self._shards[shard].name, -offset)
        name = self._shards[self._shard_of[slot]].name
        old = (self._position[slot] == _NO_FEATURE, name, -self._offset[slot])
        if new < old:
            self._shard_of[slot], self._position[slot] = shard, position
            self._offset[slot], self._status[slot] = offset, status


def _checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    if "features" not in settings or not set(settings) <= set(_SECTIONS):
        raise ValueError(
            'settings must be {"features": {...}, "provenance": {...}}: what a feature depends on, and what is only '
            f"recorded; got the keys {sorted(settings)}"
        )
    try:
        # Through JSON and back, so that a tuple equals the list that it becomes on disk.
        return {name: json.loads(canonical_json(dict(settings.get(name, {})))) for name in _SECTIONS}
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings must be JSON values (no NaN, no objects): {error}") from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return out


def _differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    a, b = ({"dim": h["dim"], "draws": h.get("draws", 1)} | _flat(h["settings"]["features"]) for h in (left, right))
    missing = "(not recorded)"
    names = [
        n for n in dict.fromkeys([*a, *b]) if (n in a) != (n in b) or canonical_json(a[n]) != canonical_json(b[n])
    ]
    return {name: (a.get(name, missing), b.get(name, missing)) for name in names}


def _table(differences: Mapping[str, tuple[Any, Any]], left: str, right: str) -> str:
    return "\n".join(f"  {name}: {a!r} in {left}, {b!r} in {right}" for name, (a, b) in differences.items())


def _feature_bytes(id: str, feature: Tensor | np.ndarray, draws: int, dim: int) -> bytes:
    vector = torch.as_tensor(feature).detach().to("cpu", torch.float32)
    if tuple(vector.shape) != (draws, dim) and not (draws == 1 and tuple(vector.shape) == (dim,)):
        holds = f"({draws}, {dim})" if draws > 1 else f"({dim},)"
        raise ValueError(f"feature of {id!r} has shape {tuple(vector.shape)}, the index holds {holds}")
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"feature of {id!r} is not finite: append it with feature=None, status='non_finite'")
    if not bool(vector.reshape(draws, dim).any(-1).all()):
        raise ValueError(f"feature of {id!r} is all zeros and has no direction: append it with None and a reason")
    return vector.numpy().astype("<f4").tobytes()


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
