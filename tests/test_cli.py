"""`hf-motive` as its user runs it: one scored corpus, of which all else is chosen, looked at and published."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset, load_from_disk

from hf_motive import __version__
from hf_motive.cli import main, parse
from hf_motive.commands.select import SelectArguments
from hf_motive.index import GradientIndex
from tests.clips import write_corpus
from tests.families import wan
from tests.hub_server import HubServer

SIZE = f"--threads 1 --num_frames {wan.NUM_FRAMES} --height {wan.HEIGHT} --width {wan.WIDTH} --projection_dim 64"


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    wan.build().save_pretrained(folder / "pipeline")
    write_corpus(folder / "corpus", range(10))
    (folder / "corpus" / "003.mp4").write_text("not a video")
    write_corpus(folder / "queries", range(100, 102))
    return folder


def shell(command: str, folder: Path, *, launch: str = "-m hf_motive.cli", status: int = 0, **environment: str):
    """A command in a process of its own."""
    words = [sys.executable, *launch.split(), *command.split()]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "ACCELERATE_USE_CPU": "true", **environment}
    result = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def scoring(job) -> str:
    """`hf-motive score` on two processes, and what it printed."""
    (job / "job.yaml").write_text("pipeline: pipeline\ncorpus: corpus\nqueries: queries\ngroup_column: kind\n")
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes=2 --main_process_port=0 -m hf_motive.cli"
    return shell(f"score --config=job.yaml --output run {SIZE}", job, launch=launch).stdout


@pytest.fixture(scope="module")
def run(job, scoring) -> Path:
    return job / "run"


@pytest.fixture
def hf_motive(job, run, monkeypatch, capsys):
    """A command in this process, in the job's folder: what it prints, and its error."""
    monkeypatch.chdir(job)

    def call(*words: object, status: int = 0) -> str:
        capsys.readouterr()
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            assert isinstance(end.code, str) == (status == 1) and (status == 1 or end.code == status), end.code
            return str(end.code)
        assert status == 0
        return capsys.readouterr().out

    return call


def rows_of(run: Path) -> list[dict]:
    return list(Dataset.from_parquet(str(run / "influence.parquet")))


def ranked(run: Path, by: str = "influence_rank") -> list[str]:
    rows = [row for row in rows_of(run) if row[by] == row[by]]
    return [row["caption"] for row in sorted(rows, key=lambda row: row[by] * (1 if by == "influence_rank" else -1))]


# The command itself ---------------------------------------------------------------------------------------------


def test_help_is_light_and_lists_the_commands(tmp_path):
    code = "from hf_motive.cli import main; main(); import sys; print({'torch', 'datasets', 'trl'} & {*sys.modules})"
    (tmp_path / "code.py").write_text(code)
    said = shell("", tmp_path, launch="code.py").stdout
    for command in ("score", "select", "push", "inspect"):
        assert f"\n  hf-motive {command}  " in said
    assert said.splitlines()[-1] == "set()"
    assert shell("--version", tmp_path).stdout == f"hf-motive {__version__}\n"


@pytest.mark.parametrize("command", ["score", "select", "push", "inspect"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith(f"usage: hf-motive {command}")
    assert said.index(f"    hf-motive {command} ") < said.index("options:")  # an example at the top
    assert "(default: " in said and "--config" in said and "==SUPPRESS==" not in said
    assert "token" not in said.split("options:")[1]


def test_errors_are_one_sentence(hf_motive, job):
    said = {
        "inspect nowhere/at-all": "offline mode is set (HF_HUB_OFFLINE=1): unset it to go there.",
        "selekt": "no command 'selekt'; the commands are score, select, train, push, inspect",
        "score": "needs --pipeline, --corpus, --queries, here or in the YAML of --config; to see it work first,",
        "score --piepline x": "needs --pipeline",
        "select run": "hf-motive select needs --output",
        "select": "hf-motive select needs SOURCE, --output",
        "select run --output x --fractoin 1": "there is no option --fractoin (did you mean --fraction?)",
        "select run --output x --fraction 1.5": "--fraction is a share: more than 0 and at most 1, got 1.5",
        "select run --output x --fraction many": "argument --fraction: invalid float value: 'many'",
        "select run --output x --drop_worst 0.1 --worst": "--drop_worst says by itself what is kept",
        "select run --output x --group_column kind": "say how many by --count",
        "select run --output x --format parquet": "does not fit --output x: a table is named .parquet",
        "select run --output best.csv": "--output best.csv: a table is written as .parquet, clips as a folder",
        "select run --output best.jsonl --format saved": "--output best.jsonl: a table is written as .parquet",
        "select run --output x --by fame": "no column 'fame' to choose by; there are file_name, caption",
        "select run --output corpus --overwrite": "corpus was not written by select",
        "select run --output x --drop_worst 1": "nothing is left",
        "select run/index --output x": "is an index: it has features, and no scores yet",
        "select corpus --output x": "corpus has no influence columns: score it first",
        "select run other --output x": "what is 'other' for? hf-motive select SOURCE --output FOLDER",
        "push run": "hf-motive push needs REPO_ID",
        "push corpus me/x --index": "corpus has no index to push: --index is for the folder of a run",
        "push nowhere me/x": "nowhere does not exist: push publishes",
        "inspect ./nowhere": "./nowhere does not exist: give the output folder",
        "inspect nowhere/at_all": "nowhere/at_all does not exist here, and cannot be had from the Hub: ",
        "inspect run --config": "--config needs the name of a YAML file",
        "inspect run --config nowhere.yaml": "nowhere.yaml",
    }
    for command, words in said.items():
        error = hf_motive(*command.split(), status=1)
        assert error.startswith("error: ") and words in error, (command, error)
    end = shell("inspect ./nowhere", job, status=1)
    assert end.stderr.startswith("error: ./nowhere does not exist") and end.stdout == ""


def test_words_by_place_by_name_and_in_yaml(tmp_path):
    def told(*words: str) -> SelectArguments:
        return parse(SelectArguments, words, ("source",), prog="p", usage="u", description="d")[0]

    (tmp_path / "my.yaml").write_text("source: runs/a\noutput: best\nfraction: 0.2\nworst: true\n")
    expected = SelectArguments("runs/a", "best", fraction=0.2, worst=True)
    assert told("runs/a", "--output", "best", "--fraction", "0.2", "--worst") == expected
    assert told("--worst", "runs/a", "--output=best", "--fraction=0.2") == expected
    assert told("--output", "best", "--worst", "yes", "--fraction", "0.2", "runs/a") == expected
    assert told("--source", "runs/a", "--output", "best", "--fraction", "0.2", "--worst") == expected
    assert told("--config", str(tmp_path / "my.yaml")) == told(f"--config={tmp_path / 'my.yaml'}") == expected
    assert told("runs/b", "--config", str(tmp_path / "my.yaml"), "--worst", "no") == SelectArguments(
        "runs/b", "best", fraction=0.2
    )
    assert told("a", "--output", "b", "--drop-worst", "0.1").drop_worst == 0.1
    (tmp_path / "wrong.yaml").write_text("frction: 0.2\n")
    with pytest.raises(ValueError, match=r"no option --frction \(did you mean --fraction\?\)"):
        told("runs/a", "--output", "best", "--config", str(tmp_path / "wrong.yaml"))


# score ----------------------------------------------------------------------------------------------------------


def test_score_on_two_processes(scoring, run):
    assert scoring.count("9 clips ranked, 1 left out") == 1  # one report, not one a process
    assert "hf-motive select run" in scoring  # how to go on
    assert len(list((run / "index").glob("*.features"))) == 2
    assert GradientIndex.open(run / "index").counts() == {"ok": 9, "unreadable": 1}
    assert sorted(row["influence_rank"] for row in rows_of(run) if row["influence_status"] == "ok") == list(range(9))


# select ---------------------------------------------------------------------------------------------------------


def test_select_as_a_folder_that_datasets_reads(hf_motive, run, job):
    said = hf_motive("select", "run", "--output", "best", "--fraction", 0.3, "--caption_files")
    assert "3 of 10 rows kept in best. The best 30 % by influence_rank, best first: 3 of 9 rows" in said
    last = next(row for row in rows_of(run) if row["influence_rank"] == 2)
    assert f"Cut-off: influence_rank 2, influence {last['influence']:+.4f} is the worst that was kept" in said
    assert "Without a score, and never taken: 1 of 10 rows\n  1 unreadable: e.g. " in said
    back = load_dataset("videofolder", data_dir=str(job / "best"), split="train")
    assert sorted(back["caption"]) == sorted(ranked(run)[:3])
    assert sorted(back["influence_rank"]) == [0, 1, 2] and len(list((job / "best" / "clips").glob("*.txt"))) == 3
    left = json.loads((job / "best" / "selection.json").read_text())
    assert left["source"] == "../run" and left["corpus"] == "corpus" and left["cut_off"] == 2 and left["kept"] == 3
    assert "best exists: name another --output, or replace it" in hf_motive(
        "select", "run", "--output", "best", status=1
    )
    hf_motive("select", "best", "--output", "best", "--count", 1, "--overwrite")  # of a selection, in its own place
    assert json.loads((job / "best" / "selection.json").read_text())["source"] == "../run"
    said = hf_motive("inspect", "best")
    assert "The best 1 by influence_rank" in said and "These were chosen before: The best 30 %" in said


def test_select_the_other_ways(hf_motive, run, job):
    hf_motive("select", "run", "--output", "worst.parquet", "--worst", "--count", 2)
    worst = Dataset.from_parquet("worst.parquet")
    assert worst["influence_rank"][:] == [8, 7] and worst["caption"][:] == ranked(run)[:-3:-1]
    said = hf_motive("select", "run", "--output", "clean", "--format", "saved", "--drop_worst", 0.2)
    clean = load_from_disk("clean")
    assert "7 of 10 rows" in said and sorted(clean["influence_rank"]) == list(range(7))
    said = hf_motive("select", "run", "--output", "each.parquet", "--group_column", "kind", "--count", 2)
    each = Dataset.from_parquet("each.parquet")
    assert each["kind"][:] == ["left", "left", "right", "right"] and "The best 2 of each kind" in said
    hf_motive("select", "run", "--output", "fast.parquet", "--by", "motion_mean", "--count", 3)
    assert Dataset.from_parquet("fast.parquet")["caption"][:] == ranked(run, "motion_mean")[:3]
    for name, rows in (("worst.parquet", 2), ("clean", 7)):  # of a selection
        hf_motive("select", name, "--output", f"{name}-again.parquet", "--fraction", 1)
        assert len(Dataset.from_parquet(f"{name}-again.parquet")) == rows


# inspect --------------------------------------------------------------------------------------------------------


def test_inspect(hf_motive, run, job):
    said = hf_motive("inspect", "run")
    assert "run: a run" in said and "10: 9 ok, 1 unreadable" in said and "of 9 (" in said
    assert f"digest      {GradientIndex.open(run / 'index').digest()}" in said
    assert json.loads(hf_motive("inspect", "--json", "run"))["index"]["settings"]["num_frames"] == wan.NUM_FRAMES
    hf_motive("select", "run", "--output", "part.parquet", "--count", 4)
    said = hf_motive("inspect", "run", "part.parquet")
    assert "✓ run and part.parquet: comparable" in said and "4 are ranked in both: Spearman +1.000" in said
    GradientIndex.create_or_open(job / "other", {"features": {"seed": 1}}, 64).close()
    shell("inspect run other", job, status=3)


# push -----------------------------------------------------------------------------------------------------------

EACH = """
import json, sys
from hf_motive.cli import main
for command in json.loads(sys.argv[1]):
    status = 0
    try:
        main(command.split())
    except SystemExit as end:
        status = end.code
    print("\\n====", json.dumps(status), flush=True)
"""


def test_to_the_hub_and_back(job, run, tmp_path):
    commands = {
        "push run tester/scored --index --license cc-by-4.0 --revision v7": 0,
        "select run --output few --count 3": 0,
        "push few tester/few --video referenced --public": 0,
        "inspect --json tester/scored": 0,
        "inspect run/index tester/scored-index": 0,
        "inspect tester/few run": 0,
        "select tester/scored --output back.parquet --count 2": 0,
        "push run other/scored": "error: opening other/scored failed: 403 Forbidden",
        "select tester/scored-index --output x": "error: tester/scored-index is an index: it has features, and no",
        "inspect tester/nowhere": "error: tester/nowhere does not exist here, and cannot be had from the Hub: ",
    }
    with HubServer() as hub:
        result = subprocess.run(
            [sys.executable, "-c", EACH, json.dumps(list(commands))],
            env={**hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
            cwd=job,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        private = {name: hub.repo(f"tester/{name}").private for name in ("scored", "scored-index", "few")}
        files = {name: hub.files(f"tester/{name}") for name in private}
        cards = {name: files[name]["README.md"].decode().replace("\\", "") for name in private}  # Markdown escapes
        url = hub.url
    parts = result.stdout.split("\n==== ")
    statuses = [json.loads(part.split("\n")[0]) for part in parts[1:]]
    outputs = [parts[0]] + [part.partition("\n")[2] for part in parts[1:-1]]
    for (command, expected), status in zip(commands.items(), statuses, strict=True):
        assert status == expected or (isinstance(expected, str) and status.startswith(expected)), (command, status)
    assert "hf_test_write" not in result.stdout + result.stderr + json.dumps(statuses)

    assert private == {"scored": True, "scored-index": True, "few": False}
    assert "(404)" not in statuses[-1] and "404 Not Found" in statuses[-1] and "check the id" in statuses[-1]
    pushed, _, selected, told, same, two, *_ = outputs
    assert pushed.startswith("run is a run of 10 clips; pushing it, private, to tester/scored\n")
    assert f"{url}/datasets/tester/scored\n" in pushed and f"{url}/datasets/tester/scored-index\n" in pushed
    assert "few is a selection of 3 clips; pushing it, public, to tester/few" in selected
    sentence = "The best 3 by influence_rank, best first: 3 of 9 rows with this score, of 10 in all."
    assert sentence in selected and sentence in cards["few"]
    card = cards["scored"]
    features = yaml.safe_load(files["scored"]["README.md"].decode().split("---\n")[1])["dataset_info"]["features"]
    assert {"name": "video", "dtype": "video"} in features  # which everybody's `datasets` decodes, if it can
    assert "license: cc-by-4.0" in card and "v7" in card and "corpus" in card and str(job) not in card
    assert "train/metadata.jsonl" in files["few"] and "index.json" in files["scored-index"]

    found = json.loads(told)
    assert found["rows"] == 10 and found["statuses"] == {"ok": 9, "unreadable": 1} and found["bytes"] is None
    assert found["influence"]["mean"] == pytest.approx(
        sum(row["influence"] for row in rows_of(run) if row["influence_status"] == "ok") / 9
    )
    assert "✓ run/index and tester/scored-index: comparable" in same and "10 clips are in both" in same
    assert "3 are ranked in both: Spearman +1.000" in two
    assert Dataset.from_parquet(str(job / "back.parquet"))["caption"][:] == ranked(run)[:2]


def test_a_corpus_that_was_scored_again_is_not_the_whole_of_a_selection(hf_motive, run, job, capsys):
    from hf_motive.commands.push import _whole
    from hf_motive.commands.sources import find, read_selection

    shutil.copytree(run, job / "mine")
    hf_motive("select", "mine", "--output", "mine-best.parquet", "--count", 2)
    best, source = Dataset.from_parquet("mine-best.parquet"), find("mine-best.parquet")
    whole, index = _whole(source, read_selection(source), "train", best)
    assert len(whole) == 10 and index is not None
    path = str(job / "mine" / "influence.parquet")
    again = Dataset.from_parquet(path).map(lambda _: {"influence_queries": "0" * 16})
    again.to_parquet(path)
    assert _whole(source, read_selection(source), "train", best) == (None, None)
    assert "The card will not show the whole corpus: the rows were scored with queries" in capsys.readouterr().out
