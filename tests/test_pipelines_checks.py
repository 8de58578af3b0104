"""`PipelineStep` leaves a pipeline as it was, gives the gradient it promises, and refuses by name what does not fit.

Whether the gradient is the right one is the matter of test_pipelines_oracles.py.
"""

from __future__ import annotations

import copy
import gc
import json
import weakref

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from hf_motive.pipelines import PipelineError, PipelineStep, StepOutput
from hf_motive.pipelines.learn import _agree
from hf_motive.pipelines.observation import Observation
from tests.families.common import example_pixels
from tests.families.compare import pipeline_step
from tests.families.registry import variants
from tests.families.svd import first_frame
from tests.families.wan import tiny_vae

CAPTION = "a red disc crosses the picture"


# ---------------------------------------------------------------------------------------------- real tiny pipelines


def value(loss: Tensor) -> float:
    return float(loss.detach())


class Made:
    """A family's pipeline with its step and one encoded clip."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32):
        self.family = variants()[name]
        self.pipe = self.family.build(dtype=dtype)
        self.step = pipeline_step(self.family, self.pipe)
        self.pixels = example_pixels(self.family.num_frames, self.family.height, self.family.width)
        self.latents, self.noise = self.step.encode(self.pixels), self.step.noise(seed=7)

    def loss(
        self, timestep: float = 751, weight: Tensor | None = None, caption: str = CAPTION, center: bool = False
    ) -> StepOutput:
        return self.step.loss(
            self.latents,
            caption,
            noise=self.noise,
            timestep=timestep,
            weight=weight,
            example={"pixels": self.pixels},
            center=center,
        )

    def gradients(self, loss: Tensor) -> dict[str, Tensor | None]:
        names, parameters = zip(
            *(
                (f"{name}.{key}", parameter)
                for name, denoiser in self.step.denoisers.items()
                for key, parameter in denoiser.named_parameters()
            ),
            strict=True,
        )
        return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))

    def gradient(self, loss: Tensor) -> Tensor:
        """All gradients as one vector, float32; none counts as zero."""
        parts = [g.flatten().float() for g in self.gradients(loss).values() if g is not None]
        return torch.cat(parts)

    def generate(self) -> Tensor:
        """Two denoising steps of the pipeline's own call, to latents or pixels."""
        arguments = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        own = self.step._conditioning.arguments(CAPTION, {"pixels": self.pixels})
        result = self.pipe(**{**own, **arguments})
        return torch.as_tensor(result.frames)


@pytest.fixture(scope="module")
def made():
    """Families by name, built once for the module."""
    kept: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in kept:
            kept[name] = Made(name)
        return kept[name]

    return make


UNTOUCHED = ("wan2.2-a14b", "cogvideox-dpm", "ltx-video", "stable-video-diffusion")


def state(pipe: DiffusionPipeline) -> dict:
    """All that a step could leave behind on a pipeline, its scheduler, its modules and in the process."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {
        "pipeline": {name: id(value) for name, value in vars(pipe).items()},
        "scheduler": copy.deepcopy({k: repr(v) for k, v in vars(pipe.scheduler).items()}),
        "modules": {
            (name, key): (
                # What the pipeline's own cache_context leaves on a denoiser at its first call.
                set(vars(module)) - {"_diffusers_hook"},
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                module.training,
            )
            for name, part in modules.items()
            for key, module in part.named_modules()
        },
        "grad": torch.is_grad_enabled(),
        "rng": torch.get_rng_state().tolist(),
        "parameter grads": sum(p.grad is not None for part in modules.values() for p in part.parameters()),
    }


@pytest.mark.parametrize("name", UNTOUCHED)
def test_a_pipeline_is_as_it_was_after_a_step(name):
    family = variants()[name]
    pipe = family.build()
    pipe.set_progress_bar_config(desc="mine", disable=True)
    for denoiser in family.denoisers:
        getattr(pipe, denoiser).train()  # no dropout in these
    fresh = Made.__new__(Made)
    fresh.family, fresh.pipe = family, pipe
    fresh.pixels = example_pixels(family.num_frames, family.height, family.width)
    before = vars(pipe).copy()
    fresh.step = pipeline_step(family, pipe)
    assert vars(pipe) == before
    generated = fresh.generate()
    fresh.latents, fresh.noise = fresh.step.encode(fresh.pixels), fresh.step.noise(seed=7)  # VAEs keep a cache
    before = state(pipe)
    fresh.step = pipeline_step(family, pipe)
    assert state(pipe) == before, "construction left something behind"
    for timestep in family.timesteps:
        fresh.gradient(fresh.loss(timestep).loss)
    assert state(pipe) == before
    assert pipe._progress_bar_config == {"desc": "mine", "disable": True}
    assert torch.equal(fresh.generate(), generated)


def test_a_pipeline_is_as_it_was_after_a_failure(made):
    one = made("ltx-video")
    before = state(one.pipe)

    def fail(module, inputs, output):
        raise RuntimeError("out of luck")

    hook = one.pipe.transformer.transformer_blocks[0].register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of luck") as caught:
            one.loss()
    finally:
        hook.remove()
    assert "while hf_motive called LTXPipeline(" in caught.value.__notes__[0]
    assert state(one.pipe) == before
    one.loss()


def test_grad_mode_of_the_caller_does_not_matter(made):
    one = made("ltx-video")
    expected = one.gradient(one.loss().loss)
    with torch.no_grad():
        out = one.loss()
        assert not torch.is_grad_enabled()
    assert torch.equal(one.gradient(out.loss), expected)


@pytest.mark.parametrize("name", ["wan2.1", "hunyuanvideo", "animatediff"])
def test_two_steps_are_equal_bit_for_bit(made, name):
    one = made(name)
    first = one.loss()
    expected = one.gradient(first.loss)
    torch.manual_seed(123)  # what happened before does not matter
    one.loss(timestep=100, caption="another clip")
    second = one.loss()
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(one.gradient(second.loss), expected)
    assert torch.equal(one.step.noise(3), pipeline_step(one.family, one.pipe).noise(3))


def test_only_the_denoiser_is_in_the_graph():
    one = Made("wan2.1")
    for part in (one.pipe.text_encoder, one.pipe.vae, one.pipe.transformer):
        part.requires_grad_(True)
    one.loss().loss.backward()
    assert all(p.grad is None for part in (one.pipe.text_encoder, one.pipe.vae) for p in part.parameters())
    assert all(p.grad is not None for p in one.pipe.transformer.parameters())


@pytest.mark.parametrize(("timestep", "expert"), [(940, "transformer"), (500, "transformer_2")])
def test_the_noise_level_chooses_the_expert(made, timestep, expert):
    one = made("wan2.2-a14b")
    gradients = one.gradients(one.loss(timestep).loss)
    reached = {name.split(".")[0] for name, gradient in gradients.items() if gradient is not None}
    assert reached == {expert}


@pytest.mark.parametrize("name", ["wan2.1", "cogvideox-ddim", "hunyuanvideo"])
def test_gradient_checkpointing_changes_nothing(name):
    one = Made(name)
    plain = one.loss()
    expected = one.gradient(plain.loss)
    one.pipe.transformer.enable_gradient_checkpointing()
    kept = []
    hook = one.pipe.transformer.register_forward_hook(lambda m, i, o: kept.append(m.gradient_checkpointing))
    out = one.loss()
    hook.remove()
    assert kept == [True]
    assert torch.equal(out.loss, plain.loss)
    torch.testing.assert_close(one.gradient(out.loss), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


# Where a corner of the clip lies in each pipeline's own layout, written by hand.
UNPACK = {
    "wan2.1": lambda x, pipe, shape: x[0],  # (1, C, T, h, w)
    "cogvideox-ddim": lambda x, pipe, shape: x[0].transpose(0, 1),  # (1, T, C, h, w)
    "stable-video-diffusion": lambda x, pipe, shape: x[0].transpose(0, 1),
    "ltx-video": lambda x, pipe, shape: x[0].T.reshape(shape),  # (1, T·h·w, C)
}


@pytest.mark.parametrize("name", UNPACK)
def test_a_weight_in_a_corner_touches_only_that_corner(made, name):
    one = made(name)
    _, frames, height, width = one.step.latent_shape
    corner = torch.zeros(frames, height, width)
    corner[-1, :2, :1] = 2.0
    out = one.loss(weight=corner)
    (touched,) = torch.autograd.grad(out.loss, out.prediction)
    assert torch.equal(
        UNPACK[name](touched, one.pipe, one.step.latent_shape) != 0, (corner > 0).expand(one.step.latent_shape)
    )
    error = UNPACK[name]((out.prediction - out.target) ** 2, one.pipe, one.step.latent_shape)
    assert value(out.loss) == pytest.approx(value((corner * error).mean()), rel=1e-5)


@pytest.mark.parametrize("name", UNPACK)
def test_a_centred_error_is_less_its_mean_over_time(made, name):
    one = made(name)
    ramp = torch.arange(1.0, 1 + one.step.latent_shape[1])[:, None, None].expand(one.step.latent_shape[1:])
    out = one.loss(weight=ramp, center=True)
    error = UNPACK[name](out.prediction - out.target, one.pipe, one.step.latent_shape)
    expected = (ramp * (error - error.mean(1, keepdim=True)) ** 2).mean()
    assert value(out.loss) == pytest.approx(value(expected), rel=1e-4) != value(one.loss(weight=ramp).loss)
    assert UNPACK[name](out.error, one.pipe, one.step.latent_shape).mean(1).abs().max() < 1e-5
    (own,) = torch.autograd.grad(out.loss, out.prediction, retain_graph=True)
    (hand,) = torch.autograd.grad(expected, out.prediction, retain_graph=True)
    assert (own - hand).norm() < 1e-4 * hand.norm()
    part = one.step.part_loss(one.loss(center=True), ramp)
    assert value(part) == pytest.approx(value(out.loss), rel=1e-5)


def test_frames_that_are_given_are_not_in_the_mean_over_time(made):
    """The first latent frame of this pipeline is the image's: its error is none, and the others' mean is theirs."""
    one = made("wan2.2-5b-i2v")
    out = one.loss(center=True)
    error, plain = (one.step._learnt.map.arrive.ungather(part)[0] for part in (out.error, out.prediction - out.target))
    assert error[:, 0].abs().max() == 0
    torch.testing.assert_close(error[:, 1:], plain[:, 1:] - plain[:, 1:].mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
    still = PipelineStep(made("wan2.1").pipe, num_frames=1, height=32, width=48)
    with pytest.raises(PipelineError, match="of 1 frames one latent frame is denoised.*take longer clips"):
        still.loss(still.noise(1), CAPTION, noise=still.noise(2), timestep=751, center=True)


@pytest.mark.parametrize("name", ["wan2.1", "ltx-video", "stable-video-diffusion"])
def test_a_weight_of_ones_is_the_plain_loss(made, name):
    one = made(name)
    plain, ones = one.loss(), one.loss(weight=torch.ones(one.step.latent_shape[1:]))
    assert torch.equal(plain.loss, ones.loss)
    assert value(plain.loss) == pytest.approx(value(((plain.prediction - plain.target) ** 2).mean()), rel=1e-6)


def test_encode_is_the_mode_of_the_posterior(made):
    video, images = made("wan2.1"), made("animatediff")
    with torch.no_grad():
        expected = video.pipe.vae.encode(video.pixels.transpose(0, 1)[None]).latent_dist.mode()[0]
        assert torch.equal(video.latents, expected)
        expected = images.pipe.vae.encode(images.pixels).latent_dist.mode().transpose(0, 1)
        torch.testing.assert_close(images.latents, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"pixels must be \(F, 3, H, W\) = \(9, 3, 32, 48\), got \(8, 3, 32, 48\)"):
        video.step.encode(video.pixels[1:])


def test_timesteps_are_the_nearest_of_the_schedule(made):
    wan, mochi, svd = made("wan2.1").step, made("mochi").step, made("stable-video-diffusion").step
    assert wan.resolve_timestep(751).timestep == 751
    assert wan.resolve_timestep(751).sigma == pytest.approx(0.751, abs=1e-3)
    assert wan.resolve_timestep(1000).position == 0
    # A schedule that counts up: the argument is still the noise level, the answer the scheduler's own number.
    assert mochi.resolve_timestep(751).timestep == pytest.approx(249, abs=2)
    assert mochi.resolve_timestep(751).sigma == pytest.approx(0.751, abs=2e-3)
    # A schedule of 0.25·ln sigma: by position.
    first, last = svd.resolve_timestep(1000), svd.resolve_timestep(0)
    assert (first.position, last.position) == (0, 998)
    assert first.sigma == pytest.approx(700, rel=1e-3)
    assert first.timestep == pytest.approx(0.25 * torch.tensor(first.sigma).log().item(), rel=1e-3)
    for wrong in (-1, 1001):
        with pytest.raises(ValueError, match=r"timestep must be in \[0, 1000\]"):
            wan.resolve_timestep(wrong)


def test_settings_are_json_and_know_the_weights():
    family = variants()["ltx-video"]
    pipe = family.build()
    step = pipeline_step(family, pipe)
    settings = json.loads(json.dumps(step.settings()))
    assert settings == step.settings()
    assert (settings["pipeline"], settings["dtype"]) == ("LTXPipeline", "float32")
    assert (settings["num_frames"], settings["height"], settings["width"]) == (
        family.num_frames,
        family.height,
        family.width,
    )
    assert settings == pipeline_step(family, family.build()).settings(), "the same weights have the same digest"
    with torch.no_grad():
        next(pipe.transformer.parameters()).view(-1)[0] += 1e-3
    changed = step.settings()
    assert {key for key in settings if settings[key] != changed[key]} == {"weights"}
    components = settings["weights"]
    assert {key for key in components if components[key] != changed["weights"][key]} == {"transformer"}
    with torch.no_grad():
        next(pipe.vae.parameters()).view(-1)[0] += 1e-3
    assert step.settings()["weights"]["vae"] != components["vae"], "another VAE gives other features"


def test_an_image_pipeline_asks_for_the_clip(made):
    one = made("stable-video-diffusion")
    with pytest.raises(PipelineError, match=r"it is conditioned on image. Pass the clip.*example="):
        one.step.loss(one.latents, CAPTION, noise=one.noise, timestep=751)
    # The last frame in place of the first, from a column of the user's own.
    blank, last = first_frame(torch.zeros_like(one.pixels)), first_frame(one.pixels[-1:])
    options = {"conditioning": lambda example: {"image": example["still"]}, "example": {"still": blank}}
    given = pipeline_step(one.family, one.pipe, **options)
    out = given.loss(one.latents, CAPTION, noise=one.noise, timestep=751, example={"still": last})
    assert not torch.equal(out.prediction, one.loss().prediction)
    out = given.loss(one.latents, CAPTION, noise=one.noise, timestep=751, example={"still": first_frame(one.pixels)})
    assert torch.equal(out.loss, one.loss().loss)


# ------------------------------------------------------------------------------------- a pipeline that can be broken


class ToyDenoiser(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, channels: int = 4):
        super().__init__()
        self.mix = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, latents: Tensor, t: Tensor) -> Tensor:
        return self.mix(latents) * (1 + 1e-3 * t)


class ToyPipeline(DiffusionPipeline):
    """The shortest honest pipeline: a real VAE and scheduler, and a denoiser of one layer. Faults are subclasses."""

    def __init__(self, transformer, vae, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)

    def prepare_latents(self, shape, generator):
        return torch.randn(shape, generator=generator) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def predict(self, latents, t, prompt):
        return self.transformer(latents, t)

    def sample(self, latents, prompt):
        return latents

    def finish(self, latents):
        return 1.5 * latents + 0.25

    def timesteps(self):
        return self.scheduler.timesteps

    @torch.no_grad()
    def __call__(self, prompt, height, width, num_frames, num_inference_steps=50, guidance_scale=5.0, generator=None):
        assert guidance_scale == 1.0
        self.scheduler.set_timesteps(num_inference_steps)
        latents = self.prepare_latents((1, 4, (num_frames - 1) // 4 + 1, height // 8, width // 8), generator)
        for t in self.timesteps():
            scale = getattr(self.scheduler, "scale_model_input", lambda latents, t: latents)
            prediction = self.predict(scale(latents, t), t, prompt)
            latents = self.scheduler.step(prediction, t, self.sample(latents, prompt)).prev_sample
        return self.vae.decode(self.finish(latents)).sample


def toy(cls=ToyPipeline, scheduler=None, **options) -> PipelineStep:
    torch.manual_seed(0)
    pipe = cls(ToyDenoiser(), tiny_vae(seed=0), scheduler or FlowMatchEulerDiscreteScheduler())
    return PipelineStep(pipe, **{"num_frames": 9, "height": 32, "width": 48, **options})


def toy_loss(step: PipelineStep, caption: str = CAPTION, timestep: float = 600, **options) -> StepOutput:
    latents = torch.randn(step.latent_shape, generator=torch.Generator().manual_seed(1))
    return step.loss(latents, caption, **{"noise": step.noise(2), "timestep": timestep, **options})


def test_the_toy_is_sound():
    step = toy()
    out = toy_loss(step)
    latents, noise = torch.randn(step.latent_shape, generator=torch.Generator().manual_seed(1)), step.noise(2)
    torch.testing.assert_close(out.target[0], noise - (latents - 0.25) / 1.5, rtol=1e-5, atol=1e-5)
    assert out.loss.requires_grad


class CurvedDecode(ToyPipeline):
    def finish(self, latents):
        return latents.tanh()


class ClampedDecode(ToyPipeline):
    """Affine where the probes are, not where latents are."""

    def finish(self, latents):
        return latents.clamp(min=-0.5)


class BlurredDecode(ToyPipeline):
    def finish(self, latents):
        return latents + 0.5 * latents.roll(1, -1)


class IgnoresLatents(ToyPipeline):
    def sample(self, latents, prompt):
        return torch.ones_like(latents)


class Rescales(ToyPipeline):
    def sample(self, latents, prompt):
        return 2 * latents


class Disturbs(ToyPipeline):
    """Only with some prompts: what was learned does not hold for the clip."""

    def sample(self, latents, prompt):
        return latents + 0.1 * (prompt == CAPTION)


class OtherSample(ToyPipeline):
    def sample(self, latents, prompt):
        return latents[:, :, 1:] if prompt == CAPTION else latents

    def predict(self, latents, t, prompt):
        return super().predict(latents, t, prompt)[:, :, 1 if prompt == CAPTION else 0 :]


class Detaches(ToyPipeline):
    def predict(self, latents, t, prompt):
        return super().predict(latents, t, prompt).detach()


class TwoOutputs(ToyPipeline):
    def predict(self, latents, t, prompt):
        return super().predict(latents, t, prompt).repeat(1, 2, 1, 1, 1)


class Remembers(ToyPipeline):
    calls = 0

    def predict(self, latents, t, prompt):
        Remembers.calls += 1
        return super().predict(latents, t, prompt) + 0.1 * Remembers.calls


class StartsLoud(ToyPipeline):
    def prepare_latents(self, shape, generator):
        return 3 * super().prepare_latents(shape, generator)


class OwnLoop(ToyPipeline):
    def timesteps(self):
        return [self.scheduler.timesteps[0]] * 3


class NoStep(ToyPipeline):
    def timesteps(self):
        return []


class OtherDoor(ToyPipeline):
    prepare_latents = None

    @torch.no_grad()
    def __call__(self, prompt, height, width, num_frames, num_inference_steps=50):
        return None


class NoFrames(ToyPipeline):
    @torch.no_grad()
    def __call__(self, prompt, height, width, num_inference_steps=50):
        return None


class NoDecode(ToyPipeline):
    @torch.no_grad()
    def __call__(self, prompt, height, width, num_frames, num_inference_steps=50, generator=None):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = self.prepare_latents((1, 4, 3, 4, 6), generator)
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(self.predict(latents, t, prompt), t, latents).prev_sample
        return latents


class CurvedStep(FlowMatchEulerDiscreteScheduler):
    def step(self, model_output, timestep, sample, return_dict=True):
        output = super().step(model_output, timestep, sample)
        output.prev_sample = output.prev_sample + output.prev_sample.abs()
        return output


class SilentStep(DDIMScheduler):
    """Neither an estimate of the clip nor a prediction type that is documented."""

    def step(self, model_output, timestep, sample, return_dict=True):
        return BaseOutput(prev_sample=sample)


class BrokenSchedule(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, device=None):
        super().set_timesteps(num_inference_steps)
        self.timesteps = self.timesteps * float("nan")


AT_CONSTRUCTION = [
    (CurvedDecode, r"cannot be followed to vae\.decode: the map is not a gather and a per-element affine map"),
    (BlurredDecode, r"cannot be followed to vae\.decode: the map is not"),
    (ClampedDecode, r"the decode map does not reproduce random latents \(off by up to"),
    (IgnoresLatents, r"cannot be followed to scheduler\.step: what was put in does not change what arrives"),
    (Rescales, r"do not arrive at scheduler\.step as they are: they are rescaled"),
    (Remembers, r"two passes with the same inputs do not agree"),
    (StartsLoud, r"initial latents have a standard deviation of .*FlowMatchEulerDiscreteScheduler says 1"),
    (OwnLoop, r"denoises in more than one round although its schedule was cut to one timestep"),
    (TwoOutputs, r"is given a model output \(1, 8, 3, 4, 6\) for a sample \(1, 4, 3, 4, 6\)"),
    (NoStep, r"was over without scheduler\.step, where"),
    (NoDecode, r"was over without vae\.decode, where"),
    (OtherDoor, r"it has no prepare_latents method"),
    (NoFrames, r"no argument for the number of frames \(num_frames, frames,"),
]


@pytest.mark.parametrize(("cls", "message"), AT_CONSTRUCTION, ids=[cls.__name__ for cls, _ in AT_CONSTRUCTION])
def test_what_does_not_fit_is_refused_at_construction(cls, message):
    with pytest.raises(PipelineError, match=rf"^{cls.__name__}: .*{message}"):
        toy(cls)


AT_A_STEP = [
    (Disturbs, r"the injected latents did not arrive at scheduler\.step: its sample is off by up to 0\.1"),
    (OtherSample, r"was given \(1, 4, 2, 4, 6\), expected \(1, 4, 3, 4, 6\)"),
    (Detaches, r"carries no gradient: the pipeline or the denoiser detaches it"),
]


@pytest.mark.parametrize(("cls", "message"), AT_A_STEP, ids=[cls.__name__ for cls, _ in AT_A_STEP])
def test_what_does_not_hold_for_a_clip_is_refused_at_its_step(cls, message):
    step = toy(cls)
    with pytest.raises(PipelineError, match=rf"^{cls.__name__}: .*{message}"):
        toy_loss(step)


def test_passes_that_disagree_are_told_from_rounding():
    output = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        one = output.to(dtype)
        assert _agree(one, one * (1 + torch.finfo(dtype).eps))
        assert not _agree(one, one * 1.3)


def test_what_is_not_finite_is_refused_before_the_first_clip():
    class Overflows(ToyPipeline):
        def predict(self, latents, t, prompt):
            return super().predict(latents, t, prompt) / 0

    with pytest.raises(PipelineError, match=r"Overflows: what it predicts in torch\.float32 is not finite"):
        toy(Overflows)
    pipe = toy().pipeline
    encode = pipe.vae.encode

    def overflows(pixels):
        encoded = encode(pixels)
        encoded.latent_dist.mean.fill_(torch.inf)
        return encoded

    pipe.vae.encode = overflows
    with pytest.raises(PipelineError, match=r"its VAE encodes to values that are not finite in torch\.float32: load"):
        PipelineStep(pipe, num_frames=9, height=32, width=48)


def test_nothing_is_kept_of_a_step_that_was_dropped():
    """No cycle holds a graph: on an accelerator nobody would collect it before memory is out."""
    step = toy()
    toy_loss(step)
    gc.collect()
    gc.disable()
    try:
        out = toy_loss(step)
        kept = weakref.ref(out.prediction)
        del out
        assert kept() is None
        step = toy()  # nor of learning a pipeline
        living = [thing for thing in gc.get_objects() if type(thing) is Observation]
        assert not living
    finally:
        gc.enable()


class DrawsNoise(ToyPipeline):
    """Random numbers of its own, from the global generator."""

    def predict(self, latents, t, prompt):
        return super().predict(latents, t, prompt) + torch.randn(latents.shape)


def test_what_a_pipeline_draws_for_itself_is_seeded_and_leaves_no_trace():
    step = toy(DrawsNoise)
    first, before = toy_loss(step), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(toy_loss(step).prediction, first.prediction)
    torch.set_rng_state(before)
    toy_loss(step)
    assert torch.equal(torch.get_rng_state(), before)
    step = toy(scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    before = torch.get_rng_state()
    toy_loss(step)
    assert torch.equal(torch.get_rng_state(), before)


def test_schedulers_that_are_not_understood_are_refused():
    with pytest.raises(PipelineError, match=r"^ToyPipeline: the step of its CurvedStep is not understood"):
        toy_loss(toy(scheduler=CurvedStep()))
    silent = SilentStep(prediction_type="intuition")
    with pytest.raises(PipelineError, match=r"^ToyPipeline: the step of its SilentStep.*prediction_type='intuition'"):
        toy_loss(toy(scheduler=silent))
    with pytest.raises(PipelineError, match=r"^ToyPipeline: its BrokenSchedule gives a schedule with non-finite"):
        toy(scheduler=BrokenSchedule())
    step = toy()
    step.pipeline.scheduler.set_shift(2.0)
    with pytest.raises(PipelineError, match=r"^ToyPipeline: its schedule changed between calls: timestep 599.599"):
        toy_loss(step)


def test_a_pipeline_without_a_denoiser_or_a_gradient_is_refused():
    pipe = toy().pipeline
    with pytest.raises(PipelineError, match="no denoiser: no component is called transformer"):
        PipelineStep(ToyPipeline(None, pipe.vae, pipe.scheduler), num_frames=9, height=32, width=48)
    step = toy()
    step.pipeline.transformer.requires_grad_(False)
    with pytest.raises(PipelineError, match=r"no denoiser parameter requires one\. Call requires_grad_\(\)"):
        toy_loss(step)


def test_what_has_the_wrong_shape_is_refused():
    step = toy()
    with pytest.raises(ValueError, match=r"noise must have shape \(4, 3, 4, 6\), got \(4, 3, 4, 5\)"):
        toy_loss(step, noise=torch.zeros(4, 3, 4, 5))
    with pytest.raises(ValueError, match=r"weight must have shape \(3, 4, 6\), got \(4, 3, 4, 6\)"):
        toy_loss(step, weight=torch.ones(4, 3, 4, 6))
    step = toy(num_frames=10)  # rounded to 9 by the pipeline, and by its VAE
    assert step.latent_shape == (4, 3, 4, 6)
    message = r"9 frames of 32×48 encode to latents \(4, 3, 4, 6\), but .* \(4, 2, 4, 6\)"
    with pytest.raises(PipelineError, match=message):
        toy(RoundsFrames)
    with pytest.raises(PipelineError, match=message):
        toy(RoundsFrames, check=False).encode(torch.zeros(9, 3, 32, 48))


class RoundsFrames(ToyPipeline):
    def prepare_latents(self, shape, generator):
        return super().prepare_latents((*shape[:2], shape[2] - 1, *shape[3:]), generator)


class KeepsFirstFrame(ToyPipeline):
    """Conditions on its first latent frame: keeps its own values there, and writes it over the result."""

    def prepare_latents(self, shape, generator):
        latents = super().prepare_latents(shape, generator)
        latents[:, :, 0] = 5.0
        return latents

    def finish(self, latents):
        latents[:, :, 0] = 5.0
        return super().finish(latents)


def test_what_a_pipeline_conditions_on_keeps_its_values_and_is_out_of_the_loss():
    step = toy(KeepsFirstFrame)
    seen = []
    hook = step.pipeline.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = toy_loss(step, weight=2 * torch.ones(step.latent_shape[1:]))
    hook.remove()
    assert (seen[0][:, :, 0] == 5).all()
    assert not (seen[0][:, :, 1:] == 5).any()
    assert torch.equal(out.weight[0, 0].amax((1, 2)), torch.tensor([0.0, 2.0, 2.0]))
    error = (out.prediction - out.target)[:, :, 1:]
    assert value(out.loss) == pytest.approx(value(2 * (error**2).mean()), rel=1e-5)


# --------------------------------------------------------------------------------------------------- every scheduler

VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
SCHEDULERS = [
    (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    (FlowMatchEulerDiscreteScheduler, {"shift_terminal": 0.1}),
    (FlowMatchEulerDiscreteScheduler, {"invert_sigmas": True}),
    (FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}),
    (FlowMatchHeunDiscreteScheduler, {}),
    (UniPCMultistepScheduler, FLOW),
    (DPMSolverMultistepScheduler, FLOW),
    (DEISMultistepScheduler, FLOW),
    *(
        (scheduler, {**VP, "prediction_type": kind})
        for scheduler in (
            DDIMScheduler,
            DDPMScheduler,
            DPMSolverMultistepScheduler,
            UniPCMultistepScheduler,
            EulerDiscreteScheduler,
            EulerAncestralDiscreteScheduler,
            HeunDiscreteScheduler,
            LMSDiscreteScheduler,
            PNDMScheduler,
            LCMScheduler,
        )
        for kind in ("epsilon", "v_prediction")
    ),
    (DDIMScheduler, {"prediction_type": "sample", "clip_sample": False}),
    (
        DDIMScheduler,
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    (DPMSolverMultistepScheduler, {**VP, "algorithm_type": "sde-dpmsolver++"}),
    (DPMSolverMultistepScheduler, {**VP, "use_karras_sigmas": True}),
    (DEISMultistepScheduler, VP),
]


@pytest.mark.parametrize(
    ("cls", "config"),
    SCHEDULERS,
    ids=[f"{cls.__name__}-{'-'.join(map(str, config.values()))}" for cls, config in SCHEDULERS],
)
@pytest.mark.parametrize("timestep", [751, 250])
def test_the_target_is_what_the_prediction_type_means(cls, config, timestep):
    """Noise, velocity, flow or clip, from the definitions; the levels of noise and clip must belong together."""
    step = toy(scheduler=cls(**config))
    level = step.resolve_timestep(timestep)
    latents = (torch.randn(step.latent_shape, generator=torch.Generator().manual_seed(1)) - 0.25) / 1.5
    noise = step.noise(2)
    signal, sigma = level.signal, level.sigma
    kind = config.get("prediction_type", "epsilon")
    if issubclass(cls, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)):
        kind = "flow_prediction"
    if kind == "flow_prediction":
        assert signal + sigma == pytest.approx(1, abs=1e-6)
        assert sigma == pytest.approx(timestep / 1000, abs=0.01)
        expected = latents - noise if config.get("invert_sigmas") else noise - latents
    else:
        assert signal == 1 or signal**2 + sigma**2 == pytest.approx(1, abs=1e-5)
        velocity = (signal * noise - sigma * latents) / (signal**2 + sigma**2) ** 0.5
        expected = {"epsilon": noise, "v_prediction": velocity, "sample": latents}[kind]
    target = toy_loss(step, timestep=timestep).target[0]
    torch.testing.assert_close(target, expected, rtol=2e-4, atol=2e-4)
