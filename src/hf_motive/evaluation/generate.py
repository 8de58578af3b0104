"""Clips of every candidate, for every prompt, from the same noise: files that a second start finds again."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..pipelines.call import call_parameters
from ..pipelines.conditioning import FROM_THE_CLIP, Conditioning
from ..pipelines.denoisers import DENOISERS
from ..pipelines.step import PipelineStep
from ..training.samples import Sampler, write_text
from ..video import ClipStandard, load_clip, save_clip
from .candidates import Candidate
from .prompts import Prompt

if TYPE_CHECKING:
    from accelerate import PartialState

    from .arguments import EvaluateArguments

logger = logging.getLogger(__name__)

#: In the folder of the results: a folder of clips for each candidate, and in it what they were made with.
VIDEOS, SETTINGS = "videos", "settings.json"


class Clip(NamedTuple):
    """One clip that there is, or is to be.

    Args:
        candidate: By name.
        prompt: What is asked for.
        repeat: Which of the prompt's clips it is, from 0.
        seed: Of its noise: the same for all candidates.
        file: The mp4. What could not be generated has a `.failed` file in its place, which says why.
    """

    candidate: str
    prompt: Prompt
    repeat: int
    seed: int
    file: Path

    @property
    def failed(self) -> Path:
        return self.file.with_suffix(".failed")

    @property
    def is_settled(self) -> bool:
        return self.file.exists() or self.failed.exists()


def clips_of(candidate: str, prompts: Sequence[Prompt], arguments: EvaluateArguments) -> list[Clip]:
    """What is to be there in the end. A file's name follows from prompt and noise: more prompts leave it as it is."""
    folder, clips = Path(arguments.output) / VIDEOS / candidate, []
    for prompt in prompts:
        for repeat in range(arguments.seeds):
            seed = prompt.noise_seed(arguments.seed, repeat)
            clips.append(Clip(candidate, prompt, repeat, seed, folder / f"{prompt.slug()}-{seed:08x}.mp4"))
    return clips


def settings_of(candidate: Candidate, weights: Mapping[str, Any], arguments: EvaluateArguments, dtype: str) -> dict:
    """What a clip depends on beside prompt and noise, as JSON values."""
    return {
        **weights,
        "steps": arguments.steps if candidate.steps is None else candidate.steps,
        "guidance": arguments.guidance if candidate.guidance is None else candidate.guidance,
        **{name: getattr(arguments, name) for name in ("num_frames", "height", "width", "fps", "call_kwargs")},
        "dtype": dtype,
    }


def settle(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """See that the clips in a candidate's folder were made with these settings, or that there are none.

    Args:
        folder: Of the candidate's clips.
        settings: Of `settings_of`.
        overwrite: Take clips of other settings away.

    Raises:
        ValueError: They were made otherwise; the message says in what.
    """
    said = folder / SETTINGS
    earlier = json.loads(said.read_text(encoding="utf-8")) if said.exists() else None
    wanted = json.loads(json.dumps(settings))
    if earlier == wanted:
        return
    if earlier is not None and (any(folder.glob("*.mp4")) or any(folder.glob("*.failed"))):
        if not overwrite:
            differ = [name for name in {**wanted, **earlier} if earlier.get(name) != wanted.get(name)]
            pairs = ", ".join(f"{name} was {earlier.get(name)} and is {wanted.get(name)}" for name in differ)
            raise ValueError(
                f"{folder} holds clips that were made otherwise: {pairs}. Give the candidate another name or the job "
                "another --output, or generate these clips again with --overwrite true"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(said, json.dumps(wanted, indent=1))


class Call:
    """What a `Sampler` reads of a `PipelineStep`, of a pipeline that need not be understood, as it only generates.

    Args:
        pipeline: Any diffusers video pipeline.
        arguments: Shape of the clips, and further arguments of its call.
    """

    def __init__(self, pipeline: Any, arguments: EvaluateArguments):
        self.pipeline = pipeline
        parts = pipeline.components.items()
        self.denoisers = {name: p for name, p in parts if isinstance(p, nn.Module) and DENOISERS.fullmatch(name)}
        shape = (arguments.num_frames, arguments.height, arguments.width)
        self._conditioning = Conditioning(pipeline, *shape, None, _call_kwargs(arguments))

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipeline._execution_device)

    def generation(self, caption: str, example: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._conditioning.generation(caption, example or {})


class Generator:
    """One candidate, loaded, as a function from a clip that is to be to its file."""

    def __init__(self, pipeline: Any, candidate: Candidate, clips: Sequence[Clip], arguments: EvaluateArguments):
        self.video_column, self.fps = arguments.video_column, arguments.fps
        self.standard = ClipStandard(arguments.num_frames, arguments.height, arguments.width, arguments.fps)
        rows = [clip.prompt.row for clip in clips if clip.prompt.row.get(self.video_column) is not None]
        step: Any = Call(pipeline, arguments)
        self.conditioned = False
        if rows and FROM_THE_CLIP.keys() & call_parameters(pipeline).keys():
            shape = {name: getattr(arguments, name) for name in ("num_frames", "height", "width")}
            example = {**rows[0], "pixels": load_clip(rows[0][self.video_column], self.standard)}
            step = PipelineStep(pipeline, **shape, call_kwargs=_call_kwargs(arguments), check=False, example=example)
            self.conditioned = step.reads_rows
        steps = arguments.steps if candidate.steps is None else candidate.steps
        guidance = arguments.guidance if candidate.guidance is None else candidate.guidance
        self.sampler = Sampler(step, steps=steps, guidance=guidance, fps=arguments.fps)

    def __call__(self, clip: Clip) -> None:
        """Write the clip, or why there is none."""
        try:
            example: dict[str, Any] = {}
            if self.conditioned:
                row = clip.prompt.row
                example = {**row, "pixels": load_clip(row.get(self.video_column), self.standard)}
            save_clip(clip.file, self.sampler.clip(clip.prompt.text, example, clip.seed), self.fps)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            logger.warning("%s has no clip of %r: %s", clip.candidate, clip.prompt.text, reason)
            write_text(clip.failed, reason)


def generate(
    candidates: Mapping[Candidate, Sequence[Clip]], arguments: EvaluateArguments, dtype: str, state: PartialState
) -> None:
    """Generate what is not there yet, each process its share of each candidate's clips.

    Raises:
        ValueError: A candidate cannot be loaded, or none of its clips could be generated.
    """
    every = [clip for clips in candidates.values() for clip in clips]
    state.wait_for_everyone()  # nobody adds to what is there before all have looked
    missing = {candidate: [clip for clip in clips if not clip.is_settled] for candidate, clips in candidates.items()}
    state.wait_for_everyone()
    with _bar(every, "Generating", state) as bar:
        for candidate, clips in missing.items():
            if not clips:
                continue
            with state.main_process_first():  # which downloads for all
                pipeline = candidate.load(dtype, state.device)
            write = Generator(pipeline, candidate, clips, arguments)
            for clip in clips[state.process_index :: state.num_processes]:
                write(clip)
                bar.update(sum(clip.is_settled for clip in every) - bar.n)
            del pipeline, write
            _free()
            state.wait_for_everyone()
            _check_any(candidate.name, candidates[candidate])
    for candidate, found in candidates.items():
        _check_any(candidate.name, found)


def _check_any(name: str, clips: Sequence[Clip]) -> None:
    if not any(clip.file.exists() for clip in clips):
        reason = clips[0].failed.read_text(encoding="utf-8").strip()
        raise ValueError(
            f"candidate {name} could generate none of its {len(clips)} clips: {reason}. Once that is mended, "
            "--retry_failed true tries again"
        )


def _call_kwargs(arguments: EvaluateArguments) -> dict[str, Any]:
    return dict(arguments.call_kwargs) if isinstance(arguments.call_kwargs, dict) else {}


def _bar(clips: Sequence[Clip], what: str, state: PartialState) -> Any:
    from tqdm.auto import tqdm

    done = sum(clip.is_settled for clip in clips)
    quiet = not state.is_main_process or done == len(clips)
    return tqdm(total=len(clips), initial=done, desc=what, unit="clip", smoothing=0.05, disable=quiet)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget_failures(clips: Sequence[Clip]) -> None:
    """Let what failed be tried again."""
    for clip in clips:
        clip.failed.unlink(missing_ok=True)
