"""Scoring with a denoiser that processes share, by `accelerate launch` and FSDP2, gives what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from hf_motive import MotiveAttributor
from hf_motive.config import AttributionConfig
from hf_motive.corpus import load_clips
from hf_motive.factored import Factored
from hf_motive.gradients import GradientProjector, select_parameters
from hf_motive.index import GradientIndex
from hf_motive.pipelines import PipelineStep
from hf_motive.projection import Fastfood
from hf_motive.scoring import ScoreArguments, _load_attributor
from hf_motive.sharding import blocks, is_shared_out, launched_sharded
from tests.clips import moving_square, save_clip, write_corpus, write_metadata
from tests.families import wan
from tests.families.registry import variants

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "accelerate" / "fsdp.yaml"
SIZE = {"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH, "fps": 16.0}
#: Name of the run -> settings, and options of the job that change no feature.
RUNS = {
    "fastfood": ({"projection_dim": 64}, []),
    "factored": (
        {"projection_dim": 128, "projection": "factored", "noise_draws": 2},
        ["--gradient_checkpointing", "true"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline, an odd number of clips with bad ones among them, and one query, for which one process has none."""
    folder = tmp_path_factory.mktemp("job")
    wan.build().save_pretrained(folder / "pipeline")
    rows = write_corpus(folder / "clips", range(4))
    save_clip(folder / "clips" / "still.mp4", moving_square(7, speed=0.0), fps=16)
    (folder / "clips" / "broken.mp4").write_bytes(b"no video")
    bad = [{"file_name": f"{name}.mp4", "caption": "a square", "kind": name} for name in ("still", "broken")]
    write_metadata(folder / "clips", [bad[0], *rows, bad[1]])
    write_corpus(folder / "queries", range(100, 101))
    return folder


@pytest.fixture(scope="module")
def sharded(folder) -> Path:
    parts = []
    for name, (settings, options) in RUNS.items():
        parts += ["--then", "--output", str(folder / name), "--threads", "1", *options]
        for part in ("pipeline", "clips", "queries"):
            parts += [f"--{'corpus' if part == 'clips' else part}", str(folder / part)]
        for key, value in {**SIZE, **settings}.items():
            parts += [f"--{key}", str(value)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    command += ["--main_process_port", "0", "tests/fsdp_on_cpu.py", "score.py", *parts[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_score_as_one_does(folder, sharded, tmp_path, name):
    attributor = MotiveAttributor(WanPipeline.from_pretrained(folder / "pipeline"), **SIZE, **RUNS[name][0])
    for part, index in (("clips", "index"), ("queries", "index-queries")):
        alone = attributor.index(load_clips(folder / part), tmp_path / index, progress=False)
        together = GradientIndex.open(sharded / name / index)
        assert together.settings["features"] == alone.settings["features"]
        assert together.counts() == alone.counts() and together.ids() == alone.ids()
        ids = alone.ids("ok")
        torch.testing.assert_close(together.features(ids), alone.features(ids), rtol=0, atol=2e-6)
        rows = zip(together.rows(), alone.rows(), strict=True)
        assert all(one.facts.get("coverage") == other.facts.get("coverage") for one, other in rows)
    assert alone.counts() == {"ok": 1}
    assert len(list((sharded / name / "index").glob("shard-*.rows.jsonl"))) == 2


@pytest.mark.parametrize("law", [Fastfood(dim=64), Factored(dim=64, rank=8)], ids=["fastfood", "factored"])
@pytest.mark.parametrize("name", ["wan2.1", "modelscope", "kandinsky5-t2v", "hunyuanvideo"])
def test_every_family_has_its_feature_in_parts(process_group, name, law):
    from torch.distributed.fsdp import fully_shard

    variant = variants()[name]
    pixels = torch.rand(variant.num_frames, 3, variant.height, variant.width) * 2 - 1
    step = PipelineStep(variant.build(), num_frames=variant.num_frames, height=variant.height, width=variant.width)
    latents, noise = step.encode(pixels), step.noise(3)

    def feature():
        with GradientProjector(select_parameters(step.denoisers), law, step.denoisers.values()) as projector:
            return projector.project(step.loss(latents, "a square", noise=noise, timestep=500).loss)

    before = feature()
    for denoiser in step.denoisers.values():
        names = blocks(denoiser)
        for block in [part for part in denoiser.modules() if type(part).__name__ in names]:
            fully_shard(block)
        fully_shard(denoiser)
        assert is_shared_out(denoiser)
    step.loss(latents, "a square", noise=noise, timestep=500, grad=False)  # leaves the outermost weights together
    for _ in range(2):  # the second time, FSDP has made what it keeps
        found = feature()
        torch.testing.assert_close(found.vector, before.vector, rtol=1e-5, atol=1e-6 * before.norm)
        assert found.coverage == before.coverage
    assert all(p.grad is None for denoiser in step.denoisers.values() for p in denoiser.parameters())


def test_asking_frozen_parts_needs_no_other_process(process_group):
    """A process may ask them while another does something else: no weights come together for it."""
    from torch.distributed.fsdp import fully_shard

    step = PipelineStep(wan.build(), num_frames=wan.NUM_FRAMES, height=wan.HEIGHT, width=wan.WIDTH)
    (denoiser,) = step.denoisers.values()
    told = step.answers("a square")
    fully_shard(denoiser)
    together = []
    denoiser.register_forward_pre_hook(lambda *_: together.append(1))
    assert step.answers("a square").keys() == told.keys() and not together


def test_what_was_launched(monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.delenv(name, raising=False)
    assert not launched_sharded()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        launched_sharded()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert launched_sharded()
    for name, value, remedy in (
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: false"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision: .no. .* --dtype"),
    ):
        with monkeypatch.context() as said, pytest.raises(ValueError, match=remedy):
            said.setenv(name, value)
            launched_sharded()


def test_sharded_and_offloaded_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ValueError, match="launch without it to offload"):
        _load_attributor(ScoreArguments("pipe", "corpus", "queries", offload=True), AttributionConfig(), "cpu")
