"""The same clips, model, mask, timestep and noise through other attribution libraries, beside hf_motive.

    python benchmarks/peers.py                          # environments, case, every method, the report; about an hour
    python benchmarks/peers.py --only hf_motive bergson # these again; what the others gave before is kept
    python benchmarks/peers.py --table                  # the report of what is there

On the lab's trained pipeline and clips. The case is written once: for each clip the arguments with which the pipeline
called its denoiser, the target and the motion weight, so that a library needs nothing of a pipeline; and of every
parameter the dot products of the unprojected gradients, so that exact cosines over any of them are known. Each library
has a virtual environment of its own with the versions of benchmarks/peers/<library>.txt, and each method is a process
of its own (benchmarks/peers/run_<library>.py) that computes on one thread. All of it goes under --work. Writes
benchmarks/results/peers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from agreement import overlap, spearman
from torch import Tensor

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
HERE = ROOT / "benchmarks" / "peers"
TORCH = "torch==2.13.0"
DRAWS = 2000
SEEDS = 6


class Entry(NamedTuple):
    """A row of the table: a method of a runner, and what it is."""

    library: str
    method: str
    label: str


ENTRIES = (
    Entry("hf_motive", "whole", "the whole gradient, kept"),
    Entry("hf_motive", "fastfood", "hf_motive, Fastfood"),
    Entry("hf_motive", "factored", "hf_motive, factored"),
    Entry("traker", "one", "traker, a clip at a time"),
    Entry("traker", "ten", "traker, ten at a time"),
    Entry("dattri", "features", "dattri, gradient and projection, a clip at a time"),
    Entry("dattri", "tracin", "dattri, TracIn, ten at a time"),
    Entry("dattri", "logra 9", "dattri, LoGra, 9 a layer"),
    Entry("dattri", "logra 4096", "dattri, LoGra, its default of 4096 a layer"),
    Entry("kronfluence", "whole", "kronfluence, identity"),
    Entry("kronfluence", "rank 8", "kronfluence, identity, queries of rank 8"),
    Entry("bergson", "global one", "bergson, global, a clip at a time"),
    Entry("bergson", "global ten", "bergson, global, ten at a time"),
    Entry("bergson", "modules 3", "bergson, per module, 3 × 3"),
    Entry("bergson", "modules 16", "bergson, per module, 16 × 16"),
    Entry("bergson", "everything", "bergson, every layer it names"),
)


# ------------------------------------------------------------------------------------------------------- the case


def write_case(folder: Path, clips: int, queries: int) -> None:
    """Everything that a library needs of the clips, and the dot products of their exact gradients."""
    from diffusers import WanPipeline
    from tqdm.auto import tqdm

    from hf_motive import MotiveAttributor
    from hf_motive.corpus import load_clips
    from hf_motive.errors import ClipError
    from hf_motive.video import load_clip

    pipe = WanPipeline.from_pretrained(LAB / "pipeline")
    attributor = MotiveAttributor(pipe, preset="paper", num_frames=17, height=64, width=64, fps=16.0)
    step, (denoiser,) = attributor.step, attributor.step.denoisers.values()
    denoiser.eval().requires_grad_()
    parameters = {f"denoiser.{name}": parameter for name, parameter in denoiser.named_parameters()}
    noise = step.noise(0)

    def moving(rows, place: int) -> tuple[dict, Tensor, Tensor]:
        """The clip at a place, or the next one that is not static."""
        row = rows[place]
        try:
            pixels = load_clip(row["video"], attributor.config.standard)
            return row, pixels, attributor.motion_weight(pixels)[0]
        except ClipError:
            return moving(rows, (place + 1) % len(rows))

    tensors: list[dict[str, Tensor]] = []
    gradients: list[dict[str, Tensor]] = []
    losses, counts, constants = [], [], {}
    for part, wanted in (("corpus", clips), ("queries", queries)):
        rows = load_clips(LAB / part)
        places = np.linspace(0, len(rows) - 1, min(len(rows), wanted)).round().astype(int).tolist()
        counts.append(len(places))
        for place in tqdm(places, desc=part):
            row, pixels, weight = moving(rows, place)
            calls: list[dict] = []
            hook = denoiser.register_forward_pre_hook(
                lambda module, args, kwargs, calls=calls: calls.append({**named(module, args), **kwargs}),
                with_kwargs=True,
            )
            out = step.loss(step.encode(pixels), row["caption"], noise=noise, timestep=751, weight=weight)
            hook.remove()
            (call,) = calls
            found = torch.autograd.grad(out.loss, list(parameters.values()))
            gradients.append({name: gradient.clone() for name, gradient in zip(parameters, found, strict=True)})
            losses.append(out.loss.item())
            constants = {k: v for k, v in call.items() if not isinstance(v, Tensor)}
            tensors.append(
                {
                    **{k: v.detach().clone() for k, v in call.items() if isinstance(v, Tensor)},
                    "target": out.target,
                    "weight": out.weight / out.weight.numel(),
                }
            )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    denoiser.save_pretrained(folder / "denoiser")
    torch.save({name: torch.cat([one[name] for one in tensors]) for name in tensors[0]}, folder / "clips.pt")
    corpus = range(counts[0])
    dots, lengths = [], []
    for name in parameters:
        flat = torch.stack([one[name].flatten() for one in gradients]).double()
        dots.append(flat[len(corpus) :] @ flat[: len(corpus)].T)
        lengths.append(flat.square().sum(1))
    np.savez(folder / "exact.npz", dots=torch.stack(dots).numpy(), lengths=torch.stack(lengths).numpy())
    facts = {"corpus": counts[0], "queries": counts[1], "constants": constants, "parameters": list(parameters)}
    facts["seed_spread"] = seed_spread(gradients, counts[0])
    facts["sizes"] = [parameter.numel() for parameter in parameters.values()]
    facts["loss_error"], facts["gradient_error"] = check_case(folder, facts, losses, gradients)
    (folder / "case.json").write_text(json.dumps(facts, indent=1))


def seed_spread(gradients: list[dict[str, Tensor]], corpus: int) -> float:
    """Standard deviation, over seeds of one projection to 512 numbers, of the mean Spearman over queries."""
    from hf_motive.projection import Fastfood

    def cosines(vectors: list[Tensor]) -> np.ndarray:
        unit = torch.nn.functional.normalize(torch.stack(vectors).double(), dim=1)
        return (unit[corpus:] @ unit[:corpus].T).numpy()

    exact = cosines([torch.cat([part.flatten() for part in one.values()]) for one in gradients])
    laws = [Fastfood(dim=512, seed=seed) for seed in range(SEEDS)]
    found = [spearman(exact, cosines([law.project(one) for one in gradients])).mean() for law in laws]
    return float(np.std(found, ddof=1))


def named(module: torch.nn.Module, args: tuple) -> dict:
    """Positional arguments of a module's call by their names."""
    import inspect

    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False))


def check_case(
    folder: Path, facts: dict, losses: list[float], gradients: list[dict[str, Tensor]]
) -> tuple[float, float]:
    """The largest relative error of loss and gradient when they are computed from what was written."""
    sys.path.insert(0, str(HERE))
    from case import Case

    (folder / "case.json").write_text(json.dumps(facts))
    case = Case(folder)
    rows = [0, len(losses) // 2, len(losses) - 1]
    of_loss = of_gradient = 0.0
    for row in rows:
        loss = case.model(**case.batch([row])).sum()
        found = torch.autograd.grad(loss, list(case.model.parameters()))
        ours = torch.cat([gradient.flatten() for gradient in found])
        theirs = torch.cat([gradient.flatten() for gradient in gradients[row].values()])
        of_loss = max(of_loss, abs(loss.item() / losses[row] - 1))
        of_gradient = max(of_gradient, float((ours - theirs).norm() / theirs.norm()))
    if max(of_loss, of_gradient) > 1e-4:
        raise RuntimeError(f"the case is not the pipeline's: loss off by {of_loss:.1e}, gradient by {of_gradient:.1e}")
    return of_loss, of_gradient


# -------------------------------------------------------------------------------------------------- the libraries


def environment(library: str, work: Path) -> Path:
    """The Python of a library's virtual environment, made if it is not there."""
    if library == "hf_motive":
        return Path(sys.executable)
    folder, versions = work / f"env-{library}", HERE / f"{library}.txt"
    done = folder / "versions.txt"
    if not done.exists() or done.read_text() != versions.read_text():
        print(f"making the environment of {library}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # torch with what it requires on this machine; all else as it is listed, without torchvision and torchaudio.
        for asked in ([TORCH, "--constraint", versions], ["--no-deps", "--requirement", versions]):
            subprocess.run([*install, *asked], check=True, stderr=subprocess.DEVNULL)
        done.write_text(versions.read_text())
    return folder / "bin" / "python"


def run(entry: Entry, python: Path, work: Path, timeout: float) -> None:
    """One method in a process of its own; what it printed is kept beside what it found."""
    output = work / "found" / f"{entry.library} {entry.method}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    command = [python, HERE / f"run_{entry.library}.py", "--case", work / "case", "--method", entry.method]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with open(output / "log.txt", "w") as log:
        try:
            subprocess.run(
                [*command, "--output", output],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **one_thread, "CUDA_VISIBLE_DEVICES": ""},
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            (output / "facts.json").write_text(json.dumps({"error": f"stopped after {timeout:.0f} s"}))
    for name in ("memory", "index"):
        shutil.rmtree(output / name, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ the table


class Exact:
    """Cosines of the unprojected gradients over any of the parameters."""

    def __init__(self, folder: Path):
        self.facts = json.loads((folder / "case.json").read_text())
        stored = np.load(folder / "exact.npz")
        self._dots, self._lengths = stored["dots"], stored["lengths"]
        self.places = {name: place for place, name in enumerate(self.facts["parameters"])}

    def cosines(self, covered: list[str] | None = None) -> np.ndarray:
        """(queries, corpus)."""
        taken = [self.places[name] for name in covered] if covered is not None else slice(None)
        lengths = np.sqrt(self._lengths[taken].sum(0))
        corpus = self.facts["corpus"]
        return self._dots[taken].sum(0) / lengths[corpus:, None] / lengths[None, :corpus]

    def coverage(self, covered: list[str]) -> float:
        sizes = self.facts["sizes"]
        return sum(sizes[self.places[name]] for name in covered) / sum(sizes)


class Agreement(NamedTuple):
    pairs: float
    query: float
    low: float
    high: float
    top: float


def agreement(exact: np.ndarray, found: np.ndarray) -> Agreement:
    """Spearman over all pairs; its mean over queries with a 95 % interval over queries; share of the top tenth."""
    pairs = float(spearman(exact.reshape(1, -1), found.reshape(1, -1))[0])
    each = spearman(exact, found)
    rng = np.random.default_rng(0)
    draws = each[rng.integers(len(each), size=(DRAWS, len(each)))].mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Agreement(pairs, float(each.mean()), float(low), float(high), float(overlap(exact, found).mean()))


def rows(work: Path) -> tuple[list[str], list[str]]:
    """The two tables' lines: cost and agreement."""
    exact = Exact(work / "case")
    cost, agree = [], []
    for entry in ENTRIES:
        found = work / "found" / f"{entry.library} {entry.method}"
        if not (found / "facts.json").exists():
            reason = "not run" if not (found / "log.txt").exists() else "ended without a result"
            cost.append(f"| {entry.label} | {reason} |" + " |" * 6)
            continue
        facts = json.loads((found / "facts.json").read_text())
        if "error" in facts:
            cost.append(f"| {entry.label} | does not run: `{facts['error']}` |" + " |" * 6)
            continue
        numbers = f"{facts['numbers']:,}" if facts["numbers"] else "none"
        cost.append(
            f"| {entry.label} | {numbers} | {facts['clips']} | {facts['ms']:,.0f} | {facts['ratio']:.2f} "
            f"| {facts['peak']:,.0f} | {facts['stored']:,.0f} | {exact.coverage(facts['covered']):.1%} |"
        )
        scores = np.load(found / "scores.npy")
        if scores.shape != exact.cosines().shape:
            continue  # a method that was only timed
        whole = agreement(exact.cosines(), scores)
        covered = agreement(exact.cosines(), exact.cosines(facts["covered"]))
        raw = agreement(exact.cosines(), np.load(found / "raw.npy")).query if (found / "raw.npy").exists() else None
        agree.append(
            f"| {entry.label} | {numbers} | {whole.pairs:.3f} | {whole.query:.3f} [{whole.low:.3f}, {whole.high:.3f}] "
            f"| {whole.top:.2f} | {covered.query:.3f} | {'—' if raw is None else f'{raw:.3f}'} |"
        )
    return cost, agree


def versions() -> str:
    """The libraries' versions, from the lists."""
    found = []
    for library in dict.fromkeys(entry.library for entry in ENTRIES):
        if library != "hf_motive":
            listed = dict(line.split("==") for line in (HERE / f"{library}.txt").read_text().split())
            found.append(f"{library} {listed[library]}")
    return ", ".join(found)


def filled(**values: object) -> str:
    """The report, its paragraphs wrapped anew."""
    wrapped = []
    for paragraph in TEXT.format(**values).strip().split("\n\n"):
        if paragraph[0] not in "#|-":
            paragraph = textwrap.fill(" ".join(paragraph.split()), 119, break_long_words=False, break_on_hyphens=False)
        wrapped.append(paragraph)
    return "\n\n".join(wrapped) + "\n"


def report(work: Path) -> None:
    exact = Exact(work / "case")
    cost, agree = rows(work)
    facts = exact.facts
    whole = json.loads((work / "found" / "hf_motive whole" / "facts.json").read_text())
    text = filled(
        cost="\n".join(cost),
        agree="\n".join(agree),
        versions=versions(),
        torch=TORCH.replace("==", " "),
        clips=facts["corpus"],
        queries=facts["queries"],
        parameters=sum(facts["sizes"]) / 1e6,
        error=max(facts["loss_error"], facts["gradient_error"]),
        pairs=facts["corpus"] * facts["queries"],
        plain_ms=whole["plain_ms"],
        plain_peak=whole["plain_peak"],
        seed_spread=facts.get("seed_spread", float("nan")),
        seeds=SEEDS,
        spread=exact.cosines().std(axis=1).mean(),
    )
    (ROOT / "benchmarks" / "results" / "peers.md").write_text(text, encoding="utf-8")
    print(text)


TEXT = """\
# Other attribution libraries on the same clips

The lab's trained pipeline ({parameters:.2f} M parameters, fp32), {clips} clips of its corpus and {queries} queries
of 17 frames of 64×64, timestep 751, one noise, the motion-weighted loss. {versions}, each in an environment of its
own, and this package, all with {torch} on one thread of a CPU core. Every library is given the same tensors: the
arguments with which the pipeline called its denoiser, the target, the weight; loss and gradient computed from them
are the pipeline's to {error:.0e}. Repeat with `python benchmarks/peers.py`; the versions are in
`benchmarks/peers/*.txt`, what is called of each library in `benchmarks/peers/run_*.py`.

## Cost

*÷ plain* is to a plain forward and backward of the same clip on an untouched copy of the model, taken just before,
in the same process ({plain_ms:.0f} ms there, {plain_peak:.0f} MiB above the model): medians over the clips that were
timed. That is the figure that travels; milliseconds moved with what else the machine did. Memory is the resident
set's high-water mark above the loaded model, from the second clip (or batch) on: what a library keeps counts, what
it needs once does not. *Stored* is what is kept of a clip in its own format, files divided by clips. What every
library would need alike (decoding, VAE, text encoder, mask) is in none of it. *Coverage* is the share of the
denoiser's parameters whose gradient enters.

| method | numbers a clip | clips timed | ms a clip | ÷ plain | peak, MiB | stored, bytes | coverage |
|---|---|---|---|---|---|---|---|
{cost}

## Agreement with the exact cosine

Cosines of the features beside those of the whole gradients: Spearman over all {pairs} pairs of clip and query; its
mean over the queries, with a 95 % interval over queries (bootstrap); the share of a query's top tenth that is found.
One seed each: from seed to seed of Fastfood the mean varies by {seed_spread:.3f} (standard deviation of {seeds}), so
that smaller differences between projections mean nothing. *Covered* is the same mean for exact cosines over the
covered parameters only: what leaving out the rest costs, with nothing projected. *Own scores*: for libraries that
give dot products, those as they come. Exact cosines of one query spread by {spread:.3f} (standard deviation over the
clips).

| method | numbers a clip | all pairs | a query | top tenth | covered | own scores |
|---|---|---|---|---|---|---|
{agree}

## How each was used, and what it does not do

- **traker**: `TRAKer.featurize` with a model output that is the loss, `proj_dim=512`, float32; cosines of its stored
  gradients. TRAK's own score multiplies them by the inverse of their covariance, which for fewer clips than numbers
  is singular. Without a GPU its projector is `BasicProjector`: it draws the 3.9 M × 512 Gaussian matrix anew at
  every call, a hundred columns at a time, which takes nearly all of the time and the memory, and is shared by the
  clips of a batch. It stores every feature twice (gradients, and TRAK features not yet computed).
- **dattri**: `TracInAttributor(normalized_grad=True)`, `proj_dim=512`, which is a cosine; its matrix is traker's,
  seed and all, so that they agree alike. For every batch of the corpus it computes and projects the queries'
  gradients again, and keeps nothing; the row above it is one clip's gradient and `random_project`, once. Without a
  GPU that draws the same matrix anew at every call. `projector_kwargs=None` means 512 numbers, not the whole
  gradient. `LoGraAttributor(hessian="Identity")` forms no weight gradient, as our factored projection does not, but
  keeps every layer's numbers, a square of them: 9 a layer are the nearest to 512. Linear layers only; stored are the
  gradients in memory (`offload="disk"` pins memory, which takes a GPU).
- **kronfluence**: `strategy="identity"`, no curvature, nothing projected: dot products with the queries' gradients,
  which wait in memory. Nothing is kept of a clip, so that other queries need another pass over the corpus (by
  default one pass a query: `query_gradient_accumulation_steps` puts them together). Norms, for cosines, are a second
  pass, and both are in the time. Linear and 2-D convolution layers only. Its own metric, EK-FAC, was not run: it
  needs passes to fit factors, and answers another question than the cosine.
- **bergson**: `GradientCollector`, `unit_normalize`, biases included. Its loop over the data is for language models
  (token ids in, logits out), so that ours enters its collector. Layers whose inputs are (clips, tokens, features)
  only: the time embedder and the patch embedding end in an assertion (last row), although convolutions are among the
  layers that it names. *Global* is one vector of 512, of a matrix generated on the CPU at every call; *per module*,
  its default, keeps p × p numbers a layer: 3 × 3 are the nearest to 512, 16 × 16 is the default of its `trackstar`
  command.
- Not measured: GPUs, where traker and dattri have projection kernels of their own and bergson generates its matrices
  on the device; larger models; and how well any of these scores predict an outcome of training.
- torchvision and torchaudio are left out of the environments (`pip install --no-deps`), although bergson and
  kronfluence require them: nothing that is used here imports them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    libraries = list(dict.fromkeys(entry.library for entry in ENTRIES))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=libraries, default=libraries)
    parser.add_argument("--method", help="only this one of theirs")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a method may take")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    told = parser.parse_args()
    torch.set_num_threads(1)
    work = told.work.resolve()
    if not told.table:
        if not (work / "case" / "case.json").exists():
            write_case(work / "case", told.clips, told.queries)
        for entry in ENTRIES:
            if entry.library in told.only and told.method in (None, entry.method):
                python = environment(entry.library, work)
                print(entry.label, flush=True)
                run(entry, python, work, told.timeout)
    report(work)


if __name__ == "__main__":
    main()
