"""One clip's gradient, part by part: the weight of the loss is cut, and with it the gradient, which is linear in it.

    g(W) = Σ_p g(W ∘ 1_p)   for every partition of the latent grid, in time, in space or in both,

so what the parts of a clip say of a query adds up to what the clip says.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .draws import side_by_side
from .errors import ClipError
from .gradients import GradientProjector


@dataclass(frozen=True)
class Parts:
    """One standard clip, cut into S segments and R regions. It knows no query.

    Attributes:
        start: Seconds from the first frame of the source.
        segments: S pairs (start, end), seconds from the first frame of the source.
        regions: R names.
        boxes: Of each region (left, top, right, bottom) in [0, 1] of the frame, or None.
        vectors: (S, R, K·D') float32: each part's projected gradient. Their sum is the clip's feature, of norm 1.
        motion: (S, R) float32: each part's share of the weight. They add up to 1.
        masks: (R, T, h, w) float32 in [0, 1]: which share of each place is the region's.
        frames: (n, h, w, 3) uint8: small pictures of the clip; n = 0 where its pixels were not looked at.
        times: Of each of them, seconds from the first frame of the source.
    """

    start: float
    segments: list[tuple[float, float]]
    regions: list[str]
    boxes: list[tuple[float, float, float, float] | None]
    vectors: Tensor
    motion: Tensor
    masks: Tensor
    frames: Tensor
    times: list[float]


def part_vectors(
    projector: GradientProjector, draws: Iterable[Callable[[], Iterator[Tensor | None]]], parts: int
) -> Tensor:
    """Each part's share of a clip's feature.

    Of each (timestep, noise) draw g_p / ‖g‖, side by side: what `clip_feature` does to the whole, done to its parts.

    Args:
        projector: Entered.
        draws: A function per draw that runs a forward pass and gives the parts' losses of it, one after the other;
            None for a part without weight, which costs no backward pass.
        parts: How many.

    Returns:
        (parts, K·D') float64; the sum over parts has norm 1.

    Raises:
        ClipError: As `GradientProjector.project`; "failed" where all gradients are zero.
    """
    features = []
    for losses in draws:
        vectors = torch.zeros(parts, projector.projection.dim, dtype=torch.float64)
        for part, loss in enumerate(losses()):
            if loss is None:
                continue
            try:
                vectors[part] = projector.project(loss, retain_graph=True).vector.double()
            except ClipError as error:
                if error.status != "failed":
                    raise
                # A gradient of zeros is a part's share as any other: it teaches nothing.
        norm = vectors.sum(0).norm()
        if norm == 0:
            raise ClipError("failed", "the gradient is zero in all parameters, for every part of the clip")
        features.append(vectors / norm)
    return side_by_side(torch.stack(features, dim=1))


def write_parts(path: str | os.PathLike[str], windows: Sequence[Parts]) -> None:
    """Keep them in a file, which is there when it is complete, and not before; nothing in it is pickled."""
    from safetensors.torch import save_file

    path = Path(path)
    tensors, said = {}, []
    for number, parts in enumerate(windows):
        for name in _TENSORS:
            tensors[f"{number}.{name}"] = getattr(parts, name).contiguous()
        said.append({name: getattr(parts, name) for name in _VALUES})
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_file(tensors, unfinished, metadata={"windows": json.dumps(said)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_parts(path: str | os.PathLike[str]) -> list[Parts]:
    """What `write_parts` wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        said: list[dict[str, Any]] = json.loads(file.metadata()["windows"])
        for number, values in enumerate(said):
            values |= {name: file.get_tensor(f"{number}.{name}") for name in _TENSORS}
            for name in ("segments", "boxes"):
                values[name] = [None if pair is None else tuple(pair) for pair in values[name]]
    return [Parts(**values) for values in said]


_TENSORS = ("vectors", "motion", "masks", "frames")
_VALUES = ("start", "segments", "regions", "boxes", "times")
