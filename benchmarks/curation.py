"""The paper's table in miniature: fine-tune on the tenth that each method chooses, and see what moves as asked.

    python benchmarks/curation.py                            # everything, then the tables; stopped, it goes on
    python benchmarks/curation.py --prepare                  # the world and the scores; then, on two cores,
    python benchmarks/curation.py --share 1/2 & python benchmarks/curation.py --share 2/2; wait
    python benchmarks/curation.py --table                    # and the tables of what is finished
    python benchmarks/curation.py --smoke                    # all of it, tiny, to see that it runs

The base model has unlearnt which word means which motion; the corpus holds clips that teach it right, clips that teach
it wrong and idle ones (benchmarks/miniature/world.py). A *specialist* is trained on the tenth that is chosen for one
motion's queries, the *generalist* on the tenth that the votes of all ten motions' queries choose. All but one see the
same number of clips (equal compute); "full, equal epochs" sees every clip as often as the others see theirs, at ten
times the cost. A seed changes what is chosen at random, the order, noise and timesteps of the training, the prompts
and their noise.

Writes docs/results.md, and under --output everything that was generated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab" / "pipeline"
sys.path.insert(0, str(ROOT / "benchmarks"))

from miniature import choosing, world  # noqa: E402
from miniature.choosing import ASKING, GENERALIST, METHODS, UNTRAINED  # noqa: E402

from hf_motive.lab.spec import MOTIONS  # noqa: E402

EPOCHS = "full, equal epochs"


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    corpus: int = 400
    queries: int = 4  # of each motion
    base_clips: int = 400
    base_steps: int = 150
    base_lr: float = 3e-4
    epochs: int = 10  # over a chosen tenth
    batch: int = 4
    lr: float = 3e-4
    asked: tuple[str, ...] = tuple(MOTIONS)
    prompts: int = 8  # of each motion that is asked for
    sampling_steps: int = 10
    reference: int = 200  # simulated clips to compare with
    fitted_to: int = 660  # simulated clips that the judge of motions knows
    seeds: tuple[int, ...] = (0, 1, 2)
    specialists: tuple[str, ...] = ("explode", "float", "spin")


SMOKE = Size(
    corpus=10, queries=1, base_clips=3, base_steps=1, epochs=4, asked=("roll", "float"), prompts=1, sampling_steps=2,
    reference=12, fitted_to=33, seeds=(0,), specialists=("float",),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One model: who chose, for whom, and the seed of everything after."""

    method: str
    target: str
    seed: int

    @property
    def name(self) -> str:
        return "-".join(f"{self.method} {self.target} {self.seed}".replace(",", "").split())


def runs(size: Size) -> Iterator[Run]:
    """The models, in an order that answers the first questions first: the generalist on every seed, the dear runs, the
    specialists seed by seed."""
    for method in (*METHODS, EPOCHS):
        for seed in size.seeds:
            yield Run(method, GENERALIST, seed)
    for seed in size.seeds:
        for target in size.specialists:
            for method in ASKING:
                yield Run(method, target, seed)


def prompts(run: Run, size: Size) -> tuple[int, list[Any]]:
    """What a model is asked for: a specialist its own motion, every other model all of them; and the place of the
    first among all, which the noise goes by, so that a prompt has the same noise whoever is asked."""
    every = [spec for spec in world.prompt_specs(size.prompts, run.seed) if spec.motion in size.asked]
    mine = [i for i, spec in enumerate(every) if run.target in (GENERALIST, spec.motion)]
    return mine[0], [every[i] for i in mine]


def check_world(output: Path, size: Size) -> None:
    """A folder holds one experiment: another size or another world must not be mixed into its tables."""
    settings = json.dumps({**asdict(size), "world": world.settings()}, indent=1)
    path = output / "settings.json"
    if path.exists() and path.read_text("utf-8") != settings:
        raise SystemExit(f"{path} is of another experiment: give another --output, or delete {output}")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(settings, encoding="utf-8")


class Experiment:
    """The world, made once and kept in a folder, and what every run in it needs."""

    def __init__(self, output: Path, size: Size):
        self.output, self.size = output, size
        self.base = output / "base"
        world.make_base(LAB, self.base, clips=size.base_clips, steps=size.base_steps, lr=size.base_lr)
        world.write_clips(output / "corpus", world.corpus_clips(size.corpus))
        queries = [clip for clip in world.query_clips(size.queries) if clip.spec.motion in size.asked]
        world.write_clips(output / "queries", queries)
        pipe = self.pipeline()
        self.corpus, asking = choosing.encoded(pipe, world.CLIP, [output / "corpus", output / "queries"])
        self.choices = choosing.choices(pipe, world.CLIP, self.corpus, asking, output / "features")
        chosen = {
            method: {motion: self.choices.chosen(method, motion, 0, size.corpus).tolist() for motion in size.asked}
            for method in choosing.CHOOSING
        }
        (output / "chosen.json").write_text(json.dumps(chosen), encoding="utf-8")

    def pipeline(self, method: str = "base") -> Any:
        """The base, or for "unspoilt" what it was before it unlearnt."""
        from diffusers import WanPipeline

        pipe = WanPipeline.from_pretrained(LAB if method == "unspoilt" else self.base)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def do(self, run: Run) -> None:
        """Choose, train, generate; what is finished stays."""
        from miniature.outcome import ask, train_once

        size, folder = self.size, self.output / "models" / run.name
        if (folder / "run.json").exists():
            return
        begin, pipe = time.monotonic(), self.pipeline(run.method)
        facts: dict[str, Any] = {"method": run.method, "target": run.target, "seed": run.seed, "clips_seen": 0}
        if run.method not in UNTRAINED:
            method = "full" if run.method == EPOCHS else run.method
            chosen = self.choices.chosen(method, run.target, run.seed, len(self.corpus))
            tenth = round(choosing.FRACTION * size.corpus)
            clips_seen = size.epochs * (len(chosen) if run.method == EPOCHS else tenth)
            facts |= {"clips_seen": clips_seen, "chosen": chosen.tolist()}
            settings = {"clips_seen": clips_seen, "seed": run.seed, "lr": size.lr, "batch": size.batch}
            train_once(pipe, self.corpus.select(chosen), folder, **settings)
        trained = time.monotonic() - begin
        first, specs = prompts(run, size)
        ask(pipe, specs, seed=1000 * run.seed + first, steps=size.sampling_steps, folder=folder)
        facts |= {"seconds": {"training": round(trained), "all": round(time.monotonic() - begin)}}
        (folder / "run.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")  # last: it says "finished"
        print(f"{run.name}: {facts['seconds']['all']} s", flush=True)


def measure(output: Path, size: Size) -> None:
    """Measure what the finished models generated and was not measured yet."""
    from diffusers import WanPipeline
    from miniature.judging import Judge

    judge = Judge(output / "judge", WanPipeline.from_pretrained(output / "base").vae, size.reference, size.fitted_to)
    for finished in sorted((output / "models").glob("*/run.json")):
        judge.measure(finished.parent)


def main() -> None:
    from hf_motive.scoring import quiet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder; by default runs/curation, or runs/curation-smoke")
    parser.add_argument("--smoke", action="store_true", help="a tiny one, in two minutes")
    parser.add_argument("--prepare", action="store_true", help="make the world and score its clips, and do no run")
    parser.add_argument("--share", default="1/1", help="k/n: do the k-th of every n runs, for n processes at once")
    parser.add_argument("--table", action="store_true", help="do no run; measure what is finished, write the tables")
    parser.add_argument(
        "--report", type=Path, help="where the tables go; by default docs/results.md, in a smoke run none"
    )
    told = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    size = SMOKE if told.smoke else Size()
    output = told.output or ROOT / "runs" / ("curation-smoke" if told.smoke else "curation")
    k, n = map(int, told.share.split("/"))
    if told.table:
        if not any(output.glob("models/*/run.json")):
            parser.error(
                f"no run is finished in {output}: run without --table first, or name the --output of the runs"
            )
    else:
        check_world(output, size)
        experiment = Experiment(output, size)
        for run in [] if told.prepare else list(runs(size))[k - 1 :: n]:
            experiment.do(run)
        if told.prepare or n > 1:
            print("made; when all shares are, `--table` measures what they generated and writes the tables")
            return
    from miniature.tables import write_report

    measure(output, size)
    report = told.report or (output / "results.md" if told.smoke else ROOT / "docs" / "results.md")
    write_report(output, size, report)
    print(f"tables: {report}")


if __name__ == "__main__":
    main()
