"""The scheduler as the definition of a training step: which noise level, how it is mixed in, what is to be predicted.

A clip x0 becomes `x_t = signal·x0 + sigma·noise`; the scheduler reads the denoiser's output m as the estimate
`x0_hat = a·x_t + b·m`. The output that makes the estimate exact is the regression target:

    target = (x0 − a·x_t) / b = ((1 − a·signal)·x0 − a·sigma·noise) / b

which is the noise, the velocity or the clip itself, whichever the scheduler means. Where b is 0 the step does not
denoise: such elements are conditioning and are left out of the loss.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_motive.pipelines.doors import unwatched_copy
from hf_motive.pipelines.error import PipelineError

#: Longest schedule from which one timestep is taken. One step less than the usual 1000 training timesteps: with
#: "leading" spacing and an offset, a schedule of 1000 starts at timestep 1000, which does not exist.
SCHEDULE_STEPS = 999

#: Size of the inputs with which `scheduler.step` is measured: a power of two, so that the answers are exact, and
#: small, because some schedulers clip what leaves [−1, 1].
PROBE = 2.0**-10


class ScheduledTimestep(NamedTuple):
    """One timestep of a pipeline's own schedule.

    Args:
        timestep: What the scheduler calls it (for most 0…1000; the scale of its own otherwise).
        sigma: Weight of the noise in the noised clip, `signal·x0 + sigma·noise`.
        signal: Weight of the clip in it.
        position: Place in the long schedule, 0 the noisiest.
    """

    timestep: float
    sigma: float
    signal: float
    position: int


class Schedule:
    """The long schedule of a pipeline, from which a step takes one timestep.

    Args:
        pipeline: Names the pipeline in error messages.
        scheduler: A copy of its scheduler, after the pipeline itself has called `set_timesteps`.
    """

    def __init__(self, pipeline: Any, scheduler: Any):
        self._pipeline = type(pipeline).__name__
        self._scheduler = scheduler
        self._kernels: dict[int, tuple[float, float]] = {}
        self.timesteps = torch.as_tensor(scheduler.timesteps).double().cpu()
        if not torch.isfinite(self.timesteps).all():
            raise PipelineError(
                self._pipeline, f"its {type(scheduler).__name__} gives a schedule with non-finite timesteps."
            )

    def resolve(self, timestep: float) -> ScheduledTimestep:
        """The schedule's timestep nearest to `timestep`, in [0, 1000]: 0 is the clip, 1000 is noise.

        A schedule that counts up while it denoises is read backwards. Where a scheduler's timesteps are not on the
        training scale at all, the level of a flow is its sigma; of the others (EDM's timesteps are 0.25·ln sigma),
        1000 is the schedule's first position and 0 its last.
        """
        if not 0 <= timestep <= 1000:
            raise ValueError(f"timestep must be in [0, 1000] (0: the clip, 1000: noise), got {timestep}")
        train_steps = float(self._scheduler.config.get("num_train_timesteps", 1000))
        levels = self.timesteps / train_steps * 1000
        if levels[0] < levels[-1]:
            levels = 1000 - levels
        low, high = float(levels.min()), float(levels.max())
        on_scale = low >= -1 and high <= 1001 and high - low > 500
        if not on_scale and self._is_flow() and sum(self.noise_kernel(0)) == 1:
            levels, on_scale = 1000 * torch.tensor([self.noise_kernel(i)[1] for i in range(len(levels))]), True
        by_level, by_order = (levels - timestep).abs().argmin(), (1 - timestep / 1000) * (len(levels) - 1)
        return self.at(int(by_level) if on_scale else round(by_order))

    def at(self, position: int) -> ScheduledTimestep:
        """What the schedule has at a position.

        Raises:
            IndexError: It has no such position.
        """
        if not 0 <= position < len(self.timesteps):
            raise IndexError(f"the schedule has positions 0 to {len(self.timesteps) - 1}, got {position}")
        signal, sigma = self.noise_kernel(position)
        return ScheduledTimestep(float(self.timesteps[position]), sigma, signal, position)

    def slice(self, scheduler: Any, position: int) -> None:
        """Leave in a scheduler, which has just built the long schedule, the timestep at `position` alone."""
        timesteps = torch.as_tensor(scheduler.timesteps)
        if len(timesteps) != len(self.timesteps) or float(timesteps[position]) != float(self.timesteps[position]):
            raise PipelineError(
                self._pipeline,
                f"its schedule changed between calls: timestep {float(self.timesteps[position])}, at position "
                f"{position} of {len(self.timesteps)}, is not at that place of the {len(timesteps)} there are now. "
                "Arguments that change the schedule belong in call_kwargs, the same for every clip.",
            )
        _slice(scheduler, position)

    def noise_kernel(self, position: int) -> tuple[float, float]:
        """(signal, sigma) of `x_t = signal·x0 + sigma·noise` at a position.

        Flow schedulers (they have no `add_noise`, or say that their sigmas are flow sigmas) mix linearly, with the two
        weights swapped where the scheduler inverts its sigmas; sigmas beyond 1 can only be added. Every other
        scheduler is asked: its `add_noise` is the documented forward process.
        """
        if position not in self._kernels:
            self._kernels[position] = self._measure_kernel(position)
        return self._kernels[position]

    def _is_flow(self) -> bool:
        config = self._scheduler.config
        return (
            not hasattr(self._scheduler, "add_noise")
            or config.get("use_flow_sigmas", False)
            or config.get("prediction_type") == "flow_prediction"
        )

    def _measure_kernel(self, position: int) -> tuple[float, float]:
        config = self._scheduler.config
        scheduler = unwatched_copy(self._scheduler)
        if self._is_flow():
            if getattr(scheduler, "sigmas", None) is None:
                raise PipelineError(
                    self._pipeline,
                    f"how its {type(scheduler).__name__} noises a clip is not known: no add_noise and no sigmas.",
                )
            sigmas = torch.as_tensor(scheduler.sigmas).double()
            sigma = float(sigmas[position])
            if float(sigmas.max()) > 1 + 1e-4:
                return 1.0, sigma
            return (sigma, 1 - sigma) if config.get("invert_sigmas", False) else (1 - sigma, sigma)
        _slice(scheduler, position)
        timestep = torch.as_tensor(scheduler.timesteps)
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        one, zero = one.to(timestep.device), zero.to(timestep.device)
        return (
            float(unwatched_copy(scheduler).add_noise(one, zero, timestep)),
            float(unwatched_copy(scheduler).add_noise(zero, one, timestep)),
        )


def schedule_steps(scheduler: Any) -> int:
    """The number of steps to ask of a scheduler: consistency models know no more than they were distilled at."""
    config = scheduler.config
    train_steps = config.get("num_train_timesteps", SCHEDULE_STEPS + 1)
    return min(SCHEDULE_STEPS, train_steps - 1, config.get("original_inference_steps", SCHEDULE_STEPS))


def _slice(scheduler: Any, position: int) -> None:
    count = len(scheduler.timesteps)
    scheduler.timesteps = scheduler.timesteps[position : position + 1]
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) in (count, count + 1):
        last = sigmas[position : position + 1] if len(sigmas) == count else sigmas[-1:]
        scheduler.sigmas = torch.cat([torch.as_tensor(sigmas[position : position + 1]), torch.as_tensor(last)])


def denoising_affine(
    pipeline: Any, scheduler: Any, step: inspect.BoundArguments, kernel: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Measure a and b of `x0_hat = a·sample + b·model_output`, per element, on the scheduler's real `step`.

    Args:
        scheduler: As the pipeline had set it up when it called `step`, with a schedule of one timestep.
        step: The arguments of that call.
        kernel: (signal, sigma) at that timestep.

    Returns:
        a, b: shaped like `sample`, float64.

    Raises:
        PipelineError: The estimate is not affine in sample and model output.
    """
    sample = step.arguments["sample"]
    probe = torch.full(sample.shape, PROBE, dtype=torch.float32, device=sample.device)
    zero = torch.zeros_like(probe)

    inputs = ((probe, zero), (zero, probe), (0.75 * probe, -0.5 * probe))
    answers = [_estimate(unwatched_copy(scheduler), step, *pair) for pair in inputs]
    a, b, mixed = (answer.double() / PROBE for answer in answers)
    if not torch.isfinite(a).all():
        a, b = (torch.full_like(a, weight) for weight in _closed_form(pipeline, scheduler, kernel))
        return a, b
    off = (mixed - (0.75 * a - 0.5 * b)).abs().max()
    if not off <= 1e-4 * (a.abs().max() + b.abs().max()):
        raise PipelineError(
            pipeline,
            f"the step of its {type(scheduler).__name__} is not understood: the estimate of the clip is not affine in "
            f"sample and model output (off by {float(off):.2g}), so the training target cannot be read from it.",
        )
    return a, b


def _estimate(scheduler: Any, step: inspect.BoundArguments, sample: Tensor, model_output: Tensor) -> Tensor:
    """The scheduler's estimate of the clip: `pred_original_sample`, or else where a step to zero noise arrives.

    NaN where the scheduler shows neither.
    """
    bound = inspect.BoundArguments(step.signature, step.arguments.copy())
    bound.arguments.update(sample=sample, model_output=model_output)
    if "return_dict" in step.signature.parameters:
        bound.arguments["return_dict"] = True
    sigmas = getattr(scheduler, "sigmas", None)
    steps_to_clean = sigmas is not None and len(sigmas) == 2
    if steps_to_clean:
        clean = 1.0 if scheduler.config.get("invert_sigmas", False) else 0.0
        scheduler.sigmas = torch.as_tensor(sigmas).clone()
        scheduler.sigmas[-1] = clean
    output = scheduler.step(*bound.args, **bound.kwargs)
    if getattr(output, "pred_original_sample", None) is not None:
        return output.pred_original_sample
    if not steps_to_clean:
        return torch.full_like(sample, torch.nan)
    return output[0] if isinstance(output, tuple) else output.prev_sample


def _closed_form(pipeline: Any, scheduler: Any, kernel: tuple[float, float]) -> tuple[float, float]:
    """a and b from the documented meaning of `prediction_type`, where a single step does not show them."""
    signal, sigma = kernel
    kind = scheduler.config.get("prediction_type")
    preserves_variance = abs(signal**2 + sigma**2 - 1) < 1e-4
    if kind == "epsilon":
        return 1 / signal, -sigma / signal
    if kind == "sample":
        return 0.0, 1.0
    if kind == "flow_prediction":
        return 1.0, -sigma
    if kind == "v_prediction" and preserves_variance:
        return signal, -sigma
    raise PipelineError(
        pipeline,
        f"the step of its {type(scheduler).__name__} is not understood: it returns no pred_original_sample, has no "
        f"step to zero noise, and prediction_type={kind!r} has no closed form here.",
    )
