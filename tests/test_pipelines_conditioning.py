"""What a clip is conditioned on, and what is denoised beside it: one-layer pipelines, whose ways are subclasses."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from hf_motive.pipelines import PipelineError, PipelineStep, first_frame, video_frames
from tests.families import hunyuan15, text2video_zero
from tests.families.common import example_pixels
from tests.families.compare import pipeline_step
from tests.test_pipelines_checks import CAPTION, ToyPipeline, toy, toy_loss

PIXELS = example_pixels(9, 32, 48)


# ---------------------------------------------------------------- what the call is given


class WantsImage(ToyPipeline):
    """Says `image=None`, and cannot do without: as many do."""

    image_seen = None

    @torch.no_grad()
    def __call__(self, prompt, height, width, num_frames, image=None, num_inference_steps=50, generator=None):
        WantsImage.image_seen = image.resize((width, height))
        return ToyPipeline.__call__(self, prompt, height, width, num_frames, num_inference_steps, 1.0, generator)


def test_an_image_that_the_call_cannot_do_without_is_the_clips_first_frame():
    step = toy(WantsImage)
    assert step.settings()["conditioning"] == {"image": "the clip"}
    toy_loss(step, example={"pixels": PIXELS})
    assert WantsImage.image_seen.tobytes() == first_frame(PIXELS).tobytes()
    with pytest.raises(PipelineError, match=r"WantsImage: it is conditioned on image\. Pass the clip"):
        toy_loss(step)


class TakesVideo(ToyPipeline):
    """Its length is that of its video."""

    @torch.no_grad()
    def __call__(self, prompt, height, width, video=None, num_inference_steps=50, generator=None):
        return ToyPipeline.__call__(self, prompt, height, width, len(video), num_inference_steps, 1.0, generator)


def test_a_video_that_sets_the_length_is_the_clip():
    step = toy(TakesVideo)
    assert step.settings()["conditioning"] == {"video": "the clip"}
    assert toy_loss(step, example={"pixels": PIXELS}).loss.isfinite()
    assert len(video_frames(PIXELS)) == 9


class WantsPose(ToyPipeline):
    @torch.no_grad()
    def __call__(self, prompt, height, width, num_frames, pose, num_inference_steps=50, generator=None):
        assert pose is not None
        return ToyPipeline.__call__(self, prompt, height, width, num_frames, num_inference_steps, 1.0, generator)


def test_what_nobody_can_guess_is_asked_for():
    with pytest.raises(PipelineError, match=r"WantsPose: its call requires pose.*lambda example: \{'pose': example\["):
        toy(WantsPose)
    with pytest.raises(KeyError) as caught:
        toy(WantsPose, conditioning=lambda example: {"pose": example["pose"]})
    assert "example=clips[0]" in caught.value.__notes__[0]
    step = toy(WantsPose, conditioning=lambda example: {"pose": example["pose"]}, example={"pose": 1})
    assert step.settings()["conditioning"] == {"pose": "told"}
    assert toy_loss(step, example={"pose": 2}).loss.isfinite()
    assert toy_loss(toy(WantsPose, call_kwargs={"pose": 1})).loss.isfinite()


def test_a_call_that_fails_by_itself_is_a_refusal_with_its_own_words():
    class Fails(ToyPipeline):
        def finish(self, latents):
            raise IndexError("out of frames")

    with pytest.raises(PipelineError, match=r"Fails: its own call fails .*IndexError: out of frames\. If"):
        toy(Fails)


# ---------------------------------------------------------------- what is conditioned on, found


class Given(ToyPipeline):
    """The first latent frame is given: by how much, and where in the call it is put back, differ."""

    mask = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 3, 1, 1)

    def prepare_latents(self, shape, generator):
        latents = super().prepare_latents(shape, generator)
        return torch.where(self.mask.bool(), 5.0, latents)


class GivenInPrediction(Given):
    def predict(self, latents, t, prompt):
        return super().predict(latents, t, prompt) * (1 - self.mask) + 0.3 * self.mask


class GivenBehindTheStep(Given):
    def finish(self, latents):
        return super().finish(torch.where(self.mask.bool(), 5.0, latents))


@pytest.mark.parametrize("cls", [GivenInPrediction, GivenBehindTheStep])
def test_what_does_not_move_with_the_denoiser_is_conditioning(cls):
    step = toy(cls)
    seen = []
    hook = step.pipeline.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = toy_loss(step)
    hook.remove()
    assert (seen[0][:, :, 0] == 5).all(), "the given frame is the pipeline's own"
    assert torch.equal(out.weight[0, 0].amax((1, 2)), torch.tensor([0.0, 1.0, 1.0]))
    error = (out.prediction - out.target)[:, :, 1:]
    assert float(out.loss.detach()) == pytest.approx(float((error**2).mean().detach()), rel=1e-5)


def test_what_is_given_by_half_is_refused():
    class ByHalf(GivenInPrediction):
        mask = Given.mask / 2

    with pytest.raises(PipelineError, match=r"mixes its prediction with conditioning by parts \(from 0\.5 to 1\)"):
        toy(ByHalf)


# ---------------------------------------------------------------- what is denoised beside the clip


class Padded(ToyPipeline):
    """Denoises a frame more than it decodes."""

    def prepare_latents(self, shape, generator):
        return super().prepare_latents((*shape[:2], shape[2] + 1, *shape[3:]), generator)

    def finish(self, latents):
        return super().finish(latents[:, :, 1:])


def test_padding_that_is_denoised_and_never_decoded_is_refused():
    with pytest.raises(PipelineError, match=r"denoises 96 of 384 latents that it never decodes.*choose a num_frames"):
        toy(Padded)


class WithSound(ToyPipeline):
    """A second stream, on a copy of the scheduler; the denoiser hears it."""

    heard: Tensor

    def prepare_sound_latents(self, generator, sound_latents):
        return torch.randn(1, 16, 8, generator=generator) if sound_latents is None else sound_latents

    @torch.no_grad()
    def __call__(self, prompt, height, width, num_frames, sound_latents=None, num_inference_steps=50, generator=None):
        other = copy.deepcopy(self.scheduler)
        other.set_timesteps(num_inference_steps)
        self.scheduler.set_timesteps(num_inference_steps)
        latents = self.prepare_latents((1, 4, (num_frames - 1) // 4 + 1, height // 8, width // 8), generator)
        sound = self.prepare_sound_latents(generator, sound_latents)
        for t in self.scheduler.timesteps:
            WithSound.heard = sound
            prediction = self.transformer(latents + 0.1 * sound.mean(), t)
            latents = self.scheduler.step(prediction, t, latents).prev_sample
            sound = other.step(0 * sound, t, sound).prev_sample
        return self.vae.decode(self.finish(latents)).sample


def test_a_second_stream_is_silence_noised_like_the_clip():
    step = toy(WithSound)
    level = step.resolve_timestep(250)
    assert toy_loss(step, timestep=1000).prediction.shape == (1, 4, 3, 4, 6)
    noise = WithSound.heard
    toy_loss(step, timestep=250)
    torch.testing.assert_close(WithSound.heard, level.sigma * noise)


def test_a_second_stream_that_is_given_is_refused():
    sound = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(9))
    with pytest.raises(PipelineError, match=r"the second stream that prepare_sound_latents makes is given.*Leave it"):
        toy(WithSound, call_kwargs={"sound_latents": sound})


# ---------------------------------------------------------------- what is encoded


def test_a_vae_that_does_not_look_at_the_whole_clip_is_refused():
    pipe = toy().pipeline
    encode = pipe.vae.encode

    def half(pixels):
        encoded = encode(pixels)
        encoded.latent_dist.mean[..., 3:] = 0.0
        return encoded

    def not_so(pixels):
        raise NotImplementedError("not without tiling")

    pipe.vae.encode = half
    with pytest.raises(PipelineError, match="its VAE does not look at the whole clip: 50% of the latents"):
        PipelineStep(pipe, num_frames=9, height=32, width=48)
    pipe.vae.encode = not_so
    with pytest.raises(PipelineError, match="its VAE does not encode a clip: NotImplementedError: not without tiling"):
        PipelineStep(pipe, num_frames=9, height=32, width=48)


class OtherPixels(ToyPipeline):
    """Its VAE was trained on other pixels than [-1, 1], which only the way out tells."""

    def __init__(self, transformer, vae, scheduler):
        super().__init__(transformer, vae, scheduler)
        self.video_processor = VideoProcessor()

    @torch.no_grad()
    def __call__(self, prompt, height, width, num_frames, num_inference_steps=50, generator=None):
        video = super().__call__(prompt, height, width, num_frames, num_inference_steps, 1.0, generator)
        scale = torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1, 1)
        return self.video_processor.postprocess_video(video * scale + 0.1)


def test_a_vae_of_other_pixels_is_given_them():
    plain, other = toy(), toy(OtherPixels)
    scale = torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(other.encode(PIXELS * scale + 0.1), plain.encode(PIXELS), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- what is left as it was


def test_exchanged_attention_processors_come_back_after_a_refusal():
    variant = text2video_zero.VARIANTS[0]
    pipe = variant.build()
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(PipelineError):
        pipeline_step(variant, pipe)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in before.items())


def test_a_guider_is_left_as_it_was():
    variant = hunyuan15.VARIANTS[0]
    pipe = variant.build()
    guider, before = pipe.guider, dict(vars(pipe.guider))
    step = pipeline_step(variant, pipe)
    pixels = example_pixels(variant.num_frames, variant.height, variant.width)
    step.loss(step.encode(pixels), CAPTION, noise=step.noise(0), timestep=500, example=variant.row(pixels))
    assert pipe.guider is guider
    assert vars(guider) == before
