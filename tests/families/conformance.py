"""What every variant must pass, and the row of docs/pipelines.md that comes of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_motive.pipelines import PipelineError, PipelineStep, StepOutput
from hf_motive.pipelines.recall import dump, load
from tests.families.common import Variant, example_pixels
from tests.families.compare import CAPTION, Difference, compare, difference, gradients, pipeline_step

LOSS_TOLERANCE = 1e-5  # relative; both sum the same squares in fp32
GRADIENT_TOLERANCE = 1e-5  # ‖g − h‖ / ‖h‖ over all parameters
PARAMETER_TOLERANCE = 1e-4  # the same for the worst single parameter

# In bf16 most variants agree with their step by hand bit for bit; where a pipeline rounds its latents once more than
# the step does, this much is bf16 itself.
BF16_LOSS_TOLERANCE = 1e-2
BF16_GRADIENT_TOLERANCE = 1e-1


class Row(NamedTuple):
    """One line of the table, in words that are the same on every machine."""

    pipeline: str
    variant: str
    denoiser: str
    scheduler: str
    predicts: str
    layout: str
    coverage: str
    result: str
    remark: str


class HalfPrecision(NamedTuple):
    """bf16 against the step by hand in bf16, and against fp32."""

    by_hand: Difference | None
    of_single: Difference


class Examination(NamedTuple):
    """A row, and the figures behind it: the largest differences from the step by hand, and those in bf16."""

    row: Row
    difference: Difference | None
    bf16: HalfPrecision | None


def examine(variant: Variant) -> Examination:
    """Build a variant and hold it to everything.

    Raises:
        AssertionError: Something does not hold; the message says what.
    """
    pipe = variant.build()
    parts = [name for name in variant.denoisers if getattr(pipe, name, None) is not None]
    described = (
        ", ".join(dict.fromkeys(type(getattr(pipe, name)).__name__ for name in parts)),
        type(pipe.scheduler).__name__ if getattr(pipe, "scheduler", None) is not None else "",
    )
    if variant.refused is not None:
        reason = _refusal(variant, pipe)
        row = Row(variant.pipeline, variant.name, *described, "", "", "", f"refused: {reason}", variant.remark)
        return Examination(row, None, None)

    before = vars(pipe).copy()
    clip = Clip(variant, pipe)
    assert tuple(clip.step.latent_shape) == variant.latent_shape, "the latents of the clip have another shape"
    share = clip.repeats_itself()
    clip.weight_of_ones_is_plain()
    clip.corner_stays_in_its_corner()
    clip.experts_divide_the_noise_levels()
    clip.answers_from_memory_are_the_same(variant.timesteps)
    checkpointed = clip.checkpointing_changes_nothing()
    assert vars(pipe) == before, "a step left something behind on the pipeline"
    worst = _by_hand(variant, pipe, clip.step) if variant.training_step else None
    bf16 = None if variant.no_half else _half_precision(variant, clip)
    result = "as by hand" if worst else "served"
    if not checkpointed:
        result += "; no gradient checkpointing"
    row = Row(
        variant.pipeline,
        variant.name,
        *described,
        clip.predicts(),
        clip.layout(),
        f"{share:.0%}",
        result,
        variant.remark,
    )
    return Examination(row, worst, bf16)


def _refusal(variant: Variant, pipe: Any) -> str:
    """The reason, after it was seen that it is refused at construction and that the pipeline is left alone."""
    before = vars(pipe).copy()
    try:
        pipeline_step(variant, pipe)
    except PipelineError as error:
        assert re.search(variant.refused, error.reason), f"refused for another reason: {error.reason}"
        assert vars(pipe) == before, "a refusal left something behind on the pipeline"
        return re.split(r"\.\s", " ".join(error.reason.split()))[0].removesuffix(".")
    raise AssertionError("it is not refused")


def _by_hand(variant: Variant, pipe: Any, step: PipelineStep) -> Difference:
    cases = [compare(variant, pipe, step, t, weighted) for t in variant.timesteps for weighted in (False, True)]
    worst = functools.reduce(lambda a, b: a.worst(b), cases)
    assert worst.loss < LOSS_TOLERANCE, f"not the loss of the step by hand: {worst}"
    assert worst.gradient < GRADIENT_TOLERANCE, f"not the gradient of the step by hand: {worst}"
    assert worst.parameter < PARAMETER_TOLERANCE, f"not the gradient of the step by hand, in one parameter: {worst}"
    return worst


class Clip:
    """One clip in a variant's pipeline: a step of it at each of the variant's timesteps."""

    def __init__(self, variant: Variant, pipe: Any, latents: Tensor | None = None):
        self.variant, self.pipe = variant, pipe
        self.step = pipeline_step(variant, pipe)
        pixels = example_pixels(variant.num_frames, variant.height, variant.width)
        self.row = variant.row(pixels)
        self.latents = self.step.encode(pixels) if latents is None else latents
        self.noise = self.step.noise(seed=7)

    def loss(self, timestep: float | None = None, **options: Any) -> StepOutput:
        options = {"latents": self.latents, "noise": self.noise, "example": self.row, **options}
        timestep = self.variant.timesteps[0] if timestep is None else timestep
        return self.step.loss(options.pop("latents"), CAPTION, timestep=timestep, **options)

    def gradients(self, out: StepOutput) -> dict[str, Tensor]:
        return gradients(self.variant, self.pipe, out.loss)

    def repeats_itself(self) -> float:
        """Two runs agree bit for bit, whatever ran between them. Returns the share of parameters with a gradient."""
        out = self.loss()
        first = self.gradients(out)
        torch.manual_seed(123)
        self.loss(self.variant.timesteps[-1])
        again = self.loss()
        assert torch.equal(out.loss, again.loss), "two runs have different losses"
        second = self.gradients(again)
        assert all(torch.equal(first[name], second[name]) for name in first), "two runs have different gradients"
        total = sum(gradient.numel() for gradient in first.values())
        return sum(gradient.numel() for gradient in first.values() if gradient.any()) / total

    def weight_of_ones_is_plain(self) -> None:
        plain, ones = self.loss(), self.loss(weight=torch.ones(self.step.latent_shape[1:]))
        assert torch.equal(plain.loss, ones.loss), "a weight of ones is not the plain loss"

    def corner_stays_in_its_corner(self) -> None:
        """A weight in a corner is where the target moves with the clip's own corner, and nowhere else."""
        corner = torch.zeros(self.step.latent_shape[1:])
        corner[-1, :2, :1] = 2.0
        moved = {"latents": self.latents + 0.5 * (corner > 0), "noise": self.noise + 0.7 * (corner > 0)}
        out, other = self.loss(weight=corner), self.loss(**moved)
        touched = out.target != other.target
        assert touched.any(), "the corner of the clip is nowhere in the target"
        assert torch.equal(touched, out.weight > 0), "the corner's weight is not where the corner is"
        (reached,) = torch.autograd.grad(out.loss, out.prediction)
        assert not (reached.bool() & ~touched).any(), "a weight in a corner has a gradient outside of it"

    def experts_divide_the_noise_levels(self) -> None:
        if len(self.variant.denoisers) < 2:
            return
        for timestep, expert in zip(self.variant.timesteps, self.variant.denoisers, strict=True):
            found = {name.split(".")[0] for name, g in self.gradients(self.loss(timestep)).items() if g.any()}
            assert found == {expert}, f"at timestep {timestep:g} the gradient is in {found}, not in {expert}"

    def answers_from_memory_are_the_same(self, timesteps: Sequence[float]) -> None:
        """What the frozen parts said, written and read back, gives the same loss, and they are not asked again."""
        answers = load(*dump(self.step.answers(CAPTION, self.row)))
        for seed, timestep in enumerate(timesteps):
            asked = self.loss(timestep, seed=seed)
            expected = self.gradients(asked)
            with called_parts(self.pipe, self.step.denoisers) as called:
                recalled = self.loss(timestep, seed=seed, answers=answers)
            # What is asked about the noised clip is asked each time.
            assert called <= self.step._doors.closed, f"asked again, and not about the noised clip: {called}"
            assert torch.equal(asked.loss, recalled.loss), "answers from memory change the loss"
            found = self.gradients(recalled)
            assert all(map(torch.equal, expected.values(), found.values())), "answers from memory change the gradient"

    def checkpointing_changes_nothing(self) -> bool:
        """False where the denoiser has none."""
        modules = [getattr(self.pipe, name) for name in self.variant.denoisers]
        if not all(module._supports_gradient_checkpointing for module in modules):
            return False
        plain = self.loss()
        expected = self.gradients(plain)
        try:
            for module in modules:
                module.enable_gradient_checkpointing()
        except ValueError:
            return False  # claimed by the class, and refused by diffusers
        out = self.loss()
        found = self.gradients(out)
        for module in modules:
            module.disable_gradient_checkpointing()
        worst = difference(found, expected, out.loss.detach(), plain.loss.detach())
        assert worst.gradient < GRADIENT_TOLERANCE, f"gradient checkpointing changes the gradient: {worst}"
        return True

    def predicts(self) -> str:
        """What the denoiser is trained to say, from the target's own shares of clip and noise."""
        level = self.step.resolve_timestep(self.variant.timesteps[0])
        zero = torch.zeros_like(self.latents)
        # The clip that is zero for the pipeline, whatever units its VAE has.
        origin = self.loss(latents=zero, noise=zero)
        of_noise = _share(self.loss(latents=zero).target, origin.target, self.placed(self.noise), origin.weight)
        ones = torch.ones_like(zero)
        scale = self.placed(ones, units=True) - self.placed(zero, units=True)
        of_clip = _share(self.loss(latents=ones, noise=zero).target, origin.target, scale, origin.weight)
        signal, sigma = level.signal, level.sigma
        norm = (signal**2 + sigma**2) ** 0.5
        kinds = {
            "noise": (0.0, 1.0),
            "clip": (1.0, 0.0),
            "noise − clip": (-1.0, 1.0),
            "clip − noise": (1.0, -1.0),
            "velocity": (-sigma / norm, signal / norm),
        }
        if of_noise * of_clip < 0:  # EDM preconditioning, of data with some spread
            spread = (-of_noise / of_clip * sigma) ** 0.5
            kinds[f"EDM output, data spread {spread:.1f}"] = (
                sigma / spread / (sigma**2 + spread**2) ** 0.5,
                -spread / (sigma**2 + spread**2) ** 0.5,
            )
        for kind, (clip, noise) in kinds.items():
            if abs(of_clip - clip) < 0.01 and abs(of_noise - noise) < 0.01:
                return kind
        return f"{of_clip:.2f}·clip + {of_noise:.2f}·noise"

    def placed(self, values: Tensor, units: bool = False) -> Tensor:
        learnt = self.step._learnt
        return learnt.map.arrive.gather((learnt.map.latents if units else learnt.map.place)(values))

    def layout(self) -> str:
        """Which of batch, channel, time, height and width each dimension of the sample at `scheduler.step` counts."""
        learnt, shape = self.step._learnt, self.step.latent_shape
        if len(learnt.parts) > 1:
            return "a step a frame"
        counted = {}
        for axis, letter in enumerate("CTHW"):
            number = torch.arange(float(shape[axis])).reshape([-1 if i == axis else 1 for i in range(4)]).expand(shape)
            own = learnt.map.decode.ungather(learnt.map.to_vae(number), fill=torch.nan)
            counted[letter] = learnt.map.arrive.gather(own, fill=torch.nan)
        words = []
        for dim in range(counted["C"].ndim):
            varies = "".join(letter for letter, number in counted.items() if (number.diff(dim=dim).abs() > 0).any())
            words.append(varies or "B")
        # Of frames of which all but one are given, no number varies.
        unseen = [dim for dim, word in enumerate(words) if word == "B" and counted["C"].shape[dim] > 1]
        for dim, letter in zip(unseen, (letter for letter in "CTHW" if letter not in "".join(words)), strict=False):
            words[dim] = letter
        # Where one dimension counts several, latents are packed: tokens of places, or of patches with their channels.
        return " ".join(word if len(word) == 1 else "S" if "T" in word else "C" for word in words)


@contextmanager
def called_parts(pipe: Any, denoisers: Collection[str]) -> Iterator[set[str]]:
    """Names of the components, other than denoisers, of which anything is run: fills while it is open."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    shared = {id(module) for name in denoisers for module in parts[name].modules()}
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: called.add(name))
        for name, part in parts.items()
        for module in part.modules()
        if not list(module.children()) and id(module) not in shared
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _share(target: Tensor, origin: Tensor, of: Tensor, weight: Tensor) -> float:
    """How much of `of` is in target − origin, where there is weight."""
    here = weight > 0
    return float(((target - origin)[here] * of[here]).sum() / of[here].square().sum())


def _half_precision(variant: Variant, full: Clip) -> HalfPrecision:
    """In bf16 the step is the one by hand, and its gradient points where that of fp32 does."""
    half = Clip(variant, variant.build(torch.bfloat16), latents=full.latents)
    ours, single = half.loss(), full.loss()
    of_single = difference(half.gradients(ours), full.gradients(single), ours.loss.detach(), single.loss.detach())
    assert of_single.cosine > variant.half_cosine, f"bf16 is far from fp32: {of_single}"
    half.answers_from_memory_are_the_same(variant.timesteps[:1])  # in bf16 it is the answers that differ
    by_hand = None
    if variant.training_step is not None:
        by_hand = compare(variant, half.pipe, half.step, variant.timesteps[0], weighted=True)
        assert by_hand.loss < BF16_LOSS_TOLERANCE, f"in bf16 not the loss of the step by hand: {by_hand}"
        assert by_hand.gradient < BF16_GRADIENT_TOLERANCE, f"in bf16 not the gradient of the step by hand: {by_hand}"
    return HalfPrecision(by_hand, of_single)
