"""dattri: `TracInAttributor` with normalised, projected gradients, and `LoGraAttributor`.

`features` is what TracIn does to one clip (its task's gradient, `random_project`), without what it repeats: for every
batch of the corpus, TracIn computes and projects the queries' gradients again.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from case import Case, Meter, Method, Result, Rows, batches, cosines, main, weights_and_biases
from dattri.algorithm.logra import LoGraAttributor
from dattri.algorithm.tracin import TracInAttributor
from dattri.func.projection import random_project
from dattri.task import AttributionTask
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader

PROJECTION = {"proj_dim": 512, "proj_max_batch_size": 32, "proj_seed": 0, "device": "cpu"}


def loss_task(case: Case) -> AttributionTask:
    def loss(parameters, clip):
        arguments = {name: tensor.unsqueeze(0) for name, tensor in zip(case.names, clip, strict=True)}
        return functional_call(case.model, parameters, (), arguments).sum()

    return AttributionTask(loss, case.model, {k: v.clone() for k, v in case.model.state_dict().items()})


def tracin(case: Case, corpus: range, queries: range, batch: int, meter: Meter, scratch: Path) -> Result:
    attributor = TracInAttributor(
        loss_task(case), weight_list=torch.ones(1), normalized_grad=True, projector_kwargs=PROJECTION
    )
    trained = DataLoader(Rows(case, corpus, batch, meter, as_tuple=True), batch_size=batch)
    asked = DataLoader(Rows(case, queries, as_tuple=True), batch_size=len(queries))
    scores = attributor.attribute(trained, asked)
    meter.stop()
    return Result(scores.T.numpy(), 0, [name for name, _ in case.model.named_parameters()], PROJECTION["proj_dim"])


def features(case: Case, corpus: range, queries: range, batch: int, meter: Meter, scratch: Path) -> Result:
    task, found = loss_task(case), []
    gradient, (parameters, _) = task.get_grad_loss_func(in_dims=(None, 0)), task.get_param()
    for some in chain(batches(corpus, batch), batches(queries, batch)):
        if some[0] in corpus:
            meter.lap(some)
        else:
            meter.stop()
        gradients = gradient(parameters, tuple(case.batch(some).values()))
        found.append(random_project(gradients, len(some), **PROJECTION)(gradients, ensemble_id=0).detach().numpy())
    meter.stop()
    covered = [name for name, _ in case.model.named_parameters()]
    kept = np.concatenate(found)
    return Result(cosines(kept, corpus), kept[0].nbytes, covered, kept.shape[1])


class WithLoss(nn.Module):
    """LoGra asks a model that is called with dictionaries for an output with a `loss`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **clips: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=self.model(**clips).sum())


def logra(numbers: int):
    def run(case: Case, corpus: range, queries: range, batch: int, meter: Meter, scratch: Path) -> Result:
        rows, model = [*corpus, *queries], WithLoss(case.model)
        fetched = iter(batches(rows, batch))

        def loss(model: nn.Module, clips: dict[str, torch.Tensor], device: str) -> torch.Tensor:
            some = next(fetched)
            if some[0] in corpus:
                meter.lap(some)
            else:
                meter.stop()
            return model(**clips).loss

        # Gradients stay in memory: its store on disk pins memory, which takes a GPU. Metadata is written all the same.
        scratch.mkdir(parents=True, exist_ok=True)
        task = AttributionTask(loss, model, model.state_dict())
        attributor = LoGraAttributor(
            task, hessian="Identity", proj_dim=numbers, offload="none", cache_dir=str(scratch)
        )
        # Corpus and queries are cached alike, because only what is cached can be asked for its own influence, ‖g‖².
        taken = DataLoader(Rows(case, rows), batch_size=batch)
        attributor.cache(taken)
        meter.stop()
        lengths = attributor.compute_self_attribution().sqrt()
        asked = DataLoader(Rows(case, queries), batch_size=batch)
        dots = attributor.attribute(taken, asked)
        raw = dots[: len(corpus)].T
        scores = raw / lengths[len(corpus) :, None] / lengths[None, : len(corpus)]
        layers = [name.removeprefix("model.") for name in attributor.layer_names]
        stored = attributor.total_proj_dim * dots.element_size()
        covered = weights_and_biases(case.model, layers)
        return Result(scores.numpy(), stored, covered, attributor.total_proj_dim, raw.numpy())

    return run


if __name__ == "__main__":
    main(
        {
            "tracin": Method(tracin, batch=10),
            "features": Method(features, clips=4, queries=1),
            "logra 9": Method(logra(9)),
            "logra 4096": Method(logra(4096)),
        }
    )
