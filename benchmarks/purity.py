"""Of the clips ranked highest for a motion, how many show that motion? On the lab's clips, where the answer is known.

    python benchmarks/purity.py [--corpus DIR --queries DIR] [--timesteps 751 ...] [--seed 0]

For each category: clips are ranked by their mean influence over the category's queries, and the share of the same
motion among the top tenth is counted, for Motive, for the same without the mask, for motion magnitude and for random
order. Intervals: 95 % percentile bootstrap over both clips and queries. A second table says how much appearance leaks
in: the share among each query's top tenth that has the query's shape, colour or background.

Purity is not faithfulness: only retraining tells what a clip teaches. Features are kept under runs/purity and reused.
Writes benchmarks/results/purity.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
FRACTION = 0.1
APPEARANCE = ("shape", "color", "background")


def features(corpus, queries, settings: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """method -> scores (clips, queries) and which clips are ranked (clips,)."""
    from diffusers import WanPipeline

    from hf_motive import MotiveAttributor
    from hf_motive.config import AttributionConfig
    from hf_motive.influence import cosine

    pipe = WanPipeline.from_pretrained(LAB / "pipeline")
    scores = {}
    for method, motion_weighted in (("Motive", True), ("no mask", False)):
        config = AttributionConfig(motion_weighted=motion_weighted, **settings)
        attributor = MotiveAttributor(pipe, config)
        folder = ROOT / "runs" / "purity" / attributor_key(attributor)
        indexes = [attributor.index(data, folder / name) for name, data in (("corpus", corpus), ("queries", queries))]
        ids = attributor.ids(corpus)
        ranked = np.array([indexes[0].status(i) == "ok" for i in ids])
        asked = indexes[1].features(attributor.ids(queries))
        cosines = np.full((len(ids), len(asked)), np.nan)
        cosines[ranked] = cosine(indexes[0].features([i for i, ok in zip(ids, ranked, strict=True) if ok]), asked)
        scores[method] = (cosines, ranked)
    facts = {row.id: row.facts for row in indexes[0].rows(dict.fromkeys(ids))}
    motion = np.array([facts[i].get("mean_motion") or np.nan for i in ids])
    scores["motion magnitude"] = (np.repeat(motion[:, None], len(asked), axis=1), ranked)
    return scores


def attributor_key(attributor) -> str:
    import hashlib
    import json

    return hashlib.sha256(json.dumps(attributor.settings(), sort_keys=True).encode()).hexdigest()[:12]


def share_of_top(scores: np.ndarray, same: np.ndarray) -> float:
    """Share of `same` among the top tenth by score."""
    top = np.argsort(-scores, kind="stable")[: max(1, round(FRACTION * len(scores)))]
    return float(same[top].mean())


def bootstrap(scores: np.ndarray, same: np.ndarray, generator, rounds: int = 1000) -> tuple[float, float]:
    """95 % interval of the share, over resampled clips and resampled queries: scores (clips, queries)."""
    shares = []
    for _ in range(rounds):
        clips = generator.integers(len(scores), size=len(scores))
        asked = generator.integers(scores.shape[1], size=scores.shape[1])
        shares.append(share_of_top(scores[np.ix_(clips, asked)].mean(axis=1), same[clips]))
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    import torch

    from hf_motive.corpus import load_clips

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=str(LAB / "corpus"))
    parser.add_argument("--queries", default=str(LAB / "queries"))
    parser.add_argument("--timesteps", type=float, nargs="+", default=[751.0])
    parser.add_argument("--noise-draws", type=int, default=1)
    parser.add_argument("--projection-dim", type=int, default=512)
    parser.add_argument("--compensate-camera", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, the projection and the bootstrap")
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "purity.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    settings = dict(
        num_frames=17,
        height=64,
        width=64,
        timesteps=arguments.timesteps,
        noise_draws=arguments.noise_draws,
        projection_dim=arguments.projection_dim,
        compensate_camera=arguments.compensate_camera,
        seed=arguments.seed,
    )
    corpus, queries = load_clips(arguments.corpus), load_clips(arguments.queries)
    scores = features(corpus, queries, settings)
    generator = np.random.default_rng(arguments.seed)
    motions = sorted(set(queries["motion"]))
    clip_motion, query_motion = np.array(corpus["motion"]), np.array(queries["motion"])
    methods = list(scores)
    ranked = next(iter(scores.values()))[1]
    for cosines, ok in scores.values():
        ranked = ranked & ok & ~np.isnan(cosines).any(axis=1)

    lines = ["| motion | " + " | ".join(methods) + " | random |", "|---" * (len(methods) + 2) + "|"]
    totals: dict[str, list[float]] = {method: [] for method in [*methods, "random"]}
    for motion in motions:
        same = clip_motion[ranked] == motion
        cells = []
        for method in methods:
            own = scores[method][0][ranked][:, query_motion == motion]
            share = share_of_top(own.mean(axis=1), same)
            low, high = bootstrap(own, same, generator)
            totals[method].append(share)
            cells.append(f"{share:.0%} [{low:.0%}, {high:.0%}]")
        chance = [share_of_top(generator.random(len(same)), same) for _ in range(1000)]
        totals["random"].append(float(np.mean(chance)))
        low, high = np.percentile(chance, [2.5, 97.5])
        cells.append(f"{np.mean(chance):.0%} [{low:.0%}, {high:.0%}]")
        lines.append(f"| {motion} | " + " | ".join(cells) + " |")
    lines.append("| **mean** | " + " | ".join(f"**{np.mean(values):.0%}**" for values in totals.values()) + " |")

    leaks = [
        "| of each query's top tenth, the share of the same … | " + " | ".join(methods) + " | chance |",
        "|---" * (len(methods) + 2) + "|",
    ]
    for label in ("motion", *APPEARANCE):
        of_clip, of_query = np.array(corpus[label])[ranked], np.array(queries[label])
        cells = []
        for method in methods:
            own = scores[method][0][ranked]
            shares = [share_of_top(own[:, q], of_clip == of_query[q]) for q in range(len(of_query))]
            picks = generator.integers(len(shares), size=(1000, len(shares)))
            low, high = np.percentile(np.array(shares)[picks].mean(axis=1), [2.5, 97.5])
            cells.append(f"{np.mean(shares):.0%} [{low:.0%}, {high:.0%}]")
        chance = np.mean([(of_clip == value).mean() for value in of_query])
        leaks.append(f"| {label} | " + " | ".join(cells) + f" | {chance:.0%} |")

    report = (
        "# Of the top tenth for a motion, how many show that motion?\n\n"
        f"{int(ranked.sum())} ranked clips of {len(corpus)} and {len(queries)} queries of the lab; the small Wan "
        f"pipeline of examples/lab; timesteps {arguments.timesteps}, {arguments.noise_draws} noise draw(s), "
        f"D′ = {arguments.projection_dim}, camera {'compensated' if arguments.compensate_camera else 'kept'}, seed "
        f"{arguments.seed}. 95 % bootstrap intervals. Repeat with `python benchmarks/purity.py`.\n\n"
        + "\n".join(lines)
        + "\n\n## What else the top clips share with the query\n\n"
        + "\n".join(leaks)
        + "\n"
    )
    print(report)
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report)


if __name__ == "__main__":
    main()
