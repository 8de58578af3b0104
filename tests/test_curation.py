"""benchmarks/curation.py: its world, its choices, and all of it once, tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import curation  # noqa: E402
from miniature import choosing, tables, world  # noqa: E402

from hf_motive.lab.spec import MOTIONS, REST  # noqa: E402


def test_the_corpus_holds_what_it_says() -> None:
    clips = world.corpus_clips(400)
    assert Counter(clip.kind for clip in clips) == {kind: round(400 * share) for kind, share in world.KINDS.items()}
    for clip in clips:
        if clip.kind == "swapped":
            assert clip.shown != clip.spec.motion
        else:
            assert clip.shown == clip.spec.motion
        assert (clip.spec.motion == REST) == (clip.kind in world.IRRELEVANT)
    motions = Counter(clip.shown for clip in clips if clip.kind == "good")
    assert set(motions) == set(MOTIONS) and max(motions.values()) - min(motions.values()) <= 1
    assert len({clip.spec.seed for clip in clips} & {clip.spec.seed for clip in world.query_clips(4)}) == 0


def test_a_specialist_is_asked_what_the_generalist_is_asked() -> None:
    """The same prompts, and from the same noise."""
    size = curation.Size()
    start, every = curation.prompts(curation.Run("base", choosing.GENERALIST, 3), size)
    first, own = curation.prompts(curation.Run("Motive", "spin", 3), size)
    assert start == 0 and len(own) == size.prompts and {spec.motion for spec in own} == {"spin"}
    assert own == every[first : first + len(own)]
    assert world.prompt_specs(8, 4) != world.prompt_specs(8, 3) == every


@pytest.fixture()
def choices(monkeypatch) -> choosing.Choices:
    """Forty clips of which row i has the gradient of motion i % 10, the last four none; queries of each motion."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(10, 32)
    corpus = directions.repeat(4, 1) + 0.1 * torch.randn(40, 32, generator=generator)
    corpus[36:] = float("nan")
    pictures = iter([torch.randn(40, 8, generator=generator), torch.randn(10, 8, generator=generator)])
    monkeypatch.setattr(choosing, "_pictures", lambda blobs: next(pictures))
    motion = np.where(np.arange(40) < 36, np.arange(40.0), np.nan)
    plain = torch.randn(40, 32, generator=generator), torch.randn(10, 32, generator=generator)
    rows = {"encoded": [b""] * 40}, {"encoded": [b""] * 10, "motion": list(MOTIONS)}
    return choosing.Choices(*rows, {"Motive": (corpus, directions), "whole clip": plain}, motion)


def test_each_method_chooses_by_its_measure(choices) -> None:
    third = list(MOTIONS)[3]
    assert {int(row) % 10 for row in choices.chosen("Motive", third, 0, 40)} == {3}
    assert set(choices.chosen("magnitude", third, 0, 40)) == {35, 34, 33, 32}
    assert not set(choices.chosen("worst", third, 0, 40)) & set(choices.chosen("Motive", third, 0, 40))
    assert set(choices.ranking("worst", third, 0)) == set(range(36))
    assert not np.array_equal(choices.chosen("random", third, 0, 40), choices.chosen("random", third, 1, 40))
    assert len(choices.chosen("full", third, 0, 40)) == 40
    for method in choosing.CHOOSING:  # what cannot be ranked is chosen by none
        assert max(choices.ranking(method, choosing.GENERALIST, 0)) < 36, method


def test_intervals_hold_the_truth_also_where_models_differ() -> None:
    """Three models of twenty prompts each, 400 times: 95 % intervals hold the mean in nearly so many."""
    assert tables.interval([[0.5] * 8] * 3) == (0.5, 0.5, 0.5)
    assert tables.paired([[1, 0], [1, 1]], [[0, 0], [1, 1]])[0] == 0.25
    rng = np.random.default_rng(0)
    for between in (0.0, 0.4):
        held = 0
        for _ in range(400):
            _, low, high = tables.interval(rng.normal(0, 0.45, (3, 20)) + between * rng.normal(size=(3, 1)))
            held += low <= 0 <= high
        assert held / 400 > 0.92, f"models that differ by {between}"


def test_all_of_it_once(tmp_path) -> None:
    """Three of the smoke run's models: made, asked, measured, in the tables; and not made a second time."""
    command = [sys.executable, ROOT / "benchmarks" / "curation.py", "--smoke", "--share", "1/6", "--output", tmp_path]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    curation.measure(tmp_path, curation.SMOKE)
    finished = sorted((tmp_path / "models").glob("*/run.json"))
    assert len(finished) == 3
    for path in finished:
        run, rows = json.loads(path.read_text()), json.loads((path.parent / "measured.json").read_text())
        assert len(list(path.parent.glob("*.mp4"))) == len(rows) == (1 if run["target"] == "float" else 2)
        assert all(np.isfinite([v for v in row.values() if isinstance(v, float)]).all() for row in rows)
        assert run["method"] == "unspoilt" or len(run["chosen"]) == (10 if run["method"].startswith("full") else 1)
    report = tmp_path / "results.md"
    report.write_text("By hand.\n\n")
    tables.write_report(tmp_path, curation.SMOKE, report)
    text = report.read_text()
    assert text.startswith("By hand.\n\n<!--") and "| unspoilt |" in text and "nan" not in text
    assert "## What is taken for one motion's queries" in text and "| moves as asked | roll | float |" in text
    with pytest.raises(SystemExit, match="another experiment"):
        curation.check_world(tmp_path, curation.Size())
