"""Datasets and indexes to a loopback Hub and back, by the real clients in a process of their own."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml

from hf_motive.index import GradientIndex
from hf_motive.transforms import settings_digest
from tests.clips import write_corpus
from tests.hub_client import Client
from tests.hub_routes import TOKENS
from tests.hub_server import HubServer
from tests.test_published import SETTINGS, write_index

SAFE = "Nothing on this machine was changed; the same call goes on where it stopped."


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Logged in as `hf auth login` does it: the token lies in HF_HOME. No test may make it say a token."""
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text("hf_test_write")
    started = Client(hub.environment(home, token=None), home / "client.log")
    yield started
    output = started.output
    started.close()
    for token in TOKENS:
        assert token not in output, [line for line in output.splitlines() if token in line][:3]
    for repo in hub._hub.repos.values():
        for commit in repo.commits.values():
            for path, file in commit.files.items():
                assert not any(token.encode() in file.data for token in TOKENS), path


@pytest.fixture(autouse=True)
def no_faults(hub):
    yield
    hub._faults.clear()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder: clips, an index, and two datasets: `scored`, and `chosen`, its best four with one column more."""
    from datasets import Array3D, Dataset, Features, Value, Video

    folder = tmp_path_factory.mktemp("my clips")
    corpus = write_corpus(folder / "corpus", range(6), frames=4)
    write_index(folder / "index")
    settings = settings_digest(GradientIndex.open(folder / "index"))
    (folder / "corpus" / "bad.mp4").write_bytes(b"no video")
    rows = []
    for place, row in enumerate([*corpus, {"file_name": "bad.mp4", "caption": "nothing", "kind": "left"}]):
        path = str(folder / "corpus" / row["file_name"])
        ok = place < 6
        rows.append(
            {
                "video": {"path": path, "bytes": None},
                "caption": row["caption"],
                "kind": row["kind"],
                "influence": (3 - place) / 7 if ok else float("nan"),
                "influence_votes": float(place < 3) if ok else float("nan"),
                "influence_rank": float(place) if ok else float("nan"),
                "influence_status": "ok" if ok else "unreadable",
                "influence_reason": "" if ok else f"{path} holds no video stream",
                "influence_id": f"clip{place}",
                "influence_settings": settings,
                "influence_queries": "0" * 16,
                "motion_mean": place / 3 if ok else float("nan"),
                "motion_mask": np.full((2, 3, 4), place, np.uint8) if ok else None,
            }
        )
    text = ["caption", "kind", "influence_status", "influence_reason", "influence_id", "influence_settings"]
    features = Features(
        {name: Value("float64") for name in rows[0]}
        | {name: Value("string") for name in [*text, "influence_queries"]}
        | {"video": Video(decode=False), "motion_mask": Array3D((2, 3, 4), "uint8")}
    )
    scored = Dataset.from_list(rows, features=features)
    chosen = scored.select([2, 0, 3, 1]).add_column("rival_random", [0.5, 0.1, 0.2, 0.3])
    plain = chosen.select_columns(["video", "caption"]).add_column("influence", [float("nan")] * 4)
    # `save_to_disk` would embed the clips: these rows name files.
    for name, dataset in (("scored", scored), ("chosen", chosen), ("plain", plain)):
        pyarrow.parquet.write_table(dataset.with_format("arrow")[:], folder / f"{name}.parquet")
    return folder


def card(hub: HubServer, repo_id: str) -> tuple[dict, str]:
    """The metadata and the text of a repository's card."""
    _, header, text = hub.files(repo_id)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(header), text


def read(local: Path, name: str):
    """A dataset of `local`."""
    from datasets import Dataset

    return Dataset.from_parquet(str(local / f"{name}.parquet"), cache_dir=str(local.parent / "cache"))


def expected(local: Path, name: str) -> list[dict]:
    """What must come back: the rows that were pushed, with the clip as name and digest."""
    rows = []
    for row in read(local, name):
        path = Path(row["video"]["path"])
        row["video"] = [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
        row["influence_reason"] = row["influence_reason"].replace(f"{path.parent}/", "")
        rows.append(row)
    return rows


def requests(hub: HubServer, since: int = 0) -> list[tuple[str, str, int]]:
    return [(request.method, request.path.split("?")[0], request.status) for request in hub.log[since:]]


def snapshot_of(folder: Path) -> dict[str, tuple[int, str]]:
    """All files below a folder with their times and digests."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Round trips ----------------------------------------------------------------------------------------------------


def test_a_scored_corpus_comes_back_as_it_was(hub, client, local):
    before = snapshot_of(local)
    url = client.value(
        "push_dataset", folder=str(local / "scored.parquet"), repo_id="tester/scored", index=str(local / "index")
    )
    assert url == f"{hub.url}/datasets/tester/scored"
    assert snapshot_of(local) == before
    assert hub.repo("tester/scored").private
    assert "data/train-00000-of-00001.parquet" in hub.files("tester/scored")

    features = repr(dict(read(local, "scored").features))
    for streaming in (False, True):
        found = client.value("load", repo_id="tester/scored", streaming=streaming)
        assert found["features"] == features
        np.testing.assert_equal(found["rows"], expected(local, "scored"))


def test_no_folder_of_this_machine_is_published(hub, client, local):
    client.value(
        "push_dataset", folder=str(local / "scored.parquet"), repo_id="tester/folders", index=str(local / "index")
    )
    client.value("push_index", folder=str(local / "index"), repo_id="tester/folders-index")
    places = [str(local), str(local.parent), "/home/somebody", str(Path.cwd())]
    files = {**hub.files("tester/folders"), **hub.files("tester/folders-index")}
    for path, data in files.items():
        text = data
        if path.endswith(".parquet"):
            table = pyarrow.parquet.read_table(io.BytesIO(data))
            text = repr([table.schema.metadata, table.drop_columns(["motion_mask"]).to_pylist()]).encode()
        for place in places:
            assert place.encode() not in text, path


def test_a_second_push_replaces_the_first(hub, client, local):
    client.value("push_dataset", folder=str(local / "scored.parquet"), repo_id="tester/twice", shard_bytes=2000)
    first = set(hub.files("tester/twice"))
    assert sum(path.endswith(".parquet") for path in first) > 1
    client.value(
        "push_dataset",
        folder=str(local / "chosen.parquet"),
        repo_id="tester/twice",
        whole=str(local / "scored.parquet"),
        selection="The best four, in another order.",
    )
    files = set(hub.files("tester/twice"))
    assert [path for path in files if path.endswith(".parquet")] == ["data/train-00000-of-00001.parquet"]
    metadata, text = card(hub, "tester/twice")
    assert text.count("\n# ") == 1 and "The best four, in another order." in text
    assert metadata["dataset_info"]["splits"][0]["num_examples"] == 4
    found = client.value("load", repo_id="tester/twice")
    assert "rival_random" in found["features"]
    np.testing.assert_equal(found["rows"], expected(local, "chosen"))
    assert {"card/influence.png", "card/clips.png"} <= files
    # The same again changes nothing.
    commits = len(hub.repo("tester/twice").commits)
    uploads = len(hub.uploads)
    client.value(
        "push_dataset",
        folder=str(local / "chosen.parquet"),
        repo_id="tester/twice",
        whole=str(local / "scored.parquet"),
        selection="The best four, in another order.",
    )
    assert len(hub.uploads) == uploads
    assert hub.repo("tester/twice").at("main").files == {
        path: file for path, file in hub.repo("tester/twice").at("main").files.items() if path in files
    }
    assert len(hub.repo("tester/twice").commits) <= commits + 2
    # Without scores there is nothing to draw.
    client.value("push_dataset", folder=str(local / "plain.parquet"), repo_id="tester/twice")
    assert set(hub.files("tester/twice")) == {path for path in files if not path.startswith("card/")}


@pytest.mark.parametrize(
    "do, name, video",
    [
        ("push_dataset", "chosen.parquet", "embedded"),
        ("push_dataset", "chosen.parquet", "referenced"),
        ("push_index", "index", ""),
    ],
)
def test_what_a_person_wrote_into_the_header_stays(hub, client, local, do, name, video):
    push: dict = {"folder": str(local / name), "repo_id": f"tester/by-hand-{video or 'index'}"} | (
        {"video": video} if video else {}
    )
    client.value(do, license="mit", **push)
    before, text = card(hub, push["repo_id"])
    theirs = {
        "language": ["de"],
        "pretty_name": "Our clips",
        "task_categories": ["video-classification"],
        "extra_gated_prompt": "Do you agree?",
        "extra_gated_fields": {"Name": "text"},
        "license": "cc-by-4.0",
        "of_ours": 7,
    }
    header = yaml.safe_dump(before | theirs | {"tags": ["animals", "motion"], "size_categories": ["1M<n<10M"]})
    files = {"README.md": f"---\n{header}---\n{text}\n## Of our own\n", "card/theirs.png": "a picture"}
    client.value("edit", repo_id=push["repo_id"], files=files)
    client.value(do, **push)
    after, text = card(hub, push["repo_id"])
    assert {name: after[name] for name in theirs} == theirs
    assert after["tags"][:2] == ["animals", "motion"] and set(after["tags"]) == {*before["tags"], "animals", "motion"}
    assert len(after["tags"]) == len(set(after["tags"]))
    assert "Published as `cc-by-4.0`." in text and "## Of our own" not in text  # the text is replaced
    assert after["size_categories"] == before["size_categories"]
    for entry in ("configs", "dataset_info", "viewer"):
        assert after.get(entry) == before.get(entry)
    assert hub.files(push["repo_id"])["card/theirs.png"] == b"a picture"
    if video:
        assert len(client.value("load", repo_id=push["repo_id"])["rows"]) == 4
    client.value(do, license="Apache-2.0", **push)
    assert card(hub, push["repo_id"])[0]["license"] == "apache-2.0"


def test_a_stream_is_pushed_in_its_shards(hub, client, local):
    client.value("push_dataset", folder=str(local / "scored.parquet"), repo_id="tester/stream", stream=3)
    assert sum(path.endswith(".parquet") for path in hub.files("tester/stream")) == 3
    found = client.value("load", repo_id="tester/stream", streaming=True)
    np.testing.assert_equal(found["rows"], expected(local, "scored"))


def test_clips_as_files(hub, client, local):
    client.value("push_dataset", folder=str(local / "chosen.parquet"), repo_id="tester/files", video="referenced")
    paths = set(hub.files("tester/files"))
    assert {"train/metadata.jsonl", "train/clips/00000000-002.mp4"} <= paths
    assert not any(path.endswith(".parquet") for path in paths)
    for streaming in (False, True):
        found = client.value("load", repo_id="tester/files", streaming=streaming)
        wanted = expected(local, "chosen")
        assert len(found["rows"]) == 4
        for row, want in zip(found["rows"], wanted, strict=True):
            assert row["video"][0].endswith(want["video"][0]) and row["video"][1] == want["video"][1]
            for name in ("caption", "influence", "influence_rank", "influence_id", "motion_mean", "rival_random"):
                assert row[name] == want[name]


@pytest.mark.parametrize("video", ["embedded", "referenced"])
def test_a_stream_from_the_hub_goes_back_to_it(hub, client, local, video):
    """Its clips are at hf:// addresses, which need the token, and it was loaded to be decoded."""
    client.value("push_dataset", folder=str(local / "chosen.parquet"), repo_id="tester/source", video="referenced")
    client.value("push_stream", source="tester/source", repo_id=f"tester/again-{video}", video=video)
    source, found = (client.value("load", repo_id=name) for name in ("tester/source", f"tester/again-{video}"))
    assert found["features"] == source["features"]
    assert [row["video"][1] for row in found["rows"]] == [row["video"][1] for row in source["rows"]]
    assert [row["influence"] for row in found["rows"]] == [row["influence"] for row in source["rows"]]


def test_from_files_to_parquet_and_back(hub, client, local):
    for video, name in (("referenced", "scored"), ("embedded", "chosen"), ("referenced", "chosen")):
        client.value("push_dataset", folder=str(local / f"{name}.parquet"), repo_id="tester/kinds", video=video)
        paths = hub.files("tester/kinds")
        assert any(path.endswith(".parquet") for path in paths) == (video == "embedded")
        assert sum(path.endswith(".mp4") for path in paths) == (
            0 if video == "embedded" else 6 if name == "scored" else 4
        )
        found = client.value("load", repo_id="tester/kinds")
        assert [row["influence_id"] for row in found["rows"]] == [
            row["influence_id"] for row in expected(local, name) if row["influence_status"] == "ok"
        ]


def test_an_index_comes_back_with_its_digest(hub, client, local, tmp_path):
    digest = write_index(tmp_path / "index", shards=2)
    with open(tmp_path / "index" / "shard-00001.rows.jsonl", "ab") as torn:
        torn.write(b'{"id": "tor')  # what a run that is writing shows
    client.value("push_index", folder=str(tmp_path / "index"), repo_id="tester/index", corpus="me/clips")
    repo = hub.repo("tester/index")
    assert repo.private and b'{"id": "tor' not in hub.files("tester/index")["shard-00001.rows.jsonl"]
    assert not any(path.startswith(".index") for path in hub.files("tester/index"))
    found = client.value("load_index", repo_id="tester/index")
    assert found["digest"] == digest
    # It grows, and loses a shard: both at once, and the old one by its commit.
    first = repo.at("main").oid
    (tmp_path / "index" / "shard-00001.rows.jsonl").unlink()
    with GradientIndex.create_or_open(tmp_path / "index", SETTINGS, 8) as index:
        index.append("new", np.ones(8))
    client.value("push_index", folder=str(tmp_path / "index"), repo_id="tester/index")
    assert not any("00001" in path for path in hub.files("tester/index"))
    newer = GradientIndex.open(tmp_path / "index").digest()
    assert client.value("load_index", repo_id="tester/index")["digest"] == newer != digest
    assert client.value("load_index", repo_id="tester/index", revision=first)["digest"] == digest
    assert repo.at("main").parent == first  # one commit a push


def test_a_dataset_is_no_index(hub, client, local):
    client.value("push_dataset", folder=str(local / "chosen.parquet"), repo_id="tester/none")
    reply = client("load_index", repo_id="tester/none")
    assert reply["type"] == "ValueError" and "tester/none holds no index" in reply["error"]
    assert "load_dataset('tester/none')" in reply["error"]


def test_a_card_of_files_speaks_of_the_rows_that_are_there(hub, client, local):
    push = {"folder": str(local / "scored.parquet"), "video": "referenced"}
    for name, stream in (("unread", 0), ("unread-stream", 2)):
        client.value("push_dataset", repo_id=f"tester/{name}", stream=stream, **push)
        _, text = card(hub, f"tester/{name}")
        assert len(hub.files(f"tester/{name}")["train/metadata.jsonl"].splitlines()) == 6
        assert "**6 clips, 6 of them ranked" in text
        assert "Of 7 clips, 1 could not be read and had to be left out." in text
        assert "could not be ranked" not in text and "`unreadable`" not in text
    assert "tester/unread: 1 of 7 clips could not be read and are left out\n  row 6: bad.mp4" in client.output


@pytest.mark.parametrize("video", ["embedded", "referenced"])
def test_the_cards_code_runs(hub, client, local, video, tmp_path):
    """On rows of which one has no score: NaN in parquet, null in JSON."""
    unranked = {"influence": float("nan"), "influence_rank": float("nan"), "influence_status": "static"}
    rows = read(local, "chosen").map(lambda row: row | unranked if row["influence_rank"] == 3 else row)
    pyarrow.parquet.write_table(rows.with_format("arrow")[:], tmp_path / "rows.parquet")
    repo_id = f"tester/code-{video}"
    client.value("push_dataset", folder=str(tmp_path / "rows.parquet"), repo_id=repo_id, video=video)
    _, text = card(hub, repo_id)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert client.value("execute", code=code) == {"clips": 4, "best": 1, "good": 3}
    holds, other = ("NaN", "null") if video == "embedded" else ("null", "NaN")
    assert f"These rows hold {holds} for their scores" in text and other not in text
    if video == "referenced":  # and from there as a stream, in which a row without a number has a column without type
        client.value("push_stream", source=repo_id, repo_id="tester/code-again")
        again = card(hub, "tester/code-again")[1]
        code = re.search(r"```python\n(.*?)```", again, re.DOTALL)[1]
        assert client.value("execute", code=code) == {"clips": 4, "best": 1, "good": 3}


@pytest.mark.parametrize("video", ["embedded", "referenced"])
def test_no_folder_is_published_in_any_column(hub, client, local, video, tmp_path):
    clips = str(local / "corpus")
    rows = read(local, "chosen").map(
        lambda row: {
            "influence_reason": f"{row['video']['path']} cannot be decoded; see file:///home/somebody/log",
            "path": row["video"]["path"],
            "file_path": "/elsewhere/secret/0.mp4",
            "source": "/home/somebody/my clips/0.mp4",
            "meta": {"path": row["video"]["path"], "all": [f"{clips}/a.mp4", "/home/somebody/b.mp4"]},
            "label": "/m/0dgw9r",
            "caption": f"{clips}/caption.txt",
        }
    )
    pyarrow.parquet.write_table(rows.with_format("arrow")[:], tmp_path / "rows.parquet")
    client.value(
        "push_dataset",
        folder=str(tmp_path / "rows.parquet"),
        repo_id=f"tester/columns-{video}",
        video=video,
        corpus="me/clips",
        selection="From /home/somebody/run.",
        revision="/home/somebody/rev",
    )
    for path, data in hub.files(f"tester/columns-{video}").items():
        if path.endswith(".parquet"):
            data = repr(
                pyarrow.parquet.read_table(io.BytesIO(data)).drop_columns(["motion_mask"]).to_pylist()
            ).encode()
        for place in (str(local), "somebody", "/elsewhere"):
            assert place.encode() not in data, path
    _, text = card(hub, f"tester/columns-{video}")
    assert "From run." in text and "revision `rev`" in text and "| caption.txt |" in text
    for row in client.value("load", repo_id=f"tester/columns-{video}")["rows"]:
        clip = row["path"]
        assert re.fullmatch(r"00\d\.mp4", clip) and row["influence_reason"] == f"{clip} cannot be decoded; see log"
        assert row["meta"] == {"path": clip, "all": ["a.mp4", "b.mp4"]}
        assert (row["file_path"], row["source"], row["label"]) == ("0.mp4", "0.mp4", "/m/0dgw9r")


def test_what_is_wrong_is_said_before_anything_is_sent(local):
    """No Hub is there: a request would fail in another way."""
    from datasets import DatasetDict

    from hf_motive.hub import push_dataset

    scored, chosen = read(local, "scored"), read(local, "chosen")
    unscored = scored.remove_columns("influence")
    again = scored.map(lambda _: {"influence_queries": "1" * 16})
    stream = scored.to_iterable_dataset()
    nothing = stream.filter(lambda _: False)
    for dataset, whole, kind, said in (
        (DatasetDict(train=scored), None, TypeError, r"push one split, push_dataset\(dataset\['train'\], ...\)"),
        (unscored, None, ValueError, "no column 'influence'.* Score it first"),
        (unscored.to_iterable_dataset(), None, ValueError, "no column 'influence'"),
        (scored.select([]), None, ValueError, "^the dataset has no rows: nothing to push$"),
        (nothing, None, ValueError, "^the dataset has no rows: nothing to push$"),
        (chosen, DatasetDict(train=scored), TypeError, r"whole= is one split: name it, whole\['train'\]"),
        (chosen, unscored, ValueError, "whole= has no column 'influence'"),
        (chosen, again, ValueError, "queries 0{16}, and the whole corpus with 1{16}: it was scored again"),
        (chosen, again.to_iterable_dataset(), ValueError, "it was scored again"),
        (chosen.to_iterable_dataset(), again, ValueError, "it was scored again"),
    ):
        for video in ("embedded", "referenced"):
            with pytest.raises(kind, match=said):
                push_dataset(dataset, "tester/wrong", whole=whole, video=video)
    with pytest.raises(ValueError, match="no rows"):  # where the index asks the first row
        push_dataset(nothing, "tester/wrong", index=GradientIndex.open(local / "index"))


@pytest.mark.parametrize("first, second", [("embedded", "referenced"), ("referenced", "embedded")])
def test_two_kinds_of_splits_are_refused(hub, client, local, first, second):
    push = {"folder": str(local / "chosen.parquet"), "repo_id": f"tester/splits-{first}"}
    for split in ("train", "test"):
        client.value("push_dataset", split=split, video=first, **push)
    since = len(hub.log)
    reply = client("push_dataset", split="train", video=second, **push)
    assert reply["type"] == "ValueError"
    assert f"has a split 'test' with video='{first}'" in reply["error"]
    assert f"push 'train' with video='{first}' too, or to another repository" in reply["error"]
    assert {method for method, _, _ in requests(hub, since)} <= {"GET", "HEAD"}
    client.value("push_dataset", split="train", video=first, **push)
    for split in ("train", "test"):
        assert len(client.value("load", repo_id=push["repo_id"], split=split)["rows"]) == 4


def test_rows_of_another_index_are_refused(hub, client, local, tmp_path):
    with GradientIndex.create_or_open(tmp_path / "other", {"features": {"seed": 1}}, 8) as index:
        index.append("clip0", np.ones(8))
    for stream in (0, 2):
        reply = client(
            "push_dataset",
            folder=str(local / "scored.parquet"),
            repo_id="tester/mixed",
            index=str(tmp_path / "other"),
            stream=stream,
        )
        assert reply["type"] == "ValueError" and "give the index that they were scored with" in reply["error"]
    assert ("dataset", "tester/mixed") not in hub._hub.repos


# Who may see it -------------------------------------------------------------------------------------------------


def test_private_clips_do_not_go_to_a_public_repository(hub, client, local):
    client.value("push_dataset", folder=str(local / "chosen.parquet"), repo_id="tester/public", private=False)
    assert not hub.repo("tester/public").private
    before, since = hub.repo("tester/public").at("main").oid, len(hub.log)
    for do, folder in (("push_dataset", "scored.parquet"), ("push_index", "index")):
        reply = client(do, folder=str(local / folder), repo_id="tester/public")
        assert reply["type"] == "ValueError"
        assert "tester/public exists and is public: nothing was sent. Say private=False" in reply["error"]
    assert hub.repo("tester/public").at("main").oid == before
    assert {method for method, _, _ in requests(hub, since)} == {"GET"}


def test_a_private_repository_stays_private(hub, client, local):
    client.value("push_dataset", folder=str(local / "chosen.parquet"), repo_id="tester/private")
    client.value("push_dataset", folder=str(local / "chosen.parquet"), repo_id="tester/private", private=False)
    assert hub.repo("tester/private").private
    assert "tester/private is private and stays so" in client.output


def test_a_name_alone_is_in_the_tokens_namespace(hub, client, local):
    url = client.value("push_index", folder=str(local / "index"), repo_id="mine")
    assert url == f"{hub.url}/datasets/tester/mine"


# Faults ---------------------------------------------------------------------------------------------------------


def test_what_was_uploaded_is_not_uploaded_again(hub, client, local):
    push = {"folder": str(local / "scored.parquet"), "repo_id": "tester/resumed", "shard_bytes": 1500}
    before = snapshot_of(local)
    hub._hub._objects.clear()  # or what an earlier test uploaded would not be sent
    seen: list[str] = []

    def after_two(method: str, path: str) -> bool:
        if method == "PUT" and path.startswith("/storage/"):
            seen.append(path)
            return len(set(seen)) > 2
        return False

    since = len(hub.uploads)
    hub.drop(after_two, after_bytes=1000, times=10_000)
    reply = client("push_dataset", **push)
    assert reply["type"] == "HubError" and reply["status"] is None and SAFE in reply["error"]
    assert "no connection" in reply["error"] and "after 5 attempts" in reply["error"]
    assert len(hub.uploads) == since + 2
    assert snapshot_of(local) == before
    hub._faults.clear()
    client.value("push_dataset", **push)
    sent = hub.uploads[since:]
    shards = [path for path in hub.files("tester/resumed") if path.endswith(".parquet")]
    assert len(shards) > 2 and len(set(sent)) == len(sent)
    np.testing.assert_equal(client.value("load", repo_id="tester/resumed")["rows"], expected(local, "scored"))


@pytest.mark.parametrize("video", ["embedded", "referenced"])
@pytest.mark.parametrize("status", [0, 429, 500])
def test_a_short_fault_of_every_request_costs_nothing_but_time(hub, client, local, status, video):
    """0: the request is done, and its answer lost."""
    hub._hub._objects.clear()
    routes = ["info", "create", "preupload", "batch", "upload", "verify", "validate", "commit"]
    for route in [*routes, "tree"] if video == "embedded" else routes:
        if status:
            hub.fail(route, status, headers={"Retry-After": "7"} if status == 429 else {})
        else:
            hub.drop(route, after_bytes=None)
    reply = client(
        "push_dataset", folder=str(local / "chosen.parquet"), repo_id=f"tester/short-{status}-{video}", video=video
    )
    assert "error" not in reply, reply["error"]
    assert [fault.route for fault in hub._faults if fault.times] == []
    if status == 429:
        assert min(reply["waited"]) >= 7 and len(reply["waited"]) == len(hub._faults)
    assert len(client.value("load", repo_id=f"tester/short-{status}-{video}")["rows"]) == 4


@pytest.mark.parametrize(
    "do, route, status",
    [("push_index", "commit", status) for status in (400, 401, 403, 404, 409, 412, 429, 500)]
    + [("push_index", route, 400) for route in ("info", "create", "preupload", "validate")]
    + [("push_index", route, 500) for route in ("info", "create", "validate")]
    + [("push_dataset", route, 403) for route in ("info", "create", "preupload", "batch", "upload", "validate")]
    + [("push_dataset", route, 500) for route in ("preupload", "batch", "upload", "tree", "commit")]
    + [("load_index", route, status) for route in ("info", "tree", "resolve") for status in (403, 500)],
)
def test_a_lasting_fault_is_said_without_tokens(hub, client, local, do, route, status):
    repo_id = f"tester/long-{do}-{route}-{status}"
    arguments: dict = {"folder": str(local / ("index" if do == "push_index" else "chosen.parquet"))}
    if do == "load_index":
        client.value("push_index", folder=str(local / "index"), repo_id=repo_id)
        arguments = {}
    before = snapshot_of(local)
    hub._hub._objects.clear()
    hub.fail(route, status, times=10_000, message=f"not for {next(iter(TOKENS))}")
    reply = client(do, repo_id=repo_id, **arguments)
    assert reply["type"] == "HubError", reply["traceback"]
    assert reply["status"] == status and str(status) in reply["error"]
    assert reply["chain"] == "None"
    assert ("after 5 attempts" in reply["error"]) == (status in (409, 412, 429, 500))
    assert not any(token in json.dumps(reply) for token in TOKENS)
    assert snapshot_of(local) == before


@pytest.mark.parametrize(
    "token, repo_id, status, said",
    [
        ("hf_wrong_" + "x" * 20, "tester/denied", 401, "hf auth login"),
        ("hf_test_read", "tester/denied", 403, "write permission"),
        ("hf_test_other", "tester/denied", 403, "choose a namespace of yours"),
    ],
)
def test_tokens_that_may_not(hub, client, local, token, repo_id, status, said):
    for do, folder in (("push_dataset", "chosen.parquet"), ("push_index", "index")):
        since = len(hub.log)
        reply = client(do, folder=str(local / folder), repo_id=repo_id, token=token)
        assert (reply["type"], reply["status"]) == ("HubError", status)
        assert said in reply["error"] and SAFE in reply["error"] and not reply["waited"]
        assert token not in json.dumps(reply)
        assert [answer for _, _, answer in requests(hub, since)].count(status) == 1
    assert token not in client.output


def test_without_a_token(hub, client, local):
    stored = client.log.parent / "token"
    stored.rename(stored.with_name("away"))
    reply = client("push_index", folder=str(local / "index"), repo_id="tester/stranger")
    stored.with_name("away").rename(stored)
    assert (reply["type"], reply["status"], reply["waited"]) == ("HubError", 401, [])
    assert "the Hub asks for a login" in reply["error"] and "`hf auth login`" in reply["error"]


def test_without_a_network(local, tmp_path):
    with HubServer() as gone:
        environment = gone.environment(tmp_path / "home")
    offline = Client(environment, tmp_path / "client.log")
    before = snapshot_of(local)
    for do, arguments in (("push_index", {"folder": str(local / "index")}), ("load_index", {})):
        reply = offline(do, repo_id="tester/index", **arguments)
        assert (reply["type"], reply["status"]) == ("HubError", None)
        assert "after 5 attempts" in reply["error"] and "check the network and HF_ENDPOINT" in reply["error"]
    assert snapshot_of(local) == before
    assert "hf_test_write" not in offline.output
    offline.close()


def test_a_card_does_not_repeat_a_token(hub, client, local):
    """What a user says of the corpus may hold one; the fixture looks at every file of every commit, too."""
    client.value(
        "push_dataset",
        folder=str(local / "chosen.parquet"),
        repo_id="tester/said",
        selection="Those that hf_test_write may read.",
    )
    assert "Those that [token] may read." in hub.files("tester/said")["README.md"].decode()


def test_what_is_not_there(hub, client):
    reply = client("load_index", repo_id="tester/nowhere")
    assert (reply["type"], reply["status"]) == ("HubError", 404) and "check the id" in reply["error"]


def test_a_card_that_the_hub_does_not_accept(hub, client, local):
    checks: list[str] = []

    def the_second_check(_: str, path: str) -> bool:  # the first is that of the rows' own metadata
        if path.endswith("validate-yaml"):
            checks.append(path)
        return len(checks) > 1 and path.endswith("validate-yaml")

    hub.fail(the_second_check, 400, message="the license is unheard of")
    reply = client("push_dataset", folder=str(local / "chosen.parquet"), repo_id="tester/licence")
    assert (reply["type"], reply["status"]) == ("HubError", 400)
    assert "does not accept the card's metadata (400)" in reply["error"] and "unheard of" in reply["error"]
    assert f"What was sent is at {hub.url}/datasets/tester/licence" in reply["error"]
    assert len(client.value("load", repo_id="tester/licence")["rows"]) == 4


def test_the_validators_words_are_passed_on(hub, client):
    text = "---\nlicense: my own\n---\n"
    assert re.search(r'"license" must be one of .*\.$', client.value("refused", text=text))
    assert client.value("refused", text=text.replace("my own", "mit")) == ""


def test_somebody_else_commits_at_the_same_time(hub, client, local):
    hub.fail("commit", 412, times=1, message="A commit has happened since. Please refresh and try again.")
    reply = client("push_dataset", folder=str(local / "chosen.parquet"), repo_id="tester/both")
    assert "error" not in reply and reply["waited"]


def test_waits_are_said(client):
    assert re.search(r"WARNING:hf_motive.hub.retries:pushing .*: 500 .*Attempt 2 of 5 follows in 1 s", client.output)
