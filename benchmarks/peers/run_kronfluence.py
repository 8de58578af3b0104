"""Kronfluence with strategy="identity": dot products of gradients, without a curvature.

Nothing is projected and nothing is kept of a clip: the queries' gradients wait in memory, and each pass over the
corpus multiplies with them. Norms, for cosines, are a second pass (`compute_self_scores`).
"""

from __future__ import annotations

from pathlib import Path

from case import Case, Meter, Method, Result, Rows, main
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module.tracked_module import TrackedModule
from kronfluence.task import Task


class LossTask(Task):
    def compute_train_loss(self, batch, model, sample=False):
        return model(**batch).sum()

    def compute_measurement(self, batch, model):
        return model(**batch).sum()


class Phase:
    """A meter whose laps count for one phase."""

    def __init__(self, meter: Meter, name: str):
        self.meter, self.name = meter, name

    def lap(self, rows: list[int]) -> None:
        self.meter.lap(rows, self.name)


def kronfluence(rank: int | None):
    def run(case: Case, corpus: range, queries: range, batch: int, meter: Meter, scratch: Path) -> Result:
        task = LossTask()
        names = {id(parameter): name for name, parameter in case.model.named_parameters()}
        model = prepare_model(case.model, task)
        analyzer = Analyzer("case", model, task, cpu=True, disable_tqdm=True, output_dir=str(scratch))
        factors = FactorArguments(strategy="identity")
        analyzer.fit_all_factors("identity", Rows(case, corpus), per_device_batch_size=batch, factor_args=factors)
        told = {
            "factors_name": "identity",
            "per_device_train_batch_size": batch,
            # Without it the corpus is passed over once a query, which is the default.
            "score_args": ScoreArguments(query_gradient_low_rank=rank, query_gradient_accumulation_steps=len(queries)),
        }
        analyzer.compute_pairwise_scores(
            "pairs",
            query_dataset=Rows(case, queries),
            train_dataset=Rows(case, corpus, batch, Phase(meter, "scores")),
            per_device_query_batch_size=1,
            **told,
        )
        meter.stop()
        raw = analyzer.load_pairwise_scores("pairs")["all_modules"]
        analyzer.compute_self_scores("own", train_dataset=Rows(case, corpus, batch, Phase(meter, "norms")), **told)
        meter.stop()
        analyzer.compute_self_scores("asked", train_dataset=Rows(case, queries), **told)
        own, asked = (analyzer.load_self_scores(name)["all_modules"].sqrt() for name in ("own", "asked"))
        tracked = [m.original_module for m in model.modules() if isinstance(m, TrackedModule)]
        covered = [names[id(p)] for m in tracked for p in m.parameters() if id(p) in names]
        scores = raw / asked[:, None] / own[None, :]
        return Result(scores.float().numpy(), 0, covered, raw=raw.float().numpy())

    return run


if __name__ == "__main__":
    main({"whole": Method(kronfluence(None)), "rank 8": Method(kronfluence(8))})
