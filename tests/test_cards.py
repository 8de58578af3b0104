"""Cards: what they say, that nothing in them can break them, and that the Hub's rules accept their metadata."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image

from hf_motive.cards import dataset_card, index_card, markdown, size_category
from hf_motive.corpus import load_clips
from hf_motive.index import GradientIndex
from hf_motive.selection import best
from tests import hub_validation
from tests.clips import write_corpus

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "pipeline": {"pipeline": "WanPipeline", "weights": {"transformer": "23f0aa6922c9f172"}},
    "projection": {"kind": "fastfood", "dim": 64, "seed": 0},
    "num_frames": 9,
    "height": 32,
    "width": 48,
    "fps": 16.0,
    "timesteps": [751.0],
    "noise_draws": 1,
    "seed": 0,
    "motion_weighted": True,
    "estimator": "dis-medium-neighbour-128",
    "parameters": None,
}
PROVENANCE = [{"pipeline": "/home/somebody/models/small-wan", "torch": "2.13.0", "hf-motive": "0.1.0"}]
NASTY = "a | b\n\n# c <script>alert(1)</script> ![x](http://evil/p.png) `code` $x$ \\ {{ 7*7 }} " + "long " * 60


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, range(12))
    (folder / "011.mp4").write_text("not a video")
    nan = float("nan")
    ranks = [*range(10), nan, nan]
    captions = [NASTY, None, "тест 猫"] + ["a square"] * 9
    return (
        load_clips(folder)
        .remove_columns("caption")
        .add_column("caption", captions)
        .add_column("influence", [0.5 - 0.1 * rank for rank in ranks])
        .add_column("influence_votes", [float(rank < 2) for rank in ranks[:10]] + [nan, nan])
        .add_column("influence_rank", ranks)
        .add_column("influence_status", ["ok"] * 10 + ["static", "unreadable"])
        .add_column("influence_reason", [""] * 10 + ["nothing | moves", f"{folder}/011.mp4 is not a video"])
        .add_column("influence_settings", ["0123456789abcdef"] * 12)
        .add_column("influence_left <b>", ranks)
    )


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def tables(text: str) -> list[list[str]]:
    """The tables of a Markdown text, a list of lines each."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    return [table.splitlines() for table in found]


def test_what_a_card_says(scored):
    card = dataset_card(
        scored, "me/clips", settings=SETTINGS, provenance=PROVENANCE, corpus="me/all", revision="abc", license="mit"
    )
    for said in (
        "**12 clips of `me/all`, 10 of them ranked",
        "me/clips",
        "| Corpus | `me/all`, revision `abc` |",
        "`small-wan` (WanPipeline)",
        "transformer `23f0aa6922c9f172`",
        "9 frames of 32×48 at 16 frames per second",
        "| `static` | 1 | nothing \\| moves |",
        "| `unreadable` | 1 | 011.mp4 is not a video |",
        "2 of the 12 clips could not be ranked",
        "| Settings digest | `0123456789abcdef` |",
        "Over 10 clips: median +0.050, a tenth below −0.310, a tenth above +0.410; 40% below zero.",
        "Published as `mit`",
        "arXiv:2601.08828",
        '"motion_weighted": true',
    ):
        assert said in card.text, said
    assert "/home" not in card.text and str(Path(scored[0]["video"]["path"]).parent) not in card.text
    first = next(line for line in card.text.splitlines() if line.startswith("| ▲"))
    assert first.startswith("| ▲ | 0 | +0.500 | 1 | 000.mp4 | a \\| b \\# c &lt;script&gt;")
    last = [line for line in card.text.splitlines() if line.startswith("| ▼")]
    assert [line.split(" | ")[1] for line in last] == ["9", "8", "7", "6"]
    for path in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert path in card.files
    assert set(card.files) == {"card/influence.png", "card/clips.png"}


def test_no_text_breaks_a_table(scored):
    card = dataset_card(scored, "me/clips", settings=SETTINGS)
    found = tables(card.text)
    assert len(found) == 4
    for table in found:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(cells) == 1, table
    assert "<script" not in card.text and "<b>" not in card.text.split("## Columns")[1].split("##")[0].replace(
        "`influence_left <b>`", ""
    )
    assert "](http://evil" not in card.text and "7\\*7" in markdown("{{ 7*7 }}")
    assert len(markdown(NASTY)) < 300


def test_a_selection_shows_the_whole(scored):
    card = dataset_card(best(scored, 0.2), "me/best", whole=scored, selection="The best fifth, by rank.")
    assert "**2 clips, chosen out of 12 by what they teach" in card.text and "The best fifth, by rank." in card.text
    assert "2 of the 12 clips of the corpus could not be ranked" in card.text
    assert "In the whole corpus, 10: median +0.050" in card.text
    assert card.files["card/influence.png"] != dataset_card(best(scored, 0.2), "me/best").files["card/influence.png"]


@pytest.mark.parametrize("license", [None, "apache-2.0"])
def test_metadata_that_the_hub_accepts(scored, license, tmp_path):
    infos = {"dataset_info": {"features": [{"name": "caption", "dtype": "string"}]}}
    text = dataset_card(scored, "me/clips", license=license, metadata=infos).text
    data = metadata(text)
    assert data["license"] == (license or "unknown") and data["size_categories"] == ["n<1K"]
    assert data["dataset_info"] == infos["dataset_info"] and "motion-attribution" in data["tags"]
    assert hub_validation.validate(text, "dataset") == ([], [])
    assert hub_validation.validate(index_card(an_index(tmp_path), "me/index").text, "dataset") == ([], [])
    refused, _ = hub_validation.validate(dataset_card(scored, "me/clips", license="mine").text, "dataset")
    assert refused  # the check can fail


def test_a_stream_has_the_card_of_the_dataset(scored):
    card = dataset_card(scored, "me/clips", settings=SETTINGS)
    stream = dataset_card(scored.to_iterable_dataset(), "me/clips", settings=SETTINGS)
    assert stream == card
    again = dataset_card(scored, "me/clips", settings=SETTINGS)
    assert again == card  # bit for bit, the pictures too


def test_the_pictures(scored):
    files = dataset_card(scored, "me/clips").files
    for data in files.values():
        image = Image.open(io.BytesIO(data))
        assert image.format == "PNG" and not image.info.get("Software") and len(data) < 300_000
        assert image.convert("RGBA").getextrema()[3] == (255, 255)  # opaque: read in dark mode too
        assert len(image.convert("RGB").resize((64, 64)).getcolors(64 * 64)) > 8  # something is drawn
    below = np.asarray(Image.open(io.BytesIO(files["card/influence.png"])).convert("RGB")).reshape(-1, 3).astype(int)
    colours = {tuple(colour) for colour in below[::7]}
    assert any(r > 180 and g < 130 for r, g, b in colours) and any(b > 150 and r < 90 for r, g, b in colours)


def test_a_card_without_scores_clips_or_settings():
    plain = Dataset.from_dict({"caption": ["a", "b"]})
    card = dataset_card(plain, "me/plain")
    assert "2 clips, 0 of them ranked" in card.text and not card.files and "could not be ranked" not in card.text
    nothing = plain.add_column("influence", [float("nan")] * 2).add_column("influence_status", ["failed", None])
    card = dataset_card(nothing, "me/plain")
    assert not card.files and "| `failed` | 1 |" in card.text
    assert "filter(" not in card.text


def an_index(folder: Path) -> GradientIndex:
    settings = {"features": SETTINGS, "provenance": PROVENANCE[0]}
    with GradientIndex.create_or_open(folder / "index", settings, dim=64) as index:
        index.append("a", torch.ones(64))
        index.append("b", None, status="static", reason="nothing moves")
    return GradientIndex.open(folder / "index")


def test_an_index_card(tmp_path):
    card = index_card(an_index(tmp_path), "me/index", corpus="/home/somebody/clips", license="cc-by-4.0")
    for said in ("1 clips of `clips`", 'load_index("me/index")', "| `static` | 1 |", "unit vector of 64 numbers"):
        assert said in card.text, said
    assert metadata(card.text)["viewer"] is False and "/home" not in card.text


def test_sizes():
    assert [size_category(n) for n in (0, 999, 1000, 10**6, 10**8)] == [
        "n<1K", "n<1K", "1K<n<10K", "1M<n<10M", "100M<n<1B",
    ]  # fmt: skip


def test_every_package_is_listed_and_the_templates_are_installed(tmp_path):
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} | {"hf_motive.hub_cards"} == set(tools["packages"])
    script = (
        "from importlib import resources\n"
        "files = resources.files('hf_motive.hub_cards')\n"
        "assert all((files / name).is_file() for name in ('dataset.md', 'index.md'))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
