"""From finished runs to docs/results.md: means with intervals, preferences, what was chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_motive.corpus import json_lines
from hf_motive.metrics.flow_statistics import frechet_distance

from .choosing import ASKING, GENERALIST, METHODS
from .judging import measured, reference
from .world import KINDS

EPOCHS = "full, equal epochs"
ROUNDS = 2000


class Results:
    """All finished runs of a folder.

    A clip's row is known by (method, target, motion, seed, prompt's place): a query-independent method stands in for
    every specialist as well, on the prompts of its motion.
    """

    def __init__(self, output: Path):
        self.output = output
        self.corpus = json_lines(output / "corpus" / "metadata.jsonl")
        self.runs = {}
        for path in sorted((output / "models").glob("*/run.json")):
            if not (path.parent / "measured.json").exists():
                continue
            facts = json.loads(path.read_text("utf-8"))
            facts["rows"], facts["flow"] = measured(path.parent)
            self.runs[facts["method"], facts["target"], facts["seed"]] = facts

    def run(self, method: str, target: str, seed: int) -> dict[str, Any] | None:
        """The run that stands for a method, whoever it was chosen for."""
        return self.runs.get((method, target if method in ASKING else GENERALIST, seed))

    def seeds(self, method: str, target: str) -> list[int]:
        return sorted(
            {s for m, t, s in self.runs if m == method and t == (target if method in ASKING else GENERALIST)}
        )

    def rows(self, method: str, target: str, seed: int) -> list[dict[str, Any]]:
        """Rows on what the target is asked: all motions for the generalist, a specialist's own."""
        run = self.run(method, target, seed)
        return [row for row in run["rows"] if target in (GENERALIST, row["motion"])] if run else []


def interval(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """Mean of all values, and its 95 % interval by resampling groups (seeds), and values (prompts) within each."""
    groups = [np.asarray(g, float) for g in groups if len(g)]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(ROUNDS):
        drawn = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        means.append(np.mean([g[rng.integers(len(g), size=len(g))].mean() for g in drawn]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([g.mean() for g in groups])), float(low), float(high)


def paired(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean difference and its interval; value k of a group was asked for, and drawn from the noise, as the other's."""
    return interval([np.asarray(a, float) - np.asarray(b, float) for a, b in zip(ours, theirs, strict=True)])


#: What a column of the table shows: name, what it says of a row, how it is written.
COLUMNS = {
    "moves as asked": (lambda row: float(row["seen"] == row["motion"]), "{:.0%}"),
    "probability of the asked motion": (lambda row: row["probability"], "{:.2f}"),
    "object permanence ↑": (lambda row: row["object_permanence"], "{:.3f}"),
    "temporal jitter ↓": (lambda row: row["temporal_jitter"], "{:.3f}"),
    "warp smoothness ↑": (lambda row: row["warp_smoothness"], "{:.4f}"),
    "flow dynamic degree": (lambda row: row["flow_dynamic_degree"], "{:.2f}"),
}
#: By how much the probability of the asked motion must differ for a preference; less is a tie.
TIE = 0.1


def write_report(output: Path, size: Any, path: Path) -> None:
    """All tables of the runs that are finished, as Markdown."""
    results = Results(output)
    if not results.runs:
        raise SystemExit(f"no run is finished in {output}: run `python benchmarks/curation.py` first")
    parts = [_preface(results, size)]
    for target in (GENERALIST, *size.specialists):
        if any(results.seeds(method, target) for method in ASKING):
            parts.append(_target(results, target))
    if all(results.seeds("Motive", target) for target in size.specialists):
        parts.append(_specialists(results, size))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _preface(results: Results, size: Any) -> str:
    seeds = sorted({seed for _, _, seed in results.runs})
    seen = round(0.1 * size.corpus) * size.epochs
    return PREFACE.format(
        seeds=", ".join(map(str, seeds)),
        runs=len(results.runs),
        corpus=size.corpus,
        kinds=", ".join(f"{share:.0%} {kind}" for kind, share in KINDS.items()),
        tenth=round(0.1 * size.corpus),
        epochs=size.epochs,
        seen=seen,
        all_seen=size.corpus * size.epochs,
        queries=size.queries,
        base_steps=size.base_steps,
        base_clips=size.base_clips,
        prompts=size.prompts,
        steps=size.sampling_steps,
        lr=size.lr,
        batch=size.batch,
    )


PREFACE = """\
# The paper's table in miniature

Fine-tune on the tenth of a corpus that each method chooses: what moves as asked then? Every figure here is of
{runs} models that were trained and asked on CPU cores; seeds {seeds}. Repeat with `python benchmarks/curation.py`
(which writes the tables below; `--smoke` runs all of it tiny).

**The world** (`benchmarks/miniature/world.py`). *Base*: the lab's pipeline (3.9 M parameters) after {base_steps}
steps of 16 on {base_clips} clips whose captions name another motion than they show, half of them spoilt as well:
it draws and moves objects, but not as it is told. *Corpus*: {corpus} mp4 clips: {kinds}.
*Queries*: {queries} good clips of each of ten motions, none
of them in the corpus.

**What is compared.** Each method chooses {tenth} clips for a target: for all ten motions by votes (the
generalist), or for one motion (a specialist). All weights are trained on them for {epochs} epochs: {seen} clips
seen, in batches of {batch}, learning rate {lr:g} falling to zero. "full" sees as many clips of the whole corpus,
"full, equal epochs" all of them {epochs} times, {all_seen}. *magnitude*: mean flow; *similarity*: cosine of the
clips' VAE latents, the corpus's mean taken off; *whole clip*: the gradient without the mask; *worst*: the last
tenth by Motive. Clips in which
nothing moves have no mask and are chosen by none.

**What is measured.** Each model generates {prompts} prompts of each motion (a specialist of its own),
with {steps} steps and guidance 3, from the same noise for every method. *Moves as asked*: by a classifier that
sees optical flow alone ([lab.md](lab.md)). The other columns: [metrics.md](metrics.md). *Flow distance*: Fréchet
distance of flow statistics to simulated clips behind the same VAE. VBench's own dimensions need weights that were
not to be had. Intervals: 95 %, resampling seeds and, within them, prompts. A preference is by the probability of
the asked motion, same prompt and noise; less than 0.1 apart is a tie.\
"""


def _methods(results: Results, target: str) -> list[str]:
    known = [*METHODS[:2], EPOCHS, *METHODS[2:]]
    return [m for m in known if results.seeds(m, target)]


def _groups(results: Results, method: str, targets: Sequence[str], value: Any) -> list[list[float]]:
    """A value of every row, a group a seed."""
    return [
        [value(row) for target in targets for row in results.rows(method, target, seed)]
        for seed in results.seeds(method, targets[0])
    ]


def _written(found: tuple[float, float, float], form: str) -> str:
    mean, low, high = found
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _outcomes(results: Results, targets: Sequence[str], methods: Sequence[str]) -> str:
    rows = []
    for method in methods:
        cells = [_written(interval(_groups(results, method, targets, v)), form) for v, form in COLUMNS.values()]
        distances = [_distance(results, method, t, seed) for t in targets for seed in results.seeds(method, t)]
        rows.append([method, str(len(results.seeds(method, targets[0]))), *cells, _spread(distances)])
    return _table(["trained on", "seeds", *COLUMNS, "flow distance ↓ (least–most of the models)"], rows)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _distance(results: Results, method: str, target: str, seed: int) -> float:
    """Fréchet distance of what one model generated for a target to simulated clips of the target's motions."""
    run = results.run(method, target, seed)
    kept = [i for i, row in enumerate(run["rows"]) if target in (GENERALIST, row["motion"])]
    real = reference(results.output / "judge", None if target == GENERALIST else target)
    return float(frechet_distance(run["flow"][kept], real))


def _preferences(results: Results, targets: Sequence[str], methods: Sequence[str]) -> str:
    """Motive against every other, on equal prompts and noise: win, tie, loss, and the difference in what was asked."""
    from hf_motive.preference import compare, judge_by_metric

    moves_as_asked, _ = COLUMNS["moves as asked"]
    lines = []
    for method in methods:
        judgements, ours, theirs = [], [], []
        for seed in sorted(set(results.seeds("Motive", targets[0])) & set(results.seeds(method, targets[0]))):
            pair = [
                [row for target in targets for row in results.rows(name, target, seed)] for name in ("Motive", method)
            ]
            scores = [[row["probability"] for row in rows] for rows in pair]
            names = [f"{seed} {row['prompt']}" for row in pair[0]]
            # Models of one seed share their training, as judgements of one rater share the rater.
            judgements += [row | {"rater": str(seed)} for row in judge_by_metric(*scores, names, tie=TIE)]
            ours.append([moves_as_asked(row) for row in pair[0]])
            theirs.append([moves_as_asked(row) for row in pair[1]])
        if not judgements:
            continue
        found = compare(judgements)
        shares = [f"{share:.0%}" for share in found.preference.shares]
        rate, (low, high) = found.win_rate, found.interval()
        difference = _written(paired(ours, theirs), "{:+.0%}")
        lines.append([method, str(found.n), *shares, f"{rate:.0%} [{low:.0%}, {high:.0%}]", difference])
    header = ["Motive against", "pairs", "win", "tie", "loss", "win rate, ties half", "moves as asked, difference"]
    return _table(header, lines)


def _target(results: Results, target: str) -> str:
    methods = _methods(results, target)
    title = (
        "The generalist: chosen by the votes of all ten motions" if target == GENERALIST else f"Specialist: {target}"
    )
    parts = [f"## {title}", _chosen(results, target, methods), _outcomes(results, [target], methods)]
    if "Motive" in methods:
        parts.append(_preferences(results, [target], [m for m in methods if m != "Motive"]))
    return "\n\n".join(parts)


def _specialists(results: Results, size: Any) -> str:
    methods = [m for m in _methods(results, size.specialists[0])]
    parts = [
        f"## The specialists together: {', '.join(size.specialists)}",
        _outcomes(results, size.specialists, methods),
        _preferences(results, size.specialists, [m for m in methods if m != "Motive"]),
    ]
    return "\n\n".join(parts)


def _chosen(results: Results, target: str, methods: Sequence[str]) -> str:
    """What each method chose, over the seeds: shares of the kinds of clips, and of what the target wants."""
    rows = []
    for method in methods:
        runs = [results.run(method, target, seed) for seed in results.seeds(method, target)]
        clips = [results.corpus[row] for run in runs if run for row in run.get("chosen", [])]
        if not clips:
            continue
        shares = [np.mean([clip["kind"] == kind for clip in clips]) for kind in KINDS]
        if target != GENERALIST:
            shares.append(np.mean([clip["kind"] == "good" and clip["shown"] == target for clip in clips]))
        rows.append([method, *(f"{share:.0%}" for share in shares)])
    header = ["what was chosen", *KINDS] + ([f"good and {target}"] if target != GENERALIST else [])
    return _table(header, rows)
