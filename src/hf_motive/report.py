"""A scored dataset, as a person wants to read it: tables in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from .corpus import clip_name
from .influence import selection_size
from .selection import best, without_worst
from .transforms import error_column, group_columns

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console

_GROUP_PREFIX = "influence_"
_CONFIDENCE = 0.9
_MOST_TABLES = 12  # what a person scrolls through


def print_report(
    scored: Dataset,
    *,
    console: Console | None = None,
    rows: int = 3,
    fraction: float = 0.1,
    group_column: str | None = None,
    video_column: str = "video",
    caption_column: str = "caption",
) -> None:
    """Print which clips help and which do not, a table for each group of queries and one for all of them.

    Args:
        scored: What `MotiveAttributor.influence` returned.
        console: Where to print; None for the terminal.
        rows: Clips to show at either end.
        fraction: Share of the clips one means to keep.
        group_column: Where the clips themselves carry the queries' group (the lab's clips know their motion), the
            share of the top `fraction` that is of the query's own group is shown too.
        video_column: Column of the videos: their file names stand in the tables.
        caption_column: Column of the captions.
    """
    from rich.console import Console

    console = console or Console()
    table = scored.remove_columns(video_column).to_pandas()
    table["clip"] = [clip_name(video, row) for row, video in enumerate(scored[video_column])]
    ranked = table[table["influence_status"] == "ok"]
    groups = group_columns(table.columns)
    console.print(
        "\nInfluence is the cosine between what training on a clip and on the queries would do to the weights, "
        "counting only what moves:\n+1 pulls the same way, 0 has nothing to do with it, -1 pulls the other way.",
        highlight=False,
        soft_wrap=True,
    )
    for column in groups[:_MOST_TABLES]:
        _group(console, ranked, column, rows, caption_column)
    if len(groups) > _MOST_TABLES:
        left = len(groups) - _MOST_TABLES
        console.print(
            f"\n… and {left} more in the columns influence_…: group the queries by --group_column", style="bold"
        )
    _overall(console, ranked, rows, caption_column)
    _certainty(console, scored, ranked, fraction)
    _left_out(console, table)
    if group_column in table.columns and groups:
        _agreement(console, ranked, groups, fraction, group_column)


def _table(console, title: str, *columns: str):
    """A table without lines, its title above it: a title of rich's own is wrapped to the table's width."""
    from rich.table import Table

    console.print(f"\n{title}", style="bold", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand="caption" in columns)
    for column in columns:
        right = column in ("rank", "influence", "votes", "clips", "share", "by chance")
        table.add_column(
            column,
            justify="right" if right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if column == "caption" else None,  # takes what width is left, and is cut where there is too little
        )
    return table


def _ends(frame, rows: int):
    """The first and last rows of a sorted frame, with their place, without overlap."""
    places = list(range(len(frame)))
    top = places[:rows]
    bottom = places[max(rows, len(places) - rows) :]
    return [("▲", i, frame.iloc[i]) for i in top] + [("▼", i, frame.iloc[i]) for i in bottom]


def _group(console, ranked, column, rows, caption_column) -> None:
    from rich.markup import escape

    name = column.removeprefix(_GROUP_PREFIX)
    frame = ranked.sort_values(column, ascending=False, kind="stable")
    table = _table(console, f"What teaches “{name}” most ▲ and least ▼", "", "rank", "influence", "clip", "caption")
    for sign, place, row in _ends(frame, rows):
        influence = _with_error(f"{row[column]:+.3f}", row, column, "{:.3f}")
        table.add_row(sign, str(place + 1), influence, escape(row["clip"]), escape(str(row.get(caption_column, ""))))
    console.print(table)


def _with_error(score: str, row, column: str, form: str) -> str:
    """A score and its standard error, where several draws show one."""
    error = row.get(error_column(column))
    return score if error is None else f"{score} ± {form.format(error)}"


def _overall(console, ranked, rows, caption_column) -> None:
    from rich.markup import escape

    frame = ranked.sort_values("influence_rank", kind="stable")
    table = _table(console, "All queries together, by votes", "", "rank", "votes", "influence", "clip", "caption")
    for sign, place, row in _ends(frame, rows + 2):
        table.add_row(
            sign,
            _with_error(str(place + 1), row, "influence_rank", "{:.0f}"),
            str(int(row["influence_votes"])),
            _with_error(f"{row['influence']:+.3f}", row, "influence", "{:.3f}"),
            escape(row["clip"]),
            escape(str(row.get(caption_column, ""))),
        )
    console.print(table)


def _certainty(console, scored, ranked, fraction) -> None:
    keep = selection_size(len(ranked), fraction)
    if error_column("influence_rank") not in ranked.columns:
        console.print(
            "\nHow sure these ranks are, one (timestep, noise) draw cannot say: --noise_draws 4 can, at four times "
            "the cost.",
            highlight=False,
            soft_wrap=True,
        )
        return
    # By influence: votes have a threshold each, and are less steady (benchmarks/results/intervals.md).
    numbers = scored.select_columns(["influence", error_column("influence"), "influence_draws"])
    top = len(best(numbers, fraction, by="influence", confidence=_CONFIDENCE))
    bottom = len(ranked) - len(without_worst(numbers, fraction, by="influence", confidence=_CONFIDENCE))
    draws = int(ranked["influence_draws"].iloc[0])
    console.print(
        f"\n±: one standard error over {draws} draws. By influence, and with {_CONFIDENCE:.0%} confidence each, {top} "
        f"of the best {keep} clips are among the best {keep}, and {bottom} of the worst {keep} among the worst: "
        f"`hf-motive select --by influence --confidence {_CONFIDENCE}`.",
        highlight=False,
        soft_wrap=True,
    )


def _left_out(console, table) -> None:
    left = table[table["influence_status"] != "ok"]
    console.print(f"\n{len(table) - len(left)} clips ranked, {len(left)} left out", style="bold", highlight=False)
    for status, count in Counter(left["influence_status"]).most_common():
        reason = left[left["influence_status"] == status]["influence_reason"].iloc[0]
        console.print(f"  {count} {status}: e.g. {reason}", highlight=False, markup=False, soft_wrap=True)


def _agreement(console, ranked, groups, fraction, group_column) -> None:
    """How often a top clip is of the query's own kind: what to expect by chance stands beside it."""
    from rich.markup import escape

    keep = selection_size(len(ranked), fraction)
    table = _table(
        console,
        f"A check, as the clips' own {group_column} is known: its share of the top {keep} clips for each",
        group_column,
        "clips",
        "share",
        "by chance",
    )
    shares = []
    for column in groups:
        name = column.removeprefix(_GROUP_PREFIX)
        same = ranked[group_column].astype(str) == name
        if not same.any():
            continue
        top = ranked.sort_values(column, ascending=False, kind="stable").head(keep)
        share = (top[group_column].astype(str) == name).mean()
        shares.append((share, same.mean()))
        table.add_row(escape(name), str(int(same.sum())), f"{share:.0%}", f"{same.mean():.0%}")
    if shares:
        mean, chance = (math.fsum(values) / len(shares) for values in zip(*shares, strict=True))
        table.add_row("mean", "", f"{mean:.0%}", f"{chance:.0%}", style="bold")
        console.print(table)
