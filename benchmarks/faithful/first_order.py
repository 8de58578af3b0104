"""What one step of theory says when nothing is left to chance: the training's own noise, and no projection.

An influence stands for ∇L_q · ∇L_i: how much one small step on a clip changes a query's loss. It is estimated, with
draws that are not the training's and through a projection. Here it is had exactly: the gradient of each showing of a
clip, with the noise and σ that the training drew for it, times that of each query's loss as it is measured. What this
still misses is not for want of draws or of numbers: it is what training does besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .case import Clips
from .retraining import Measurement, Model, Training, draw, measured

KINDS = ("as it is", "by AdamW's second moments")


def terms(
    model: Model,
    corpus: Clips,
    queries: Clips,
    training: Training,
    measurement: Measurement,
    seeds: Sequence[int],
    moments: Tensor,
) -> np.ndarray:
    """(kinds, seeds, epochs, N, Q) float32: by how much a step of length 1 on a showing lowers each query's loss.

    Args:
        model: At the weights that the gradients are taken at.
        moments: (D,) of all parameters in their order, means of squared gradients.
    """
    asked = torch.stack([_query(model, queries, q, measurement) for q in tqdm(range(len(queries)), desc="queries")])
    scale = 1 / (moments.sqrt() + 0.01 * moments.mean().sqrt())  # as gradients.Second has it
    found = np.zeros((len(KINDS), len(seeds), training.epochs, len(corpus), len(queries)), dtype=np.float32)
    shape = corpus.latents.shape[1:]
    for clip in tqdm(range(len(corpus)), desc="clips"):
        steps = []
        for seed in seeds:
            for showing in range(training.epochs):
                noise, sigma = draw(shape, seed, clip, showing, training.epochs, model.shift)
                squares = model.squared_error(
                    corpus.latents[[clip]], corpus.captions[[clip]], noise[None], torch.tensor([sigma])
                )
                steps.append(_gradient(model, squares.mean()))
        plain = torch.stack(steps)
        for kind, columns in enumerate((plain, plain * scale)):
            found[kind, :, :, clip] = (columns @ asked.T).view(len(seeds), training.epochs, -1).numpy()
    return found


def _query(model: Model, queries: Clips, q: int, measurement: Measurement) -> Tensor:
    """(D,) of the motion-weighted loss, the mean over all that it is measured at."""
    weighted = [weighted for _, weighted, _ in measured(model, queries.part(q, q + 1), measurement)]
    return _gradient(model, torch.cat(weighted).mean())


def _gradient(model: Model, loss: Tensor) -> Tensor:
    """(D,) of all parameters in their order."""
    parameters = list(model.denoiser.parameters())
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])
