"""The trainer against steps written by hand, and against itself: dealt out differently, stopped, resumed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from hf_motive import MotiveAttributor
from hf_motive.corpus import load_clips
from hf_motive.encoded_blob import read_encoding
from hf_motive.errors import NonFiniteError
from hf_motive.pipelines import PipelineStep
from hf_motive.training import MotiveTrainer, MotiveTrainingArguments
from hf_motive.training.account import describe, facts, report
from hf_motive.training.draws import Draw, seed_of
from hf_motive.training.plan import last_checkpoint
from hf_motive.video import load_clip
from tests.clips import write_corpus
from tests.families import wan, wan22, wan_i2v

CLIP = {"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH, "fps": 16.0}
QUIET = {"disable_tqdm": True, "save_strategy": "no", "sample_count": 0, "logging_steps": 1}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache of encodings for this file."""
    return str(tmp_path_factory.mktemp("encodings"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_corpus(folder, range(6))
    ranks = [3.0, 0.0, float("nan"), 1.0, 2.0, 4.0]
    votes = [0.0, 3.0, float("nan"), 2.0, 1.0, 0.0]
    return (
        load_clips(folder)
        .add_column("influence", [-rank for rank in ranks])
        .add_column("influence_rank", ranks)
        .add_column("influence_votes", votes)
    )


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    write_corpus(folder, range(100, 102))
    return load_clips(folder)


@pytest.fixture
def made(tmp_path, cache, clips):
    """A function that makes a trainer, of a pipeline with the same weights each time."""

    def make(pipe=None, dataset=None, held_out=None, *, folder="run", trainer=None, **settings):
        settings = {**CLIP, **QUIET, "max_steps": 3, "learning_rate": 1e-3, "encodings": cache, **settings}
        args = MotiveTrainingArguments(str(tmp_path / folder), **settings)
        return MotiveTrainer(pipe or wan.build(), args, dataset or clips, held_out, **(trainer or {}))

    return make


def weights(trainer: MotiveTrainer) -> dict[str, torch.Tensor]:
    trained = trainer.weights.module.named_parameters()
    return {name: value.detach().clone() for name, value in trained if value.requires_grad}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


# -------------------------------------------------------------------------------------------- one step, by hand


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_loss_and_gradient_are_those_of_a_step_written_by_hand(made, dropout):
    """From the mp4 files on, with the text encoder and the VAE, and no PipelineStep at all."""
    trainer = made(per_device_train_batch_size=3, caption_dropout=dropout)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: value.grad.clone() for name, value in trainer.pipe.transformer.named_parameters()}

    pipe = wan.build()
    losses = []
    for clip in batch["clips"]:
        row = trainer.train_dataset.dataset[clip.row]
        pixels = load_clip(row["video"], trainer.args.clip_standard)
        draw = trainer.draws(clip.draw)
        assert draw.without_caption == (dropout == 1.0)
        place = trainer.step.scheduled(draw.position)
        noise = torch.randn(trainer.step.latent_shape, generator=torch.Generator().manual_seed(draw.seed))
        caption = "" if dropout else row["caption"]
        losses.append(wan.training_step(pipe, pixels, caption, noise, place.timestep, sigma=place.sigma))
    expected = torch.stack(losses).mean()
    expected.backward()
    off = abs(loss.item() / expected.item() - 1)
    difference = sum(((found[n] - p.grad) ** 2).sum() for n, p in pipe.transformer.named_parameters()) ** 0.5
    norm = sum((p.grad**2).sum() for p in pipe.transformer.parameters()) ** 0.5
    print(f"loss {off:.1e}, gradient {difference / norm:.1e}")
    assert off < 1e-5
    assert difference / norm < 1e-5


def test_loss_and_gradient_are_those_of_a_pipeline_step(made):
    """Bit for bit, with everything asked anew."""
    trainer = made(per_device_train_batch_size=2)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    pipe = wan.build()
    step = PipelineStep(pipe, num_frames=CLIP["num_frames"], height=CLIP["height"], width=CLIP["width"])
    losses = []
    for clip in batch["clips"]:
        row, draw = trainer.train_dataset.dataset[clip.row], trainer.draws(clip.draw)
        latents = step.encode(load_clip(row["video"], trainer.args.clip_standard))
        caption = "" if draw.without_caption else row["caption"]
        place = step.scheduled(draw.position)
        losses.append(step.loss(latents, caption, noise=step.noise(draw.seed), timestep=place, seed=draw.seed).loss)
    torch.stack(losses).mean().backward()
    found = dict(trainer.pipe.transformer.named_parameters())
    for name, parameter in pipe.transformer.named_parameters():
        assert torch.equal(parameter.grad, found[name].grad), name


def test_an_epoch_asks_neither_vae_nor_text_encoder(made, clips, held_out):
    made(held_out=held_out, folder="before")  # encodes
    trainer = made(held_out=held_out, caption_dropout=0.5, max_steps=12, eval_strategy="steps", eval_steps=4)
    asked = []
    pipe = trainer.pipe
    pipe.text_encoder.register_forward_pre_hook(lambda *_: asked.append("text"))
    encode = pipe.vae.encode
    pipe.vae.encode = lambda *args, **kwargs: asked.append("vae") or encode(*args, **kwargs)
    trainer.train()
    assert "vae" not in asked
    assert asked.count("text") <= 4  # of no caption, when it was first left out


# ------------------------------------------------------------------------- the same clips, dealt out in other ways


@pytest.mark.parametrize("batch, accumulation", [(1, 4), (2, 2)])
def test_accumulation_gives_what_a_larger_batch_gives(made, batch, accumulation):
    whole = made(per_device_train_batch_size=4)
    whole.train()
    parts = made(folder="parts", per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    parts.train()
    off = largest_difference(weights(whole), weights(parts))
    norms = [[entry["grad_norm"] for entry in t.state.log_history if "grad_norm" in entry] for t in (whole, parts)]
    print(f"accumulation {batch}x{accumulation}: {off:.1e}")
    assert off < 2e-5  # Adam's steps are of 1e-3: a hundredth of one
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora", "average"])
def test_stopped_and_resumed_it_ends_where_it_would_have(made, kind):
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 3}
    settings |= {"ema": kind == "average", "lr_scheduler_type": "cosine", "ema_decay": 0.9}

    def trainer(folder):
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3) if kind == "lora" else None
        return made(folder=folder, trainer={"peft_config": lora}, **settings)

    straight = trainer("straight")
    straight.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(Path(straight.args.output_dir) / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert largest_difference(weights(straight), weights(resumed)) == 0
    if kind == "average":
        with straight.averaging.applied(), resumed.averaging.applied():
            assert largest_difference(weights(straight), weights(resumed)) == 0


def test_a_run_that_is_over_is_not_trained_again(made):
    """6 clips, 4 a step: its three steps end in the middle of an epoch."""
    settings = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 3}
    first = made(**settings)
    first.train()
    again = made(**settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert largest_difference(weights(first), weights(again)) == 0
    assert sorted(path.name for path in Path(first.args.output_dir).glob("checkpoint-*")) == ["checkpoint-3"]


def test_a_checkpoint_that_is_not_whole_is_passed_over(made, caplog):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = made(**settings)
    trainer.train()
    output = Path(trainer.args.output_dir)
    (output / "checkpoint-4" / "trainer_state.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(output) == str(output / "checkpoint-2")
    assert "checkpoint-4 is not whole" in caplog.text
    again = made(**settings)
    again.train(resume_from_checkpoint=True)
    assert largest_difference(weights(trainer), weights(again)) == 0
    with pytest.raises(ValueError, match="no checkpoint, or not a whole one"):
        made(folder="third", **settings).train(resume_from_checkpoint=str(output / "samples"))


def test_the_arguments_are_not_written_to(made, clips):
    trainer = made(max_steps=-1, num_train_epochs=2)
    args = MotiveTrainingArguments(trainer.args.output_dir, **CLIP, **QUIET, num_train_epochs=2)
    for count in (1, 3):
        few = MotiveTrainer(wan.build(), args, clips.select(range(count)))
        assert few.args.max_steps == 2 * count
    assert args.max_steps == -1


def test_evaluating_and_sampling_change_nothing(made, held_out):
    plain = made()
    plain.train()
    watched = made(
        held_out=held_out,
        folder="watched",
        eval_strategy="steps",
        eval_steps=1,
        sample_count=1,
        sample_steps=1,
        sample_inference_steps=2,
    )
    watched.train()
    assert largest_difference(weights(plain), weights(watched)) == 0


def test_checkpointing_gives_the_same_gradient(made):
    plain, again = made(), made(folder="again", activation_checkpointing=True)
    plain.train()
    again.train()
    assert again.weights.module.is_gradient_checkpointing
    assert largest_difference(weights(plain), weights(again)) < 1e-6


def test_a_pipeline_of_half_precision_learns_in_full_precision(made):
    trainer = made(wan.build(dtype=torch.bfloat16), max_steps=2, learning_rate=1e-5)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert trainer.pipe.text_encoder.dtype == torch.bfloat16
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(after)  # steps of 1e-5 would be lost in bfloat16


def test_bf16_is_what_trains_evaluates_and_samples(made, held_out):
    trainer = made(held_out=held_out, max_steps=1, bf16=True, sample_count=1, sample_inference_steps=2)
    seen = set()
    block = trainer.pipe.transformer.blocks[0]
    block.attn1.to_q.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    for part in (trainer.train, trainer.evaluate, trainer.sample):
        seen.clear()
        part()
        assert seen == {torch.bfloat16}, part
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in weights(trainer).values())
    assert trainer.precision == "bfloat16"


def test_dropout_is_another_at_every_step(made):
    """The pipeline's call is seeded: with one seed for all, a LoRA would always drop the same units."""
    trainer = made(trainer={"peft_config": LoraConfig(r=4, lora_dropout=0.5)}, max_steps=1)
    for name, value in trainer.weights.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(1))
    trainer.model.train()
    trainer.draws = lambda number: Draw(position=500, seed=7, call_seed=number, without_caption=False)

    def loss(draw):
        return trainer.clip_loss(trainer.train_dataset[draw, 0]).item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


# ----------------------------------------------------------------------------------------------- which clips, how long


def names(trainer):
    return [trainer.train_dataset.name(row) for row in range(len(trainer.train_dataset))]


def test_the_best_clips_are_chosen(made):
    assert names(made(fraction=0.4)) == ["001.mp4", "003.mp4"]
    assert names(made(count=3)) == ["001.mp4", "003.mp4", "004.mp4"]
    assert names(made(min_votes=2)) == ["001.mp4", "003.mp4"]
    assert names(made(count=1, select_by="influence")) == ["001.mp4"]
    trainer = made(trainer={"select": lambda row: row["influence_rank"] > 2})
    assert names(trainer) == ["000.mp4", "005.mp4"]
    everything = made()
    assert len(everything.train_dataset) == 6 and everything.selection is None
    assert "2 of the 5" in made(fraction=0.4).selection


@pytest.mark.parametrize(
    "settings, trainer, message",
    [
        ({"min_votes": 9}, {}, "no row is selected.*min_votes"),
        ({}, {"select": lambda row: False}, "no row is selected"),
        ({"fraction": 0.5}, {"select": lambda row: True}, "not by both"),
        ({"eval_strategy": "epoch"}, {}, "needs eval_dataset="),
        ({"fraction": 0.1, "select_by": "nothing"}, {}, "'nothing'.*Score them first"),
        ({"denoiser": "unet"}, {}, "no denoiser 'unet'.*transformer"),
    ],
)
def test_what_cannot_be_trained_is_said(made, settings, trainer, message):
    with pytest.raises(ValueError, match=message):
        made(trainer=trainer, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"fraction": 1.5}, "above 0 and at most 1"),
        ({"fraction": 0.1, "count": 3}, "one of fraction, count and min_votes"),
        ({"clips_seen": 5, "max_steps": 5}, "clips_seen and max_steps"),
        ({"caption_dropout": 2}, "between 0 and 1"),
        ({"eval_timesteps": [2000]}, r"\[0, 1000\]"),
        ({"timestep_sampling": "gauss"}, "uniform, logit_normal or mode"),
        ({"auto_find_batch_size": True}, "gradient_accumulation_steps"),
        ({"torch_compile": True}, r"pipe\.transformer\.compile"),
        ({"num_train_epochs": 0}, "above 0"),
    ],
)
def test_settings_are_checked(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        MotiveTrainingArguments(str(tmp_path), **settings)


def test_a_bad_clip_costs_its_row(made, clips, tmp_path, caplog):
    folder = tmp_path / "with bad ones"
    write_corpus(folder, range(3))
    (folder / "001.mp4").write_bytes(b"no video")
    with caplog.at_level(logging.WARNING):
        trainer = made(dataset=load_clips(folder))
    assert names(trainer) == ["000.mp4", "002.mp4"]
    assert "1 of 3 training clips are left out: 1 unreadable" in caplog.text


@pytest.mark.parametrize("fraction", [None, 0.6])
def test_two_selections_can_be_trained_at_equal_cost(made, fraction):
    trainer = made(fraction=fraction, max_steps=-1, clips_seen=13, per_device_train_batch_size=2)
    trainer.train()
    assert trainer.state.global_step == 7
    last = trainer.state.log_history[-1]
    assert last["clips_seen"] == 14
    assert last["epoch"] == pytest.approx(14 / len(trainer.train_dataset))
    told = facts(trainer).training
    assert told["optimizer steps"] == 7 and told["clips seen"] == 14


def test_epochs_are_passes_over_the_clips(made):
    trainer = made(fraction=0.6, max_steps=-1, num_train_epochs=4, per_device_train_batch_size=2)
    seen = []
    loss = trainer.clip_loss
    trainer.clip_loss = lambda clip: seen.append(clip.row) or loss(clip)
    trainer.train()
    assert sorted(seen) == sorted(list(range(3)) * 4)  # 12 clips in 6 steps, though 3 is odd


def test_encodings_of_a_scoring_are_taken_over(made, clips, caplog):
    attributor = MotiveAttributor(wan.build(), **CLIP, projection_dim=64)
    encoded = attributor.encode(clips)
    trainer = made(dataset=encoded)
    latents = [read_encoding(blob).latents for blob in encoded["encoded"]]
    assert trainer.train_dataset.dataset["encoded"][:] == encoded["encoded"][:]
    assert torch.equal(trainer.train_dataset[0, 2].latents, latents[2])


# ------------------------------------------------------------------------------------------------- how far it has come


def test_the_validation_loss_is_weighted_by_motion(made, held_out):
    trainer = made(held_out=held_out, eval_timesteps=[300.0, 800.0])
    metrics = trainer.evaluate()
    assert metrics == {**metrics, **{k: v for k, v in trainer.evaluate().items() if "loss" in k}}  # the same again
    attributor = MotiveAttributor(wan.build(), **CLIP, projection_dim=64)
    weighted, plain = [], []
    for row in range(2):
        pixels = load_clip(held_out[row]["video"], trainer.args.clip_standard)
        weight, _ = attributor.motion_weight(pixels)
        for timestep in (300.0, 800.0):
            noise = attributor.step.noise(seed_of(trainer.args.seed, "validation", row, timestep))
            latents, caption = attributor.step.encode(pixels), held_out[row]["caption"]
            options = {"noise": noise, "timestep": timestep}
            weighted.append(attributor.step.loss(latents, caption, weight=weight, **options).loss.item())
            plain.append(attributor.step.loss(latents, caption, **options).loss.item())
    assert metrics["eval_motion_loss"] == pytest.approx(sum(weighted) / 4, rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(sum(plain) / 4, rel=1e-5)
    assert metrics["eval_motion_loss_t300"] == pytest.approx((weighted[0] + weighted[2]) / 2, rel=1e-5)


def test_training_helps(made, clips):
    """On the clips that it trains on, the loss falls."""
    trainer = made(dataset=clips.select([0, 1]), held_out=clips.select([0, 1]), max_steps=30, learning_rate=3e-3)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before


def test_the_average_is_evaluated_and_saved(made, held_out, tmp_path):
    trainer = made(held_out=held_out, ema=True, ema_decay=0.99, learning_rate=0.05)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    averaged = trainer.evaluate()["eval_loss"]
    training = weights(trainer)
    with trainer.averaging.applied():
        average = weights(trainer)
    assert largest_difference(training, average) > 0
    trainer.averaging, kept = None, trainer.averaging
    assert trainer.evaluate()["eval_loss"] not in (averaged, first)
    trainer.averaging = kept
    trainer.save_model(str(tmp_path / "saved"))
    from diffusers import WanTransformer3DModel

    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "saved", subfolder="transformer")
    for name, value in loaded.named_parameters():
        assert torch.equal(value, average[f"transformer.{name}"])
    assert largest_difference(weights(trainer), training) == 0


def test_motion_can_weigh_the_training_loss(made, clips):
    trainer = made(motion_weighted=True)
    clip = trainer.train_dataset[5, 2]
    draw = trainer.draws(5)
    caption = "" if draw.without_caption else clip.caption
    options = {"noise": trainer.step.noise(draw.seed), "timestep": trainer.step.scheduled(draw.position)}
    weighted = trainer.step.loss(clip.latents, caption, weight=clip.weight, **options)
    assert trainer.clip_loss(clip).item() == pytest.approx(weighted.loss.item(), rel=1e-6)
    assert weighted.loss.item() < 0.9 * weighted.unweighted.item()
    assert made().train_dataset[5, 2].weight is None


# ---------------------------------------------------------------------------------------------------- bad news


def test_a_loss_that_is_not_finite_stops_the_run(made):
    trainer = made(save_strategy="steps", save_steps=100, max_steps=12)
    bad = 4
    read = trainer.train_dataset.__class__.__getitem__

    def poisoned(self, shown):
        clip = read(self, shown)
        if clip.row == bad:
            clip.latents = clip.latents * 1e30  # its squares are infinite
        return clip

    trainer.train_dataset.__class__ = type("Poisoned", (trainer.train_dataset.__class__,), {"__getitem__": poisoned})
    with pytest.raises(NonFiniteError, match=r"not finite at step (\d+): 004\.mp4 \(timestep") as error:
        trainer.train()
    step = int(str(error.value).split("at step ")[1].split(":")[0])
    kept = Path(trainer.args.output_dir) / f"checkpoint-{step - 1}"
    assert str(kept) in str(error.value)
    again = made(folder="again", max_steps=12)
    again.weights.load(kept)
    assert largest_difference(weights(again), weights(trainer)) == 0
    assert all(value.isfinite().all() for value in weights(again).values())


def test_a_gradient_that_is_not_finite_stops_the_run(made):
    trainer = made()
    before = weights(trainer)
    next(iter(trainer.pipe.transformer.parameters())).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="the gradient is not finite at step 1: .*mp4"):
        trainer.train()
    assert largest_difference(before, weights(trainer)) == 0


def test_a_checkpoint_of_another_training_is_refused(made):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer = made(**settings)
    trainer.train()
    checkpoint = str(Path(trainer.args.output_dir) / "checkpoint-2")
    with pytest.raises(ValueError, match=r"another training \(clips"):
        made(folder="fewer", fraction=0.4, **settings).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="clips a step 1 there and 2 now"):
        made(folder="more", per_device_train_batch_size=2, **settings).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="another"):
        made(wan.build(seed=1), folder="model", **settings).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError):
        lora = {"peft_config": LoraConfig(r=4)}
        made(folder="kind", trainer=lora, **settings).train(resume_from_checkpoint=checkpoint)


# ------------------------------------------------------------------------------------------- what comes of it


def test_what_was_learnt_is_what_is_loaded_and_shown(made, held_out, tmp_path):
    """A run as a user makes it: samples before and after, the model by its own lines, the card."""
    base = tmp_path / "base"
    wan.build().save_pretrained(base)
    lora = LoraConfig(r=4, lora_alpha=12)
    settings = {"sample_count": 2, "sample_inference_steps": 3, "eval_on_start": True, "learning_rate": 0.02}
    trainer = made(
        held_out=held_out,
        fraction=0.4,
        trainer={"peft_config": lora, "base_model": str(base), "corpus": "me/clips", "license": "apache-2.0"},
        **settings,
    )
    assert "on 2 clips (The best 40 % by influence_rank" in describe(trainer)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    output = Path(trainer.args.output_dir)
    shown = json.loads((output / "model.json").read_text())
    assert [sample["caption"] for sample in shown["samples"]] == held_out["caption"][:2]
    before, after = (load_clip(str(output / shown["samples"][0][end])) for end in ("before", "after"))
    assert (before - after).abs().max() > 0.05
    assert (output / "samples" / "compare" / "index.html").exists()
    card = (output / "README.md").read_text()
    assert "- lora" in card and "The best 40 %" in card and "me/clips" in card
    assert str(tmp_path) not in card
    said = report(trainer)
    assert "Validation loss, motion-weighted" in said and f"hf-motive push {output}" in said

    names: dict = {}
    exec(trainer.how_to_load(), names)
    clip = trainer.sampler.clip("a square goes left", seed=3)
    from hf_motive.training.samples import Sampler

    step = PipelineStep(names["pipe"], num_frames=CLIP["num_frames"], height=CLIP["height"], width=CLIP["width"])
    again = Sampler(step, steps=3).clip("a square goes left", seed=3)
    assert torch.equal(clip, again)
    untrained = Sampler(PipelineStep(wan.build(), num_frames=9, height=32, width=48), steps=3)
    assert not torch.equal(clip, untrained.clip("a square goes left", seed=3))


def test_one_expert_is_trained_where_the_pipeline_asks_it(made):
    trainer = made(wan22.build(), denoiser="transformer_2", max_steps=4)
    other = {name: value.clone() for name, value in trainer.pipe.transformer.named_parameters()}
    before = weights(trainer)
    assert all(name.startswith("transformer_2.") for name in before)
    assert {trainer.draws(number).position for number in range(200)} <= set(trainer.step.positions("transformer_2"))
    trainer.train()
    assert largest_difference(before, weights(trainer)) > 0
    assert all(torch.equal(value, other[name]) for name, value in trainer.pipe.transformer.named_parameters())
    both = made(wan22.build(), folder="both", max_steps=24)
    before = weights(both)
    both.train()
    moved = {name.split(".")[0] for name, value in weights(both).items() if not torch.equal(value, before[name])}
    assert moved == {"transformer", "transformer_2"}


def test_the_validation_loss_sees_the_expert_that_is_trained(made, held_out):
    trainer = made(wan22.build(), held_out=held_out, denoiser="transformer", learning_rate=0.05)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_loss"] != after["eval_loss"]
    assert len(made(wan22.build(), held_out=held_out, folder="both").eval_timesteps) == 6
    with pytest.raises(ValueError, match=r"at none of eval_timesteps \[250.0\] is transformer asked"):
        made(wan22.build(), held_out=held_out, folder="wrong", denoiser="transformer", eval_timesteps=[250.0])


def test_a_pipeline_that_is_conditioned_on_the_clip_is_trained(made, held_out):
    trainer = made(wan_i2v.build(), held_out=held_out, max_steps=2, sample_count=1, sample_inference_steps=2)
    asked = []
    encode = trainer.pipe.vae.encode
    trainer.pipe.vae.encode = lambda *args, **kwargs: asked.append("vae") or encode(*args, **kwargs)
    before = weights(trainer)
    trainer.sampler = type("Silent", (), {"write": lambda *_: None})()  # generating asks the VAE, and may
    trainer.train()
    assert largest_difference(before, weights(trainer)) > 0
    assert not asked
    assert facts(trainer).pipeline_tag == "image-to-video"
