"""The main job: a pipeline, a corpus and queries to a ranked corpus. `examples/score.py` is its command line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import AttributionConfig

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class ScoreArguments:
    """What to score, with what, and where the results go."""

    pipeline: str = field(metadata={"help": "Diffusers video pipeline: a local folder or a Hub id."})
    corpus: str = field(
        metadata={
            "help": "The clips to rank: a folder with metadata.jsonl, a folder of videos with captions in .txt files "
            "beside them, a saved dataset, a .jsonl/.csv/.parquet table, or a Hub id."
        }
    )
    queries: str = field(metadata={"help": "A few clips that move the way you want, in any of the same forms."})
    output: str = field(
        default="runs/score",
        metadata={"help": "Folder for the results. Started again with the same settings, the run goes on from here."},
    )
    corpus_split: str = field(default="train", metadata={"help": "Split of the corpus."})
    query_split: str = field(default="train", metadata={"help": "Split of the queries."})
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
    threads: int = field(
        default=0,
        metadata={
            "help": "CPU threads a process. 0: the machine's cores, shared out among its processes (Accelerate's own "
            "default is one). Features agree bit for bit between runs of the same number of threads."
        },
    )
    retry_failed: bool = field(default=False, metadata={"help": "Try the clips again that failed in an earlier run."})
    rows: int = field(default=3, metadata={"help": "Clips to show at either end of each table."})

    def __post_init__(self):
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {self.fraction}")
        if isinstance(self.call_kwargs, str):
            try:
                self.call_kwargs = json.loads(self.call_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(f"call_kwargs must be JSON, got {self.call_kwargs!r}: {error}") from error
        if not isinstance(self.call_kwargs, (dict, type(None))):
            raise ValueError(f"call_kwargs must be a mapping of argument to value, got {self.call_kwargs!r}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")


def score(arguments: ScoreArguments, config: AttributionConfig) -> Dataset:
    """Index the corpus, ask the queries, write `influence.parquet` and print the report.

    Runs on every process that Accelerate launched; the main one writes and prints.

    Returns:
        The corpus with the influence columns (see `MotiveAttributor.influence`).
    """
    import torch

    from .attributor import MotiveAttributor
    from .corpus import load_clips
    from .influence import selection_size
    from .processes import processes, threads_of_a_process
    from .report import clip_name, print_report

    state = processes()
    _quiet()
    torch.set_num_threads(arguments.threads or threads_of_a_process())
    columns: dict[str, Any] = {"video_column": arguments.video_column, "caption_column": arguments.caption_column}
    with state.main_process_first():
        corpus = load_clips(arguments.corpus, split=arguments.corpus_split, **columns)
        queries = load_clips(arguments.queries, split=arguments.query_split, **columns)
    if arguments.group_column is not None and arguments.group_column not in queries.column_names:
        raise ValueError(
            f"the queries have no column {arguments.group_column!r} to group by; "
            f"they have {', '.join(queries.column_names)}"
        )
    group_column = arguments.group_column
    if group_column is None and "query" not in queries.column_names:
        # Each query for itself, under its file's name.
        group_column = "query"
        names = [clip_name(video, row) for row, video in enumerate(queries[arguments.video_column])]
        queries = queries.add_column(group_column, names)
    pipe = load_pipeline(arguments.pipeline, arguments.dtype, state.device)
    attributor = MotiveAttributor(
        pipe, config, call_kwargs=dict(arguments.call_kwargs or {}), id_column=arguments.id_column, **columns
    )
    if arguments.gradient_checkpointing:
        for denoiser in attributor.step.denoisers.values():
            denoiser.enable_gradient_checkpointing()

    output = Path(arguments.output)
    if state.is_main_process:
        print(
            f"Scoring {len(corpus)} clips against {len(queries)} queries with {type(pipe).__name__} "
            f"({sum(p.numel() for p in attributor.parameters.values()):,} parameters) into {output}",
            flush=True,
        )
    index = attributor.index(corpus, output / "index", retry_failed=arguments.retry_failed)
    scored = attributor.influence(
        corpus,
        index,
        queries,
        fraction=arguments.fraction,
        percentile=arguments.percentile,
        group_column=group_column,
    )
    if state.is_main_process:
        keep = selection_size(scored["influence_status"][:].count("ok"), arguments.fraction)
        results = write_parquet(scored, output / "influence.parquet")
        print_report(
            scored,
            rows=arguments.rows,
            fraction=arguments.fraction,
            group_column=group_column,
            video_column=arguments.video_column,
            caption_column=arguments.caption_column,
        )
        print(
            f"\nAll scores: {results}\nKeep the best {arguments.fraction:.0%}:\n"
            f"  scored = datasets.Dataset.from_parquet({str(results)!r})\n"
            f"  best = scored.filter(lambda rank: rank < {keep}, "
            'input_columns="influence_rank")'
        )
    state.wait_for_everyone()
    return scored


def _quiet() -> None:
    """One bar, the job's own: the libraries' bars and notes on optional packages would bury it."""
    import datasets
    import diffusers.utils.logging
    import transformers.utils.logging

    datasets.disable_progress_bars()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def load_pipeline(source: str, dtype: str, device: Any) -> Any:
    """Load a diffusers pipeline, modular or not, from a folder or the Hub.

    Raises:
        OSError: there is no pipeline; the message says where it was looked for.
    """
    import torch
    from diffusers import DiffusionPipeline, ModularPipeline

    if dtype == "auto":
        dtype = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    try:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=getattr(torch, dtype))
    except OSError as error:
        try:
            pipe = ModularPipeline.from_pretrained(source)
        except (OSError, ValueError):
            raise error from None
        pipe.load_components(dtype=getattr(torch, dtype))
    return pipe.to(device)


def write_parquet(scored: Dataset, path: Path) -> Path:
    """Write the scores, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".parquet.part")
    scored.to_parquet(str(temporary))
    os.replace(temporary, path)
    return path
