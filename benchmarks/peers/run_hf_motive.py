"""hf_motive's two projections on a case; and the whole gradient, kept, which is what all are compared with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from case import Case, Meter, Method, Result, bytes_of, cosines, main

from hf_motive.factored import Factored
from hf_motive.gradients import GradientProjector, clip_feature, select_parameters
from hf_motive.index import GradientIndex
from hf_motive.projection import Fastfood, Projection


def projected(law: Callable[[], Projection]) -> Callable[..., Result]:
    def run(case: Case, corpus: range, queries: range, batch: int, meter: Meter, scratch: Path) -> Result:
        projection, denoisers = law(), {"transformer": case.model.denoiser}
        parameters = select_parameters(denoisers)
        index = GradientIndex.create_or_open(scratch, settings={"features": {}}, dim=projection.dim)
        features = []
        for row in chain(corpus, queries):
            if row in corpus:
                meter.lap([row])
            with GradientProjector(parameters, projection, denoisers.values()) as projector:
                feature = clip_feature(projector, [lambda row=row: case.model(**case.batch([row])).sum()])
            index.append(f"clip {row}", feature.vector)
            features.append(feature.vector.numpy())
            if row == corpus[-1]:
                meter.stop()
        assert feature.coverage == 1.0
        index.close()
        stored = bytes_of(scratch) / len(features)
        covered = [name for name, _ in case.model.named_parameters()]
        return Result(cosines(np.stack(features), corpus), stored, covered, projection.dim)

    return run


def whole(case: Case, corpus: range, queries: range, batch: int, meter: Meter, scratch: Path) -> Result:
    parameters = dict(case.model.named_parameters())
    scratch.mkdir(parents=True, exist_ok=True)
    for row in chain(corpus, queries):
        if row in corpus:
            meter.lap([row])
        gradients = torch.autograd.grad(case.model(**case.batch([row])).sum(), list(parameters.values()))
        np.save(scratch / f"{row}.npy", torch.cat([gradient.flatten() for gradient in gradients]).numpy())
        if row == corpus[-1]:
            meter.stop()
    features = np.stack([np.load(scratch / f"{row}.npy") for row in chain(corpus, queries)])
    return Result(cosines(features, corpus), bytes_of(scratch) / len(features), list(parameters), features.shape[1])


if __name__ == "__main__":
    main(
        {
            "whole": Method(whole),
            "fastfood": Method(projected(lambda: Fastfood(dim=512))),
            "factored": Method(projected(lambda: Factored(dim=512))),
        }
    )
