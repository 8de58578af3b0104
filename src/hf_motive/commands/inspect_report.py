"""What `hf-motive inspect` found, as a person wants to read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .inspect import Comparison, Distribution, IndexDescription, ScoredDescription

if TYPE_CHECKING:
    from rich.console import Console

_BAR = 40
_MOST_GROUPS = 20


def print_description(
    found: IndexDescription | ScoredDescription, *, settings: bool = True, console: Console | None = None
) -> None:
    """Print what an index or a scored dataset is; of a run both. `settings`: of an index, each of them."""
    console = console or _console()
    if isinstance(found, ScoredDescription):
        _scored(console, found)
        if found.index:
            _index(console, found.index, "its index", settings)
    else:
        _index(console, found, "a gradient index", settings)


def print_comparison(found: Comparison, source: str, other: str, console: Console | None = None) -> None:
    """Print whether two are comparable, and how far they agree."""
    console = console or _console()
    mark = {True: "✓", False: "✗", None: "?"}[found.comparable]
    console.print(f"\n{mark} {source} and {other}: {found.verdict}", style="bold")
    for name, (left, right) in found.differences.items():
        console.print(f"    {name}: {left} in the first, {right} in the second")
    if found.shared is None:
        console.print("  they cannot be matched row by row: one has no influence_id")
    else:
        console.print(f"  {found.shared} clips are in both, by id")
    if found.spearman is not None:
        same, chance = found.top_shared / found.top, found.top / found.both_ranked
        console.print(
            f"  {found.both_ranked} are ranked in both: Spearman {found.spearman:+.3f}; of the top {found.top} "
            f"{same:.0%} is the same (by chance {chance:.0%})"
        )


def _scored(console: Console, found: ScoredDescription) -> None:
    console.print(f"\n{found.source}: {'a run' if found.index else 'a scored dataset'}", style="bold")
    if found.selection:
        _line(console, "selection", found.selection)
    _line(console, "rows", f"{found.rows}: {_counts(found.statuses)}")
    for status, reason in found.reasons.items():
        _line(console, "", f"{status}, e.g. {reason}")
    if found.bytes is not None:
        _line(console, "on disk", _bytes(found.bytes))
    _line(console, "settings", ", ".join(found.influence_settings) or "not recorded")
    _line(console, "queries", ", ".join(found.influence_queries) or "not recorded")
    _line(console, "columns", ", ".join(found.columns))
    if found.motion:
        _line(console, "motion", f"pixels a frame: {_spread(found.motion, '.2f')}")
    if found.influence:
        _histogram(console, found.influence)
    if found.groups:
        _groups(console, found.groups)


def _index(console: Console, found: IndexDescription, what: str, settings: bool) -> None:
    console.print(f"\n{found.source}: {what}", style="bold")
    _line(console, "rows", f"{found.rows}: {_counts(found.statuses) or 'none yet'}")
    _line(console, "features", f"{found.dim} numbers each; {_bytes(found.bytes)} on disk")
    if found.motion:
        _line(console, "motion", f"pixels a frame: {_spread(found.motion, '.2f')}")
    _line(console, "digest", found.digest)
    for shard in found.shards:
        said = [f"{shard.rows} lines", "being written" if shard.being_written else "no writer"]
        if shard.torn and not shard.being_written:
            said.append(f"{shard.torn} bytes behind the last are torn, by a crash: the next run cuts them off")
        _line(console, f"shard {shard.name}", ", ".join(said))
    _line(console, "settings", f"{found.settings_digest}: features of the same may be compared")
    for name, value in _flat(found.settings if settings else {}):
        console.print(f"      {name}: {value}")
    for recorded in found.written_by:
        _line(console, "written by", ", ".join(f"{name} {value}" for name, value in recorded.items()))


def _histogram(console: Console, found: Distribution) -> None:
    console.print(f"\n  influence: {_spread(found, '+.3f')}, mean {found.mean:+.3f}")
    most, form = max(found.counts), "+7.3f" if found.edges[1] - found.edges[0] >= 0.001 else "+10.3e"
    for left, right, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        bar = "█" * round(_BAR * count / most) or "▏" * (count > 0)
        console.print(f"    {left:{form}} … {right:{form}} {bar} {count}", style="red" if left < 0 else "green")
    share = found.negative / found.count
    console.print(
        f"    {found.negative} of {found.count} ({share:.0%}) are negative"
        + (": training on them works against what the queries show" if found.negative else "")
    )


def _groups(console: Console, groups: Mapping[str, Distribution | None]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), title_justify="left")
    table.add_column("influence on")
    for column in ("mean", "least", "median", "most", "negative"):
        table.add_column(column, justify="right")
    for name, found in list(groups.items())[:_MOST_GROUPS]:
        if found:
            numbers = (f"{number:+.3f}" for number in (found.mean, found.minimum, found.median, found.maximum))
            table.add_row(name, *numbers, str(found.negative))
    console.print()
    console.print(table)
    if len(groups) > _MOST_GROUPS:
        console.print(f"    … and {len(groups) - _MOST_GROUPS} more")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _line(console: Console, name: str, text: str) -> None:
    console.print(f"  {name:<11} {text}")


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.items())


def _spread(found: Distribution, form: str) -> str:
    parts = (found.minimum, found.low, found.median, found.high, found.maximum)
    least, low, median, high, most = (format(part, form) for part in parts)
    return f"{least} to {most}, median {median}, eight of ten in {low} to {high}"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
