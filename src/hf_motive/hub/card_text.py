"""What a card is made of, one by one: text that cannot break it, the Hub's own words, and facts of the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..video import file_name
from .published import provenance as publishable
from .published import without_folders

_LONGEST = 160  # characters of a caption or reason in a table

# Punctuation that means something in Markdown, HTML or the Hub's mathematics; and what would make an address a link.
_SPECIAL = re.compile(r"[\\`*_{}\[\]()#|~!<>&$@]|:(?=//)|(?<=www)\.", re.IGNORECASE)
_BY_BACKSLASH = frozenset("`*_{}[]()#|~!")

# https://huggingface.co/docs/hub/repositories-licenses
_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown
"""
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")


def markdown(text: Any) -> str:
    """A text that people wrote, as one line of Markdown that shows it and does nothing else; a long one is cut."""
    line = " ".join(str(text).split())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 1].rstrip() + "…"
    return _SPECIAL.sub(lambda found: _plain(found[0]), line)


def _plain(character: str) -> str:
    # A backslash does for most; `\\(` and `$` are mathematics on the Hub, which an entity is not.
    return f"\\{character}" if character in _BY_BACKSLASH else f"&#{ord(character)};"


def code(text: Any) -> str:
    """A name in code, in which no character ends it or the cell of a table that it stands in."""
    line = " ".join(str(text).replace("`", "'").replace("|", "¦").split())
    return f"`{line}`"


def clips(count: int) -> str:
    """A number of clips in words."""
    return f"{count:,} clip{'s' * (count != 1)}"


def signed(value: float) -> str:
    """An influence, with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def settings_json(settings: Mapping[str, Any]) -> str:
    """Settings in full; of a path on this machine, its last name."""
    return json.dumps(_published(settings), indent=1, sort_keys=True, ensure_ascii=False)


def _published(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _published(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_published(inner) for inner in value]
    return without_folders(value) if isinstance(value, str) else value


def corpus_name(corpus: str) -> str:
    """A corpus by its id, or by its folder's own name: where that lies on this machine is nobody's business."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", corpus)
    return corpus if is_id else file_name(corpus)


def size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    return next(name for power, name in enumerate(_SIZES, start=3) if rows < 10**power)


def license_entries(license: str | None, kept: Mapping[str, Any]) -> dict[str, str]:
    """The licence in a card's header: an identifier of the Hub's list, `other` with a name, or `unknown`.

    Args:
        license: An identifier in any case, the name of a licence, or the address of one.
        kept: Entries that are there already, which say it where `license` is None.
    """
    if license is None or not license.strip():
        known = {name: kept[name] for name in ("license", "license_name", "license_link") if kept.get(name)}
        return known if "license" in known else {"license": "unknown"}
    identifier = license.strip().lower()
    if identifier in _LICENSES.split():
        return {"license": identifier}
    address = {"license_link": license.strip()} if re.match(r"https?://", identifier) else {}
    name = re.sub(r"[^a-z0-9.-]+", "-", file_name(identifier) if address else identifier).strip("-.")
    return {"license": "other", "license_name": name or "other-license", **address}


def header(
    absent: Mapping[str, Any], ours: Mapping[str, Any], kept: Mapping[str, Any], license: str | None
) -> dict[str, Any]:
    """A card's YAML entries, in which what a person wrote stays.

    Args:
        absent: Entries for where there is none yet; of `tags` those that are missing are added.
        ours: Entries that follow from the data and replace what is there.
        kept: What is there.
        license: As `license_entries` takes it.
    """
    entries = {name: value for name, value in kept.items() if not name.startswith("license") and value is not None}
    tags = entries.get("tags") or []
    tags = [*([tags] if isinstance(tags, str) else tags), *absent.get("tags", ())]
    return {**absent, **entries, **ours, "tags": list(dict.fromkeys(tags)), **license_entries(license, kept)}


def license_sentence(entries: Mapping[str, Any], of: str = "the clips") -> str:
    """The same for people. `of`: what is licensed."""
    license = entries.get("license")
    if license in (None, "unknown"):
        return f"The licence of {of} was not said when this was published."
    if license == "other":
        link = str(entries.get("license_link") or "")
        shown = f": <{link}>" if re.fullmatch(r"https?://[^\s<>|]+", link) else ""
        return f"Published under {code(entries.get('license_name'))}{shown}."
    return f"Published as {', '.join(map(code, license if isinstance(license, list) else [license]))}."


def facts(settings: Mapping[str, Any] | None, provenance: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, str]]:
    """What a reader asks first of what is recorded: (name, Markdown)."""
    found: list[tuple[str, str]] = []
    recorded = [publishable(entry) for entry in provenance or ()]
    said = dict(settings or {})
    pipeline = said.get("pipeline") or {}
    names = [str(entry["pipeline"]) for entry in recorded if entry.get("pipeline") not in (None, "None")]
    model = ", ".join(dict.fromkeys(code(name) for name in names))
    if pipeline:
        kind = code(pipeline.get("pipeline"))
        found.append(("Model", f"{model} ({kind})" if model else kind))
        weights = pipeline.get("weights") or {}
        found.append(("Weights", ", ".join(f"{markdown(part)} {code(d)}" for part, d in sorted(weights.items()))))
    if said:
        size = f"{said.get('num_frames')} frames of {said.get('height')}×{said.get('width')}"
        rate = f" at {said['fps']:g} frames per second" if said.get("fps") else ", at their own rate"
        projection = said.get("projection") or {}
        masked = f"by {code(without_folders(str(said.get('estimator'))))}"
        camera = ", camera compensated" if said.get("compensate_camera") else ""
        found += [
            ("Standard clip", size + rate),
            ("Motion mask", masked + camera if said.get("motion_weighted") else "none: whole clips"),
            ("Error", "less its mean over time" if said.get("center_error") else ""),
            ("Timesteps", ", ".join(f"{step:g}" for step in said.get("timesteps", ())) + " of 1000"),
            ("Noise draws, seed", f"{said.get('noise_draws')}, {said.get('seed')}"),
            ("Projection", f"{projection.get('kind')} to {projection.get('dim')} dimensions"),
            ("Parameters", code(said["parameters"]) if said.get("parameters") else "all of the denoiser"),
        ]
    versions = dict.fromkeys(
        markdown(f"{name} {entry[name]}")
        for entry in recorded
        for name in ("hf-motive", "torch", "diffusers", "transformers", "opencv-python-headless", "av")
        if name in entry
    )
    if versions:
        found.append(("Computed with", ", ".join(versions)))
    return [(name, value) for name, value in found if value]
