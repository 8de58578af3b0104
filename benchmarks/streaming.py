"""Memory while a streamed corpus is scored and filtered: of 2,000 clips beside 200.

    python benchmarks/streaming.py [--clips 200 2000] [--kilobytes 256] [--folder /tmp/streaming]

Each corpus is written once, as WebDataset-style shards (100 clips each) and as one parquet table with embedded bytes.
Every measurement is a fresh process: it loads a tiny random Wan pipeline and scores one clip of another corpus, so
that all that is loaded late is loaded; notes its resident memory; indexes the stream, adds the influence columns,
reads all rows through a filter, and writes the best tenth as a folder. The peak of each step is the kernel's record
(Linux). For comparison, the rows of the larger corpus are held in a list, and nothing else is done: what is not flat
shows. Writes benchmarks/results/streaming.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tests.families has the pipeline, tests.clips the clips

FRAMES, HEIGHT, WIDTH = 9, 32, 48
CLIPS_A_SHARD = 100
ROWS_A_GROUP = 10  # a reader holds a few groups at a time
PHASES = ("index", "influence", "filtered pass", "best tenth as a folder")
MIB = 2**20


# The corpora ----------------------------------------------------------------------------------------------------


def clip_file(seed: int, kilobytes: int, scratch: Path) -> bytes:
    """An mp4 of its own, filled up to a size by a box that readers skip: large files, quickly decoded."""
    from hf_motive.video import save_clip
    from tests.clips import moving_square

    save_clip(scratch, moving_square(seed, height=HEIGHT, width=WIDTH), fps=16)
    filler = random.Random(seed).randbytes(kilobytes * 1024)
    return scratch.read_bytes() + (8 + len(filler)).to_bytes(4, "big") + b"free" + filler


def write_corpora(folder: Path, count: int, kilobytes: int) -> None:
    """`folder/tar` and `folder/table.parquet`, with the same rows."""
    import pyarrow as pa
    import pyarrow.parquet
    from datasets import Features, Value, Video

    if (folder / "done").exists():
        return
    (folder / "tar").mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    schema = Features(video=Video(decode=False), caption=Value("string")).arrow_schema
    with pa.parquet.ParquetWriter(folder / "table.parquet", schema) as table:
        for first in range(0, count, CLIPS_A_SHARD):
            with tarfile.open(folder / "tar" / f"{first // CLIPS_A_SHARD:05d}.tar", "w") as shard:
                for seed in range(first, min(first + CLIPS_A_SHARD, count)):
                    data, caption = clip_file(seed, kilobytes, folder / "scratch.mp4"), f"square {seed}"
                    for suffix, content in (("mp4", data), ("txt", caption.encode())):
                        member = tarfile.TarInfo(f"{seed:06d}.{suffix}")
                        member.size = len(content)
                        shard.addfile(member, io.BytesIO(content))
                    rows.append({"video": {"bytes": data, "path": None}, "caption": caption})
                    if len(rows) == ROWS_A_GROUP or seed == count - 1:
                        table.write_table(pa.Table.from_pylist(rows, schema))
                        rows.clear()
    (folder / "scratch.mp4").unlink()
    (folder / "done").touch()


# One measurement, in a process of its own -----------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def peak(peaks: dict[str, int], phase: str) -> Iterator[None]:
    """The phase's largest resident memory, by the kernel's own record, which is set back first."""
    Path("/proc/self/clear_refs").write_text("5")
    yield
    peaks[phase] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(corpus: Path, hold: bool) -> None:
    """Print one row of figures as JSON."""
    import torch

    from hf_motive import DISFlow, MotiveAttributor
    from hf_motive.corpus import load_clips
    from hf_motive.export import write_videofolder
    from hf_motive.selection import best
    from tests.clips import write_corpus
    from tests.families import wan

    torch.set_num_threads(1)
    pipe = wan.build()
    attributor = MotiveAttributor(
        pipe,
        preset="paper",
        num_frames=FRAMES,
        height=HEIGHT,
        width=WIDTH,
        fps=16.0,
        projection_dim=64,
        estimator=DISFlow("ultrafast", min_side=64),
    )
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_corpus(scratch / "queries", range(1_000_000, 1_000_003), height=HEIGHT, width=WIDTH)
        queries = load_clips(scratch / "queries")
        attributor.index(queries, scratch / "index-queries", progress=False)
        stream = load_clips(corpus, streaming=True)
        next(iter(stream))
        loaded = resident()
        peaks: dict[str, int] = {}
        begun = time.perf_counter()
        rows = 0
        if hold:
            with peak(peaks, "held"):
                rows = len(list(stream))
        else:
            with peak(peaks, "index"):
                index = attributor.index(stream, scratch / "index", progress=False)
            with peak(peaks, "influence"):
                scored = attributor.influence(stream, index, queries, progress=False)
            with peak(peaks, "filtered pass"):
                kept = scored.filter(lambda influence: influence > 0, input_columns="influence")
                rows = sum(1 for _ in kept)
            with peak(peaks, "best tenth as a folder"):
                write_videofolder(best(scored, 0.1), scratch / "best", progress=False)
    figures = {
        "loaded": loaded,
        "peaks": peaks,
        "rows": rows,
        "seconds": time.perf_counter() - begun,
    }
    print(json.dumps(figures))


def in_a_process(corpus: Path, *, hold: bool = False) -> dict:
    command = [sys.executable, __file__, "--measure", str(corpus), *(["--hold"] if hold else [])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(corpus.parent / "home")}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


# The table ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--kilobytes", type=int, default=256, help="size of a clip's file")
    parser.add_argument("--folder", type=Path, help="where the corpora are written and kept; default: nowhere")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        return measure(arguments.measure, arguments.hold)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        lines = []
        for count in arguments.clips:
            write_corpora(folder / str(count), count, arguments.kilobytes)
        for source, name in (("tar", "shards"), ("table.parquet", "parquet")):
            for count in arguments.clips:
                figures = in_a_process(folder / str(count) / source)
                print(name, count, figures, flush=True)
                peaks = [figures["peaks"][phase] / MIB for phase in PHASES]
                cells = [name, f"{count:,}", f"{count * arguments.kilobytes / 1024:,.0f}"]
                cells += [f"{size:,.0f}" for size in (figures["loaded"] / MIB, *peaks)]
                cells += [f"**{max(peaks) - figures['loaded'] / MIB:,.0f}**", f"{figures['seconds']:,.0f}"]
                lines.append("| " + " | ".join(cells) + " |")
        count = arguments.clips[-1]
        held = in_a_process(folder / str(count) / "tar", hold=True)
        print("held", held, flush=True)
    import torch

    above = (held["peaks"]["held"] - held["loaded"]) / MIB
    text = f"""# Memory while a streamed corpus is scored

Resident memory in MiB: with the model loaded, the peak of each step, and the highest above the loaded model. Steps:
`index` of the stream, `influence`, all rows read through a `filter`, and the best tenth written as a folder. Clips are
distinct mp4 files of {arguments.kilobytes} KiB (12 frames of {HEIGHT}×{WIDTH}, and a box that fills them up), in
WebDataset-style shards of {CLIPS_A_SHARD} or one parquet table with row groups of {ROWS_A_GROUP}; the pipeline is a
tiny random Wan, D′ = 64. One thread of a {platform.machine()} CPU, torch {torch.__version__}. Repeat with
`python benchmarks/streaming.py`.

| corpus | clips | MiB on disk | loaded | {" | ".join(PHASES)} | above loaded | s |
|{"---|" * (len(PHASES) + 6)}
{chr(10).join(lines)}

Held in a list, with nothing else done, the rows of the {count:,} clips take {above:,.0f} MiB above loaded.

A parquet table is read by row groups (`IterableDataset.reshard`). Without, pyarrow reads the file ahead to its end
while a clip is scored: measured once, 2,000 such clips took 1,322 MiB above loaded.
"""
    (ROOT / "benchmarks" / "results" / "streaming.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
