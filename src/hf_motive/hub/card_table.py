"""A dataset as its card needs it: the columns that are shown, and of a few rows the clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..corpus import as_files


class CardTable:
    """Some columns of a dataset on disk or streamed, and of a few rows the video.

    Args:
        dataset: `Dataset` or `IterableDataset`.
        video_column: Column of the clips, which are not decoded.
        columns: Those to read, where they are there.
    """

    def __init__(self, dataset: Any, video_column: str, columns: Sequence[str]):
        from datasets import Dataset

        dataset = dataset.with_format(None)
        if dataset.features is None:
            dataset = dataset._resolve_features()
        self.names = list(dataset.features)
        self.video_column = video_column if video_column in self.names else None
        self.dataset = as_files(dataset, video_column) if self.video_column else dataset
        read = [name for name in columns if name in self.names]
        if isinstance(dataset, Dataset):
            self._columns = {name: dataset[name][:] for name in read}
            self._rows = len(dataset)
        else:
            self._columns = {name: [] for name in read}
            self._rows = 0
            for row in self.dataset:
                self._rows += 1
                for name in read:
                    self._columns[name].append(row[name])

    def __len__(self) -> int:
        return self._rows

    def value(self, name: str, row: int) -> Any:
        return self._columns[name][row] if name in self._columns else None

    def column(self, name: str) -> Sequence[Any]:
        return self._columns.get(name, ())

    def numbers(self, name: str, default: np.ndarray | None = None) -> np.ndarray:
        """(rows,) float64, NaN where there is none."""
        if name not in self._columns:
            return np.full(self._rows, np.nan) if default is None else default
        return np.asarray([np.nan if value is None else value for value in self._columns[name]], dtype=np.float64)

    def videos(self, rows: set[int]) -> dict[int, Any]:
        if self.video_column is None or not rows:
            return {}
        if hasattr(self.dataset, "select"):
            return {row: self.dataset[row][self.video_column] for row in rows}
        found = ((place, row) for place, row in enumerate(self.dataset) if place in rows)
        return {place: row[self.video_column] for place, row in found}
