"""Averages of what is trained: against the formula, in a real training, resumed, and for adapters."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_motive.training.averages import Averaging
from tests.families.wan import tiny_transformer


def moved(module: nn.Module, seed: int) -> None:
    """What an optimizer's step does, near enough."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_the_formulas(warmup):
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    averaging = Averaging(module, decay=0.3, warmup=warmup, update_after_step=1)
    moved(module, 0)
    averaging.update()
    average = module.weight.detach().double().clone()
    for step in range(2, 9):
        moved(module, step)
        averaging.update()
        n = step - 2
        d = min(0.3, (1 - (1 + n) ** (-2 / 3)) if warmup else (1 + n) / (10 + n)) if n > 0 else 0
        average = d * average + (1 - d) * module.weight.detach().double()
    assert averaging.updates == 8
    assert list(averaging.state_dict()) == ["weight"]  # the bias is not trained
    torch.testing.assert_close(averaging.state_dict()["weight"].double(), average)


def test_swapped_in_and_back_out_whatever_happens():
    module = tiny_transformer(0)
    averaging = Averaging(lambda: module.named_parameters(), decay=0.5)
    with averaging.applied():  # nothing is averaged yet
        pass
    for step in range(3):
        moved(module, step)
        averaging.update()
    before, averages = values(module), {k: v.clone() for k, v in averaging.state_dict().items()}
    with averaging.applied():
        assert equal(values(module), averages) and not equal(averages, before)
        with averaging.applied():
            assert equal(values(module), averages)
        assert equal(values(module), averages)
        with pytest.raises(RuntimeError, match="leave it before the next update"):
            averaging.update()
    assert equal(values(module), before)
    with pytest.raises(KeyError), averaging.applied():
        raise KeyError("a sample failed")
    assert equal(values(module), before) and equal(averaging.state_dict(), averages)
    averaging.update()


def test_half_precision_loses_no_small_difference():
    module = nn.Linear(64, 64, bias=False)
    precise = nn.Linear(64, 64, bias=False)
    precise.load_state_dict(module.to(torch.bfloat16).float().state_dict())
    module.to(torch.bfloat16)
    both = [Averaging(part, decay=0.999, min_decay=0.999) for part in (module, precise)]
    for averaging in both:
        averaging.update()
        averaging.update()
    for part in (module, precise):
        part.weight.data += 0.25
    for _ in range(20):
        precise.weight.data.copy_(module.weight.data)
        for averaging in both:
            averaging.update()
    half, whole = (averaging.state_dict()["weight"] for averaging in both)
    assert half.dtype == torch.float32 and torch.equal(half, whole)
    with both[0].applied():
        assert torch.equal(module.weight, whole.to(torch.bfloat16))


def test_an_adapter_alone_is_averaged():
    transformer = tiny_transformer(0).requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    averaging = Averaging(transformer)
    averaging.update()
    assert all("lora_" in name for name in averaging.state_dict()) and len(averaging.state_dict()) == 16
    before = values(transformer)
    moved(transformer, 1)
    with averaging.applied():
        assert equal(values(transformer), before)
    assert not equal(values(transformer), before)


# ------------------------------------------------------------------------------------------------- with a trainer


class Wrapped(nn.Module):
    """A regression that `Trainer` takes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 1)

    def forward(self, x, y):
        return {"loss": ((self.linear(x)[:, 0] - y) ** 2).mean()}


def trained(folder: Path, averaging_of, *, steps: int = 6, resume: str | None = None):
    generator = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(4, generator=generator), "y": torch.randn((), generator=generator)} for _ in range(32)]
    model = Wrapped()
    averaging = averaging_of(model)
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.1,
        save_steps=3, report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
        logging_strategy="no", lr_scheduler_type="constant",
    )  # fmt: skip

    class Saving(Trainer):
        def save_model(self, output_dir=None, _internal_call=False):
            super().save_model(output_dir, _internal_call)
            averaging.save(output_dir)

        def _load_from_checkpoint(self, checkpoint, model=None):
            super()._load_from_checkpoint(checkpoint, model)
            averaging.load(checkpoint)

    Saving(model, arguments, train_dataset=rows, callbacks=[averaging]).train(resume_from_checkpoint=resume)
    return model, averaging


def test_resumed_training_has_the_same_averages_bit_for_bit(tmp_path):
    def averaging_of(model):
        return Averaging(model, decay=0.9)

    model, whole = trained(tmp_path / "whole", averaging_of)
    assert whole.updates == 6  # once an optimizer step, not once a batch
    _, resumed = trained(tmp_path / "again", averaging_of, resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.updates == 6 and equal(resumed.state_dict(), whole.state_dict())
    assert not torch.equal(whole.state_dict()["linear.weight"], model.linear.weight)
    assert sorted(path.name for path in (tmp_path / "whole" / "checkpoint-3").glob("*ema*")) == ["ema.safetensors"]


def test_averages_of_something_else_are_refused(tmp_path, caplog):
    module = nn.Linear(3, 2)
    averaging = Averaging(module)
    averaging.update()
    averaging.save(tmp_path)
    with pytest.raises(ValueError, match=r"bias: \(2,\) there, none here. Resume with the model and peft_config"):
        Averaging(nn.Linear(3, 2, bias=False)).load(tmp_path)
    with pytest.raises(ValueError, match=r"weight: \(2, 3\) there, \(2, 4\) here"):
        Averaging(nn.Linear(4, 2)).load(tmp_path)
    with caplog.at_level(logging.WARNING, "hf_motive"):
        again = Averaging(nn.Linear(3, 2), decay=0.5)
        again.load(tmp_path)
    assert "decay 0.9999 -> 0.5" in caplog.text
    assert again.updates == 1 and equal(again.state_dict(), averaging.state_dict())
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="it was saved without averaging. Resume without"):
        averaging.load(tmp_path / "none")
    (tmp_path / "none" / "ema-00001-of-00002.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="sharded otherwise. Resume with as many processes"):
        averaging.load(tmp_path / "none")


def test_numbers_out_of_range_are_refused():
    module = nn.Linear(1, 1)
    for wrong in ({"decay": 1.0}, {"decay": 0.5, "min_decay": 0.6}, {"decay": float("nan")}):
        with pytest.raises(ValueError, match="min_decay <= decay < 1"):
            Averaging(module, **wrong)
    for wrong in ({"update_after_step": -1}, {"inv_gamma": 0}, {"power": 0}):
        with pytest.raises(ValueError, match="update_after_step must be at least 0"):
            Averaging(module, **wrong)
    with pytest.raises(ValueError, match="no parameter that requires_grad"):
        Averaging(module.requires_grad_(False)).update()


SHARDED = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from hf_motive.processes import processes
from hf_motive.training.averages import Averaging

torch.set_num_threads(1)
processes()
torch.manual_seed(0)
whole = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
parts = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
parts.load_state_dict(whole.state_dict())
mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
fully_shard(parts[1], mesh=mesh)
fully_shard(parts, mesh=mesh)
averages = [Averaging(module, decay=0.7) for module in (whole, parts)]
x = torch.randn(4, 6)
for _ in range(4):
    for module, averaging in zip((whole, parts), averages):
        module.zero_grad()
        (module(x) ** 2).sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.01 * parameter.grad
        averaging.update()

def outputs():
    with torch.no_grad():
        return whole(x), parts(x)

torch.testing.assert_close(*outputs())  # which leaves the outermost module gathered
before = outputs()[0]
with averages[0].applied(), averages[1].applied():
    torch.testing.assert_close(*outputs())
    assert (outputs()[0] - before).abs().max() > 1e-3
torch.testing.assert_close(*outputs())
assert torch.equal(outputs()[0], before)

averages[1].save(sys.argv[1])
dist.barrier()
again = Averaging(parts, decay=0.7)
again.load(sys.argv[1])
assert again.updates == 4
for name, value in averages[1].state_dict().items():
    assert torch.equal(value, again.state_dict()[name])
    assert value.numel() < whole.get_parameter(name).numel()
dist.destroy_process_group()
print("agreed")
"""


def test_sharded_parameters_are_averaged_where_they_lie(tmp_path):
    """Two processes under FSDP2 against one module that is whole."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("agreed") == 2
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == ["ema-00001-of-00002.safetensors", "ema-00002-of-00002.safetensors"]
