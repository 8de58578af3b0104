"""What the trainings showed, in one small file: so that a new contender is judged without training anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def pack(models: Path, path: Path, of: int) -> None:
    """The files of a folder of models, into one; losses are means over the noises, in float32.

    Args:
        of: Clips in the corpus.
    """
    files = sorted(found for found in models.glob("*.npz") if not found.stem.endswith(".partial"))
    told = [np.load(found) for found in files]
    members = np.zeros((len(told), of), dtype=bool)
    for row, model in enumerate(told):
        members[row, model["chosen"]] = True
    np.savez_compressed(
        path,
        names=[found.stem for found in files],
        members=np.packbits(members, axis=1),
        losses=np.array([model["losses"].mean(-1) for model in told], dtype=np.float32),
        seconds=np.array([model["seconds"] for model in told], dtype=np.float32),
    )


def unpack(path: Path, models: Path) -> None:
    """`pack` undone; a model that lies in the folder already is left alone."""
    models.mkdir(parents=True, exist_ok=True)
    told = dict(np.load(path))
    for row, name in enumerate(told["names"]):
        kept = models / f"{name}.npz"
        if not kept.exists():
            chosen = np.flatnonzero(np.unpackbits(told["members"][row]))
            losses = told["losses"][row][..., None].astype(np.float64)
            np.savez(kept, losses=losses, chosen=chosen, seconds=told["seconds"][row])
