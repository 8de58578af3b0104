"""Pairs of videos for people to judge, as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_page(
    path: str | os.PathLike[str],
    pairs: Iterable[Mapping[str, Any]],
    *,
    title: str = "Which one moves better?",
    seed: int = 0,
    fps: float = 16.0,
) -> Path:
    """One HTML file that shows pairs of videos and records which one people prefer.

    Args:
        path: The file.
        pairs: Rows `{"prompt": ..., "a": video, "b": video}`; videos are whatever `load_clip` takes.
        title: Of the page.
        seed: Of the order of the pairs and of their sides.
        fps: Of videos that are frames and not files.
    """
    raise NotImplementedError
