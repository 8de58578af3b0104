"""What people chose: the files that a page records, as judgements."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .judgements import Judgements


def read_choices(files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Judgements:
    """Judgements of the files that a page of `write_page` records; see there."""
    raise NotImplementedError
