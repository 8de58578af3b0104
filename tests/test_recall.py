"""What the frozen parts of a pipeline say is asked once, and only that is kept which is the same when asked again.

That it is, for every variant of every pipeline, is the matter of test_conformance.py.
"""

from __future__ import annotations

import json
import logging
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from hf_motive.pipelines import PipelineError, PipelineStep, recall
from hf_motive.pipelines.answers import Answer, Unread, built, kept
from hf_motive.pipelines.questions import question_of
from hf_motive.pipelines.recall import dump, load
from tests.families.common import example_pixels
from tests.families.compare import pipeline_step
from tests.families.conformance import called_parts
from tests.families.registry import variants
from tests.families.svd import first_frame
from tests.families.wan import tiny_vae
from tests.test_pipelines_checks import CAPTION, ToyDenoiser, ToyPipeline, toy_loss

CPU = torch.device("cpu")


def doors(answers: dict) -> set[str]:
    return {question.rpartition(" ")[0] for question in answers}


class Encoder(ModelMixin, ConfigMixin):
    """Characters to a number for each latent channel, with all that lies between."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Sequential(nn.Embedding(128, 4)), nn.Sequential(nn.Linear(4, 4))

    def forward(self, ids: Tensor) -> BaseModelOutput:
        embedded = self.embed(ids)
        mixed = self.mix(embedded)
        return BaseModelOutput(last_hidden_state=mixed, hidden_states=(embedded, mixed))


class SpeakingPipeline(ToyPipeline):
    """A toy with a text encoder. Faults are subclasses."""

    def __init__(self, transformer, vae, scheduler, text_encoder):
        super(ToyPipeline, self).__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder)

    def ids(self, prompt: str) -> Tensor:
        return torch.tensor([[ord(letter) for letter in prompt]])

    def encode_prompt(self, prompt, device=None):
        return self.text_encoder(self.ids(prompt)).hidden_states[0].mean(1)

    def predict(self, latents, t, prompt):
        said = self.encode_prompt(prompt, device=self._execution_device)
        return self.transformer(latents + 0.1 * said.view(1, -1, 1, 1, 1), t)


def speaking(cls=SpeakingPipeline, encoder=None, denoiser=None, **options) -> PipelineStep:
    torch.manual_seed(0)
    encoder = (encoder or Encoder()).eval()
    pipe = cls(denoiser or ToyDenoiser(), tiny_vae(seed=0), FlowMatchEulerDiscreteScheduler(), encoder)
    return PipelineStep(pipe, **{"num_frames": 9, "height": 32, "width": 48, **options})


def same(step: PipelineStep, answers: dict, **options) -> set[str]:
    """The parts that are run for a loss with these answers, which must be that without."""
    expected = toy_loss(step, **options)
    with called_parts(step.pipeline, step.denoisers) as called:
        found = toy_loss(step, answers=answers, **options)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.prediction, expected.prediction)
    return called


# --------------------------------------------------------------------------------------------------- what is asked


def test_a_caption_is_asked_once():
    step = speaking()
    answers = step.answers(CAPTION)
    assert doors(answers) == {"encode_prompt"}
    assert same(step, answers) == set()
    assert same(step, answers, timestep=20, seed=3) == set()
    assert same(step, answers, caption="another clip") == {"text_encoder"}
    both = {**answers, **step.answers("another clip")}
    assert same(step, both) == same(step, both, caption="another clip") == set()
    assert same(step, step.answers(CAPTION)) == set(), "asked again, the questions have the same digests"


def test_with_every_prompt_known_the_text_encoder_can_go():
    step = speaking()
    answers, expected = step.answers(CAPTION), toy_loss(step)
    step.pipeline.text_encoder = None
    assert torch.equal(toy_loss(step, answers=answers).loss, expected.loss)


class AsksAPart(SpeakingPipeline):
    """Without `encode_prompt`, and not the encoder itself but a part of it: the other does not exist."""

    encode_prompt = None

    def predict(self, latents, t, prompt):
        said = self.text_encoder.embed(self.ids(prompt)).mean(1)
        return self.transformer(latents + 0.1 * said.view(1, -1, 1, 1, 1), t)


def test_a_part_of_a_module_may_be_what_is_asked():
    step = speaking(AsksAPart)
    answers = step.answers(CAPTION)
    assert doors(answers) == {"text_encoder.embed"}
    assert same(step, answers) == set()


class AsksAboutTheNoise(SpeakingPipeline):
    """The encoder is asked about the noised clip, too."""

    def predict(self, latents, t, prompt):
        seen = self.text_encoder((latents.flatten()[:3].abs() * 100).long().clamp(max=127)[None])
        return super().predict(latents + 0.1 * seen.last_hidden_state.mean(), t, prompt)


def test_what_is_asked_about_the_noised_clip_is_asked_each_time():
    step = speaking(AsksAboutTheNoise)
    answers = step.answers(CAPTION)
    assert doors(answers) == {"encode_prompt"}
    assert same(step, answers) == {"text_encoder"}


class Draws(SpeakingPipeline):
    def encode_prompt(self, prompt, device=None):
        return super().encode_prompt(prompt) + torch.rand(4)


class Remembers(SpeakingPipeline):
    """Leaves something behind that is read later."""

    def encode_prompt(self, prompt, device=None):
        self.strength = 0.5 + len(prompt)
        return super().encode_prompt(prompt)

    def predict(self, latents, t, prompt):
        return super().predict(latents, t, prompt) * self.strength


class Changes(SpeakingPipeline):
    """Changes what it was given."""

    def encode_prompt(self, prompt, device=None):
        return SpeakingPipeline.encode_prompt(self, prompt.pop())

    def predict(self, latents, t, prompt):
        given = [prompt, "changed"[:7]]
        given.reverse()
        said = self.encode_prompt(given)
        return self.transformer(latents + len(given) * 0.1 * said.view(1, -1, 1, 1, 1), t)


class Unspeakable(SpeakingPipeline):
    """Asked with something that has no digest."""

    def encode_prompt(self, prompt, device=None):
        return super().encode_prompt(prompt[0])

    def predict(self, latents, t, prompt):
        said = self.encode_prompt((prompt, object()))
        return self.transformer(latents + 0.1 * said.view(1, -1, 1, 1, 1), t)


@pytest.mark.parametrize("cls", [Draws, Remembers, Changes, Unspeakable])
def test_what_does_more_than_answer_is_asked_each_time_and_what_it_asks_is_not(cls, caplog):
    step = speaking(cls)
    with caplog.at_level(logging.WARNING):
        answers = step.answers(CAPTION)
    assert not caplog.records, "it is seen at once, and not by its consequences"
    assert doors(answers) == {"text_encoder"}
    assert same(step, answers) == set()
    assert same(step, answers, seed=5) == set()


class Secretive(SpeakingPipeline):
    """A side effect that nothing shows but the outcome."""

    memory: ClassVar[dict[str, float]] = {}

    def encode_prompt(self, prompt, device=None):
        self.memory["asked"] = self.memory.get("asked", 0.0) + 1.0
        return super().encode_prompt(prompt)

    def predict(self, latents, t, prompt):
        self.memory.clear()
        said = self.encode_prompt(prompt)
        return self.transformer(latents + self.memory.get("asked", 0.0) + said.view(1, -1, 1, 1, 1), t)


def test_a_door_whose_answer_from_memory_is_wrong_is_found_out(caplog):
    step = speaking(Secretive)
    with caplog.at_level(logging.WARNING):
        answers = step.answers(CAPTION)
        step.answers("another clip")
    assert doors(answers) == {"text_encoder"}
    assert same(step, answers) == set()
    assert [record.getMessage() for record in caplog.records] == [
        "Secretive: what its encode_prompt answers from memory is not what it answers; it is asked anew at every step"
    ]


# ---------------------------------------------------------------------------------------------------- what is kept


class TwoEncoders(SpeakingPipeline):
    """What one says is only what the other is asked: large, and not worth keeping."""

    def encode_prompt(self, prompt, device=None):
        return self.text_encoder(self.ids(prompt)).hidden_states[0].repeat(1, 100, 1)

    def predict(self, latents, t, prompt):
        said = self.text_encoder.mix(self.encode_prompt(prompt)).mean(1)
        return self.transformer(latents + 0.1 * said.view(1, -1, 1, 1, 1), t)


def test_only_what_is_read_is_kept():
    step = speaking(AsksTheModule)
    (answer,) = step.answers(CAPTION).values()
    fields = dict(answer.tree["fields"])
    read = answer.tensors[fields["hidden_states"]["tuple"][0]["tensor"]]
    assert read.shape == (1, len(CAPTION), 4)
    assert answer.tensors[fields["last_hidden_state"]["tensor"]] is None
    said = built(answer, CPU)
    assert torch.equal(said.hidden_states[0], read)
    for use in (torch.relu, lambda unread: unread.shape, lambda unread: torch.ones(1) + unread):
        with pytest.raises(RuntimeError, match=r"did not read when the answer was kept.*PipelineStep\.answers\(\)"):
            use(said.last_hidden_state)


class AsksTheModule(SpeakingPipeline):
    encode_prompt = None

    def predict(self, latents, t, prompt):
        said = self.text_encoder(self.ids(prompt)).hidden_states[0].mean(1)
        return self.transformer(latents + 0.1 * said.view(1, -1, 1, 1, 1), t)


def test_what_only_another_question_is_asked_with_is_kept_as_its_digest():
    step = speaking(TwoEncoders)
    answers = load(*dump(step.answers(CAPTION)))
    assert doors(answers) == {"encode_prompt", "text_encoder.mix"}
    sizes = {question.split()[0]: [type(tensor) for tensor in answer.tensors] for question, answer in answers.items()}
    assert sizes == {"encode_prompt": [str], "text_encoder.mix": [Tensor]}
    assert same(step, answers) == set()


def test_what_is_too_large_is_asked_each_time_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(recall, "LARGEST", 10)
    step = speaking()
    with caplog.at_level(logging.WARNING):
        assert step.answers(CAPTION) == step.answers("another clip") == {}
    (record,) = caplog.records
    assert "SpeakingPipeline: what its encode_prompt answers is not kept (it takes 0 MiB" in record.getMessage()
    assert same(step, {}) == {"text_encoder"}


class Said:
    """Of a class that is nobody's."""

    def __init__(self, value):
        self.value = value


class SaysObjects(SpeakingPipeline):
    def encode_prompt(self, prompt, device=None):
        return Said(self.ids(prompt).float().mean())

    def predict(self, latents, t, prompt):
        return self.transformer(latents + 1e-3 * self.encode_prompt(prompt).value, t)


def test_what_cannot_be_written_is_asked_each_time_and_said_once(caplog):
    step = speaking(SaysObjects)
    with caplog.at_level(logging.WARNING):
        assert step.answers(CAPTION) == step.answers("another clip") == {}
    (record,) = caplog.records
    assert "what its encode_prompt answers is not kept (it holds a tests.test_recall.Said)" in record.getMessage()
    assert toy_loss(step, answers=step.answers(CAPTION)).loss.isfinite()


def test_an_answer_is_copied_each_time():
    step = speaking(Overwrites)
    answers = step.answers(CAPTION)
    first = toy_loss(step, answers=answers).loss
    assert torch.equal(toy_loss(step, answers=answers).loss, first)
    assert same(step, answers) == set()


class Overwrites(SpeakingPipeline):
    def predict(self, latents, t, prompt):
        said = self.encode_prompt(prompt)
        latents = latents + 0.1 * said.view(1, -1, 1, 1, 1)
        said.zero_()
        return self.transformer(latents, t)


def test_questions_are_told_apart():
    image = Image.new("P", (2, 2))
    other = image.copy()
    image.putpalette([0, 0, 0, 255, 0, 0])
    other.putpalette([9, 9, 9, 255, 0, 0])
    half, generator = torch.zeros(2, dtype=torch.bfloat16), torch.Generator()
    asked = ["a", "b", image, other, torch.zeros(2), half, np.zeros(2), torch.float16, 1, 1.0, True, None, ["a", 1]]
    found = [question_of("door", (value,), {}) for value in asked]
    assert len(set(found)) == len(asked)
    assert found == [question_of("door", (value,), {"device": "cuda"}) for value in asked]
    assert question_of("door", (CPU, {"a": 1}), {}) == question_of("door", (generator, {"a": 1}), {})
    assert question_of("door", ("a",), {}) != question_of("another", ("a",), {})
    for unknown in (object(), np.array([object()]), torch.zeros(2, device="meta"), [lambda: None]):
        assert question_of("door", (unknown,), {}) is None


# ------------------------------------------------------------------------------------------------ written and read


def rich() -> dict:
    posterior = DiagonalGaussianDistribution(torch.randn(1, 8, 2, 3))
    return {
        "output": AutoencoderKLOutput(latent_dist=posterior),
        "turned": torch.randn(2, 3, 5).permute(2, 0, 1),
        "half": torch.randn(3).to(torch.bfloat16),
        "mask": (torch.rand(2, 2) > 0.5, [torch.arange(3), None, 1.5, True, "é"]),
        "number": torch.tensor(3.0),
        "dtype": torch.float16,
        "empty": torch.zeros(0, 3),
    }


def test_what_is_written_is_read_back_bit_for_bit():
    torch.manual_seed(0)
    value = rich()
    answer, _ = kept(value, CPU)
    tensors, text = dump({"encode_prompt 1": answer, "x 2": Answer(None, ())})
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    back = load(tensors, text)
    assert list(back) == ["encode_prompt 1", "x 2"]
    found = built(back["encode_prompt 1"], CPU)
    assert type(found["output"]) is AutoencoderKLOutput
    assert type(found["output"].latent_dist) is DiagonalGaussianDistribution
    assert torch.equal(found["output"].latent_dist.mode(), value["output"].latent_dist.mode())
    assert found["turned"].stride() == value["turned"].stride()
    for name in ("turned", "half", "number", "empty"):
        assert found[name].dtype == value[name].dtype
        assert torch.equal(found[name], value[name])
    assert torch.equal(found["mask"][0], value["mask"][0])
    assert found["mask"][1][1:] == [None, 1.5, True, "é"]
    assert type(found["mask"]) is tuple
    assert found["dtype"] is torch.float16
    assert built(back["x 2"], CPU) is None


def test_what_stays_on_the_host_comes_back_there():
    """Of a pipeline elsewhere: what it made on the CPU it reads there, and nothing else."""
    elsewhere, value = torch.device("meta"), {"lengths": torch.arange(3)}
    for made_on, expected in ((torch.device("cuda"), CPU), (CPU, elsewhere)):
        tensors, text = dump({"x 1": kept(value, made_on)[0]})
        answer = load(tensors, text)["x 1"]
        assert built(answer, elsewhere)["lengths"].device == expected
        assert torch.equal(built(answer, CPU)["lengths"], value["lengths"])


@pytest.mark.parametrize(
    "tree",
    [
        {"class": "os.system", "fields": []},
        {"class": "torch.nn.Linear", "fields": []},
        {"class": "diffusers.models.attention.Attention", "fields": []},
        {"class": "transformers.nothing.ModelOutput", "fields": []},
        {"dtype": "load"},
        {"tensor": 3},
    ],
)
def test_what_names_something_else_is_not_read(tree):
    text = json.dumps([{"question": "encode_prompt 1", "tree": [{"list": [tree]}], "tensors": []}])
    with pytest.raises(ValueError, match=r"not answers of a pipeline that dump\(\) wrote"):
        load({}, text)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"question": "a 1", "tree": null, "tensors": [{"name": "b"}]}]'])
def test_what_is_no_dump_is_not_read(text):
    if text == "{}":
        assert load({}, text) == {}
        return
    with pytest.raises(ValueError, match="not answers of a pipeline"):
        load({}, text)


def test_a_gap_is_not_a_tensor():
    with pytest.raises(AttributeError):
        Unread().__array__  # noqa: B018
    assert Unread("tensor").stands_for == "tensor"


# ------------------------------------------------------------------------------------------------ a step for training


class Dropped(ToyDenoiser):
    def forward(self, latents: Tensor, t: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(latents, t), 0.5, self.training)


def test_the_seed_is_that_of_the_denoisers_own_dropout():
    step = speaking(denoiser=Dropped().eval())
    step.pipeline.transformer.train()
    answers = step.answers(CAPTION)
    zero, one = toy_loss(step), toy_loss(step, seed=1)
    assert not torch.equal(zero.prediction, one.prediction)
    assert torch.equal(toy_loss(step, seed=0).prediction, zero.prediction)
    assert torch.equal(toy_loss(step, seed=1).prediction, one.prediction)
    assert same(step, answers, seed=1) == set()
    before = torch.get_rng_state()
    toy_loss(step, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_has_no_graph_and_asks_for_no_gradient():
    step = speaking()
    expected = toy_loss(step)
    step.pipeline.transformer.requires_grad_(False)
    with pytest.raises(PipelineError, match="no denoiser parameter requires one"):
        toy_loss(step)
    out = toy_loss(step, grad=False)
    assert not out.loss.requires_grad
    assert not out.prediction.requires_grad
    assert torch.equal(out.loss, expected.loss)


def test_the_loss_without_the_weight_is_beside_that_with():
    step = speaking()
    plain = toy_loss(step)
    assert torch.equal(plain.loss, plain.unweighted)
    weighted = toy_loss(step, weight=torch.rand(step.latent_shape[1:]))
    assert torch.equal(weighted.unweighted, plain.loss)
    assert not torch.equal(weighted.loss, plain.loss)
    assert not weighted.unweighted.requires_grad


def test_positions_are_those_of_each_expert():
    variant = variants()["wan2.2-a14b"]
    step = pipeline_step(variant, variant.build(), check=False)
    high, low = step.positions("transformer"), step.positions("transformer_2")
    assert (high.start, low.stop) == (0, len(step.positions()))
    assert high.stop == low.start, "every position is somebody's"
    for position, name in ((high[-1], "transformer"), (low[0], "transformer_2")):
        place = step.scheduled(position)
        assert place.position == position
        assert place.timestep == step.resolve_timestep(place.timestep).timestep
        out = step.loss(torch.zeros(step.latent_shape), CAPTION, noise=step.noise(0), timestep=place)
        (gradient,) = torch.autograd.grad(out.loss, next(step.denoisers[name].parameters()), allow_unused=True)
        assert gradient is not None
    with pytest.raises(ValueError, match="no denoiser 'unet'; there is transformer, transformer_2"):
        step.positions("unet")
    with pytest.raises(IndexError, match="positions 0 to 998, got 999"):
        step.scheduled(999)
    assert speaking().positions("transformer") == range(0, 999)


def test_generation_is_the_pipelines_own_call():
    variant = variants()["stable-video-diffusion"]
    pixels = example_pixels(variant.num_frames, variant.height, variant.width)
    step = pipeline_step(variant, variant.build(), check=False)
    assert step.reads_rows
    arguments = step.generation(CAPTION, variant.row(pixels))
    assert not {"num_inference_steps", "min_guidance_scale", "max_guidance_scale", "prompt"} & arguments.keys()
    assert arguments["image"].tobytes() == first_frame(pixels).tobytes()
    assert {name: arguments[name] for name in ("num_frames", "height", "width")} == {
        "num_frames": variant.num_frames,
        "height": variant.height,
        "width": variant.width,
    }
    assert variant.call_kwargs.items() <= arguments.items()
    talking = speaking()
    assert not talking.reads_rows
    assert talking.generation(CAPTION) == {"prompt": CAPTION, "num_frames": 9, "height": 32, "width": 48}
    assert speaking(conditioning=lambda example: {}).reads_rows
