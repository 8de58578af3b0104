"""What leaves this machine: all of the rows, and no folder's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_motive.hub.published import embedded, provenance, snapshot, without_folders
from hf_motive.index import GradientIndex
from hf_motive.video import file_name

SETTINGS = {"features": {"seed": 0}, "provenance": {"pipeline": "/home/somebody/models/wan", "torch": "2"}}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("/data/me/a.mp4 is empty (0 bytes)", "a.mp4 is empty (0 bytes)"),
        ("'/data/me/a.mp4' is not a file", "'a.mp4' is not a file"),
        ("paths are relative to /home/me/run", "paths are relative to run"),
        ("../up/secret/q.mp4 is empty; see file:///home/me/y.log", "q.mp4 is empty; see y.log"),
        ("~/clips/a.mp4 and C:\\clips\\b.mp4", "a.mp4 and b.mp4"),
        ("the same as row 3, a 4/3 clip; see https://example.org/a/b", None),
        ("a frame of 1/16 s", None),
        ("/", None),
    ],
)
def test_texts_lose_folders_and_nothing_else(text: str, expected: str | None):
    assert without_folders(text) == (text if expected is None else expected)


def test_a_folder_with_spaces_is_known_from_the_rows_clip():
    assert without_folders("/my clips/a b.mp4 is empty", "/my clips") == "a b.mp4 is empty"


def test_names_of_files_in_archives_and_on_servers():
    assert file_name("zip://clips/a.mp4::/home/me/all.zip") == "a.mp4"
    assert file_name("https://example.org/clips/a.mp4?key=secret") == "a.mp4"
    assert file_name("C:\\clips\\a.mp4") == "a.mp4"


@pytest.mark.parametrize(
    "source, published",
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("/home/me/models/wan", "wan"),
        ("../models/wan", "wan"),
        ("./wan", "wan"),
        ("runs/wan/best", "best"),
        ("src/hf_motive", "hf_motive"),  # there is such a folder
        ("/home/me/.cache/huggingface/hub/models--Wan-AI--Wan2.1/snapshots/0123", "Wan-AI/Wan2.1"),
        (None, None),
    ],
)
def test_pipelines_keep_their_id_or_their_last_name(source, published, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert provenance({"pipeline": source, "torch": "2"}) == {"pipeline": published, "torch": "2"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Eight rows: files, bytes, a file that is not there, nothing; masks and numbers with gaps."""
    from datasets import Array3D, Dataset, Features, Value, Video

    folder = tmp_path_factory.mktemp("my clips")
    for row in range(8):
        (folder / f"{row}.mp4").write_bytes(bytes([row]) * 1000)
    videos = [{"path": str(folder / f"{row}.mp4"), "bytes": None} for row in range(8)]
    (folder / "2.mp4").unlink()  # `datasets` forgets the bytes of a file that is there
    videos[2] = {"path": str(folder / "2.mp4"), "bytes": b"held"}
    videos[3] = {"path": str(folder / "gone.mp4"), "bytes": None}
    videos[4] = None
    videos[5] = {"path": None, "bytes": b"nameless"}
    features = Features(
        video=Video(decode=False),
        caption=Value("string"),
        source=Value("string"),
        motion_mask=Array3D((1, 2, 2), "uint8"),
        influence=Value("float64"),
        influence_reason=Value("string"),
    )
    columns = {
        "video": videos,
        "caption": [f"left/right {row}" for row in range(8)],
        "source": [video["path"] if video else None for video in videos],
        "motion_mask": [None if row == 3 else np.full((1, 2, 2), row, np.uint8) for row in range(8)],
        "influence": [float("nan") if row == 3 else row / 7 for row in range(8)],
        "influence_reason": [f"{video['path']} does not exist" if video else "" for video in videos],
    }
    return Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("kind", ["map", "selected", "stream"])
def test_rows_are_published_whole(rows, kind, tmp_path):
    from datasets import Dataset

    order = [6, 3, 0, 5, 4] if kind == "selected" else list(range(8))
    dataset = {"map": rows, "selected": rows.select(order), "stream": rows.to_iterable_dataset(3)}[kind]
    stream = embedded(dataset, "video")
    assert stream.features == rows.features
    stream.to_parquet(str(tmp_path / "rows.parquet"))
    found = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found.features == rows.features
    held = {2: b"held", 5: b"nameless"}
    for row, place in zip(found, order, strict=True):
        if place in (3, 4):
            assert row["video"] is None
        else:
            name = None if place == 5 else f"{place}.mp4"
            assert row["video"] == {"path": name, "bytes": held.get(place, bytes([place]) * 1000)}
        assert row["caption"] == f"left/right {place}"
        before = rows[place]
        assert row["source"] == (before["source"] and Path(before["source"]).name)
        assert row["motion_mask"] == before["motion_mask"]
        np.testing.assert_equal(row["influence"], before["influence"])
        assert "/" not in row["influence_reason"]


def test_rows_are_cut_into_files_by_their_size_with_clips(rows):
    from datasets import Video

    assert embedded(rows, "video", 1 << 30).num_shards == 1
    assert embedded(rows, "video", 1500).num_shards == 4  # 4,000 bytes of clips, and some hundreds of columns
    texts = rows.remove_columns("video").add_column("video", [f"/x/{row}.mp4" for row in range(8)])
    assert embedded(texts, "video").features["video"] == Video(decode=False)


def write_index(folder: Path, shards: int = 1, rows: int = 6) -> str:
    """An index with rows of two statuses; its digest."""
    generator = torch.Generator().manual_seed(0)
    for shard in range(shards):
        other = {**SETTINGS, "provenance": {**SETTINGS["provenance"], "threads": shard}}
        with GradientIndex.create_or_open(folder, SETTINGS if shard == 0 else other, 8, f"{shard:05d}") as index:
            for row in range(shard, rows, shards):
                index.append(f"clip{row}", torch.randn(8, generator=generator), mean_motion=row / 3)
            index.append(f"bad{shard}", None, status="unreadable", reason="bad.mp4 holds no video stream (a/b)")
    return GradientIndex.open(folder).digest()


def test_a_snapshot_is_the_index_without_what_is_being_written(tmp_path):
    digest = write_index(tmp_path / "index", shards=2)
    index = GradientIndex.open(tmp_path / "index")
    with GradientIndex.create_or_open(tmp_path / "index", SETTINGS, 8, "00001") as writer:
        writer.append("later", torch.ones(8))  # whole, but after `index` was opened
        with (
            open(tmp_path / "index" / "shard-00001.rows.jsonl", "ab") as torn,
            open(tmp_path / "index" / "shard-00001.features", "ab") as feature,
        ):
            torn.write(b'{"id": "tor')
            feature.write(b"\x00\x01\x02")
        copy = snapshot(index, tmp_path / "copy")
    assert copy.digest() == index.digest() == digest
    assert "later" not in copy
    copy.verify()
    assert sorted(path.name for path in copy.path.iterdir()) == [
        "index.json",
        *(f"shard-{shard:05d}.{kind}" for shard in range(2) for kind in ("features", "rows.jsonl")),
    ]
    assert snapshot(GradientIndex.open(tmp_path / "index"), tmp_path / "newer").status("later") == "ok"


def test_a_snapshot_names_no_folder(tmp_path):
    write_index(tmp_path / "index", shards=2)
    with GradientIndex.create_or_open(tmp_path / "index", SETTINGS, 8, "00000") as index:
        index.append("gone", None, status="unreadable", reason=f"{tmp_path}/gone.mp4 does not exist")
    copy = snapshot(GradientIndex.open(tmp_path / "index"), tmp_path / "copy")
    assert copy.row("gone").reason == "gone.mp4 does not exist"
    assert [recorded["pipeline"] for recorded in copy.provenances] == ["wan", "wan"]
    assert copy.provenances[1]["threads"] == 1
    for path in copy.path.iterdir():
        assert b"/home" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()
    copy.verify()
    copy.check_comparable(index)
    assert json.loads((copy.path / "index.json").read_text())["settings"]["features"] == SETTINGS["features"]
