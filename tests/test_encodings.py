"""Encodings as columns: of real mp4 files, by real pipelines, in one process, two, another and a killed one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image, Video, concatenate_datasets, disable_caching, enable_caching
from PIL import Image as Picture

from hf_motive import MotiveAttributor, PipelineStep
from hf_motive.corpus import load_clips
from hf_motive.encodings import COLUMNS, ClipEncoder, add_encodings, encoding_of, read_encoding
from hf_motive.errors import ClipError
from hf_motive.motion import DISFlow, MotionWeight
from hf_motive.motion_columns import MotionFeatures, add_motion
from hf_motive.video import ClipStandard, load_clip, save_clip
from tests.clips import moving_square, write_corpus, write_metadata
from tests.families import wan, wan_i2v

SHAPE = {"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH}
STANDARD = ClipStandard(**SHAPE, fps=16.0)
SMALL = {**STANDARD.to_dict(), "projection_dim": 64}


class Counted(ClipEncoder):
    """An encoder that leaves a byte in a file for every row that it sees, in whatever process."""

    log: Path

    def finish(self, row, clip):
        with self.log.open("ab") as log:
            log.write(b".")
        return super().finish(row, clip)

    def count(self) -> int:
        """Rows since the last time."""
        found = self.log.stat().st_size if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return found


def counted(pipe, log: Path, *, masks: bool = True, **options) -> Counted:
    """Of a pipeline, or of a step of it."""
    step = pipe if isinstance(pipe, PipelineStep) else PipelineStep(pipe, **SHAPE, check=False)
    weigh = MotionWeight(DISFlow(), step.latent_shape[1:]) if masks else None
    encoder = Counted(step, STANDARD, weigh=weigh, **options)
    encoder.log = log
    return encoder


@pytest.fixture(scope="module")
def attributor():
    return MotiveAttributor(wan.build(), **SMALL)


@pytest.fixture
def encoder(attributor, tmp_path):
    return counted(attributor.step, tmp_path / "log")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Dataset:
    """Three that are good, and one of each kind that is not."""
    folder = tmp_path_factory.mktemp("clips")
    rows = write_corpus(folder, range(3))
    save_clip(folder / "still.mp4", moving_square(7, speed=0.0), fps=16)
    save_clip(folder / "short.mp4", moving_square(8, frames=4), fps=16)
    (folder / "broken.mp4").write_bytes(b"no video")
    rows += [
        {"file_name": f"{name}.mp4", "caption": "a square", "kind": name} for name in ("still", "short", "broken")
    ]
    rows += [{"file_name": "000.mp4", "caption": caption, "kind": "silent"} for caption in ("", None)]
    write_metadata(folder, rows)
    return load_clips(folder)


@pytest.fixture(scope="module")
def encoded(attributor, clips, tmp_path_factory) -> Dataset:
    return attributor.encode(clips, cache_dir=tmp_path_factory.mktemp("cache"), progress=False)


# ------------------------------------------------------------------------------------------------------- what is in it


def test_a_row_is_what_the_step_says(attributor, clips, encoded):
    assert encoded.column_names == [*clips.column_names, *COLUMNS]
    assert encoded.remove_columns(list(COLUMNS)).to_list() == clips.to_list()
    assert encoded["encoded_status"][:] == [*["ok"] * 4, "too_short", "unreadable", "no_caption", "no_caption"]
    assert encoded["encoded_mask"][:] == ["ok", "ok", "ok", "static", None, None, None, None]
    assert encoded["encoded_reason"][0] == "" and "broken.mp4 is not a video" in encoded["encoded_reason"][5]
    step = attributor.step
    for row in list(encoded)[:4]:
        found = read_encoding(row["encoded"])
        pixels = load_clip(row["video"], STANDARD)
        assert found.latents.dtype == torch.float32 and torch.equal(found.latents, step.encode(pixels))
        told = {"noise": step.noise(0), "timestep": 500.0, "example": {"pixels": pixels}}
        recalled = step.loss(found.latents, row["caption"], answers=found.answers, **told)
        assert torch.equal(recalled.prediction, step.loss(found.latents, row["caption"], **told).prediction)
        if row["encoded_mask"] == "ok":
            weight, mean = attributor.motion_weight(pixels)
            assert torch.equal(found.weight, weight) and found.mean_motion == mean
        else:
            assert found.weight is None and found.mask_status == "static"
            with pytest.raises(ClipError, match="static|moves"):
                found.mask()
        assert row["encoded_settings"] == f"{found.digest} {found.mask_digest}"
    assert encoded[7]["encoded"] is None


@pytest.mark.parametrize("workers", [0, 3])
def test_threads_ahead_change_nothing(clips, encoder, encoded, tmp_path, workers):
    found = add_encodings(clips, encoder, cache_dir=tmp_path / "cache", workers=workers, progress=False)
    assert encoder.count() == len(clips) and found.to_list() == encoded.to_list()


def test_the_same_row_is_the_same_bytes(encoder, clips, encoded):
    assert encoder(clips[1]) == {name: encoded[1][name] for name in COLUMNS}


def test_what_is_no_encoding(encoded):
    blob = encoded[0]["encoded"]
    for damaged in (b"", b"no", blob[:100], blob[:-10], b"\0" * 64):
        with pytest.raises(ValueError, match="encode the clips anew"):
            read_encoding(damaged)


def test_an_empty_prompt_where_no_caption_is_needed(attributor, clips, encoded, tmp_path):
    encoder = counted(attributor.step, tmp_path / "log", require_caption=False)
    found = add_encodings(clips.select([6, 7]), encoder, cache_dir=tmp_path, progress=False)
    assert found["encoded_status"][:] == ["ok", "ok"]
    answers = read_encoding(found[0]["encoded"]).answers
    assert answers.keys() == attributor.step.answers("").keys()
    assert not encoder.accepts(encoded[0]["encoded_settings"]), "rows without a caption would stay without"


def test_a_standard_of_another_size_is_refused(attributor):
    with pytest.raises(ValueError, match="5 frames of 32×48, but the step was made for 9 of 32×48"):
        ClipEncoder(attributor.step, ClipStandard(5, 32, 48))


def test_infinite_latents_cost_their_row(clips, tmp_path):
    pipe = wan.build()
    encoder = counted(pipe, tmp_path / "log")
    with torch.no_grad():
        next(pipe.vae.encoder.parameters()).fill_(float("inf"))
    columns = encoder(clips[0])
    assert columns["encoded_status"] == "non_finite" and columns["encoded"] is None


# ------------------------------------------------------------------------------------------------------------- scoring


def closed(pipe, monkeypatch) -> None:
    """A pipeline whose frozen parts refuse to work."""

    def refuses(*args, **kwargs):
        raise AssertionError("it is in the encoding")

    monkeypatch.setattr(pipe.vae, "encode", refuses)
    monkeypatch.setattr(pipe.text_encoder, "forward", refuses)


def test_features_without_clips_vae_and_text_encoder(attributor, clips, encoded, tmp_path, monkeypatch):
    index = attributor.index(clips, tmp_path / "clips")
    other = MotiveAttributor(attributor.step.pipeline, **SMALL, encoded_column="encoded")
    closed(attributor.step.pipeline, monkeypatch)
    again = other.index(encoded, tmp_path / "encoded")
    assert index.counts() == {"ok": 3, "static": 1, "too_short": 1, "unreadable": 1, "no_caption": 1}
    rows = {entry.id: (entry.status, entry.reason, entry.facts) for entry in index.rows(index.ids())}
    assert {entry.id: (entry.status, entry.reason, entry.facts) for entry in again.rows(again.ids())} == rows
    ids = index.ids("ok")
    assert torch.equal(torch.as_tensor(index.features(ids)), torch.as_tensor(again.features(ids)))
    index.check_comparable(again)
    gone = other.feature("gone.mp4", encoded[0]["caption"], encoded[0])
    assert torch.equal(gone.vector, torch.as_tensor(index.features([other.ids(encoded.select([0]))[0]]))[0])
    streamed = other.index(encoded.to_iterable_dataset(), tmp_path / "stream")
    assert torch.equal(torch.as_tensor(index.features(ids)), torch.as_tensor(streamed.features(ids)))
    queries = encoded.select([1, 2])
    assert other.influence(encoded, again, queries)["influence_rank"][0] >= 0
    with pytest.raises(ValueError, match="query dataset has no column 'encoded'.*MotiveAttributor.encode"):
        other.influence(encoded, again, clips)


def test_another_caption_is_asked_for_anew(attributor, encoded):
    other = MotiveAttributor(attributor.step.pipeline, **SMALL, encoded_column="encoded")
    row = encoded[0]
    told = attributor.feature(row["video"], "a circle turns", row)
    assert torch.equal(other.feature(row["video"], "a circle turns", row).vector, told.vector)


def test_masks_of_other_settings_are_computed_anew(attributor, clips, encoded, tmp_path):
    row = encoded[0]
    settings = {**SMALL, "compensate_camera": True}
    direct = MotiveAttributor(attributor.step.pipeline, **settings).feature(row["video"], row["caption"], row)
    other = MotiveAttributor(attributor.step.pipeline, **settings, encoded_column="encoded")
    assert torch.equal(other.feature(row["video"], row["caption"], row).vector, direct.vector)
    bare = attributor.encode(clips.select([0]), masks=False, cache_dir=tmp_path, progress=False)
    assert bare["encoded_mask"][:] == [None] and read_encoding(bare[0]["encoded"]).weight is None
    other = MotiveAttributor(attributor.step.pipeline, **SMALL, encoded_column="encoded")
    plain = attributor.feature(row["video"], row["caption"], row)
    assert torch.equal(other.feature(row["video"], row["caption"], bare[0]).vector, plain.vector)


def test_a_mask_column_stays_where_it_is(attributor, clips, tmp_path):
    masked = add_motion(clips.select([0, 3]), MotionFeatures(STANDARD, attributor.step.latent_shape[1:]))
    options = {**SMALL, "mask_column": "motion_mask"}
    direct = MotiveAttributor(attributor.step.pipeline, **options)
    found = direct.encode(masked, cache_dir=tmp_path, progress=False)
    assert found["encoded_mask"][:] == [None, None], "a mask that is in a column is not kept twice"
    other = MotiveAttributor(attributor.step.pipeline, **options, encoded_column="encoded")
    row = {**found[0], "video": "gone.mp4"}
    assert torch.equal(
        other.feature("gone.mp4", row["caption"], row).vector,
        direct.feature(masked[0]["video"], row["caption"], masked[0]).vector,
    )
    with pytest.raises(ClipError) as caught:
        other.feature("gone.mp4", found[3 - 2]["caption"], found[1])
    assert caught.value.status == "static"


def test_a_pipeline_that_is_conditioned_on_the_clip_and_a_picture(clips, tmp_path, monkeypatch):
    (variant,) = [variant for variant in wan_i2v.VARIANTS if variant.name == "wan2.1-flf2v"]
    still = Image().encode_example(Picture.new("RGB", (wan.WIDTH, wan.HEIGHT), "red"))
    rows = clips.select([0, 1]).add_column("still", [still, still], feature=Image())
    options = {
        **SMALL,
        "num_frames": variant.num_frames,
        "height": variant.height,
        "width": variant.width,
        "conditioning": lambda row: {"last_image": row["still"]},
        "example": rows[0],
    }
    direct = MotiveAttributor(variant.build(), **options)
    found = direct.encode(rows, cache_dir=tmp_path / "cache", progress=False)
    assert direct.step.reads_rows
    other = MotiveAttributor(direct.step.pipeline, **options, encoded_column="encoded")
    index = direct.index(rows, tmp_path / "clips")
    closed(direct.step.pipeline, monkeypatch)
    again = other.index(found, tmp_path / "encoded")
    assert index.counts() == again.counts() == {"ok": 2}
    ids = index.ids()
    assert torch.equal(torch.as_tensor(again.features(ids)), torch.as_tensor(index.features(ids)))
    with pytest.raises(AssertionError, match="it is in the encoding"):
        direct.step.encode(load_clip(rows[0]["video"], direct.config.standard))


# ------------------------------------------------------------------------------------------------ encodings of others


def test_encodings_of_another_pipeline_say_what_differs(attributor, clips, encoded, tmp_path):
    pipe = wan.build()
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).mul_(2)
    other = MotiveAttributor(pipe, **SMALL, encoded_column="encoded")
    with pytest.raises(ValueError, match=r"other settings \(weights.text_encoder '\w+' and not '\w+'\)\. Enc"):
        other.index(encoded, tmp_path / "index")
    assert not (tmp_path / "index").exists(), "it is said before anything is computed"
    with pytest.raises(ValueError, match="weights.text_encoder"):
        other.feature(encoded[0]["video"], "a square", encoded[0])
    with pytest.raises(ValueError, match=r"no column 'encoded' with encodings.*MotiveAttributor\.encode"):
        other.index(clips, tmp_path / "index")
    anew = other.encode(encoded.select([0]), cache_dir=tmp_path, progress=False)
    assert anew.column_names == encoded.column_names, "in place of the others"
    assert encoding_of(anew[0], other._encoder()).digest == other._encoder().digest


def test_encodings_outlive_the_training_of_the_denoiser(encoder, encoded):
    pipe = wan.build()
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.add_(0.1)
    pipe.transformer.to(torch.bfloat16)
    trained = counted(pipe, encoder.log)
    assert trained.digest == encoder.digest and trained.mask_digest == encoder.mask_digest
    assert add_encodings(encoded, trained) is encoded and trained.count() == 0


def test_what_changes_the_digest(encoder, tmp_path):
    digests = [encoder.digest]
    digests.append(ClipEncoder(encoder.step, ClipStandard(**SHAPE, fps=8.0)).digest)
    digests.append(counted(encoder.step, encoder.log, require_caption=False).digest)
    pipe = wan.build()
    step = PipelineStep(pipe, **SHAPE, check=False, call_kwargs={"max_sequence_length": 64})
    digests.append(ClipEncoder(step, STANDARD).digest)
    pipe.vae.to(torch.bfloat16)
    step = PipelineStep(pipe, **SHAPE, check=False)
    digests.append(counted(step, encoder.log).digest)
    pipe.register_to_config(boundary_ratio=0.5)
    digests.append(counted(step, encoder.log).digest)
    pipe.__class__ = type("AnotherPipeline", (type(pipe),), {})
    digests.append(counted(step, encoder.log).digest)
    assert len(set(digests)) == len(digests)
    grid = tuple(encoder.step.latent_shape[1:])
    masks = [
        ClipEncoder(encoder.step, STANDARD, weigh=weigh).mask_digest
        for weigh in (
            MotionWeight(DISFlow(), grid),
            MotionWeight(DISFlow(), grid, compensate_camera=True),
            MotionWeight(DISFlow(preset="fast"), grid),
            lambda pixels, row: (pixels[:3, 0], 0.0),
            lambda pixels, row: (pixels[:3, 1], 0.0),
            None,
        )
    ]
    assert len(set(masks)) == len(masks) and masks[0] == encoder.mask_digest and masks[-1] == ""


def test_what_is_set_without_a_weight_changes_the_digest():
    """Tiling gives other latents, a tokenizer another prompt, a configuration another layer."""
    pipe = wan.build()
    encoder = ClipEncoder(PipelineStep(pipe, **SHAPE, check=False), STANDARD)
    digests = [encoder.digest]

    def refreshed() -> str:
        encoder.refresh()
        return encoder.digest

    assert refreshed() == digests[0]
    pipe.vae.enable_tiling()
    digests.append(refreshed())
    pipe.tokenizer.padding_side = "left" if pipe.tokenizer.padding_side == "right" else "right"
    digests.append(refreshed())
    pipe.text_encoder.config.layer_norm_epsilon *= 2
    digests.append(refreshed())
    with torch.no_grad():  # in place: an encoder that has digested the weights before must see it, too
        next(pipe.text_encoder.parameters()).mul_(1.01)
    digests.append(refreshed())
    pipe.text_encoder.encoder.final_layer_norm.weight.data = torch.zeros(pipe.text_encoder.config.d_model)
    digests.append(refreshed())
    assert len(set(digests)) == len(digests)
    pipe.text_encoder = None
    assert refreshed() == digests[-1], "what is taken away once it is done has made what it has made"


def test_settings_are_those_of_the_pipeline_that_is_loaded_again(tmp_path):
    pipe = wan.build()
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    one, other = (ClipEncoder(PipelineStep(p, **SHAPE, check=False), STANDARD) for p in (pipe, again))
    assert one.settings == other.settings


def test_a_use_of_the_pipeline_changes_no_digest(clips):
    pipe = wan.build()
    encoder = ClipEncoder(PipelineStep(pipe, **SHAPE, check=False), STANDARD)
    first = encoder.digest
    pipe.tokenizer(["a", "longer than that"], padding="max_length", max_length=9, truncation=True)
    assert encoder(clips[0])["encoded_status"] == "ok"
    encoder.refresh()
    assert encoder.digest == first


def test_a_weight_that_is_changed_between_leaves_the_cache_clean(clips, encoder, tmp_path):
    """Rows must not be kept under the digest of the weights that there were before."""
    pipe = wan.build()
    encoder = counted(pipe, tmp_path / "log", masks=False)
    cache = tmp_path / "cache"
    add_encodings(clips.select([0]), encoder, cache_dir=cache, progress=False)
    with torch.no_grad():
        pipe.text_encoder.shared.weight.mul_(3)
    add_encodings(clips.select([1]), encoder, cache_dir=cache, progress=False)
    assert encoder.count() == 2
    fresh = counted(wan.build(), tmp_path / "log", masks=False)
    add_encodings(clips.select([1]), fresh, cache_dir=cache, progress=False)
    assert fresh.count() == 1, "what the changed weights made is not what these make"


def test_an_index_knows_the_weights_that_there_are():
    attributor = MotiveAttributor(wan.build(), **SMALL)
    before = attributor.settings()["pipeline"]["weights"]
    with torch.no_grad():
        next(attributor.step.pipeline.text_encoder.parameters()).mul_(2)
    after = attributor.settings()["pipeline"]["weights"]
    assert {name for name in before if before[name] != after[name]} == {"text_encoder"}


def test_an_adapter_that_is_off_is_another_model():
    from peft import LoraConfig

    from hf_motive.pipelines import digest

    pipe = wan.build()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    on = digest.weights(pipe)["transformer"], digest.model({"transformer": pipe.transformer})
    pipe.transformer.disable_adapters()
    off = digest.weights(pipe)["transformer"], digest.model({"transformer": pipe.transformer})
    assert on[0] != off[0] and on[1] != off[1]


# ----------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def folder(tmp_path) -> Path:
    write_corpus(tmp_path / "corpus", range(4))
    return tmp_path / "corpus"


def test_only_what_changes_is_encoded_anew(folder, encoder, tmp_path):
    cache = tmp_path / "cache"

    def encode(dataset, by=encoder) -> Dataset:
        return add_encodings(dataset, by, cache_dir=cache, progress=False)

    first = encode(load_clips(folder))
    assert encoder.count() == 4
    second = encode(load_clips(folder))
    assert encoder.count() == 0 and second.to_list() == first.to_list()
    assert second._fingerprint == first._fingerprint, "what is mapped next is found again, too"
    assert encode(first) is first
    scored = encode(load_clips(folder).add_column("influence_rank", [3.0, 2.0, 1.0, 0.0]))
    assert encoder.count() == 0 and scored[0]["encoded"] == first[0]["encoded"]
    chosen = encode(load_clips(folder).select([2, 0]))
    assert chosen["file_name"][:] == ["002.mp4", "000.mp4"]
    assert [row["encoded"] for row in chosen] == [first[2]["encoded"], first[0]["encoded"]]
    assert len(list(cache.iterdir())) == 4, "and not a copy of them"
    assert encoder.count() == 0
    save_clip(folder / "001.mp4", moving_square(9), fps=16)
    changed = encode(load_clips(folder))
    assert encoder.count() == 1 and changed[1]["encoded"] != first[1]["encoded"]
    assert changed[3]["encoded"] == first[3]["encoded"]
    (folder / "003.mp4").unlink()
    assert encode(load_clips(folder))["encoded_status"][3] == "unreadable" and encoder.count() == 1
    renamed = load_clips(folder).map(lambda row: {"caption": row["caption"].replace("square", "box")})
    encode(renamed.select([0, 1]))
    assert encoder.count() == 2


def test_another_clip_in_the_same_row_is_encoded(folder, attributor, encoder, tmp_path):
    clips = load_clips(folder)
    first = add_encodings(clips, encoder, cache_dir=tmp_path / "cache", progress=False)
    assert encoder.count() == 4
    others = [clips[row]["video"] for row in (0, 3, 2, 1)]
    swapped = first.remove_columns("video").add_column("video", others, feature=first.features["video"])
    scoring = MotiveAttributor(attributor.step.pipeline, **SMALL, encoded_column="encoded")
    with pytest.raises(ValueError, match=r"2 rows of .* another clip .* row 1 \(encoded_clip '001.mp4 \d+'\)"):
        scoring.index(swapped, tmp_path / "index")
    found = add_encodings(swapped, encoder, cache_dir=tmp_path / "cache", progress=False)
    assert found[1]["encoded_clip"].startswith("003.mp4 ")
    encoder.count()
    latents = [read_encoding(row["encoded"]).latents for row in (*first, *found)]
    assert torch.equal(latents[5], latents[3]) and torch.equal(latents[4], latents[0])
    assert add_encodings(first.select([3, 1]), encoder).to_list() == first.select([3, 1]).to_list()
    assert encoder.count() == 0
    for row in range(1, 4):
        (folder / f"00{row}.mp4").unlink()
    assert add_encodings(first, encoder) is first, "a clip that is away does no harm"
    (folder / "000.mp4").rename(tmp_path / "kept.mp4")
    without = add_encodings(clips.select([0]), encoder, cache_dir=tmp_path / "cache", progress=False)
    assert without[0]["encoded_status"] == "unreadable" and without[0]["encoded_clip"] is None
    (tmp_path / "kept.mp4").rename(folder / "000.mp4")
    found = add_encodings(without, encoder, cache_dir=tmp_path / "cache", progress=False)
    assert found[0]["encoded"] == first[0]["encoded"], "it is there again"


def test_what_can_be_read_by_now_is_encoded(attributor, folder, encoder, tmp_path):
    """A file system that was away leaves path, size and time of change as they are."""
    clip = folder / "002.mp4"
    good, facts = clip.read_bytes(), clip.stat()

    def put(content: bytes) -> Dataset:
        clip.write_bytes(content)
        os.utime(clip, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        return load_clips(folder)

    options = {"cache_dir": tmp_path / "cache", "progress": False}
    broken = b"\0" * len(good)
    assert add_encodings(put(broken), encoder, **options)["encoded_status"][2] == "unreadable"
    assert encoder.count() == 4
    add_encodings(put(broken), encoder, **options)
    assert encoder.count() == 0, "it is tried, and no other is encoded with it"
    plain = counted(attributor.step, encoder.log, masks=False)
    found = add_encodings(put(good), plain, **options)
    assert plain.count() == 1 and found["encoded_status"][:] == ["ok"] * 4
    assert found["encoded_mask"][:] == ["ok", "ok", None, "ok"], "it is not under the name of one with a mask"
    found = add_encodings(put(good), encoder, **options)
    assert encoder.count() == 1 and found["encoded_mask"][:] == ["ok"] * 4


def test_no_piece_is_long(encoder, tmp_path):
    from hf_motive.encoded_pieces import plan

    pieces = plan(tmp_path, [str(row) for row in range(10_000)], encoder)
    assert max(len(piece.rows) for piece in pieces) == 32 and [row for piece in pieces for row in piece.rows] == [
        *range(10_000)
    ]


def test_masks_that_are_there_do_no_harm(attributor, folder, encoder, tmp_path):
    plain = counted(attributor.step, encoder.log, masks=False)
    clips = load_clips(folder)
    without = add_encodings(clips, plain, cache_dir=tmp_path / "cache", progress=False)
    assert plain.count() == 4 and without["encoded_mask"][:] == [None] * 4
    masked = add_encodings(without, encoder, cache_dir=tmp_path / "cache", progress=False)
    assert encoder.count() == 4 and masked["encoded_mask"][:] == ["ok"] * 4
    assert add_encodings(masked, plain) is masked
    other = tmp_path / "other"
    scored = attributor.encode(clips, cache_dir=other, progress=False)
    trained = add_encodings(clips, plain, cache_dir=other, progress=False)
    assert plain.count() == 0 and trained.to_list() == scored.to_list(), "scoring's encodings are a training's"


def test_clips_that_are_in_the_dataset(folder, encoder, tmp_path):
    rows = [
        {"video": {"path": None, "bytes": (folder / f"00{n}.mp4").read_bytes()}, "caption": f"{n}"} for n in range(4)
    ]
    held = Dataset.from_list(rows).cast_column("video", Video())
    held.to_parquet(tmp_path / "held.parquet")
    read = Dataset.from_parquet(str(tmp_path / "held.parquet"), cache_dir=str(tmp_path / "hf"))
    found = []
    for dataset in (held, read, read.shuffle(seed=3)):
        found.append(add_encodings(dataset, encoder, cache_dir=tmp_path / "cache", progress=False))
        assert encoder.count() == 4
        assert found[-1].features["video"] == Video(), "the video column is as it was"
        add_encodings(dataset, encoder, cache_dir=tmp_path / "cache", progress=False)
        assert encoder.count() == 0
    by_caption = {row["caption"]: row["encoded"] for row in found[0].remove_columns("video")}
    for other in found[1:]:
        assert {row["caption"]: row["encoded"] for row in other.remove_columns("video")} == by_caption
    both = concatenate_datasets([found[0], found[1]])
    assert add_encodings(both, encoder) is both


def test_pieces_are_of_many_rows_and_all_are_there(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_motive.encoded_pieces.PIECES", 2)
    monkeypatch.setattr("hf_motive.encoded_columns.BUFFER", 1)
    cache = tmp_path / "cache"
    clips = load_clips(folder)
    both = concatenate_datasets([clips, clips])

    def encode(rows: range) -> tuple[int, int]:
        found = add_encodings(both.select(rows), encoder, cache_dir=cache, progress=False)
        assert [row["encoded"] for row in found] == [whole[row % 4]["encoded"] for row in rows]
        return encoder.count(), len(list(cache.glob("*")))

    whole = add_encodings(clips, encoder, cache_dir=tmp_path / "whole", progress=False)
    assert encoder.count() == 4
    assert encode(range(3)) == (3, 2), "two and one"
    assert encode(range(2)) == (2, 4), "of a piece of two no single one is taken"
    assert encode(range(6)) == (1, 5), "rows that are added leave the others what they are; copies are found"


def test_without_caching_all_are_encoded_anew(folder, encoder, tmp_path):
    clips = load_clips(folder).select([0])
    disable_caching()
    try:
        for _ in range(2):
            add_encodings(clips, encoder, cache_dir=tmp_path / "cache", progress=False)
            assert encoder.count() == 1
    finally:
        enable_caching()


def test_what_cannot_be_encoded_is_counted(clips, encoder, tmp_path, caplog, capsys):
    with caplog.at_level(logging.WARNING):
        add_encodings(clips, encoder, cache_dir=tmp_path / "cache")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("4 of 8 clips could not be encoded (2 no_caption, 1 too_short, 1 unreadable)."), said
    assert "short.mp4" in said
    bar = capsys.readouterr().err
    assert "Encoding: 100%" in bar and "8/8" in bar and "clip/s" in bar and "Map" not in bar
    assert bar.count("Encodings of 8 clips: ") == 1 and f" MB in {tmp_path / 'cache'}" in bar
    add_encodings(clips, encoder, cache_dir=tmp_path / "cache")
    assert "Encodings of" not in capsys.readouterr().err, "once"


def test_a_full_disk_is_said(clips, encoder, tmp_path, monkeypatch):
    import datasets.arrow_writer

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "write_rows_on_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        add_encodings(clips.select([0]), encoder, cache_dir=tmp_path / "cache", progress=False)
    assert any("cache_dir=" in note for note in caught.value.__notes__)
    assert not list((tmp_path / "cache").iterdir()), "nothing half-written stays"


def test_what_is_refused(clips, encoder):
    with pytest.raises(TypeError, match="a stream has no place.*hf-motive select"):
        add_encodings(clips.to_iterable_dataset(), encoder)
    with pytest.raises(TypeError, match=r"several splits: give one, dataset\['train'\]"):
        add_encodings(clips.train_test_split(0.5, seed=0), encoder)
    with pytest.raises(ValueError, match="no rows"):
        add_encodings(clips.select([]), encoder)
    with pytest.raises(ValueError, match="no column 'caption'"):
        add_encodings(clips.remove_columns("caption"), encoder)
    encoder.columns = ("depth",)
    with pytest.raises(ValueError, match="no column 'depth'"):
        add_encodings(clips, encoder)


# ----------------------------------------------------------------------------------------------------- other processes

JOB = """
import json, os, signal, sys
from pathlib import Path
import torch
from hf_motive.corpus import load_clips
from hf_motive.encodings import add_encodings
from hf_motive.processes import processes
from tests.families import wan
from tests.test_encodings import Counted, counted

class Doomed(Counted):
    def finish(self, row, clip):
        columns = super().finish(row, clip)
        if self.log.stat().st_size == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return columns

torch.set_num_threads(1)
folder, cache, out = map(Path, sys.argv[1:])
rank = os.environ["RANK"]
if rank == "0":
    child = os.fork()
    if child == 0:  # alone, and killed at the third clip
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
        encoder = counted(wan.build(), out / "killed")
        encoder.__class__ = Doomed
        add_encodings(load_clips(folder), encoder, cache_dir=cache, progress=False)
    status = os.waitpid(child, 0)[1]
    left = sorted(path.name[:9] for path in cache.iterdir())
    (out / "left.json").write_text(json.dumps([os.WTERMSIG(status), left]))
state = processes()
assert state.num_processes == 2
encoder = counted(wan.build(), out / f"log{rank}")
found = add_encodings(load_clips(folder), encoder, cache_dir=cache)
rows = [[row["file_name"], row["encoded_status"], list(row["encoded"] or b"")] for row in found]
(out / f"rows{rank}.json").write_text(json.dumps([encoder.count(), rows]))
"""


def test_two_processes_go_on_where_a_killed_one_stopped(folder, encoder, tmp_path):
    """They share what is left of a run that was killed at its third clip, and another interpreter finds it all."""
    (folder / "002.mp4").write_text("not a video")
    cache = tmp_path / "cache"
    (tmp_path / "job.py").write_text(JOB)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    done = subprocess.run(
        [*launch, "--main_process_port=0", *map(str, (tmp_path / "job.py", folder, cache, tmp_path))],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    killed, left = json.loads((tmp_path / "left.json").read_text())
    assert killed == signal.SIGKILL and [name[:8] for name in left] == [
        ".unfinis",
        ".unfinis",
        "encoded-",
        "encoded-",
    ], left
    assert not list(cache.glob(".*")), "what it left half-written"
    (count, rows), (other, same) = (json.loads((tmp_path / f"rows{n}.json").read_text()) for n in range(2))
    assert (count, other) == (1, 1) and rows == same
    assert " 50%" in done.stderr and "4/4" in done.stderr and done.stderr.count("could not be encoded") == 1
    found = add_encodings(load_clips(folder), encoder, cache_dir=cache, progress=False)
    assert encoder.count() == 0, "in another interpreter, too"
    assert rows == [[row["file_name"], row["encoded_status"], list(row["encoded"] or b"")] for row in found]
    alone = add_encodings(load_clips(folder), encoder, cache_dir=tmp_path / "alone", progress=False)
    assert encoder.count() == 4 and alone.to_list() == found.to_list()
