"""What one step of theory says when nothing is left to chance: the training's own noise, and no projection.

An influence stands for ∇L_q · ∇L_i: how much one small step on a clip changes a query's loss. It is estimated, with
draws that are not the training's and through a projection. Here it is had exactly: the gradient of each showing of a
clip, with the noise and σ that the training drew for it, times that of each query's loss as it is measured. What this
still misses is not for want of draws or of numbers: it is what training does besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .case import Case, Clips, whole
from .gradients import BASE, adaptive
from .retraining import Measurement, Model, Training, draw, measured

KINDS = ("as it is", "by AdamW's second moments")


def terms(
    model: Model,
    corpus: Clips,
    queries: Clips,
    training: Training,
    measurement: Measurement,
    seeds: Sequence[int],
    scale: Tensor,
) -> np.ndarray:
    """(kinds, seeds, epochs, N, Q) float32: by how much a step of length 1 on a showing lowers each query's loss.

    Args:
        model: At the weights that the gradients are taken at.
        scale: (D,) by what a gradient is multiplied in the second of `KINDS`, all parameters in their order.
    """
    asked = torch.stack([_query(model, queries, q, measurement) for q in tqdm(range(len(queries)), desc="queries")])
    scale = scale.to(model.device)
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
            found[kind, :, :, clip] = (columns @ asked.T).view(len(seeds), training.epochs, -1).cpu().numpy()
    return found


def _query(model: Model, queries: Clips, q: int, measurement: Measurement) -> Tensor:
    """(D,) of the motion-weighted loss, the mean over all that it is measured at."""
    weighted = [weighted for _, weighted, _ in measured(model, queries.part(q, q + 1), measurement)]
    return _gradient(model, torch.cat(weighted).mean())


def _gradient(model: Model, loss: Tensor) -> Tensor:
    """(D,) of all parameters in their order."""
    parameters = list(model.denoiser.parameters())
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])


def compute(
    model: Model,
    made: Case,
    folder: Path,
    moments: Mapping[str, Tensor],
    checkpoints: Sequence[Path],
    training: Training,
    measurement: Measurement,
    seeds: Sequence[int],
    share: tuple[int, int] = (1, 1),
) -> None:
    """FOLDER/base.npy and FOLDER/K.npy, of `terms`; what is there is not done again.

    Args:
        moments: As `gradients.compute` keeps them.
        checkpoints: K.pt, states of the denoiser.
        share: As `gradients.compute` takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scales = adaptive(dict(moments))
    scale = torch.cat([scales[f"transformer.{name}"].flatten() for name, _ in model.denoiser.named_parameters()])
    places = [(BASE, None), *((path.stem, path) for path in checkpoints)]
    for name, state in places[share[0] - 1 :: share[1]]:
        if (folder / f"{name}.npy").exists():
            continue
        model.reset()
        if state is not None:
            model.denoiser.load_state_dict(torch.load(state, map_location="cpu"))
        found = terms(model, made.corpus, made.queries, training, measurement, seeds, scale)
        with whole(folder / f"{name}.npy") as partial:
            np.save(partial, found)


def read(folder: Path) -> dict[str, np.ndarray]:
    """Name of a checkpoint -> its `terms`, the base's first."""
    paths = sorted(folder.glob("*.npy"), key=lambda path: (path.stem != BASE, path.stem))
    return {path.stem: np.load(path).astype(np.float64) for path in paths}
