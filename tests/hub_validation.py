"""What the Hub says about the metadata of a card."""

from __future__ import annotations

import re
from typing import Any

import yaml

_BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")


def header(content: str) -> tuple[dict[str, Any] | None, str]:
    """The metadata above a card's text, and what is wrong with it as YAML ("" where nothing is)."""
    block = _BLOCK.match(content)
    if block is None:
        return None, ""
    try:
        data = yaml.safe_load(block[2])
    except yaml.YAMLError as error:
        return None, f"YAML: {error}"
    return (data, "") if isinstance(data, dict) else (None, "" if data is None else "YAML: not a mapping")


def validate(content: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the card of a "dataset" or a "model"."""
    data, broken = header(content)
    if broken:
        return [broken], []
    return [], [] if data else ["empty or missing yaml metadata in repo card"]
