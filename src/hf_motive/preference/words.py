"""A comparison in words: Markdown for documents, lines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparison import Comparison
    from .intervals import Interval


def percent(ends: Interval | None, signed: bool = False) -> str:
    """`70.9 % to 77.0 %`; a dash where there is no interval."""
    if ends is None:
        return "–"
    style = "+.1f" if signed else ".1f"
    return f"{100 * ends.low:{style}} % to {100 * ends.high:{style}} %"


def _rows(found: Comparison, a: str, b: str) -> list[tuple[str, str, str, str, str]]:
    names = {
        "win": f"{a} better",
        "tie": "no difference",
        "loss": f"{b} better",
        "win_rate": f"{a}'s win rate, ties as half",
        "net": f"{a} better less {b} better",
    }
    counts = {"win": found.preference.win, "tie": found.preference.tie, "loss": found.preference.loss}
    rows = []
    for share, name in names.items():
        value = 100 * found.preference.value(share)  # type: ignore[arg-type]
        kinds = (found.intervals, found.bootstrap, found.independent)
        ends = [percent(kind[share], share == "net") for kind in kinds]  # type: ignore[index]
        shown = f"{value:+.1f} %" if share == "net" else f"{value:.1f} %"
        rows.append((name, str(counts.get(share, "")), f"{shown}", *ends))
    return rows  # type: ignore[return-value]


def _facts(found: Comparison, a: str, b: str) -> str:
    won, even, lost = found.prompts_won
    raters = f", {found.raters} raters" if found.raters > 1 else ""
    worth = found.n / found.design_effect
    return (
        f"{_many(found.n, 'judgement')} of {_many(found.prompts, 'prompt')}{raters}. Intervals at "
        f"{100 * found.level:g} %. Design effect {found.design_effect:.2f}: worth "
        f"{_many(round(worth), 'independent judgement')}. "
        f"Prompts: {a} wins {won}, {b} wins {lost}, {even} even; exact sign test over prompts p = {found.p_value:.2g}."
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def markdown(found: Comparison, a: str, b: str) -> str:
    """A table, the facts beneath it, and the notes."""
    head = ("", "n", "share", "interval", "bootstrap", "if all were independent")
    lines = [head, ("---", "---:", "---:", "---", "---", "---"), *_rows(found, a, b)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "".join(f"\n\nNote: {note}." for note in found.notes)
    return f"{table}\n\n{_facts(found, a, b)}{notes}\n"


def text(found: Comparison, a: str, b: str) -> str:
    """Aligned columns: share and the interval to report."""
    rows = [row[:4] for row in _rows(found, a, b)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{name:{widths[0]}}  {count:>{widths[1]}}  {share:>{widths[2]}}  {ends}".rstrip()
        for name, count, share, ends in rows
    ]
    return "\n".join([*lines, _facts(found, a, b), *(f"note: {note}" for note in found.notes)])
