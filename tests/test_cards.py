"""Cards: what they say, that nothing in them can break them, and that the Hub's rules accept their metadata."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tomllib
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Array4D, Dataset, Features, Value
from markdown_it import MarkdownIt
from PIL import Image

from hf_motive.corpus import load_clips
from hf_motive.hub import pictures
from hf_motive.hub.cards import dataset_card, index_card, markdown, size_category
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
        "`small-wan` (`WanPipeline`)",
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
    assert first.startswith("| ▲ | 0 | +0.500 | 1 | 000.mp4 | a \\| b \\# c &#60;script&#62;")
    last = [line for line in card.text.splitlines() if line.startswith("| ▼")]
    assert [line.split(" | ")[1] for line in last] == ["9", "8", "7", "6"]
    for path in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert path in card.files
    assert set(card.files) == {"card/influence.png", "card/clips.png"}


def rendered(text: str) -> str:
    """The body of a card as HTML, raw HTML let through as the Hub lets some of it through."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("---\n", 2)[2])


def test_no_text_breaks_a_table_or_gets_in(scored):
    nasty = scored.rename_column("influence_left <b>", "influence_`left` | <b>\n\n# right")
    card = dataset_card(nasty, "me/clips", settings=SETTINGS, provenance=[{"torch": "2 | <i>"}], selection=NASTY)
    found = tables(card.text)
    assert len(found) == 4
    for table in found:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(cells) == 1, table
    html = rendered(card.text)
    plain = "h1 h2 p strong a pre code img ul li details summary table thead tbody tr th td"
    assert html.count("<table>") == 4 and set(re.findall(r"</?([a-z0-9]+)", html)) == set(plain.split())
    assert len(re.findall("<h1>", html)) == 1 and re.findall(r'(?:href|src)="(.*?)"', html) == [
        "https://arxiv.org/abs/2601.08828", "card/influence.png", "card/clips.png",
    ]  # fmt: skip
    row = next(line for line in html.splitlines() if "alert(1)" in line and line.startswith("<td"))
    shown = unescape(re.sub(r"</?td.*?>", "", row))
    assert shown == " ".join(NASTY.split())[:159].rstrip() + "…"  # a reader sees what was written


@pytest.mark.parametrize(
    "text", ["https://a.b/c?d=1", "see WWW.evil.com", "@somebody", "$x$ \\(y\\) \\[z\\]", "a\u2028| b"]
)
def test_text_makes_no_links_or_mathematics(text):
    escaped = markdown(text)
    assert not re.search(r"://|www\.|@|\$|\\\\", escaped, re.IGNORECASE)
    assert unescape(MarkdownIt("commonmark").renderInline(escaped)) == " ".join(text.split())


def test_a_selection_shows_the_whole(scored):
    card = dataset_card(best(scored, 0.2), "me/best", whole=scored, selection="The best fifth, by rank.")
    assert "**2 clips, chosen out of 12 by what they teach" in card.text and "The best fifth, by rank." in card.text
    assert "2 of the 12 clips of the corpus could not be ranked" in card.text
    assert "In the whole corpus, 10: median +0.050" in card.text
    assert card.files["card/influence.png"] != dataset_card(best(scored, 0.2), "me/best").files["card/influence.png"]


def test_null_where_there_is_no_nan():
    columns = {"caption": ["a", "b"], "influence": [0.5, None], "influence_rank": [0.0, None]}
    rows = Dataset.from_dict(columns | {"influence_status": ["ok", "static"]})
    for nulls in (False, True):  # a None says it by itself
        text = dataset_card(rows, "me/nulls", nulls=nulls).text
        assert "rank is not None and rank < 1" in text and "score is not None and score > 0" in text
        assert "These rows hold null for their scores" in text


@pytest.mark.parametrize("whole", [True, False])
def test_a_selections_code_does_not_take_ranks_of_the_whole_for_its_own(scored, whole):
    card = dataset_card(best(scored, 0.2), "me/best", whole=scored if whole else None, selection="The best fifth.")
    assert 'clips.sort("influence_rank")' in card.text and "rank <" not in card.text


@pytest.mark.parametrize("license", [None, "apache-2.0"])
def test_metadata_that_the_hub_accepts(scored, license, tmp_path):
    infos = {"dataset_info": {"features": [{"name": "caption", "dtype": "string"}]}}
    text = dataset_card(scored, "me/clips", license=license, metadata=infos).text
    data = metadata(text)
    assert data["license"] == (license or "unknown") and data["size_categories"] == ["n<1K"]
    assert data["dataset_info"] == infos["dataset_info"] and "motion-attribution" in data["tags"]
    assert hub_validation.validate(text, "dataset") == ([], [])
    assert hub_validation.validate(index_card(an_index(tmp_path), "me/index").text, "dataset") == ([], [])
    refused, _ = hub_validation.validate(text.replace(f"license: {license or 'unknown'}", "license: mine"), "dataset")
    assert refused  # the check can fail


@pytest.mark.parametrize(
    ("license", "kept", "entries"),
    [
        ("CC-BY-4.0", {}, {"license": "cc-by-4.0"}),
        (None, {"license": "mit"}, {"license": "mit"}),
        ("mit", {"license": "other", "license_name": "x"}, {"license": "mit"}),
        ("My own (v2)", {}, {"license": "other", "license_name": "my-own-v2"}),
        ("猫", {}, {"license": "other", "license_name": "other-license"}),
        (
            "https://example.com/LICENSE.txt",
            {},
            {
                "license": "other",
                "license_name": "license.txt",
                "license_link": "https://example.com/LICENSE.txt",
            },
        ),
    ],
)
def test_a_licence_in_the_hubs_words(license, kept, entries):
    text = dataset_card(Dataset.from_dict({"caption": ["a"]}), "me/plain", license=license, metadata=kept).text
    assert {name: value for name, value in metadata(text).items() if name.startswith("license")} == entries
    assert hub_validation.validate(text, "dataset") == ([], [])
    assert "Published" in text


def test_many_groups_take_one_row_and_own_columns_are_named(scored):
    many = scored.remove_columns("influence_left <b>")
    for number in range(20):
        many = many.add_column(f"influence_q{number:02}", [0.0] * 12)
    card = dataset_card(many, "me/clips").text
    assert "| `influence_q00` … `influence_q19` | mean influence on one of 20 queries" in card
    assert "`influence_q07`" not in card and "`file_name`, `kind`: as they came with the corpus." in card


def test_a_template_of_ones_own(scored, tmp_path):
    (tmp_path / "mine.md").write_text("---\n{{ card_data }}\n---\n{{ title }}: {{ count }} {{ top[0].clip }}\n")
    card = dataset_card(scored, "me/clips", template=tmp_path / "mine.md")
    assert card.text.endswith("---\nclips: 10 000.mp4\n") and metadata(card.text)["license"] == "unknown"
    (tmp_path / "other.md").write_text("---\n{{ card_data }}\n---\n{{ dim }}\n")
    assert index_card(an_index(tmp_path), "me/index", template=tmp_path / "other.md").text.endswith("---\n64\n")


def test_no_folder_of_this_machine(scored, tmp_path):
    settings = SETTINGS | {"estimator": "column /home/me/masks", "call_kwargs": {"image": ["/home/me/start.png"]}}
    for corpus, shown in (
        ("/home/me/clips/", "`clips`"),
        ("runs/home/me/clips", "`clips`"),
        ("..\\home\\me\\clips", "`clips`"),
        ("~/me/clips", "`clips`"),
        ("me/clips", "`me/clips`"),
    ):
        text = dataset_card(scored, "me/x", settings=settings, provenance=PROVENANCE, corpus=corpus).text
        assert f"of {shown}" in text and f"| Corpus | {shown} |" in text
        assert "/home" not in text and "home\\me" not in text and "start.png" in text


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


def test_pictures_leave_matplotlib_as_it_is_and_take_nothing_from_it(scored):
    script = """
import sys, numpy as np, matplotlib
from hf_motive.hub.pictures import histogram
values = np.linspace(-0.2, 0.5, 50)
plain = histogram(values, values)
assert "matplotlib.pyplot" not in sys.modules
matplotlib.rcParams.update({"font.size": 30, "axes.facecolor": "black", "text.usetex": True})
before = dict(matplotlib.rcParams)
assert histogram(values, values) == plain
assert dict(matplotlib.rcParams) == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_histogram_draws_what_there_is():
    # Columns of pixels in the one colour or the other, left to right: none where there are no clips.
    def columns(values, whole=None):
        pixels = np.asarray(Image.open(io.BytesIO(pictures.histogram(values, whole))).convert("RGB")).astype(int)[72:]
        blue = (pixels - [0x21, 0x66, 0xAC]).__abs__().max(axis=2) < 12
        orange = (pixels - [0xD6, 0x60, 0x4D]).__abs__().max(axis=2) < 12
        return orange.sum(axis=0), blue.sum(axis=0)

    orange, blue = columns(np.asarray([-0.3, -0.1, 0.1, 0.1, 0.3]))
    assert np.flatnonzero(orange).max() < np.flatnonzero(blue).min()
    assert 1.8 < blue.max() / orange.max() < 2.2
    orange, blue = columns(np.asarray([0.0]))
    assert not orange.any() and blue.any()
    orange, blue = columns(np.asarray([-1e-12]))
    assert orange.any() and not blue.any()
    all_of_them = np.random.default_rng(0).normal(0, 0.1, 20_000)
    orange, blue = columns(np.sort(all_of_them)[-5:], all_of_them)
    assert blue.max() > 20 and not orange.any()  # five of twenty thousand are seen


def test_strips_of_any_clip_weigh_little():
    noise = np.random.default_rng(0)

    def strip(width, height):
        frames = [Image.fromarray(noise.integers(0, 255, (height, width, 3), dtype=np.uint8)) for _ in range(6)]
        return pictures.Strip(frames, "rank 0", "long " * 100)

    data = pictures.filmstrip([("first", [strip(240, 135)] * 4), ("last", [strip(240, 135)] * 4)])
    assert len(data) <= pictures.MOST_BYTES and Image.open(io.BytesIO(data)).width > 700
    assert Image.open(io.BytesIO(pictures.filmstrip([("first", []), ("last", [strip(240, 135)])]))).width < 900


def test_clips_that_do_not_decode_are_left_out(scored, tmp_path):
    (tmp_path / "bad.mp4").write_text("not a video")
    good = scored[0]["video"]
    clips = [{"path": str(tmp_path / name), "bytes": None} for name in ("bad.mp4", "missing.mp4")]
    strips = pictures.strips_of([(video, "t", "c") for video in (*clips, None, 7, good)])
    assert len(strips) == 1 and len(strips[0].frames) == 6
    times = pictures.thumbnails(good, count=3, seconds=0.25)
    whole = pictures.thumbnails(good, count=3)
    assert times[0] == whole[0] and times[-1] != whole[-1]  # seconds is how much of the clip is shown
    broken = scored.remove_columns("video").add_column("video", [str(tmp_path / "bad.mp4")] * 12)
    card = dataset_card(broken, "me/clips")
    assert set(card.files) == {"card/influence.png"} and "card/clips.png" not in card.text


def test_a_caption_that_the_font_lacks_is_not_drawn(scored):
    assert pictures.can_show("тест é −…") and not pictures.can_show("猫")
    files = [
        dataset_card(scored.remove_columns("caption").add_column("caption", [caption] + ["a"] * 11), "me/clips").files[
            "card/clips.png"
        ]
        for caption in ("猫が跳ねる", "犬", "000.mp4", "a cat")
    ]
    assert files[0] == files[1] == files[2] != files[3]  # the file's name stands in


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
    for said in ("1 clip of `clips`", 'load_index("me/index")', "| `static` | 1 |", "unit vector of 64 numbers"):
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
        "assert all((files / name).is_file() for name in ('dataset.md', 'index.md', 'model.md'))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


@pytest.mark.parametrize("kind", ["frames", "paths", "nothing"])
def test_clips_of_any_kind_have_a_card(kind, tmp_path):
    """Frames as arrays, paths as they are, rows without a video: the card is written after the data was sent."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    clips = {"frames": frames, "paths": ["/home/somebody/a.mp4"] * 2, "nothing": [None] * 2}[kind]
    rest = {"caption": ["/home/somebody/a.mp4", "b"], "influence": [0.1, 0.2], "influence_rank": [1.0, 0.0]}
    features = (
        Features(video=Array4D((4, 16, 16, 3), "uint8")) if kind == "frames" else Features(video=Value("string"))
    )
    features |= {"caption": Value("string"), "influence": Value("float64"), "influence_rank": Value("float64")}
    card = dataset_card(Dataset.from_dict({"video": clips, **rest}, features=Features(features)), "me/clips")
    assert ("card/clips.png" in card.files) == (kind == "frames") and "/home" not in card.text
