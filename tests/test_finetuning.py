"""The training job as its user runs it: `accelerate launch examples/train.py`, on one process and on two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_motive import cli
from hf_motive.cli import errors_as_sentences
from tests.clips import write_corpus
from tests.families import wan

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline, clips and held-out clips, as a user has them: folders."""
    folder = tmp_path_factory.mktemp("job")
    wan.build().save_pretrained(folder / "pipeline")
    write_corpus(folder / "clips", range(5))
    write_corpus(folder / "held_out", range(100, 102))
    (folder / "job.yaml").write_text(
        f"""
model_name_or_path: {folder}/pipeline
dataset: {folder}/clips
eval_dataset: {folder}/held_out
encodings: {folder}/encodings
num_frames: {wan.NUM_FRAMES}
height: {wan.HEIGHT}
width: {wan.WIDTH}
max_steps: 4
save_steps: 2
learning_rate: 1.0e-3
logging_steps: 1
disable_tqdm: true
eval_strategy: steps
eval_steps: 2
sample_count: 1
sample_inference_steps: 2
threads: 1
"""
    )
    return folder


def train(
    folder: Path, *arguments: str, processes: int = 1, script: str = "examples/train.py", fails: bool = False
) -> str:
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    if processes > 1:
        launch += ["--multi_gpu", "--num_processes", str(processes)]
    else:
        launch += ["--num_processes", "1"]
    launch += ["--main_process_port", "0"] if processes > 1 else []
    command = [*launch, script, "--config", str(folder / "job.yaml"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert (result.returncode != 0) == fails, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def trained(output: Path) -> dict:
    return load_file(output / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def single(folder):
    """One process, two clips at a time."""
    output = folder / "single"
    said = train(folder, "--output_dir", str(output), "--per_device_train_batch_size", "2")
    return output, said


def test_a_run_leaves_a_model_a_card_and_samples(single):
    output, said = single
    assert "4 steps of 2 clips, each clip seen 1.6 times" in said
    assert "Before and after, side by side:" in said
    assert "To load it:" in said and f"hf-motive push {output}" in said
    assert {"README.md", "model.json", "weights.json", "transformer", "samples"} <= {p.name for p in output.iterdir()}
    assert (output / "checkpoint-4" / "transformer").is_dir()


def test_two_processes_give_what_one_gives_with_twice_the_batch(folder, single):
    output = folder / "two"
    said = train(folder, "--output_dir", str(output), processes=2)
    assert said.count("Training all weights") == 1
    one, two = trained(single[0]), trained(output)
    base = load_file(folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    off = max((one[name] - two[name]).abs().max().item() for name in one)
    moved = max((one[name] - base[name]).abs().max().item() for name in one)
    print(f"two processes and one: {off:.1e}; the training moved {moved:.1e}")
    assert off < 1e-4 * moved
    logs = [
        json.loads((o / "checkpoint-4" / "trainer_state.json").read_text())["log_history"] for o in (single[0], output)
    ]
    for ours, theirs in zip(*logs, strict=True):
        for name in {"loss", "grad_norm", "eval_motion_loss", "eval_loss"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_two_processes_go_on_in_the_middle_of_a_later_epoch(folder):
    """5 clips are three steps of two: step 5 is in the second epoch, of which the samplers that skip tell nobody."""
    straight, resumed = folder / "straight", folder / "resumed"
    settings = ["--max_steps", "6", "--sample_count", "0", "--eval_strategy", "no", "--save_steps", "5"]
    train(folder, "--output_dir", str(straight), *settings, processes=2)
    shutil.copytree(straight / "checkpoint-5", resumed / "checkpoint-5")
    said = train(folder, "--output_dir", str(resumed), *settings, processes=2)
    assert "'clips_seen': 10," not in said and "'clips_seen': 12," in said
    one, two = trained(straight), trained(resumed)
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fraction", "0.5"], "error: .*(Score|score)"),
        (["--dataset", "nowhere/at/all.parquet"], "error: nowhere/at/all.parquet does not exist"),
        (["--denoiser", "unet"], "error: WanPipeline has no denoiser 'unet'"),
        (["--learn_rate", "1"], "did you mean --learning_rate"),
        (["--load_in_4bit", "true", "--use_peft", "true"], "error: load_in_4bit is not supported"),
    ],
)
def test_what_is_wrong_is_a_sentence(folder, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message), errors_as_sentences():
        cli.train(["--config", str(folder / "job.yaml"), "--output_dir", str(tmp_path / "out"), *arguments])


STOPPING = """
import sys, time
import hf_motive.cli as cli
from hf_motive.training.clips import TrainingClips
from hf_motive.training.weights import TrainedWeights

read, save = TrainingClips.__getitem__, TrainedWeights.save

def poisoned(self, shown):
    clip = read(self, shown)
    if clip.draw == 5:
        clip.latents = clip.latents * 1e30  # its squares are infinite
    return clip

def slowly(self, *args, **kwargs):
    time.sleep(8)  # as gigabytes take
    save(self, *args, **kwargs)

TrainingClips.__getitem__, TrainedWeights.save = poisoned, slowly
cli.train(sys.argv[1:])
"""


def test_a_process_that_stops_waits_until_the_last_good_weights_are_written(folder, single, tmp_path):
    """The first process that ends in an error ends all others, in the middle of a file too."""
    (tmp_path / "stopping.py").write_text(STOPPING)
    output = tmp_path / "out"
    settings = ["--output_dir", str(output), "--sample_count", "0", "--eval_strategy", "no", "--save_steps", "100"]
    said = train(folder, *settings, processes=2, script=str(tmp_path / "stopping.py"), fails=True)
    assert "the loss is not finite at step 3: " in said and f"are in {output / 'checkpoint-2'}" in said
    assert set(trained(output / "checkpoint-2")) == set(trained(folder / "single"))
    assert (output / "checkpoint-2" / "trainer_state.json").exists()
