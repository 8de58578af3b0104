"""Nearest clips of a query: the exact pass beside FAISS's approximate searches, and what those miss.

    python benchmarks/search.py [--clips 500000] [--queries 50] [--like INDEX]

Random unit vectors are a search's worst case, and gradients are not random: the vectors here have the mean and the
covariance of the features in an index, by default those of the lab's corpus, which it computes first (two minutes).
Recall: how many of a query's 100 nearest clips are found. Needs `pip install faiss-cpu`. One thread. Writes
benchmarks/results/search.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from hf_motive.index import GradientIndex
from hf_motive.influence import cosine

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
NEAREST = 100


def lab_features() -> Tensor:
    """Features of the lab's corpus, (n, 512)."""
    from diffusers import WanPipeline

    from hf_motive import MotiveAttributor
    from hf_motive.corpus import load_clips

    pipe = WanPipeline.from_pretrained(LAB / "pipeline")
    attributor = MotiveAttributor(pipe, preset="paper", num_frames=17, height=64, width=64, fps=16.0)
    with tempfile.TemporaryDirectory() as folder:
        index = attributor.index(load_clips(LAB / "corpus"), folder)
        return index.features(index.ids("ok")).clone()


def alike(features: Tensor, count: int, seed: int) -> Tensor:
    """Unit vectors (count, D) with the mean and covariance of others, drawn in float32 in pieces."""
    mean = features.mean(dim=0)
    _, spread, axes = torch.linalg.svd(features - mean, full_matrices=False)
    map_ = (spread / (len(features) - 1) ** 0.5)[:, None] * axes
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(count, features.shape[1])
    for start in range(0, count, 8192):
        size = min(8192, count - start)
        drawn = mean + torch.randn(size, len(map_), generator=generator) @ map_
        out[start : start + size] = torch.nn.functional.normalize(drawn, dim=1)
    return out


def timed(function: Callable, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--like", type=Path, help="folder of an index")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if arguments.like is None:
        model = lab_features()
    else:
        index = GradientIndex.open(arguments.like)
        model = index.features(index.ids("ok"))
    clips, queries = alike(model, arguments.clips, 0), alike(model, arguments.queries, 1)
    dim = clips.shape[1]

    product = torch.empty(len(clips), len(queries))
    plain = min(timed(lambda: torch.mm(clips, queries.T, out=product))[0] for _ in range(3))
    exact_seconds, scores = timed(cosine, clips, queries)
    wanted = scores.topk(NEAREST, dim=0).indices.T.numpy()  # (Q, 100)
    lines = [
        f"| float32 product, nothing else | | {plain:.2f} s | |",
        f"| this project's exact pass | | {exact_seconds:.2f} s | 100% |",
    ]
    kinds = {
        "FAISS flat": (faiss.IndexFlatIP(dim), [("", lambda index: None)]),
        "FAISS IVF1024": (
            faiss.index_factory(dim, "IVF1024,Flat", faiss.METRIC_INNER_PRODUCT),
            [
                (f", {probes} probes", lambda index, probes=probes: setattr(index, "nprobe", probes))
                for probes in (8, 64)
            ],
        ),
        "FAISS HNSW32": (
            faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT),
            [(f", width {w}", lambda index, w=w: setattr(index.hnsw, "efSearch", w)) for w in (128, 512)],
        ),
    }
    for name, (index, ways) in kinds.items():

        def build(index=index) -> None:
            index.train(clips[:: max(1, len(clips) // 50_000)].numpy())
            index.add(clips.numpy())

        building, _ = timed(build)
        for way, prepare in ways:
            prepare(index)
            asking, (_, found) = timed(index.search, queries.numpy(), NEAREST)
            recall = np.mean([len(np.intersect1d(a, b)) / NEAREST for a, b in zip(found, wanted, strict=True)])
            lines.append(f"| {name}{way} | {building:.0f} s | {asking:.2f} s | {recall:.0%} |")
            print(lines[-1], flush=True)
    text = TEXT.format(clips=len(clips), queries=len(queries), dim=dim, like=len(model), table="\n".join(lines))
    (ROOT / "benchmarks" / "results" / "search.md").write_text(text, encoding="utf-8")
    print(text)


TEXT = """\
# Nearest clips, exactly and approximately

{clips:,} unit vectors of {dim} numbers with the mean and covariance of {like} of the lab's features; {queries} queries
at once, their 100 nearest; one thread of a CPU. Repeat with `python benchmarks/search.py` (after
`pip install faiss-cpu`).

| | build | all queries | recall of the 100 nearest |
|---|---|---|---|
{table}
"""


if __name__ == "__main__":
    main()
