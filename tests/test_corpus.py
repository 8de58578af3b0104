"""What a user may point at: folders, tables, saved datasets; and what is wrong with the rest."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict, Video

from hf_motive.corpus import load_clips
from hf_motive.video import load_clip
from tests.clips import write_corpus


def check(dataset, count=2):
    """Undecoded rows, whose files are there and decode, in a stable order."""
    assert dataset.num_rows == count
    assert dataset.features["video"] == Video(decode=False)
    assert dataset["caption"][:2] == ["a square goes left", "a square goes right"]
    assert load_clip(dataset[0]["video"]).shape == (12, 3, 48, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, range(2))
    return folder


def test_folder_with_metadata(folder):
    check(load_clips(folder))
    assert load_clips(folder)["kind"][:] == ["left", "right"]


def test_folder_with_captions_in_text_files(folder, tmp_path):
    for seed, kind in ((0, "left"), (1, "right"), (2, None)):
        (tmp_path / f"{seed}.mp4").write_bytes((folder / "000.mp4").read_bytes())
        if kind:
            (tmp_path / f"{seed}.txt").write_text(f"a square goes {kind}\n")
    dataset = load_clips(tmp_path)
    check(dataset, count=3)
    assert dataset["caption"][2] is None  # a row without a caption, not an error here


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_tables(folder, tmp_path, suffix):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    table = Dataset.from_list([{**row, "file_name": str(folder / row["file_name"])} for row in rows])
    file = tmp_path / f"clips.{suffix}"
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[suffix](str(file))
    check(load_clips(file))


def test_saved_dataset_and_split(folder, tmp_path):
    dataset = load_clips(folder)
    dataset.save_to_disk(str(tmp_path / "one"))
    check(load_clips(tmp_path / "one"))
    DatasetDict({"good": dataset}).save_to_disk(str(tmp_path / "many"))
    check(load_clips(tmp_path / "many", split="good"))
    with pytest.raises(ValueError, match="no split 'train'; it has good"):
        load_clips(tmp_path / "many")


def test_embedded_bytes_in_parquet(folder, tmp_path):
    """Hub datasets embed their videos: no file but the parquet is needed."""
    rows = [
        {"video": {"bytes": (folder / f"{i:03d}.mp4").read_bytes(), "path": None}, "caption": f"a square goes {kind}"}
        for i, kind in enumerate(("left", "right"))
    ]
    Dataset.from_list(rows).cast_column("video", Video(decode=False)).to_parquet(str(tmp_path / "clips.parquet"))
    check(load_clips(tmp_path / "clips.parquet"))


def test_other_column_names(folder):
    with pytest.raises(
        ValueError, match=r"no column 'text'; its columns are .*Name the right one with caption_column="
    ):
        load_clips(folder, caption_column="text")


def test_a_missing_file_costs_no_more_than_its_row(folder, tmp_path):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "gone.mp4", "caption": "nothing"}))
    assert load_clips(tmp_path).num_rows == 1


def test_errors_name_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no video .* and none of metadata.jsonl"):
        load_clips(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist: give a folder of clips, a table, or the id"):
        load_clips(tmp_path / "nowhere")
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        load_clips(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4"}\n{"file_name": \n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        load_clips(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"caption": "a"}\n')
    with pytest.raises(ValueError, match="neither a column 'video' nor one of file_name, file_path, path"):
        load_clips(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="neither a folder nor a .jsonl, .csv or .parquet table"):
        load_clips(tmp_path / "notes.txt")


def test_a_line_of_json_ends_where_json_says(folder, tmp_path):
    caption = "a square\u2028goes\x85left"  # line separators to str.splitlines, plain characters to JSON
    row = {"file_name": str(folder / "000.mp4"), "caption": caption}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert load_clips(tmp_path)["caption"][:] == [caption]


def test_paths_start_at_the_table_and_the_first_row_may_lack_a_column(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    write = "".join(json.dumps(row) + "\n" for row in ({"video": "000.mp4"}, {"video": "001.mp4", "caption": "b"}))
    (folder / "videos.jsonl").write_text(write)
    dataset = load_clips("videos.jsonl")
    assert dataset["caption"][:] == [None, "b"]
    monkeypatch.chdir(tmp_path)
    assert load_clip(dataset[1]["video"]).shape[0] == 12
