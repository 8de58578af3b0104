"""Judgements as rows, checked once and brought to arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: What a judgement may say. In this order they are -1, 0 and 1 for a.
CHOICES = ("b", "tie", "a")


class Judgements(list[dict[str, Any]]):
    """A list of judgements, and which rows could not be judged.

    Args:
        rows: `{"prompt": ..., "choice": "a" | "b" | "tie"}`, with "rater" where there are several.
        failed: Row of what was to be judged -> reason.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = (), failed: Mapping[int, str] | None = None):
        super().__init__(rows)
        self.failed = dict(failed or {})


@dataclass(frozen=True)
class Table:
    """Judgements as arrays over their n rows.

    Args:
        prompt, rater: (n,) numbers of the prompt and of the rater, counted from 0.
        choice: (n,) in {-1, 0, 1}: b, tie, a.
        prompts, raters: Their names, by number; a single rater may have none (None).
        unit: (n,) numbers of what was judged: the pair where rows have a "pair", else the prompt.
    """

    prompt: np.ndarray
    rater: np.ndarray
    choice: np.ndarray
    unit: np.ndarray
    prompts: list[Any] = field(repr=False)
    raters: list[Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.choice)


def table(judgements: Iterable[Mapping[str, Any]]) -> Table:
    """Check judgements and number their prompts and raters.

    Raises:
        ValueError: There are none, or a row has no prompt or no choice; the message names the row.
    """
    prompts: dict[Any, int] = {}
    raters: dict[Any, int] = {}
    units: dict[Any, int] = {}
    rows = []
    for i, row in enumerate(judgements):
        if not isinstance(row, Mapping) or row.get("prompt") is None:
            raise ValueError(f'judgement {i} needs {{"prompt": ..., "choice": "a", "b" or "tie"}}, got {row!r}')
        if row.get("choice") not in CHOICES:
            raise ValueError(f'judgement {i} must choose "a", "b" or "tie", got {row.get("choice")!r}')
        prompt, rater = row["prompt"], row.get("rater")
        unit = (prompt, row.get("pair"))
        rows.append(
            (
                prompts.setdefault(prompt, len(prompts)),
                raters.setdefault(rater, len(raters)),
                CHOICES.index(row["choice"]) - 1,
                units.setdefault(unit, len(units)),
            )
        )
    if not rows:
        raise ValueError("there are no judgements: nothing was judged, or every row failed")
    prompt, rater, choice, unit = np.array(rows).T
    return Table(prompt, rater, choice, unit, list(prompts), list(raters))
