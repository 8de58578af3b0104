"""Cards of models: what they say, that nothing in them can break them, and that the Hub accepts their metadata."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from hf_motive.hub import ModelFacts, model_card, write_card
from hf_motive.hub.curves import loss_curve, measure_name
from hf_motive.hub.model_card import theirs
from hf_motive.hub.model_facts import is_model_folder
from hf_motive.video import save_clip
from tests import hub_validation
from tests.clips import moving_square
from tests.hub_models import some_facts
from tests.test_cards import NASTY, tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The samples of `some_facts`, and its facts."""
    place = tmp_path_factory.mktemp("runs") / "mine"
    facts = some_facts()
    for number, path in enumerate(facts.paths()):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        save_clip(place / path, moving_square(number), fps=16)
    facts.save(place)
    return place


def plain(**more) -> ModelFacts:
    """Facts of which no picture is drawn."""
    return some_facts(**{"losses": [], "metrics": [], "pictures": "samples/step-0/00.mp4"} | more)


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_what_a_card_says(folder):
    card = model_card(some_facts(), folder, "me/mine", license="mit")
    for said in (
        "**A LoRA for `tester/tiny-wan`, trained on 24 clips of `tester/all-clips`, chosen out of 240.** The best",
        "The best tenth, by rank.",
        'pipe.load_lora_weights("me/mine")',
        "| Base model | [tester/tiny-wan](https://huggingface.co/tester/tiny-wan) |",
        "[tester/best-clips](https://huggingface.co/datasets/tester/best-clips)",
        "| Scores: settings | `0123456789abcdef` |",
        "| | before | step 100 |",
        "| validation loss | 0.52 | 0.4 |",
        "| Learning rate | 0.0001 |",
        "| LoRA rank, alpha | 4, 8 |",
        "| Computed with | torch 2.13.0, diffusers 0.42.1 |",
        "| a square goes \\| right | [mp4](samples/step-0/01.mp4) | [mp4](samples/step-100/01.mp4) |",
        "as many steps and as many clips seen",
        "A LoRA fits the model that it was trained on.",
        "Published as `mit`.",
        "arXiv:2601.08828",
    ):
        assert said in card.text, said
    assert set(card.files) == {"card/loss.png", "card/samples.png"}
    for path in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert path in card.files
    first, last = (
        np.mean([loss for _, loss in part]) for part in (some_facts().losses[:10], some_facts().losses[-10:])
    )
    assert f"over 100 steps: at first {first:.4g}, at last {last:.4g}" in card.text


@pytest.mark.parametrize("clips_of", [None, 1])
def test_all_weights_on_all_clips(folder, clips_of):
    facts = plain(
        kind="full", components=["transformer", "transformer_2"], clips_of=clips_of, selection=None, clips=1,
        curated_dataset=None, scores=None,
    )  # fmt: skip
    text = model_card(facts, folder, "me/mine").text
    assert "**`tester/tiny-wan`, fine-tuned on 1 clip of `tester/all-clips`.**" in text
    assert "| Trained | All weights of `transformer`, `transformer_2` |" in text
    assert "| Chosen | all were taken |" in text and f"| Clips | 1{' of 1' * bool(clips_of)} |" in text
    assert "A LoRA fits" not in text and "Whether this choice" not in text and "Scores:" not in text
    assert metadata(text)["base_model_relation"] == "finetune" and "datasets" not in metadata(text)


def test_clips_that_could_not_be_used_were_not_chosen_from(folder):
    text = model_card(plain(clips=9, clips_of=10, selection=None), folder, "me/mine").text
    assert "trained on 9 clips of `tester/all-clips`.**" in text and "Whether this choice" not in text
    assert "| Clips | 9 of 10 |\n| Could not be used | 1 |\n| Chosen | all were taken |" in text
    text = model_card(plain(clips=9, clips_of=10), folder, "me/mine").text
    assert "chosen out of 10.** The best tenth" in text and "Could not be used" not in text
    assert "Whether this choice" in text


def test_a_base_without_a_name(folder):
    load = 'pipe = WanPipeline.from_pretrained("PUT THE BASE MODEL HERE")\npipe.load({repo_id!r}, prefix="")'
    for kind, opening in (
        ("lora", "**A LoRA for a model that is not named here, trained on 24"),
        ("full", "**A model that is not named here, fine-tuned on 24"),
    ):
        facts = plain(base_model="", base_is_hub=False, how_to_load=load, kind=kind)
        text = model_card(facts, folder, "me/mine").text
        assert opening in text and "``" not in text.replace("```", "")
        assert "| Base model | a model that is not named here |" in text and "- The base model is still in it" in text
        assert "`base_model=` was not given to the training. Put its id or its folder" in text
        assert 'prefix=""' in text and "was a folder on the machine" not in text
        assert "base_model" not in metadata(text) and facts.published().base_model == ""
        assert hub_validation.validate(text, "model") == ([], [])
    assert "base_model=" not in model_card(plain(), folder, "me/mine").text


@pytest.mark.parametrize("tag", ["text-to-video", "image-to-video", "video-to-video"])
@pytest.mark.parametrize("license", [None, "apache-2.0", "My own (v2)"])
def test_metadata_that_the_hub_accepts(folder, tag, license):
    for facts in (plain(pipeline_tag=tag), plain(pipeline_tag=tag, base_is_hub=False, samples=[])):
        text = model_card(facts, folder, "me/mine", license=license).text
        assert hub_validation.validate(text, "model") == ([], [])
        assert metadata(text)["pipeline_tag"] == tag and metadata(text)["library_name"] == "diffusers"
        assert ("widget" in metadata(text)) == ("<Gallery />" in text) == bool(facts.samples)
        assert ("base_model" in metadata(text)) == ("base_model_relation" in metadata(text)) == facts.base_is_hub
    wrong = model_card(plain(), folder, "me/mine").text
    for said, broken in (("adapter", "cousin"), ("- text:", "- txt: {}\n  text: [1]\n  was:"), ("unknown", "mine")):
        assert hub_validation.validate(wrong.replace(said, broken, 1), "model")[0], said  # the check can fail


@pytest.mark.parametrize(
    "given, kept, in_facts, license",
    [
        (None, {}, None, "unknown"),
        (None, {}, "mit", "mit"),
        (None, {"license": "cc-by-4.0"}, "mit", "cc-by-4.0"),
        (None, {"license": "unknown"}, "mit", "mit"),
        ("apache-2.0", {"license": "cc-by-4.0"}, "mit", "apache-2.0"),
    ],
)
def test_whose_licence_counts(folder, given, kept, in_facts, license):
    text = model_card(plain(license=in_facts), folder, "me/mine", metadata=kept, license=given).text
    assert metadata(text)["license"] == license
    if license == "unknown":
        assert "The licence of these weights was not said" in text


def test_no_text_breaks_a_table_or_gets_in(folder):
    facts = some_facts(
        selection=NASTY,
        corpus=NASTY,
        components=["a`|b"],
        training={NASTY: NASTY, "x": {"a": [1, NASTY]}},
        metrics=[{"step": 0, NASTY: 0.5}, {"step": 9, NASTY: NASTY}],
        scores={NASTY: NASTY},
        versions={NASTY: "1"},
        curated_dataset="me/x](http://evil)",
        samples=[{"caption": NASTY, "after": "samples/step-0/00.mp4"}],
    )
    card = model_card(facts, folder, "me/mine")
    found = tables(card.text)
    assert len(found) == 4
    for table in found:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text.split("---\n", 2)[2])
    assert "<script>" not in html and html.count("<table>") == 4 and html.count("<h1>") == 1
    links = re.findall(r'(?:href|src)="(.*?)"', html)
    assert all(
        link.startswith(("card/", "samples/", "https://huggingface.co/tester", "https://arxiv")) for link in links
    )
    row = next(line for line in html.splitlines() if "alert(1)" in line and line.startswith("<td"))
    assert unescape(re.sub(r"</?td.*?>", "", row)) == " ".join(NASTY.split())[:159].rstrip() + "…"
    assert hub_validation.validate(card.text, "model") == ([], [])
    assert metadata(card.text)["widget"][0]["text"] == " ".join(NASTY.split())


@pytest.mark.parametrize("base", ["/home/somebody/models/mine", "../somebody/mine", "runs/somebody/mine/", "~/mine"])
def test_no_folder_of_this_machine(folder, base):
    code = f'pipe = WanPipeline.from_pretrained({json.dumps(base)})\npipe.load_lora_weights("{{repo_id}}")'
    facts = plain(
        base_model=base, base_is_hub=False, how_to_load=code, corpus="/home/somebody/clips", license="mit",
        selection="From /home/somebody/run.", training={"Output": "/home/somebody/out"}, scores={"index": "/home/x/i"},
    )  # fmt: skip
    for text in (model_card(facts, folder, "me/mine").text, facts.published().to_json()):
        assert "somebody" not in text and "/home" not in text and str(folder) not in text and "~" not in text
    text = model_card(facts, folder, "me/mine").text
    assert 'from_pretrained("mine")' in text and "`mine` was a folder on the machine of the training" in text
    assert "base_model" not in metadata(text)
    lost = model_card(facts, folder, "me/mine", metadata={"base_model_relation": "adapter"}).text
    assert "base_model_relation" not in metadata(lost)  # of what?
    cached = "/x/hub/models--Wan-AI--Wan2.1-T2V/snapshots/0123"
    assert plain(base_model=cached, base_is_hub=False).published().base_model == "Wan-AI/Wan2.1-T2V"


def test_the_same_input_gives_the_same_bytes(folder):
    assert model_card(some_facts(), folder, "me/mine") == model_card(some_facts(), folder, "me/mine")


def test_what_a_person_wrote_stays(folder):
    """And what an earlier push wrote, and nobody changed, goes."""
    earlier = plain(license="mit", pipeline_tag="video-to-video")
    written = metadata(model_card(earlier, folder, "me/mine").text)
    own = {"language": ["de"], "gated": "auto"}
    assert theirs(written, earlier) == {} and theirs(written | own, earlier) == own
    changed = written | own | {"tags": ["of-ours", *written["tags"]], "pipeline_tag": "image-to-video"}
    changed |= {"widget": [*written["widget"], {"text": "theirs", "output": {"url": "theirs.mp4"}}]}
    later = plain(kind="full", samples=some_facts().samples[:1], curated_dataset="tester/better")
    after = metadata(model_card(later, folder, "me/mine", metadata=theirs(changed, earlier)).text)
    assert after["language"] == ["de"] and after["gated"] == "auto" and after["pipeline_tag"] == "image-to-video"
    assert after["tags"][0] == "of-ours" and "lora" not in after["tags"]
    assert after["datasets"] == ["tester/better"] and after["license"] == "unknown"
    assert [entry["text"] for entry in after["widget"]] == ["a square goes left", "theirs"]
    everything = theirs(changed, None)  # somebody else's repository: all of it is a person's
    assert everything == changed


def test_model_index_of_a_person_stays(folder):
    index = [{"name": "mine", "results": [{"task": {"type": "text-to-video"}, "dataset": {"type": "a/b", "name": "b"},
              "metrics": [{"type": "fvd", "value": 1.5}]}]}]  # fmt: skip
    text = model_card(plain(), folder, "me/mine", metadata={"model-index": index}).text
    assert metadata(text)["model-index"] == index and hub_validation.validate(text, "model") == ([], [])


# Pictures -------------------------------------------------------------------------------------------------------


def test_a_sample_that_is_not_there_is_left_out(folder, caplog):
    facts = some_facts()
    facts.samples.append({"caption": "gone", "before": "samples/gone.mp4", "after": "samples/gone-too.mp4"})
    facts.samples[1]["before"] = "samples/gone.mp4"
    card = model_card(facts, folder, "me/mine")
    assert "samples/gone.mp4, samples/gone-too.mp4" in caplog.text
    assert "gone" not in card.text and "| a square goes \\| right |  | [mp4](samples/step-100/01.mp4) |" in card.text


def test_the_strip_of_the_training_is_shown_where_there_is_one(folder, tmp_path):
    both = [sample | {"both": sample["after"]} for sample in some_facts().samples]
    facts = some_facts(pictures="samples/strip of it.png", samples=both)
    (folder / facts.pictures).write_bytes(b"a picture")
    card = model_card(facts, folder, "me/mine")
    assert "](samples/strip%20of%20it.png)" in card.text and set(card.files) == {"card/loss.png"}
    assert "| prompt | before | after | side by side |" in card.text
    facts.save(folder)
    readme = write_card(folder, "me/mine", tmp_path / "docs")
    some_facts().save(folder)
    assert readme.read_text() == card.text and (tmp_path / "docs" / facts.pictures).read_bytes() == b"a picture"
    assert {str(p.relative_to(tmp_path / "docs")) for p in (tmp_path / "docs").rglob("*") if p.is_file()} == {
        "README.md", "card/loss.png", *facts.paths()
    }  # fmt: skip


def test_a_card_in_its_folder(folder):
    before = set(folder.rglob("*"))
    text = write_card(folder).read_text()
    assert "# mine\n" in text and 'load_lora_weights("mine")' in text
    for path in {*folder.rglob("*")} - before:
        assert path.name in ("README.md", "loss.png", "card", "samples.png")


def test_without_losses_samples_and_metrics(folder):
    card = model_card(some_facts(losses=[], metrics=[], samples=[], training={}, versions={}), folder, "me/mine")
    assert not card.files and "![" not in card.text and "Before and after" not in card.text
    one = model_card(some_facts(losses=[[1, 0.5]], metrics=[{"step": 0, "loss": 0.5}]), folder, "me/mine")
    assert set(one.files) == {"card/samples.png"} and "| loss | 0.5 |  |" in one.text


def curve(losses, metrics=()) -> np.ndarray:
    """Rows of the picture, 0 at the top, at which the training's loss is drawn, from left to right; NaN for none."""
    picture = np.asarray(Image.open(io.BytesIO(loss_curve(losses, metrics))).convert("RGB")).astype(int)
    blue = np.abs(picture - [0x21, 0x66, 0xAC]).max(axis=2) < 12
    blue[:125] = False  # the legend
    rows = np.where(blue, np.arange(len(blue))[:, None], np.nan)
    with np.errstate(all="ignore"):
        return np.asarray([np.nan if np.isnan(column).all() else np.nanmean(column) for column in rows.T])


def test_the_curve_draws_what_there_is():
    falling = curve([[step, 1 - step / 100] for step in range(101)])
    drawn = falling[~np.isnan(falling)]
    assert len(drawn) > 800 and (np.diff(drawn) > -1).all() and drawn[-1] - drawn[0] > 200
    rising = curve([[step, step / 100] for step in range(101)])
    assert np.nanargmax(rising) < 300 and np.nanargmin(rising) > 1300
    unordered = [[2, 0.5], [1, 1.0], [3, math.nan], [4, None], [5, 0.1]]
    assert loss_curve(unordered) == loss_curve([[1, 1.0], [2, 0.5], [5, 0.1]])
    assert loss_curve([], [{"step": 0, "eval_loss": 1.0}, {"step": 5, "eval_loss": 0.5, "a": 3}]) is not None
    assert loss_curve([[1, 0.5]], [{"step": 0, "eval_loss": 1.0}]) is None and loss_curve([]) is None
    # Of two scales far apart the change is drawn: ten times the numbers give the same picture.
    small, large = (
        [{"step": n, "eval_loss": 1 - n / 9, "eval_motion_loss": k * n + k} for n in range(3)] for k in (3, 30)
    )
    near = [row | {"eval_motion_loss": 1.1 - row["step"]} for row in small]
    assert loss_curve([], small) == loss_curve([], large) != loss_curve([], near)
    parts = [row | {"eval_loss_t250": 7.0} for row in small]
    assert loss_curve([], parts) == loss_curve([], small)
    # Beside losses, what is no loss has other units; names that the font or mathematics would break do not.
    two = [{"step": step, "loss 猫 $x_$": 1.0, "seconds": step} for step in range(3)]
    assert loss_curve([], two) == loss_curve([], [{"step": row["step"], "loss 猫 $x_$": 1.0} for row in two])


def test_measures_have_names():
    names = ("eval_loss", "eval_motion_loss", "eval_motion_loss_t250", "fvd")
    assert [measure_name(name) for name in names] == [
        "validation loss",
        "validation loss, motion-weighted",
        "validation loss, motion-weighted, at timestep 250",
        "fvd",
    ]


def test_pictures_leave_matplotlib_as_it_is_and_take_nothing_from_it():
    script = """
import sys, matplotlib
from hf_motive.hub.curves import loss_curve
points = [[step, 1 / (1 + step)] for step in range(50)]
plain = loss_curve(points)
assert "matplotlib.pyplot" not in sys.modules and len(plain) < 100_000
matplotlib.rcParams.update({"font.size": 30, "axes.facecolor": "black", "lines.linewidth": 9})
assert loss_curve(points) == plain
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# Facts ----------------------------------------------------------------------------------------------------------


def test_facts_are_kept(tmp_path):
    facts = some_facts(
        losses=[[1, math.nan], [2, torch.tensor(0.5)]], training={"rate": np.float32(0.5), "path": Path("a/b")},
        how_to_load=["import x", "x()"],
    )  # fmt: skip
    facts.save(tmp_path)
    again = ModelFacts.load(tmp_path)
    assert again.losses == [[1, None], [2, 0.5]] and again.training == {"rate": 0.5, "path": "a/b"}
    assert again.how_to_load == "import x\nx()" and again.samples == facts.samples
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"] and is_model_folder(tmp_path)
    again.save(tmp_path)
    assert ModelFacts.load(tmp_path) == again
    # What a newer version knows besides does no harm.
    said = json.loads((tmp_path / "model.json").read_text()) | {"new": 1}
    (tmp_path / "model.json").write_text(json.dumps(said))
    assert ModelFacts.load(tmp_path) == again


def test_facts_that_are_none(tmp_path):
    for path in ("/etc/passwd", "../theirs.mp4", "a/../../b.mp4", "C:\\x.mp4", "https://a/b.mp4"):
        with pytest.raises(ValueError, match="must be relative to the model's folder, and below it"):
            some_facts(samples=[{"caption": "a", "after": path}])
        with pytest.raises(ValueError, match="below it"):
            some_facts(pictures=path)
    with pytest.raises(ValueError, match="kind must be 'full' or 'lora', got 'dora'"):
        some_facts(kind="dora")
    with pytest.raises(ValueError, match="model.json holds numbers, texts, lists and mappings alone"):
        some_facts(training={"x": object()}).save(tmp_path)
    assert not list(tmp_path.iterdir()) and not is_model_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no model.json, of which the card is made"):
        ModelFacts.load(tmp_path)
    for text in ("", "[1]", '{"format": "hf_motive model"}', '{"kind": "lora"}', "{"):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(ValueError, match=r"cannot be read: .*Write it anew"):
            ModelFacts.load(tmp_path)
