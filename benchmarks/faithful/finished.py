"""What the trainings showed, in one small file: so that a new contender is judged without training anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def pack(models: Path, path: Path, corpus: np.ndarray) -> None:
    """The files of a folder of models, into one; losses are means over the noises, in float32.

    Args:
        corpus: (N,) int64, the seeds of the clips: by their places in it the file says what was trained on.
    """
    files = sorted(found for found in models.glob("*.npz") if not found.stem.endswith(".partial"))
    told = [np.load(found) for found in files]
    members = np.zeros((len(told), len(corpus)), dtype=bool)
    for row, model in enumerate(told):
        members[row, model["chosen"]] = True
    np.savez_compressed(
        path,
        corpus=corpus,
        names=[found.stem for found in files],
        members=np.packbits(members, axis=1),
        losses=np.array([model["losses"].mean(-1) for model in told], dtype=np.float32),
        seconds=np.array([model["seconds"] for model in told], dtype=np.float32),
    )


def unpack(path: Path, models: Path, corpus: np.ndarray) -> None:
    """`pack` undone; a model that lies in the folder already is left alone.

    Raises:
        SystemExit: There is no such file, or it is of other clips.
    """
    if not path.exists():
        raise SystemExit(f"{path} is not there: nothing is known of these trainings; leave --known out")
    told = dict(np.load(path))
    if not np.array_equal(told["corpus"], corpus):
        raise SystemExit(
            f"{path} is of another corpus: as things move here, other clips have a mask; leave --known out"
        )
    models.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(told["names"]):
        kept = models / f"{name}.npz"
        if not kept.exists():
            chosen = np.flatnonzero(np.unpackbits(told["members"][row]))
            losses = told["losses"][row][..., None].astype(np.float64)
            np.savez(kept, losses=losses, chosen=chosen, seconds=told["seconds"][row])
