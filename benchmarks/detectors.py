"""How much do the scores depend on who says what moves? The same clips and gradients, under many detectors' masks.

    python benchmarks/detectors.py                 # purity, on the lab's corpus, where the exact flow is known
    python benchmarks/detectors.py --faithful DIR  # and LDS, on the clips and models of benchmarks/faithfulness.py

For each detector: how the ranks agree with those by the default's mask (Spearman over clips, mean over queries), how
many of each query's top tenth show its motion, and how many share its appearance. Features are at timestep 751 with
one noise; those that are computed are kept, under --output and in DIR. Writes benchmarks/results/detectors.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
sys.path.insert(0, str(ROOT / "benchmarks"))

from faithful.case import check, whole  # noqa: E402
from faithful.contenders import unit  # noqa: E402
from faithful.detectors import DETECTORS, Detector  # noqa: E402
from faithful.shares import share  # noqa: E402
from faithful.table import table  # noqa: E402
from faithful.truth import correlations, interval, mean_correlation, predicted  # noqa: E402
from miniature import world  # noqa: E402

LABELS = ("motion", "shape", "color", "background")


def features(pipe: Any, rows: Any, detectors: tuple[Detector, ...], timestep: float, dim: int) -> np.ndarray:
    """(detectors, N, dim) float32, NaN where a detector sees nothing move. One forward pass a clip."""
    from tqdm.auto import tqdm

    from hf_motive import MotiveAttributor
    from hf_motive.encoded_blob import read_encoding
    from hf_motive.gradients import GradientProjector
    from hf_motive.video import load_clip

    attributor = MotiveAttributor(pipe, **world.CLIP, projection_dim=dim)
    step, noise = attributor.step, attributor.step.noise(0)
    found = np.full((len(detectors), len(rows), dim), np.nan, dtype=np.float32)
    for number, row in enumerate(tqdm(rows, desc="clips")):
        encoding = read_encoding(row["encoded"])
        pixels = load_clip(row["video"], attributor.config.standard)
        weights = [detector.weight(pixels, row, step.latent_shape[1:]) for detector in detectors]
        with GradientProjector(attributor.parameters, attributor.projection, step.denoisers.values()) as projector:
            out = step.loss(encoding.latents, row["caption"], noise=noise, timestep=timestep, answers=encoding.answers)
            squares = (out.prediction - out.target) ** 2
            for place, weight in enumerate(weights):
                if weight is not None:
                    loss = (weight * squares).mean()
                    found[place, number] = projector.project(loss, retain_graph=place < len(weights) - 1).vector
    return found


def kept(
    folder: Path, pipe: Any, corpus: Any, queries: Any, detectors: tuple[Detector, ...], told: Any
) -> tuple[np.ndarray, np.ndarray]:
    """`features` of the corpus and of the queries, computed once in a folder of its own."""
    counts = {"corpus": len(corpus), "queries": len(queries)}
    names = [detector.name for detector in detectors]
    check(folder, {"timestep": told.timestep, "dim": told.dim, "detectors": names, **counts})
    for name, rows in (("corpus", corpus), ("queries", queries)):
        if not (path := folder / f"{name}.npy").exists():
            with whole(path) as partial:
                np.save(partial, features(pipe, rows, detectors, told.timestep, told.dim))
    return np.load(folder / "corpus.npy"), np.load(folder / "queries.npy")


def cell(values: np.ndarray, rng: np.random.Generator, form: str = "{:.0%}") -> str:
    """A mean over queries, with a bootstrap's interval."""
    rounds = values[rng.integers(len(values), size=(1000, len(values)))].mean(1)
    return " ".join([form.format(values.mean()), "[" + ", ".join(form.format(v) for v in interval(rounds)) + "]"])


def purity(clips: np.ndarray, asked: np.ndarray, corpus: Any, queries: Any, names: list[str]) -> str:
    """Markdown of the lab's corpus: features (detectors, N, dim) and (detectors, Q, dim)."""
    ranked = np.isfinite(clips).all((0, 2))
    labels = {label: (np.array(corpus[label])[ranked], np.array(queries[label])) for label in LABELS}
    still = np.array(corpus["camera"])[ranked] == "still"
    rng, body = np.random.default_rng(0), []
    default = None
    for name, of_clips, of_queries in zip(names, clips[:, ranked], asked, strict=True):
        scores = unit(of_clips.astype(np.float64)) @ unit(of_queries.astype(np.float64)).T
        default = scores if default is None else default
        moving = share(scores, ~still, np.ones(scores.shape[1], dtype=bool))
        body.append(
            [
                name,
                f"{np.nanmean(correlations(default, scores)):.2f}",
                *(cell(share(scores, *labels[label]), rng) for label in LABELS),
                f"{moving.mean():.0%}",
            ]
        )
    chance = [f"{np.mean([(of == value).mean() for value in asking]):.0%}" for of, asking in labels.values()]
    body.append(["*by chance*", "0.00", *chance, f"{(~still).mean():.0%}"])
    return table(["detector", "ranks as the first's", *(f"same {label}" for label in LABELS), "moving camera"], body)


def main() -> None:
    from diffusers import WanPipeline

    from hf_motive.scoring import quiet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "detectors", help="folder of what is computed")
    parser.add_argument(
        "--report", type=Path, help="by default benchmarks/results/detectors.md; of a part, in --output"
    )
    parser.add_argument("--faithful", type=Path, help="output folder of benchmarks/faithfulness.py")
    parser.add_argument("--timestep", type=float, default=751.0)
    parser.add_argument("--dim", type=int, default=2048, help="of the projection")
    parser.add_argument("--limit", type=int, help="the first so many clips and queries, to see that it runs")
    told = parser.parse_args()
    report = told.report or (told.output if told.limit else ROOT / "benchmarks" / "results") / "detectors.md"
    quiet()
    torch.set_num_threads(1)

    from miniature.choosing import encoded

    pipe = WanPipeline.from_pretrained(LAB / "pipeline")
    both = encoded(pipe, world.CLIP, [LAB / "corpus", LAB / "queries"])
    corpus, queries = (rows.select(range(min(told.limit or len(rows), len(rows)))) for rows in both)
    moving = [row for row, status in enumerate(corpus["encoded_status"]) if status == "ok"]
    corpus = corpus.select(moving)
    clips, asked = kept(told.output, pipe, corpus, queries, DETECTORS, told)
    names = [detector.name for detector in DETECTORS]
    seen = int(np.isfinite(clips).all((0, 2)).sum())
    parts = [
        "# Who says what moves?\n\n"
        f"The lab's corpus and queries, its pipeline, timestep {told.timestep:.0f}, one noise, D' = {told.dim}; clips "
        f"in which every detector sees something move: {seen} of {len(clips[0])}. "
        "Shares of each query's top tenth, with 95 % bootstrap intervals over the queries. Repeat with "
        "`python benchmarks/detectors.py`.\n",
        purity(clips, asked, corpus, queries, names),
    ]
    if told.faithful is not None:
        parts.append(truth(told))
    report.write_text("\n".join(parts) + "\n", encoding="utf-8")
    print(f"table: {report}")


def truth(told: Any) -> str:
    """Markdown of LDS, by the detectors that need no exact flow."""
    import faithfulness
    from faithful import table as tables
    from faithful.truth import Rounds

    size = faithfulness.Size()
    made = faithfulness.made_in(told.faithful, size)
    names = [f"half-{number:03d}" for number in range(size.halves)]
    retrained = tables.read(told.faithful, names, size.seeds, len(made.corpus), size.measurement.timesteps)
    detectors = tuple(detector for detector in DETECTORS if not detector.exact)
    folder = told.faithful / "detectors"
    clips, asked = kept(folder, made.pipeline(), made.corpus.rows, made.queries.rows, detectors, told)
    losses = -retrained.losses[:, :, 0].mean((0, -1))
    rounds, body = Rounds(len(losses), made.queries.labels("shown")), []
    first: tuple[float, np.ndarray] | None = None
    for detector, of_clips, of_queries in zip(detectors, clips, asked, strict=True):
        # Where a detector sees nothing move, the clip has no influence on anything.
        left, right = (unit(np.nan_to_num(values).astype(np.float64)) for values in (of_clips, of_queries))
        sums = predicted(left @ right.T, retrained.members)
        lds, means = mean_correlation(losses, sums), rounds.means(losses, sums)
        first = first or (lds, means)
        ahead = "{:+.2f} [{:+.2f}, {:+.2f}]".format(lds - first[0], *interval(means - first[1]))
        body.append([detector.name, f"{lds:.2f}", "[{:.2f}, {:.2f}]".format(*interval(means)), ahead if body else ""])
    return (
        "\n## What they predict\n\n"
        f"LDS as in [faithfulness.md](faithfulness.md), over {len(losses)} halves and all {losses.shape[1]} queries."
        "\n\n" + table(["detector", "LDS", "95 %", "less the first's"], body)
    )


if __name__ == "__main__":
    main()
