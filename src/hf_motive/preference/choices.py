"""What people chose: the files that a page records, as judgements."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .judgements import CHOICES, Judgements

_NEEDED = ("page", "rater", "sitting", "pair", "prompt", "choice")


def read_choices(files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Judgements:
    """Judgements from the files that pages of `write_page` record.

    Args:
        files: One or several; a folder stands for its `.jsonl` files. A rater's later file may repeat an earlier one,
            and a choice made again replaces the first.

    Returns:
        Rows with "prompt", "rater", "pair", "choice", and "left" (which of a and b was shown on the left), "seconds"
        (how long the rater looked), "page" and "at" (when).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There are no choices, a line is not one, or two sittings of one rater's name judged the same pair
            differently; the message names the file and what to do.
    """
    files = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    found: dict[tuple[str, str, str], tuple[dict[str, Any], str]] = {}
    for file in (inner for outer in files for inner in _in(Path(outer))):
        for number, row in _lines(file):
            place = f"{file.name}, line {number}"
            key = (row["page"], row["rater"], row["pair"])
            before, first_place = found.get(key, (None, ""))
            if before and before["sitting"] != row["sitting"] and before["choice"] != row["choice"]:
                raise ValueError(
                    f"{first_place} and {place}: {row['rater']!r} chose {before['choice']!r} and {row['choice']!r} of "
                    f"pair {row['pair']!r} in two sittings. If these are two people, rename one in the file; "
                    "if it is one, leave out the file that does not count"
                )
            if before is None or str(row.get("at", "")) >= str(before.get("at", "")):
                found[key] = (row, place)
    if not found:
        raise ValueError(f"no choices in {', '.join(str(file) for file in files) or 'no files'}")
    pages = {page for page, _, _ in found}
    rows = Judgements()
    for row, _ in found.values():
        kept = {key: row.get(key) for key in ("prompt", "rater", "pair", "choice", "left", "seconds", "page", "at")}
        # Pages number their pairs from 0: of several pages the number alone names no pair.
        rows.append(kept if len(pages) == 1 else {**kept, "pair": f"{row['page']}/{row['pair']}"})
    return rows


def read_judgements(files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Judgements:
    """`read_choices`, or where the lines come from no page, the rows as they are: prompt, choice, rater, pair.

    Raises:
        ValueError: As of `read_choices`, or some lines come from a page and others do not.
    """
    files = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    inner = [file for outer in files for file in _in(Path(outer))]
    rows = [(file, row) for file in inner for _, row in _lines(file, ("prompt", "choice"))]
    recorded = ["sitting" in row for _, row in rows]
    if any(recorded) and not all(recorded):
        names = {file.name for file, row in rows if "sitting" not in row}
        raise ValueError(f"{', '.join(sorted(names))} was not recorded by a page, others were: report them apart")
    return read_choices(files) if all(recorded) else Judgements(row for _, row in rows)


def left_share(judgements: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """How often what was on the left was preferred, and of how many judgements that were no ties."""
    decided = [row for row in judgements if row["choice"] != "tie" and row.get("left")]
    return sum(row["choice"] == row["left"] for row in decided), len(decided)


def _in(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name the files that raters downloaded, or their folder")
    if not path.is_dir():
        return [path]
    inner = sorted(path.glob("*.jsonl"))
    if not inner:
        raise ValueError(f"{path} holds no .jsonl file: the page's raters download one each")
    return inner


def _lines(file: Path, needed: tuple[str, ...] = _NEEDED) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            place = f"{file.name}, line {number}"
            raise ValueError(f"{place} is not JSON ({error.msg}): is it what a page recorded?") from None
        missing = [key for key in needed if not isinstance(row, dict) or key not in row]
        if missing or row["choice"] not in CHOICES:
            what = f"lacks {', '.join(missing)}" if missing else f"has the choice {row['choice']!r}"
            raise ValueError(f"{file.name}, line {number} {what}: is it what a page of write_page recorded?")
        yield number, row
