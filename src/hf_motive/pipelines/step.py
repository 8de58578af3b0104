"""`PipelineStep`: one training step of any diffusers video pipeline, and the only class that touches a pipeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_motive.pipelines.call import Observation, PipelineError, joined, observe, unwatched_copy
from hf_motive.pipelines.conditioning import Conditioning
from hf_motive.pipelines.latent_map import AffineGather, LatentMap
from hf_motive.pipelines.schedule import Schedule, ScheduledTimestep, denoising_affine

#: Components that denoise; all others (text encoders, VAE, image encoders) are held fixed and get no gradient.
DENOISERS = ("transformer", "transformer_2", "unet")


class StepOutput(NamedTuple):
    """One weighted denoising loss. Tensors are in the layout that the pipeline has at `scheduler.step`.

    Args:
        loss: Scalar, float32, with its graph: mean over denoised elements of weight · (prediction − target)².
        prediction: The denoiser's prediction, float32, with its graph.
        target: What it should have been, float32.
        weight: Weight of each element, float32; 0 where the pipeline conditions instead of denoising.
    """

    loss: Tensor
    prediction: Tensor
    target: Tensor
    weight: Tensor


class PipelineStep:
    """Encode clips for a pipeline, and take one training step of it on them.

    At construction the pipeline is called twice, and then about ten times with its denoiser stubbed out, to learn how
    its latents relate to its VAE's; after that each `loss` is one call. The pipeline is left as it was. Training mode
    is not touched: put the denoiser in `eval()` if it has dropout.

    Args:
        pipeline: Any diffusers video pipeline.
        num_frames, height, width: Shape of every clip, in pixels, as the pipeline's call takes it.
        conditioning: How an example becomes further arguments of the pipeline's call, as in
            `lambda example: {"control_video": example["depth"]}`. What it leaves out and the call cannot do without
            is taken from `example["pixels"]`: `image` is the clip's own first frame, `video` the clip.
        call_kwargs: Further arguments of the call, the same for every clip.
        check: Check at construction that two passes agree, that random latents survive the decode map, and that the
            pipeline's initial latents are as noisy as its schedule says. One denoiser pass is saved without.
        example: An example to learn from, where `conditioning` needs more than `{"pixels": blank clip}`.

    Raises:
        PipelineError: The pipeline does not fit; the message names it and what did not hold.
    """

    _schedule: Schedule
    _map: LatentMap
    _covered: Tensor  # bool, as prepare_latents returns: the elements that stand for the clip

    def __init__(
        self,
        pipeline: Any,
        *,
        num_frames: int,
        height: int,
        width: int,
        conditioning: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        call_kwargs: Mapping[str, Any] | None = None,
        check: bool = True,
        example: Mapping[str, Any] | None = None,
    ):
        self.pipeline = pipeline
        self.num_frames, self.height, self.width = num_frames, height, width
        self.call_kwargs = dict(call_kwargs or {})
        self.denoisers: dict[str, nn.Module] = {
            name: getattr(pipeline, name) for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module)
        }
        if not self.denoisers:
            raise PipelineError(pipeline, f"it has no denoiser: none of the components {', '.join(DENOISERS)}.")
        self._conditioning = Conditioning(pipeline, num_frames, height, width, conditioning, self.call_kwargs)
        self._digests: dict[str, tuple[tuple, str]] = {}
        self._learn(example or {"pixels": torch.zeros(num_frames, 3, height, width)}, check)

    # ------------------------------------------------------------------------------------------------- what is used

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipeline._execution_device)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w): one clip in the VAE's own layout; a VAE of images has T = frames."""
        return self._map.latent_shape

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode a clip, with the mode of the VAE's posterior.

        Args:
            pixels: (F, 3, H, W) in [-1, 1], of this step's num_frames, height and width.

        Returns:
            latents: (C, T, h, w) float32, in the VAE's own units.
        """
        expected = (self.num_frames, 3, self.height, self.width)
        if tuple(pixels.shape) != expected:
            raise ValueError(f"pixels must be (F, 3, H, W) = {expected}, got {tuple(pixels.shape)}; see load_clip()")
        vae = self.pipeline.vae
        pixels = pixels.to(self.device, vae.dtype)
        # A video VAE takes (1, 3, F, H, W); a VAE of images one frame at a time, which keeps memory flat.
        batches = pixels.split(1) if self._map.frame_wise else [pixels.transpose(0, 1).unsqueeze(0)]
        encoded = [vae.encode(batch) for batch in batches]
        modes = [e.latent_dist.mode() if hasattr(e, "latent_dist") else e.latents for e in encoded]
        latents = self._map.from_vae(torch.cat(modes).float())
        if tuple(latents.shape) != self.latent_shape:
            raise PipelineError(
                self.pipeline,
                f"{self.num_frames} frames of {self.height}×{self.width} encode to latents {tuple(latents.shape)}, "
                f"but the pipeline generates {self.latent_shape}: it rounds the frames or the size. Choose a "
                "num_frames, height and width that it takes as they are.",
            )
        return latents

    def noise(self, seed: int) -> Tensor:
        """(C, T, h, w) float32 standard normal, drawn on the CPU: the same for a seed and shape on every device."""
        return torch.randn(self.latent_shape, generator=torch.Generator("cpu").manual_seed(seed))

    def resolve_timestep(self, timestep: float) -> ScheduledTimestep:
        """What the schedule has nearest to `timestep` in [0, 1000], where 1000 is noise in every pipeline."""
        return self._schedule.resolve(timestep)

    def loss(
        self,
        latents: Tensor,
        caption: str,
        *,
        noise: Tensor,
        timestep: float,
        weight: Tensor | None = None,
        example: Mapping[str, Any] | None = None,
    ) -> StepOutput:
        """The denoising loss of one clip at one timestep with one noise, weighted by location (arXiv 2601.08828).

        Args:
            latents: (C, T, h, w), from `encode`.
            caption: The clip's caption; unused where the pipeline takes no prompt.
            noise: (C, T, h, w), from `noise`.
            timestep: In [0, 1000], 1000 is noise; the schedule's nearest is taken, see `resolve_timestep`.
            weight: (T, h, w), or None for the plain loss.
            example: What the clip is conditioned on: `pixels` (F, 3, H, W) where the pipeline takes its first frame,
                or whatever `conditioning` reads.

        Raises:
            PipelineError: No gradient arrives, or what was put in is not what the scheduler was given.
        """
        for name, value, shape in (
            ("latents", latents, self.latent_shape),
            ("noise", noise, self.latent_shape),
            ("weight", weight, self.latent_shape[1:]),
        ):
            if value is not None and tuple(value.shape) != tuple(shape):
                raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
        place, arrive, device = self._schedule.resolve(timestep), self._map.arrive, self._covered.device
        clip = self._map.latents(latents.to(device, torch.float32))
        noise = self._map.place(noise.to(device, torch.float32))
        noised = place.signal * clip + place.sigma * noise
        seen = self._observe(
            self._conditioning.arguments(caption, example or {}),
            place.position,
            inject=self._injection(noised),
            grad=True,
            steps=self._steps,
        )
        self._check_arrival(seen, noised)
        prediction = self._prediction(seen)

        a, b = self._affine(seen, place.signal, place.sigma)
        denoised = (b != 0) & arrive.gather(self._covered)
        if not denoised.any():
            raise PipelineError(self.pipeline, f"it denoises nothing at timestep {place.timestep}.")
        per_output = torch.where(denoised, b, 1.0)
        # In double precision, and in terms of clip and noise: (x0 − a·x_t) / b would cancel at low noise.
        target = (1 - a * place.signal) * arrive.gather(clip) - a * place.sigma * arrive.gather(noise)
        target = torch.where(denoised, target / per_output, 0.0).float()
        if weight is None:
            weights = denoised.float()
        else:
            weight = weight.to(device, torch.float32).expand(self.latent_shape)
            weights = arrive.gather(self._map.place(weight)) * denoised
        with torch.enable_grad():
            loss = (weights * torch.where(denoised, prediction - target, 0.0) ** 2).sum() / denoised.sum()
        return StepOutput(loss, prediction, target, weights)

    def settings(self) -> dict[str, Any]:
        """What a feature depends on, as JSON values: features of other settings cannot be compared with it."""
        scheduler = self.pipeline.scheduler
        # What diffusers keeps for itself (its version, which values were defaults) changes by saving and loading.
        config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        config = json.dumps(config, sort_keys=True, default=str)
        return {
            "pipeline": type(self.pipeline).__name__,
            "scheduler": type(scheduler).__name__,
            "scheduler_config": hashlib.sha256(config.encode()).hexdigest()[:16],
            "weights": self._weights(),
            "dtype": str(next(iter(self.denoisers.values())).dtype).removeprefix("torch."),
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "conditioning": self._conditioning.names,
            "call_kwargs": json.loads(json.dumps(self.call_kwargs, sort_keys=True, default=str)),
        }

    # ------------------------------------------------------------------------------------------------------- a call

    def _observe(self, arguments: dict[str, Any], position: int, **options: Any) -> Observation:
        return observe(
            self.pipeline,
            arguments,
            denoisers=self.denoisers,
            slice_schedule=lambda scheduler: self._schedule.slice(scheduler, position),
            **options,
        )

    def _injection(self, latents: Tensor) -> Callable[[Tensor], Tensor]:
        """Replace what the decode map covers; what it does not (padding, conditioned frames) stays the pipeline's."""

        def inject(own: Tensor) -> Tensor:
            if own.shape != latents.shape:
                raise PipelineError(
                    self.pipeline,
                    f"prepare_latents returned {tuple(own.shape)}, but {tuple(latents.shape)} when its latents were "
                    "learned: every clip of a step must have one shape.",
                )
            return torch.where(self._covered.to(own.device), latents.to(own.device), own.float()).to(own.dtype)

        return inject

    def _affine(self, seen: Observation, signal: float, sigma: float) -> tuple[Tensor, Tensor]:
        """a and b of the scheduler's estimate of the clip, shaped like the sample at `scheduler.step`."""
        pairs = [denoising_affine(self.pipeline, step.scheduler, step.call, (signal, sigma)) for step in seen.steps]
        return joined([a for a, _ in pairs]), joined([b for _, b in pairs])

    def _prediction(self, seen: Observation) -> Tensor:
        """float32, with its graph."""
        output = seen.model_output
        if not output.requires_grad:
            trainable = any(p.requires_grad for denoiser in self.denoisers.values() for p in denoiser.parameters())
            raise PipelineError(
                self.pipeline,
                "the prediction at scheduler.step carries no gradient: "
                + (
                    "the pipeline or the denoiser detaches it."
                    if trainable
                    else "no denoiser parameter requires one. Call requires_grad_() on what is to be attributed."
                ),
            )
        return output.float()

    def _check_arrival(self, seen: Observation, noised: Tensor) -> None:
        """The sample at `scheduler.step` must be what was put in, to the rounding of its dtype."""
        arrive, sample = self._map.arrive, seen.sample.detach().float()
        if sample.shape != arrive.target_shape:
            raise PipelineError(
                self.pipeline,
                f"scheduler.step was given {tuple(sample.shape)}, expected {tuple(arrive.target_shape)}.",
            )
        expected, here = arrive.gather(noised), arrive.gather(self._covered)
        rounding = max(torch.finfo(seen.sample.dtype).eps, torch.finfo(seen.initial.dtype).eps)
        off = torch.where(here, sample - expected, 0.0).abs().max()
        if not off <= 2 * rounding * expected.abs().max():
            raise PipelineError(
                self.pipeline,
                f"the injected latents did not arrive at scheduler.step: its sample is off by up to {float(off):.3g}.",
            )

    # ----------------------------------------------------------------------------------------------------- learning

    @torch.no_grad()
    def _learn(self, example: Mapping[str, Any], check: bool) -> None:
        """Learn the schedule and the latent map, and check what `loss` will rely on."""

        def learn_schedule(scheduler: Any) -> None:
            self._schedule = Schedule(self.pipeline, unwatched_copy(scheduler))
            self._schedule.slice(scheduler, 0)

        arguments, first = self._first_call(example, learn_schedule)
        self._steps = len(first.steps)
        if check:
            again = self._observe(arguments, 0, steps=self._steps)
            if not torch.equal(first.sample, again.sample) or not _agree(first.model_output, again.model_output):
                raise PipelineError(
                    self.pipeline,
                    "two passes with the same inputs do not agree: something in it is random, or remembered.",
                )
        self._learn_map(arguments, first)
        if check:
            self._check_map(arguments, first)
            self._check_spread(first)

    def _first_call(self, example: Mapping[str, Any], slice_schedule: Callable) -> tuple[dict[str, Any], Observation]:
        """The first call that goes through: with what is required from the clip, or else with one thing more."""
        errors: list[Exception] = []
        for from_the_clip in self._conditioning.candidates(example):
            self._conditioning.from_the_clip = from_the_clip
            arguments = self._conditioning.arguments("a video", example)
            try:
                seen = observe(self.pipeline, arguments, denoisers=self.denoisers, slice_schedule=slice_schedule)
            except PipelineError:
                raise
            except Exception as error:
                errors.append(error)
            else:
                return arguments, seen
        raise errors[0]

    def _send(self, arguments: dict[str, Any], latents: Tensor, first: Observation) -> Observation:
        """Send float32 latents through the pipeline to vae.decode; the denoiser repeats what it said before."""
        return self._observe(arguments, 0, inject=lambda own: latents, replay=first.outputs)

    def _learn_map(self, arguments: dict[str, Any], first: Observation) -> None:
        shape, device = first.initial.shape, first.initial.device
        answers = [self._send(arguments, probe, first) for probe in AffineGather.probes(shape, device)]
        maps = {}
        for door, tensors in (
            ("scheduler.step", [answer.sample for answer in answers]),
            ("vae.decode", [answer.decoded for answer in answers]),
        ):
            try:
                maps[door] = AffineGather.fit(shape, tensors)
            except ValueError as error:
                raise PipelineError(
                    self.pipeline, f"the latents injected at prepare_latents cannot be followed to {door}: {error}."
                ) from error
        if not maps["scheduler.step"].is_pure:
            raise PipelineError(
                self.pipeline, "the injected latents do not arrive at scheduler.step as they are: they are rescaled."
            )
        dimensions = len(maps["vae.decode"].target_shape)
        if dimensions not in (4, 5) or (dimensions == 5 and maps["vae.decode"].target_shape[0] != 1):
            raise PipelineError(
                self.pipeline,
                f"vae.decode is given {tuple(maps['vae.decode'].target_shape)}, not (1, C, T, h, w) or (T, C, h, w).",
            )
        self._map = LatentMap(maps["vae.decode"], maps["scheduler.step"], frame_wise=dimensions == 4)
        # What does not move with the model output is conditioning: it keeps the pipeline's own values.
        signal, sigma = self._schedule.noise_kernel(0)
        denoised = self._map.arrive.ungather(self._affine(first, signal, sigma)[1] != 0, fill=False)
        self._covered = self._map.decode.covered & self._map.arrive.covered & denoised
        if not self._covered.any():
            raise PipelineError(self.pipeline, "it denoises none of the latents that reach vae.decode.")

    def _check_map(self, arguments: dict[str, Any], first: Observation) -> None:
        """Random latents in VAE units must reach vae.decode as themselves."""
        latents = self.noise(seed=0).to(first.initial.device)
        sent = self._map.latents(latents)
        arrived = self._send(arguments, sent, first).decoded.float()
        expected = self._map.to_vae(latents)
        reaches = (self._map.decode.index >= 0).reshape(expected.shape)
        off = torch.where(reaches, arrived - expected, 0.0).abs().max()
        if not off <= 1e-3:
            raise PipelineError(
                self.pipeline,
                f"the decode map does not reproduce random latents (off by up to {float(off):.2g}): what it does "
                "between scheduler.step and vae.decode is not a gather and a per-element affine map.",
            )

    def _check_spread(self, first: Observation) -> None:
        """The pipeline starts from noise: its spread must be that of the noise kernel at the first timestep."""
        initial = first.initial.float()[self._covered]
        found, expected = float(initial.std()), self._schedule.noise_kernel(0)[1]
        tolerance = 0.05 + 5 / (2 * initial.numel()) ** 0.5
        if not abs(found / expected - 1) <= tolerance:
            raise PipelineError(
                self.pipeline,
                f"its initial latents have a standard deviation of {found:.3g}, but the noise kernel of its "
                f"{type(self.pipeline.scheduler).__name__} says {expected:.3g} at the first timestep: how it noises a "
                "clip is not understood.",
            )

    def _weights(self) -> dict[str, str]:
        """Component -> sha256 over names, dtypes and bytes of its state; computed again where a tensor has changed.

        All components count: another VAE or text encoder gives other features too.
        """
        modules = {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}
        for name, module in modules.items():
            state = module.state_dict()
            version = tuple((key, tensor.data_ptr(), tensor._version) for key, tensor in state.items())
            if name not in self._digests or self._digests[name][0] != version:
                digest = hashlib.sha256()
                for key, tensor in state.items():
                    digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
                self._digests[name] = version, digest.hexdigest()[:16]
        return {name: self._digests[name][1] for name in modules}


def _agree(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding: some kernels of accelerators do not add in a fixed order."""
    tolerance = 100 * torch.finfo(one.dtype).eps
    one, other = one.float(), other.float()
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(one.abs().max()), equal_nan=True)
