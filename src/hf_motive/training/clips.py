"""The clips of a fine-tuning: which rows are taken, and a row to what a training step needs of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..corpus import clip_name
from ..encoded_blob import read_encoding
from ..encodings import COLUMNS
from ..selection import best
from ..video import load_clip

if TYPE_CHECKING:
    from datasets import Dataset

    from ..video import ClipStandard
    from .arguments import MotiveTrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class Clip:
    """A row as a step takes it. Not a tuple or dict: what moves batches between devices would take it apart.

    Attributes:
        draw: Its number in the sequence of all that is shown.
        row: Its place in the dataset.
        latents: (C, T, h, w) float32.
        weight: (T, h, w) in [0, 1]: the motion mask, where it is there.
        caption: As it is given to the pipeline.
        answers: What the pipeline's frozen parts say of it.
        example: The row with its `pixels`, where the pipeline is conditioned on it.
    """

    draw: int
    row: int
    latents: Tensor
    weight: Tensor | None
    caption: str
    answers: Mapping[str, Any]
    example: Mapping[str, Any]


class TrainingClips(TorchDataset):
    """(draw, row) to `Clip`.

    Args:
        dataset: With the columns of `add_encodings`, every row `ok`.
        caption_column, video_column: Columns of the row.
        standard: What a clip is brought to where the pipeline is conditioned on it; None where it is not, and the
            video is not read.
    """

    def __init__(self, dataset: Dataset, video_column: str, caption_column: str, standard: ClipStandard | None):
        self.dataset, self.standard = dataset, standard
        self.video_column, self.caption_column = video_column, caption_column
        needed = dataset.column_names if standard is not None else [caption_column, "encoded"]
        self._read, self._videos = dataset.select_columns(needed), dataset.select_columns(video_column)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, shown: tuple[int, int]) -> Clip:
        draw, row = shown
        values = self._read[row]
        encoding = read_encoding(values.pop("encoded"))
        example: dict[str, Any] = {}
        if self.standard is not None:
            example = {**values, "pixels": load_clip(values[self.video_column], self.standard)}
        caption = values[self.caption_column] or ""
        return Clip(draw, row, encoding.latents, encoding.weight, caption, encoding.answers, example)

    def name(self, row: int) -> str:
        """What a person calls the clip."""
        return clip_name(self._videos[row][self.video_column], row)

    def names(self) -> list[str]:
        """Of all clips, in order."""
        return [clip_name(values[self.video_column], row) for row, values in enumerate(self._videos)]


def collate(clips: list[Clip]) -> dict[str, list[Clip]]:
    """A batch as `Trainer` hands it on."""
    return {"clips": clips}


def choose(
    dataset: Dataset, arguments: MotiveTrainingArguments, select: Callable[[dict[str, Any]], bool] | None
) -> tuple[Dataset, str | None]:
    """The rows to train on, and how they were chosen, in a sentence; None where all were taken.

    Args:
        select: The user's own filter: a row, its video undecoded, to whether it is taken.

    Raises:
        ValueError: No row is left, or there is no column to choose by.
    """
    have = len(dataset)
    if select is not None:
        if arguments.fraction is not None or arguments.count is not None or arguments.min_votes is not None:
            raise ValueError("choose the clips by select=, or by one of fraction, count and min_votes: not by both")
        # Row by row, without the encodings: a thousand of them at a time, as `filter` reads, are gigabytes.
        light = dataset.remove_columns([name for name in COLUMNS if name in dataset.column_names])
        chosen = dataset.select([row for row, values in enumerate(light) if select(values)])
        sentence = f"{len(chosen)} of {have} clips, by a filter."
    elif arguments.min_votes is not None:
        if "influence_votes" not in dataset.column_names:
            raise ValueError(_unscored("influence_votes", dataset))
        votes = arguments.min_votes
        chosen = dataset.filter(lambda given: given is not None and given >= votes, input_columns="influence_votes")
        sentence = f"The {len(chosen)} of {have} clips that at least {votes} queries vote for."
    elif arguments.fraction is not None or arguments.count is not None:
        if arguments.select_by not in dataset.column_names:
            raise ValueError(_unscored(arguments.select_by, dataset))
        scored = len(best(dataset, 1.0, by=arguments.select_by))
        chosen = best(dataset, arguments.fraction or 1.0, count=arguments.count, by=arguments.select_by)
        share = f"best {arguments.count}" if arguments.fraction is None else f"best {100 * arguments.fraction:g} %"
        sentence = f"The {share} by {arguments.select_by}: {len(chosen)} of the {scored} clips with this score."
    else:
        return dataset, None
    if not len(chosen):
        raise ValueError(
            f"no row is selected: {sentence} Ask for less (min_votes=, a filter that lets something through), or see "
            "by `hf-motive inspect` how the scores are spread"
        )
    return chosen, sentence


def _unscored(column: str, dataset: Dataset) -> str:
    return (
        f"the clips are to be chosen by {column!r}, but have no such column; there are "
        f"{', '.join(dataset.column_names)}. Score them first (hf-motive score, or MotiveAttributor.influence), or "
        "train on all: no fraction, count or min_votes"
    )


def usable(dataset: Dataset, what: str) -> Dataset:
    """The rows that were encoded; what could not be is counted and said.

    Raises:
        ValueError: Nothing is left.
    """
    statuses = dataset["encoded_status"][:]
    good = [row for row, status in enumerate(statuses) if status == "ok"]
    if len(good) == len(statuses):
        return dataset
    reasons = dict(zip(statuses, dataset["encoded_reason"][:], strict=True))
    counts = Counter(status for status in statuses if status != "ok")
    said = "; ".join(f"{count} {status}, e.g. {reasons[status]}" for status, count in counts.most_common())
    if not good:
        raise ValueError(f"none of the {len(statuses)} {what} can be used: {said}")
    logger.warning("%d of %d %s are left out: %s", len(statuses) - len(good), len(statuses), what, said)
    return dataset.select(good)
