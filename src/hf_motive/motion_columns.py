"""How a clip moves, as columns of a dataset: `dataset.map(MotionFeatures(...))`, or `add_motion`, which does that."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import __version__, motion
from .corpus import as_files
from .errors import ClipError
from .video import ClipStandard, load_clip

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict

    AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)

#: Levels of the stored mask: a byte a cell.
LEVELS = 255


@dataclass(frozen=True)
class MotionFeatures:
    """A row, or a batch of rows, to its motion columns, for `Dataset.map`.

    Column by column: `motion_mask`, uint8 (T, h, w), 255 where the clip moves most, null where it has no mask;
    `motion_mean` and `motion_peak`, the flow's mean length and the length that one place in a thousand exceeds, and
    `motion_camera`, the mean length of the camera's share, in pixels a frame of the standard clip; `motion_moving`,
    the share of places that move, in [0, 1]; `motion_status`, `ok` or what is wrong with the clip; `motion_reason`.

    It pickles to its settings and the version alone, so that `map` finds its own results again: the same settings on
    the same data compute nothing, others compute anew. `add_motion` also declares the columns, and takes a `Video()`
    column as the files that it is. By `map` alone the mask becomes lists of integers, the first rows that are written
    (a thousand) must not all be without one, and `datasets` first decodes a `Video()` column by torchcodec.

    Args:
        standard: What the clip is brought to first.
        grid: (T, h, w) of the mask: a pipeline's latent grid, `tuple(attributor.step.latent_shape[1:])`.
        estimator: Frames to flow.
        compensate_camera: Leave the camera's motion out of mask, mean, peak and moving.
        weigh_confidence: Multiply the mask by the estimator's confidence.
        video_column: Column of the video.

    Raises:
        ValueError: `grid` is not three whole numbers, or the standard's frames do not group into T.
    """

    standard: ClipStandard
    grid: tuple[int, int, int]
    estimator: motion.MotionEstimator = field(default_factory=motion.DISFlow)
    compensate_camera: bool = False
    weigh_confidence: bool = False
    video_column: str = "video"

    def __post_init__(self):
        grid = tuple(self.grid)
        if len(grid) != 3 or not all(isinstance(side, int) and side > 0 for side in grid):
            raise ValueError(f"grid must be (T, h, w), three whole numbers of at least 1, got {self.grid!r}")
        object.__setattr__(self, "grid", grid)  # one pickle for a tuple, a list and a torch.Size
        motion.latent_mask(torch.zeros(self.standard.num_frames, 1, 1), (grid[0], 1, 1))  # do the frames group?

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"version": __version__}  # what another version computed is not found again

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        _check_column(self.video_column, rows)
        videos = rows[self.video_column]
        if not _is_batch(videos):
            return self.of_clip(videos)
        found = [self.of_clip(video) for video in videos]
        return {name: [columns[name] for columns in found] for name in self.columns}

    def of_clip(self, video: Any) -> dict[str, Any]:
        """The columns of one clip. What is wrong with it is in the columns: nothing is raised."""
        columns: dict[str, Any] = dict.fromkeys(self.columns)
        columns |= dict.fromkeys(("motion_mean", "motion_peak", "motion_camera", "motion_moving"), float("nan"))
        try:
            frames = load_clip(video, self.standard)
            found = motion.clip_motion(frames, self.estimator, compensate=self.compensate_camera, measure_camera=True)
            size = found.magnitude.flatten()
            columns |= {
                "motion_mean": motion.mean_motion(found.magnitude),
                "motion_peak": size.topk(max(1, size.numel() // 1000)).values[-1].item(),
                "motion_camera": found.camera,
                "motion_moving": (size > motion.STATIC_THRESHOLD).double().mean().item(),
            }
            reference = getattr(self.estimator, "reference", "neighbour")
            mask = motion.latent_mask(found.mask(reference, weigh_confidence=self.weigh_confidence), self.grid)
        except ClipError as error:
            return columns | {"motion_status": error.status, "motion_reason": error.reason}
        stored = (mask * LEVELS).round().numpy().astype(np.uint8)
        return columns | {"motion_mask": stored, "motion_status": "ok", "motion_reason": ""}

    @property
    def columns(self) -> Features:
        """Name -> `datasets` feature of the columns that are added."""
        from datasets import Array3D, Features, Value

        return Features(
            motion_mask=Array3D(self.grid, "uint8"),
            **dict.fromkeys(("motion_mean", "motion_peak", "motion_camera", "motion_moving"), Value("float64")),
            motion_status=Value("string"),
            motion_reason=Value("string"),
        )


def add_motion(dataset: AnyDataset, features: MotionFeatures, **options: Any) -> AnyDataset:
    """`dataset.map(features)` with the columns declared, on files as they are: nothing is decoded twice.

    Args:
        dataset: Map-style or streaming, one split or several.
        options: Of `map`, such as `num_proc=4`.
    """
    from datasets import DatasetDict, Features, IterableDatasetDict, Video

    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        return type(dataset)({name: add_motion(split, features, **options) for name, split in dataset.items()})
    if dataset.features is None:
        dataset = dataset._resolve_features()
    _check_column(features.video_column, dataset.features)
    video = dataset.features[features.video_column]
    dataset = as_files(dataset, features.video_column)
    known = dataset.features
    removed = options.get("remove_columns") or ()
    kept = {name: known[name] for name in known if name not in ([removed] if isinstance(removed, str) else removed)}
    result = dataset.map(features, features=Features({**kept, **features.columns}), **options)
    undo = isinstance(video, Video) and features.video_column in kept
    return result.cast_column(features.video_column, video) if undo else result


def _check_column(column: str, columns: Collection[str]) -> None:
    if column not in columns:
        raise ValueError(
            f"the dataset has no column {column!r}; its columns are {', '.join(columns)}. "
            "Name the right one: MotionFeatures(..., video_column=...)"
        )


def stored_mask(row: Mapping[str, Any], column: str, grid: tuple[int, ...]) -> tuple[Tensor, float]:
    """A mask from a column, as the weight of a loss, and the row's `motion_mean` (NaN without).

    Args:
        row: With the mask: integers in [0, 255], or floating point in [0, 1].
        grid: (T, h, w) that the mask must have.

    Raises:
        ClipError: The row has no mask: `motion_status` and `motion_reason` say why, or it is `static`.
        ValueError: No such column, a mask of another grid, or floating point beyond 1.
    """
    if column not in row:
        raise ValueError(
            f"the row has no column {column!r} to take the mask from; its columns are {', '.join(row)}. Add it by "
            "add_motion(dataset, MotionFeatures(...)), to the queries too"
        )
    stored = None if row[column] is None else np.asarray(row[column])
    # A null mask of a dataset with a format (numpy, torch) is an array of NaN.
    if stored is None or (np.issubdtype(stored.dtype, np.floating) and np.isnan(stored).all()):
        status = row.get("motion_status") or "static"
        raise ClipError("static" if status == "ok" else status, row.get("motion_reason") or "its row has no mask")
    if stored.shape != tuple(grid):
        raise ValueError(
            f"the masks in column {column!r} are {stored.shape}, but the pipeline's latent grid is {tuple(grid)}: "
            f"compute them on it, MotionFeatures(standard, grid={tuple(grid)})"
        )
    scale = LEVELS if np.issubdtype(stored.dtype, np.integer) else 1
    if not (stored.min() >= 0 and stored.max() <= scale):
        raise ValueError(
            f"the masks in column {column!r} are {stored.dtype} from {stored.min():g} to {stored.max():g}; expected "
            f"whole numbers in 0..{LEVELS}, or floating point in [0, 1]"
        )
    mean = row.get("motion_mean")
    return torch.from_numpy(stored.astype(np.float32) / scale), float("nan") if mean is None else float(mean)


def _is_batch(videos: Any) -> bool:
    """`map(batched=True)` gives a list of videos, or an array if the dataset has a format; frames are one video."""
    if isinstance(videos, (np.ndarray, Tensor)):
        return videos.ndim == 1 or videos.ndim > 4
    if not isinstance(videos, list) or not videos:
        return False
    first = next((video for video in videos if video is not None), None)
    is_file = isinstance(first, (Mapping, str, bytes, os.PathLike)) or hasattr(first, "get_frame_at")
    return first is None or is_file or _dimensions(first) > 3


def _dimensions(frames: Any) -> int:
    """3 for a frame, 4 for a video, of whatever kind."""
    if isinstance(frames, list):
        return 1 + (_dimensions(frames[0]) if frames else 3)
    return 3 if hasattr(frames, "convert") else getattr(frames, "ndim", 0)  # a PIL image, an array, or a number
