"""The case that every library is given, and how each is measured. Needs torch and diffusers only.

A case is a folder that `benchmarks/peers.py` writes: the denoiser as diffusers saves it, the arguments with which the
pipeline called it for each clip, what it should have predicted, and the motion weight, divided by the number of
denoised elements. So the loss of a clip is sum(weight · (prediction - target)²), which is `PipelineStep.loss`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

sys.path.append(str(Path(__file__).parents[1]))

from cost import Memory


class ClipLoss(nn.Module):
    """The denoiser and the loss as one module: arguments, target and weight (B, ...) to losses (B,)."""

    def __init__(self, denoiser: nn.Module, constants: Mapping[str, object]):
        super().__init__()
        self.denoiser = denoiser
        self.constants = dict(constants)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, target: Tensor, weight: Tensor, **arguments: Tensor) -> Tensor:
        prediction = self.denoiser(**arguments, **self.constants)[0]
        return (weight * (prediction - target) ** 2).flatten(1).sum(1)


class Case:
    """A case, read from its folder. The rows of the corpus come first, then the queries'."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / "case.json").read_text())
        # Not from_pretrained, which for some classes needs accelerate.
        config = json.loads((folder / "denoiser" / "config.json").read_text())
        denoiser = getattr(diffusers, config["_class_name"]).from_config(config)
        denoiser.load_state_dict(load_file(folder / "denoiser" / "diffusion_pytorch_model.safetensors"))
        self.model = ClipLoss(denoiser.eval().requires_grad_(), facts["constants"])
        self.tensors: dict[str, Tensor] = torch.load(folder / "clips.pt", weights_only=True)
        self.corpus, self.queries = range(facts["corpus"]), range(facts["corpus"], facts["corpus"] + facts["queries"])

    @property
    def names(self) -> list[str]:
        """Of the tensors of a clip."""
        return list(self.tensors)

    def clip(self, row: int) -> dict[str, Tensor]:
        """One clip's tensors, without a dimension for the batch."""
        return {name: tensor[row] for name, tensor in self.tensors.items()}

    def batch(self, rows: Iterable[int]) -> dict[str, Tensor]:
        """Several clips' tensors, (B, ...)."""
        rows = list(rows)
        return {name: tensor[rows] for name, tensor in self.tensors.items()}

    def step(self, row: int) -> Tensor:
        """A plain forward and backward of one clip: what every method is compared with. Returns the loss."""
        loss = self.model(**self.batch([row])).sum()
        loss.backward()
        for parameter in self.model.parameters():
            parameter.grad = None
        return loss.detach()


class Meter:
    """Seconds a clip, each beside a plain step of the same clip on a copy of the model that nothing has touched.

    `lap` is called when a library turns to the next clips: it ends the time of those before.
    """

    def __init__(self, plain: Case | None):
        self._plain = plain
        self._open: tuple[str, int, float, float] | None = None
        self.laps: dict[str, list[tuple[float, float]]] = {}

    def lap(self, rows: list[int], phase: str = "features") -> None:
        if self._plain is None:
            return
        self.stop()
        start = time.perf_counter()
        self._plain.step(rows[0])
        now = time.perf_counter()
        self._open = phase, len(rows), now - start, time.perf_counter()

    def stop(self) -> None:
        if self._open is not None:
            phase, count, plain, start = self._open
            self.laps.setdefault(phase, []).append(((time.perf_counter() - start) / count, plain))
            self._open = None

    def facts(self) -> dict[str, object]:
        """Milliseconds a clip and their ratio to the plain step: medians; of several phases, their sum."""
        self.stop()
        laps = self.laps.values()
        return {
            "ms": 1e3 * sum(statistics.median(own for own, _ in phase) for phase in laps),
            "ratio": sum(statistics.median(own / plain for own, plain in phase) for phase in laps),
            "plain_ms": 1e3 * statistics.median(plain for phase in laps for _, plain in phase),
            "phases": {
                name: statistics.median(own / plain for own, plain in phase) for name, phase in self.laps.items()
            },
        }


class Peak(Meter):
    """In place of times: the memory above what was resident when it was made, in MiB, from the second lap on.

    So what a library keeps (a projection's matrix, queries' gradients) counts, and what it needs once does not.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self._memory = Memory("cpu")
        self._memory.begin()
        self._held, self._laps = self._memory.held, 0
        self.mib = 0.0

    def lap(self, rows: list[int], phase: str = "features") -> None:
        self._laps += 1
        if self._laps == 2:
            self._memory.begin()
            self._memory.held = self._held

    def stop(self) -> None:
        if self._laps >= 2:
            self.mib = max(self.mib, self._memory.peak_above_begin())


class Rows(Dataset):
    """Clips as a dataset. With a meter, fetching the first of each batch is a lap."""

    def __init__(
        self, case: Case, rows: Sequence[int], batch: int = 1, meter: Meter | None = None, as_tuple: bool = False
    ):
        self._case, self._rows, self._batch, self._meter, self._as_tuple = case, rows, batch, meter, as_tuple

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Tensor] | tuple[Tensor, ...]:
        if self._meter is not None and place % self._batch == 0:
            self._meter.lap(list(self._rows[place : place + self._batch]))
        clip = self._case.clip(self._rows[place])
        return tuple(clip.values()) if self._as_tuple else clip


@dataclass
class Result:
    """What one run gives.

    Attributes:
        scores: (queries, corpus) cosines.
        stored: Bytes that are kept of a clip.
        covered: Names of the parameters of `ClipLoss` whose gradient enters.
        numbers: How many numbers a feature has; None where there is none.
        raw: The library's own scores, where those are not cosines.
    """

    scores: np.ndarray
    stored: float
    covered: list[str]
    numbers: int | None = None
    raw: np.ndarray | None = None


@dataclass
class Method:
    """One way of using a library.

    Attributes:
        run: (case, corpus rows, query rows, batch, meter, scratch folder) -> Result.
        batch: Clips that are computed together.
        clips, queries: How many of the case's are taken; None for all.
    """

    run: Callable[[Case, range, range, int, Meter, Path], Result]
    batch: int = 1
    clips: int | None = None
    queries: int | None = None


def cosines(features: np.ndarray, corpus: range) -> np.ndarray:
    """(rows, numbers), the corpus first -> (queries, corpus)."""
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit[len(corpus) :] @ unit[: len(corpus)].T


def weights_and_biases(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The names of the parameters of some layers."""
    return [f"{layer}.{name}" for layer in layers for name, _ in model.get_submodule(layer).named_parameters()]


def batches(rows: Iterable[int], size: int) -> Iterator[list[int]]:
    rows = list(rows)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(methods: Mapping[str, Method]) -> None:
    """A runner: --case FOLDER --method NAME --output FOLDER. Writes scores.npy and facts.json, or the error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--method", choices=methods, required=True)
    parser.add_argument("--output", type=Path, required=True)
    told = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    told.output.mkdir(parents=True, exist_ok=True)
    try:
        facts = _measure(told.case, methods[told.method], told.output)
    except Exception as error:
        traceback.print_exc()
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        facts = {"error": f"{type(error).__name__}: {message}"}
    (told.output / "facts.json").write_text(json.dumps(facts, indent=1))


def _measure(folder: Path, method: Method, output: Path) -> dict[str, object]:
    plain, memory = Case(folder), Memory("cpu")
    corpus = plain.corpus[: method.clips]
    queries = plain.queries[: method.queries]
    for row in corpus[:2]:
        plain.step(row)

    memory.begin()
    plain.step(corpus[0])
    above_plain = memory.peak_above_begin()
    case, peak = Case(folder), Peak()
    method.run(case, corpus[: 2 * method.batch], queries, method.batch, peak, output / "memory")

    case, meter = Case(folder), Meter(plain)
    result = method.run(case, corpus, queries, method.batch, meter, output / "index")
    np.save(output / "scores.npy", result.scores)
    if result.raw is not None:
        np.save(output / "raw.npy", result.raw)
    return {
        **meter.facts(),
        "peak": peak.mib,
        "plain_peak": above_plain,
        "stored": result.stored,
        "covered": result.covered,
        "numbers": result.numbers,
        "batch": method.batch,
        "clips": len(corpus),
        "queries": len(queries),
    }
