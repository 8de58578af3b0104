"""How far projected influence agrees with the unprojected cosine, for both projections and many D′.

    python benchmarks/agreement.py [--clips 150] [--queries 40] [--seeds 3]

On the lab's trained pipeline, corpus and queries: of every clip the whole motion-weighted gradient of all 3.9 M
parameters is formed and kept, and is projected by each law with several seeds. For every query the clips are ranked by
the exact cosine and by the projected one: Spearman's correlation, and how many of the exact top tenth are found.
Writes benchmarks/results/agreement.md.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
DIMS = (128, 256, 512, 1024, 2048, 4096)
DRAWS = 2000


def gradients(clips: int, queries: int, laws: dict) -> tuple[Tensor, Tensor, dict]:
    """Exact unit gradients (N, P) and (Q, P) float32, and by law and seed the projected ones (N + Q, D′)."""
    from diffusers import WanPipeline
    from tqdm.auto import tqdm

    from hf_motive import MotiveAttributor
    from hf_motive.corpus import load_clips
    from hf_motive.errors import ClipError
    from hf_motive.video import load_clip

    pipe = WanPipeline.from_pretrained(LAB / "pipeline")
    attributor = MotiveAttributor(pipe, preset="paper", num_frames=17, height=64, width=64, fps=16.0)
    step, parameters = attributor.step, attributor.parameters
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    exact: dict[str, list[Tensor]] = {"corpus": [], "queries": []}
    projected: dict[tuple, list[Tensor]] = {key: [] for key in laws}
    for part, wanted in (("corpus", clips), ("queries", queries)):
        rows = load_clips(LAB / part)
        places = np.linspace(0, len(rows) - 1, min(wanted, len(rows))).round().astype(int)
        for row in tqdm(rows.select(places.tolist()), desc=part):
            try:
                pixels = load_clip(row["video"], attributor.config.standard)
                weight, _ = attributor.motion_weight(pixels)
            except ClipError:
                continue
            noise = step.noise(0)
            loss = step.loss(step.encode(pixels), row["caption"], noise=noise, timestep=751, weight=weight).loss
            found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
            flat = torch.cat([gradient.flatten() for gradient in found.values()])
            exact[part].append(flat / flat.norm())
            for key, law in laws.items():
                stream = law.stream()
                for name, gradient in found.items():
                    stream.add(name, gradient)
                vector = law.finish(stream.total())
                projected[key].append(vector / vector.norm())
    corpus, asked = (torch.stack(exact[part]) for part in ("corpus", "queries"))
    return corpus, asked, {key: torch.stack(vectors) for key, vectors in projected.items()}


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row."""
    ranks = [rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (a, b)]
    return (ranks[0] * ranks[1]).sum(1) / np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of each row's top tenth by a that is in its top tenth by b."""
    count = max(1, round(a.shape[1] / 10))
    top = [np.argsort(-x, axis=1)[:, :count] for x in (a, b)]
    return np.array([len(set(p) & set(q)) / count for p, q in zip(*top, strict=True)])


def interval(values: np.ndarray, rng: np.random.Generator) -> str:
    """Mean of (seeds, queries), and where it falls in 95 % of draws of seeds and queries."""
    seeds, queries = values.shape
    draws = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(queries, size=queries)].mean() for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    told = parser.parse_args()
    torch.set_num_threads(1)

    from hf_motive.factored import Factored
    from hf_motive.projection import Fastfood

    kinds = (
        {("Fastfood", dim): partial(Fastfood, dim) for dim in DIMS}
        | {("factored, rank 64", dim): partial(Factored, dim) for dim in DIMS}
        | {(f"factored, rank {rank}", 512): partial(Factored, 512, rank=rank) for rank in (16, 32, 128)}
    )
    laws = {(*key, seed): kind(seed=seed) for key, kind in kinds.items() for seed in range(told.seeds)}
    corpus, queries, projected = gradients(told.clips, told.queries, laws)
    exact = (queries @ corpus.T).numpy()
    rng, lines = np.random.default_rng(0), []
    for kind, dim in kinds:
        found = [projected[kind, dim, seed] for seed in range(told.seeds)]
        cosines = [(v[len(corpus) :] @ v[: len(corpus)].T).numpy() for v in found]
        error = np.concatenate([(c - exact).ravel() for c in cosines]).std()
        ranks = np.stack([spearman(exact, c) for c in cosines])
        tops = np.stack([overlap(exact, c) for c in cosines])
        mean = np.stack([spearman(exact.mean(0)[None], c.mean(0)[None]) for c in cosines])
        lines.append(
            f"| {kind} | {dim} | {interval(ranks, rng)} | {interval(tops, rng)} | {mean.mean():.3f} "
            f"| {error:.4f} | {dim**-0.5:.4f} |"
        )
        print(lines[-1], flush=True)
    facts = {"clips": len(corpus), "queries": len(queries), "seeds": told.seeds, "spread": exact.std(axis=1).mean()}
    text = TEXT.format(rows="\n".join(lines), **facts)
    (ROOT / "benchmarks" / "results" / "agreement.md").write_text(text, encoding="utf-8")


TEXT = """\
# Agreement with the unprojected cosine

The lab's trained pipeline, {clips} clips and {queries} queries, {seeds} seeds of each projection; 95 % intervals over
seeds and queries (bootstrap). Mean over queries of Spearman's correlation with the exact cosine and of the share of
the exact top tenth that is found; then the correlation of the mean over all queries, by which clips are ranked, and
the error of a cosine beside 1/√D′, that of any random projection. Exact cosines of one query spread by {spread:.3f}
(standard deviation over the clips). Repeat with `python benchmarks/agreement.py`.

| projection | D′ | Spearman, a query | top tenth, a query | Spearman, mean of all | error of a cosine | 1/√D′ |
|---|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
