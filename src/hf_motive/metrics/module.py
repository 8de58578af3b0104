"""`VideoMetric`: an `evaluate` module that gives each video a number, and a set of videos their mean."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import evaluate
import torch
from datasets import Features, Value
from datasets.utils import tqdm
from torch import Tensor

from ..errors import ClipError
from .rows import Stored, is_padding, tables, unpack

#: A video as `evaluate` stores it: what a column of `datasets.Video(decode=False)` holds.
VIDEO = {"path": Value("string"), "bytes": Value("binary")}

_ABSENT: Any = object()  # no video was given, which is not a video that is not there

_INPUTS = """
Args:
    predictions: The videos: paths, {"path", "bytes"}, clips (F, 3, H, W) of uint8 or of floats in [-1, 1], or anything
        else that hf_motive.video.load_clip takes; or a column of a dataset, decoded or not; or a stacked array.
"""

_RETURNS = """
Returns:
    {name}: The mean over the videos.
    {name}_per_video: A number a video, None for one that could not be scored.
    {name}_backend: What produced the numbers.
    {name}_failed: The reason of each video that could not be scored, by its row; absent where all were.
"""


class VideoMetric(evaluate.Metric, ABC):
    """The part that all modules share. A module gives `backend`, `score` and, where it is not the plain one, `mean`.

    Args:
        fps: Frames per second of videos that do not carry a rate (arrays, lists of images).
        device: Where networks run and tensors are computed.
        options: What `evaluate.Metric` takes: `num_process`, `process_id`, `experiment_id`, `cache_dir`, ….

    Raises:
        TypeError: There is no such option.
        ValueError: `fps` is not positive.
    """

    DESCRIPTION: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    INPUTS: ClassVar[str] = ""  # the module's own options, and an example
    REFERENCE_URLS: ClassVar[Sequence[str]] = ()
    FEATURES: ClassVar[dict[str, Any]] = {"predictions": VIDEO}
    higher_is_better: ClassVar[bool] = True

    # What evaluate keeps of the rows and of the files that hold them; some of it only between two calls.
    data: Any
    writer: Any
    buf_writer: Any
    filelock: Any
    filelocks: Any
    file_paths: Any
    cache_file_name: Any

    def __init__(self, *, fps: float | None = None, device: str | torch.device = "cpu", **options: Any):
        known = inspect.signature(evaluate.EvaluationModule.__init__).parameters
        unknown = sorted(set(options) - set(known))
        if unknown:  # evaluate itself would drop a misspelt option without a word
            own = ", ".join(_options(type(self)))
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}; its own are {own}")
        rate: Any = fps  # a text, from the command line or a file
        is_number = isinstance(rate, Real) and not isinstance(rate, bool)
        if fps is not None and not (is_number and 0 < float(rate) < math.inf):
            raise ValueError(f"fps must be a positive number of frames per second, got {fps!r}")
        super().__init__(**options)
        self.fps = fps
        self.device = torch.device(device)

    # What a module gives -----------------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The result's name: the module's."""
        return self.name

    @property
    @abstractmethod
    def backend(self) -> str:
        """What produces the numbers: the network and the library, by name."""

    @abstractmethod
    def score(self, clip: Tensor, fps: float | None) -> float:
        """One video's number.

        Args:
            clip: (F, 3, H, W) uint8, on the CPU: all frames at their own size.
            fps: Frames per second, where that is known.

        Raises:
            ValueError: This video cannot be scored; the message says why. It costs the video its row.
        """

    def mean(self, scores: Sequence[float], frames: Sequence[int]) -> float:
        """The set's number, from those of the videos that have one and the number of frames of each."""
        return sum(scores) / len(scores)

    def prepare(self) -> None:
        """Load what the module needs, once: `evaluate.load` calls it, so that what cannot be had is known at once.

        Raises:
            OSError: Weights cannot be had; the message names the remedy.
        """

    # What evaluate asks for --------------------------------------------------------------------------------------

    def _info(self) -> evaluate.EvaluationModuleInfo:
        name = evaluate.naming.camelcase_to_snakecase(type(self).__name__)
        return evaluate.MetricInfo(
            description=self.DESCRIPTION,
            citation=self.CITATION,
            inputs_description=_INPUTS + _RETURNS.format(name=name) + self.INPUTS,
            features=Features(self.FEATURES),
            reference_urls=list(self.REFERENCE_URLS),
        )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        self.prepare()

    def add(self, *, prediction: Any = _ABSENT, reference: Any = _ABSENT, **kwargs: Any) -> None:
        """Add one video; None is one that is not there, and keeps its row."""
        # evaluate.combine gives one video under the plural name
        given = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [video] for name, video in given.items() if video is not _ABSENT})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add videos."""
        given = {"predictions": predictions, "references": references, **kwargs}
        names = self._feature_names()
        strange = [name for name, videos in given.items() if videos is not None and name not in names]
        if strange:
            raise ValueError(f"{self.name} takes {' and '.join(names)}, and no {strange[0]}")
        written = False
        for table in tables({name: given[name] for name in names}):
            super().add_batch(**table)
            written = True
        if not written:  # a process's share of the videos may be empty, and the others wait for its file
            super().add_batch(**{name: [] for name in names})

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Score the videos given here and those added before."""
        # evaluate.combine gives references to all of its modules: those that take none leave them be
        given = {"predictions": predictions, "references": references, **kwargs}
        for name in kwargs:
            raise TypeError(
                f"compute() of {self.name} takes no {name}: what a module is to do is said when it is loaded, "
                f"metrics.load({self.name!r}, {name}=...), where an option that it does not have is an error"
            )
        if self.writer is None and all(given.get(name) is None for name in self._feature_names()):
            raise ValueError(_nothing_scored(self.name, 0, {}))
        try:
            return super().compute(predictions=predictions, references=references, **kwargs)
        except BaseException:
            self._forget()
            raise

    def _finalize(self) -> None:
        super()._finalize()
        if self.data is not None:
            self.data = Stored(self.data)

    def _forget(self) -> None:
        """After a failure the module is as new: rows of the failed call are in no later result."""
        locks = [self.filelock, *(self.filelocks or [])]
        files = [self.cache_file_name, *(self.file_paths or [])] if self.process_id == 0 else []
        self.data = self.writer = self.buf_writer = None
        self.filelock = self.filelocks = self.file_paths = self.cache_file_name = None
        for file in files:
            if file is not None:
                Path(file).unlink(missing_ok=True)
        for lock in locks:
            if lock is not None:
                lock.release()

    def _compute(self, *, predictions: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        scores: list[float | None] = [None] * len(predictions)
        frames = [0] * len(predictions)
        failed: dict[int, str] = {}
        for row, clip, fps in self.read(predictions, failed):
            try:
                scores[row], frames[row] = self._score(clip, fps), len(clip)
            except ValueError as error:  # ClipError is one
                failed[row] = str(error)
        scored = [row for row, score in enumerate(scores) if score is not None]
        if not scored:
            raise ValueError(_nothing_scored(self.name, len(predictions), failed))
        mean = self.mean([score for score in scores if score is not None], [frames[row] for row in scored])
        return self.result(mean, scores, failed)

    # Shared by modules that compare sets --------------------------------------------------------------------------

    def read(
        self, rows: Sequence[Mapping[str, Any]], failed: dict[int, str] | None = None
    ) -> Iterator[tuple[int, Tensor, float | None]]:
        """The clips of a stored column, one after another, with a progress bar (datasets' switch turns it off).

        Args:
            rows: What `_compute` is given.
            failed: Takes the reasons of the rows that cannot be read, which are left out. None: such a row raises.

        Yields:
            The row, its clip (F, 3, H, W) uint8, and its frames per second: the video's own, or this module's `fps`.

        Raises:
            ClipError: A row cannot be read, and `failed` is None.
        """
        for row, video in enumerate(tqdm(rows, desc=self.name, unit="video", total=len(rows))):
            if is_padding(video):
                continue
            try:
                clip, fps = unpack(video)
            except ClipError as error:
                if failed is None:
                    raise
                failed[row] = error.reason
                continue
            yield row, clip, fps or self.fps

    def result(self, value: float, scores: Sequence[float | None], failed: Mapping[int, str]) -> dict[str, Any]:
        """A result in the form that all modules share."""
        result = {self.key: value, f"{self.key}_per_video": list(scores), f"{self.key}_backend": self.backend}
        return {**result, f"{self.key}_failed": dict(failed)} if failed else result

    def _score(self, clip: Tensor, fps: float | None) -> float:
        with torch.no_grad():
            score = float(self.score(clip, fps))
        if not math.isfinite(score):
            raise ValueError(f"the score is {score}")
        return score


def _options(module: type) -> list[str]:
    """The options that a module and its bases name themselves."""
    classes = module.__mro__[: module.__mro__.index(evaluate.Metric)]
    signatures = [inspect.signature(vars(owner)["__init__"]) for owner in classes if "__init__" in vars(owner)]
    return [name for one in signatures for name, kind in one.parameters.items() if kind.kind is kind.KEYWORD_ONLY]


def _nothing_scored(name: str, count: int, failed: Mapping[int, str]) -> str:
    if not failed:
        return f"{name} was given no video: pass predictions=[...], or add some before compute()"
    row = min(failed)
    return f"{name} could score none of {count} video{'s' * (count != 1)}; row {row}: {failed[row]}"
