"""The doors at which a call is watched: where the latents are made, the denoiser, `scheduler.step`, and the VAE.

Each is replaced on the instance for the duration of one call; an `ExitStack` puts everything back.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import BaseGuidance, ModularPipeline, SchedulerMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_motive.pipelines.error import PipelineError
from hf_motive.pipelines.observation import Observation, Step
from hf_motive.pipelines.questions import frozen_doors, place_of
from hf_motive.pipelines.recall import Recall
from hf_motive.sharding import is_shared_out

#: Methods that may make the latents of a second stream, such as audio.
SIDE_METHODS = re.compile(r"prepare_\w+_latents")


class Reached(BaseException):
    """Unwinds the pipeline once it has shown what was asked for. Not an `Exception`: no pipeline may swallow it."""


class Doors:
    """What one call shows, `seen`, is written here; each method sets up one door.

    Args:
        pipeline: Its attributes are given back by the caller.
        seen: Where to write.
        stack: Undoes everything else.
    """

    def __init__(self, pipeline: Any, seen: Observation, stack: ExitStack):
        self.pipeline, self.seen, self.stack = pipeline, seen, stack
        self._precision = _FullPrecision()

    # ------------------------------------------------------------------------------------------------------ scheduler

    def scheduler(self, slice_schedule: Callable[[Any], None], steps: int | None, hand_on: str) -> None:
        """A scheduler with one timestep in its schedules, whose steps are seen; the last of `steps` ends the call.

        The pipeline's own is never touched. Its class is replaced and not its methods, because pipelines copy their
        scheduler: for each frame, or for the audio.
        """
        scheduler, guiders = unwatched_copy(self.pipeline.scheduler), self._copied_guiders()
        vars(scheduler)["_watch"] = _Watch(
            functools.partial(self._on_schedule, slice_schedule, guiders),
            functools.partial(self._on_step, steps, hand_on),
        )
        kind: Any = type(scheduler)
        scheduler.__class__ = _watched_scheduler(kind)
        # A component of its own for a second stream follows the clip's schedule: training noises both alike.
        own = vars(self.pipeline)
        second = [name for name, part in own.items() if isinstance(part, SchedulerMixin) and name != "scheduler"]
        own.update({name: copy.deepcopy(scheduler) for name in second}, scheduler=scheduler)

    def _on_schedule(self, slice_schedule: Callable[[Any], None], guiders: list[Any], scheduler: Any) -> None:
        slice_schedule(scheduler)
        self.seen.reached.add("scheduler.set_timesteps")
        # Not earlier: some text encoding cannot do without the negative prompt that an enabled guider asks for.
        for guider in guiders:
            guider.disable()

    def _on_step(self, steps: int | None, hand_on: str, own_step: Callable, scheduler: Any, *args: Any, **kwargs: Any):
        this = Step(inspect.signature(own_step).bind(*args, **kwargs), unwatched_copy(scheduler))
        if this.model_output.shape != this.sample.shape:
            raise PipelineError(
                self.pipeline,
                f"scheduler.step is given a model output {tuple(this.model_output.shape)} for a sample "
                f"{tuple(this.sample.shape)}: a step of that kind is not understood.",
            )
        self.seen.reached.add("scheduler.step")
        if not any(this.sample.data_ptr() == before.sample.data_ptr() for before in self.seen.steps):
            self.seen.steps.append(this)  # and not where the very sample of an earlier call is stepped on
        if len(self.seen.steps) == steps:
            raise Reached
        output = own_step(*args, **kwargs)  # for the type of its result, and what else is in it
        handed_on = this.arguments[hand_on]
        if steps is None:
            self.stack.enter_context(self._precision)
            handed_on = handed_on.float()
        if isinstance(output, tuple):
            return (handed_on, *output[1:])
        output.prev_sample = handed_on
        return output

    def _copied_guiders(self) -> list[Any]:
        """Copies, because guiders remember the step of the call before."""
        guiders = {name: part for name, part in vars(self.pipeline).items() if isinstance(part, BaseGuidance)}
        copies = {name: copy.deepcopy(guider) for name, guider in guiders.items()}
        vars(self.pipeline).update(copies)
        return list(copies.values())

    # -------------------------------------------------------------------------------------------------------- latents

    def latents(self, inject: Callable[[Tensor, Observation], Tensor] | None, factors: Mapping[str, float]) -> None:
        """The latents that the call starts from: what `prepare_latents` returns, or a modular pipeline's block.

        What else it returns may be the latents of a second stream.
        """
        if isinstance(self.pipeline, ModularPipeline):
            self._latents_of_blocks(inject, factors)
            return
        original = getattr(self.pipeline, "prepare_latents", None)
        if original is None:
            raise PipelineError(
                self.pipeline, "it has no prepare_latents method, the place where a step puts the noised clip."
            )

        @functools.wraps(original)
        def prepare_latents(*args, **kwargs):
            result = original(*args, **kwargs)
            if not isinstance(result, tuple):
                return self._made(result, inject)
            others = [
                self._side_stream(part, f"prepare_latents[{place}]", factors) if isinstance(part, Tensor) else part
                for place, part in enumerate(result[1:], start=1)
            ]
            return (self._made(result[0], inject), *others)

        vars(self.pipeline)["prepare_latents"] = prepare_latents

    def _latents_of_blocks(
        self, inject: Callable[[Tensor, Observation], Tensor] | None, factors: Mapping[str, float]
    ) -> None:
        """The first block that leaves `latents` behind makes them; what else it and others make may be second streams.

        Blocks are called as they are, so that their class is replaced. What they declare to make is not asked: not all
        do.
        """
        watch = _Watch(lambda before, state: self._left_behind(before, _values(state), inject, factors))
        for block in _blocks(self.pipeline._blocks):
            if hasattr(block, "progress_bar"):
                self._replace(block, "_progress_bar_config", {"disable": True})
            if not getattr(block, "sub_blocks", None):
                self._replace(block, "_watch", watch)
                kind: Any = type(block)
                self.stack.callback(setattr, block, "__class__", kind)
                block.__class__ = _watched_block(kind)

    def _left_behind(
        self,
        before: Mapping[str, Any],
        values: dict[str, Any],
        inject: Callable[[Tensor, Observation], Tensor] | None,
        factors: Mapping[str, float],
    ) -> None:
        if self.seen.outputs:
            return  # behind the denoiser, latents are what the scheduler made of them
        for name, value in list(values.items()):
            if not isinstance(value, Tensor) or value is before.get(name):
                continue
            if name == "latents" and "prepare_latents" not in self.seen.reached:
                values[name] = self._made(value, inject)
            elif SIDE_METHODS.fullmatch(f"prepare_{name}") and f"prepare_{name}" not in self.seen.side:
                values[name] = self._side_stream(value, f"prepare_{name}", factors)

    def _made(self, latents: Tensor, inject: Callable[[Tensor, Observation], Tensor] | None) -> Tensor:
        self.seen.initial = latents
        self.seen.reached.add("prepare_latents")
        return latents if inject is None else inject(latents, self.seen)

    def side_streams(self, factors: Mapping[str, float]) -> None:
        """Methods that may make latents of a second stream: seen, and made quieter by a factor."""
        for name in filter(SIDE_METHODS.fullmatch, dir(type(self.pipeline))):
            original = getattr(self.pipeline, name)
            made = functools.partial(self._side_method, original, name, factors)
            vars(self.pipeline)[name] = functools.wraps(original)(made)

    def _side_method(self, original: Callable, name: str, factors: Mapping[str, float], *args, **kwargs) -> Any:
        result = original(*args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result
        if not isinstance(latents, Tensor):
            return result
        latents = self._side_stream(latents, name, factors)
        return (latents, *result[1:]) if isinstance(result, tuple) else latents

    def _side_stream(self, latents: Tensor, name: str, factors: Mapping[str, float]) -> Tensor:
        self.seen.side[name] = latents
        return factors[name] * latents if name in factors else latents

    # ------------------------------------------------------------------------------------------------------ denoisers

    def denoisers(
        self, denoisers: Mapping[str, nn.Module], replay: Mapping[str, Any], grad: bool, stop: bool = False
    ) -> None:
        """What goes into the denoisers and comes out, with gradients or from a recording; or the first ends it all."""
        for name, module in denoisers.items():
            for part in module.modules():
                # Some calls exchange the attention processors until their last line.
                if "processor" in vars(part) or "processor" in part._modules:
                    self.stack.callback(setattr, part, "processor", part.processor)
            # A module compiled in place does not pass through `forward` as Python: its compiled call is wrapped.
            door = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
            original = getattr(module, door)
            recorded = {"output": replay[name]} if name in replay else {}
            watched = functools.partial(self._denoise, original, name, recorded, grad, stop)
            self._replace(module, door, functools.wraps(original)(watched))
            if stop and is_shared_out(module):  # before its weights come together, for which all processes are needed
                ask = lambda _, args, kwargs, watched=watched: watched(*args, **kwargs)  # noqa: E731
                handle = module.register_forward_pre_hook(ask, prepend=True, with_kwargs=True)
                self.stack.callback(handle.remove)

    def _denoise(
        self, original: Callable, name: str, recorded: dict, grad: bool, stop: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Of a schedule that was cut to one timestep there is one round: the denoiser runs, then the scheduler steps.

        The pipeline itself runs without gradients. They are switched on here and stay on to `scheduler.step`; the
        pipeline's own no_grad restores the mode when it is left.
        """
        if self.seen.steps:
            raise PipelineError(
                self.pipeline,
                "it denoises in more than one round although its schedule was cut to one timestep: its loop does not "
                "follow scheduler.timesteps, it denoises at several resolutions, or it makes the clip window by "
                "window. If the latter, choose a num_frames that fits one window.",
            )
        if stop:
            self.seen.reached.add("denoiser")
            self.seen.asked = (name, args, kwargs)
            raise Reached
        self.seen.inputs += [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
        if grad:
            torch.set_grad_enabled(True)
            # Clones, because some loops write what they stepped into the very latents that the denoiser was given.
            args = tuple(_cloned(part) for part in args)
            kwargs = {key: _cloned(part) for key, part in kwargs.items()}
        output = recorded["output"] if recorded else original(*args, **kwargs)
        if grad:
            self.stack.enter_context(_KeepsGraph())
        self.seen.outputs[name] = output
        return output

    # ---------------------------------------------------------------------------------------------------- frozen parts

    def frozen(self, recall: Recall, denoisers: Mapping[str, nn.Module], device: torch.device) -> None:
        """What the frozen parts are asked, and what they answer or have answered before.

        Before the other doors, which watch what is recalled as they watch what is asked.
        """
        if recall.record:
            self.stack.enter_context(recall.reads)
        for door in frozen_doors(self.pipeline, denoisers) if recall.record else recall.doors:
            thing, method = place_of(self.pipeline, door)
            original = getattr(thing, method, None)
            if original is not None and recall.is_open(door):  # nor left out of the pipeline since it answered
                asked = functools.partial(recall.ask, self.pipeline, device, door, original)
                self._replace(thing, method, functools.wraps(original)(asked))

    # ------------------------------------------------------------------------------------------------------------ VAE

    def vae(self, stop_at_decode: bool, decoded: Tensor | None) -> None:
        """What the VAE encodes is seen; what it, or a decoder of its own, would decode ends the call.

        With `decoded`, that is the result of decoding, and what the pipeline makes of it ends the call.
        """
        seen, vae = self.seen, getattr(self.pipeline, "vae", None)
        if vae is not None:
            own_encode = vae.encode

            @functools.wraps(own_encode)
            def encode(*args, **kwargs):
                result = own_encode(*args, **kwargs)
                seen.encoded.append(encoded_mode(result[0] if type(result) is tuple else result))
                return result

            self._replace(vae, "encode", encode)
            # Some calls decode in another precision.
            tensors = [t for part in vae.modules() for t in (*part._parameters.values(), *part._buffers.values())]
            self.stack.callback(_cast_back, [(tensor, tensor.dtype) for tensor in tensors if tensor is not None])

        def decode(latents, *args, **kwargs):
            seen.decoded = latents
            seen.reached.add("vae.decode")
            if decoded is None:
                raise Reached
            return (decoded,) if kwargs.get("return_dict") is False else DecoderOutput(sample=decoded)

        def postprocess_video(video, *args, **kwargs):
            seen.shown = video
            raise Reached

        if decoded is not None:
            self._replace(self.pipeline.video_processor, "postprocess_video", postprocess_video)
        for part in self.pipeline.components.values() if stop_at_decode else ():
            if not isinstance(part, nn.Module) or not hasattr(part, "decode"):
                continue
            if part is vae or not hasattr(part, "encode"):
                self._replace(part, "decode", decode)
            else:  # of a second stream
                original: Any = part.decode
                self._replace(part, "decode", functools.partial(self._decode_aside, part, original))

    def _decode_aside(self, part: nn.Module, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Decode a second stream, such as audio, in the precision of its decoder."""
        dtype = next(part.parameters()).dtype
        with self._precision.paused():
            args = tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
            return original(*args, **kwargs)

    def _replace(self, thing: Any, name: str, value: Any) -> None:
        """Replace a method on one instance (hooks of accelerate live in the same place and come back)."""
        attributes = vars(thing)
        if name in attributes:
            self.stack.callback(attributes.__setitem__, name, attributes[name])
        else:
            self.stack.callback(attributes.pop, name, None)
        attributes[name] = value


class _Watch:
    """What the object that holds it calls back; its copies share it.

    The classes below are made once for each kind: one made for a call would be a cycle, and keep the call's graph on
    the device until the garbage collector comes by.
    """

    def __init__(self, *calls: Callable):
        self.calls = calls

    def __deepcopy__(self, memo: dict) -> _Watch:
        return self


@functools.lru_cache
def _watched_scheduler(kind: Any) -> type:
    @functools.wraps(kind.set_timesteps)  # pipelines read its signature
    def set_timesteps(self, *args, **kwargs):
        kind.set_timesteps(self, *args, **kwargs)
        self._watch.calls[0](self)

    @functools.wraps(kind.step)
    def step(self, *args, **kwargs):
        return self._watch.calls[1](functools.partial(kind.step, self), self, *args, **kwargs)

    patched = {"set_timesteps": set_timesteps, "step": step, "_unwatched": kind, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), patched)


@functools.lru_cache
def _watched_block(kind: Any) -> type:
    def call(self, components, state, *args, **kwargs):
        before = dict(_values(state))
        result = kind.__call__(self, components, state, *args, **kwargs)
        self._watch.calls[0](before, result[1])
        return result

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _cloned(part: Any) -> Any:
    if isinstance(part, (list, tuple)) and type(part) in (list, tuple):
        return type(part)(map(_cloned, part))
    return part.clone() if isinstance(part, Tensor) else part


def _cast_back(tensors: list[tuple[Tensor, torch.dtype]]) -> None:
    for tensor, dtype in tensors:
        if tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def unwatched_copy(scheduler: Any) -> Any:
    """A deep copy of a scheduler, as it was before it was watched."""
    clone = object.__new__(getattr(type(scheduler), "_unwatched", type(scheduler)))
    vars(clone).update({name: _own(value) for name, value in vars(scheduler).items() if name != "_watch"})
    return clone


def _own(value: Any) -> Any:
    """A deep copy, but of what nobody changes: a configuration, which takes longer than all the rest."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is list:
        return [_own(part) for part in value]
    return value if isinstance(value, FrozenDict) else copy.deepcopy(value)


def encoded_mode(encoded: Any) -> Tensor:
    """What `vae.encode` returned, as a tensor: the mode of a posterior, or the latents as they are."""
    if isinstance(encoded, Tensor):
        return encoded
    if hasattr(encoded, "mode"):
        return encoded.mode()
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents


def _values(state: Any) -> dict[str, Any]:
    """What the blocks of a modular pipeline share: one state for all of them, and another one inside a loop."""
    return state.values if isinstance(state, PipelineState) else vars(state)


def _blocks(block: Any) -> Iterator[Any]:
    yield block
    for part in (getattr(block, "sub_blocks", None) or {}).values():
        yield from _blocks(part)


class _FullPrecision(TorchFunctionMode):
    """Conversions to half precision become conversions to float32.

    Between `scheduler.step` and `vae.decode` a pipeline only rearranges and rescales latents; in half precision it
    rounds them there to eight bits, through which no scale can be read to better than 0.4 %.
    """

    on = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not self.on:
            return func(*args, **(kwargs or {}))
        kwargs = {name: _at_least_single(value) for name, value in (kwargs or {}).items()}
        return func(*map(_at_least_single, args), **kwargs)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


def _at_least_single(argument: Any) -> Any:
    half = isinstance(argument, torch.dtype) and argument in (torch.bfloat16, torch.float16)
    return torch.float32 if half else argument


class _KeepsGraph(TorchFunctionMode):
    """Gradients stay on where a pipeline's own helpers and blocks switch them off again, behind the denoiser."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))
