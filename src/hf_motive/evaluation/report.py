"""What came of a comparison: as JSON to read again, as Markdown and in a terminal to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.samples import write_text
from .intervals import FEW, Estimate

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console

#: In the folder of the results.
RESULTS, SCORES, TABLE = "results.json", "scores.parquet", "results.md"


@dataclass
class Report:
    """Candidates by metric.

    Args:
        against: The candidate that the others are compared with.
        candidates: Name -> what it is and how it generated.
        metrics: Name -> `backend`, and `higher_is_better`.
        values: Metric -> candidate -> its mean over all its clips.
        differences: Metric -> candidate -> how far it is above `against`, clip by clip of the same prompt and noise.
        preferences: Metric -> candidate -> how often its clip beats that of `against`.
        groups: Metric -> group of prompts -> candidate -> mean.
        prompts, seeds: How many, and clips of each.
        level: Of the intervals.
        failed: Candidate, prompt, what failed, and why, a row each.
        pages: Candidate -> the page on which people choose between it and `against`, in the folder.
        versions: Library -> version.
        folder: Where it was read from or written to.
    """

    against: str
    candidates: dict[str, dict[str, Any]]
    metrics: dict[str, dict[str, Any]]
    values: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    preferences: dict[str, dict[str, dict[str, Any]]]
    groups: dict[str, dict[str, dict[str, float]]]
    prompts: int
    seeds: int
    level: float
    failed: list[dict[str, Any]] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def scores(self) -> Dataset:
        """A row a clip: candidate, prompt, seed, file, and each metric's score."""
        from datasets import Dataset

        return Dataset.from_parquet(str(Path(self.folder or ".") / SCORES))

    def save(self, folder: str | Path) -> None:
        """Write `results.json` and `results.md`."""
        said = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_text(Path(folder) / RESULTS, json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False))
        write_text(Path(folder) / TABLE, self.to_markdown())
        self.folder = Path(folder)

    def to_markdown(self) -> str:
        lines = ["# Comparison", "", *_wrapped(self._what()), ""]
        names = list(self.candidates)
        lines += _markdown(["metric", *names], [[_label(self, m), *self._cells(self.values, m)] for m in self.values])
        if len(names) > 1:
            lines += ["", f"## Above {self.against}", "", *_wrapped(self._of_differences()), ""]
            others = [name for name in names if name != self.against]
            rows = [[_label(self, m), *self._cells(self.differences, m, others, sign=True)] for m in self.differences]
            lines += _markdown(["metric", *others], rows)
        if self.preferences:
            lines += ["", f"## Pairs of clips, against {self.against}", "", *_wrapped(self._of_pairs()), ""]
            lines += _markdown(["metric", "candidate", "won", "tied", "lost", "win rate"], list(self._pairs()))
        if self.groups:
            lines += ["", "## By group"]
            for metric, groups in self.groups.items():
                lines += ["", f"{_label(self, metric)}:", ""]
                rows = [[group, *(_plain(row.get(name)) for name in names)] for group, row in groups.items()]
                lines += _markdown(["group", *names], rows)
        if self.pages:
            lines += ["", "## For people to judge", ""]
            lines += _markdown(
                ["a", "b", "page"], [[name, self.against, f"[{page}]({page})"] for name, page in self.pages.items()]
            )
        lines += ["", "## How", ""]
        rows = [[name, said["place"], *_how(said)] for name, said in self.candidates.items()]
        lines += _markdown(["candidate", "from", "steps", "guidance"], rows)
        lines += ["", *_markdown(["metric", "by"], [[name, said["backend"]] for name, said in self.metrics.items()])]
        if self.failed:
            lines += ["", f"## Left out: {len(self.failed)}", ""]
            rows = [[str(row[name]) for name in ("candidate", "prompt", "what", "reason")] for row in self.failed]
            lines += _markdown(["candidate", "prompt", "what", "why"], rows)
        return "\n".join(lines)

    def print(self, console: Console | None = None) -> None:
        """The same, shorter, for people at a terminal."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = console or Console()
        plain: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
        console.print(f"\n{self._what()}\n", **plain)
        names = list(self.candidates)
        others = [name for name in names if name != self.against]
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("", *names):
            table.add_column(escape(column), no_wrap=not column, overflow="fold")  # a number is never cut
        for metric, found in self.values.items():
            table.add_row(f"[bold]{_label(self, metric)}[/bold]", *(_cell(found.get(name)) for name in names))
            table.add_row("", *(_ends(found.get(name)) for name in names), style="dim")
            if others:
                apart = self.differences[metric]
                table.add_row(f"  above {escape(self.against)}", *(_cell(apart.get(name), True) for name in names))
                table.add_row("", *(_ends(apart.get(name), True) for name in names), style="dim")
            if metric in self.preferences:
                pairs = {row[1]: f"{row[2]} won, {row[3]} tied, {row[4]} lost" for row in self._pairs(metric)}
                table.add_row(f"  against {escape(self.against)}", *(pairs.get(name, "") for name in names))
        console.print(table)
        if others:
            console.print(self._of_differences(), **plain)
        for name, page in self.pages.items():
            console.print(f"{page}: {name} (a) against {self.against} (b), for people to judge", **plain)
        if self.failed:
            first = self.failed[0]
            console.print(
                f"{len(self.failed)} left out, e.g. {first['candidate']}, {first['prompt']!r}: {first['reason']}",
                **plain,
            )

    # ------------------------------------------------------------------------------------------------------- words

    def _what(self) -> str:
        clips = f"{self.prompts} prompt{'s' * (self.prompts != 1)}, {self.seeds} clip{'s' * (self.seeds != 1)} of each"
        few = f" So few prompts say little of others: {FEW} are the least to build on." if self.prompts < FEW else ""
        return (
            f"{clips}, from the same noise for every candidate. In brackets where the mean would fall with other "
            f"prompts of the kind, {self.level:.0%} (bootstrap over prompts).{few} ↑ higher is better, ↓ lower."
        )

    def _of_differences(self) -> str:
        return (
            f"Differences are means over pairs of clips, prompt and noise the same; * where the {self.level:.0%} "
            "interval leaves zero out. Of many metrics and candidates, one in twenty would by chance."
            if math.isclose(self.level, 0.95)
            else f"Differences are means over pairs of clips, prompt and noise the same; * where the {self.level:.0%} "
            "interval leaves zero out."
        )

    def _of_pairs(self) -> str:
        return (
            "How often the candidate's clip has the better score than the other's, prompt and noise the same; ties "
            "count half of a win in the win rate."
        )

    def _cells(
        self,
        table: Mapping[str, Mapping[str, Estimate]],
        metric: str,
        names: Sequence[str] | None = None,
        *,
        sign: bool = False,
    ) -> list[str]:
        found = [table[metric].get(name) for name in (self.candidates if names is None else names)]
        return [f"{_cell(one, sign)} {_ends(one, sign)}".strip() or "–" for one in found]

    def _pairs(self, metric: str | None = None) -> Iterator[list[str]]:
        for name in self.preferences if metric is None else [metric]:
            for candidate, said in self.preferences[name].items():
                ends = f" [{said['low']:.0%}, {said['high']:.0%}]" if said["low"] is not None else ""
                rate = f"{said['win_rate']:.0%}{ends}"
                yield [_label(self, name), candidate, *(str(said[what]) for what in ("win", "tie", "loss")), rate]


def load_report(folder: str | Path) -> Report:
    """The results in a folder that `evaluate` wrote.

    Raises:
        FileNotFoundError: There are none: the job has not ended yet.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {RESULTS}: its job has not ended. Run the same `hf-motive evaluate` again, it goes on "
            "where it stopped"
        )
    said = json.loads(path.read_text(encoding="utf-8"))
    for table in ("values", "differences"):
        said[table] = {
            metric: {name: Estimate(**value) for name, value in row.items()} for metric, row in said[table].items()
        }
    return Report(**said, folder=Path(folder))


def _label(report: Report, metric: str) -> str:
    return f"{metric} {'↑' if report.metrics[metric]['higher_is_better'] else '↓'}"


def _how(said: Mapping[str, Any]) -> list[str]:
    settings = said["settings"]
    return [str(settings["steps"]), "its own default" if settings["guidance"] is None else f"{settings['guidance']:g}"]


def _cell(found: Estimate | None, sign: bool = False) -> str:
    """A value to the digits that its interval leaves meaning to; with a star where a difference is none by chance."""
    if found is None:
        return ""
    star = "*" if sign and found.is_apart else ""
    return f"{found.value:{'+' if sign else ''}{_style(found)}}{star}"


def _ends(found: Estimate | None, sign: bool = False) -> str:
    if found is None or found.low is None:
        return ""
    style = f"{'+' if sign else ''}{_style(found)}"
    return f"[{found.low:{style}}, {found.high:{style}}]"


def _style(found: Estimate) -> str:
    half = 0.0 if found.low is None or found.high is None else (found.high - found.low) / 2
    return f".{max(0, min(6, 1 - math.floor(math.log10(half))))}f" if half > 0 else ".4g"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), "|---" * len(header) + "|", *map(line, rows)]


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 119)
