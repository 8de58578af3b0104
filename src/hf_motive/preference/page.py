"""Pairs of videos for people to judge, as one HTML file that needs nothing else: no server, no network, no library."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import ClipError

if TYPE_CHECKING:
    from .embedding import Embedded

logger = logging.getLogger(__name__)

TITLE = "Which one moves better?"
INSTRUCTIONS = (
    "Look at the motion alone: is it smooth, is it natural, is it what the text says? "
    "Colours and sharpness do not count."
)
_LARGEST = 400_000_000  # bytes of a page; browsers get slow, and hold no string of much more than 500 MB


def write_page(
    path: str | os.PathLike[str],
    pairs: Iterable[Mapping[str, Any]],
    *,
    title: str = TITLE,
    instructions: str = INSTRUCTIONS,
    seed: int = 0,
    fps: float = 16.0,
) -> Path:
    """One HTML file that shows pairs of videos and records which one people prefer.

    Open it in any browser, or send it to raters. It asks for a name, shows the pairs in random order with random
    sides, both videos in step, and keeps what was chosen in the browser: closed and opened again it goes on. At the
    end, or before, the choices are downloaded as a file of JSON lines; where a browser can (Chrome, Edge), they are
    written to a file from the start. `read_choices` makes judgements of the files.

    Which videos are whose stands nowhere on the page. Order and sides follow from `seed` and the rater's name: every
    rater has another order, half of the pairs have a on the left, and the same rater gets the same page again.

    Args:
        path: The file; its folder is made.
        pairs: Rows `{"prompt": ..., "a": video, "b": video}`, and "pair", a name of the pair, if one wants to find it
            again; by default the row's number. Videos are whatever `load_clip` takes; h264, VP9 and AV1 files go in as
            they are, everything else as h264. Both of a pair should have one size and length: a rater sees which is
            larger.
        title: The question, shown over every pair.
        instructions: What to look at, shown before the first pair.
        seed: Of the order of the pairs and of their sides.
        fps: Of videos that are frames and not files.

    Returns:
        The file, which appears when it is complete. A pair of which a video cannot be read is left out, and logged.

    Raises:
        ValueError: A row lacks a key, two have the same "pair", no pair can be read, or the page would be larger than
            400 MB.
    """
    from .embedding import embed

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    head, middle, tail = _template(title)
    listed: list[dict[str, Any]] = []
    left_out: dict[int, str] = {}
    digest = hashlib.sha256(json.dumps([title, instructions]).encode())
    seconds = 0.0
    try:
        with partial.open("wb") as file:
            file.write(head.encode())
            for row, pair in enumerate(pairs):
                name, prompt = _checked(pair, row, {shown["pair"] for shown in listed})
                try:
                    videos = [embed(pair[side], fps) for side in ("a", "b")]
                except ClipError as error:
                    left_out[row] = error.reason
                    continue
                for side, video in zip("ab", videos, strict=True):
                    _write_video(file, f"{side}{len(listed)}", video, digest)
                if file.tell() > _LARGEST:
                    raise ValueError(
                        f"{path.name} would be larger than {_LARGEST // 1_000_000} MB after {len(listed) + 1} pairs: "
                        "make several pages, or smaller videos (save_clip(..., crf=23))"
                    )
                digest.update(json.dumps([name, prompt]).encode())
                seconds += max(video.seconds for video in videos)
                listed.append({"pair": name, "prompt": prompt})
            if not listed:
                reason = f": {next(iter(left_out.values()))}" if left_out else ""
                raise ValueError(f"there is no pair to show on {path.name}{reason}")
            facts = {
                "page": digest.hexdigest()[:12],
                "title": title,
                "instructions": instructions,
                "seed": seed,
                "seconds": round(seconds, 2),
                "pairs": listed,
            }
            # In a script "</script>" ends it, wherever it stands.
            file.write(middle.encode() + json.dumps(facts).replace("<", "\\u003c").encode() + tail.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if left_out:
        reasons = "".join(f"\n  pair {row}: {reason}" for row, reason in list(left_out.items())[:10])
        logger.warning("%s: %d pairs could not be read and are left out%s", path.name, len(left_out), reasons)
    return path


def _template(title: str) -> tuple[str, str, str]:
    """The page before the videos, between them and the facts, and after."""
    from importlib.resources import files

    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    head, rest = page.split("<!-- videos -->")
    middle, tail = rest.split("/* facts */")
    return head.replace("<!-- title -->", html.escape(title)), middle, tail


def _checked(pair: Mapping[str, Any], row: int, taken: set[str]) -> tuple[str, str]:
    """The pair's name and its prompt."""
    missing = [key for key in ("prompt", "a", "b") if key not in pair]
    if missing:
        raise ValueError(f'pair {row} lacks {", ".join(missing)}: it is {{"prompt": ..., "a": video, "b": video}}')
    name = str(pair.get("pair", row))
    if name in taken:
        raise ValueError(f'pair {row} is called "{name}", as one before: leave "pair" out, or give each its own')
    return name, str(pair["prompt"])


def _write_video(file: BinaryIO, name: str, video: Embedded, digest: Any) -> None:
    digest.update(hashlib.sha256(video.data).digest())
    file.write(f'<script type="text/plain" id="{name}" data-mime="{video.mime}">'.encode())
    file.write(base64.b64encode(video.data) + b"</script>\n")
