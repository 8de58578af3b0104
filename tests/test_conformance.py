"""Every video pipeline of the installed diffusers, and the table that says what came of it."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest

import hf_motive.pipelines
from tests.families import table
from tests.families.conformance import examine
from tests.families.discover import video_pipelines
from tests.families.registry import variants

REMEDY = "if that is right: python -m tests.families --write"


@pytest.mark.parametrize("name", variants())
def test_variant(name: str, record_property) -> None:
    """Held to everything in conformance.py, and its row is the committed one."""
    found = examine(variants()[name])
    for key, value in found.difference._asdict().items() if found.difference else ():
        record_property(key, value)
    assert table.line(found.row) in table.committed().splitlines(), f"not the row in docs/pipelines.md; {REMEDY}"


def test_the_table_has_every_class_once_or_more() -> None:
    """A class that is new in diffusers is untested, and shows; one that is gone must go from the table."""
    rows = [line.split(" | ") for line in table.committed().splitlines() if line.startswith("| ")][1:]
    listed = {row[0].removeprefix("| ") for row in rows}
    assert listed == set(video_pipelines()), f"docs/pipelines.md lists other classes; {REMEDY}"
    assert {row[1] for row in rows if row[1]} == set(variants()), f"docs/pipelines.md lists other variants; {REMEDY}"
    assert f"diffusers {diffusers.__version__}:" in table.committed(), REMEDY


def test_untested_classes_show(monkeypatch) -> None:
    monkeypatch.setattr(table, "video_pipelines", lambda: ["NewVideoPipeline"])
    text = table.render([])
    assert "1 video pipeline classes, 0 served, 0 refused, 1 untested" in text
    assert "| NewVideoPipeline |  |  |  |  |  |  | untested |  |" in text


def test_no_line_knows_a_family() -> None:
    """The families are those of the variants' names: none of them is a word of the package that serves them all."""
    families = {re.match("[a-z]+", name)[0] for name in variants()} - {"i", "stable", "text"} | {"svd", "unipc"}
    assert len(families) > 25
    for path in Path(hf_motive.pipelines.__file__).parent.glob("*.py"):
        known = families & set(re.findall("[a-z]+", path.read_text().lower()))
        assert not known, f"{path.name} knows {known}"
