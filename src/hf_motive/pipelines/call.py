"""One call of a pipeline, for one timestep, watched at its doors (`doors.py`) and stopped at one of them.

Everything that is changed on the pipeline for the duration of a call is undone when the call ends, however it ends:
afterwards the pipeline generates bit for bit what it generated before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.utils import logging
from torch import Tensor, nn

from hf_motive.pipelines.doors import Doors, Reached
from hf_motive.pipelines.error import PipelineError
from hf_motive.pipelines.observation import Observation
from hf_motive.pipelines.recall import Recall

#: Seed of every random number that a pipeline draws for itself during a step (augmentation of a conditioning image,
#: for instance). The noise of the step is not among them: it is given.
CALL_SEED = 0


def observe(
    pipeline: Any,
    arguments: Mapping[str, Any],
    *,
    denoisers: Mapping[str, nn.Module],
    slice_schedule: Callable[[Any], None],
    inject: Callable[[Tensor, Observation], Tensor] | None = None,
    replay: Mapping[str, Any] | None = None,
    grad: bool = False,
    seed: int = CALL_SEED,
    side: Mapping[str, float] | None = None,
    steps: int | None = None,
    hand_on: str = "sample",
    decoded: Tensor | None = None,
    generator_device: str | torch.device = "cpu",
    recall: Recall | None = None,
    to_denoiser: bool = False,
    device: torch.device | None = None,
) -> Observation:
    """Call `pipeline(**arguments)` and stop it after a number of calls of `scheduler.step`, or at `vae.decode`.

    Args:
        pipeline: Any diffusers pipeline, modular or not.
        arguments: Keyword arguments of its `__call__`.
        denoisers: Component name -> module.
        slice_schedule: Called with the scheduler after each `set_timesteps`, to leave one timestep in it.
        inject: Maps the latents that the pipeline starts from, and what was seen so far, to the latents with which
            the call goes on.
        replay: Denoiser name -> recorded output, returned in place of running it.
        grad: Switch gradients on at the denoiser's door, so that the model output carries its graph.
        seed: Of the random numbers that the pipeline and its denoiser draw.
        side: Method -> factor of the latents that it makes: the streams beside the clip, such as audio.
        steps: Stop once `scheduler.step` has been called so often. None: go on to `vae.decode`.
        hand_on: What `scheduler.step` gives back, unchanged and in full precision from there: its "sample", or its
            "model_output".
        generator_device: Of the generator that the call is given.
        decoded: Returned by `vae.decode`, and the call goes on to where the pipeline turns the video into pixels.
        recall: Of the frozen parts, what they answer or have answered before.
        to_denoiser: Stop before the first denoiser runs.
        device: Where the pipeline runs, if that is known. It is asked otherwise, and the pipeline asks itself, which
            takes as long as some small things that it does.

    Raises:
        PipelineError: The pipeline returned without passing the doors, or denoises in more than one round.
    """
    seen = Observation()
    with ExitStack() as stack:
        doors = Doors(pipeline, seen, stack)
        stack.enter_context(_restored(pipeline))
        if device is None:
            device = torch.device(pipeline._execution_device)
        elif not isinstance(pipeline, ModularPipeline):
            kind: Any = type(pipeline)
            stack.callback(setattr, pipeline, "__class__", kind)
            vars(pipeline)["_runs_on"] = device
            pipeline.__class__ = _settled(kind)
        stack.enter_context(seeded(device, seed))
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        if isinstance(pipeline, ModularPipeline):
            stack.enter_context(_quiet())  # its blocks log every error with its trace, the expected ones too
        vars(pipeline)["_progress_bar_config"] = {"disable": True}

        if recall is not None:
            doors.frozen(recall, denoisers, device)
        doors.scheduler(slice_schedule, steps, hand_on)
        doors.latents(inject, side or {})
        doors.side_streams(side or {})
        doors.denoisers(denoisers, replay or {}, grad, to_denoiser)
        doors.vae(steps is None, decoded)

        if "generator" in call_parameters(pipeline):
            arguments = {"generator": torch.Generator(generator_device).manual_seed(seed), **arguments}
        try:
            pipeline(**arguments)
        except Reached:
            pass
        except PipelineError:
            raise
        except Exception as error:
            error.add_note(f"while hf_motive called {type(pipeline).__name__}({', '.join(arguments)}) for one step")
            raise
    last = ["denoiser"] if to_denoiser else ["scheduler.step"] if steps else ["scheduler.step", "vae.decode"]
    needed = ("prepare_latents", "scheduler.set_timesteps", *last)
    missed = [door for door in needed if door not in seen.reached]
    if missed:
        raise PipelineError(
            pipeline,
            f"its call was over without {' or '.join(missed)}, where a step gives and takes what it needs.",
        )
    return seen


def call_parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a pipeline's call; of a modular pipeline, what its blocks read.

    Whether a modular pipeline requires one cannot be told: what one block makes for the next is declared like it.
    """
    if isinstance(pipeline, ModularPipeline):
        blocks: Any = vars(pipeline)["_blocks"]  # its `blocks` is a copy at each access
        names = [part.name for part in blocks.inputs if part.name]
        return {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names}
    return _signature(type(pipeline).__call__)


@functools.lru_cache
def _signature(call: Callable) -> Mapping[str, inspect.Parameter]:
    return {name: part for name, part in inspect.signature(call).parameters.items() if name != "self"}


@functools.lru_cache
def _settled(kind: Any) -> type:
    """A class of pipelines that know where they run: each call asks, and looks through all modules for the answer."""
    known = {"_execution_device": property(lambda self: vars(self)["_runs_on"]), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), known)


@contextmanager
def _restored(thing: Any) -> Iterator[None]:
    """Give an object back the attributes that it had, and no others."""
    before = dict(vars(thing))
    try:
        yield
    finally:
        vars(thing).clear()
        vars(thing).update(before)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Global random number generators (of CPU and CUDA) start at `seed`, and go on afterwards as if nothing was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
