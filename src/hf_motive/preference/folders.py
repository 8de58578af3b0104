"""Two folders of videos as pairs: the same name in both is one pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..corpus import VIDEO_SUFFIXES


def pair_up(a: Path, b: Path) -> list[dict[str, Any]]:
    """Pairs for `write_page`, sorted by name.

    The prompt is the "prompt" or "caption" of a `metadata.jsonl` in either folder, the text file beside a video, or
    the video's name.

    Raises:
        ValueError: A folder is none, or they do not hold videos of the same names.
    """
    found = [_videos(folder) for folder in (a, b)]
    only = [sorted(found[i].keys() - found[1 - i].keys()) for i in (0, 1)]
    if only[0] or only[1]:
        names = "; ".join(
            f"only in {folder}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for folder, names in zip((a, b), only, strict=True)
            if names
        )
        raise ValueError(f"pairs are videos of the same name in both folders; {names}")
    prompts = {**_prompts(b, found[1]), **_prompts(a, found[0])}
    return [
        {"pair": name, "prompt": prompts.get(name, name), "a": found[0][name], "b": found[1][name]}
        for name in sorted(found[0])
    ]


def _videos(folder: Path) -> dict[str, Path]:
    """Name without suffix, with the folders beneath, -> file."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of videos")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    found: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{found[name].name} and {path.name} in {folder} have one name: which is the video?")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return found


def _prompts(folder: Path, videos: dict[str, Path]) -> dict[str, str]:
    prompts = {}
    metadata = folder / "metadata.jsonl"
    rows = metadata.read_text(encoding="utf-8").split("\n") if metadata.is_file() else []
    for row in (json.loads(line) for line in rows if line.strip()):
        prompt = row.get("prompt") or row.get("caption")
        if prompt and row.get("file_name"):
            prompts[Path(row["file_name"]).with_suffix("").as_posix()] = str(prompt)
    for name, path in videos.items():
        text = path.with_suffix(".txt")
        if name not in prompts and text.is_file():
            prompts[name] = text.read_text(encoding="utf-8").strip() or name
    return prompts
