"""What is to be generated: prompts, from a text file, a table or clips with captions."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..corpus import as_files, json_lines, load_clips, readable
from ..errors import ClipError
from ..video import content_id

#: Where the text may stand in a table whose column is not named.
_COLUMNS = ("prompt", "caption", "text")


@dataclass(frozen=True)
class Prompt:
    """One thing to ask of every candidate.

    Args:
        text: What is asked for.
        group: Of what kind it is; None where nothing was said.
        row: The rest of its row: the clip that a conditioned pipeline starts from is in it.
        key: What tells it from all others: the text, and the clip where there is one to start from.
    """

    text: str
    group: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    key: str = ""

    def noise_seed(self, seed: int, repeat: int) -> int:
        """Seed of the noise: of this prompt alone, whatever stands beside it in the list. In [0, 2³¹)."""
        digest = hashlib.sha256(f"{seed}\n{repeat}\n{self.key or self.text}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def slug(self) -> str:
        """The beginning of the text as the beginning of a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.text.lower()).strip("-")[:40].rstrip("-") or "clip"


def load_prompts(
    source: str | Path,
    *,
    prompt_column: str | None = None,
    group_column: str = "group",
    video_column: str = "video",
    split: str = "train",
    limit: int | None = None,
) -> list[Prompt]:
    """Read prompts.

    Args:
        source: A `.txt` with a prompt a line; a `.jsonl`, `.csv` or `.parquet` table; a folder of clips with captions
            as `load_clips` takes it; or the id of a dataset on the Hub.
        prompt_column: Of the text. None: `prompt`, `caption` or `text`, whichever is there.
        group_column: Of the kind of a prompt, where there is such a column.
        video_column: Of the clip from which a conditioned pipeline starts, where there is such a column.
        split: Of the dataset.
        limit: Take so many prompts: as many of each group, evenly over the whole where there are none. None: all.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: There is no such column, no prompt, or one that stands there twice.
    """
    path = Path(source).expanduser()
    if path.suffix == ".txt":
        if not path.is_file():
            raise FileNotFoundError(f"{source} does not exist: give a .txt with a prompt a line, a table or a dataset")
        prompts = [Prompt(line.strip(), key=line.strip()) for line in path.read_text("utf-8-sig").splitlines()]
    else:
        prompts = [
            _prompt(row, column, group_column, video_column)
            for rows, column in [_rows(source, path, prompt_column, video_column, split)]
            for row in rows
        ]
    prompts = [prompt for prompt in prompts if prompt.text]
    if not prompts:
        raise ValueError(f"{source} holds no prompt")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.key in seen:
            raise ValueError(
                f"{source} holds {prompt.text!r} twice: several clips of a prompt come from --seeds, as they are not "
                "independent; leave one of the two out"
            )
        seen.add(prompt.key)
    return prompts if limit is None or limit >= len(prompts) else _spread(prompts, limit)


def _spread(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """So many of the prompts: as many of each group, to within one; evenly over the whole where there is none."""
    met: Counter[str | None] = Counter()
    turns = []
    for prompt in prompts:
        turns.append(met[prompt.group])
        met[prompt.group] += 1
    if len(met) < 2:
        return [prompts[i * len(prompts) // limit] for i in range(limit)]
    first = sorted(range(len(prompts)), key=turns.__getitem__)[:limit]
    return [prompts[i] for i in sorted(first)]


def _rows(source: str | Path, path: Path, column: str | None, video_column: str, split: str) -> tuple[Any, str]:
    """Rows with their videos undecoded, and the column of the text."""
    from datasets import Dataset, load_dataset

    if path.suffix == ".jsonl" and path.is_file():
        rows: Any = json_lines(path)
        columns = list(dict.fromkeys(name for row in rows for name in row))
    else:
        if path.is_dir():
            rows = load_clips(path, split=split, video_column=video_column, caption_column=column or "caption")
            rows = rows if isinstance(rows, Dataset) else list(rows)
        elif path.suffix in (".csv", ".parquet", ".jsonl"):
            if not path.is_file():
                raise FileNotFoundError(f"{source} does not exist: give a table of prompts, a .txt or a dataset")
            kind = Dataset.from_csv if path.suffix == ".csv" else Dataset.from_parquet
            rows = readable(kind(str(path)), str(source))
        elif path.is_absolute() or str(source).startswith((".", "~")) or path.suffix == ".json":
            raise FileNotFoundError(f"{source} does not exist: give a .txt, a .jsonl, .csv or .parquet, or a dataset")
        else:
            rows = readable(load_dataset(str(source), split=split), str(source))
        if isinstance(rows, Dataset) and video_column in rows.column_names:
            rows = as_files(rows, video_column)
        columns = rows.column_names if isinstance(rows, Dataset) else list(rows[0] if rows else ())
    if not columns:
        raise ValueError(f"{source} holds no prompt")
    found = column or next((name for name in _COLUMNS if name in columns), "")
    if found not in columns:
        raise ValueError(
            f"{source} has no column {column or ' or '.join(_COLUMNS)}; its columns are {', '.join(columns)}. Name "
            "that of the prompts by --prompt_column"
        )
    return rows, found


def _prompt(row: Mapping[str, Any], column: str, group_column: str, video_column: str) -> Prompt:
    text, group = str(row.get(column) or "").strip(), row.get(group_column)
    key = text
    if row.get(video_column) is not None:
        try:
            key = f"{text}\n{content_id(row[video_column])}"
        except ClipError:  # a clip that cannot be read costs its rows when it is needed, if it is
            key = f"{text}\n{row[video_column]}"
    return Prompt(text, None if group in (None, "") else str(group), row, key)
