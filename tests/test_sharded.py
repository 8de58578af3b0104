"""Training with the denoiser shared out among processes, by `accelerate launch` and FSDP2, and what launches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig
from safetensors.torch import load_file

from hf_motive.corpus import load_clips
from hf_motive.pipelines import PipelineStep
from hf_motive.training import MotiveTrainer, MotiveTrainingArguments
from hf_motive.training.sharding import as_placed, check_sharding, gathered
from hf_motive.training.weights import TrainedWeights
from tests.clips import write_corpus
from tests.families import wan
from tests.families.registry import variants

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "examples" / "accelerate"
CLIP = {"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH}
JOB = {
    **CLIP,
    "max_steps": 4,
    "save_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "disable_tqdm": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "sample_inference_steps": 2,
    "ema_decay": 0.5,
    "report_to": "none",
}
LORA = ["--use_peft", "true", "--lora_r", "4", "--lora_alpha", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    wan.build().save_pretrained(folder / "pipeline")
    write_corpus(folder / "clips", range(5))
    write_corpus(folder / "held_out", range(100, 103))  # an odd number: the last is one process's alone
    places = {
        "model_name_or_path": folder / "pipeline",
        "dataset": folder / "clips",
        "eval_dataset": folder / "held_out",
        "encodings": folder / "encodings",
        "sample_count": 1,
        "threads": 1,
    }
    settings = {name: str(place) if isinstance(place, Path) else place for name, place in places.items()}
    (folder / "job.yaml").write_text(json.dumps({**JOB, **settings}))
    return folder


@pytest.fixture(scope="module")
def sharded(folder):
    """Two processes: all weights with averages; the same in two goes; a LoRA."""
    job = ["--config", str(folder / "job.yaml"), "--output_dir"]
    whole = ["--ema", "true", "--save_pipeline", "true"]
    parts = [
        [*job, str(folder / "sharded"), *whole],
        [*job, str(folder / "resumed"), *whole, "--max_steps", "2", "--sample_count", "0"],
        [*job, str(folder / "resumed"), *whole, "--sample_count", "0"],
        [*job, str(folder / "sharded_lora"), *LORA],
    ]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "fsdp.yaml")]
    command += ["--main_process_port", "0", "tests/fsdp_on_cpu.py", "train.py", *parts[0]]
    for part in parts[1:]:
        command += ["--then", *part]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result.stdout + result.stderr


def alone(folder: Path, name: str, **options) -> Path:
    """One process, with twice the batch."""
    lora = options.pop("peft_config", None)
    settings = {**JOB, **options, "encodings": str(folder / "encodings"), "sample_count": 0}
    args = MotiveTrainingArguments(str(folder / name), per_device_train_batch_size=2, **settings)
    pipe = WanPipeline.from_pretrained(folder / "pipeline")
    clips, held_out = load_clips(folder / "clips"), load_clips(folder / "held_out")
    trainer = MotiveTrainer(pipe, args, clips, held_out, peft_config=lora)
    trainer.train()
    trainer.save_model()
    return folder / name


def same(ours: Path, theirs: Path, base: Path | None = None) -> None:
    one, two = load_file(ours), load_file(theirs)
    assert one.keys() == two.keys()
    off = max((one[name] - two[name]).abs().max().item() for name in one)
    before = load_file(base) if base else {name: torch.zeros(()) for name in one}
    moved = max((one[name] - before[name]).abs().max().item() for name in one)
    print(f"two processes and one: {off:.1e}; the training moved {moved:.1e}")
    assert off < 1e-3 * moved


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def test_all_weights_are_those_of_one_process_with_twice_the_batch(folder, sharded):
    assert sharded.count("Training all weights") == 3  # once a run, not once a process
    one, two, base = alone(folder, "alone", ema=True), folder / "sharded", folder / "pipeline"
    same(one / WEIGHTS, two / WEIGHTS, base / WEIGHTS)  # the averages
    same(one / "checkpoint-4" / WEIGHTS, two / "checkpoint-4" / WEIGHTS, base / WEIGHTS)  # the last step
    assert not torch.equal(*(load_file(two / at / WEIGHTS)["proj_out.weight"] for at in ("", "checkpoint-4")))
    logs = [json.loads((at / "checkpoint-4" / "trainer_state.json").read_text())["log_history"] for at in (one, two)]
    compared = {"loss", "grad_norm", "eval_loss", "eval_motion_loss", "eval_motion_loss_t250"}
    for ours, theirs in zip(*logs, strict=True):
        for name in compared & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    assert not list(two.glob("checkpoint-4/pytorch_model_fsdp*"))  # the weights are there once


def test_what_was_shared_out_is_saved_whole(folder, sharded):
    output = folder / "sharded"
    loaded = WanTransformer3DModel.from_pretrained(output, subfolder="transformer")
    pipe = WanPipeline.from_pretrained(output)  # --save_pipeline
    saved = load_file(output / WEIGHTS)
    for part in (loaded, pipe.transformer):
        assert all(torch.equal(value, saved[name]) for name, value in part.state_dict().items())
    assert {"README.md", "model.json", "weights.json"} <= {path.name for path in output.iterdir()}
    for step in ("step-000000", "step-000004", "compare"):
        assert (output / "samples" / step / "00-a-square-goes-left.mp4").stat().st_size > 1000


def test_it_goes_on_where_it_was_stopped(folder, sharded):
    assert sharded.count("'clips_seen': 2,") == 3  # the second go of `resumed` begins at its third step
    for at in ("", "checkpoint-4"):
        one, two = (load_file(folder / name / at / WEIGHTS) for name in ("sharded", "resumed"))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_lora_is_that_of_one_process(folder, sharded):
    config = LoraConfig(r=4, lora_alpha=12)
    one, two = alone(folder, "alone_lora", peft_config=config), folder / "sharded_lora"
    same(one / "pytorch_lora_weights.safetensors", two / "pytorch_lora_weights.safetensors")
    pipe = WanPipeline.from_pretrained(folder / "pipeline")
    pipe.load_lora_weights(str(two))
    assert [config.lora_alpha for config in pipe.transformer.peft_config.values()] == [12]


# -------------------------------------------------------------------------------------------------- where it is cut


@pytest.mark.parametrize("name", ["wan2.1", "modelscope", "kandinsky5-t2v", "hunyuanvideo"])
def test_every_family_is_cut_at_its_blocks(process_group, name):
    """The loss and the gradient are those of the denoiser in one piece; a list without a name is enough."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    variant = variants()[name]
    pixels = torch.rand(variant.num_frames, 3, variant.height, variant.width) * 2 - 1
    found = []
    for cut in (False, True):
        step = PipelineStep(variant.build(), num_frames=variant.num_frames, height=variant.height, width=variant.width)
        module = TrainedWeights(step.pipeline).module
        if cut:
            names = module._no_split_modules
            for block in [part for part in module.modules() if type(part).__name__ in names]:
                fully_shard(block)
            fully_shard(module)
            assert sum(isinstance(part, FSDPModule) for part in module.modules()) > 2
        latents, noise, at = step.encode(pixels), step.noise(3), step.scheduled(500)
        loss = module(lambda step=step, at=at: step.loss(latents, "a square", noise=noise, timestep=at).loss)  # noqa: B023
        loss.backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        whole = [gradient.full_tensor() if cut else gradient for gradient in gradients]
        found.append((loss.item(), sum(gradient.double().square().sum().item() for gradient in whole)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)  # float32: cut, a sum is taken in another order


def test_parts_and_the_whole(process_group):
    from torch.distributed.fsdp import fully_shard

    linear = torch.nn.Linear(3, 5).requires_grad_(False)
    linear.bias.requires_grad_(True)
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    fully_shard(linear)
    assert gathered(linear, trained=False, keep=False) == {}
    assert set(gathered(linear, trained=True, keep=True)) == {"bias"}
    state = {name: as_placed(before[name] + 1, value) for name, value in linear.state_dict().items()}
    linear.load_state_dict(state)
    after = gathered(linear, trained=False, keep=True)
    assert all(torch.equal(after[name], before[name] + 1) for name in before)


# --------------------------------------------------------------------------------------------------------- launching


def test_what_would_hang_is_refused(tmp_path, monkeypatch):
    args = MotiveTrainingArguments(str(tmp_path))
    check_sharding(args, ("transformer", "transformer_2"))
    monkeypatch.setattr(type(args), "world_size", 2)
    check_sharding(args, ("transformer", "transformer_2"))
    for launched in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        with monkeypatch.context() as launcher:
            launcher.setenv(launched, "true")
            launcher.setenv("FSDP_VERSION", "2")
            check_sharding(args, ("transformer",))
            with pytest.raises(ValueError, match="denoiser='transformer' and denoiser='transformer_2'"):
                check_sharding(args, ("transformer", "transformer_2"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        check_sharding(args, ("transformer",))


@pytest.mark.parametrize(
    "name, launcher, said",
    [
        ("two_processes", "multi_gpu", {}),
        ("multi_gpu", "multi_gpu", {}),
        ("fsdp", "use_fsdp", {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}),
        ("deepspeed_zero2", "use_deepspeed", {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
        ("deepspeed_zero3", "use_deepspeed", {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}),
    ],
)
def test_accelerate_reads_the_settings(name, launcher, said):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    settings = ["--config_file", str(CONFIGS / f"{name}.yaml"), "examples/train.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(settings))
    assert getattr(arguments, launcher) and arguments.num_processes == 2
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    if launcher == "use_deepspeed":
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    assert said.items() <= environment.items()
