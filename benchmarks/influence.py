"""Seconds and memory of ranking 1,000,000 clips for 50 queries, from an index on disk.

    python benchmarks/influence.py [--clips 1000000] [--queries 50] [--dim 512] [--folder /tmp]

Writes benchmarks/results/influence.md. The index is in the real format and is opened by `GradientIndex`; only its rows
are written in bulk, because `append` syncs each row to disk. Needs about 2.3 GB in `--folder`, which it frees again.

Each run is a process of its own, in which a thread reads RssAnon of /proc/self/status every 5 ms. "Beyond the map" is
the peak of this anonymous (private, written) memory less what it was after the imports. Pages of the mapped features
are the kernel's to drop and are not in it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "influence.md"


def write_index(folder: Path, clips: int, dim: int) -> None:
    import numpy as np

    from hf_motive.index import GradientIndex

    GradientIndex.create_or_open(folder, {"features": {"benchmark": "random unit vectors"}}, dim).close()
    generator = np.random.default_rng(0)
    with open(folder / "shard-00000.features", "wb") as data, open(folder / "shard-00000.rows.jsonl", "w") as rows:
        for start in range(0, clips, 8192):
            block = generator.standard_normal((min(8192, clips - start), dim), dtype=np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            data.write(block.astype("<f4").tobytes())
            for i in range(start, start + len(block)):
                # Ids are content hashes, so the order of ids is not the order on disk: the honest case.
                identity = hashlib.sha256(str(i).encode()).hexdigest()[:16]
                row = {"id": identity, "status": "ok", "reason": "", "position": i, "checksum": "", "facts": {}}
                rows.write(json.dumps(row) + "\n")


class AnonymousMemory:
    """Peak of this process's anonymous memory, in bytes, sampled."""

    def __init__(self):
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def now() -> int:
        # A counter that the kernel keeps. smaps_rollup would walk half a million mapped pages at each sample.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no RssAnon line in /proc/self/status: this benchmark needs Linux 4.5 or newer")

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> AnonymousMemory:
        self.start = self.peak = self.now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.beyond = max(self.peak, self.now()) - self.start


def drop_cache(folder: Path) -> None:
    """Make the kernel forget the files, so that the next reader meets a cold disk."""
    for file in folder.iterdir():
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(folder: Path, queries: int, order: str) -> None:
    import torch

    from hf_motive.index import GradientIndex
    from hf_motive.influence import cosine, cutoffs, influence, mean_influence, rank, votes

    torch.ones(4, 4) @ torch.ones(4, 4)  # threads and libraries are up before the clock starts
    seconds: dict[str, float] = {}
    with AnonymousMemory() as memory:
        clock = begin = time.perf_counter()
        cpu = time.process_time()

        def lap(name: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            seconds[name], clock = now - clock, now

        index = GradientIndex.open(folder)
        lap("open the index")
        ids = index.ids("ok", stored_order=order == "stored")
        lap("ids in order")
        examples = torch.randn(queries, index.dim, generator=torch.Generator().manual_seed(1))
        scores = cosine((features for _, features in index.chunks(ids=ids)), examples)
        lap("cosine, reading included")
        levels = cutoffs(scores)
        lap("cut-offs")
        counts = votes(scores, levels)
        lap("votes")
        mean = mean_influence(scores)
        lap("mean")
        ranks = rank(counts, mean)
        lap("rank")
        seconds["all"] = clock - begin
        seconds["all, CPU time of the process"] = time.process_time() - cpu
    result = {"seconds": seconds, "beyond": memory.beyond, "clips": len(ranks)}
    # The same through the one function that users call, on a part.
    part = index.features(ids[:1000])
    assert torch.equal(influence(part, examples).scores, scores[:1000])
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the index is put for the time being")
    parser.add_argument("--index", help="make the index here, or use the one that is here, and keep it")
    parser.add_argument("--measure", nargs=2, metavar=("INDEX", "ORDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(Path(options.measure[0]), options.queries, options.measure[1])

    folder = Path(options.index or tempfile.mkdtemp(prefix="influence-", dir=options.folder))
    runs = {}
    try:
        if not (folder / "index.json").exists():
            write_index(folder, options.clips, options.dim)
        size = (folder / "shard-00000.features").stat().st_size
        for title, order, cold in [
            ("order of ids, warm", "id", False),
            ("order on disk, warm", "stored", False),
            ("order on disk, cold", "stored", True),
            ("order of ids, cold", "id", True),
        ]:
            if cold:
                drop_cache(folder)
            command = [sys.executable, __file__, "--queries", str(options.queries), "--measure", str(folder), order]
            runs[title] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{title}: {runs[title]['seconds']['all']:.1f} s, {runs[title]['beyond'] / 2**20:.0f} MiB", flush=True
            )
    finally:
        if not options.index:
            shutil.rmtree(folder)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(report(options, runs, size))


def report(options: argparse.Namespace, runs: dict, size: int) -> str:
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    stages = list(next(iter(runs.values()))["seconds"])
    lines = [
        f"# Ranking {options.clips:,} clips for {options.queries} queries, D' = {options.dim}",
        "",
        f"`python benchmarks/influence.py --clips {options.clips} --queries {options.queries} --dim {options.dim}`, "
        f"{threads} thread(s) of {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}; "
        f"load average at the end {os.getloadavg()[0]:.1f}.",
        "",
        f"Features on disk: {size / 2**20:,.0f} MiB, memory-mapped. Seconds:",
        "",
        "| | " + " | ".join(runs) + " |",
        "|---|" + "---|" * len(runs),
        *(
            f"| {stage} | " + " | ".join(f"{run['seconds'][stage]:.1f}" for run in runs.values()) + " |"
            for stage in stages
        ),
        "| **peak memory beyond the map, MiB** | "
        + " | ".join(f"{run['beyond'] / 2**20:.0f}" for run in runs.values())
        + " |",
        "",
        "Memory: the peak of the process's anonymous pages (`RssAnon` of `/proc/self/status`, every 5 ms) less that "
        "before the index was opened. It holds the ids and offsets of the index, the scores (4 bytes a clip and "
        "query), as much again where they are cut to size, and the block that is being worked on.",
        "",
        "Order of ids is what `chunks()` gives: it does not depend on who wrote the index. Ids are content hashes, so "
        "on a cold disk it reads at random; `chunks(ids=index.ids('ok', stored_order=True))` reads in sequence.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
