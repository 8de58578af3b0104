"""examples/curate.py, the whole way: score, select, fine-tune, sample; started again it does nothing twice."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.clips import write_corpus
from tests.families import wan

ROOT = Path(__file__).parents[1]


@pytest.fixture
def curate():
    spec = importlib.util.spec_from_file_location("curate", ROOT / "examples" / "curate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_way(curate, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    wan.build().save_pretrained(tmp_path / "pipeline")
    write_corpus(tmp_path / "corpus", range(6))
    write_corpus(tmp_path / "queries", range(100, 104))
    told = curate.CurateArguments(
        **{name: str(tmp_path / name) for name in ("pipeline", "corpus", "queries", "output")},
        **{"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH},
        fraction=0.3,
        times=4,
        batch=2,
        lora_rank=2,
        samples=1,
        sample_steps=2,
    )
    first = curate.curate(told)
    model = tmp_path / "output" / "model"
    facts = json.loads((model / "model.json").read_text())
    assert facts["clips"] == 2 and facts["selection"].startswith("The best 30 % by influence_rank: 2 of the 6 clips")
    assert first.state.global_step == 4
    assert (model / "samples" / "compare" / "index.html").exists()
    assert (model / "pytorch_lora_weights.safetensors").exists()
    said = capsys.readouterr().out
    assert "Validation loss, motion-weighted" in said and "To load it:" in said

    weights = load_file(model / "pytorch_lora_weights.safetensors")
    again = curate.curate(told)
    assert again.state.global_step == 4
    found = load_file(model / "pytorch_lora_weights.safetensors")
    assert found.keys() == weights.keys() and all((found[name] == weights[name]).all() for name in weights)
    assert json.loads((model / "model.json").read_text())["samples"] == facts["samples"]
