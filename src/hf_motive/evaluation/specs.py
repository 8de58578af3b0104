"""`name=place,option=value`: how a command line names one of several things and what is set on it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class Spec(NamedTuple):
    """One of several things.

    Args:
        name: What it is called in the results.
        place: Folder, file or Hub id; None where only the name was given.
        options: What is set on it alone.
    """

    name: str
    place: str | None
    options: dict[str, Any]


def parse_specs(told: Any, what: str, known: Collection[str] | None = None) -> list[Spec]:
    """What a command line (a list of texts) or a YAML file (texts and mappings, in a list or by name) says.

    Args:
        told: `["base", "tuned=runs/tuned,guidance=6"]`; `{"base": None, "tuned": {"place": "runs/tuned"}}`; or a list
            of both kinds.
        what: How messages call such a thing.
        known: Names of the options that there are. None: all.

    Raises:
        ValueError: It is none of these; a name is given twice, or an option is not known.
    """
    if isinstance(told, str):
        told = [told]
    entries: Iterable[Any] = [{name: said} for name, said in told.items()] if isinstance(told, Mapping) else told
    if not isinstance(entries, list | tuple):
        raise ValueError(f"{what}s must be a list or a mapping by name, got {told!r}")
    specs = [
        spec
        for entry in entries
        for spec in (_of_mapping(entry, what) if isinstance(entry, Mapping) else [_of_text(entry, what)])
    ]
    for spec in specs:
        if not _NAME.fullmatch(spec.name):
            raise ValueError(
                f"{spec.name!r} is no name for a {what}: take letters, digits, '_', '.' and '-', as in name=place"
            )
        unknown = [] if known is None else [option for option in spec.options if option not in known]
        if unknown:
            raise ValueError(
                f"{what} {spec.name} has no option {unknown[0]!r}; there is {', '.join(known or ())}. A place with a "
                "comma in its name is given in YAML, as a mapping with `place`"
            )
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{what} {twice[0]} is given twice: call one of them otherwise, as in other-name=place")
    return specs


def _of_text(text: Any, what: str) -> Spec:
    if not isinstance(text, str):
        raise ValueError(f"a {what} is a text such as name=place, or a mapping; got {text!r}")
    first, *rest = text.split(",")
    name, equals, place = first.partition("=")
    if equals and not place:
        raise ValueError(f"{text!r} names no place behind '=': write name=place, or the name alone")
    options = {}
    for part in rest:
        option, equals, value = part.partition("=")
        if not (equals and option.strip()):
            raise ValueError(f"{part!r} in {text!r} is no option=value")
        options[option.strip()] = _value(value)
    return Spec(name, place or None, options)


def _of_mapping(mapping: Mapping[str, Any], what: str) -> list[Spec]:
    if "name" in mapping:
        mapping = {mapping["name"]: {key: value for key, value in mapping.items() if key != "name"}}
    specs = []
    for name, said in mapping.items():
        if not isinstance(said, str | Mapping | None):
            raise ValueError(f"{what} {name} must be a place or a mapping of its options, got {said!r}")
        options = dict(said) if isinstance(said, Mapping) else {"place": said}
        place = options.pop("place", None)
        specs.append(Spec(str(name), None if place is None else str(place), options))
    return specs


def _value(text: str) -> Any:
    """A number, true, false or null where it is one; else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
