"""bergson's `GradientCollector`: random projections of the gradients of linear layers, on disk, of unit norm.

Its `CollectorComputer` and command line are for language models (token ids in, logits out), so the loop over clips is
this one, with the collector as the context that it is. As in bergson's own workers the weights are frozen, and only
what starts the graph is left to differentiate: here the biases of the first layers.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch
from bergson import GradientCollector, GradientProcessor, IndexConfig, PreprocessConfig, load_gradients
from case import Case, Meter, Method, Result, batches, bytes_of, cosines, main
from datasets import Dataset
from torch import nn


def three_dimensional(case: Case) -> tuple[set[str], list[str]]:
    """The linear layers whose inputs are (clips, tokens, features), which are those that it takes, and the rest."""
    fitting, others, hooks = set(), [], []

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if isinstance(module, nn.Linear) and inputs[0].ndim == 3:
                fitting.add(name)
            else:
                others.append(name)

        return hook

    for name, module in case.model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            hooks.append(module.register_forward_hook(note(name)))
    with torch.no_grad():
        case.model(**case.batch([0]))
    for hook in hooks:
        hook.remove()
    return fitting, others


def bergson(target: str, numbers: int, everything: bool = False):
    def run(case: Case, corpus: range, queries: range, batch: int, meter: Meter, scratch: Path) -> Result:
        layers, others = three_dimensional(case)
        every = {name for name, _ in case.model.named_parameters()}
        biases = {f"{name}.bias" for name in (*others, *layers) if "embed" in name}
        for name, parameter in case.model.named_parameters():
            parameter.requires_grad_(name in biases)
        rows = [*corpus, *queries]
        scratch.mkdir(parents=True, exist_ok=True)
        config = IndexConfig(run_path=str(scratch / "index"), projection_dim=numbers, projection_target=target)
        collector = GradientCollector(
            model=case.model,
            data=Dataset.from_dict({"input_ids": [[0]] * len(rows), "clip": rows}),
            cfg=config,
            processor=GradientProcessor(projection_dim=numbers, projection_target=target, include_bias=True),
            target_modules=None if everything else layers,
            preprocess_cfg=PreprocessConfig(unit_normalize=True),
        )
        place = 0
        for some in chain(batches(corpus, batch), batches(queries, batch)):
            if some[0] in corpus:
                meter.lap(some)
            else:
                meter.stop()
            with collector.with_batch(None):
                losses = case.model(**case.batch(some))
                losses.sum().backward()
                case.model.zero_grad()
            collector.process_batch(list(range(place, place + len(some))), losses=losses)
            place += len(some)
        collector.teardown()
        features = np.array(load_gradients(config.partial_run_path))
        stored = bytes_of(config.partial_run_path) / len(rows)
        covered = sorted(every & {f"{name}.{kind}" for name in collector.target_info for kind in ("weight", "bias")})
        return Result(cosines(features, corpus), stored, covered, features.shape[1])

    return run


if __name__ == "__main__":
    main(
        {
            "everything": Method(bergson("per_module", 3, everything=True)),
            "modules 3": Method(bergson("per_module", 3)),
            "modules 16": Method(bergson("per_module", 16)),
            "global one": Method(bergson("global", 512), clips=4, queries=1),
            "global ten": Method(bergson("global", 512), batch=10),
        }
    )
