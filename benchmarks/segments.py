"""Does the part of a clip that shows the query's motion get the larger share of its influence? Where that is known.

    python benchmarks/segments.py [--pairs 45] [--seed 0]
    python benchmarks/segments.py --timesteps 500 751 900 --kinds 0 --append      # MotiveAttributor's own default

Every two of the lab's ten motions are put into one clip, shown by the same kind of object before the same background
under a caption that names no motion:

- one after the other within the model's length (9 frames of one, 8 of the other): which half second?
- one after the other over three times that length (24 and 25 frames, three windows): which half of a long clip?
- side by side, the middle of each clip in a half of the frame: which half, that is which object?
- two clips of 17 frames, each by itself: which of two clips? Nothing is cut here: it shows what the score can do.

Each clip is asked by the lab's queries of both its motions (the mean over four each). Counted is how often the part
with the query's motion has the larger share: chance is 50 %, and so is going by the motion's size, because whatever
part that prefers is right for one of the two questions. "Contrast" asks both at once: does each part side with its own
motion more than the other part does? A part's own cosine is its gradient's, whatever its size. Intervals: 95 %
percentile bootstrap over clips.

Beside it what an explanation costs, in the processor's time of a feature, within this run. About eight minutes of one
core. Writes benchmarks/results/segments.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
KINDS = ("which half second", "which half of a long clip", "which half of the frame", "which of two clips")
MEASURES = ("share", "share per weight", "own cosine", "contrast of shares")


def specs(motions: tuple[str, str], generator: np.random.Generator, frames: int) -> list:
    """Two of the same labels, with places and speeds of their own."""
    from hf_motive.lab import BACKGROUNDS, COLORS, SHAPES, ClipSpec

    labels = [str(generator.choice(values)) for values in (SHAPES, tuple(COLORS), BACKGROUNDS)]
    seeds = generator.integers(2**30, 2**31, size=2).tolist()
    return [ClipSpec(m, *labels, seed=seed, num_frames=frames) for m, seed in zip(motions, seeds, strict=True)]


def caption(spec) -> str:
    return f"a {spec.color} {spec.shape} in front of a {spec.background} background"


def after_each_other(motions, generator, first: int, second: int) -> dict:
    """`first` frames of one motion, then `second` of the other."""
    from hf_motive.lab import render_clip

    pair = specs(motions, generator, max(first, second))
    frames = [render_clip(spec).frames for spec in pair]
    return {"video": torch.cat([frames[0][:first], frames[1][:second]]), "caption": caption(pair[0])}


def side_by_side(motions, generator) -> dict:
    """The middle of one clip in the left half of the frame, the middle of the other in the right half."""
    from hf_motive.lab import SIZE, render_clip

    pair = specs(motions, generator, 17)
    middle = slice(SIZE // 4, SIZE - SIZE // 4)
    frames = [render_clip(spec).frames[..., middle] for spec in pair]
    halves = np.ones((SIZE, SIZE), np.uint8)
    halves[:, SIZE // 2 :] = 2
    return {"video": torch.cat(frames, dim=3), "caption": caption(pair[0]), "halves": halves}


def answers(explanations: list, features: dict[str, torch.Tensor], motions: tuple[str, str]) -> dict[str, list[bool]]:
    """Of one clip: for each measure, whether the part of a question's motion is ahead of the other part.

    Args:
        explanations: [(vectors (2, D') of the two parts, weights (2,))].
    """
    vectors, weights = explanations
    found: dict[str, list[bool]] = {name: [] for name in MEASURES}
    shares = torch.stack([(vectors @ features[motion].T).mean(1) for motion in motions])  # question × part
    own = torch.stack(
        [(torch.nn.functional.normalize(vectors, dim=1) @ features[motion].T).mean(1) for motion in motions]
    )
    for question in range(2):
        other = 1 - question
        found["share"].append(bool(shares[question, question] > shares[question, other]))
        dense = shares[question] / weights
        found["share per weight"].append(bool(dense[question] > dense[other]))
        found["own cosine"].append(bool(own[question, question] > own[question, other]))
    found["contrast of shares"].append(bool(shares[0, 0] - shares[0, 1] > shares[1, 0] - shares[1, 1]))
    return found


def in_two(explanation, edge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and weights of what lies before and after a moment, of all windows of a clip.

    As a curve is: windows' densities, averaged where they overlap.
    """
    windows = [window.parts for window in explanation.windows]
    pieces = [(s, e, p.vectors[n].sum(0), p.motion[n].sum()) for p in windows for n, (s, e) in enumerate(p.segments)]
    edges = sorted({round(t, 9) for s, e, *_ in pieces for t in (s, e)} | {edge})
    vectors, weights = torch.zeros(2, len(pieces[0][2])), torch.zeros(2)
    for left, right in pairwise(edges):
        here = [piece for piece in pieces if piece[0] <= (left + right) / 2 < piece[1]]
        for start, end, vector, weight in here:
            part = int((left + right) / 2 > edge)
            vectors[part] += vector * (right - left) / (end - start) / len(here)
            weights[part] += weight * (right - left) / (end - start) / len(here)
    return vectors.double(), weights.double()


def questions(attributor, asked, arguments, generator) -> Iterator[tuple[str, dict[str, list[bool]]]]:
    """Each clip of each kind, and whether the answers were right."""
    from hf_motive import ClipError
    from hf_motive.explaining import Queries
    from hf_motive.lab import MOTIONS

    everything = Queries(["all"], torch.cat(list(asked.values())).mean(0, keepdim=True))
    pairs = list(combinations(MOTIONS, 2))
    chosen = [pairs[i] for i in generator.permutation(len(pairs))[: arguments.pairs]]
    kinds = [KINDS[number] for number in arguments.kinds]
    for number, pair in enumerate(chosen):
        motions = pair if generator.random() < 0.5 else pair[::-1]
        for kind in KINDS[:3]:
            if kind == "which half of the frame":
                row, options = side_by_side(motions, generator), {"regions": "halves", "seconds": 60.0}
            elif kind == "which half second":
                row, options = after_each_other(motions, generator, 9, 8), {}
            else:
                row, options = after_each_other(motions, generator, 24, 25), {"whole": True, "stride": 1.0}
            if kind not in kinds:  # clips are the same whatever is asked
                continue
            try:
                explanation = explained(attributor, row, everything, **options)
            except ClipError as error:
                print(f"left out: {motions}, {kind}: {error}")
                continue
            if kind == "which half of the frame":
                parts = explanation.windows[0].parts
                vectors, weights = parts.vectors[0, :2].double(), parts.motion[0, :2].double()
            elif kind == "which half second":
                vectors, weights = in_two(explanation, 9 / 16)
            else:
                vectors, weights = in_two(explanation, 24 / 16)
            if not vectors.norm(dim=1).all():
                print(f"left out: {motions}, {kind}: one of the two does not move")
                continue
            yield kind, answers((vectors, weights), asked, motions)
        print(f"{number + 1}/{len(chosen)} pairs", flush=True)
    if KINDS[3] in kinds:
        others = np.random.default_rng([arguments.seed, 1])
        for motions in chosen:
            try:
                features = [attributor.feature(clip, said).vector for clip, said in alone(motions, others)]
            except ClipError as error:
                print(f"left out: {motions}, {KINDS[3]}: {error}")
                continue
            yield KINDS[3], answers((torch.stack(features).double(), torch.ones(2)), asked, motions)


def alone(motions, generator) -> Iterator[tuple[torch.Tensor, str]]:
    """Each of two motions as a clip of its own."""
    from hf_motive.lab import render_clip

    for spec in specs(motions, generator, 17):
        yield render_clip(spec).frames, caption(spec)


def explained(attributor, row, queries, *, seconds=0.5, regions=None, whole=False, stride=None):
    from hf_motive.explaining import Cut, explain

    return explain(attributor, row, queries, Cut(seconds, whole, stride, regions))


def costs(attributor, clips, queries) -> list[tuple[str, float, float]]:
    """(what, parts, median of its processor time over a feature's), each pair of timings beside each other."""
    from hf_motive import ClipError

    ways = {
        "two segments": {},
        "every latent frame (5)": {"seconds": 0.01},
        "two segments × moving objects": {"regions": "motion"},
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for row in clips:
        for way, options in ways.items():
            try:
                start = time.process_time()
                attributor.feature(row["video"], row["caption"])
                middle = time.process_time()
                explanation = explained(attributor, row, queries, **options)
                end = time.process_time()
            except ClipError:
                break
            parts = explanation.windows[0].parts
            found[way].append((float((parts.motion > 0).sum()), (end - middle) / (middle - start)))
    return [(way, *(float(np.median(column)) for column in zip(*rows, strict=True))) for way, rows in found.items()]


def main() -> None:
    from diffusers import WanPipeline

    from hf_motive import MotiveAttributor
    from hf_motive.corpus import load_clips
    from hf_motive.explaining import Queries

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=45, help="pairs of motions, of 45")
    parser.add_argument("--timesteps", type=float, nargs="+", default=[751.0])
    parser.add_argument("--kinds", type=int, nargs="+", default=[0, 1, 2, 3], help=f"which of {', '.join(KINDS)}")
    parser.add_argument("--append", action="store_true", help="add the table to those of an earlier run, and no costs")
    parser.add_argument("--clips", type=int, default=12, help="of the lab's corpus, for the cost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "segments.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(arguments.seed)

    settings = {"timesteps": arguments.timesteps, "noise_draws": 1, "projection_dim": 512, "seed": arguments.seed}
    pipe = WanPipeline.from_pretrained(LAB / "pipeline")
    attributor = MotiveAttributor(pipe, num_frames=17, height=64, width=64, **settings)
    queries = load_clips(LAB / "queries")
    folder = "-".join(["queries", *(f"{t:g}" for t in [*arguments.timesteps, arguments.seed])])
    index = attributor.index(queries, ROOT / "runs" / "segments" / folder)
    ids = attributor.ids(queries)
    asked = {
        motion: index.features([i for i, m in zip(ids, queries["motion"], strict=True) if m == motion]).double()
        for motion in sorted(set(queries["motion"]))
    }
    right: dict[str, list[dict[str, list[bool]]]] = {}
    for kind, found in questions(attributor, asked, arguments, generator):
        right.setdefault(kind, []).append(found)
    lines = ["| question | clips | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 2) + "|"]
    for kind, clips in right.items():
        cells = []
        for measure in MEASURES:
            shares = np.array([np.mean(found[measure]) for found in clips])
            picks = generator.integers(len(shares), size=(4000, len(shares)))
            low, high = np.percentile(shares[picks].mean(1), [2.5, 97.5])
            cells.append(f"{shares.mean():.0%} [{low:.0%}, {high:.0%}]")
        lines.append(f"| {kind} | {len(clips)} | " + " | ".join(cells) + " |")
    if arguments.append:
        section = f"\n## At timesteps {arguments.timesteps}\n\n" + "\n".join(lines) + "\n"
        print(section)
        with open(arguments.output, "a") as file:
            file.write(section)
        return
    few = load_clips(LAB / "corpus").select(range(arguments.clips))
    everything = Queries(["all"], torch.cat(list(asked.values())).mean(0, keepdim=True))
    table = [
        "| an explanation by | parts that move, median | processor time, in features |",
        "|---|---|---|",
        *(f"| {way} | {parts:.0f} | {ratio:.2f} |" for way, parts, ratio in costs(attributor, few, everything)),
    ]
    report = (
        "# Does the part with the query's motion get the larger share?\n\n"
        "Clips of two motions, one after the other or side by side, made by the lab's simulation; the small Wan "
        f"pipeline of examples/lab, the cosine at timesteps {arguments.timesteps}, one noise draw, D′ = 512; each "
        "clip is asked by the four queries of each of its two motions. Chance: 50 %. "
        f"Seed {arguments.seed}; 95 % bootstrap intervals over clips. Repeat with `python benchmarks/segments.py`, "
        "which says how the clips are made and what is counted.\n\n" + "\n".join(lines) + "\n\n## What it costs\n\n"
        f"Median over {arguments.clips} clips of the lab's corpus, each beside the same clip's feature, on one core."
        "\n\n" + "\n".join(table) + "\n"
    )
    print(report)
    Path(arguments.output).write_text(report)


if __name__ == "__main__":
    main()
