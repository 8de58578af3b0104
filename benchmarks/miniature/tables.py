"""From finished runs to docs/results.md: means with intervals, preferences, what was chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_motive.corpus import json_lines
from hf_motive.lab.spec import MOTIONS
from hf_motive.metrics.flow_statistics import frechet_distance
from hf_motive.preference.clusters import spread

from .choosing import ASKING, CHOOSING, GENERALIST, METHODS
from .judging import measured, reference
from .world import KINDS

EPOCHS = "full, equal epochs"
#: Motions that look otherwise when they run backwards, whole periods or not (docs/validation.md).
DIRECTED = ("explode", "float", "free_fall", "slide")
MARK = "<!-- below: python benchmarks/curation.py -->"


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

    def seeds_of_all(self, method: str, targets: Sequence[str]) -> list[int]:
        """Seeds for which a method has a model for every target."""
        return sorted(set.intersection(*(set(self.seeds(method, target)) for target in targets)))

    def seeds(self, method: str, target: str) -> list[int]:
        return sorted(
            {s for m, t, s in self.runs if m == method and t == (target if method in ASKING else GENERALIST)}
        )

    def rows(self, method: str, target: str, seed: int) -> list[dict[str, Any]]:
        """Rows on what the target is asked: all motions for the generalist, a specialist's own."""
        run = self.run(method, target, seed)
        return [row for row in run["rows"] if target in (GENERALIST, row["motion"])] if run else []


def interval(groups: Sequence[Sequence[float]], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of all values and its interval.

    A group is a seed: a model of its own, whose values share its training. So the spread is that between prompts and
    that between models, with Student's t of as few models as there are; a percentile bootstrap of three is too narrow.
    """
    values = np.concatenate([np.asarray(group, float) for group in groups])
    model = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    mean, found = float(values.mean()), spread(values, np.arange(len(values)), model)
    half = found.errors(level) * found.variance**0.5 if found.variance > 0 else 0.0  # 0 where nothing varies
    return mean, mean - half, mean + half


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
    """All tables of the runs that are finished, as Markdown, below the mark in a file."""
    results = Results(output)
    if not results.runs:
        raise SystemExit(f"no run is finished in {output}: run `python benchmarks/curation.py` first")
    parts = [_preface(results, size)]
    if (output / "chosen.json").exists():
        parts.append(_taken(results))
    for target in (GENERALIST, *size.specialists):
        if any(results.seeds(method, target) for method in ASKING):
            parts.append(_target(results, target))
        if target == GENERALIST:
            parts.append(_by_motion(results))
    if results.seeds_of_all("Motive", size.specialists):
        parts.append(_specialists(results, size))
    path.parent.mkdir(parents=True, exist_ok=True)
    # What was written by hand above the mark stays.
    above = path.read_text("utf-8").partition(MARK)[0] if path.exists() else ""
    path.write_text("\n\n".join([above + MARK, *parts]) + "\n", encoding="utf-8")


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
        tie=TIE,
        choosing=_cost(results.output / "features" / "seconds.json"),
    )


PREFACE = """\
# The tables

{runs} models, trained and asked on CPU cores; seeds {seeds}. `python benchmarks/curation.py` repeats it and
writes what follows; `--smoke` runs all of it, tiny.

**The world** (`benchmarks/miniature/world.py`). *Base*: the lab's pipeline (3.9 M parameters; the row
"unspoilt") after {base_steps} steps of 16 on {base_clips} clips in which the motion shown is drawn without
regard to the one that the caption names (so it is right in one of ten), and half of which are spoilt as well.
*Corpus*: {corpus} mp4 clips: {kinds}. *Queries*: {queries} good clips of each of ten motions, none of them in
the corpus.

**What is compared.** Each method chooses {tenth} clips for a target: for all ten motions by votes (the
generalist), or for one motion (a specialist). All weights are trained on them for {epochs} epochs: {seen} clips
seen, in batches of {batch}, learning rate {lr:g} falling to zero, the same for all and tuned for none. "full"
sees as many clips of the whole corpus, "full, equal epochs" all of them {epochs} times, {all_seen}.
*magnitude*: mean flow. *VAE similarity*: cosine of the clips' VAE latents, the corpus's mean taken off: no
semantic embedding, so that to win over it proves little. *whole clip*: the gradient without the mask. *worst*:
the last tenth by Motive. Clips in which nothing moves have no mask and are chosen by none. Equal compute is
that of training; choosing by gradients costs a pass over the corpus besides{choosing}.

**What is measured.** Each model is asked for {prompts} prompts of each motion (a specialist of its own), with
{steps} steps and guidance 3, from the same noise for every method. *Moves as asked*: by a classifier that sees
optical flow alone; it is right on 91 % of simulated clips behind the same VAE ([lab.md](lab.md)), which is the
ceiling, and chance is one of eleven. The other columns: [metrics.md](metrics.md). *Flow distance*: Fréchet
distance of flow statistics to simulated clips behind the same VAE. VBench's own dimensions need weights that
were not to be had. A preference is by the probability of the asked motion, same prompt and noise; less than
{tie} apart is a tie.

**How sure.** Intervals: 95 %, over prompts and seeds (a model each), Student's t; of a preference, seeds stand
where raters do. They say nothing of another corpus, other queries or another base, of which there is one each:
but for "random", every seed trains on the same choice. Many figures stand here: of twenty that mean nothing,
one leaves its interval.\
"""


def _cost(path: Path) -> str:
    if not path.exists():
        return ""
    found = json.loads(path.read_text("utf-8"))
    return f", here {found['gradients']} s for {found['clips']} clips, with the mask and without"


def _methods(results: Results, target: str) -> list[str]:
    known = [*METHODS[:3], EPOCHS, *CHOOSING]
    return [m for m in known if results.seeds(m, target)]


def _groups(results: Results, method: str, targets: Sequence[str], value: Any) -> list[list[float]]:
    """A value of every row, a group a seed."""
    return [
        [value(row) for target in targets for row in results.rows(method, target, seed)]
        for seed in results.seeds_of_all(method, targets)
    ]


def _written(found: tuple[float, float, float], form: str, least: float = 0.0, most: float = 1.0) -> str:
    """A mean and its interval, which ends where the values do."""
    mean, low, high = found[0], max(found[1], least), min(found[2], most)
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _outcomes(results: Results, targets: Sequence[str], methods: Sequence[str]) -> str:
    rows = []
    for method in methods:
        cells = [_written(interval(_groups(results, method, targets, v)), form) for v, form in COLUMNS.values()]
        distances = [_distance(results, method, t, seed) for t in targets for seed in results.seeds(method, t)]
        moves_as_asked, form = COLUMNS["moves as asked"]
        single = [form.format(np.mean(group)) for group in _groups(results, method, targets, moves_as_asked)]
        rows.append([method, *cells, _spread(distances), ", ".join(single)])
    return _table(
        ["trained on", *COLUMNS, "flow distance ↓ (least–most of the models)", "moves as asked, each seed"], rows
    )


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
        for seed in sorted(set(results.seeds_of_all("Motive", targets)) & set(results.seeds_of_all(method, targets))):
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
        difference = _written(paired(ours, theirs), "{:+.0%}", least=-1.0)
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


def _by_motion(results: Results) -> str:
    """The generalist, motion by motion: share that moves as asked, over all seeds."""
    asked_for = {row["motion"] for run in results.runs.values() for row in run["rows"]}
    rows, motions = [], [motion for motion in MOTIONS if motion in asked_for]
    for method in _methods(results, GENERALIST):
        asked = [row for s in results.seeds(method, GENERALIST) for row in results.rows(method, GENERALIST, s)]
        seen = {m: [row["seen"] == m for row in asked if row["motion"] == m] for m in motions}
        rows.append([method, *(f"{np.mean(seen[m]):.0%}" for m in motions)])
    return _table(["moves as asked", *motions], rows)


def _specialists(results: Results, size: Any) -> str:
    methods = [m for m in _methods(results, size.specialists[0]) if results.seeds_of_all(m, size.specialists)]
    parts = [
        f"## The specialists together: {', '.join(size.specialists)}",
        _outcomes(results, size.specialists, methods),
        _preferences(results, size.specialists, [m for m in methods if m != "Motive"]),
    ]
    return "\n\n".join(parts)


def _taken(results: Results) -> str:
    """Over the queries of every motion: which share of the clips of each kind, and of that motion, was chosen."""
    chosen = json.loads((results.output / "chosen.json").read_text("utf-8"))

    def share(method: str, wanted: Any) -> str:
        """Of the clips for which wanted(clip, motion) holds, summed over the motions that were asked for."""
        there = [(row, m) for m in chosen[method] for row, clip in enumerate(results.corpus) if wanted(clip, m)]
        found = sum(row in chosen[method][m] for row, m in there)
        return f"{found / len(there):.0%} of {len(there)}" if there else "–"

    columns = {
        "good": lambda clip, m: clip["motion"] == m and clip["kind"] == "good",
        "backwards, and it shows": lambda c, m: c["motion"] == m and c["kind"] == "reversed" and m in DIRECTED,
        "backwards, others": lambda c, m: c["motion"] == m and c["kind"] == "reversed" and m not in DIRECTED,
        "shuffled": lambda clip, m: clip["motion"] == m and clip["kind"] == "shuffled",
        "jittered": lambda clip, m: clip["motion"] == m and clip["kind"] == "jittered",
        "says so, moves otherwise": lambda clip, m: clip["motion"] == m and clip["kind"] == "swapped",
        "moves so, says otherwise": lambda clip, m: clip["shown"] == m and clip["kind"] == "swapped",
        "camera": lambda clip, m: clip["kind"] == "camera",
    }
    rows = [[method, *(share(method, wanted) for wanted in columns.values())] for method in chosen]
    return "\n\n".join([TAKEN, _table(["asked for a motion", *columns], rows)])


TAKEN = f"""\
## What is taken for one motion's queries

Over the queries of each motion: which share of the clips of a kind, and of that motion, is among the tenth that is
chosen. By chance it is 10 %. A motion that runs backwards shows where it has a direction ({", ".join(DIRECTED)}).\
"""


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
