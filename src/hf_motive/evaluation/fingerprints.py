"""Whether weights are still those that clips were made with: digests, taken anew only where files have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ..training.samples import write_text

#: In the folder of the results.
FILE = "fingerprints.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_TEXTS = (".json", ".model", ".txt")
# What a training writes beside its model, and again when its card is made.
_BESIDE = (".", "checkpoint-", "samples", "runs", "card")
_TOP = ("model_index.json", "modular_model_index.json", "weights.json")


class Fingerprints:
    """Digests of folders and files of weights, kept in a folder with the sizes and times of the files they are of.

    Args:
        folder: Where to keep them; it is made when there is something to keep.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / FILE
        try:
            self._known: dict[str, list] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def of(self, place: str) -> str:
        """16 hex digits of what is in the weights and configurations at a place."""
        path = Path(place).absolute()
        files = [path] if path.is_file() else list(_files(path))
        stamp = [[f.relative_to(path).as_posix(), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        known = self._known.get(str(path))
        if known is None or known[0] != stamp:
            self._known[str(path)] = [stamp, _digest(path, files)]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self._known, indent=1))
        return self._known[str(path)][1]


def _digest(path: Path, files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            inner = hashlib.file_digest(opened, "sha256").hexdigest()
        whole.update(f"{file.relative_to(path).as_posix()} {inner}\n".encode())
    return whole.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    """What is loaded of a folder: not the samples, checkpoints, states and logs beside it."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if not path.is_file() or any(part.startswith(_BESIDE) for part in inner):
            continue
        if (
            path.suffix in (*_WEIGHTS, *_TEXTS)
            if len(inner) > 1
            else path.suffix == ".safetensors" or path.name in _TOP
        ):
            yield path
