"""The main job: a pipeline, a corpus and queries to a ranked corpus, and back from its folder.

`hf-motive score` and `examples/score.py` are its command lines.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import AttributionConfig

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from .attributor import MotiveAttributor

#: In the folder of the results: what they were made with.
JOB = "job.json"


def parsed_call_kwargs(told: dict | str | None) -> dict | None:
    """Arguments of a pipeline's call as a command line (JSON) or a YAML file (a mapping) gives them.

    Raises:
        ValueError: They are neither.
    """
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except json.JSONDecodeError as error:
            raise ValueError(f"call_kwargs must be JSON, got {told!r}: {error}") from error
    if not isinstance(told, (dict, type(None))):
        raise ValueError(f"call_kwargs must be a mapping of argument to value, got {told!r}")
    return told


@dataclass
class ScoreArguments:
    """What to score, with what, and where the results go."""

    pipeline: str = field(metadata={"help": "Diffusers video pipeline: a local folder or a Hub id."})
    corpus: str = field(
        metadata={
            "help": "The clips to rank: a folder with metadata.jsonl, a folder of videos with captions in .txt files "
            "beside them, WebDataset shards (.tar), a saved dataset, a .jsonl/.csv/.parquet table, or a Hub id."
        }
    )
    queries: str = field(metadata={"help": "A few clips that move the way you want, in any of the same forms."})
    output: str = field(
        default="runs/score",
        metadata={"help": "Folder for the results. Started again with the same settings, the run goes on from here."},
    )
    corpus_split: str = field(default="train", metadata={"help": "Split of the corpus."})
    query_split: str = field(default="train", metadata={"help": "Split of the queries."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the corpus row by row, copying and downloading nothing first: for one that is larger than "
            "the disk. Shards always stream. It is read once for the features (once more with --rivals), once for the "
            "ids and once for the results, which hold no videos."
        },
    )
    video_column: str = field(default="video", metadata={"help": "Column of the video."})
    caption_column: str = field(default="caption", metadata={"help": "Column of the caption."})
    id_column: str | None = field(
        default=None, metadata={"help": "Column of a stable id. None: a digest of the file's bytes and the caption."}
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the queries that groups them, e.g. by motion: one table and column a group. "
            "None: each query for itself."
        },
    )
    rivals: bool = field(
        default=False,
        metadata={
            "help": "Add what a cheaper choice would go by: rival_random, and rival_whole_clip, the influence without "
            "the mask, which takes as long again. (motion_mean, the flow alone, is there anyway.)"
        },
    )
    fraction: float = field(default=0.1, metadata={"help": "Share of the clips you mean to keep."})
    percentile: float | None = field(
        default=None,
        metadata={"help": "A query votes for clips above this percentile of its influences. None: 100(1 - fraction)."},
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "'float32', 'bfloat16', 'float16', or 'auto': bfloat16 on a GPU, float32 on a CPU."},
    )
    call_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Further arguments of the pipeline's call, the same for every clip: JSON on the command line, as "
            "in '{\"noise_aug_strength\": 0.0}'; a mapping in YAML. docs/pipelines.md says which pipelines want some."
        },
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Trade a second forward for memory: the features do not change."}
    )
    encode: bool = field(
        default=False,
        metadata={
            "help": "Encode all clips and captions first, and keep that in the cache of `datasets`, where the next "
            "run and training find it; then score. 12 MB for a clip of 81 frames of 480x832."
        },
    )
    offload: bool = field(
        default=False,
        metadata={
            "help": "Have one model on the device at a time: the text encoder, the VAE or the denoiser. With --encode "
            "they change places once, and not at every clip."
        },
    )
    threads: int = field(
        default=0,
        metadata={
            "help": "CPU threads a process. 0: the machine's cores, shared out among its processes (Accelerate's own "
            "default is one). Features agree bit for bit between runs of the same number of threads."
        },
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "Threads a process that read, decode and find the motion of the next clips while the device is at "
            "one; each holds a clip in memory. None: the idle cores, at most four. On a CPU --threads takes all, and "
            "leaves none."
        },
    )
    retry_failed: bool = field(default=False, metadata={"help": "Try the clips again that failed in an earlier run."})
    rows: int = field(default=3, metadata={"help": "Clips to show at either end of each table."})

    def __post_init__(self):
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {self.fraction}")
        self.call_kwargs = parsed_call_kwargs(self.call_kwargs)
        if self.encode and self.streaming:
            raise ValueError("encode keeps encodings on disk, beside clips that are there; streaming keeps nothing")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")


def score(arguments: ScoreArguments, config: AttributionConfig) -> Dataset:
    """Index the corpus, ask the queries, write `influence.parquet` and print the report.

    Runs on every process that Accelerate launched; the main one writes and prints. Beside the results lies `job.json`,
    the options that made them.

    Returns:
        The corpus with the influence columns (see `MotiveAttributor.influence`); of a stream, without the videos.
    """
    import torch
    from datasets import Dataset

    from .corpus import load_clips
    from .encodings import COLUMNS
    from .influence import selection_size
    from .processes import processes, threads_of_a_process
    from .report import print_report

    state = processes()
    quiet()
    torch.set_num_threads(arguments.threads or threads_of_a_process())
    columns: dict[str, Any] = {"video_column": arguments.video_column, "caption_column": arguments.caption_column}
    with state.main_process_first():
        corpus = load_clips(arguments.corpus, split=arguments.corpus_split, streaming=arguments.streaming, **columns)
        queries = load_clips(arguments.queries, split=arguments.query_split, **columns)
        if not isinstance(queries, Dataset):
            queries = Dataset.from_list(list(queries), features=queries.features)
    if arguments.group_column is not None and arguments.group_column not in queries.column_names:
        raise ValueError(
            f"the queries have no column {arguments.group_column!r} to group by; "
            f"they have {', '.join(queries.column_names)}"
        )
    if arguments.encode and not isinstance(corpus, Dataset):
        raise ValueError(f"{arguments.corpus} is read as a stream, which has no place for encodings: leave out encode")
    attributor = _load_attributor(arguments, config, state.device)

    output = Path(arguments.output)
    results = output / "influence.parquet"
    if state.is_main_process:
        print(
            f"Scoring {f'{len(corpus)} clips' if isinstance(corpus, Dataset) else 'a stream of clips'} against "
            f"{len(queries)} queries with {type(attributor.step.pipeline).__name__} "
            f"({sum(p.numel() for p in attributor.parameters.values()):,} parameters) into {output}",
            flush=True,
        )
    own = set(corpus.features)
    if arguments.encode:
        corpus, queries = attributor.encode(corpus), attributor.encode(queries)
    index = attributor.index(corpus, output / "index", retry_failed=arguments.retry_failed)
    scored = attributor.influence(
        corpus,
        index,
        queries,
        fraction=arguments.fraction,
        percentile=arguments.percentile,
        group_column=arguments.group_column,
        per_query=arguments.group_column is None,
        rivals=arguments.rivals,
    )
    scored = scored.remove_columns([name for name in COLUMNS if arguments.encode and name not in own])
    if state.is_main_process:
        write_scores(scored, results, arguments.video_column)
        _write_job(output / JOB, arguments, attributor.config, streamed=not isinstance(corpus, Dataset))
    state.wait_for_everyone()
    if not isinstance(scored, Dataset):
        scored = Dataset.from_parquet(str(results))
    if state.is_main_process:
        print_report(
            scored,
            rows=arguments.rows,
            fraction=arguments.fraction,
            group_column=arguments.group_column,
            **columns,
        )
        keep = selection_size(scored["influence_status"][:].count("ok"), arguments.fraction)
        print(
            f"\nAll scores: {results}\n"
            f"Keep the best {arguments.fraction:.0%}, {keep} clips, as a folder of mp4 files, and publish them:\n"
            f"  hf-motive select {output} --output {output}-best --fraction {arguments.fraction}\n"
            f"  hf-motive push {output}-best me/my-clips-best\n"
            f"or in Python: scored = hf_motive.scoring.load_run({str(output)!r}); "
            f'scored.filter(lambda rank: rank < {keep}, input_columns="influence_rank")'
        )
    return scored


def _load_attributor(arguments: ScoreArguments, config: AttributionConfig, device: Any) -> MotiveAttributor:
    """The pipeline, where the arguments and the launcher want its parts, ready to score."""
    from .attributor import MotiveAttributor
    from .sharding import launched_sharded

    sharded = launched_sharded()
    if sharded and arguments.offload:
        raise ValueError("FSDP shares the denoiser out among the devices: launch without it to offload the models")
    first = "cpu" if arguments.offload else device
    pipe = load_pipeline(arguments.pipeline, _dtype(arguments.dtype, device), first, sharded=sharded)
    if arguments.offload:
        pipe.enable_model_cpu_offload(device=device)
    attributor = MotiveAttributor(
        pipe,
        config,
        call_kwargs=dict(arguments.call_kwargs or {}),
        video_column=arguments.video_column,
        caption_column=arguments.caption_column,
        id_column=arguments.id_column,
        encoded_column="encoded" if arguments.encode else None,
        workers=arguments.workers,
    )
    if arguments.gradient_checkpointing:
        denoiser: Any
        for denoiser in attributor.step.denoisers.values():
            denoiser.enable_gradient_checkpointing()
    return attributor


def _write_job(path: Path, arguments: ScoreArguments, config: AttributionConfig, *, streamed: bool) -> None:
    """Beside the results that it describes, and only with them: a command that is refused spoils nothing."""
    said = asdict(arguments)
    for name in ("pipeline", "corpus", "queries"):
        source = Path(said[name]).expanduser()
        said[name] = str(source.absolute()) if source.exists() else said[name]
    job = {"arguments": said, "config": config.to_dict(), "streamed": streamed}
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def load_run(folder: str | Path) -> Dataset | IterableDataset:
    """The scored corpus of a folder that `score` wrote, with its videos.

    Of a corpus that was streamed the results hold no videos: it is opened again, and gives a stream.

    Raises:
        FileNotFoundError: there are no results: the job has not ended yet.
    """
    from datasets import Dataset

    from .corpus import RowId, clip_name, load_clips
    from .transforms import add_influence, is_score

    folder = Path(folder)
    results = folder / "influence.parquet"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: give the folder that `score` was told as --output")
    if not results.exists():
        raise FileNotFoundError(
            f"{folder} holds no influence.parquet: its job has not ended. Run the same `score` command again, it goes "
            "on where it stopped"
        )
    scored = Dataset.from_parquet(str(results))
    job = json.loads((folder / JOB).read_text(encoding="utf-8")) if (folder / JOB).exists() else {}
    if not job.get("streamed"):
        return scored
    arguments = ScoreArguments(**job["arguments"])
    names = {"video_column": arguments.video_column, "caption_column": arguments.caption_column}
    corpus = load_clips(arguments.corpus, split=arguments.corpus_split, streaming=True, **names)
    columns = {name: scored[name][:] for name in scored.column_names if is_score(name)}
    videos = scored.with_format(None)[arguments.video_column]
    clips = [clip_name(video, "") for video in videos]
    return add_influence(corpus, columns, RowId(**names, id_column=arguments.id_column), clips)


def quiet() -> None:
    """One bar, the job's own: the libraries' bars and notes on optional packages would bury it."""
    import datasets
    import diffusers.utils.logging
    import transformers.utils.logging

    datasets.disable_progress_bars()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def load_pipeline(source: str, dtype: str, device: Any, *, sharded: bool = False) -> Any:
    """Load a diffusers pipeline, modular or not, from a folder or the Hub.

    Args:
        source: The folder or id.
        dtype: As `ScoreArguments` has it.
        device: Where it goes.
        sharded: Share its denoisers out among the processes first, so that no device holds one whole.

    Raises:
        OSError: there is no pipeline; the message says where it was looked for.
    """
    import torch
    from diffusers import DiffusionPipeline, ModularPipeline

    from .pipelines.denoisers import find_denoisers
    from .sharding import share_out

    dtype = _dtype(dtype, device)
    try:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=getattr(torch, dtype))
    except OSError as error:
        try:
            pipe = ModularPipeline.from_pretrained(source)
        except (OSError, ValueError):
            raise error from None
        pipe.load_components(dtype=getattr(torch, dtype))
    if sharded:
        share_out(find_denoisers(pipe))
    return pipe.to(device)


def _dtype(dtype: str, device: Any) -> str:
    """The name of a dtype; 'auto' is what the device is good at."""
    import torch

    if dtype != "auto":
        return dtype
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"


def write_scores(scored: Dataset | IterableDataset, path: Path, video_column: str = "video") -> None:
    """Write a scored corpus as parquet, whole or not at all; of a stream without its videos, whose names stay.

    Not by `to_parquet`, which looks at every file that a row names, and fails where one is not there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    from .corpus import clip_name

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".parquet.part")
    schema = scored.features.arrow_schema  # which says the features, too
    with pq.ParquetWriter(temporary, schema) as writer:
        if isinstance(scored, Dataset):
            for table in scored.with_format("arrow").iter(batch_size=1000):
                writer.write_table(table.cast(schema))
        else:
            for batch in scored.iter(batch_size=64):
                batch[video_column] = [{"path": clip_name(video, ""), "bytes": None} for video in batch[video_column]]
                writer.write_table(pa.table(batch, schema=schema))
    os.replace(temporary, path)
