"""What has to be learnt of a pipeline before its first step: by calling it, with its denoiser stubbed out.

one call as it is            the schedule, how often the scheduler steps, what else is denoised beside the clip
probes for latents           where each latent goes: to scheduler.step, and to vae.decode (`latent_map.py`)
probes for the denoiser      which latents move with its output at all: the others are conditioning
checks                       two calls agree; random latents survive the map; the first noise is as loud as scheduled
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_motive.pipelines.call import CALL_SEED, observe, seeded
from hf_motive.pipelines.companions import Companions, find_reference, find_side_streams
from hf_motive.pipelines.conditioning import Conditioning
from hf_motive.pipelines.doors import encoded_mode, unwatched_copy
from hf_motive.pipelines.error import PipelineError
from hf_motive.pipelines.latent_map import AffineGather, LatentMap, NothingArrivesError
from hf_motive.pipelines.observation import Observation, joined
from hf_motive.pipelines.schedule import Schedule, denoising_affine


@dataclass
class Learnt:
    """How a pipeline treats the clip.

    Args:
        call: `observe` for this pipeline.
        schedule: Its long schedule.
        parts: Which of the calls of `scheduler.step` are given the clip: one, or one a frame.
        map: From the result of `prepare_latents` to `scheduler.step` (the parts joined) and to `vae.decode`.
        covered: bool, like the result of `prepare_latents`: what stands for the clip, and is denoised. The rest
            (padding, conditioned frames, reference tokens) keeps the pipeline's own values and is out of the loss.
        companions: What is denoised beside the clip.
        runs_on, rests_on: Devices: of its calls, and of its denoiser between them.
        contrast, brightness: (3,), what the pipeline does to each channel that its VAE decodes, to show pixels in
            [-1, 1].
    """

    pipeline: Any
    call: functools.partial[Observation]
    schedule: Schedule
    parts: list[int]
    map: LatentMap
    covered: Tensor
    companions: Companions
    runs_on: torch.device
    rests_on: torch.device
    contrast: Tensor
    brightness: Tensor

    @property
    def steps(self) -> int:
        """After so many calls of `scheduler.step` the clip has been predicted."""
        return self.parts[-1] + 1

    def observe(self, arguments: dict[str, Any], position: int, **options: Any) -> Observation:
        """One call at a position of the schedule."""
        unmoved = _device_of(self.call.keywords["denoisers"]) == self.rests_on
        return self.call(
            arguments,
            slice_schedule=lambda s: self.schedule.slice(s, position),
            device=self.runs_on if unmoved else None,
            **options,
        )

    def regions(self, arguments: dict[str, Any]) -> dict[str, range]:
        """Denoiser -> the positions at which it is asked: by bisection, since each has one stretch of the schedule."""
        last = len(self.schedule.timesteps) - 1
        seen = self.observe(arguments, 0, steps=self.steps)
        names = self.call.keywords["denoisers"]
        said = dict.fromkeys(names, _filled(next(iter(seen.outputs.values())), 0.0))

        def asked(position: int) -> frozenset[str]:
            return frozenset(self.observe(arguments, position, replay=said, steps=self.steps).outputs)

        found = {0: frozenset(seen.outputs), last: asked(last)}

        def bisect(low: int, high: int) -> None:
            if found[low] == found[high] or high - low < 2:
                return
            middle = (low + high) // 2
            found[middle] = asked(middle)
            bisect(low, middle)
            bisect(middle, high)

        bisect(0, last)
        places = {name: [place for place, asked in found.items() if name in asked] for name in names}
        return {name: range(min(p), max(p) + 1) for name, p in places.items() if p}

    def encode(self, pixels: Tensor) -> Tensor:
        """(F, 3, H, W) in [-1, 1] to (C, T, h, w) float32 in the VAE's own units: the mode of the posterior."""
        vae = self.pipeline.vae
        pixels = ((pixels.cpu() - self.brightness) / self.contrast).to(self.pipeline._execution_device, vae.dtype)
        # A video VAE takes (1, 3, F, H, W); a VAE of images one frame at a time, which keeps memory flat.
        batches = pixels.split(1) if self.map.frame_wise else [pixels.transpose(0, 1).unsqueeze(0)]
        latents = self.map.from_vae(torch.cat([encoded_mode(vae.encode(batch)) for batch in batches]).float())
        if tuple(latents.shape) != self.map.latent_shape:
            frames, _, height, width = pixels.shape
            raise PipelineError(
                self.pipeline,
                f"{frames} frames of {height}×{width} encode to latents {tuple(latents.shape)}, but the pipeline "
                f"generates {self.map.latent_shape}: it chooses frames or size by itself. Choose a num_frames, height "
                "and width that it takes as they are.",
            )
        return latents

    def sample(self, seen: Observation) -> Tensor:
        return joined([seen.steps[part].sample for part in self.parts])

    def model_output(self, seen: Observation) -> Tensor:
        return joined([seen.steps[part].model_output for part in self.parts])

    def affine(self, seen: Observation, signal: float, sigma: float) -> tuple[Tensor, Tensor]:
        """a and b of the scheduler's estimate of the clip, shaped like `sample`, float64."""
        steps = [seen.steps[part] for part in self.parts]
        with seeded(steps[0].sample.device, CALL_SEED):  # stochastic schedulers draw
            pairs = [denoising_affine(self.pipeline, step.scheduler, step.bound, (signal, sigma)) for step in steps]
        return joined([a for a, _ in pairs]), joined([b for _, b in pairs])


@torch.no_grad()
def learn(
    pipeline: Any,
    denoisers: Mapping[str, nn.Module],
    conditioning: Conditioning,
    example: Mapping[str, Any],
    check: bool,
) -> Learnt:
    """Call a pipeline until it is understood.

    Args:
        example: What `conditioning` reads.
        check: Check what was learnt. A forward and backward pass is saved without.

    Raises:
        PipelineError: It is not understood; the message names the reason.
    """
    call = functools.partial(observe, pipeline, denoisers=denoisers)
    schedules: list[Schedule] = []

    def learn_schedule(scheduler: Any) -> None:
        schedules.append(Schedule(pipeline, unwatched_copy(scheduler)))
        schedules[-1].slice(scheduler, 0)

    try:
        arguments, first = _first_call(call, conditioning, example, learn_schedule)
    except PipelineError as error:
        # On the CPU, so that a device does not change what the pipeline draws: but not every call can draw there.
        device = torch.device(pipeline._execution_device)
        if device.type == "cpu" or "generator" not in error.reason:
            raise
        call = functools.partial(call, generator_device=device)
        arguments, first = _first_call(call, conditioning, example, learn_schedule)
    schedule = schedules[-1]
    at_first = functools.partial(call, arguments, slice_schedule=lambda scheduler: schedule.slice(scheduler, 0))
    if check:
        _check_repeats(pipeline, denoisers, first, at_first)

    # The denoiser repeats what it said before, while latents are followed through the pipeline.
    follow = functools.partial(at_first, replay=first.outputs)
    shape, device = first.initial.shape, first.initial.device
    answers = [
        follow(inject=lambda own, seen, probe=probe: probe.to(own.dtype))
        for probe in AffineGather.probes(shape, device)
    ]
    parts, arrive = _follow_to_steps(pipeline, shape, answers)
    decode = _follow_to_decode(pipeline, shape, answers)
    del answers
    latents = LatentMap(decode, arrive, frame_wise=len(decode.target_shape) == 4)
    companions = Companions(pipeline, spread=max(1.0, schedule.noise_kernel(0)[1]))
    everything = torch.ones(shape, dtype=torch.bool)
    shown = _pixels_shown(pipeline, follow, conditioning, latents.frame_wise)
    devices = torch.device(pipeline._execution_device), _device_of(denoisers)
    learnt = Learnt(pipeline, call, schedule, parts, latents, everything, companions, *devices, *shown)
    stepped, learnt.covered = _denoised(learnt, arguments, first, position=0)
    if not arrive.is_pure(learnt.covered):
        raise PipelineError(
            pipeline, "the injected latents do not arrive at scheduler.step as they are: they are rescaled."
        )
    # The other way round cannot be asked in half precision: what moves by little at low noise is rounded away.
    late = int(0.9 * len(schedule.timesteps))
    if check and (_denoised(learnt, arguments, first, late)[1] & ~learnt.covered).any():
        raise PipelineError(
            pipeline,
            "it denoises at some timesteps what it conditions on at others: such elements have no training target at "
            "all of them. Condition with full strength.",
        )
    others = [step for part, step in enumerate(first.steps) if part not in parts]
    companions.side = find_side_streams(pipeline, arguments, others, first, at_first)
    companions.reference = find_reference(pipeline, latents, learnt.covered, stepped, first, at_first)
    if check:
        _check_map(learnt, follow, first)
        _check_spread(learnt, first)
        _check_encode(learnt, conditioning)
    return learnt


def _first_call(
    call: Callable[..., Observation],
    conditioning: Conditioning,
    example: Mapping[str, Any],
    slice_schedule: Callable,
) -> tuple[dict[str, Any], Observation]:
    """The first call that goes through: with what is required from the clip, or else with one thing more."""
    tried: list[str] = []
    cause: Exception | None = None
    for from_the_clip in conditioning.candidates(example):
        conditioning.from_the_clip = from_the_clip
        arguments = conditioning.arguments("a video", example)
        try:
            return arguments, call(arguments, slice_schedule=slice_schedule)
        except (PipelineError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            cause = cause or error.with_traceback(None)  # whose frames would hold what the call had made
            given = f"with {' and '.join(from_the_clip)}: " if tried else ""
            tried.append(f"{given}{type(error).__name__}: {error}")
    raise PipelineError(
        conditioning.pipeline,
        f"its own call fails when it is asked for one timestep: {'; '.join(tried)}. If it needs more than a caption, "
        "say how an example gives it: conditioning=lambda example: {...}; what is the same for every clip belongs in "
        "call_kwargs.",
    ) from cause


def _follow_to_steps(pipeline: Any, shape: torch.Size, answers: list[Observation]) -> tuple[list[int], AffineGather]:
    """Which calls of `scheduler.step` the latents reach, and how."""
    counts = {len(answer.steps) for answer in answers}
    if len(counts) > 1:
        raise PipelineError(pipeline, f"how often it calls scheduler.step depends on its latents: {sorted(counts)}.")
    parts = []
    for part in range(counts.pop()):
        try:
            AffineGather.fit(shape, [answer.steps[part].sample for answer in answers])
        except NothingArrivesError:
            continue  # another stream, such as audio
        except ValueError as error:
            raise _not_followed(pipeline, "scheduler.step", str(error)) from error
        parts.append(part)
    if not parts:
        raise _not_followed(pipeline, "scheduler.step", "what was put in does not change what arrives")
    samples = [joined([answer.steps[part].sample for part in parts]) for answer in answers]
    try:
        arrive = AffineGather.fit(shape, samples)
    except ValueError as error:
        raise _not_followed(pipeline, "scheduler.step", str(error)) from error
    return parts, arrive


def _follow_to_decode(pipeline: Any, shape: torch.Size, answers: list[Observation]) -> AffineGather:
    try:
        decode = AffineGather.fit(shape, [answer.decoded for answer in answers])
    except ValueError as error:
        raise _not_followed(pipeline, "vae.decode", str(error)) from error
    target = decode.target_shape
    if len(target) not in (4, 5) or (len(target) == 5 and target[0] != 1):
        raise PipelineError(pipeline, f"vae.decode is given {tuple(target)}, not (1, C, T, h, w) or (T, C, h, w).")
    return decode


def _pixels_shown(
    pipeline: Any, follow: Callable[..., Observation], conditioning: Conditioning, frame_wise: bool
) -> tuple[Tensor, Tensor]:
    """Contrast and brightness (3, 1, 1) of each channel between what the VAE decodes and pixels in [-1, 1].

    VAEs that were trained on other than [-1, 1] are told so by the pipeline alone. Where a pipeline shows its video in
    a way that cannot be followed, [-1, 1] is assumed, as everywhere in diffusers.
    """
    usual = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    processor = getattr(pipeline, "video_processor", None)
    if processor is None:
        return usual
    answers = []
    for value in (0.0, 0.125):
        frames, height, width = conditioning.num_frames, conditioning.height, conditioning.width
        size = (frames, 3, height, width) if frame_wise else (1, 3, frames, height, width)
        try:
            shown = follow(decoded=torch.tensor(value, device=pipeline._execution_device).expand(size)).shown
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return usual
        if shown is None or shown.ndim != 5 or shown.shape[1] != 3:
            return usual
        shown = shown[0, :, :, ::8, ::8].float().cpu()  # a constant: some of it will do
        answers.append((shown if processor.config.do_normalize else shown * 2 - 1).flatten(1))
    if answers[0].shape != answers[1].shape:
        return usual
    # Some show given frames with the decoded ones: where nothing moved, nothing was decoded.
    moved = (answers[0] != answers[1]).all(0)
    if not moved.any():
        return usual
    dark, light = (answer[:, moved].median(1).values.view(3, 1, 1) for answer in answers)
    contrast, brightness = (light - dark) / 0.125, dark
    if torch.allclose(contrast, usual[0], atol=1e-4) and torch.allclose(brightness, usual[1], atol=1e-4):
        return usual
    if not (contrast > 0).all():
        raise PipelineError(pipeline, "how it turns what its VAE decodes into pixels is not understood.")
    return contrast, brightness


def _device_of(denoisers: Mapping[str, nn.Module]) -> torch.device:
    return next(next(iter(denoisers.values())).parameters()).device


def _not_followed(pipeline: Any, door: str, reason: str) -> PipelineError:
    return PipelineError(pipeline, f"the latents injected at prepare_latents cannot be followed to {door}: {reason}.")


def _denoised(learnt: Learnt, arguments: dict[str, Any], first: Observation, position: int) -> tuple[Tensor, Tensor]:
    """What the scheduler denoises, and of that what stands for the clip: bool, like the result of `prepare_latents`.

    The denoiser says zeros, then ones, and `scheduler.step` hands its model output on. What stays the same is
    conditioning: pipelines overwrite it before the step (in the prediction), in it (a timestep for each token) or
    behind it.
    """
    pipeline, decode, arrive = learnt.pipeline, learnt.map.decode, learnt.map.arrive
    said = next(iter(first.outputs.values()))  # whichever expert is asked at this position
    names = learnt.call.keywords["denoisers"]
    zeros, ones = (
        learnt.observe(arguments, position, replay=dict.fromkeys(names, _filled(said, value)), hand_on="model_output")
        for value in (0.0, 1.0)
    )
    signal, sigma = learnt.schedule.noise_kernel(position)
    moved = learnt.model_output(ones).float() != learnt.model_output(zeros).float()
    stepped = arrive.ungather(moved & (learnt.affine(zeros, signal, sigma)[1] != 0), fill=False)

    scale = torch.where(decode.index >= 0, decode.scale, 1.0)
    difference = (ones.decoded.float() - zeros.decoded.float()).flatten()
    slope = decode.ungather((difference / scale).abs())
    clip = decode.covered & stepped & (slope > 1e-6 * slope.max())
    if not clip.any():
        raise PipelineError(pipeline, "it denoises none of the latents that reach vae.decode.")
    lowest, highest = float(slope[clip].min()), float(slope[clip].max())
    if position == 0 and not lowest >= 0.9 * highest:
        raise PipelineError(
            pipeline,
            f"it mixes its prediction with conditioning by parts (from {lowest:.2g} to {highest:.2g}): such elements "
            "are neither denoised nor given, and have no training target. Condition with full strength.",
        )
    return stepped, clip


def _filled(output: Any, value: float) -> Any:
    """A denoiser's output, whatever it is made of, with every floating-point tensor filled with one value."""
    if isinstance(output, Tensor):
        return torch.full_like(output, value) if output.is_floating_point() else output
    if isinstance(output, dict):
        filled = {name: _filled(part, value) for name, part in output.items()}
        return filled if type(output) is dict else type(output)(**filled)
    if isinstance(output, (list, tuple)):
        return type(output)(_filled(part, value) for part in output)
    return output


# ------------------------------------------------------------------------------------------------------------ checks


def _check_repeats(
    pipeline: Any, denoisers: Mapping[str, nn.Module], first: Observation, at_first: Callable[..., Observation]
) -> None:
    """A second pass, now with gradients as in a training step, must see and say the same, and have a backward."""
    try:
        again = at_first(steps=len(first.steps), grad=True)
        outputs = [step.model_output for step in again.steps if step.model_output.requires_grad]
        # One parameter of each part of the denoiser, the first parts included: through all of it.
        parts = [part for module in denoisers.values() for part in (module, *module.children())]
        leaves = [p for part in parts for p in list(part.parameters())[:1] if p.requires_grad]
        if outputs and leaves:
            with torch.enable_grad():
                torch.autograd.grad(outputs[0].sum(), leaves, allow_unused=True)
    except NotImplementedError as error:
        raise PipelineError(
            pipeline,
            f"its denoiser has no backward on {pipeline._execution_device}: {str(error).rstrip('.')}. Use another "
            "device.",
        ) from error
    for one, other in zip(first.steps, again.steps, strict=True):
        if not torch.isfinite(one.model_output).all():
            raise PipelineError(pipeline, f"what it predicts in {one.model_output.dtype} is not finite.")
        if not torch.equal(one.sample, other.sample) or not _agree(one.model_output, other.model_output):
            raise PipelineError(
                pipeline, "two passes with the same inputs do not agree: something in it is random, or remembered."
            )


def _agree(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding: some kernels of accelerators do not add in a fixed order."""
    tolerance = 4 * torch.finfo(one.dtype).eps ** 0.75  # 3e-5 in float32, 0.1 in bfloat16: of the norm of all
    one, other = one.detach().double(), other.detach().double()
    return bool((one - other).norm() <= tolerance * one.norm())


def _check_map(learnt: Learnt, follow: Callable[..., Observation], first: Observation) -> None:
    """Random latents in VAE units must reach vae.decode as themselves."""
    latents = torch.randn(learnt.map.latent_shape, generator=torch.Generator("cpu").manual_seed(0))
    sent = learnt.map.latents(latents.to(first.initial.device))
    # As numbers that survive the dtype in which the pipeline hands them to the scheduler.
    sent = sent.to(first.initial.dtype).to(first.steps[learnt.parts[0]].sample.dtype).float()
    arrived = follow(inject=lambda own, seen: sent.to(own.dtype)).decoded.float()
    expected = learnt.map.decode.apply(sent)
    reaches = (learnt.map.decode.index >= 0).reshape(expected.shape)
    off = torch.where(reaches, arrived - expected, 0.0).abs().max()
    if not off <= 1e-3:
        raise PipelineError(
            learnt.pipeline,
            f"the decode map does not reproduce random latents (off by up to {float(off):.2g}): what it does "
            "between scheduler.step and vae.decode is not a gather and a per-element affine map.",
        )


def _check_encode(learnt: Learnt, conditioning: Conditioning) -> None:
    """Clips must encode to the latents that the pipeline generates, and all of them must depend on the clip."""
    pipeline, shape = learnt.pipeline, (conditioning.num_frames, 3, conditioning.height, conditioning.width)
    noise = torch.rand(shape, generator=torch.Generator("cpu").manual_seed(0)) * 2 - 1
    try:
        one, other = (learnt.encode(pixels) for pixels in (noise, -noise))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, (PipelineError, torch.OutOfMemoryError)):
            raise
        raise PipelineError(pipeline, f"its VAE does not encode a clip: {type(error).__name__}: {error}") from error
    if not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        raise PipelineError(
            pipeline, f"its VAE encodes to values that are not finite in {pipeline.vae.dtype}: load it in float32."
        )
    unseen = float((one == other).all(dim=0).float().mean())  # in half precision, single channels agree by chance
    if unseen > 0.01:
        raise PipelineError(
            pipeline,
            f"its VAE does not look at the whole clip: {unseen:.0%} of the latents are the same for another clip. "
            "Choose a num_frames, height and width that its tiles cover.",
        )


def _check_spread(learnt: Learnt, first: Observation) -> None:
    """The pipeline starts from noise: its spread must be that of the noise kernel at the first timestep."""
    initial = first.initial.float()[learnt.covered]
    found, expected = float(initial.std()), learnt.schedule.noise_kernel(0)[1]
    if not abs(found / expected - 1) <= _spread_tolerance(initial):
        raise PipelineError(
            learnt.pipeline,
            f"its initial latents have a standard deviation of {found:.3g}, but the noise kernel of its "
            f"{type(learnt.pipeline.scheduler).__name__} says {expected:.3g} at the first timestep: how it noises a "
            "clip is not understood.",
        )


def _spread_tolerance(latents: Tensor) -> float:
    """How far a standard deviation may be from the expected one, relative: 5 % and five standard errors."""
    return 0.05 + 5 / (2 * latents.numel()) ** 0.5
