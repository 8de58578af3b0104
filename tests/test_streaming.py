"""Streams: scored and filtered row by row, with the same columns as the dataset that lies on disk."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Image, IterableDataset, IterableDatasetDict, Video, load_dataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from hf_motive import MotiveAttributor
from hf_motive.corpus import RowId, as_files, load_clips
from hf_motive.index import GradientIndex
from hf_motive.motion_columns import MotionFeatures, add_motion
from hf_motive.scoring import write_scores
from hf_motive.selection import best, best_of_each, without_worst
from hf_motive.transforms import TEXT_COLUMNS, _Lookup, group_columns, queries_digest, settings_digest
from tests.clips import write_corpus
from tests.families import wan

SMALL = {
    "num_frames": wan.NUM_FRAMES,
    "height": wan.HEIGHT,
    "width": wan.WIDTH,
    "fps": 16.0,
    "projection_dim": 64,
}


@pytest.fixture(scope="module")
def attributor():
    return MotiveAttributor(wan.build(), **SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven clips, a broken one and a copy of the first among them; as files, as shards, as a table of bytes."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = write_corpus(folder / "files", range(6))
    (folder / "files" / "004.mp4").write_text("not a video")
    rows.append({**rows[0], "file_name": "006.mp4"})
    (folder / "files" / "006.mp4").write_bytes((folder / "files" / "000.mp4").read_bytes())
    (folder / "files" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    videos = [(folder / "files" / row["file_name"]).read_bytes() for row in rows]
    for form in ("txt", "json"):
        (folder / form).mkdir()
        for shard in range(2):
            with tarfile.open(folder / form / f"{shard:03d}.tar", "w") as tar:
                for place in range(4 * shard, min(4 * shard + 4, len(rows))):
                    text = rows[place]["caption"] if form == "txt" else json.dumps(rows[place])
                    for suffix, data in (("mp4", videos[place]), (form, text.encode())):
                        member = tarfile.TarInfo(f"{place:06d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    table = Dataset.from_dict(
        {
            "video": [{"bytes": data, "path": None} for data in videos],
            "caption": [row["caption"] for row in rows],
            "kind": [row["kind"] for row in rows],
        }
    ).cast_column("video", Video(decode=False))
    table.to_parquet(str(folder / "table.parquet"))
    return folder


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    write_corpus(folder, range(100, 103))
    return load_clips(folder)


@pytest.fixture(scope="module")
def on_disk(attributor, folder, queries, tmp_path_factory):
    """The corpus scored as a map-style dataset: what every stream must agree with."""
    clips = load_clips(folder / "files")
    index = attributor.index(clips, tmp_path_factory.mktemp("run") / "index", progress=False)
    return index, attributor.influence(clips, index, queries, group_column="kind", rivals=True, progress=False)


def influence_of(rows) -> list[dict]:
    """The columns that scoring added, but for the reason: it names a file, where there is one."""
    added = ("influence", "rival", "motion_mean")
    return [
        {name: value for name, value in row.items() if name.startswith(added) and name != "influence_reason"}
        for row in rows
    ]


def held(index: GradientIndex) -> dict:
    ids = index.ids("ok")
    vectors = dict(zip(ids, index.features(ids).numpy().tolist(), strict=True))
    return {identity: (index.status(identity), vectors.get(identity)) for identity in index.ids()}


def assert_same_rows(left: list[dict], right: list[dict]) -> None:
    assert [row.keys() for row in left] == [row.keys() for row in right]
    for a, b in zip(left, right, strict=True):
        for name in a:
            if name in TEXT_COLUMNS:
                assert a[name] == b[name]
            else:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("source", ["txt", "json", "table.parquet", "files", "txt/000.tar"])
def test_a_stream_is_scored_as_the_dataset_on_disk(source, attributor, folder, queries, on_disk, tmp_path):
    stream = load_clips(folder / source, streaming=True)
    assert isinstance(stream, IterableDataset)
    index = attributor.index(stream, tmp_path / "index", progress=False)
    scored = attributor.influence(stream, index, queries, group_column="kind", rivals=True, progress=False)
    assert isinstance(scored, IterableDataset)
    rows = list(scored)
    if source != "txt/000.tar":
        assert held(index) == held(on_disk[0])
        assert_same_rows(influence_of(rows), influence_of(on_disk[1]))
        assert rows[6]["influence_status"] == "duplicate" and rows[4]["influence_status"] == "unreadable"
    else:
        assert len(rows) == 4 and set(index.ids()) < set(on_disk[0].ids())
    assert scored.column_names[: len(stream.column_names)] == stream.column_names
    # A row whose number is NaN slips into no selection, and what comes out is still a stream of clips.
    kept = list(scored.filter(lambda rank: rank < 2, input_columns="influence_rank"))
    assert len(kept) == 2 and all(row["video"]["bytes"] or row["video"]["path"] for row in kept)


def test_a_stream_goes_on_where_it_stopped(attributor, folder, on_disk, tmp_path):
    stream = load_clips(folder / "txt")
    begun = attributor.index(stream.take(3), tmp_path / "index", progress=False)
    assert len(begun) == 3
    computed = []
    prepare = attributor._prepare
    attributor._prepare = lambda *clip: computed.append(clip[1]) or prepare(*clip)
    try:
        index = attributor.index(stream, tmp_path / "index", progress=False)
    finally:
        del attributor._prepare
    assert len(computed) == 3  # six different clips in all
    assert held(index) == held(on_disk[0])
    again = attributor.index(stream, tmp_path / "index", progress=False)
    assert again.digest() == index.digest()


def test_a_shuffled_stream_finds_its_rows(attributor, folder, queries, on_disk, tmp_path):
    stream = load_clips(folder / "txt")
    index, known = on_disk
    scored = attributor.influence(stream, index, queries, progress=False)
    by_id = {row["influence_id"]: row for row in known if row["influence_status"] == "ok"}
    shuffled = list(scored.shuffle(seed=1, buffer_size=8))
    assert [row["__key__"] for row in shuffled] != sorted(row["__key__"] for row in shuffled)
    assert sorted(row["influence_id"] for row in shuffled if row["influence_status"] == "ok") == sorted(by_id)
    for seed in range(5):  # the copy of a clip is known by its name, wherever it comes
        ranked = [row["influence_rank"] for row in scored.shuffle(seed=seed, buffer_size=8)]
        assert sorted(rank for rank in ranked if rank == rank) == [0, 1, 2, 3, 4]
    shares = [row for rank in range(2) for row in split_dataset_by_node(scored, rank, 2)]
    assert sorted(row["influence_rank"] for row in shares if row["influence_status"] == "ok") == [0, 1, 2, 3, 4]
    workers = list(DataLoader(scored, batch_size=None, num_workers=2))
    assert sorted(row["influence_rank"] for row in workers if row["influence_status"] == "ok") == [0, 1, 2, 3, 4]
    for row in shuffled:
        if row["influence_status"] == "ok":
            assert row["influence"] == by_id[row["influence_id"]]["influence"]
    # Rows of another stream than the one that was ranked are not ranked.
    other = attributor.influence(stream.take(2), index, queries, progress=False)
    lookup = pickle.loads(pickle.dumps(other._ex_iterable.function))
    assert lookup(next(iter(stream.skip(2))), 0)["influence_status"] == "failed"


def test_selections_of_a_stream_are_those_of_the_dataset(attributor, folder, queries, on_disk):
    index, known = on_disk
    stream = attributor.influence(load_clips(folder / "table.parquet", streaming=True), index, queries, progress=False)

    def ids(dataset) -> list[str]:
        return sorted(row["influence_id"] for row in dataset)

    assert ids(best(stream, 0.3)) == ids(best(known, 0.3))
    assert ids(best(stream, count=3, by="influence")) == ids(best(known, count=3, by="influence"))
    assert ids(without_worst(stream, 0.3)) == ids(without_worst(known, 0.3))
    assert ids(best_of_each(stream, 1, "kind")) == ids(best_of_each(known, 1, "kind"))
    with pytest.raises(ValueError, match="no column 'beauty' to choose by"):
        best(stream, 0.3, by="beauty")


def test_an_empty_stream_and_a_missing_column_are_one_sentence(attributor, tmp_path):
    empty = IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match="the dataset has no rows"):
        attributor.index(empty, tmp_path / "index", progress=False)
    nameless = Dataset.from_dict({"film": ["a.mp4"], "caption": ["a"]}).to_iterable_dataset()
    with pytest.raises(ValueError, match="no column 'video'; its columns are film, caption"):
        attributor.index(nameless, tmp_path / "index", progress=False)


def test_columns_for_each_query_and_the_rivals(attributor, folder, queries, on_disk):
    index, known = on_disk
    clips = load_clips(folder / "files")
    scored = attributor.influence(clips, index, queries, per_query=True, progress=False)
    names = [f"influence_{name}.mp4" for name in (100, 101, 102)]
    assert set(names) < set(scored.column_names)
    ok = [row for row in scored if row["influence_status"] == "ok"]
    for row in ok:
        assert np.mean([row[name] for name in names]) == pytest.approx(row["influence"], abs=1e-6)
    by_index = attributor.influence(
        clips, index, GradientIndex.open(f"{index.path}-queries"), per_query=True, progress=False
    )
    assert by_index["influence"][:3] == scored["influence"][:3]
    assert f"influence_{GradientIndex.open(f'{index.path}-queries').ids()[0]}" in by_index.column_names
    for wrong in ({"group_column": "kind"}, {"rivals": True}):
        with pytest.raises(ValueError, match="give the queries as a dataset"):
            attributor.influence(clips, index, GradientIndex.open(f"{index.path}-queries"), **wrong)
    with pytest.raises(ValueError, match="group_column or per_query"):
        attributor.influence(clips, index, queries, per_query=True, group_column="kind")

    # The whole clip's influence is that of an attributor without the mask, and none of the rivals ranks what
    # Motive does not rank.
    plain = MotiveAttributor(attributor.step.pipeline, **SMALL, motion_weighted=False)
    alone = plain.influence(clips, GradientIndex.open(f"{index.path}-whole"), queries, progress=False)
    np.testing.assert_array_equal(known["rival_whole_clip"], alone["influence"])
    np.testing.assert_array_equal(known["rival_whole_clip_rank"], alone["influence_rank"])
    assert not np.array_equal(known["rival_whole_clip"], known["influence"])
    for name in ("rival_random", "rival_whole_clip", "influence"):
        values = np.asarray(known[name][:], dtype=float)
        assert np.isnan(values).tolist() == [status != "ok" for status in known["influence_status"]]
    random = np.asarray(known["rival_random"][:])
    assert ((random[:4] >= 0) & (random[:4] < 1)).all() and len(set(random[:4])) == 4
    assert best(known, count=2, by="rival_whole_clip_rank")["rival_whole_clip_rank"][:] == [0, 1]
    assert set(scored["influence_settings"]) == set(known["influence_settings"]) != set(alone["influence_settings"])
    assert set(scored["influence_queries"]) == set(known["influence_queries"])


def test_a_second_scoring_leaves_nothing_of_the_first(attributor, folder, queries, on_disk):
    index, known = on_disk
    known = known.add_column("influence_note", ["mine"] * len(known)).add_column("rival_team", [1] * len(known))
    assert {"influence_left", "rival_random"} <= set(known.column_names)
    again = attributor.influence(known, index, queries, progress=False)
    streamed = attributor.influence(known.to_iterable_dataset(), index, queries, progress=False)
    assert set(again.column_names) == set(streamed.column_names) == set(streamed.features)
    gone = ("rival_random", "rival_whole", "influence_left", "influence_right")
    assert not [name for name in again.column_names if name.startswith(gone)]
    assert {"influence_note", "rival_team"} <= set(again.column_names), "columns of one's own"
    assert set(next(iter(streamed))) == set(again.column_names)
    for wrong in (DatasetDict(train=known), IterableDatasetDict(train=known.to_iterable_dataset())):
        with pytest.raises(TypeError, match=r"has several splits: give one, dataset\['train'\]"):
            attributor.influence(wrong, index, queries, progress=False)
    shown = attributor.influence(known.with_format("pandas"), index, queries, progress=False)
    np.testing.assert_array_equal(shown.with_format(None)["influence"], again["influence"])


@pytest.mark.parametrize("streamed", [False, True])
def test_other_columns_are_not_read(attributor, folder, queries, on_disk, tmp_path, streamed):
    """A picture that is not there, and a second video that nothing here could decode, cost nothing."""
    clips = load_clips(folder / "files")
    missing = [{"path": "/nowhere.png", "bytes": None}] * len(clips)
    clips = clips.add_column("poster", missing, feature=Image()).add_column("low", missing, feature=Video())
    clips = clips.to_iterable_dataset() if streamed else clips
    index = attributor.index(clips, tmp_path / "index", progress=False)
    assert index.digest() == on_disk[0].digest()
    scored = attributor.influence(clips, index, queries, progress=False)
    write_scores(scored, tmp_path / "scores.parquet")
    table = Dataset.from_parquet(str(tmp_path / "scores.parquet"))
    np.testing.assert_array_equal(table["influence"], on_disk[1]["influence"])
    assert {"poster", "low"} <= set(table.column_names)


@pytest.mark.parametrize("streamed", [False, True])
def test_motion_that_was_known_stays_known(attributor, folder, queries, on_disk, streamed):
    motion = MotionFeatures(attributor.config.standard, attributor.step.latent_shape[1:])
    clips = load_clips(folder / "files").select([0, 1, 4])
    clips = clips.map(lambda row, place: {"caption": None if place == 1 else row["caption"]}, with_indices=True)
    clips = add_motion(clips, motion)
    scored = attributor.influence(clips.to_iterable_dataset() if streamed else clips, on_disk[0], queries)
    assert [row["influence_status"] for row in scored] == ["ok", "failed", "unreadable"]  # the second: another caption
    np.testing.assert_allclose([row["motion_mean"] for row in scored], clips["motion_mean"], rtol=1e-6)


def test_columns_are_checked_before_anything_is_computed(attributor, folder, queries, on_disk, tmp_path):
    clips = load_clips(folder / "files")
    several = clips.remove_columns("caption").add_column("caption", [["a", "b"]] * len(clips))
    with pytest.raises(ValueError, match="column 'caption' of the dataset is no text but List"):
        attributor.index(several, tmp_path / "index", progress=False)
    named = MotiveAttributor(attributor.step.pipeline, **SMALL, id_column="name")
    with pytest.raises(ValueError, match="the dataset has no column 'name'"):
        named.index(clips.to_iterable_dataset(), tmp_path / "index", progress=False)
    with pytest.raises(ValueError, match="a row has nothing in column 'name', which is to be its id"):
        named.index(clips.add_column("name", [*"abcdef", ""]), tmp_path / "index", progress=False)
    assert not (tmp_path / "index").exists()
    with pytest.raises(ValueError, match="the queries have no column 'mood' to group by; they have file_name"):
        attributor.influence(clips, on_disk[0], queries, group_column="mood")
    # A query whose file is called like a column is asked all the same.
    row = {**queries[0], "video": {"path": "rank", "bytes": Path(queries[0]["video"]["path"]).read_bytes()}}
    asked = Dataset.from_list([row]).cast_column("video", Video(decode=False))
    scored = attributor.influence(clips, on_disk[0], asked, per_query=True, progress=False)
    assert group_columns(scored.column_names) == [f"influence_rank {attributor.ids(asked)[0]}"]


def test_shards_with_pictures_beside_the_clips(attributor, folder, on_disk, tmp_path):
    """A picture that does not decode costs nothing; a shard that no reader understands is named."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for place in range(6):
            text = b"" if place == 5 else f"a square goes {'right' if place % 2 else 'left'}".encode()
            data = (folder / "files" / f"{place:03d}.mp4").read_bytes()
            for suffix, content in (("mp4", data), ("jpg", b"no picture"), ("txt", text)):
                member = tarfile.TarInfo(f"{place:03d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    index = attributor.index(load_clips(tmp_path), tmp_path / "index", progress=False)
    assert index.counts() == {"ok": 4, "unreadable": 1, "no_caption": 1}
    assert set(index.ids("ok")) < set(on_disk[0].ids("ok"))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(folder / "files" / "000.mp4", "000.mp4")
        tar.add(folder / "files" / "001.mp4", "001.mp4")
        tar.add(folder / "files" / "metadata.jsonl", "001.txt")
    with pytest.raises(
        ValueError, match=r"b.tar cannot be read as a WebDataset shard: .* needs the same files beside"
    ):
        load_clips(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("names", "by"), [(["a.mp4", "b.mp4", "c.mp4"], "name"), (["a.mp4", "b.mp4", "a.mp4"], "place")]
)
def test_which_of_two_copies_is_ranked(names, by):
    columns = {"influence_id": ["x", "y", "x"], "influence_status": ["ok", "ok", "duplicate"]}
    lookup = _Lookup(columns, RowId(id_column="id"), names)

    def status(row: int, place: int) -> str:
        example = {"id": columns["influence_id"][row], "video": {"path": names[row], "bytes": None}}
        return lookup(example, place)["influence_status"]

    assert [status(row, row) for row in range(3)] == ["ok", "ok", "duplicate"]
    if by == "name":  # wherever they come
        assert [status(row, 2 - row) for row in range(3)] == ["ok", "ok", "duplicate"]
        assert [status(row, 0) for row in range(3)] == ["ok", "ok", "duplicate"]


def test_what_the_digests_tell_apart(on_disk):
    assert queries_digest(["a", "b"]) == queries_digest(["b", "a", "b"]) != queries_digest(["a"])
    assert set(on_disk[1]["influence_settings"]) == {settings_digest(on_disk[0])}


def test_a_streamed_parquet_is_read_by_row_groups(folder, tmp_path):
    """Otherwise memory grows with the file: benchmarks/streaming.py."""
    pq.write_table(pq.read_table(folder / "table.parquet"), tmp_path / "table.parquet", row_group_size=2)
    stream = load_clips(tmp_path / "table.parquet", streaming=True)
    assert stream.num_shards == 4
    assert [row["kind"] for row in stream] == ["left", "right"] * 3 + ["left"]


def test_queries_of_one_name_are_told_apart(attributor, folder, queries, on_disk, tmp_path):
    """Files of one name in two folders, and two without a name."""
    rows = [queries[row] for row in range(3)]
    for row, path in zip(rows, ("a/x.mp4", "b/x.mp4", None), strict=True):
        row["video"] = {"path": path, "bytes": Path(row["video"]["path"]).read_bytes()}
    named = Dataset.from_list(rows).cast_column("video", Video(decode=False))
    scored = attributor.influence(load_clips(folder / "files"), on_disk[0], named, per_query=True, progress=False)
    ids = attributor.ids(named)
    expected = {f"influence_x.mp4 {ids[0]}", f"influence_x.mp4 {ids[1]}", f"influence_row {ids[2]}"}
    assert set(group_columns(scored.column_names)) == expected


def test_a_group_that_would_take_a_column_is_refused(attributor, folder, queries, on_disk):
    named = queries.remove_columns("kind").add_column("kind", ["rank"] * len(queries))
    with pytest.raises(ValueError, match="cannot be called 'rank'"):
        attributor.influence(load_clips(folder / "files"), on_disk[0], named, group_column="kind", progress=False)


def test_a_stream_that_decodes_is_read_as_files(folder, attributor, on_disk, tmp_path):
    """`load_dataset(..., streaming=True)` adds a step that decodes, which this environment could not even run."""
    stream = load_dataset("videofolder", data_dir=str(folder / "files"), split="train", streaming=True)
    assert stream.features["video"] == Video()
    stream = stream.decode(num_threads=2)
    assert attributor.ids(as_files(stream, "video")) == list(on_disk[1]["influence_id"])
    motion = MotionFeatures(attributor.config.standard, attributor.step.latent_shape[1:])
    row = next(iter(add_motion(stream, motion).decode(False)))
    assert row["motion_status"] == "ok" and row["video"]["path"]
