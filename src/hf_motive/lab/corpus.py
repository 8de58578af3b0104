"""Write a folder of simulated clips: `python -m hf_motive.lab.corpus OUT --clips 300 --seed 1`.

OUT/clips/*.mp4 beside OUT/metadata.jsonl, the layout that `load_dataset("videofolder", …)` and `examples/score.py`
read: a line a clip, with its file, its caption, its labels and everything that makes the clip again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from ..video import save_clip
from .render import render_clip
from .spec import CLIP_FRAMES, FPS, SIZE, ClipSpec, balanced_specs


def write_corpus(out: str | os.PathLike[str], specs: Sequence[ClipSpec], workers: int = 1, crf: int = 20) -> None:
    """Write clips and their metadata.

    Args:
        out: The folder; what it already holds under the same names is replaced.
        specs: One a clip, in the order of the metadata.
        workers: Processes.
        crf: h264 quality: 18 looks lossless, each 6 more halve the size.
    """
    out = Path(out)
    (out / "clips").mkdir(parents=True, exist_ok=True)
    names = [f"clips/{i:0{max(4, len(str(len(specs))))}d}.mp4" for i in range(len(specs))]
    jobs = [(out / name, spec) for name, spec in zip(names, specs, strict=True)]
    for done, _ in enumerate(_each(partial(_write, crf=crf), jobs, workers), start=1):
        if done % 50 == 0 or done == len(jobs):
            print(f"{done}/{len(jobs)} clips", flush=True)
    # Last, and at once: metadata never names a clip that is not there.
    lines = [
        json.dumps({"file_name": name, "caption": spec.caption, **spec.to_dict()})
        for name, spec in zip(names, specs, strict=True)
    ]
    partial_file = out / ".metadata.jsonl.partial"
    partial_file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    partial_file.replace(out / "metadata.jsonl")


def read_specs(folder: str | os.PathLike[str]) -> list[tuple[Path, ClipSpec]]:
    """The clips of a folder that `write_corpus` wrote: their paths and specs."""
    rows = map(json.loads, (Path(folder) / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    fields = ClipSpec.__dataclass_fields__
    return [(Path(folder) / row["file_name"], ClipSpec(**{k: row[k] for k in fields})) for row in rows]


def _write(job: tuple[Path, ClipSpec], crf: int) -> None:
    path, spec = job
    save_clip(path, render_clip(spec).frames, fps=FPS, crf=crf)


def _each(function: partial, jobs: Sequence, workers: int) -> Iterator[None]:
    if workers <= 1:
        yield from map(function, jobs)
        return
    with get_context("spawn").Pool(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap_unordered(function, jobs, chunksize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hf_motive.lab.corpus",
        description="Write short clips of simulated physics, with captions and labels. Ten motions; shape, colour, "
        "background and camera are balanced and independent of the motion and of each other.",
        epilog="Example: python -m hf_motive.lab.corpus my-corpus --clips 1000 --seed 7 --workers 4",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", help="folder to write; OUT/metadata.jsonl lists OUT/clips/*.mp4")
    parser.add_argument("--clips", type=int, default=300, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other clips")
    parser.add_argument("--static", type=float, default=0.05, help="share of clips in which nothing moves")
    parser.add_argument("--moving-camera", type=float, default=0.15, help="share of the others with a pan or a zoom")
    parser.add_argument("--frames", type=int, default=CLIP_FRAMES, help=f"frames a clip, at {FPS} per second")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width in pixels; motion scales with it")
    parser.add_argument("--crf", type=int, default=20, help="h264 quality; lower is larger and closer")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(arguments)
    specs = balanced_specs(
        args.clips,
        args.seed,
        static=args.static,
        moving_camera=args.moving_camera,
        num_frames=args.frames,
        size=args.size,
    )
    write_corpus(args.out, specs, args.workers, args.crf)


if __name__ == "__main__":
    main()
