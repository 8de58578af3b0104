"""The clips that one keeps, by a column, as files or as a table: `hf-motive select`."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .sources import (
    COLUMN_HELP,
    Source,
    columns_of,
    find,
    job_of,
    load_scored,
    published_name,
    read_selection,
    selected_from,
    selection_path,
)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_SOURCE = (
    "The output folder of `hf-motive score`, a scored .parquet, a saved dataset, a folder that select wrote, or the "
    "id of a scored dataset on the Hub."
)

_SAID = ("influence", "influence_status", "influence_reason", "influence_id")


@dataclass
class SelectArguments:
    """Which clips to take, and where they go."""

    source: str = field(metadata={"help": _SOURCE})
    output: str = field(metadata={"help": "Folder for the clips; a name in .parquet for a table."})
    by: str = field(
        default="influence_rank",
        metadata={
            "help": "Column to choose by: a rank is best when least, every other number when largest (influence, "
            "influence_<group>, motion_mean, rival_random, ...).",
            "metavar": "COLUMN",
        },
    )
    fraction: float = field(default=0.1, metadata={"help": "Share of the rows that have a score, rounded up."})
    count: int | None = field(default=None, metadata={"help": "So many rows, in place of the fraction."})
    worst: bool = field(default=False, metadata={"help": "The worst instead, worst first: to look at."})
    drop_worst: float | None = field(
        default=None,
        metadata={
            "help": "All rows that have a score but the worst share, in place of the fraction.",
            "metavar": "FRACTION",
        },
    )
    confidence: float | None = field(
        default=None,
        metadata={
            "help": "Of the best only those that are certain to be among them, as by 0.9; with --drop_worst, leave "
            "out only those that are certain to be among the worst. It takes scores of several draws (score "
            "--noise_draws 4), and --by influence finds more of them than ranks do."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "The best --count of each value of this column (a caption, a motion).", "metavar": "COLUMN"},
    )
    format: Literal["videofolder", "parquet", "saved"] | None = field(
        default=None,
        metadata={
            "help": "'videofolder': metadata.jsonl and the clips, what load_dataset and trainers read. 'parquet' and "
            "'saved' (load_from_disk): the rows, with clips where they lie. None: parquet where the output is named "
            "so, else videofolder."
        },
    )
    caption_files: bool = field(
        default=False, metadata={"help": "Also each caption in a .txt beside its clip (videofolder)."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what an earlier select left at the output."})
    split: str = field(default="train", metadata={"help": "Split of a source that has several."})
    video_column: str | None = field(
        default=None, metadata={"help": f"Column of the video. {COLUMN_HELP.format('video')}", "metavar": "COLUMN"}
    )
    caption_column: str | None = field(
        default=None, metadata={"help": f"Column of the caption. {COLUMN_HELP.format('caption')}", "metavar": "COLUMN"}
    )

    def __post_init__(self):
        if Path(self.output).suffix in (".csv", ".json", ".jsonl"):
            raise ValueError(f"--output {self.output}: a table is written as .parquet, clips as a folder")
        if self.format is None:
            self.format = "parquet" if self.output.endswith(".parquet") else "videofolder"
        if (self.format == "parquet") != self.output.endswith(".parquet"):
            raise ValueError(f"--format {self.format} does not fit --output {self.output}: a table is named .parquet")
        for name, share in (("fraction", self.fraction), ("drop_worst", self.drop_worst)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"--{name} is a share: more than 0 and at most 1, got {share}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"--count must be at least 1, got {self.count}")
        if self.drop_worst is not None and (self.worst or self.count or self.group_column):
            raise ValueError("--drop_worst says by itself what is kept: leave out --worst, --count and --group_column")
        if self.confidence is not None and (self.worst or self.group_column):
            raise ValueError("--confidence is about the best, or the worst to drop: leave out --worst, --group_column")
        if self.group_column is not None and (self.worst or not self.count):
            raise ValueError("--group_column takes the best of each value: say how many by --count, without --worst")
        if self.caption_files and self.format != "videofolder":
            raise ValueError("--caption_files belong to --format videofolder")


def select(arguments: SelectArguments) -> Path:
    """Write the chosen rows, and `selection.json` that says how they were chosen; print what was kept.

    Returns:
        The folder or file.

    Raises:
        FileExistsError: Something is at the output, and `overwrite` is False or it is not a selection.
        ValueError: No such column, or no row has a score.
    """
    import datasets

    datasets.disable_progress_bars()
    source = find(arguments.source)
    columns = columns_of(source, arguments.video_column, arguments.caption_column)
    _check_output(Path(arguments.output).expanduser(), arguments.overwrite)
    scored = load_scored(source, arguments.split, columns)
    table = None
    if source.kind == "run" and source.scored is not None and not hasattr(scored, "select"):
        table = datasets.Dataset.from_parquet(source.scored)  # the stream's scores, without reading its clips
    kept, numbers = choose(scored, arguments, table)
    earlier, origin = read_selection(source) or {}, arguments.source
    if earlier and Path(origin).expanduser().resolve() == Path(arguments.output).expanduser().resolve():
        origin = selected_from(source, earlier)  # in place of itself
    output = _write(kept, arguments, columns)
    if earlier:
        numbers["selection"] = f"{numbers['selection']} These were chosen before: {earlier['selection']}"
    selection = {
        "selection": numbers["selection"],
        "source": _relative(origin, selection_path(output).parent),
        "corpus": source.name if source.kind == "hub" else earlier.get("corpus") or _corpus(source),
        **{name: numbers[name] for name in ("by", "rows", "scored", "kept", "cut_off")},
        **columns,
    }
    path = selection_path(output)
    path.write_text(json.dumps(selection, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{numbers['kept']} of {numbers['rows']} rows kept in {arguments.output}. {numbers['selection']}")
    print(f"Cut-off: {numbers['cut_off_text']}")
    if numbers["unscored"]:
        print(f"Without a score, and never taken: {numbers['rows'] - numbers['scored']} of {numbers['rows']} rows")
        for status, (count, reason) in numbers["unscored"].items():
            print(f"  {count} {status}" + (f": e.g. {reason}" if reason else ""))
    return output


def choose(
    scored: Dataset | IterableDataset, arguments: SelectArguments, table: Dataset | None = None
) -> tuple[Dataset | IterableDataset, dict[str, Any]]:
    """Choose rows.

    Args:
        scored: With the columns of scores.
        arguments: How to choose.
        table: The same rows without their videos, where `scored` is a stream and they are known.

    Returns:
        The rows, and of them `rows`, `scored`, `kept` (how many), `by`, `cut_off` (the score of the last one),
        `cut_off_text` and `selection` (for people), and `unscored`: status -> how many, and the reason of one.
    """
    from ..influence import selection_size
    from ..selection import best, best_of_each, without_worst
    from ..transforms import error_column

    by, group = arguments.by, arguments.group_column
    for name in (by, group):
        if name is not None and name not in (scored.column_names or ()):
            raise ValueError(f"no column {name!r} to choose by; there are {', '.join(scored.column_names or ())}")
    doubt = () if arguments.confidence is None else (error_column(by), "influence_draws")
    table = _scores_of(scored if table is None else table, (by, group, *doubt, *_SAID))
    table = table.add_column("_row", range(len(table)))

    def chosen(dataset: Any) -> Any:
        if group is not None and arguments.count is not None:
            return best_of_each(dataset, arguments.count, group, by=by)
        if arguments.drop_worst is not None:
            return without_worst(dataset, arguments.drop_worst, by=by, confidence=arguments.confidence)
        return best(dataset, arguments.fraction, count=arguments.count, by=by, confidence=arguments.confidence)

    if arguments.worst:
        order = best(table, 1.0, by=by)["_row"][::-1]
        few = table.select(order[: arguments.count or selection_size(len(order), arguments.fraction)])
    else:
        few = chosen(table)
    if not len(few) and arguments.confidence is not None:
        raise ValueError(
            f"of no row is it certain to {100 * arguments.confidence:.3g} % that it is among the best: score with "
            "more draws, take a larger share, choose --by influence (steadier than ranks, which go by votes), or "
            "leave out --confidence"
        )
    if not len(few):
        raise ValueError("nothing is left: every row that has a score is among the worst")
    kept = _these(scored, few["_row"][:], table)
    scores = few[by][:]
    have = best(table, 1.0, by=by).num_rows
    unscored = _unscored(table, by)
    last = _last(scores, by, arguments.worst)
    text = f"{by} {last:.6g}"
    if by == "influence_rank" and "influence" in few.column_names:
        text += f", influence {few['influence'][scores.index(last)]:+.4f}"
    return kept, {
        "rows": len(table),
        "scored": have,
        "kept": len(few),
        "by": by,
        "cut_off": last,
        "cut_off_text": f"{text} is the {'best' if arguments.worst else 'worst'} that was kept",
        "selection": _sentence(arguments, len(few), have, len(table), ordered=hasattr(scored, "select")),
        "unscored": unscored,
    }


# Inside ---------------------------------------------------------------------------------------------------------


def _scores_of(scored: Any, names: tuple[str | None, ...]) -> Dataset:
    """These columns as a dataset of its own, of a stream too."""
    from datasets import Dataset

    known = [name for name in dict.fromkeys(names) if name in (scored.column_names or ())]
    if hasattr(scored, "select"):
        return scored.select_columns(known)
    stream = scored.select_columns(known)
    return Dataset.from_list(list(stream), features=stream.features)


def _these(scored: Any, rows: list[int], table: Dataset) -> Any:
    """Rows by their place; of a stream by their ids, in its order."""
    if hasattr(scored, "select"):
        return scored.select(rows)
    ids = set(table.select(rows)["influence_id"])
    return scored.filter(
        lambda identity, status: identity in ids and status != "duplicate",
        input_columns=["influence_id", "influence_status"],
    )


def _unscored(table: Dataset, by: str) -> dict[str, tuple[int, str]]:
    scores = table[by][:]
    rows = [row for row, score in enumerate(scores) if score is None or score != score]
    if "influence_status" not in table.column_names:
        return {"without a score": (len(rows), "")} if rows else {}
    statuses, reasons = table["influence_status"][:], None
    if "influence_reason" in table.column_names:
        reasons = table["influence_reason"][:]
    counts = Counter(statuses[row] if statuses[row] != "ok" else f"no {by}" for row in rows)
    found = {}
    for status, count in counts.most_common():
        row = next((row for row in rows if statuses[row] == status), None)
        found[str(status)] = (count, (reasons[row] or "") if reasons is not None and row is not None else "")
    return found


def _last(scores: list[float], by: str, worst: bool) -> float:
    from ..selection import RANKS

    return max(scores) if (by in RANKS) != worst else min(scores)


def _sentence(arguments: SelectArguments, kept: int, have: int, rows: int, *, ordered: bool) -> str:
    side = "worst" if arguments.worst else "best"
    if arguments.group_column is not None:
        what = f"The best {arguments.count} of each {arguments.group_column} by {arguments.by}"
    elif arguments.drop_worst is not None:
        what = f"All but the worst {100 * arguments.drop_worst:.3g} % by {arguments.by}"
    else:
        share = f"{100 * arguments.fraction:.3g} %" if arguments.count is None else str(arguments.count)
        what = f"The {side} {share} by {arguments.by}, {f'{side} first' if ordered else 'in the order of the corpus'}"
    if arguments.confidence is not None:
        what += f", each with {100 * arguments.confidence:.3g} % confidence"
    return f"{what}: {kept} of {have} rows with this score, of {rows} in all."


def _check_output(output: Path, overwrite: bool) -> None:
    """Before anything is read."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists: name another --output, or replace it by --overwrite")
    if not selection_path(output).exists():
        raise FileExistsError(
            f"{output} was not written by select (there is no {selection_path(output)}) and is never replaced: name "
            "another --output"
        )


def _corpus(source: Source) -> str | None:
    return published_name(job_of(source).get("corpus"))


def _relative(source: str, folder: Path) -> str:
    """So that both may move together, and no folder of this machine is named."""
    path = Path(source).expanduser()
    return os.path.relpath(path.resolve(), folder.resolve()) if path.exists() else source


def _write(kept: Any, arguments: SelectArguments, columns: dict[str, Any]) -> Path:
    from datasets import Dataset

    output = Path(arguments.output).expanduser()
    if arguments.format == "videofolder":
        from ..export import write_videofolder

        return write_videofolder(
            kept, output, caption_files=arguments.caption_files, overwrite=arguments.overwrite, **columns
        )
    if not isinstance(kept, Dataset):
        raise ValueError(
            f"{arguments.source} is a stream, whose clips have no place of their own: --format videofolder copies them"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.name}.part")
    if part.is_dir():
        shutil.rmtree(part)
    if arguments.format == "parquet":
        kept.to_parquet(str(part))
        os.replace(part, output)
    else:
        kept.save_to_disk(str(part))
        if output.exists():
            shutil.rmtree(output)
        os.replace(part, output)
    return output
