"""`index.py` by its law: kill it, tear it, fill the disk, share it. Real processes and real files throughout."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_motive.index import (
    GradientIndex,
    IndexCorruptError,
    IndexLockedError,
    IndexMismatchError,
    IndexWriteError,
)

DIM = 16
SETTINGS = {"features": {"pipeline": "Wan", "projection": {"dim": DIM, "seed": 0}}, "provenance": {"torch": "2.13"}}


@pytest.fixture
def tmp_path():
    """In memory where there is such a folder: these tests sync thousands of times, at up to 10 ms on a disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


def feature(i: int) -> torch.Tensor:
    return torch.randn(DIM, generator=torch.Generator().manual_seed(i))


def name(i: int) -> str:
    return f"{(i * 7919) % 100003:08x}"  # so that the canonical order is not the order of writing


def write(path, count, shard="00000", first=0, step=1, pause=0.0):
    with GradientIndex.create_or_open(path, SETTINGS, DIM, shard=shard) as index:
        for i in range(first, count, step):
            if name(i) in index:
                continue
            if i % 5 == 4:
                index.append(name(i), None, status="static", reason="nothing moves", mean_motion=0.0)
            else:
                index.append(name(i), feature(i), mean_motion=i / 3, loss=None)
            time.sleep(pause)


def start(path, count, **options):
    """`write` in a process of its own: forked, because importing torch twenty times would be most of the test."""
    process = get_context("fork").Process(target=write, args=(path, count), kwargs=options)
    process.start()
    return process


def files(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(Path(path).iterdir())}


def make(path, count=7) -> GradientIndex:
    write(path, count)
    return GradientIndex.open(path)


# What is written is what is read


def test_rows_and_features_come_back_in_the_order_of_ids(tmp_path):
    index = make(tmp_path / "index", 23)
    ids = sorted(name(i) for i in range(23))
    assert [row.id for row in index.rows()] == index.ids() == ids
    assert len(index) == 23 and name(3) in index and "other" not in index
    assert index.counts() == {"ok": 19, "static": 4}
    assert index.status(name(4)) == "static" and index.status(name(3)) == "ok" and index.status("other") is None
    row = index.row(name(4))
    assert (row.reason, row.facts, row.checksum) == ("nothing moves", {"mean_motion": 0.0}, None)
    assert index.row(name(3)).facts == {"mean_motion": 1.0, "loss": None}
    by_id = {name(i): feature(i) for i in range(23)}
    seen = []
    for chunk_ids, features in index.chunks(4):
        assert features.shape == (len(chunk_ids), DIM) and len(chunk_ids) <= 4
        for id, vector in zip(chunk_ids, features, strict=True):
            assert torch.equal(vector, by_id[id])
        seen += chunk_ids
    assert seen == index.ids("ok")
    wanted = [name(20), name(3), name(11)]
    assert torch.equal(index.features(wanted), torch.stack([by_id[id] for id in wanted]))
    assert [ids for ids, _ in index.chunks(2, ids=wanted)] == [wanted[:2], wanted[2:]]
    assert index.features([]).shape == (0, DIM)
    index.verify()


def test_the_files_are_the_open_formats_they_say(tmp_path):
    make(tmp_path, 5)
    assert sorted(files(tmp_path)) == ["index.json", "shard-00000.features", "shard-00000.rows.jsonl"]
    raw = np.fromfile(tmp_path / "shard-00000.features", dtype="<f4").reshape(-1, DIM)
    lines = [json.loads(line) for line in (tmp_path / "shard-00000.rows.jsonl").read_text().splitlines()]
    assert [line["position"] for line in lines] == [0, 1, 2, 3, None]
    assert np.array_equal(raw, torch.stack([feature(i) for i in range(4)]).numpy())
    header = json.loads((tmp_path / "index.json").read_text())
    assert (header["dim"], header["dtype"], header["settings"]) == (DIM, "<f4", SETTINGS)


def test_neighbours_on_disk_are_a_view_and_writing_to_it_changes_no_file(tmp_path):
    index = make(tmp_path, 4)
    before = files(tmp_path)
    ids = index.ids("ok", stored_order=True)
    assert ids == [name(i) for i in range(4)]
    a, b = index.features(ids[1:3]), index.features(ids)
    assert a.data_ptr() == b[1:].data_ptr()
    b.zero_()
    assert files(tmp_path) == before


def test_any_real_dtype_and_any_text(tmp_path):
    with GradientIndex.create_or_open(tmp_path, SETTINGS, DIM) as index:
        index.append("half", torch.ones(DIM, dtype=torch.bfloat16, requires_grad=True))
        index.append("numpy", np.arange(DIM))
        index.append('"é\n\ud800 ', None, status="failed", reason="line one\nline two \0")
        assert index.features(["numpy"]).tolist() == [list(range(DIM))]  # a writer reads, too
    index = GradientIndex.open(tmp_path)
    assert index.row('"é\n\ud800 ').reason == "line one\nline two \0"
    assert len(index) == 3


def test_an_empty_index(tmp_path):
    index = make(tmp_path, 0)
    assert (len(index), index.ids(), list(index.chunks()), index.counts()) == (0, [], [], {})
    assert index.digest() == make(tmp_path, 0).digest()


# Killed at any instant


def test_killed_twenty_times_reads_like_never_killed(tmp_path):
    count, rng = 600, random.Random(0)
    whole = make(tmp_path / "whole", count)
    path = tmp_path / "killed"
    kills, known = 0, set()
    GradientIndex.create_or_open(path, SETTINGS, DIM).close()
    while True:
        process = start(path, count, pause=0.0005)
        # Wait until it writes, then strike at a random instant.
        lines = path / "shard-00000.rows.jsonl"
        size = lines.stat().st_size if lines.exists() else 0
        while process.is_alive() and (not lines.exists() or lines.stat().st_size == size):
            time.sleep(0.0005)
        if kills < 25:
            time.sleep(rng.random() * 0.02)
            process.kill()
        process.join()
        index = GradientIndex.open(path)  # valid at this instant, before anybody repairs it
        index.verify()
        assert known < set(index.ids()) or process.exitcode == 0, "a row was lost"
        known = set(index.ids())
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 15
    assert files(path) == files(tmp_path / "whole")
    assert GradientIndex.open(path).digest() == whole.digest()


@pytest.mark.parametrize("kind", ["feature", "line"])
def test_torn_at_every_byte_of_the_last_record(tmp_path, kind):
    """What a crash can leave: any part of the last feature and no line, or the feature and any part of the line."""
    write(tmp_path / "before", 3)
    write(tmp_path / "after", 4)
    target = "shard-00000.features" if kind == "feature" else "shard-00000.rows.jsonl"
    before, after = files(tmp_path / "before"), files(tmp_path / "after")
    for size in range(len(before[target]), len(after[target]) + (kind == "feature")):
        path = tmp_path / "torn"
        shutil.copytree(tmp_path / "after", path)
        if kind == "feature":
            (path / "shard-00000.rows.jsonl").write_bytes(before["shard-00000.rows.jsonl"])
        (path / target).write_bytes(after[target][:size])
        torn = files(path)
        index = GradientIndex.open(path)
        assert sorted(index.ids()) == sorted(name(i) for i in range(3)), size
        index.verify()
        assert files(path) == torn, "a reader must not write"
        write(path, 3)  # nothing to add: opening alone brings back the last good state
        assert files(path) == before, size
        write(path, 4)
        assert files(path) == after, size
        shutil.rmtree(path)


def test_a_line_of_garbage_at_the_end_is_cut_and_in_the_middle_is_an_error(tmp_path):
    write(tmp_path / "good", 4)
    rows = tmp_path / "good" / "shard-00000.rows.jsonl"
    good = rows.read_bytes()
    rows.write_bytes(good + b"\0\0\0\n")
    assert len(GradientIndex.open(tmp_path / "good")) == 4
    write(tmp_path / "good", 4)
    assert rows.read_bytes() == good
    lines = good.splitlines(keepends=True)
    rows.write_bytes(b"".join([lines[0], b"\0\0\0\n", *lines[2:]]))
    for act in (lambda: GradientIndex.open(tmp_path / "good"), lambda: write(tmp_path / "good", 4)):
        with pytest.raises(IndexCorruptError, match=rf"byte {len(lines[0])}: this line is not a row.*delete both"):
            act()


def test_features_that_were_cut_off_or_changed(tmp_path):
    index = make(tmp_path, 4)
    data = tmp_path / "shard-00000.features"
    good = data.read_bytes()
    data.write_bytes(good[:-4] + b"\1\2\3\4")
    index = GradientIndex.open(tmp_path)
    with pytest.raises(IndexCorruptError, match=rf"1 of 4 features .* are not what was written, e.g. \['{name(3)}'\]"):
        index.verify()
    data.write_bytes(good[: DIM * 4])
    with pytest.raises(IndexCorruptError, match="the line names feature 1; 1 come before it, 1 are there"):
        GradientIndex.open(tmp_path)


def test_two_lines_that_name_one_feature(tmp_path):
    """What a second writer would leave on a file system whose locks do nothing."""
    write(tmp_path, 4)
    rows = tmp_path / "shard-00000.rows.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join([*lines[:3], lines[2], lines[3]]))
    with pytest.raises(IndexCorruptError, match="the line names feature 2; 3 come before it"):
        GradientIndex.open(tmp_path)


# Disk full


def test_a_full_disk_rolls_back_and_says_how_to_go_on(tmp_path):
    """A limit on the size of a file stands for the disk; the writer meets it in the middle of a record."""
    write(tmp_path / "index", 3)
    write(tmp_path / "other", 3)
    rows = len(files(tmp_path / "index")["shard-00000.rows.jsonl"])
    # The limit lies in the middle of the feature, in the middle of the line, and right before the line.
    limits = [3 * DIM * 4 + 10, rows + 10, rows]
    assert limits[0] < 4 * DIM * 4 < rows

    def meet(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        found = []
        with GradientIndex.create_or_open(tmp_path / "index", SETTINGS, DIM) as index:
            for _ in range(2):  # an index that met a full disk can go on as soon as there is room
                try:
                    index.append(name(3), feature(3), mean_motion=1.0, loss=None)
                except IndexWriteError as error:
                    found.append(str(error))
            assert len(index) == 3 and name(3) not in index
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (tmp_path / f"messages-{limit}").write_text("\n".join(found))

    for limit in limits:
        process = get_context("fork").Process(target=meet, args=(limit,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert files(tmp_path / "index") == files(tmp_path / "other")
    messages = [line for limit in limits for line in (tmp_path / f"messages-{limit}").read_text().splitlines()]
    assert len(messages) == 6
    for message in messages:
        assert f"row '{name(3)}' could not be written to {tmp_path}" in message and "File too large" in message
        assert "The 3 rows before it are safe. Make room" in message
        assert "run the same command again: it goes on where it stopped" in message
    write(tmp_path / "index", 4)
    write(tmp_path / "other", 4)
    assert files(tmp_path / "index") == files(tmp_path / "other")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no mount allowed here")
    try:
        with pytest.raises(
            IndexWriteError, match=r"No space left on device\. The \d+ rows before it are safe"
        ) as caught:
            write(disk / "index", 2000)
        assert caught.value.errno == 28
        index = GradientIndex.open(disk / "index")
        assert 50 < len(index) < 2000
        index.verify()
        shutil.copytree(disk / "index", tmp_path / "moved")  # the remedy of the message
        with contextlib.suppress(OSError):
            while True:
                with open(disk / "filler", "ab", buffering=0) as file:
                    file.write(b"x" * 512)
        with pytest.raises(
            IndexWriteError, match=r"no index can be made in .*: No space left on device. Give another"
        ):
            write(disk / "another", 1)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # lazy: the index has it mapped
    write(tmp_path / "moved", len(index) + 5)
    write(tmp_path / "whole", len(index) + 5)
    assert files(tmp_path / "moved") == files(tmp_path / "whole")


# Many writers


def test_two_processes_at_once_and_restarts_with_other_numbers_of_them(tmp_path):
    count = 150
    whole = make(tmp_path / "one", count)
    path = tmp_path / "many"
    pair = [start(path, 120, shard=f"{i:05d}", first=i, step=2, pause=0.001) for i in range(2)]
    while not (path / "index.json").exists():  # both try to make it; one does
        time.sleep(0.001)
    reader, lengths = GradientIndex.open(path), []
    while any(process.is_alive() for process in pair):  # a reader beside two writers
        lengths.append(len(reader.refresh()))
        for id in reader.ids("ok")[-3:]:
            assert reader.features([id]).any()
    for process in pair:
        process.join()
        assert process.exitcode == 0
    assert len(set(lengths)) > 5, "the reader saw no growth"
    triple = [start(path, count, shard=f"{i:05d}", first=i, step=3) for i in range(3)]
    for process in triple:
        process.join()
        assert process.exitcode == 0
    assert sorted(f for f in files(path) if f.endswith(".features")) == [f"shard-0000{i}.features" for i in range(3)]
    merged = GradientIndex.open(path)
    assert merged.digest() == whole.digest()
    assert [row.__dict__ for row in merged.rows()] == [row.__dict__ for row in whole.rows()]
    for (a, left), (b, right) in zip(merged.chunks(7), whole.chunks(7), strict=True):
        assert a == b and torch.equal(left, right)
    stored = merged.ids("ok", stored_order=True)
    assert sorted(stored) == merged.ids("ok") != stored
    for (id,), vector in merged.chunks(1, ids=stored):
        assert torch.equal(vector, whole.features([id]))


def test_one_writer_a_shard(tmp_path):
    with GradientIndex.create_or_open(tmp_path, SETTINGS, DIM) as first:
        with pytest.raises(IndexLockedError, match=r"shard '00000' of .* by another process: .* shard='00000-2'"):
            GradientIndex.create_or_open(tmp_path, SETTINGS, DIM)
        with GradientIndex.create_or_open(tmp_path, SETTINGS, DIM, shard="00001") as second:
            second.append("b", feature(0))
        first.append("a", feature(1))
        assert first.ids() == ["a"] and first.refresh().ids() == ["a", "b"]
    write(tmp_path, 1)  # closed: free again
    process = start(tmp_path, 1000, pause=0.01)
    while len(GradientIndex.open(tmp_path)) < 5:
        time.sleep(0.01)
    with pytest.raises(IndexLockedError):
        write(tmp_path, 1)
    process.kill()
    process.join()
    write(tmp_path, 1)  # the kernel has dropped the lock of the dead


def test_the_first_of_two_shards_counts_where_both_hold_an_id(tmp_path):
    a = GradientIndex.create_or_open(tmp_path, SETTINGS, DIM, shard="a")
    b = GradientIndex.create_or_open(tmp_path, SETTINGS, DIM, shard="b")
    b.append("x", feature(1))
    a.append("x", feature(0))  # it has not seen b's
    b.append("y", None, status="failed", reason="b")
    a.append("y", feature(2))
    a.append("z", None, status="failed", reason="a")
    b.append("z", None, status="failed", reason="b")
    for index in (GradientIndex.open(tmp_path), a.refresh(), b.refresh()):
        assert torch.equal(index.features(["x", "y"]), torch.stack([feature(0), feature(2)]))
        assert index.row("z").reason == "a"
        assert index.digest() == a.digest()


# One row an id


def test_a_failure_may_be_tried_again_and_ok_is_final(tmp_path):
    with GradientIndex.create_or_open(tmp_path, SETTINGS, DIM) as index:
        index.append("x", None, status="failed", reason="no memory")
        size = (tmp_path / "shard-00000.rows.jsonl").stat().st_size
        index.append("x", None, status="failed", reason="no memory")
        assert (tmp_path / "shard-00000.rows.jsonl").stat().st_size == size, "the same outcome needs no second line"
        index.append("x", None, status="unreadable", reason="moov atom")
        assert index.row("x").reason == "moov atom" and index.counts() == {"unreadable": 1}
        index.append("x", feature(0), loss=1.5)
        assert index.status("x") == "ok" and torch.equal(index.features(["x"])[0], feature(0))
        for again in (feature(0), feature(1)):
            with pytest.raises(
                ValueError, match=r"id 'x' has a feature in .* already: skip ids that are `in` the index"
            ):
                index.append("x", again)
        with pytest.raises(ValueError, match="already"):
            index.append("x", None, status="failed", reason="later")
    index = GradientIndex.open(tmp_path)
    assert len(index) == 1 and index.row("x").facts == {"loss": 1.5}
    with GradientIndex.create_or_open(tmp_path / "straight", SETTINGS, DIM) as straight:
        straight.append("x", feature(0), loss=1.5)
    assert index.digest() == straight.digest()


def test_the_digest_sees_everything_that_counts(tmp_path):
    digests = {make(tmp_path / "plain", 1).digest()}
    rows = [
        (feature(0), {"mean_motion": 1e-3, "loss": None}),
        (feature(0), {}),
        (feature(9), {"mean_motion": 0.0, "loss": None}),
    ]
    for i, (vector, facts) in enumerate(rows):
        with GradientIndex.create_or_open(tmp_path / str(i), SETTINGS, DIM) as index:
            index.append(name(0), vector, **facts)
            digests.add(index.digest())
    other = SETTINGS | {"features": {"pipeline": "LTX"}}
    with GradientIndex.create_or_open(tmp_path / "other", other, DIM) as index:
        index.append(name(0), feature(0), mean_motion=0.0, loss=None)
        digests.add(index.digest())
    assert len(digests) == 5


# Settings


def test_other_settings_are_refused_and_each_difference_is_named(tmp_path):
    write(tmp_path, 2)
    before = files(tmp_path)
    other = {"features": {"pipeline": "LTX", "projection": {"dim": DIM, "seed": 1}, "timesteps": [751.0]}}
    with pytest.raises(IndexMismatchError) as caught:
        GradientIndex.create_or_open(tmp_path, other, 32, shard="00001")
    assert str(caught.value) == (
        f"{tmp_path} holds features that were computed differently:\n"
        "  dim: 16 in the index, 32 in this run\n"
        "  pipeline: 'Wan' in the index, 'LTX' in this run\n"
        "  projection.seed: 0 in the index, 1 in this run\n"
        "  timesteps: '(not recorded)' in the index, [751.0] in this run\n"
        "Give another folder, or the settings of the index."
    )
    assert caught.value.differences["projection.seed"] == (0, 1)
    assert files(tmp_path) == before


def test_provenance_may_differ_and_is_recorded(tmp_path):
    write(tmp_path, 1)
    newer = SETTINGS | {"provenance": {"torch": "2.14"}}
    for _ in range(2):  # once recorded, not again
        with GradientIndex.create_or_open(tmp_path, newer, DIM) as index:
            assert name(0) in index
    write(tmp_path, 2)
    index = GradientIndex.open(tmp_path)
    assert index.provenances == [{"torch": "2.13"}, {"torch": "2.14"}]
    assert index.digest() == make(tmp_path / "plain", 2).digest()
    assert len((tmp_path / "shard-00000.rows.jsonl").read_bytes().splitlines()) == 3
    index.verify()


def test_check_comparable(tmp_path):
    corpus = make(tmp_path / "corpus", 2)
    same = SETTINGS | {"provenance": {"torch": "3"}}
    with GradientIndex.create_or_open(tmp_path / "queries", same, DIM) as queries:
        corpus.check_comparable(queries)
    other = {"features": {"pipeline": "Wan", "projection": {"dim": DIM, "seed": True}}}
    with (
        GradientIndex.create_or_open(tmp_path / "other", other, DIM) as queries,
        pytest.raises(IndexMismatchError, match=r"cannot be compared:\n  projection.seed: 0 in .*, True in .*other\n"),
    ):
        corpus.check_comparable(queries)


def test_settings_that_json_changes_are_equal_to_themselves(tmp_path):
    settings = {"features": {"timesteps": (751.0, 500.0), "fps": None, "nested": {}}}
    for _ in range(2):
        GradientIndex.create_or_open(tmp_path, settings, DIM).close()


# Several draws


def test_draws_are_kept_and_a_feature_has_them_side_by_side(tmp_path):
    units = torch.nn.functional.normalize(torch.randn(5, 3, DIM, generator=torch.Generator().manual_seed(0)), dim=-1)
    for shard, rows in (("00000", (0, 1, 2)), ("00001", (3, 4))):
        with GradientIndex.create_or_open(tmp_path, SETTINGS, DIM, shard, draws=3) as index:
            for row in rows:
                index.append(f"clip {row}", units[row])
            with pytest.raises(ValueError, match=r"has shape \(16,\), the index holds \(3, 16\)"):
                index.append("x", units[0, 0])
            with pytest.raises(ValueError, match="all zeros"):
                index.append("x", units[0] * torch.tensor([1.0, 0.0, 1.0])[:, None])
    index = GradientIndex.open(tmp_path)
    ids = [f"clip {row}" for row in (4, 0, 2)]
    assert (index.dim, index.draws) == (DIM, 3)
    assert torch.equal(index.features_by_draw(ids), units[[4, 0, 2]])
    torch.testing.assert_close(index.features(ids), units[[4, 0, 2]].flatten(1) / 3**0.5)
    assert torch.equal(torch.cat([part for _, part in index.chunks(2, ids, by_draw=True)]), units[[4, 0, 2]])
    index.verify()
    with pytest.raises(IndexMismatchError, match="draws: 3 in the index, 1 in this run"):
        GradientIndex.create_or_open(tmp_path, SETTINGS, DIM)


# Bad input


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "", "feature": torch.ones(DIM)}, "id must be a non-empty string, got ''"),
        ({"id": 3, "feature": torch.ones(DIM)}, "id must be a non-empty string, got 3"),
        ({"id": "x", "feature": torch.ones(DIM + 1)}, r"feature of 'x' has shape \(17,\), the index holds \(16,\)"),
        ({"id": "x", "feature": torch.ones(2, DIM)}, r"has shape \(2, 16\), the index holds \(16,\)"),
        ({"id": "x", "feature": torch.full((DIM,), torch.nan)}, "is not finite: .* feature=None, status='non_finite'"),
        ({"id": "x", "feature": torch.full((DIM,), 1e39, dtype=torch.float64)}, "is not finite"),
        ({"id": "x", "feature": torch.zeros(DIM)}, "is all zeros and has no direction"),
        ({"id": "x", "feature": None}, "row 'x' has status 'ok' and no feature: give a feature with status 'ok'"),
        ({"id": "x", "feature": torch.ones(DIM), "status": "static"}, "has status 'static' and a feature"),
        ({"id": "x", "feature": None, "status": "broken"}, r"status of 'x' must be one of \('ok', .*got 'broken'"),
        ({"id": "x", "feature": torch.ones(DIM), "loss": float("nan")}, "fact 'loss' of 'x' is nan, .*: pass None"),
        ({"id": "x", "feature": torch.ones(DIM), "loss": torch.ones(1)}, "fact 'loss' .* JSON scalar, got Tensor"),
    ],
)
def test_bad_rows_are_refused_and_leave_no_trace(tmp_path, row, message):
    with GradientIndex.create_or_open(tmp_path, SETTINGS, DIM) as index:
        with pytest.raises(ValueError, match=message):
            index.append(**row)
        assert len(index) == 0
    assert files(tmp_path)["shard-00000.features"] == files(tmp_path)["shard-00000.rows.jsonl"] == b""


def test_bad_use(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no index \(no index.json\): make one with MotiveAttributor.index"
    ):
        GradientIndex.open(tmp_path)
    index = make(tmp_path / "a", 5)
    with pytest.raises(
        RuntimeError, match=r"is open for reading: open it with GradientIndex.create_or_open to append"
    ):
        index.append("x", feature(0))
    with pytest.raises(KeyError, match=f"'{name(4)}' has no feature in .*; its status is 'static'"):
        index.features([name(4)])
    with pytest.raises(KeyError, match=r"'other' has no feature in .*; its status is None"):
        index.features(["other"])
    with pytest.raises(KeyError, match="'other' is not in"):
        index.row("other")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        next(index.chunks(0))
    with pytest.raises(ValueError, match=r'settings must be \{"features": .*got the keys \[\'pipeline\'\]'):
        GradientIndex.create_or_open(tmp_path / "b", {"pipeline": "Wan"}, DIM)
    with pytest.raises(ValueError, match="settings must be JSON values"):
        GradientIndex.create_or_open(tmp_path / "b", {"features": {"sigma": float("inf")}}, DIM)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        GradientIndex.create_or_open(tmp_path / "b", SETTINGS, 0)
    with pytest.raises(ValueError, match="shard must be made of letters, digits"):
        GradientIndex.create_or_open(tmp_path / "c", SETTINGS, DIM, shard="../x")
    assert not (tmp_path / "b").exists()


def test_a_header_that_is_missing_broken_or_newer(tmp_path):
    write(tmp_path, 1)
    header = tmp_path / "index.json"
    good = json.loads(header.read_text())
    header.write_text(json.dumps(good | {"version": 2}))
    with pytest.raises(ValueError, match="has format version 2; this hf_motive reads 1"):
        GradientIndex.open(tmp_path)
    header.write_text("{}")
    with pytest.raises(IndexCorruptError, match="is not the header of a gradient index"):
        GradientIndex.open(tmp_path)
    header.write_text("{")
    with pytest.raises(IndexCorruptError, match="is not JSON"):
        GradientIndex.open(tmp_path)
    header.unlink()
    with pytest.raises(
        IndexCorruptError, match=r"holds shards but no index.json: restore that file or empty the folder"
    ):
        write(tmp_path, 1)


def test_nearest_clips_by_faiss(tmp_path):
    """As the README shows it, through `datasets`."""
    import faiss
    from datasets import Dataset

    vectors = torch.nn.functional.normalize(torch.randn(60, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    with GradientIndex.create_or_open(tmp_path, {"features": {}}, 64) as index:
        for number, vector in enumerate(vectors):
            index.append(f"clip {number:02d}", vector)
    ids = index.ids("ok")
    nearest = Dataset.from_dict({"id": ids, "feature": index.features(ids).numpy()})
    nearest.add_faiss_index("feature", string_factory="HNSW32", metric_type=faiss.METRIC_INNER_PRODUCT)
    scores, found = nearest.get_nearest_examples("feature", vectors[7].numpy(), k=5)
    expected = (vectors @ vectors[7]).topk(5)
    assert found["id"] == [f"clip {number:02d}" for number in expected.indices]
    torch.testing.assert_close(torch.from_numpy(scores), expected.values)
