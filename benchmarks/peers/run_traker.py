"""TRAK's features (traker): a dense Gaussian projection of per-sample gradients, made by torch.func.

`TRAKer.featurize` as its documentation has it, for a model output that is the loss itself. Of what it stores, the
projected gradients are compared by their cosine: TRAK's own score multiplies them by the inverse of their covariance,
which is another question (and singular for fewer clips than numbers).
"""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

import torch
from case import Case, Meter, Method, Result, batches, bytes_of, cosines, main
from torch.func import functional_call
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput

NUMBERS = 512


class LossOutput(AbstractModelOutput):
    def __init__(self, names: list[str]):
        super().__init__()
        self.names = names

    def get_output(self, model, weights, buffers, *clip):
        arguments = {name: tensor.unsqueeze(0) for name, tensor in zip(self.names, clip, strict=True)}
        return functional_call(model, (weights, buffers), (), arguments).sum()

    def get_out_to_loss_grad(self, model, weights, buffers, batch):
        return torch.ones(len(batch[0]), 1)


def run(case: Case, corpus: range, queries: range, batch: int, meter: Meter, scratch: Path) -> Result:
    rows = [*corpus, *queries]
    traker = TRAKer(
        model=case.model,
        task=LossOutput(case.names),
        train_set_size=len(rows),
        save_dir=str(scratch),
        device="cpu",
        proj_dim=NUMBERS,
        use_half_precision=False,
        logging_level=logging.WARNING,
    )
    traker.load_checkpoint(case.model.state_dict(), model_id=0)
    for some in chain(batches(corpus, batch), batches(queries, batch)):
        if some[0] in corpus:
            meter.lap(some)
        else:
            meter.stop()
        traker.featurize(list(case.batch(some).values()), num_samples=len(some))
    features = traker.saver.current_store["grads"][: len(rows)].copy()
    covered = [name for name, _ in case.model.named_parameters()]
    return Result(cosines(features, corpus), bytes_of(scratch) / len(rows), covered, NUMBERS)


if __name__ == "__main__":
    main({"one": Method(run, clips=4, queries=1), "ten": Method(run, batch=10)})
