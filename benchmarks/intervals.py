"""Do the standard errors of influence and rank cover what other noise would have said?

    python benchmarks/intervals.py [--clips 285] [--queries 20] [--noises 8]

Features of the lab's clips are computed with several noises at each of the default timesteps. Some noises play the
user's part: their influence, ranks and standard errors are what the columns would say. The other noises are the truth,
near enough. Counted is how often a 90 % interval, estimate ± Student's t standard errors, holds the truth (its own
error, by the number of its noises, added), and how many of the clips that are chosen with 90 % confidence belong where
they were put. Every choice of noises takes its turn. Features are kept under --output.

Writes benchmarks/results/intervals.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
sys.path.insert(0, str(ROOT / "benchmarks"))

from faithful.table import table  # noqa: E402
from miniature import world  # noqa: E402

from hf_motive.draws import quantile, side_by_side  # noqa: E402
from hf_motive.influence import influence, selection_size  # noqa: E402
from hf_motive.uncertainty import uncertainty  # noqa: E402

CONFIDENCE = 0.9


def features(output: Path, noises: int, counts: dict[str, int], timesteps: list[float]) -> dict[str, Tensor]:
    """Name of a folder of the lab -> (clips, timesteps, noises, D), a unit vector a draw."""
    from diffusers import WanPipeline

    from hf_motive import MotiveAttributor
    from hf_motive.corpus import load_clips

    pipe = WanPipeline.from_pretrained(LAB / "pipeline")
    attributor = MotiveAttributor(pipe, **world.CLIP, timesteps=timesteps, noise_draws=noises)
    found = {}
    for name, count in counts.items():
        clips = load_clips(LAB / name)
        step = max(1, len(clips) // count)
        clips = clips.select(range(0, len(clips), step)[:count])
        index = attributor.index(clips, output / f"{name}-{count}-{noises}")
        ids = [i for i in attributor.ids(clips) if index.status(i) == "ok"]
        found[name] = index.features_by_draw(ids).unflatten(1, (len(timesteps), noises))
    return found


def parts(noises: int, own: int) -> Iterator[tuple[list[int], list[int]]]:
    """The noises of the user, and the others: every noise is the user's once."""
    for start in range(0, noises - own + 1, own):
        mine = list(range(start, start + own))
        yield mine, [n for n in range(noises) if n not in mine]


def covered(clips: Tensor, queries: Tensor, own: int) -> dict[str, list[float]]:
    """What was counted, once for every choice of noises.

    Args:
        clips, queries: As `features` gives them.
        own: Noises of the user.
    """
    found: dict[str, list[float]] = {}
    for mine, others in parts(clips.shape[2], own):
        c, q = (part[:, :, mine].flatten(1, 2) for part in (clips, queries))
        said = influence(side_by_side(c), side_by_side(q))
        doubt = uncertainty(lambda c=c: [c], q)
        truth = influence(*(side_by_side(part[:, :, others].flatten(1, 2)) for part in (clips, queries)))
        widened = (1 + own / len(others)) ** 0.5 * quantile(c.shape[1], (1 + CONFIDENCE) / 2)
        sure_by, cut = quantile(c.shape[1], CONFIDENCE), selection_size(len(clips), 0.1)
        pairs = {"influence": (said.mean, truth.mean, doubt.mean), "rank": (said.rank, truth.rank, doubt.rank)}
        for name, (estimate, expected, error) in pairs.items():
            within = (estimate - expected).abs() <= widened * error
            found.setdefault(f"{name} covered", []).append(within.double().mean().item())
        off = (said.rank - truth.rank).double()
        found.setdefault("error of a rank, said", []).append(doubt.rank.square().mean().sqrt().item())
        # The truth's own error is in the difference.
        found.setdefault("and found", []).append((off.square().mean() / (1 + own / len(others))).sqrt().item())
        # Best first from the lowest, as `selection.best` takes them.
        choices = {
            "rank": (said.rank.double(), truth.rank.double(), doubt.rank),
            "influence": (-said.mean, -truth.mean, doubt.mean),
        }
        for name, (score, expected, error) in choices.items():
            top, chosen = (values <= values.sort().values[cut - 1] for values in (expected, score))
            sure = score + sure_by * error < score.sort().values[cut]
            found.setdefault(f"best tenth by {name} that is so", []).append(top[chosen].double().mean().item())
            found.setdefault(f"chosen by {name} with confidence", []).append(float(sure.sum()))
            found.setdefault(f"of them by {name} so", []).append(float(top[sure].sum()))
    return found


def main() -> None:
    from hf_motive.config import PRESETS
    from hf_motive.scoring import quiet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=285, help="of the lab's corpus")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--noises", type=int, default=8, help="at each timestep")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "intervals", help="folder of the features")
    parser.add_argument("--report", type=Path, default=ROOT / "benchmarks" / "results" / "intervals.md")
    told = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    timesteps = list(PRESETS["motive"]["timesteps"])
    found = features(told.output, told.noises, {"corpus": told.clips, "queries": told.queries}, timesteps)
    clips, queries = found["corpus"], found["queries"]
    header, body = ["noises a timestep", "draws"], []
    for own in (n for n in (1, 2, 4) if 2 * n <= told.noises):
        counted = covered(clips, queries, own)
        header = header[:2] + list(counted)
        cells = [
            f"{np.mean(v):.1f}"
            if name.startswith(("error", "and found", "chosen", "of them"))
            else f"{np.mean(v):.0%}"
            for name, v in counted.items()
        ]
        body.append([str(own), str(own * len(timesteps)), *cells])
    told.report.write_text(
        "# Do the standard errors cover what other noise says?\n\n"
        f"{len(clips)} clips and {len(queries)} queries of the lab, its pipeline; timesteps "
        f"{', '.join(f'{t:.0f}' for t in timesteps)}, {told.noises} noises at each. The noises of a row play the "
        "user's part in turn, and the others are the truth. Covered: 90 % intervals; errors of a rank: root of the "
        f"mean square, in ranks; chosen with confidence: clips of the best tenth ({selection_size(len(clips), 0.1)} "
        "clips) that are sure to be in it at 90 %, and how many of them are in the truth's, which is of a few noises "
        "itself. Without confidence so many of a best tenth are in the truth's as *that is so* says. "
        "The jackknife takes a timestep for a draw like any other, though all rows have the same ones: what sets "
        "timesteps apart counts as doubt. The clips' variances are drawn towards their mean, by as much as four draws "
        "would: chosen by every third of these clips. "
        "Repeat with `python benchmarks/intervals.py`.\n\n" + table(header, body) + "\n",
        encoding="utf-8",
    )
    print(f"table: {told.report}")


if __name__ == "__main__":
    main()
