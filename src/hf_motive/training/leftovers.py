"""What an earlier training left in the folder that another is saved into, and would be loaded or published with it."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_motive.training import adapters, whole

_PIPELINE = "model_index.json"
#: In the facts: that the pipeline in the folder was there before anything was trained, and is a person's.
_NOT_OURS = "pipeline_was_there"


def remove(folder: Path, facts: str, kept: Collection[str]) -> dict[str, Any]:
    """Remove the weights that the folder's `weights.json` names and that will not be written over, and nothing else.

    The `model_index.json` of a pipeline that was saved with such weights goes too, for they are a part of it no more;
    the other components, which anybody may have put there, stay and are loaded by nothing.

    Args:
        folder: Where to.
        facts: The name of `weights.json`.
        kept: What is about to be saved: files of adapters, and folders of whole denoisers.

    Returns:
        What the facts must say besides, that the next to be saved there may know it.
    """
    said = _read(folder / facts)
    if said is None or said.get(_NOT_OURS):
        theirs = (folder / _PIPELINE).is_file()
    else:
        theirs = False
        if said.get("kind") == "full":
            (folder / _PIPELINE).unlink(missing_ok=True)
    for name in (said or {}).get("components", []):
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
