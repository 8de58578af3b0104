"""What an earlier training left in the folder that another is saved into, and would be loaded or published with it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_motive.training import adapters, whole

_PIPELINES = "model_index.json", "modular_model_index.json"
#: In the facts: that the pipeline in the folder was there before anything was trained, and is a person's.
_NOT_OURS = "pipeline_was_there"


def sources(pipe: Any) -> set[Path]:
    """The folders that a pipeline and its components were loaded from."""
    found: set[Any] = set()
    for part in (pipe, *pipe.components.values()):
        config = getattr(part, "config", None)  # a mapping of diffusers, or an object of transformers
        said = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
        found |= {known.get("_name_or_path") for known in (said, getattr(part, "__dict__", {}))}
    return {Path(path).expanduser().resolve() for path in found if path and isinstance(path, str)}


def remove(folder: Path, facts: str, kept: Collection[str], sources: Collection[Path] = ()) -> dict[str, Any]:
    """Remove the weights that the folder's `weights.json` names and that will not be written over, and nothing else.

    The `model_index.json` of a pipeline that was saved with such weights goes too, for they are a part of it no more;
    the other components, which anybody may have put there, stay and are loaded by nothing.

    Args:
        folder: Where to.
        facts: The name of `weights.json`.
        kept: What is about to be saved: files of adapters, and folders of whole denoisers.
        sources: Where the pipeline was loaded from. If that is this folder, all of it stays: it is what was trained.

    Returns:
        What the facts must say besides, that the next to be saved there may know it.
    """
    place = folder.resolve()
    if any(source.is_relative_to(place) and source.exists() for source in sources):
        return {_NOT_OURS: True}
    said, theirs = _read(folder / facts), False
    if said is None or said.get(_NOT_OURS):
        theirs = any((folder / name).is_file() for name in _PIPELINES)
    elif said["kind"] == "full":
        for name in _PIPELINES:
            (folder / name).unlink(missing_ok=True)
    said = said or {}
    for name in said.get("components", []):
        if not (isinstance(name, str) and name.isidentifier()):
            continue
        if said["kind"] == "lora":
            written = said.get("files", adapters.files_of(name))
            found = [folder / file for file in adapters.files_of(name) if file in written and file not in kept]
        else:
            found = [] if name in kept else whole.files_of(folder / name)
        for path in found:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds something else, or is not there
            (folder / name).rmdir()
    return {_NOT_OURS: True} if theirs else {}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and said.get("kind") in ("full", "lora") else None
