"""One call of a pipeline, watched at its doors: `prepare_latents`, the denoiser, `scheduler.step`, `vae.decode`.

Everything that is changed on the pipeline for the duration of a call is undone when the call ends, however it ends:
afterwards the pipeline generates bit for bit what it generated before.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers.guiders import BaseGuidance
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Seed of every random number that a pipeline draws for itself during a step (augmentation of a conditioning image,
#: for instance). The noise of the step is not among them: it is given.
CALL_SEED = 0

SIDE_METHODS = re.compile(r"prepare_\w+_latents")


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


class Step(NamedTuple):
    """One call of `scheduler.step`: its arguments, bound by its signature, and a copy of the scheduler as it was."""

    call: inspect.BoundArguments
    scheduler: Any

    @property
    def sample(self) -> Tensor:
        return self.call.arguments["sample"]

    @property
    def model_output(self) -> Tensor:
        return self.call.arguments["model_output"]


@dataclass
class Observation:
    """What one watched call showed, in the pipeline's own layouts. A door that was not reached has shown nothing."""

    initial: Tensor = field(init=False)  # what prepare_latents returned
    steps: list[Step] = field(default_factory=list)  # of the one timestep: several where the latents come in parts
    decoded: Tensor = field(init=False)  # the argument of vae.decode
    inputs: list[Tensor] = field(default_factory=list)  # the tensors that denoisers were given
    encoded: list[Tensor] = field(default_factory=list)  # modes of what vae.encode returned
    side: dict[str, Tensor] = field(default_factory=dict)  # method -> latents of a second stream, perhaps
    outputs: dict[str, Any] = field(default_factory=dict)  # denoiser name -> what it returned
    reached: set[str] = field(default_factory=set)  # the doors, by name


def joined(parts: list[Tensor]) -> Tensor:
    """The only part as it is; several (frames one by one, or video and audio) flattened, one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])


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
    inject: Callable[[Tensor, Observation], Tensor] | None = None,
    replay: Mapping[str, Any] | None = None,
    grad: bool = False,
    seed: int = CALL_SEED,
    side: Mapping[str, float] | None = None,
    steps: int | None = None,
    hand_on: str = "sample",
) -> Observation:
    """Call `pipeline(**arguments)` and stop it after a number of calls of `scheduler.step`, or at `vae.decode`.

    Args:
        pipeline: Any diffusers pipeline with `scheduler`, `prepare_latents` and (without `steps`) `vae`.
        arguments: Keyword arguments of its `__call__`.
        denoisers: Component name -> module.
        slice_schedule: Called with the scheduler after each `set_timesteps`, to leave one timestep in it.
        inject: Maps the latents that `prepare_latents` returned, and what was seen so far, to the latents with which
            the call goes on.
        replay: Denoiser name -> recorded output, returned in place of running it.
        grad: Switch gradients on at the denoiser's door, so that `model_output` carries its graph.
        seed: Of the random numbers that the pipeline draws.
        side: Method -> factor of the latents that it returns: the streams beside the clip, such as audio.
        steps: Stop once `scheduler.step` has been called so often. None: go on to `vae.decode`.
        hand_on: What `scheduler.step` gives back, unchanged and in full precision from there: its "sample", or its
            "model_output".

    Raises:
        PipelineError: The pipeline returned without passing the doors, or denoises in more than one round.
    """
    seen = Observation()
    with ExitStack() as stack:
        stack.enter_context(_restored(pipeline))
        stack.enter_context(_seeded(pipeline._execution_device, seed))
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())

        precision = stack.enter_context(_FullPrecision()) if steps is None else None
        scheduler = copy.deepcopy(pipeline.scheduler)  # the pipeline's own is never touched
        scheduler.__class__ = _watched(type(scheduler), pipeline, seen, slice_schedule, steps, precision, hand_on)
        vars(pipeline)["scheduler"] = scheduler
        vars(pipeline)["prepare_latents"] = _watched_prepare_latents(pipeline, seen, inject)
        for name in side_methods(pipeline):
            vars(pipeline)[name] = _watched_side(getattr(pipeline, name), name, seen, (side or {}).get(name, 1.0))
        vars(pipeline)["_progress_bar_config"] = {"disable": True}
        for name, guider in [(name, part) for name, part in vars(pipeline).items() if isinstance(part, BaseGuidance)]:
            vars(pipeline)[name] = unguided = copy.deepcopy(guider)
            unguided.disable()

        for part in [part for module in denoisers.values() for part in module.modules() if hasattr(part, "processor")]:
            stack.callback(
                setattr, part, "processor", part.processor
            )  # some calls exchange them until their last line

        for name, module in denoisers.items():
            if replay is not None and name in replay:
                stack.enter_context(_replaced(module, "forward", functools.partial(_replayed, replay[name])))
            if grad:
                stack.callback(module.register_forward_pre_hook(_enable_grad).remove)
            watch = functools.partial(_watch_denoiser, pipeline, seen)
            stack.callback(module.register_forward_pre_hook(watch, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(functools.partial(_record, seen.outputs, name)).remove)

        if isinstance(getattr(pipeline, "vae", None), nn.Module):
            stack.enter_context(_replaced(pipeline.vae, "encode", _watched_encode(pipeline.vae.encode, seen)))
        if steps is None:

            def decode(latents, *args, **kwargs):
                seen.decoded = latents
                seen.reached.add("vae.decode")
                raise _Reached

            stack.enter_context(_replaced(pipeline.vae, "decode", decode))

        if "generator" in inspect.signature(type(pipeline).__call__).parameters:
            # On the CPU, so that a device does not change what the pipeline draws.
            arguments = {"generator": torch.Generator("cpu").manual_seed(seed), **arguments}
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


def _watched_prepare_latents(pipeline: Any, seen: Observation, inject: Callable | None) -> Callable:
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
            latents = inject(latents, seen)
        return (latents, *result[1:]) if isinstance(result, tuple) else latents

    return prepare_latents


def side_methods(pipeline: Any) -> list[str]:
    """Methods that may make latents of a second stream, such as audio: `prepare_…_latents`."""
    return [name for name in dir(type(pipeline)) if SIDE_METHODS.fullmatch(name)]


def _watched_side(original: Callable, name: str, seen: Observation, factor: float) -> Callable:
    @functools.wraps(original)
    def prepare(*args, **kwargs):
        result = original(*args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result
        if not isinstance(latents, Tensor):
            return result
        seen.side[name] = latents
        if factor != 1.0:
            latents = factor * latents
        return (latents, *result[1:]) if isinstance(result, tuple) else latents

    return prepare


def _watched(
    kind: type,
    pipeline: Any,
    seen: Observation,
    slice_schedule: Callable,
    steps: int | None,
    precision: _FullPrecision | None,
    hand_on: str,
) -> type:
    """A scheduler class like `kind`, with one timestep in its schedules, and whose steps are seen.

    A class and not a patched object, because pipelines copy their scheduler: for each frame, or for the audio.
    """

    @functools.wraps(kind.set_timesteps)  # pipelines read its signature
    def set_timesteps(self, *args, **kwargs):
        kind.set_timesteps(self, *args, **kwargs)
        slice_schedule(self)
        seen.reached.add("scheduler.set_timesteps")

    @functools.wraps(kind.step)
    def step(self, *args, **kwargs):
        own_step = functools.partial(kind.step, self)
        this = Step(inspect.signature(own_step).bind(*args, **kwargs), unwatched_copy(self))
        if this.model_output.shape != this.sample.shape:
            raise PipelineError(
                pipeline,
                f"scheduler.step is given a model output {tuple(this.model_output.shape)} for a sample "
                f"{tuple(this.sample.shape)}: a step of that kind is not understood.",
            )
        seen.reached.add("scheduler.step")
        if not any(this.sample.data_ptr() == before.sample.data_ptr() for before in seen.steps):
            seen.steps.append(this)  # and not where the very sample of an earlier call is stepped on
        if len(seen.steps) == steps:
            raise _Reached
        output = own_step(*args, **kwargs)  # for the type of its result, and what else is in it
        if precision is not None:
            precision.on = True
        stepped = this.call.arguments[hand_on]
        if isinstance(output, tuple):
            return (stepped, *output[1:])
        output.prev_sample = stepped
        return output

    patched = {"set_timesteps": set_timesteps, "step": step, "_unwatched": kind, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), patched)


def unwatched_copy(scheduler: Any) -> Any:
    """A deep copy of a scheduler, of the class that it had before `observe` watched it."""
    clone = copy.copy(scheduler)
    clone.__class__ = getattr(type(scheduler), "_unwatched", type(scheduler))
    return copy.deepcopy(clone)


def _watch_denoiser(pipeline: Any, seen: Observation, module: nn.Module, inputs: tuple, named: dict) -> None:
    """Of a schedule that was cut to one timestep there is one round: the denoiser runs, then the scheduler steps."""
    seen.inputs += [part for part in (*inputs, *named.values()) if isinstance(part, Tensor)]
    if seen.steps:
        raise PipelineError(
            pipeline,
            "it denoises in more than one round although its schedule was cut to one timestep: its loop does not "
            "follow scheduler.timesteps, or it makes the clip window by window. If the latter, choose a num_frames "
            "that fits one window.",
        )


def _watched_encode(original: Callable, seen: Observation) -> Callable:
    @functools.wraps(original)
    def encode(*args, **kwargs):
        result = original(*args, **kwargs)
        seen.encoded.append(encoded_mode(result[0] if type(result) is tuple else result))
        return result

    return encode


def encoded_mode(encoded: Any) -> Tensor:
    """What `vae.encode` returned, as a tensor: the mode of a posterior, or the latents as they are."""
    if isinstance(encoded, Tensor):
        return encoded
    if hasattr(encoded, "mode"):
        return encoded.mode()
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents


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
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Global random number generators start at `seed`, and continue afterwards as if nothing had been drawn."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
