"""The third job: prompts and candidates to clips, scores and a comparison.

`hf-motive evaluate` and `examples/evaluate.py` are its command lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import EvaluateArguments
from .candidates import Candidate, resolve
from .distance import measure_distance
from .fingerprints import Fingerprints
from .generate import VIDEOS, Clip, clips_of, forget_failures, generate, settings_of, settle
from .measuring import DISTANCE, Measured, check_metric, measure
from .pages import write_pages
from .prompts import Prompt, load_prompts
from .report import Report, load_report
from .tables import report_of, write_scores

if TYPE_CHECKING:
    from accelerate import PartialState


def evaluate(arguments: EvaluateArguments) -> Report:
    """Generate, measure, compare, and print what came of it.

    Runs on every process that Accelerate launched; they share one output folder. Stopped and started again it goes on
    where it was: clips that are there are not generated, scores that are there not computed again.

    Returns:
        The comparison, as `results.json` in the output folder has it too.

    Raises:
        ValueError: Something that was asked for cannot be had, before anything is generated; or a candidate could
            generate nothing.
    """
    import torch

    from ..processes import processes, threads_of_a_process
    from ..scoring import quiet

    state, folder = processes(), Path(arguments.output)
    quiet()
    torch.set_num_threads(arguments.threads or threads_of_a_process())
    with state.main_process_first():  # which downloads for all
        prompts = _prompts(arguments)
        candidates = [resolve(spec, arguments.pipeline) for spec in arguments.candidate_specs()]
    clips = {candidate: clips_of(candidate.name, prompts, arguments) for candidate in candidates}
    dtype = arguments.dtype
    if dtype == "auto":
        dtype = "float32" if state.device.type == "cpu" else "bfloat16"
    described = _settled(clips, arguments, dtype) if state.is_main_process else {}
    state.wait_for_everyone()
    every = [clip for of_one in clips.values() for clip in of_one]
    if not all(clip.is_settled for clip in every):
        _check_metrics(arguments, state)
    generate(clips, arguments, dtype, state)

    there = [clip for clip in every if clip.file.exists()]
    specs = arguments.metric_specs()
    measured: list[Measured] = [
        measure(spec, there, folder, state, retry_failed=arguments.retry_failed)
        for spec in specs
        if spec.name != DISTANCE
    ]
    by_name = {candidate.name: of_one for candidate, of_one in clips.items()}
    against = arguments.against or candidates[0].name
    distances = [measure_distance(spec, by_name, against, arguments, state) for spec in specs if spec.name == DISTANCE]
    if state.is_main_process:
        report = report_of(arguments, by_name, against, measured, distances, described)
        if arguments.page:
            report.pages = write_pages(by_name, arguments, against)
        write_scores(folder, by_name, measured)
        report.save(folder)
        report.print()
        print(f"\nClips, scores and tables: {folder}", flush=True)
    state.wait_for_everyone()
    return load_report(folder)


def _prompts(arguments: EvaluateArguments) -> list[Prompt]:
    if arguments.prompts is None:
        raise ValueError("which prompts? Say --prompts, a .txt with one a line, a table, or clips with captions")
    return load_prompts(
        arguments.prompts,
        prompt_column=arguments.prompt_column,
        group_column=arguments.group_column,
        video_column=arguments.video_column,
        split=arguments.split,
        limit=arguments.limit,
    )


def _settled(
    clips: Mapping[Candidate, Sequence[Clip]], arguments: EvaluateArguments, dtype: str
) -> dict[str, dict[str, Any]]:
    """Candidate -> what it is and how it generates, compared with what is there from an earlier run."""
    folder, described = Path(arguments.output), {}
    fingerprints = Fingerprints(folder)
    for candidate in clips:
        settings = settings_of(candidate, candidate.weights(fingerprints), arguments, dtype)
        settle(folder / VIDEOS / candidate.name, settings, overwrite=arguments.overwrite)
        described[candidate.name] = {"place": candidate.place, "base": candidate.base, "settings": settings}
    every = [clip for of_one in clips.values() for clip in of_one]
    if arguments.retry_failed:
        forget_failures(every)
    there, count = sum(clip.is_settled for clip in every), len(next(iter(clips.values())))
    print(
        f"{len(clips)} candidate{'s' * (len(clips) != 1)}, {count} clip{'s' * (count != 1)} of each, into {folder}"
        + f"; {there} of all {len(every)} are there" * bool(there),
        flush=True,
    )
    return described


def _check_metrics(arguments: EvaluateArguments, state: PartialState) -> None:
    """Refuse a metric whose weights cannot be had now, and not after hours of generating."""
    if state.is_main_process:
        for spec in arguments.metric_specs():
            shape = {name: getattr(arguments, name) for name in ("num_frames", "height", "width", "fps")}
            check_metric(spec, state.device, **shape)
    state.wait_for_everyone()
