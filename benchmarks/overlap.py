"""How much of the time a scoring process computes, and how much faster two are than one.

    python benchmarks/overlap.py [--clips 60] [--repeats 3]

Scores clips of the lab's corpus by `MotiveAttributor.index`, as `accelerate launch` starts it: one process that does
everything itself, one with a thread ahead of it, and two processes, all of them with one thread for torch. *Busy* is
the share of the run in which the process encodes, runs forward or backward, projects or (very little) writes, and
neither digests files for their ids, which comes first, nor decodes or waits for a clip. Rounds are interleaved. Wants
two idle cores. Writes benchmarks/results/overlap.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAB = ROOT / "examples" / "lab"
#: (processes, threads ahead in each)
RUNS = {"one process": (1, 0), "one process, a thread ahead": (1, 1), "two processes": (2, 0)}


def child(clips: int, wanted: int, workers: int, folder: Path) -> None:
    """Score in this process; the main one writes what it took."""
    import numpy as np
    import torch
    from diffusers import WanPipeline

    from hf_motive import MotiveAttributor
    from hf_motive.corpus import load_clips
    from hf_motive.processes import processes

    state = processes()
    torch.set_num_threads(1)
    corpus = load_clips(LAB / "corpus")
    corpus = corpus.select(np.linspace(0, len(corpus) - 1, clips).round().astype(int).tolist())
    pipe = WanPipeline.from_pretrained(LAB / "pipeline")
    attributor = MotiveAttributor(pipe, preset="paper", num_frames=17, height=64, width=64, fps=16.0, workers=workers)
    idle = 0.0
    features = attributor._features

    def watched(clips):
        nonlocal idle
        idle = time.perf_counter() - start

        def timed():
            nonlocal idle
            iterator, begin = iter(clips), time.perf_counter()
            for clip in iterator:
                idle += time.perf_counter() - begin
                yield clip
                begin = time.perf_counter()

        yield from features(timed())

    attributor._features = watched
    attributor.settings()  # digests the weights once, here and not on the clock
    state.wait_for_everyone()
    start = time.perf_counter()
    index = attributor.index(corpus, folder / "index", progress=False)
    seconds = time.perf_counter() - start
    if state.num_processes != wanted:
        raise RuntimeError(f"{state.num_processes} processes were started, not {wanted}")
    if state.is_main_process:
        (folder / "took.json").write_text(
            json.dumps({"seconds": seconds, "busy": seconds - idle, "clips": len(index)})
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("PROCESSES", "WORKERS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.clips, *map(int, arguments.child[:2]), Path(arguments.child[2]))

    import torch

    took: dict[str, list[dict]] = {name: [] for name in RUNS}
    for _ in range(arguments.repeats):
        for name, (count, workers) in RUNS.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
                command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
                # The torchrun launcher, which starts several processes on a CPU, too, goes by this name.
                command += ["--num_processes", str(count), "--main_process_port", "0"]
                command += ["--multi_gpu"] if count > 1 else []
                command += [__file__, "--clips", str(arguments.clips), "--child", str(count), str(workers), folder]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                took[name].append(json.loads((Path(folder) / "took.json").read_text()))
    lines = []
    first = [one["seconds"] for one in took["one process"]]
    for name, rounds in took.items():
        ratios = [before / one["seconds"] for before, one in zip(first, rounds, strict=True)]
        busy = statistics.median(one["busy"] / one["seconds"] for one in rounds)
        clips = statistics.median(one["seconds"] / one["clips"] for one in rounds)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {1e3 * clips:.0f} ms | {spread} | {busy:.0%} |")
        print(lines[-1], flush=True)
    report = ROOT / "benchmarks" / "results" / "overlap.md"
    report.write_text(
        TEXT.format(
            clips=rounds[0]["clips"], repeats=arguments.repeats, version=torch.__version__, table="\n".join(lines)
        ),
        encoding="utf-8",
    )


TEXT = """\
# Overlap

{clips} clips of the lab's corpus (17 frames of 64×64), scored with its pipeline by `MotiveAttributor.index`; two CPU
cores, one thread of torch a process, torch {version}. Medians of {repeats} interleaved rounds; in brackets all of
them. *Busy*: the share of the run in which the (first) process encodes, computes or projects, and neither digests
files for their ids, which comes first, nor decodes or waits for a clip. Starting up and loading the model are not in
it. Repeat with `python benchmarks/overlap.py`.

| | a clip | times as fast as one process | busy |
|---|---|---|---|
{table}
"""


if __name__ == "__main__":
    main()
