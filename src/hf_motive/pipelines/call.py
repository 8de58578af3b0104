"""One call of a pipeline, watched at its doors: `prepare_latents`, the denoiser, `scheduler.step`, `vae.decode`.

Everything that is changed on the pipeline for the duration of a call is undone when the call ends, however it ends:
afterwards the pipeline generates bit for bit what it generated before.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Seed of every random number that a pipeline draws for itself during a step (augmentation of a conditioning image,
#: for instance). The noise of the step is not among them: it is given.
CALL_SEED = 0


class PipelineError(RuntimeError):
    """A pipeline cannot be attributed, or was used in a way that would give a wrong gradient.

    Args:
        pipeline: The pipeline, which the message names by its class.
        reason: What was found, what was expected, and what to do.
    """

    def __init__(self, pipeline: Any, reason: str):
        name = pipeline if isinstance(pipeline, str) else type(pipeline).__name__
        super().__init__(f"{name}: {reason}")
        self.pipeline = name
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.pipeline, self.reason)


@dataclass
class Observation:
    """What one watched call showed, in the pipeline's own layouts. A door that was not reached has shown nothing."""

    initial: Tensor = field(init=False)  # what prepare_latents returned
    step: inspect.BoundArguments = field(init=False)  # the arguments of scheduler.step
    scheduler: Any = field(init=False)  # a copy of the scheduler, as it was when the pipeline called step
    decoded: Tensor = field(init=False)  # the argument of vae.decode
    outputs: dict[str, Any] = field(default_factory=dict)  # denoiser name -> what it returned
    reached: set[str] = field(default_factory=set)  # the doors, by name

    @property
    def sample(self) -> Tensor:
        return self.step.arguments["sample"]

    @property
    def model_output(self) -> Tensor:
        return self.step.arguments["model_output"]


class _Reached(BaseException):
    """Unwinds the pipeline once it has shown what was asked for. Not an `Exception`: no pipeline may swallow it."""


class _FullPrecision(TorchFunctionMode):
    """While `on`, conversions to half precision become conversions to float32.

    Between `scheduler.step` and `vae.decode` a pipeline only rearranges and rescales latents; in half precision it
    rounds them there to eight bits, through which no scale can be read to better than 0.4 %.
    """

    on = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.on:
            args = tuple(map(_at_least_single, args))
            kwargs = {name: _at_least_single(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _at_least_single(argument: Any) -> Any:
    half = isinstance(argument, torch.dtype) and argument in (torch.bfloat16, torch.float16)
    return torch.float32 if half else argument


def observe(
    pipeline: Any,
    arguments: Mapping[str, Any],
    *,
    denoisers: Mapping[str, nn.Module],
    slice_schedule: Callable[[Any], None],
    inject: Callable[[Tensor], Tensor] | None = None,
    replay: Mapping[str, Any] | None = None,
    grad: bool = False,
    until: str = "step",
) -> Observation:
    """Call `pipeline(**arguments)` and stop it at `scheduler.step` or at `vae.decode`.

    Args:
        pipeline: Any diffusers pipeline with `scheduler`, `prepare_latents` and (for `until="decode"`) `vae`.
        arguments: Keyword arguments of its `__call__`.
        denoisers: Component name -> module.
        slice_schedule: Called with the scheduler after each `set_timesteps`, to leave one timestep in it.
        inject: Maps the latents that `prepare_latents` returned to the latents the call goes on with.
        replay: Denoiser name -> recorded output, returned in place of running it.
        grad: Switch gradients on at the denoiser's door, so that `model_output` carries its graph.
        until: `"step"`, or `"decode"`, where `scheduler.step` hands its sample on unchanged.

    Raises:
        PipelineError: The pipeline returned without passing the doors.
    """
    seen = Observation()
    with ExitStack() as stack:
        stack.enter_context(_restored(pipeline))
        stack.enter_context(_seeded(pipeline._execution_device))
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())

        scheduler = copy.deepcopy(pipeline.scheduler)  # the pipeline's own is never touched
        precision = stack.enter_context(_FullPrecision()) if until == "decode" else None
        _watch_scheduler(pipeline, scheduler, seen, slice_schedule, precision)
        vars(pipeline)["scheduler"] = scheduler
        vars(pipeline)["prepare_latents"] = _watched_prepare_latents(pipeline, seen, inject)
        vars(pipeline)["_progress_bar_config"] = {"disable": True}

        for name, module in denoisers.items():
            if replay is not None and name in replay:
                stack.enter_context(_replaced(module, "forward", functools.partial(_replayed, replay[name])))
            if grad:
                stack.callback(module.register_forward_pre_hook(_enable_grad).remove)
            stack.callback(module.register_forward_hook(functools.partial(_record, seen.outputs, name)).remove)

        if until == "decode":

            def decode(latents, *args, **kwargs):
                seen.decoded = latents
                seen.reached.add("vae.decode")
                raise _Reached

            stack.enter_context(_replaced(pipeline.vae, "decode", decode))

        if "generator" in inspect.signature(type(pipeline).__call__).parameters:
            # On the CPU, so that a device does not change what the pipeline draws.
            arguments = {"generator": torch.Generator("cpu").manual_seed(CALL_SEED), **arguments}
        try:
            pipeline(**arguments)
        except _Reached:
            pass
        except PipelineError:
            raise
        except Exception as error:
            error.add_note(f"while hf_motive called {type(pipeline).__name__}({', '.join(arguments)}) for one step")
            raise
    doors = ("prepare_latents", "scheduler.set_timesteps", "scheduler.step", *(["vae.decode"] if precision else []))
    missed = [door for door in doors if door not in seen.reached]
    if missed:
        raise PipelineError(
            pipeline,
            f"its call returned without calling {' or '.join(missed)}, where a step gives and takes what it needs.",
        )
    return seen


def _watched_prepare_latents(pipeline: Any, seen: Observation, inject: Callable[[Tensor], Tensor] | None) -> Callable:
    """The pipeline's `prepare_latents`, with its latents (the result, or a tuple's first element) replaced."""
    original = getattr(pipeline, "prepare_latents", None)
    if original is None:
        raise PipelineError(pipeline, "it has no prepare_latents method, the place where a step puts the noised clip.")

    @functools.wraps(original)
    def prepare_latents(*args, **kwargs):
        result = original(*args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result
        seen.initial = latents
        seen.reached.add("prepare_latents")
        if inject is not None:
            latents = inject(latents)
        return (latents, *result[1:]) if isinstance(result, tuple) else latents

    return prepare_latents


def _watch_scheduler(
    pipeline: Any, scheduler: Any, seen: Observation, slice_schedule: Callable, precision: _FullPrecision | None
) -> None:
    """Patch a scheduler *copy*: one timestep in the schedule, and the arguments of `step` bound by its signature.

    Without `precision` the call ends at `step`; with it, the call goes on with the sample as it is, in full precision.
    """
    original_set_timesteps, original_step = scheduler.set_timesteps, scheduler.step
    signature = inspect.signature(original_step)

    @functools.wraps(original_set_timesteps)  # pipelines read its signature
    def set_timesteps(*args, **kwargs):
        original_set_timesteps(*args, **kwargs)
        slice_schedule(scheduler)
        seen.reached.add("scheduler.set_timesteps")

    @functools.wraps(original_step)
    def step(*args, **kwargs):
        if "scheduler.step" in seen.reached:
            raise PipelineError(
                pipeline,
                "it takes more than one step of a schedule that was cut to one timestep: its loop does not follow "
                "scheduler.timesteps.",
            )
        seen.reached.add("scheduler.step")
        seen.step = signature.bind(*args, **kwargs)
        seen.scheduler = unwatched_copy(scheduler)
        if precision is None:
            raise _Reached
        sample = seen.sample
        output = original_step(*args, **kwargs)  # for the type of its result alone
        precision.on = True
        if isinstance(output, tuple):
            return (sample, *output[1:])
        output.prev_sample = sample
        return output

    vars(scheduler).update(set_timesteps=set_timesteps, step=step)


def unwatched_copy(scheduler: Any) -> Any:
    """A deep copy of a scheduler, without what `observe` put on it."""
    clone = copy.copy(scheduler)
    for name in ("set_timesteps", "step"):
        vars(clone).pop(name, None)
    return copy.deepcopy(clone)


def _enable_grad(module: nn.Module, inputs: Any) -> None:
    """Gradients on from here to `scheduler.step`; the pipeline's own no_grad restores the mode when it is left."""
    torch.set_grad_enabled(True)


def _record(outputs: dict[str, Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    outputs[name] = output


def _replayed(output: Any, *args: Any, **kwargs: Any) -> Any:
    return output


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
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Replace a method on one instance (hooks of accelerate live in the same place and come back)."""
    attributes = vars(module)
    had, before = name in attributes, attributes.get(name)
    attributes[name] = value
    try:
        yield
    finally:
        if had:
            attributes[name] = before
        else:
            del attributes[name]


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Global random number generators start at `CALL_SEED`, and continue afterwards as if nothing had been drawn."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(CALL_SEED)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(CALL_SEED)
        yield
