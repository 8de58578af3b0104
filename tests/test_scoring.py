"""The main job as its user runs it: `accelerate launch examples/score.py`, one process and two, killed and resumed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, Video
from rich.console import Console
from trl import TrlParser

from hf_motive.hub.cards import dataset_card
from hf_motive.index import GradientIndex
from hf_motive.report import print_report
from hf_motive.scoring import JOB, ScoreArguments, load_pipeline, load_run
from tests.clips import write_corpus
from tests.families import wan, wan_modular

ROOT = Path(__file__).parents[1]
SIZE = [
    "--threads",
    1,
    "--num_frames",
    wan.NUM_FRAMES,
    "--height",
    wan.HEIGHT,
    "--width",
    wan.WIDTH,
    "--projection_dim",
    64,
]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("job")
    wan.build().save_pretrained(folder / "pipeline")
    write_corpus(folder / "corpus", range(10))
    (folder / "corpus" / "003.mp4").write_text("not a video")
    write_corpus(folder / "queries", range(100, 102))
    return {name: folder / name for name in ("pipeline", "corpus", "queries")}


def command(job: dict[str, Path], output: Path, *options, processes: int = 1) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    if processes > 1:
        launch += ["--multi_gpu", f"--num_processes={processes}", "--main_process_port=0"]
    inputs = [text for name, path in job.items() for text in (f"--{name}", path)]
    return [str(c) for c in (*launch, ROOT / "examples" / "score.py", *inputs, "--output", output, *SIZE, *options)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "COLUMNS": "160", "ACCELERATE_USE_CPU": "true"}


def run(*arguments, **options) -> subprocess.CompletedProcess:
    result = subprocess.run(
        command(*arguments, **options), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def one_process(job, tmp_path_factory):
    output = tmp_path_factory.mktemp("one")
    return output, run(job, output, "--group_column", "kind")


def test_what_it_prints_and_writes(one_process):
    output, result = one_process
    assert "10/10" in result.stderr and "clip/s" in result.stderr  # the progress bar
    for text in ("What teaches “left” most", "All queries together", "9 clips ranked, 1 left out", "1 unreadable"):
        assert text in result.stdout
    scored = Dataset.from_parquet(str(output / "influence.parquet"))
    assert scored["influence_status"][3] == "unreadable"
    rank = np.array(scored["influence_rank"])
    assert sorted(rank[~np.isnan(rank)]) == list(range(9))
    assert "influence_left" in scored.column_names and "caption" in scored.column_names


def test_two_processes_give_the_same_index_bit_for_bit(job, one_process, tmp_path):
    result = run(job, tmp_path, "--group_column", "kind", processes=2)
    for name in ("index", "index-queries"):
        assert GradientIndex.open(tmp_path / name).digest() == GradientIndex.open(one_process[0] / name).digest()
    assert len(list((tmp_path / "index").glob("*.features"))) == 2
    assert result.stdout.count("clips ranked") == 1  # one report, not one a process
    two, one = (Dataset.from_parquet(str(p / "influence.parquet"))["influence"][:] for p in (tmp_path, one_process[0]))
    np.testing.assert_array_equal(two, one)  # NaN, of the row that is not ranked, equals NaN here


def test_encoded_first_and_one_model_at_a_time(job, one_process, tmp_path, monkeypatch):
    """The same features, from a second run's encodings, too; and the results hold no encodings."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    options = ("--group_column", "kind", "--encode", "true", "--offload", "true")
    first, second = (run(job, tmp_path / name, *options) for name in ("first", "second"))
    assert "Encodings of 10 clips" in first.stderr and "Encodings of" not in second.stderr
    for name in ("index", "index-queries"):
        expected = GradientIndex.open(one_process[0] / name).digest()
        assert {GradientIndex.open(tmp_path / out / name).digest() for out in ("first", "second")} == {expected}
    files = [folder / "influence.parquet" for folder in (tmp_path / "first", one_process[0])]
    ours, theirs = (Dataset.from_parquet(str(file)) for file in files)
    assert ours.column_names == theirs.column_names
    np.testing.assert_array_equal(ours["influence"][:], theirs["influence"][:])


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="streaming keeps nothing"):
        ScoreArguments("pipe", "corpus", "queries", encode=True, streaming=True)


def test_killed_it_goes_on_where_it_stopped(job, one_process, tmp_path):
    process = subprocess.Popen(
        command(job, tmp_path),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    rows = 0
    while rows < 3:
        assert process.poll() is None and time.monotonic() < deadline
        if (tmp_path / "index" / "index.json").exists():
            rows = len(GradientIndex.open(tmp_path / "index"))
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = len(GradientIndex.open(tmp_path / "index"))
    assert 3 <= left < 10
    result = run(job, tmp_path, processes=1)
    assert f"{left}/10" in result.stderr  # the bar starts where the run stopped
    assert "What teaches “100.mp4” most" in result.stdout  # without a group, each query for itself
    assert GradientIndex.open(tmp_path / "index").digest() == GradientIndex.open(one_process[0] / "index").digest()


def test_errors_are_one_sentence(job, tmp_path):
    def fails(*options) -> str:
        inputs = {**job, "corpus": tmp_path / "nowhere"} if not options else job
        script = command(inputs, tmp_path / "out", *options)[3:]
        result = subprocess.run(
            [sys.executable, *script], env=environment(), capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        return result.stderr

    assert "does not exist: give a folder of clips" in fails()
    assert "the queries have no column 'motion' to group by; they have" in fails("--group_column", "motion")
    assert "timesteps must be one or more numbers" in fails("--timesteps", "2000")


def test_a_modular_pipeline_is_loaded_from_its_folder(tmp_path):
    made = wan_modular.VARIANTS[0].build()
    made.save_pretrained(str(tmp_path / "modular"), overwrite_modular_index=True)
    loaded = load_pipeline(str(tmp_path / "modular"), "float32", "cpu")
    assert type(loaded) is type(made)
    theirs = loaded.transformer.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in made.transformer.state_dict().items())
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="no file named model_index.json"):
        load_pipeline(str(tmp_path / "empty"), "float32", "cpu")


def test_call_kwargs_are_json_or_a_mapping_of_yaml(tmp_path):
    needed = ["--pipeline", "p", "--corpus", "c", "--queries", "q"]
    parser = TrlParser((ScoreArguments,))
    told = parser.parse_args_and_config([*needed, "--call_kwargs", '{"noise_aug_strength": 0.0}'])[0]
    (tmp_path / "job.yaml").write_text("call_kwargs:\n  noise_aug_strength: 0.0\n")
    written = parser.parse_args_and_config(["--config", str(tmp_path / "job.yaml"), *needed])[0]
    assert told.call_kwargs == written.call_kwargs == {"noise_aug_strength": 0.0}
    for wrong in ("noise=0", "[1]"):
        with pytest.raises(ValueError, match="call_kwargs must be"):
            ScoreArguments("p", "c", "q", call_kwargs=wrong)


def test_a_stream_on_two_processes_and_back_from_its_folder(job, one_process, tmp_path):
    """Shards, one a process: the same features and ranks as of the files, no video in the results, and all of it a
    stream of clips again."""
    rows = [json.loads(line) for line in (job["corpus"] / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for row in rows[5 * shard : 5 * shard + 5]:
                name = Path(row["file_name"])
                tar.add(job["corpus"] / name, name.name)
                member = tarfile.TarInfo(f"{name.stem}.txt")
                member.size = len(row["caption"])
                tar.addfile(member, io.BytesIO(row["caption"].encode()))
    output = tmp_path / "out"
    options = ("--group_column", "kind", "--rivals", "true")
    result = run({**job, "corpus": tmp_path / "shards"}, output, *options, processes=2)
    assert "a stream of clips" in result.stdout and "9 clips ranked, 1 left out" in result.stdout
    here, there = (GradientIndex.open(path / "index") for path in (output, one_process[0]))
    assert here.ids() == there.ids() and torch.equal(here.features(here.ids("ok")), there.features(there.ids("ok")))
    assert len(list((output / "index").glob("*.features"))) == 2
    table, known = (Dataset.from_parquet(str(path / "influence.parquet")) for path in (output, one_process[0]))
    for name in ("influence", "influence_rank", "influence_left"):
        np.testing.assert_array_equal(table[name], known[name])
    assert table.cast_column("video", Video(decode=False))[0]["video"] == {"path": "000.mp4", "bytes": None}
    assert np.isfinite(table["rival_whole_clip"]).sum() == 9

    stream = load_run(output)
    assert isinstance(stream, IterableDataset)
    back = list(stream)
    np.testing.assert_array_equal([row["influence"] for row in back], known["influence"])
    assert back[0]["video"]["bytes"] == (job["corpus"] / rows[0]["file_name"]).read_bytes()
    assert load_run(one_process[0])["influence_id"] == table["influence_id"]
    with pytest.raises(FileNotFoundError, match="its job has not ended"):
        load_run(tmp_path)


def test_a_report_shows_brackets_as_they_are(capsys):
    rows = {"video": ["[x].mp4", "b.mp4"], "caption": ["a man [/walks] [bold]home", "b"], "kind": ["[/k]", "l"]}
    scores = {"influence": [0.5, 0.1], "influence_votes": [1.0, 0.0], "influence_rank": [0.0, 1.0]}
    texts = {"influence_status": ["ok", "ok"], "influence_reason": ["", ""]}
    scored = Dataset.from_dict({**rows, **scores, **texts, "influence_[/k]": [0.5, 0.1]})
    print_report(scored, console=Console(width=120), group_column="kind")
    printed = capsys.readouterr().out
    assert "a man [/walks] [bold]home" in printed and "What teaches “[/k]” most" in printed and "[x].mp4" in printed


def test_a_report_and_a_card_count_those_that_are_certain_by_influence(capsys):
    """Of 20 clips the first is far ahead, the second could as well be the tenth; by rank nothing is certain."""
    influence = [0.9, 0.5, *np.linspace(0.45, 0.1, 18)]
    numbers = {
        "influence": influence,
        "influence_votes": [1.0] * 20,
        "influence_rank": [float(row) for row in range(20)],
    }
    errors = {
        "influence_error": [0.01, *[0.2] * 19],
        "influence_error_rank": [9.0] * 20,
        "influence_draws": [12.0] * 20,
    }
    texts = {"influence_status": ["ok"] * 20, "influence_reason": [""] * 20, "caption": ["a ball"] * 20}
    scored = Dataset.from_dict({"video": [f"{row}.mp4" for row in range(20)], **numbers, **errors, **texts})
    print_report(scored, console=Console(width=120))
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "±: one standard error over 12 draws. By influence, and with 90% confidence each, 1 of the best 2" in printed
    )
    assert "0 of the worst 2 among the worst" in printed and "0.900 ± 0.010" in printed
    clips = scored.remove_columns("video")
    text, plain = (
        str(dataset_card(clips, "me/clips", settings={"fps": 16, **more})) for more in ({"center_error": 1}, {})
    )
    assert (
        "over 12 draws of timestep and noise" in text
        and "Of the 2 clips of the best tenth by influence, 1 would" in text
    )
    assert "less its mean over time" in text and "less its mean over time" not in plain


def test_what_is_wrong_with_a_run_is_said(job, one_process, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: give the folder that `score` was told"):
        load_run(tmp_path / "nowhere")
    before = (one_process[0] / JOB).read_text()
    refused = subprocess.run(
        [sys.executable, *command(job, one_process[0], "--seed", 1)[3:]],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1 and "features that were computed differently" in refused.stderr
    assert (one_process[0] / JOB).read_text() == before, "a command that is refused spoils no results"
    said = json.loads(before)
    assert Path(said["arguments"]["corpus"]).is_absolute() and said["streamed"] is False
    monkeypatch.chdir(tmp_path)
    assert load_run(one_process[0]).num_rows == 10
    said["streamed"], said["arguments"]["corpus"] = True, str(tmp_path / "moved")
    (tmp_path / JOB).write_text(json.dumps(said))
    (tmp_path / "influence.parquet").write_bytes((one_process[0] / "influence.parquet").read_bytes())
    with pytest.raises(FileNotFoundError, match="moved does not exist"):
        load_run(tmp_path)
    (tmp_path / JOB).unlink()  # of an earlier version
    assert load_run(tmp_path).num_rows == 10
