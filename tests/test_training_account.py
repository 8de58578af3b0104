"""What a training says of itself on the card, and what of its folder is published, after real trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from hf_motive.corpus import load_clips
from hf_motive.hub import ModelFacts
from hf_motive.hub.models import published_files
from hf_motive.training import MotiveTrainer, MotiveTrainingArguments
from tests.clips import write_corpus
from tests.families import wan

SETTINGS = {"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH, "disable_tqdm": True}
SETTINGS |= {"sample_count": 0, "max_steps": 3}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three, of which one is no video."""
    folder = tmp_path_factory.mktemp("clips")
    write_corpus(folder, range(3))
    (folder / "001.mp4").write_bytes(b"no video")
    return load_clips(folder)


def trainer_of(folder: Path, clips, held_out=None, peft_config=None, base_model=None, **settings) -> MotiveTrainer:
    args = MotiveTrainingArguments(
        str(folder / "run"), encodings=str(folder / "encodings"), **{**SETTINGS, "save_strategy": "no", **settings}
    )
    return MotiveTrainer(wan.build(), args, clips, held_out, peft_config=peft_config, base_model=base_model)


def test_the_best_step_clips_that_failed_and_a_base_without_a_name(clips, tmp_path):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "learning_rate": 0.5}
    trainer = trainer_of(tmp_path, clips, clips.select([0, 2]), **settings)
    said = "the best step, whose weights these are"
    assert said not in trainer.facts().training
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(losses, key=lambda step: losses[step])
    assert best < 3, "the last weights are the best: the test shows nothing"
    trainer.save_model()
    facts = ModelFacts.load(tmp_path / "run")
    assert facts.training[said] == best and facts.training["optimizer steps"] == 3
    assert (facts.clips, facts.clips_of, facts.selection) == (2, 3, None)
    assert facts.base_model == "" and not facts.base_is_hub
    card = (tmp_path / "run" / "README.md").read_text()
    assert "fine-tuned on 2 clips.**" in card and "| Could not be used | 1 |" in card
    assert 'from_pretrained("PUT THE BASE MODEL HERE"' in card and "`base_model=` was not given" in card


def test_a_relative_folder_stays_a_folder_wherever_the_card_is_written(clips, tmp_path, monkeypatch):
    (tmp_path / "somebody" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    trainer = trainer_of(tmp_path, clips, base_model="somebody/mine")
    monkeypatch.chdir("/")
    facts = trainer.facts()
    assert not facts.base_is_hub and facts.published().base_model == "mine"
    assert trainer_of(tmp_path, clips, base_model="somebody/mine").facts().base_is_hub


def test_an_adapter_over_a_whole_pipeline_is_published_alone(clips, tmp_path):
    full = trainer_of(tmp_path, clips, save_pipeline=True)
    full.save_model()
    files = published_files(tmp_path / "run", ModelFacts.load(tmp_path / "run"))
    assert {"model_index.json", "vae/config.json", "transformer/config.json"} <= set(files)
    full.save_model()
    assert set(published_files(tmp_path / "run", ModelFacts.load(tmp_path / "run"))) == set(files)

    adapter = trainer_of(tmp_path, clips, peft_config=LoraConfig(r=2))
    adapter.save_model()
    files = published_files(tmp_path / "run", ModelFacts.load(tmp_path / "run"))
    assert set(files) == {"weights.json", "pytorch_lora_weights.safetensors"}
    assert not (tmp_path / "run" / "model_index.json").exists()
    assert json.loads((tmp_path / "run" / "weights.json").read_text())["kind"] == "lora"

    trainer_of(tmp_path, clips, save_pipeline=False).save_model()
    files = published_files(tmp_path / "run", ModelFacts.load(tmp_path / "run"))
    weights = {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}
    assert set(files) == {"weights.json"} | weights


def test_a_card_names_the_precision_of_each_part(clips, tmp_path):
    pipe = wan.build(torch.bfloat16)
    pipe.vae.to(torch.float32)
    args = MotiveTrainingArguments(str(tmp_path / "run"), encodings=str(tmp_path / "encodings"), **SETTINGS)
    facts = MotiveTrainer(pipe, args, clips, base_model="me/mine").facts()
    assert 'torch_dtype={"default": torch.bfloat16, "vae": torch.float32}' in facts.how_to_load
