"""What `hf-motive inspect` says, against what the index, numpy and scipy say."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from rich.console import Console
from scipy.stats import spearmanr

from hf_motive.commands.inspect import (
    Distribution,
    InspectArguments,
    compare,
    describe,
    inspect,
    open_subject,
    to_json,
)
from hf_motive.commands.inspect_report import print_comparison, print_description
from hf_motive.commands.sources import find
from hf_motive.index import GradientIndex, IndexMismatchError
from hf_motive.transforms import influence_columns, settings_digest

DIM = 16


def settings(seed: int = 0) -> dict:
    features = {"seed": seed, "timesteps": [751.0], "pipeline": {"weights": {"transformer": "abc"}}}
    return {"features": features, "provenance": {"torch": "2"}}


def write_index(path: Path, clips: range, *, seed: int = 0, shard: str = "00000") -> GradientIndex:
    """Features drawn by the clip's number; each tenth clip is static."""
    with GradientIndex.create_or_open(path, settings(seed), DIM, shard) as index:
        for clip in clips:
            if clip % 10 == 9:
                index.append(f"clip{clip:03d}", None, "static", "nothing moves", mean_motion=0.0)
            else:
                feature = torch.randn(DIM, generator=torch.Generator().manual_seed(clip + 1000 * seed))
                index.append(f"clip{clip:03d}", feature, mean_motion=clip / 10)
    return GradientIndex.open(path)


def scored(index: GradientIndex, queries: GradientIndex, names: list[str]) -> Dataset:
    asked = queries.ids("ok")
    groups = [f"query{n}" for n in range(len(asked))]
    columns = influence_columns(names, index, asked, queries, groups=groups)
    return Dataset.from_dict({"caption": names, **columns})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs: `a`; `b` with half of its clips and the same queries; `other` of other settings; `asked` other queries."""
    root = tmp_path_factory.mktemp("inspection")
    jobs = {
        "a": (range(60), 0, range(100, 103)),
        "b": (range(30, 90), 0, range(100, 103)),
        "other": (range(60), 1, range(100, 103)),
        "asked": (range(60), 0, range(200, 205)),
    }
    for name, (clips, seed, asked) in jobs.items():
        index = write_index(root / name / "index", clips, seed=seed)
        queries = write_index(root / name / "index-queries", asked, seed=seed)
        rows = scored(index, queries, [f"clip{clip:03d}" for clip in clips])
        rows.to_parquet(str(root / name / "influence.parquet"))
    return root


def compared(one: Path, other: Path):
    return compare(open_subject(one), open_subject(other))


# An index -------------------------------------------------------------------------------------------------------


def test_an_index_by_its_own_words(folder):
    index = GradientIndex.open(folder / "a" / "index")
    found = describe(open_subject(folder / "a" / "index"))
    assert found.kind == "index" and found.rows == 60 and found.statuses == {"ok": 54, "static": 6}
    assert found.dim == DIM and found.digest == index.digest() and found.settings == settings()["features"]
    assert found.settings_digest == settings_digest(index) and found.written_by == [{"torch": "2"}]
    assert found.bytes == sum(file.stat().st_size for file in (folder / "a" / "index").iterdir())
    moved = [0.0 if clip % 10 == 9 else clip / 10 for clip in range(60)]
    assert found.motion.mean == pytest.approx(np.mean(moved)) and found.motion.count == 60
    assert [(s.name, s.rows, s.torn, s.being_written) for s in found.shards] == [("00000", 60, 0, False)]


def test_writers_at_work_and_what_a_crash_left(tmp_path):
    write_index(tmp_path, range(5), shard="00000").close()
    writer = GradientIndex.create_or_open(tmp_path, settings(), DIM, "00001")
    writer.append("clip100", torch.ones(DIM))
    busy = {shard.name: shard.being_written for shard in describe(open_subject(tmp_path)).shards}
    assert busy == {"00000": False, "00001": True}
    writer.append("clip101", torch.ones(DIM))  # to be looked at does not disturb it
    writer.close()
    with (
        open(tmp_path / "shard-00000.rows.jsonl", "ab") as rows,
        open(tmp_path / "shard-00000.features", "ab") as data,
    ):
        data.write(bytes(4 * DIM))
        rows.write(b'{"id": "to')
    found = describe(open_subject(tmp_path))
    assert found.rows == 7
    assert [(shard.rows, shard.torn, shard.being_written) for shard in found.shards] == [
        (5, 4 * DIM + 10, False),
        (2, 0, False),
    ]
    text = io.StringIO()
    print_description(found, console=Console(file=text, width=200))
    assert "74 bytes behind the last are torn, by a crash: the next run cuts them off" in text.getvalue()


# A scored dataset -----------------------------------------------------------------------------------------------


def test_a_run_is_its_scores_and_its_index(folder):
    found = describe(open_subject(folder / "a"))
    rows = Dataset.from_parquet(str(folder / "a" / "influence.parquet"))
    numbers = np.array(rows["influence"])
    numbers = numbers[~np.isnan(numbers)]
    assert found.kind == "scored dataset" and found.rows == 60 and found.statuses == {"ok": 54, "static": 6}
    assert found.reasons == {"static": "nothing moves"}
    assert found.influence.count == 54 and found.influence.negative == (numbers < 0).sum() > 0
    assert found.influence.median == pytest.approx(np.median(numbers))
    assert (found.influence.low, found.influence.high) == pytest.approx(np.quantile(numbers, [0.1, 0.9]))
    assert set(found.groups) == {"query0", "query1", "query2"}
    assert found.influence_settings == [found.index.settings_digest] == rows.unique("influence_settings")
    assert found.influence_queries == rows.unique("influence_queries")
    assert "caption" in found.columns and found.index.rows == 60


def test_a_table_a_saved_dataset_and_lines_of_json_say_the_same(folder, tmp_path):
    rows = Dataset.from_parquet(str(folder / "a" / "influence.parquet"))
    rows.save_to_disk(str(tmp_path / "saved"))
    DatasetDict(train=rows).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "lines").mkdir()
    lines = [{k: None if v != v else v for k, v in row.items()} for row in rows]
    (tmp_path / "lines" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows.to_csv(str(tmp_path / "table.csv"))
    expected = describe(open_subject(folder / "a" / "influence.parquet"))
    for name in ("saved", "splits", "lines", "table.csv"):
        found = describe(open_subject(tmp_path / name))
        for part in ("rows", "statuses", "reasons", "groups", "influence_settings", "influence_queries", "columns"):
            assert getattr(found, part) == getattr(expected, part), (name, part)
        assert found.influence == expected.influence
    with pytest.raises(ValueError, match="no split 'test'; it has train: choose by --split"):
        open_subject(tmp_path / "splits", "test")


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=1000),
        np.random.default_rng(0).normal(size=50) * 1e-5,
        np.full(3, 0.25),
        np.array([-0.5]),
        np.zeros(4),
        np.linspace(-1, 1, 201),
        np.arange(13.0),
    ],
    ids=["normal", "small", "equal", "one", "zero", "whole range", "integers"],
)
def test_a_histogram_counts_everything_and_mixes_no_signs(values):
    found = Distribution.of([*values, None, math.nan])
    assert found.count == len(values) == sum(found.counts) and found.negative == (values < 0).sum()
    assert len(found.edges) == len(found.counts) + 1 <= 28
    assert all(left >= 0 or right <= 0 for left, right in zip(found.edges, found.edges[1:], strict=False))
    below = sum(n for left, n in zip(found.edges, found.counts, strict=False) if left < 0)
    assert below == found.negative
    assert found.edges[0] <= found.minimum and found.maximum <= found.edges[-1]
    assert Distribution.of([None, math.nan]) is None


def test_negative_influence_is_seen(folder):
    text = io.StringIO()
    found = describe(open_subject(folder / "a"))
    print_description(found, console=Console(file=text, width=300))
    said = text.getvalue()
    assert f"{found.influence.negative} of 54" in said and "works against what the queries show" in said
    bars = [line.split() for line in said.splitlines() if " … " in line]
    assert [(float(b[0]), int(b[-1])) for b in bars] == [
        (round(edge, 3), count) for edge, count in zip(found.influence.edges, found.influence.counts, strict=False)
    ]
    assert any(b[0].startswith("-") and "█" in b[3] for b in bars)


# Two ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "shared", "ranked"), [("b", 30, 27), ("asked", 60, 54)])
def test_how_far_two_agree(folder, other, shared, ranked):
    found = compared(folder / "a", folder / other)
    assert found.comparable == (other == "b") and found.shared == shared
    frames = [Dataset.from_parquet(str(folder / name / "influence.parquet")).to_pandas() for name in ("a", other)]
    ranks = [frame.dropna(subset="influence_rank").set_index("influence_id")["influence_rank"] for frame in frames]
    both = sorted(set(ranks[0].index) & set(ranks[1].index))
    assert found.both_ranked == len(both) == ranked and found.top == math.ceil(ranked / 10)
    assert found.spearman == pytest.approx(spearmanr(ranks[0][both], ranks[1][both]).statistic)
    top = [set(rank[both].sort_values().index[: found.top]) for rank in ranks]
    assert found.top_shared == len(top[0] & top[1])


def test_other_queries_are_another_question(folder):
    found = compared(folder / "a", folder / "asked")
    assert (
        found.comparable is False and list(found.differences) == ["queries"] and "different queries" in found.verdict
    )
    assert found.both_ranked == 54 and -1 <= found.spearman < 1  # and yet one may ask how far the answers agree
    assert compared(folder / "a" / "index", folder / "asked").comparable  # features have not been asked


def test_other_settings_are_named(folder):
    with pytest.raises(IndexMismatchError) as refused:
        GradientIndex.open(folder / "a" / "index").check_comparable(GradientIndex.open(folder / "other" / "index"))
    found = compared(folder / "a" / "index", folder / "other" / "index")
    assert found.comparable is False and found.differences == refused.value.differences == {"seed": (0, 1)}
    assert compared(folder / "a", folder / "other").differences["seed"] == (0, 1)
    tables = compared(folder / "a" / "influence.parquet", folder / "other" / "index")
    assert tables.comparable is False and list(tables.differences) == ["settings"]  # a table knows the digest alone
    text = io.StringIO()
    print_comparison(found, "a", "other", Console(file=text, width=200))
    assert (
        "✗ a and other: not comparable" in text.getvalue()
        and "seed: 0 in the first, 1 in the second" in text.getvalue()
    )


def test_what_does_not_say_how_it_was_made_cannot_be_told(folder, tmp_path):
    rows = Dataset.from_parquet(str(folder / "a" / "influence.parquet"))
    rows.remove_columns(["influence_settings", "influence_queries", "influence_id"]).to_parquet(
        tmp_path / "old.parquet"
    )
    found = compared(tmp_path / "old.parquet", folder / "a")
    assert found.comparable is None and found.shared is None and "cannot be told" in found.verdict


def test_exit_status_and_json(folder, capsys):
    names = [str(folder / name) for name in ("a", "b", "asked")]
    assert inspect(InspectArguments(names[0], json=True)) == 0
    alone = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert alone == json.loads(to_json(describe(open_subject(names[0]))))
    assert inspect(InspectArguments(names[0], names[1], json=True)) == 0
    assert inspect(InspectArguments(names[0], names[2])) == 3
    said = capsys.readouterr().out
    assert '"comparable": true' in said and "not comparable as they stand" in said


def test_what_lies_where(folder, tmp_path):
    kinds = {"a": "run", "a/index": "index", "a/influence.parquet": "dataset"}
    assert {name: find(folder / name).kind for name in kinds} == kinds
    assert find("me/clips").kind == "hub"
    (tmp_path / "young").mkdir()
    write_index(tmp_path / "young" / "index", range(2)).close()
    assert describe(open_subject(tmp_path / "young")).kind == "index"  # a run that has no scores yet
    for wrong, words in (("./nowhere", "does not exist"), (tmp_path, "is none of these"), ("x.parquet", "not exist")):
        with pytest.raises(FileNotFoundError, match=words):
            find(wrong)
    Dataset.from_dict({"caption": ["a"]}).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match="has not been scored .* Its columns are caption"):
        open_subject(tmp_path / "plain.parquet")


@pytest.mark.parametrize(
    "text, said", [('{"influence": 1}\n\n{"influ\n', "line 3 is not JSON: "), ("[1]\n", "line 1 is no object")]
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, text, said):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.jsonl") as error:
        describe(open_subject(path))
    assert said in str(error.value)


def test_reading_from_the_hub_is_tried_again(monkeypatch):
    import time

    from hf_motive.commands.sources import _from_hub
    from tests.test_retries import failing

    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert _from_hub("me/x", failing(2, 503)) == "done" and waits == [1, 2]
    said = "^me/x does not exist here, and cannot be had from the Hub: reading me/x failed: .*hf auth login"
    with pytest.raises(OSError, match=said):
        _from_hub("me/x", failing(1, 401))
