"""A curated subset as a folder: what `videofolder` and `load_clips` read back is what was written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Array3D, Dataset, DatasetDict, Features, List, Value, Video, load_dataset

from hf_motive.corpus import load_clips
from hf_motive.export import write_videofolder
from hf_motive.video import content_id, save_clip
from tests.clips import moving_square

CAPTIONS = ["a ball — 弾む ⚽", "two\nlines\u2028and a half\x85", None, "", 'said "no"', "left out"]
NAN = float("nan")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Five clips, two of one name, some named as what `load_dataset` takes for splits, and a file that is no clip."""
    folder = tmp_path_factory.mktemp("sources")
    names = ["a/clip.mp4", "b/clip.mp4", "a/test.mp4", "b/train_0001 (é).MP4", "b/dev-x.webm", "b/broken.mp4"]
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if seed < 5:
            save_clip(folder / "clip.mp4", moving_square(seed), fps=16)
            (folder / "clip.mp4").rename(path)
    (folder / names[-1]).write_bytes(b"no video at all")
    return [str(folder / name) for name in names]


@pytest.fixture(scope="module")
def scored(sources) -> Dataset:
    """As scoring leaves it: NaN where a row is not ranked."""
    columns = {
        "video": [{"path": path, "bytes": None} for path in sources],
        "caption": CAPTIONS,
        "file_name": ["what it was called before"] * 6,
        "kind": ["left", "right", None, "left", "left", "left"],
        "tags": [["a"], [], None, ["b", "ü"], [], []],
        "take": [1, 2, None, 4, 5, 6],
        "influence": [0.5, -0.25, NAN, 1.0, 0.0, NAN],
        "influence_rank": [1.0, 3.0, NAN, 0.0, 2.0, NAN],
        "influence_status": ["ok", "ok", "static", "ok", "ok", "unreadable"],
        "motion_mask": [np.zeros((2, 3, 4), np.uint8)] * 6,
    }
    features = {
        "video": Video(decode=False),
        "take": Value("int64"),
        "tags": List(Value("string")),
        "motion_mask": Array3D((2, 3, 4), "uint8"),
    }
    features |= {name: Value("float64") for name in ("influence", "influence_rank")}
    features |= {name: Value("string") for name in ("caption", "file_name", "kind", "influence_status")}
    return Dataset.from_dict(columns, features=Features({name: features[name] for name in columns}))


def read(folder, tmp_path, **options):
    """The rows by `videofolder`, with the clips' bytes."""
    loaded = load_dataset("videofolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), **options)
    assert list(loaded) == ["train"], "a clip's name makes no split"
    return loaded["train"].cast_column("video", Video(decode=False))


def bytes_of(row) -> bytes:
    return Path(row["video"]["path"]).read_bytes()


@pytest.mark.parametrize("streamed", [False, True], ids=["map-style", "streamed"])
@pytest.mark.parametrize("embedded", [False, True], ids=["paths", "bytes"])
def test_what_is_read_back_is_what_was_written(streamed, embedded, scored, sources, tmp_path, caplog):
    dataset = scored
    if embedded:
        rows = [{"path": p, "bytes": Path(p).read_bytes()} for p in sources]
        features = scored.features
        dataset = scored.remove_columns("video").add_column("video", rows).cast(features)
    dataset = dataset.cast_column("video", Video())  # as a Hub dataset is: nothing decodes it here
    if streamed:
        dataset = dataset.to_iterable_dataset(num_shards=2)
    # The name of the folder, too, could be taken for a split.
    folder = write_videofolder(dataset, tmp_path / "test" / "train", progress=False)
    assert "1 of 6 clips could not be read" in caplog.text and "row 5" in caplog.text

    found = read(folder, tmp_path)
    assert len(found) == 5
    assert set(found.column_names) == {*scored.column_names} - {"file_name", "motion_mask"}
    for row, path, expected in zip(found, sources, scored.remove_columns(["file_name", "motion_mask"]), strict=False):
        assert bytes_of(row) == Path(path).read_bytes()
        expected = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in expected.items()}
        assert {k: v for k, v in row.items() if k != "video"} == {k: v for k, v in expected.items() if k != "video"}
    ids = [content_id(row["video"], row["caption"] or "") for row in load_clips(folder)]
    assert ids == [content_id(p, c or "") for p, c in zip(sources[:5], CAPTIONS, strict=False)]


def test_names_are_safe_sorted_and_say_where_they_come_from(scored, tmp_path):
    folder = write_videofolder(scored.select([3, 1, 0, 2, 4]), tmp_path / "out", progress=False)
    names = sorted(path.name for path in (folder / "clips").iterdir())
    assert names == [
        "00000000-0001.mp4",
        "00000001-clip.mp4",
        "00000002-clip.mp4",
        "00000003.mp4",
        "00000004-x.webm",
    ]
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["file_name"] for line in lines] == [f"clips/{name}" for name in names]
    assert [line["influence_rank"] for line in lines] == [0.0, 3.0, 1.0, None, 2.0]


def test_captions_beside_the_clips(scored, tmp_path):
    folder = write_videofolder(scored, tmp_path / "out", caption_files=True, progress=False)
    texts = {path.stem: path.read_bytes().decode() for path in (folder / "clips").glob("*.txt")}
    assert [texts[stem] for stem in sorted(texts)] == [CAPTIONS[row] for row in (0, 1, 3, 4)], "None has no file"
    assert len(read(folder, tmp_path)) == 5
    (folder / "metadata.jsonl").unlink()
    beside = load_clips(folder)["caption"][:]
    assert beside == [c.strip() if c is not None else None for c in CAPTIONS[:5]]


def test_bytes_without_a_name_get_the_suffix_of_their_container(sources, tmp_path):
    import av

    with av.open(str(tmp_path / "x.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    files = [Path(sources[0]).read_bytes(), (tmp_path / "x.mkv").read_bytes()]
    dataset = Dataset.from_dict({"video": files, "caption": ["a", "b"]})
    folder = write_videofolder(dataset, tmp_path / "out", progress=False)
    assert sorted(path.name for path in (folder / "clips").iterdir()) == ["00000000.mp4", "00000001.mkv"]
    assert [bytes_of(row) for row in read(folder, tmp_path)] == files


def test_urls_are_fetched(sources, tmp_path, caplog):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a ball.mp4", Path(sources[0]).read_bytes())
    urls = ["memory://bucket/a ball.mp4", "memory://bucket/gone.mp4"]
    dataset = Dataset.from_dict({"video": urls, "caption": ["a", "b"]})
    folder = write_videofolder(dataset, tmp_path / "out", progress=False)
    assert [path.name for path in (folder / "clips").iterdir()] == ["00000000-a-ball.mp4"]
    assert bytes_of(read(folder, tmp_path)[0]) == Path(sources[0]).read_bytes()
    assert "row 1: gone.mp4 cannot be opened" in caplog.text


def test_frames_are_encoded(tmp_path):
    frames = moving_square(3)
    images = ((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    as_rows = Dataset.from_generator(lambda: iter([{"clip": images, "text": "frames"}]), cache_dir=str(tmp_path / "c"))
    folder = write_videofolder(as_rows, tmp_path / "out", video_column="clip", caption_column="text", progress=False)
    row = read(folder, tmp_path)[0]
    assert row["text"] == "frames"
    save_clip(tmp_path / "same.mp4", frames)
    assert bytes_of(row) == (tmp_path / "same.mp4").read_bytes()


def test_a_folder_is_replaced_only_when_told_and_only_if_it_is_one(scored, tmp_path):
    out = write_videofolder(scored.select([0]), tmp_path / "out", progress=False)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_videofolder(scored, out, progress=False)
    write_videofolder(scored.select([1, 2]), out, overwrite=True, progress=False)
    assert len(list((out / "clips").iterdir())) == 2
    other = tmp_path / "photos"
    other.mkdir()
    write_videofolder(scored.select([0]), other, progress=False)  # empty: there is nothing to lose
    (other / "metadata.jsonl").unlink()
    with pytest.raises(FileExistsError, match="never replaced"):
        write_videofolder(scored, other, overwrite=True, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"], "nothing of the writing is left"


def test_a_run_that_dies_leaves_no_folder_and_the_next_begins_anew(scored, tmp_path):
    class Killed(BaseException):
        pass

    def dies():
        yield {"video": scored[0]["video"]["path"], "caption": "x"}
        raise Killed

    from datasets import IterableDataset

    out = write_videofolder(scored.select([3]), tmp_path / "out", progress=False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(Killed):
        write_videofolder(IterableDataset.from_generator(dies), out, overwrite=True, progress=False)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    write_videofolder(scored.select([1]), out, overwrite=True, progress=False)
    assert [p.name for p in (out / "clips").iterdir()] == ["00000000-clip.mp4"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nothing_to_write_is_an_error(scored, tmp_path):
    with pytest.raises(TypeError, match=r"dataset\['test'\]"):
        write_videofolder(DatasetDict(test=scored), tmp_path / "out")
    with pytest.raises(ValueError, match="no rows"):
        write_videofolder(scored.select([]), tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="none of 1 clips could be read: row 0: .*broken.mp4"):
        write_videofolder(scored.select([5]), tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are video, caption.*caption_column="):
        write_videofolder(scored, tmp_path / "out", caption_column="text", progress=False)
    assert not list(tmp_path.iterdir())
