"""Two folders of samples side by side: what the same captions and seeds gave before a training, and give after it."""

from __future__ import annotations

import html
import logging
import math
import textwrap
from fractions import Fraction
from os.path import relpath
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ClipError
from ..hub.pictures import _INK, _PAPER, Strip, _font, filmstrip, thumbnails
from ..video import load_clip, save_clip
from .samples import Sample, read_samples, write_text

logger = logging.getLogger(__name__)

#: The two sides, from left to right.
ENDS = ("before", "after")

#: What `compare` writes beside its clips.
STRIP, PAGE = "strip.png", "index.html"

#: Of a clip with both halves, in pixels: the least that a half's longer side has, what lies between, the labels' line.
_LEAST, _GAP, _LINE = 256, 12, 36

#: Captions on the film strip, at most.
_ROWS = 8


class Comparison(NamedTuple):
    """What `compare` wrote. Paths are relative to the `root` that it was given, with forward slashes.

    Args:
        folder: Where it lies.
        samples: One for each caption and seed that both sides have, in the order of `after`: "caption", "seed", the
            mp4 files "before" and "after", and "both", which shows them side by side.
        strip: A PNG: frames of the first eight of them, before and after.
        page: An HTML page that plays all of them and needs nothing from outside of the folder.
    """

    folder: Path
    samples: list[dict[str, Any]]
    strip: str
    page: str


def compare(
    before: str | Path, after: str | Path, folder: str | Path, *, root: str | Path | None = None
) -> Comparison:
    """Put two folders of samples side by side.

    Args:
        before, after: As `Sampler.write` left them. Clips belong together by caption and seed; one that is missing or
            cannot be decoded on either side is logged and left out.
        folder: Where to; it is made.
        root: What the paths of the result are relative to. None: `folder`.

    Raises:
        ValueError: A folder holds no samples, or the two have none in common.
    """
    before, after, folder = Path(before), Path(after), Path(folder)
    root = folder if root is None else Path(root)
    if folder.resolve() in (before.resolve(), after.resolve()):
        raise ValueError(f"{folder} holds the samples themselves: compare into another folder")
    former = {(sample.caption, sample.seed): sample for sample in read_samples(before)}
    latter = read_samples(after)
    if not any((sample.caption, sample.seed) in former for sample in latter):
        raise ValueError(
            f"{before} and {after} have no caption and seed in common: sample the same captions with the same seed, "
            "before and after"
        )
    folder.mkdir(parents=True, exist_ok=True)
    samples, shown = [], []
    for sample in latter:
        if (other := former.get((sample.caption, sample.seed))) is None:
            logger.warning("%s has no sample of %r with seed %d: left out.", before, sample.caption, sample.seed)
            continue
        files = {"before": before / other.file, "after": after / sample.file, "both": folder / sample.file}
        try:
            clips = [load_clip(str(files[end])) for end in ENDS]
        except ClipError as error:
            logger.warning("No comparison of %r: %s", sample.caption, error)
            continue
        save_clip(files["both"], side_by_side(*clips), _fps(files["after"]))
        samples.append(
            {"caption": sample.caption, "seed": sample.seed}
            | {name: Path(relpath(file, root)).as_posix() for name, file in files.items()}
        )
        shown.append((sample, files))
    if not samples:
        raise ValueError(f"no clip of {before} can be decoded together with that of {after}: sample both again")
    strips = [(end, [_frames(sample, files[end]) for sample, files in shown[:_ROWS]]) for end in ENDS]
    (folder / STRIP).write_bytes(filmstrip(strips))
    write_text(folder / PAGE, _page([sample for sample, _ in shown]))
    strip, page = (Path(relpath(folder / name, root)).as_posix() for name in (STRIP, PAGE))
    return Comparison(folder, samples, strip, page)


# -------------------------------------------------------------------------------------------------------- both halves


def side_by_side(before: Tensor, after: Tensor) -> Tensor:
    """Two clips under their labels, with a gap between them; small ones are enlarged, pixel by pixel.

    Args:
        before, after: (F, 3, H, W) in [-1, 1]. Of different lengths or heights: the last frame of the shorter stays,
            and the lower stands on white.

    Returns:
        (F, 3, H', W') in [-1, 1], H' and W' even.
    """
    times = max(1, math.ceil(_LEAST / max(*before.shape[2:], *after.shape[2:])))
    halves = [clip.repeat_interleave(times, 2).repeat_interleave(times, 3) for clip in (before, after)]
    frames, height = (max(half.shape[axis] for half in halves) for axis in (0, 2))
    height += (_LINE + height) % 2
    columns = []
    for half, label in zip(halves, ENDS, strict=True):
        half = torch.cat([half, half[-1:].expand(frames - len(half), -1, -1, -1)])
        half = F.pad(half, (0, 0, 0, height - half.shape[2]), value=1.0)
        line = _label(label, half.shape[3]).expand(frames, -1, -1, -1)
        columns.append(torch.cat([line, half], 2))
    gap = _GAP + (columns[0].shape[3] + _GAP + columns[1].shape[3]) % 2
    return torch.cat([columns[0], torch.ones(frames, 3, _LINE + height, gap), columns[1]], 3)


def _label(text: str, width: int) -> Tensor:
    """(3, line, W) in [-1, 1]: a word on white."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, _LINE), _PAPER)
    ImageDraw.Draw(image).text((2, 4), text, _INK, _font("Bold", 22))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def _fps(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or Fraction(16))


# ----------------------------------------------------------------------------------------------------- all at a glance


def _frames(sample: Sample, file: Path) -> Strip:
    first, *rest = textwrap.wrap(sample.caption, 44) or [""]  # so many fit into a line
    return Strip(thumbnails(str(file), seconds=math.inf), first, " ".join(rest))


def _page(samples: list[Sample]) -> str:
    figures = (
        f'<figure><video src="{quote(sample.file)}" autoplay loop muted playsinline controls></video>'
        f"<figcaption>{html.escape(sample.caption)} <small>seed {sample.seed}</small></figcaption></figure>"
        for sample in samples
    )
    return _TEMPLATE.replace("FIGURES", "\n".join(figures))


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Samples before and after</title>
<style>
body { margin: 2rem auto; max-width: 90rem; padding: 0 1rem; font: 1rem/1.4 system-ui, sans-serif;
       color: #1f2328; background: #fff; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 2rem; }
figure { margin: 0; }
video { width: 100%; }
small { color: #59636e; }
</style>
</head>
<body>
<h1>Samples before and after</h1>
<p>The same caption and the same noise in both halves.</p>
<main>
FIGURES
</main>
</body>
</html>"""
