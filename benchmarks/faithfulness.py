"""Do the scores predict what training on the clips does? Retrain, and see.

    python benchmarks/faithfulness.py                              # everything, then the table; stopped, it goes on
    python benchmarks/faithfulness.py --prepare                    # the clips and the base; then, on two cores,
    python benchmarks/faithfulness.py --share 1/2 & python benchmarks/faithfulness.py --share 2/2; wait
    python benchmarks/faithfulness.py --gradients                  # what the contenders are made of; also by --share
    python benchmarks/faithfulness.py --table                      # and the table of what is finished
    python benchmarks/faithfulness.py --known --gradients --table  # with the trainings that are committed: see below
    python benchmarks/faithfulness.py --world crossed              # where motion and look are told apart; or lab
    python benchmarks/faithfulness.py --both                       # one table over curation's world and crossed
    python benchmarks/faithfulness.py --smoke                      # all of it, tiny, to see that it runs

From one base model, fine-tune on random halves of a corpus, with the same order, noise and timesteps for each under
one seed; measure each query's loss; and correlate it, over the halves, with the sums of the influence of their clips.
That correlation is the linear datamodeling score (LDS), and what two seeds of the same half agree on is its ceiling.

The world is that of benchmarks/curation.py, where motion and look are independent. In "crossed" every motion of the
corpus has a look of its own, and the queries have that of another motion; "lab" is the lab's own pipeline and clips,
where nothing is trained, and only what the top clips share with a query is counted. Everything is kept under --output,
and what is there is not done again. Trainings and gradients run on a CUDA GPU where there is one, which has not been
tried yet, or else on the CPU.

Writes benchmarks/results/faithfulness.md (-crossed, -lab, -both), and what the trainings showed into an .npz beside
it: to judge a new contender takes its gradients and `--known`, which unpacks that file instead of training for hours.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))

from faithful import case, first_order, gap, gradients, shares  # noqa: E402
from faithful import table as tables  # noqa: E402
from faithful.contenders import DEFAULT, FAILURES, PAPER, Contender, contenders  # noqa: E402
from faithful.counterfactual import Choice, choices  # noqa: E402
from faithful.counterfactual import written as counterfactual_table  # noqa: E402
from faithful.finished import pack, unpack  # noqa: E402
from faithful.retraining import Measurement, Model, Training, fine_tune, keep_checkpoints, losses  # noqa: E402
from faithful.truth import predicted  # noqa: E402
from faithful.worlds import World, together  # noqa: E402

from hf_motive.lab.spec import MOTIONS  # noqa: E402


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    world: str = "curation"
    corpus: int = 400
    queries: int = 6  # of each motion
    motions: tuple[str, ...] = tuple(MOTIONS)
    base_clips: int = 400
    base_steps: int = 150
    base_lr: float = 3e-4
    sampling_steps: int = 10
    fitted_to: int = 660  # simulated clips that the judge of motions knows
    halves: int = 48
    seeds: tuple[int, ...] = (0, 1)
    training: Training = field(default_factory=Training)
    measurement: Measurement = field(default_factory=Measurement)
    removed: tuple[str, ...] = (
        PAPER,
        DEFAULT,
        FAILURES,
        "VAE similarity",
    )
    chances: int = 2
    draws: gradients.Draws = field(default_factory=gradients.Draws)
    dim: int = 2048  # of every projection
    noises: int = 4  # at each of the default timesteps, of the attributor's own features
    checkpoints: int = 2  # on the way of a training on the whole corpus, beside the base
    probe: int = 60  # clips that second moments are taken of


SIZES = {
    "curation": Size(),
    "crossed": Size(world="crossed", corpus=300, queries=4, halves=24, noises=1, checkpoints=0, removed=()),
    "lab": Size(world="lab", queries=4, halves=0, noises=1, checkpoints=0, removed=()),
}
SMOKE = Size(
    corpus=12, queries=1, motions=("roll", "float", "spin"),
    base_clips=3, base_steps=1, sampling_steps=2, fitted_to=33, halves=3, training=Training(epochs=1, batch=4),
    measurement=Measurement((751.0,), 1),
    draws=gradients.Draws((751.0,), 1), dim=512, noises=2, checkpoints=1, probe=2,
    chances=1, removed=("the paper's score",),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One model: what it is trained on, and the seed of everything random."""

    name: str
    chosen: tuple[int, ...]
    seed: int
    epochs: int

    def path(self, output: Path) -> Path:
        return output / "models" / f"{self.name}-{self.seed}.npz"


def made_in(output: Path, size: Size) -> case.Case:
    """What all runs need, made once."""
    world = {
        "kind": size.world,
        "corpus": size.corpus,
        "queries": size.queries,
        "motions": list(size.motions),
        "base_clips": size.base_clips,
        "base_steps": size.base_steps,
        "sampling_steps": size.sampling_steps,
        "fitted_to": size.fitted_to,
    }
    training, measurement = asdict(size.training), asdict(size.measurement)
    case.check(output, {**world, "training": training, "measurement": measurement})
    return case.make(lab=LAB, output=output, **world, lr=size.base_lr)


def half(number: int, of: int) -> np.ndarray:
    """The clips of a random half, sorted."""
    return np.sort(np.random.default_rng([71_001, number]).permutation(of)[: of // 2])


def halves(size: Size, of: int) -> Iterator[Run]:
    for number in range(size.halves):
        for seed in size.seeds:
            yield Run(f"half-{number:03d}", tuple(half(number, of).tolist()), seed, size.training.epochs)


def counterfactuals(size: Size, every: Sequence[Choice], of: int) -> Iterator[Run]:
    """About as many clips are seen as of a half, so that the best alone are seen much oftener."""
    for choice in every:
        epochs = round(size.training.epochs * of / 2 / len(choice.chosen))
        for seed in size.seeds:
            yield Run(choice.name, tuple(choice.chosen.tolist()), seed, epochs)


def share(runs: Iterable[Run], size: Size, k: int, n: int) -> Iterator[Run]:
    """The k-th of every n choices of clips, with all its seeds: what one process has finished can be read."""
    for place, run in enumerate(runs):
        if place // len(size.seeds) % n == k - 1:
            yield run


def do(run: Run, made: case.Case, model: Model, size: Size, output: Path) -> None:
    """Train and measure; what is finished stays."""
    path = run.path(output)
    if path.exists() and np.array_equal(np.load(path)["chosen"], run.chosen):
        return
    begin = time.monotonic()
    fine_tune(model, made.corpus, run.chosen, run.seed, replace(size.training, epochs=run.epochs))
    trained = time.monotonic() - begin
    found = losses(model, made.queries, size.measurement)
    path.parent.mkdir(parents=True, exist_ok=True)
    with case.whole(path) as partial:
        np.savez(partial, losses=found, chosen=np.array(run.chosen), seconds=[trained, time.monotonic() - begin])
    print(f"{path.stem}: {time.monotonic() - begin:.0f} s", flush=True)


LDS = """\
The linear datamodeling score (LDS): over {subsets} random halves of {clips} clips, the rank correlation between the
sum of a query's influences of a half's clips and how low its loss is after fine-tuning on that half ({seeds} seeds
each, {epochs} epochs of AdamW, the same order, noise and timesteps for each half under one seed). Mean over {told}
queries; the other {tuning} chose λ, on the same halves. 95 % intervals: bootstrap over halves, motions and their
queries, the same resamples for all, so that differences from the paper's score are paired. The loss is that of the
query under its motion mask, mean over timesteps {timesteps}, and at each of them; *plain* is without the mask. The
ceiling is what a perfect prediction of the expected loss would reach, as two seeds of one half agree only so far. *At
a timestep*: the paper's score with its one draw there. *Unlike the model's own failures*: less like the clips that the
base itself makes of the queries' captions, where these move otherwise than they were asked to. *Checkpoints* are on
the way of one training on all clips, whose cost is not counted.

The model is the lab's pipeline after unlearning which word means which motion (base of `benchmarks/curation.py`);
{corpus}. D' = {dim}; draws are one noise at
timesteps {draws}. Passes: forward + backward of the denoiser a clip. Repeat with
`python benchmarks/faithfulness.py{world}`: {seconds:.0f} s a model, {models} models, and the gradients.

{table}
"""

SHARES = """
## Motion or appearance?

{about}Of the tenth that is ranked first for a query, the share with its label: mean over {told} queries, 95 %
intervals by bootstrap over motions and their queries. Last: of the tenth that is ranked first by the mean over a
motion's queries.

{table}
"""
CORPORA = {
    "curation": "its corpus holds good, bad and idle clips, whose motion and look are independent",
    "crossed": "in the corpus every motion has a look (shape, colour, background) of its own in 80 % of its clips, "
    "and another's in the others; the queries have looks of other motions",
    "lab": "The lab's own pipeline, corpus ({clips} clips in which something moves) and queries; D' = {dim}, draws "
    "are one noise at timesteps {draws}. λ by the other {tuning} queries' motion. Repeat with "
    "`python benchmarks/faithfulness.py --world lab`.",
}

GAP = """
## Where the gap is

The same, of parts of the queries' losses; for a mean over queries, the mean of their influence.

{table}

{sums}

{draws}{exact}
"""
EXACT = """

*Exact gradients.* With the noise and σ that the trainings drew, through no projection, ∇L_q · ∇L_i of every showing
of a clip and of every query's loss as it is measured: what first-order theory says when nothing is estimated. The
base, and {count} states on the way of one training on all clips, 1 to {count}, evenly spaced. Who knows its noise
could predict a seed in full; the ceiling knows nothing of the noise, and is that of predictions by another's.

{table}"""
EXAMINED = (
    PAPER,
    DEFAULT,
    "ridge, query's mask alone, second moments",
    "the label: shows the same motion",
)

WITHOUT = """
## Without them

Fine-tuning without the tenth that is ranked first, without the tenth that is ranked last, and on the first tenth alone
(as many steps as a half takes, so each clip is seen oftener), by the votes of all queries. Mean motion-weighted loss
of the queries, in thousandths, less that after as many clips by chance (of the tenths {chances}, of the nine tenths
twice as many), query by query and seed by seed; 95 % intervals by bootstrap over motions and their queries, which know
nothing of how another training would have come out: as far apart as the choices by chance are among themselves,
differences say nothing. Without the worst of *unlike the model's own failures* is: without the suspects, those most
like them.

{table}
"""


class Judged(NamedTuple):
    """What is said of the contenders; without halves, `retrained` is None and `lines` are empty."""

    retrained: tables.Retrained | None
    lines: list[tables.Row]
    tuning: np.ndarray
    contenders: list[Contender]
    settings: dict[str, float]

    def choices(self, size: Size) -> list[Choice]:
        """What is left out, and what is trained on alone, by the contenders that `size` names."""
        named = sorted(
            (contender for contender in self.contenders if contender.name in size.removed),
            key=lambda contender: size.removed.index(contender.name),
        )
        return list(choices(named, self.settings, size.chances))


def first_third(motions: np.ndarray) -> np.ndarray:
    """(Q,) bool: the queries that choose settings, a third of each motion's; of one query a motion, every third."""
    place = np.array([(motions[:q] == motion).sum() for q, motion in enumerate(motions)])
    count = (motions[:, None] == motions[None]).sum(1)
    if count.max() == 1:
        return np.arange(len(motions)) % 3 == 0
    return place < np.maximum(count // 3, 1)


def judge(made: case.Case, size: Size, output: Path) -> Judged:
    every = contenders(
        made.corpus,
        made.queries,
        made.samples,
        gradients.read(output / "gradients"),
        gradients.read_attributor(output / "attributor", {"corpus": len(made.corpus), "queries": len(made.queries)}),
        size.draws.timesteps,
    )
    motions = made.queries.labels(shares.MOTION)
    tuning = first_third(motions)
    if not size.halves:
        settings = {c.name: shares.setting(c, made.corpus, made.queries, tuning) for c in every}
        return Judged(None, [], tuning, every, settings)
    names = [f"half-{number:03d}" for number in range(size.halves)]
    retrained = tables.read(output, names, size.seeds, len(made.corpus), size.measurement.timesteps)
    lines = tables.rows(retrained, every, motions, tuning, PAPER)
    return Judged(retrained, lines, tuning, every, {row.contender.name: row.setting for row in lines})


def report(made: case.Case, size: Size, output: Path) -> str:
    judged = judge(made, size, output)
    tuning, retrained, motions = judged.tuning, judged.retrained, made.queries.labels(shares.MOTION)
    facts: dict[str, Any] = {
        "clips": len(made.corpus),
        "told": int((~tuning).sum()),
        "tuning": int(tuning.sum()),
        "dim": size.dim,
        "draws": ", ".join(f"{t:.0f}" for t in size.draws.timesteps),
    }
    parts, about = ["# Do the scores predict what training on the clips does?\n\n"], ""
    if retrained is None:
        parts, about = (
            ["# Do the scores go by motion or by appearance?\n"],
            CORPORA[size.world].format(**facts) + "\n\n",
        )
    else:
        parts.append(
            LDS.format(
                subsets=len(retrained.members),
                seeds=len(size.seeds),
                epochs=size.training.epochs,
                timesteps=", ".join(f"{t:.0f}" for t in size.measurement.timesteps),
                seconds=retrained.seconds,
                models=len(size.seeds) * len(retrained.members),
                world="" if size.world == "curation" else f" --world {size.world}",
                corpus=CORPORA[size.world],
                table=tables.written(retrained, judged.lines, motions, ~tuning, size.dim),
                **facts,
            )
        )
        parts.append(without(judged, size, output, motions))
        parts.append(missed(judged, retrained, made, output, motions))
    table = shares.written(judged.contenders, judged.settings, made.corpus, made.queries, ~tuning)
    parts.append(SHARES.format(table=table, about=about, told=facts["told"]))
    return "".join(parts)


def without(judged: Judged, size: Size, output: Path, motions: np.ndarray) -> str:
    """The second section, once there is something to compare."""
    written = counterfactual_table(output, judged.choices(size), size.seeds, motions)
    return WITHOUT.format(table=written, chances=size.chances) if written else ""


def missed(judged: Judged, retrained: tables.Retrained, made: case.Case, output: Path, motions: np.ndarray) -> str:
    """The third section."""
    examined = [contender for contender in judged.contenders if contender.name in EXAMINED]
    told = ~judged.tuning
    own = gradients.read_attributor(output / "attributor", {"corpus": len(made.corpus), "queries": len(made.queries)})
    exact = first_order.read(output / "exact")
    noisy = gradients.BASE in own and own[gradients.BASE][0].shape[2] > 1
    return GAP.format(
        table=gap.parts(retrained, examined, judged.settings, motions, told),
        sums=gap.additive(retrained, motions, told),
        draws=gap.draws(retrained, *own[gradients.BASE], motions, told) if noisy else "",
        exact=EXACT.format(count=len(exact) - 1, table=gap.exact(retrained, exact, motions, told)) if exact else "",
    )


BOTH = """\
# Do the scores predict what training on the clips does, in two worlds?

LDS of the motion-weighted loss, as faithfulness.md has it of the world of `benchmarks/curation.py`, and
faithfulness-crossed.md of one where in the corpus motion and look go together and in the queries are crossed: other
clips, another base, other halves. Contenders that both have, with the λ of each world's tuning queries; 95 %
intervals by bootstrap over halves, motions and their queries, world by world. The first world chose the default
(*{default}*); the second was trained after it was chosen. Repeat with
`python benchmarks/faithfulness.py --both`, once the folders of both are there, and of `--world lab`.

{table}

## Motion or appearance, in three

Of the tenth that is ranked first for a query, by how many points of percent the share with its label is above that by
*{default}*: mean over both worlds and the lab's own corpus (faithfulness-lab.md), 95 % intervals by bootstrap over
motions and their queries, corpus by corpus.

{shares}
"""


def both() -> str:
    worlds, counted = {}, []
    for name in case.WORLDS:
        output = folder(name)
        made = made_in(output, SIZES[name])
        judged = judge(made, SIZES[name], output)
        told, retrained = ~judged.tuning, judged.retrained
        counted.append(shares.count(judged.contenders, judged.settings, made.corpus, made.queries, told))
        if retrained is None:
            continue
        sums = {
            c.name: predicted(c.scores(judged.settings[c.name])[:, told], retrained.members) for c in judged.contenders
        }
        groups = made.queries.labels(shares.MOTION)[told]
        worlds[name] = World(retrained.losses[:, :, 0][:, :, told].mean(-1), groups, sums)
    return BOTH.format(
        table=together(worlds, (PAPER, DEFAULT)), shares=shares.ahead(counted, DEFAULT), default=DEFAULT
    )


def folder(world: str, smoke: bool = False) -> Path:
    return ROOT / "runs" / (named(world) + ("-smoke" if smoke else ""))


def named(world: str) -> str:
    return "faithfulness" + ("" if world == "curation" else f"-{world}")


def main() -> None:
    from hf_motive.scoring import quiet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=case.WORLDS, default="curation", help="which corpus and queries")
    parser.add_argument("--output", type=Path, help="folder; by default runs/faithfulness, -crossed, -lab or -smoke")
    parser.add_argument("--smoke", action="store_true", help="a tiny one, in two minutes")
    parser.add_argument("--prepare", action="store_true", help="make the clips and the base, and train no model")
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of every n; for n processes")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="train without torch.compile")
    parser.add_argument("--known", action="store_true", help="unpack the trainings that benchmarks/results/ holds")
    parser.add_argument("--gradients", action="store_true", help="train nothing; compute the contenders' gradients")
    parser.add_argument("--table", action="store_true", help="train nothing; write the table of what is finished")
    parser.add_argument("--both", action="store_true", help="train nothing; one table over curation and crossed")
    told = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    if told.both:
        path = RESULTS / "faithfulness-both.md"
        path.write_text(both(), encoding="utf-8")
        print(f"table: {path}")
        return
    size = SIZES[told.world]
    if told.smoke:
        less: dict[str, Any] = {} if size.removed else {"removed": ()}
        less |= {} if size.halves else {"halves": 0, "checkpoints": 0}
        size = replace(SMOKE, world=told.world, **less)
    output = told.output or folder(told.world, told.smoke)
    made = made_in(output, size)
    path = (output if told.smoke else RESULTS) / f"{named(told.world)}.md"
    if told.known:
        unpack(path.with_suffix(".npz"), output / "models", made.corpus.labels("seed"))
    k, n = map(int, told.share.split("/"))
    compiled = told.compiled and not told.smoke
    alone = told.prepare or told.gradients or told.table
    if told.gradients or not (alone or n > 1):
        gradients.compute(made, output / "gradients", size.draws, size.dim, size.probe, (k, n))
        checkpoints = []
        if size.checkpoints:
            model = Model(made.pipeline(), compiled=compiled)
            checkpoints = keep_checkpoints(model, made.corpus, output / "checkpoints", size.training, size.checkpoints)
            moments = gradients.read_moments(output / "gradients")
            settings = size.training, size.measurement, size.seeds
            first_order.compute(model, made, output / "exact", moments, checkpoints, *settings, (k, n))
        gradients.through_attributor(made, output / "attributor", size.noises, checkpoints, (k, n))
    if size.halves and not alone:
        model = Model(made.pipeline(), compiled=compiled)
        for run in share(halves(size, len(made.corpus)), size, k, n):
            do(run, made, model, size, output)
        missing = [run for run in halves(size, len(made.corpus)) if not run.path(output).exists()]
        if missing or not gradients.complete(made, output / "gradients"):
            print(f"done; what is left out next takes {len(missing)} more halves and --gradients: then this once more")
            return
        every = judge(made, size, output).choices(size)
        for run in share(counterfactuals(size, every, len(made.corpus)), size, k, n):
            do(run, made, model, size, output)
    if told.table or not (alone or n > 1):
        if size.halves:
            pack(output / "models", path.with_suffix(".npz"), made.corpus.labels("seed"))
        path.write_text(report(made, size, output), encoding="utf-8")
        print(f"table: {path}")


if __name__ == "__main__":
    main()
