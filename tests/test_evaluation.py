"""The comparison as its user runs it: examples/evaluate.py on two processes of Accelerate, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from hf_motive import cli
from hf_motive.cli import errors_as_sentences
from hf_motive.evaluation import EvaluateArguments, Report, evaluate, load_report
from hf_motive.evaluation.intervals import Estimate, difference, estimate, jackknife
from tests.clips import write_corpus
from tests.families import wan

ROOT = Path(__file__).parents[1]
PROMPTS = ("a ball falls", "a box rolls", "a star spins")


# Intervals --------------------------------------------------------------------------------------------------------


def plain(scores, frames):
    return sum(scores) / len(scores)


def clustered(rng, prompts: int, seeds: int, effect: np.ndarray | float = 0.0) -> dict:
    """Scores whose spread lies between prompts; seeds of a prompt resemble each other."""
    means = effect + rng.normal(size=prompts)
    return {str(p): {k: (m + 0.2 * rng.normal(), 9) for k in range(seeds)} for p, m in enumerate(means)}


@pytest.mark.parametrize("prompts", [3, 6, 12])
def test_an_interval_holds_the_truth_as_often_as_it_says_though_seeds_of_a_prompt_are_alike(prompts):
    rng, runs, held, naive = np.random.default_rng(0), 300, 0, 0
    for run in range(runs):
        clips = {prompt: list(repeats.values()) for prompt, repeats in clustered(rng, prompts, 4).items()}
        found = estimate(clips, plain, draws=200, level=0.9, seed=run)
        held += found.low <= 0 <= found.high
        scores = [score for of_one in clips.values() for score, _ in of_one]
        naive += abs(np.mean(scores)) <= 1.7 * np.std(scores) / len(scores) ** 0.5
    print(f"{prompts} prompts: {held / runs:.0%} of 90 % intervals hold the truth; clip by clip, {naive / runs:.0%}")
    assert 0.85 <= held / runs <= 0.95
    assert naive / runs < 0.75


def test_a_difference_is_taken_over_pairs():
    rng = np.random.default_rng(1)
    base = clustered(rng, 30, 2)
    better = {p: {k: (s + 0.1 + 0.02 * rng.normal(), f) for k, (s, f) in row.items()} for p, row in base.items()}
    better["new"], base["0"] = {0: (99.0, 9)}, {1: base["0"][1]}  # what has no partner does not count
    found = difference(better, base, plain, draws=500, level=0.95, seed=0)
    alone = estimate({p: list(row.values()) for p, row in base.items()}, plain, draws=500, level=0.95, seed=0)
    assert (found.prompts, found.videos) == (30, 59)
    assert found.is_apart and found.low < 0.1 < found.high and found.high - found.low < 0.02
    assert alone.high - alone.low > 0.5
    assert difference({"x": {0: (1.0, 9)}}, {"y": {0: (1.0, 9)}}, plain, draws=500, level=0.95, seed=0) is None


def test_the_mean_is_the_metric_s_own_and_one_prompt_has_no_interval():
    def by_frames(scores, frames):
        return sum(s * f for s, f in zip(scores, frames, strict=True)) / sum(frames)

    found = estimate({"a": [(1.0, 30), (0.0, 10)]}, by_frames, draws=100, level=0.95, seed=0)
    assert found == Estimate(0.75, None, None, 1, 2)
    assert estimate({"a": []}, plain, draws=100, level=0.95, seed=0) is None


def test_the_jackknife_of_a_mean_is_student_s_interval():
    values = [0.3, 1.1, -0.4, 0.9, 2.0]
    found = jackknife([[value] for value in values], lambda clips: sum(clips) / len(clips), 0.9)
    low, high = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


# The job ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    wan.build().save_pretrained(folder / "pipeline")
    write_corpus(folder / "real", range(4), frames=wan.NUM_FRAMES, height=wan.HEIGHT, width=wan.WIDTH)
    rows = [{"prompt": text, "group": "turn" if "spin" in text else "move"} for text in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "job.yaml").write_text(
        f"""
pipeline: {folder}/pipeline
candidates: {{base: , same: , strong: {{guidance: 9.0}}}}
prompts: {folder}/prompts.jsonl
references: {folder}/real
seeds: 2
steps: 2
num_frames: {wan.NUM_FRAMES}
height: {wan.HEIGHT}
width: {wan.WIDTH}
draws: 200
threads: 1
"""
    )
    return folder


def command(job: Path, output: Path) -> list[str]:
    script = ROOT / "examples" / "evaluate.py"
    return [str(c) for c in (script, "--config", job / "job.yaml", "--output", output)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "COLUMNS": "160", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def resumed(job) -> tuple[Path, subprocess.CompletedProcess, dict[Path, int]]:
    """A process that is killed while it generates, and two that go on."""
    output = job / "two"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *command(job, output)], env=environment(), **quiet)
    deadline, files = time.monotonic() + 120, []
    while len(files) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        files = list(output.glob("videos/*/*.mp4"))
        time.sleep(0.005)
    process.kill()
    process.wait()
    left = {path: path.stat().st_mtime_ns for path in output.glob("videos/*/*.mp4")}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--main_process_port=0", *command(job, output)]
    result = subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return output, result, left


def scores_of(report: Report) -> list[dict]:
    return sorted(report.scores.to_list(), key=lambda row: (row["candidate"], row["prompt"], row["repeat"]))


def test_killed_it_goes_on_on_two_processes(resumed):
    output, result, left = resumed
    assert 3 <= len(left) < 18
    assert f"{len(left)} of all 18 are there" in result.stdout
    assert len(list(output.glob("videos/*/*.mp4"))) == 18
    assert all(path.stat().st_mtime_ns == when for path, when in left.items())
    assert result.stdout.count("warp_smoothness") == 1  # one report, not one a process
    assert len(list(output.glob("scores/warp_smoothness-*/*.jsonl"))) == 2  # each process its share


def test_the_same_model_twice_is_no_better_than_itself(resumed):
    report = load_report(resumed[0])
    for metric in report.values:
        assert report.values[metric]["same"] == report.values[metric]["base"]
        found = report.differences[metric]["same"]
        assert (found.value, found.low, found.high) == (0, 0, 0) and not found.is_apart
    for found in report.preferences.values():
        assert (found["same"]["win"], found["same"]["tie"], found["same"]["loss"]) == (0, 6, 0)
        assert sum(found["strong"][what] for what in ("win", "tie", "loss")) == 6
    assert set(report.values) == {*report.preferences, "flow_statistics_distance"}
    assert report.metrics["temporal_jitter"]["higher_is_better"] is False


def test_values_are_those_of_the_metric_itself_on_the_files(resumed):
    from hf_motive import metrics

    output = resumed[0]
    report, rows = load_report(output), scores_of(load_report(output))
    files = [str(output / row["file"]) for row in rows if row["candidate"] == "strong"]
    for name in ("warp_smoothness", "temporal_jitter"):
        result = metrics.load(name).compute(predictions=files)
        assert report.values[name]["strong"].value == pytest.approx(result[name], rel=1e-12)
        assert [row[name] for row in rows if row["candidate"] == "strong"] == result[f"{name}_per_video"]
        assert report.metrics[name]["backend"] == result[f"{name}_backend"]
    distance = metrics.load("flow_statistics_distance")
    real = [str(path) for path in sorted((output.parent / "real").glob("*.mp4"))]
    found = distance.compute(predictions=files, references=real)["flow_statistics_distance"]
    assert report.values["flow_statistics_distance"]["strong"].value == pytest.approx(found, rel=1e-6)


def test_one_process_gives_what_two_gave_and_a_finished_run_does_nothing(job, resumed, monkeypatch, capsys):
    one = told(job, job / "one")
    assert scores_of(evaluate(one)) == scores_of(load_report(resumed[0]))
    first = (job / "one" / "results.json").read_bytes()
    for name in ("candidates.Candidate.load", "measuring._line"):  # nothing is loaded, nothing is scored
        monkeypatch.setattr(f"hf_motive.evaluation.{name}", lambda *_, **__: pytest.fail("done twice"))
    state = torch.random.get_rng_state()
    evaluate(one)
    assert (job / "one" / "results.json").read_bytes() == first
    assert torch.equal(torch.random.get_rng_state(), state)
    said = capsys.readouterr().out
    assert "18 of all 18 are there" in said and "3 prompts, 2 clips of each" in said


def told(job: Path, output: Path, **more) -> EvaluateArguments:
    (arguments,) = cli.parse(
        EvaluateArguments, ["--config", str(job / "job.yaml")], prog="test", usage="test", description=""
    )
    for name, value in {"output": str(output), **more}.items():
        setattr(arguments, name, value)
    arguments.__post_init__()
    return arguments


def test_what_fails_costs_its_row(job, resumed, tmp_path):
    """A clip that could not be generated, and a file that is no video."""
    output = tmp_path / "out"
    shutil.copytree(resumed[0], output)
    rows = scores_of(load_report(output))
    bad = [output / row["file"] for row in rows if row["candidate"] == "base"][:2]
    bad[0].unlink()
    bad[0].with_suffix(".failed").write_text("OutOfMemoryError: too large\n")
    bad[1].write_text("not a video")
    report = evaluate(told(job, output))
    assert {
        (row["what"], row["seed"]) for row in report.failed if row["what"] in ("generating", "temporal_jitter")
    } == {
        ("generating", rows[0]["seed"]),
        ("temporal_jitter", rows[1]["seed"]),
    }
    assert (
        report.values["temporal_jitter"]["base"].videos == 4 and report.values["temporal_jitter"]["same"].videos == 6
    )
    assert report.differences["temporal_jitter"]["same"].videos == 4
    assert report.differences["temporal_jitter"]["same"].value == 0
    assert report.values["flow_statistics_distance"]["base"].videos == 4
    kept = [row for row in scores_of(report) if row["candidate"] == "base"][:2]
    assert kept[0]["reason"] == "OutOfMemoryError: too large" and kept[0]["file"] is None
    assert kept[1]["temporal_jitter"] is None
    assert "## Left out: " in (output / "results.md").read_text()
    again = evaluate(told(job, output, retry_failed=True))
    assert {row["what"] for row in again.failed} == {row["what"] for row in report.failed} - {"generating"}


def test_a_report_is_read_by_people(resumed):
    report = load_report(resumed[0])
    text = (resumed[0] / "results.md").read_text()
    assert text == report.to_markdown() + "\n"
    assert "| metric | base | same | strong |" in text and "| temporal_jitter ↓ |" in text
    assert "## By group" in text and "| turn |" in text
    assert "So few prompts say little of others" in text
    assert "| strong | " in text and "| 2 | 9 |" in text  # steps and guidance
    console = Console(width=160, record=True)
    report.print(console)
    printed = console.export_text()
    assert "warp_smoothness ↑" in printed and "0 won, 6 tied, 0 lost" in printed
    assert "–" not in text.split("## By group")[0]
    with pytest.raises(FileNotFoundError, match="its job has not ended"):
        load_report(resumed[0] / "videos")


def test_a_page_for_people(job, resumed):
    output = resumed[0]
    report = evaluate(told(job, output, page=True))
    assert report.pages == {"same": "page-1.html", "strong": "page-2.html"}
    assert "| strong | base | [page-2.html](page-2.html) |" in (output / "results.md").read_text()
    page = (output / "page-2.html").read_text()
    assert "a ball falls" in page and "strong" not in page  # names are never shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--metrics", "subject_consistency"], "error: metric subject_consistency cannot .*"),
        (["--metrics", "imaging_quality"], "error: metric imaging_quality cannot be had: .*"),
        (["--candidates", "base", "x=nowhere/at/all"], "error: nowhere/at/all does not exist: a candidate is"),
        (["--prompts", "nowhere.txt"], "error: nowhere.txt does not exist"),
        (["--steps", "3"], r"error: .*made otherwise: steps was 2 and is 3\. .*--overwrite true"),
        (["--against", "tuned"], "error: --against tuned is none of the candidates; they are base, same, strong"),
        (["--candidate", "x"], "did you mean --candidates"),
    ],
)
def test_what_is_wrong_is_a_sentence_before_anything_is_generated(job, resumed, tmp_path, arguments, message):
    output = resumed[0] if "--steps" in arguments else tmp_path / "out"
    with pytest.raises(SystemExit, match=message), errors_as_sentences():
        cli.evaluate(["--config", str(job / "job.yaml"), "--output", str(output), *arguments])
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_without_prompts_it_asks_for_them(job):
    with pytest.raises(SystemExit, match="error: which prompts"), errors_as_sentences():
        cli.evaluate(["--pipeline", str(job / "pipeline"), "--output", str(job / "none")])


def test_the_paths_of_a_configuration_start_at_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wide = {"base": None, "tuned": {"place": "examples/lab", "pipeline": "examples/lab/pipeline"}}
    arguments = EvaluateArguments(candidates=wide, pipeline="examples/lab/pipeline", prompts="examples/lab/queries")
    found = arguments.below(ROOT)
    lab = ROOT / "examples" / "lab"
    assert (found.pipeline, found.prompts) == (str(lab / "pipeline"), str(lab / "queries"))
    specs = found.candidate_specs()
    assert specs[0].place is None and specs[1].place == str(lab)
    assert specs[1].options == {"pipeline": str(lab / "pipeline")}
