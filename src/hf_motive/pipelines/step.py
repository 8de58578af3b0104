"""`PipelineStep`: one training step of any diffusers video pipeline, and the only class that touches a pipeline."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_motive.pipelines import digest
from hf_motive.pipelines.call import CALL_SEED
from hf_motive.pipelines.conditioning import Conditioning
from hf_motive.pipelines.denoisers import find_denoisers
from hf_motive.pipelines.error import PipelineError
from hf_motive.pipelines.learn import learn
from hf_motive.pipelines.observation import Observation
from hf_motive.pipelines.recall import Answers, LearntDoors, Recall, learn_doors
from hf_motive.pipelines.schedule import ScheduledTimestep

_log = logging.getLogger(__name__)


class StepOutput(NamedTuple):
    """One weighted denoising loss. Tensors are in the layout that the pipeline has at `scheduler.step`.

    Args:
        loss: Scalar, float32, with its graph: mean over denoised elements of weight · error².
        error: prediction − target where it denoises, 0 elsewhere; with `center`, less its mean over time.
        prediction: The denoiser's prediction, float32, with its graph.
        target: What it should have been, float32.
        weight: Weight of each element, float32; 0 where the pipeline conditions instead of denoising.
        unweighted: The loss without the weight: scalar, float32, without a graph.
    """

    loss: Tensor
    error: Tensor
    prediction: Tensor
    target: Tensor
    weight: Tensor
    unweighted: Tensor


class PipelineStep:
    """Encode clips for a pipeline, and take one training step of it on them.

    At construction the pipeline is called twice, and then some fifteen times with its denoiser stubbed out, to learn
    how its latents relate to its VAE's; after that each `loss` is one call. The pipeline is left as it was. Training
    mode is not touched: put the denoiser in `eval()` if it has dropout.

    Args:
        pipeline: Any diffusers video pipeline.
        num_frames, height, width: Shape of every clip, in pixels, as the pipeline's call takes it.
        conditioning: How an example becomes further arguments of the pipeline's call, as in
            `lambda example: {"control_video": example["depth"]}`. What it leaves out and the call cannot do without
            is taken from `example["pixels"]`: `image` is the clip's own first frame, `video` the clip.
        call_kwargs: Further arguments of the call, the same for every clip.
        check: Check at construction that two passes agree and have a backward, that random latents survive the decode
            map, that the pipeline's initial latents are as noisy as its schedule says, and that the VAE encodes all of
            a clip to such latents. A forward and backward pass is saved without.
        example: An example to learn from, where `conditioning` needs more than `{"pixels": blank clip}`.

    Raises:
        PipelineError: The pipeline does not fit; the message names it and what did not hold.
    """

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
        self.denoisers = find_denoisers(pipeline)
        self._conditioning = Conditioning(pipeline, num_frames, height, width, conditioning, self.call_kwargs)
        example = example or {"pixels": torch.zeros(num_frames, 3, height, width)}
        self._learnt = learn(pipeline, self.denoisers, self._conditioning, example, check)
        self.example = example
        self._doors: LearntDoors | None = None
        self._warned: set[str] = set()
        self._regions: dict[str, range] | None = None

    # ------------------------------------------------------------------------------------------------- what is used

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipeline._execution_device)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w): one clip in the VAE's own layout; a VAE of images has T = frames."""
        return self._learnt.map.latent_shape

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
        return self._learnt.encode(pixels)

    def noise(self, seed: int) -> Tensor:
        """(C, T, h, w) float32 standard normal, drawn on the CPU: the same for a seed and shape on every device."""
        return torch.randn(self.latent_shape, generator=torch.Generator("cpu").manual_seed(seed))

    def resolve_timestep(self, timestep: float) -> ScheduledTimestep:
        """What the schedule has nearest to `timestep` in [0, 1000], where 1000 is noise in every pipeline."""
        return self._learnt.schedule.resolve(timestep)

    def loss(
        self,
        latents: Tensor,
        caption: str,
        *,
        noise: Tensor,
        timestep: float | ScheduledTimestep,
        weight: Tensor | None = None,
        example: Mapping[str, Any] | None = None,
        answers: Mapping[str, Any] | None = None,
        seed: int = CALL_SEED,
        grad: bool = True,
        center: bool = False,
    ) -> StepOutput:
        """The denoising loss of one clip at one timestep with one noise, weighted by location (arXiv 2601.08828).

        Args:
            latents: (C, T, h, w), from `encode`.
            caption: The clip's caption; unused where the pipeline takes no prompt.
            noise: (C, T, h, w), from `noise`.
            timestep: In [0, 1000], 1000 is noise; the schedule's nearest is taken, see `resolve_timestep`. Or one of
                `scheduled`.
            weight: (T, h, w), or None for the plain loss.
            example: What the clip is conditioned on: `pixels` (F, 3, H, W) where the pipeline takes its first frame,
                or whatever `conditioning` reads.
            answers: What the frozen parts said before, from `answers`: what is found there is not asked again.
            seed: Of the random numbers that the pipeline and its denoiser draw, such as dropout. Training takes
                another one at every step, or the same units would be dropped each time.
            grad: Whether the loss has a graph. Validation does without.
            center: Take off each error what is the same in all latent frames, before it is squared: what a clip looks
                like throughout then has no part in the loss. Not in the paper.

        Raises:
            PipelineError: No gradient arrives, or what was put in is not what the scheduler was given; or with
                `center` there is but one latent frame.
        """
        for name, value, shape in (
            ("latents", latents, self.latent_shape),
            ("noise", noise, self.latent_shape),
            ("weight", weight, self.latent_shape[1:]),
        ):
            if value is not None and tuple(value.shape) != tuple(shape):
                raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
        learnt = self._learnt
        arrive, device = learnt.map.arrive, learnt.covered.device
        if isinstance(timestep, ScheduledTimestep):
            place = self.scheduled(timestep.position)
        else:
            place = self.resolve_timestep(timestep)
        clip = learnt.map.latents(latents.to(device, torch.float32))
        noise = learnt.map.place(noise.to(device, torch.float32))
        noised = place.signal * clip + place.sigma * noise
        seen = learnt.observe(
            self._conditioning.arguments(caption, example or {}),
            place.position,
            inject=self._injection(noised, place),
            side=learnt.companions.side_factors(place.sigma),
            grad=grad,
            steps=learnt.steps,
            seed=seed,
            recall=Recall(answers) if answers else None,
        )
        self._check_arrival(seen, noised)
        prediction = self._prediction(seen, grad)

        a, b = learnt.affine(seen, place.signal, place.sigma)
        denoised = (b != 0) & arrive.gather(learnt.covered)
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
            weights = arrive.gather(self._learnt.map.place(weight)) * denoised
        with torch.set_grad_enabled(grad):
            error = torch.where(denoised, prediction - target, 0.0)
            if center:
                error = torch.where(denoised, error - learnt.map.over_time(error, denoised), 0.0)
                if not error.any():
                    raise PipelineError(
                        self.pipeline,
                        f"of {self.num_frames} frames one latent frame is denoised, which does not differ from the "
                        "mean over time: take longer clips, or leave center_error out",
                    )
            loss = (weights * error**2).sum() / denoised.sum()
        unweighted = loss.detach() if weight is None else (error.detach() ** 2).sum() / denoised.sum()
        return StepOutput(loss, error, prediction, target, weights, unweighted)

    def part_loss(self, output: StepOutput, weight: Tensor) -> Tensor:
        """What a weight makes of a forward pass that is done: the loss that `loss(weight=weight)` has, for no call.

        The loss is linear in the weight, so the losses of weights that add up to W add up to the loss of W.

        Args:
            output: Of `loss` without a weight.
            weight: (T, h, w).

        Returns:
            Scalar, float32, with the graph of `output`, which all its parts share: keep it by
            `backward(retain_graph=True)` for the next.
        """
        if tuple(weight.shape) != tuple(self.latent_shape[1:]):
            raise ValueError(f"weight must have shape {tuple(self.latent_shape[1:])}, got {tuple(weight.shape)}")
        denoised = output.weight  # 1 or 0: without a weight that is all it says
        weight = weight.to(denoised.device, torch.float32).expand(self.latent_shape)
        weights = self._learnt.map.arrive.gather(self._learnt.map.place(weight)) * denoised
        return (weights * output.error**2).sum() / denoised.sum()

    # --------------------------------------------------------------------------------------------- what training needs

    def answers(self, caption: str, example: Mapping[str, Any] | None = None) -> Answers:
        """What the frozen parts (text encoder, image encoder, VAE of a conditioning image) say of one clip.

        One call of the pipeline, to the door of its denoiser; the first one of this step a few more, to learn which
        answers hold at every timestep.

        Args:
            caption, example: As `loss` takes them.

        Returns:
            For `loss(answers=...)`, as often as the frozen parts stay as they are; answers of several captions may be
            put together. `pipelines.recall` writes and reads them.
        """
        if self._doors is None:
            self._doors = learn_doors(self.pipeline, functools.partial(self._asked, caption, example))
        recall = Recall(record=True, closed=self._doors.closed)
        answers = recall.finish(self._asked(caption, example, recall), whole=self._doors.whole)
        for door in recall.unkept.keys() - self._warned:
            self._warned.add(door)
            _log.warning(
                "%s: what its %s answers is not kept (%s): it is asked anew at every step",
                type(self.pipeline).__name__,
                door,
                recall.unkept[door],
            )
        return answers

    def _asked(
        self,
        caption: str,
        example: Mapping[str, Any] | None,
        recall: Recall,
        *,
        last: bool = False,
    ) -> Any:
        """What the denoiser is asked at the first position of the schedule, or at the last."""
        position = len(self._learnt.schedule.timesteps) - 1 if last else 0
        arguments = self._conditioning.arguments(caption, example or {})
        return self._learnt.observe(arguments, position, recall=recall, to_denoiser=True, seed=CALL_SEED + last).asked

    def positions(self, denoiser: str | None = None) -> range:
        """Where in the long schedule a denoiser is asked; 0 is the noisiest.

        Args:
            denoiser: A component's name, as in `denoisers`. None: the whole schedule.

        Raises:
            ValueError: There is no such denoiser.
        """
        if denoiser is not None and denoiser not in self.denoisers:
            raise ValueError(f"there is no denoiser {denoiser!r}; there is {', '.join(self.denoisers)}")
        if denoiser is None or len(self.denoisers) == 1:
            return range(len(self._learnt.schedule.timesteps))
        if self._regions is None:
            self._regions = self._learnt.regions(self._conditioning.arguments("a video", self.example))
        return self._regions.get(denoiser, range(0))

    def scheduled(self, position: int) -> ScheduledTimestep:
        """What the schedule has at a position in `positions()`.

        Raises:
            IndexError: It has no such position.
        """
        return self._learnt.schedule.at(position)

    def generation(self, caption: str, example: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keyword arguments of an ordinary, generating call of the pipeline for a clip like this one.

        What the clip gives (image, video), `conditioning` and `call_kwargs` are among them; guidance and the number
        of steps are the pipeline's own defaults.
        """
        return self._conditioning.generation(caption, example or {})

    @property
    def reads_rows(self) -> bool:
        """Whether a step needs its clip's row: pixels, or what `conditioning` reads."""
        return self._conditioning.reads_rows

    def settings(self) -> dict[str, Any]:
        """What a feature depends on, as JSON values: features of other settings cannot be compared with it."""
        pipeline, scheduler = self.pipeline, self.pipeline.scheduler
        # What diffusers keeps for itself (its version, which values were defaults) changes by saving and loading.
        own = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        switches = {name: value for name, value in pipeline.config.items() if type(value) in (bool, int, float, str)}
        return {
            "pipeline": type(pipeline).__name__,
            "pipeline_config": {name: value for name, value in switches.items() if not name.startswith("_")},
            "scheduler": type(scheduler).__name__,
            "scheduler_config": hashlib.sha256(digest.text(own).encode()).hexdigest()[:16],
            "weights": digest.weights(pipeline),
            "dtype": str(next(iter(self.denoisers.values())).dtype).removeprefix("torch."),
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "conditioning": self._conditioning.described,
            "call_kwargs": json.loads(digest.text(self.call_kwargs)),
        }

    # ------------------------------------------------------------------------------------------------------- a call

    def _injection(self, latents: Tensor, place: ScheduledTimestep) -> Callable[[Tensor, Observation], Tensor]:
        """Replace what stands for the clip; what does not (padding, conditioned frames) stays the pipeline's."""

        def inject(own: Tensor, seen: Observation) -> Tensor:
            if own.shape != latents.shape:
                raise PipelineError(
                    self.pipeline,
                    f"prepare_latents returned {tuple(own.shape)}, but {tuple(latents.shape)} when its latents were "
                    "learned: every clip of a step must have one shape.",
                )
            filled = self._learnt.companions.fill(own.float(), seen, place.signal, place.sigma)
            return torch.where(self._learnt.covered.to(own.device), latents.to(own.device), filled).to(own.dtype)

        return inject

    def _prediction(self, seen: Observation, grad: bool) -> Tensor:
        """float32, with its graph."""
        output = self._learnt.model_output(seen)
        if grad and not output.requires_grad:
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
        arrive, given = self._learnt.map.arrive, self._learnt.sample(seen)
        sample = given.detach().float()
        if sample.shape != arrive.target_shape:
            raise PipelineError(
                self.pipeline,
                f"scheduler.step was given {tuple(sample.shape)}, expected {tuple(arrive.target_shape)}.",
            )
        expected, here = arrive.gather(noised), arrive.gather(self._learnt.covered)
        rounding = max(torch.finfo(given.dtype).eps, torch.finfo(seen.initial.dtype).eps)
        off = torch.where(here, sample - expected, 0.0).abs().max()
        if not off <= 2 * rounding * expected.abs().max():
            raise PipelineError(
                self.pipeline,
                f"the injected latents did not arrive at scheduler.step: its sample is off by up to {float(off):.3g}.",
            )
