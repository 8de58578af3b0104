"""Do the scores predict what training on the clips does? Retrain, and see.

    python benchmarks/faithfulness.py                              # everything, then the table; stopped, it goes on
    python benchmarks/faithfulness.py --prepare                    # the clips and the base; then, on two cores,
    python benchmarks/faithfulness.py --share 1/2 & python benchmarks/faithfulness.py --share 2/2; wait
    python benchmarks/faithfulness.py --gradients                  # what the contenders are made of
    python benchmarks/faithfulness.py --table                      # and the table of what is finished
    python benchmarks/faithfulness.py --smoke                      # all of it, tiny, to see that it runs

From one base model, fine-tune on random halves of a corpus, with the same order, noise and timesteps for each under
one seed; measure each query's loss; and correlate it, over the halves, with the sums of the influence of their clips.
That correlation is the linear datamodeling score (LDS), and what two seeds of the same half agree on is its ceiling.

The world is that of benchmarks/curation.py. Everything is kept under --output, and what is there is not done again.
Writes benchmarks/results/faithfulness.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab" / "pipeline"
sys.path.insert(0, str(ROOT / "benchmarks"))

from faithful import case, gradients  # noqa: E402
from faithful import table as tables  # noqa: E402
from faithful.contenders import PAPER, contenders  # noqa: E402
from faithful.counterfactual import Choice, choices  # noqa: E402
from faithful.counterfactual import written as counterfactual_table  # noqa: E402
from faithful.retraining import Measurement, Model, Training, fine_tune, losses  # noqa: E402

from hf_motive.lab.spec import MOTIONS  # noqa: E402


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    corpus: int = 400
    queries: int = 6  # of each motion
    motions: tuple[str, ...] = tuple(MOTIONS)
    base_clips: int = 400
    base_steps: int = 150
    base_lr: float = 3e-4
    halves: int = 48
    seeds: tuple[int, ...] = (0, 1)
    training: Training = field(default_factory=Training)
    measurement: Measurement = field(default_factory=Measurement)
    removed: tuple[str, ...] = (
        PAPER,
        "masked, equal draws",
        "VAE similarity",
        "whole-clip gradient",
        "motion magnitude",
    )
    chances: int = 2
    draws: gradients.Draws = field(default_factory=gradients.Draws)
    dim: int = 2048  # of every projection
    probe: int = 60  # clips that second moments are taken of


SMOKE = Size(
    corpus=12, queries=1, motions=("roll", "float", "spin"),
    base_clips=3, base_steps=1, halves=3, training=Training(epochs=1, batch=4),
    measurement=Measurement((751.0,), 1),
    draws=gradients.Draws((751.0,), 1), dim=512, probe=2, chances=1, removed=("the paper's score",),
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
        "corpus": size.corpus,
        "queries": size.queries,
        "motions": list(size.motions),
        "base_clips": size.base_clips,
        "base_steps": size.base_steps,
    }
    training, measurement = asdict(size.training), asdict(size.measurement)
    case.check(output, {**world, "training": training, "measurement": measurement})
    return case.make(LAB, output, **world, lr=size.base_lr)


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
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, losses=found, chosen=np.array(run.chosen), seconds=[trained, time.monotonic() - begin])
    partial.rename(path)
    print(f"{path.stem}: {time.monotonic() - begin:.0f} s", flush=True)


REPORT = """\
# Do the scores predict what training on the clips does?

The linear datamodeling score (LDS): over {subsets} random halves of {clips} clips, the rank correlation between the
sum of a query's influences of a half's clips and how low its loss is after fine-tuning on that half ({seeds} seeds
each, {epochs} epochs of AdamW, the same order, noise and timesteps for each half under one seed). Mean over {told}
queries; the other {tuning} chose λ. 95 % intervals: bootstrap over halves and queries, the same resamples for all, so
that differences from the paper's score are paired. The loss is that of the query under its motion mask, mean over
timesteps {timesteps}, and at each of them; *plain* is without the mask. The ceiling is what a perfect prediction of
the expected loss would reach, as two seeds of one half agree only so far.

The model is the lab's pipeline after unlearning which word means which motion (base of `benchmarks/curation.py`); D' =
{dim}; draws are one noise at timesteps {draws}. Passes: forward + backward of the denoiser a clip. Repeat with
`python benchmarks/faithfulness.py`: {seconds:.0f} s a model, {models} models, and the gradients.

{table}
{counterfactuals}"""

WITHOUT = """
## Without them

Fine-tuning without the tenth that is ranked first, without the tenth that is ranked last, and on the first tenth
alone (as many steps as a half takes, so each clip is seen oftener), by the votes of all queries. Mean motion-weighted
loss of the queries, in thousandths, less that after as many clips by chance ({chances} choices), query by query and
seed by seed; 95 % intervals by bootstrap over the queries, which know nothing of how another training would have come
out: sd is that of the choices by chance.

{table}
"""


class Judged(NamedTuple):
    """What the halves say of the contenders."""

    retrained: tables.Retrained
    lines: list[tables.Row]
    tuning: np.ndarray

    def choices(self, size: Size) -> list[Choice]:
        """What is left out, and what is trained on alone, by the contenders that `size` names."""
        named = sorted(
            (row for row in self.lines if row.contender.name in size.removed),
            key=lambda row: size.removed.index(row.contender.name),
        )
        settings = {row.contender.name: row.setting for row in named}
        return list(choices([row.contender for row in named], settings, size.chances))


def judge(made: case.Case, size: Size, output: Path) -> Judged:
    names = [f"half-{number:03d}" for number in range(size.halves)]
    retrained = tables.read(output, names, size.seeds, len(made.corpus), size.measurement.timesteps)
    every = contenders(
        made.corpus,
        made.queries,
        gradients.read(output / "gradients"),
        gradients.read_attributor(output / "attributor"),
        size.draws.timesteps,
    )
    # The first third of each motion's queries chooses; where a motion has one query, motions choose in turn.
    tuning = np.arange(len(made.queries)) % max(size.queries, 3) < max(size.queries // 3, 1)
    return Judged(retrained, tables.rows(retrained, every, tuning, PAPER), tuning)


def report(made: case.Case, size: Size, output: Path) -> str:
    retrained, lines, tuning = judged = judge(made, size, output)
    return REPORT.format(
        subsets=len(retrained.members),
        clips=len(made.corpus),
        seeds=len(size.seeds),
        epochs=size.training.epochs,
        told=int((~tuning).sum()),
        tuning=int(tuning.sum()),
        timesteps=", ".join(f"{t:.0f}" for t in size.measurement.timesteps),
        dim=size.dim,
        draws=", ".join(f"{t:.0f}" for t in size.draws.timesteps),
        seconds=retrained.seconds,
        models=len(size.seeds) * len(retrained.members),
        table=tables.written(retrained, lines, ~tuning, size.dim),
        counterfactuals=without(judged, size, output),
    )


def without(judged: Judged, size: Size, output: Path) -> str:
    """The second section, once there is something to compare."""
    written = counterfactual_table(output, judged.choices(size), size.seeds)
    return WITHOUT.format(table=written, chances=size.chances) if written else ""


def main() -> None:
    from hf_motive.scoring import quiet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder; by default runs/faithfulness, or its -smoke")
    parser.add_argument("--smoke", action="store_true", help="a tiny one, in two minutes")
    parser.add_argument("--prepare", action="store_true", help="make the clips and the base, and train no model")
    parser.add_argument("--share", default="1/1", help="k/n: train the k-th of every n models; for n processes")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="train without torch.compile")
    parser.add_argument("--gradients", action="store_true", help="train nothing; compute the contenders' gradients")
    parser.add_argument("--table", action="store_true", help="train nothing; write the table of what is finished")
    told = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    size = SMOKE if told.smoke else Size()
    output = told.output or ROOT / "runs" / ("faithfulness-smoke" if told.smoke else "faithfulness")
    made = made_in(output, size)
    k, n = map(int, told.share.split("/"))
    alone = told.prepare or told.gradients or told.table
    if told.gradients or not (alone or n > 1):
        gradients.compute(
            made.pipeline(), made.corpus, made.queries, output / "gradients", size.draws, size.dim, size.probe
        )
        gradients.through_attributor(made.pipeline(), made.corpus, made.queries, output / "attributor")
    if not alone:
        model = Model(made.pipeline(), compiled=told.compiled and not told.smoke)
        for run in list(halves(size, len(made.corpus)))[k - 1 :: n]:
            do(run, made, model, size, output)
        if not list((output / "gradients").glob("corpus-*.npz")):
            print("the halves are done; what is left out next takes --gradients: then the same command again")
            return
        every = judge(made, size, output).choices(size)
        for run in list(counterfactuals(size, every, len(made.corpus)))[k - 1 :: n]:
            do(run, made, model, size, output)
    if told.table or not (alone or n > 1):
        path = output / "faithfulness.md" if told.smoke else ROOT / "benchmarks" / "results" / "faithfulness.md"
        path.write_text(report(made, size, output), encoding="utf-8")
        print(f"table: {path}")


if __name__ == "__main__":
    main()
