"""The pictures of a card: how influence is distributed, and what the clips at either end look like.

Drawn without pyplot and with matplotlib's own defaults, so that a user's figures and style are left alone and the same
input gives the same bytes. The background is opaque: a card is read in light and in dark mode.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import ClipError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

#: What a picture may weigh, in bytes.
MOST_BYTES = 300_000

# Blue and orange differ in lightness too, and for every kind of colour vision.
_ABOVE, _BELOW = "#2166ac", "#d6604d"
_PALE = {_ABOVE: "#c5d3e3", _BELOW: "#f0cfc8"}  # those of the whole corpus that were not chosen
_INK, _GREY, _PAPER = "#1f2328", "#59636e", "#ffffff"


class Strip(NamedTuple):
    """One clip of the filmstrip: its frames in the order of time, and two lines of text above them."""

    frames: list[Image.Image]
    title: str
    caption: str


def histogram(influence: np.ndarray, whole: np.ndarray | None = None) -> bytes:
    """How many clips have which influence, as a PNG.

    Args:
        influence: (n,) finite values in [-1, 1], n >= 1.
        whole: (m,) the same of the corpus that the clips were chosen from; drawn behind them.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter
    from PIL import Image

    everything = influence if whole is None else np.concatenate([influence, whole])
    edges = _edges(everything)
    middles, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    counts = _counts(influence, edges)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        height = 3.25 if whole is None else 3.6  # inches; the legend takes one row, or two and a half
        figure = Figure(figsize=(8, height), dpi=200, facecolor=_PAPER)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0.085, 0.6 / height, 0.895, 2.3 / height), facecolor=_PAPER)
        sides = ((middles < 0, _BELOW, "below zero"), (middles >= 0, _ABOVE, "zero and above"))
        layers = [(counts, influence, "" if whole is None else "this dataset, ", False)]
        if whole is not None:
            layers.insert(0, (_counts(whole, edges), whole, "all scored, ", True))
        for heights, values, prefix, pale in layers:
            for chosen, colour, name in sides:
                part = values[(values < 0) == (colour == _BELOW)]
                if len(part):
                    label, colour = f"{prefix}{name}: {_clips(part)}", _PALE[colour] if pale else colour
                    axes.bar(middles[chosen], heights[chosen], width, color=colour, label=label)
        if counts.max() * 25 < layers[0][0].max():  # a selection too small to be seen beside the whole
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
        # A hair between the bars, in the paper's colour, keeps them apart at any width.
        for patch in axes.patches:
            patch.set_edgecolor(_PAPER)
            patch.set_linewidth(0.6)
        if whole is not None:
            label = f"mean of all {_signed(whole.mean())}"
            axes.axvline(whole.mean(), color=_GREY, linewidth=1.2, linestyle=":", label=label)
        label = f"mean{' here' if whole is not None else ''} {_signed(influence.mean())}"
        axes.axvline(influence.mean(), color=_INK, linewidth=1.2, linestyle=(0, (4, 2)), label=label)
        margin = max(0.5, (8 - len(middles)) / 2) * width  # one bin alone would fill the picture
        axes.set_xlim(edges[0] - margin, edges[-1] + margin)
        if edges[0] < 0 < edges[-1]:
            axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_xlabel("influence: mean cosine with the queries", color=_INK)
        axes.set_ylabel("clips" + (" (log scale)" if axes.get_yscale() == "log" else ""), color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if axes.get_yscale() == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=_GREY, length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_GREY)
        handles, labels = axes.get_legend_handles_labels()
        bars_first = sorted(zip(handles, labels, strict=True), key=lambda item: "mean" in item[1])
        axes.legend(
            *zip(*bars_first, strict=True),
            loc="lower left",
            bbox_to_anchor=(-0.012, 1.0),
            ncols=3 if whole is None else 2,
            frameon=False,
            fontsize=9.5,
            labelcolor=_INK,
            handlelength=1.2,
            columnspacing=1.6,
        )
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return _png(image, 256)


def thumbnails(video: Any, count: int = 6, seconds: float = 5.0, size: int = 240) -> list[Image.Image]:
    """A few frames of a clip, evenly over its beginning.

    Args:
        video: Whatever `load_clip` reads.
        count: Frames at most; a shorter clip gives those it has.
        seconds: How much of the clip, from its start.
        size: Pixels of a frame's longer side, at most.

    Raises:
        ClipError: The clip cannot be decoded.
    """
    from PIL import Image

    from ..video import _frames, _name, _tensor

    name = _name(video)
    found: list[Image.Image] = []
    start, stride = None, 1
    for number, frame in enumerate(_frames(video, name, 16.0)):
        start = frame.time if start is None else start
        if frame.time - start > seconds + 1e-6:
            break
        if number % stride:
            continue
        pixels = ((_tensor(frame.pixels(), name) + 1) * 127.5).round().clamp(0, 255).byte()
        image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        shown = (image.width * frame.aspect, image.height)
        scale = size / max(shown)
        found.append(image.resize((max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale)))))
        if (
            len(found) > 2 * count
        ):  # nobody knows how long the clip is: keep every other one, and go on in larger steps
            found, stride = found[::2], 2 * stride
    return _evenly(found, count)


def filmstrip(columns: Sequence[tuple[str, Sequence[Strip]]]) -> bytes:
    """Clips as strips of frames, one column for each end of the ranking, as a PNG of at most `MOST_BYTES`.

    Args:
        columns: (heading, strips) from left to right; at least one has a strip.
    """
    columns = [(heading, strips) for heading, strips in columns if strips]
    for scale, colours in ((1.0, 256), (0.85, 256), (0.7, 256), (0.6, 128), (0.5, 64), (0.4, 32)):
        data = _png(_strips(columns, scale), colours)
        if len(data) <= MOST_BYTES:
            break
    return data


def can_show(text: str) -> bool:
    """Whether the font has every character: what it lacks is drawn as an empty box."""
    return all(ord(character) in _known_characters() for character in text)


def _strips(columns: Sequence[tuple[str, Sequence[Strip]]], scale: float) -> Image.Image:
    from PIL import Image, ImageDraw

    def px(length: float) -> int:
        return max(1, round(length * scale))

    margin, gutter, frame_gap = px(28), px(48), px(6)
    cell = px(748)
    head, line, below = px(66), px(34), px(30)
    large, bold, plain = (_font(*spec) for spec in (("Bold", px(30)), ("Bold", px(25)), ("", px(25))))
    most_width, most_height = px(182), px(140)

    rows = max(len(strips) for _, strips in columns)
    heights = []
    for row in range(rows):
        frames = [frame for _, strips in columns for strip in strips[row : row + 1] for frame in strip.frames]
        heights.append(max(round(f.height * min(most_width / f.width, most_height / f.height)) for f in frames))
    size = (
        2 * margin + len(columns) * cell + (len(columns) - 1) * gutter,
        2 * margin + head + sum(heights) + rows * (2 * line + px(8)) + (rows - 1) * below,
    )
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    for place, (heading, strips) in enumerate(columns):
        left, top = margin + place * (cell + gutter), margin
        colour = _ABOVE if place == 0 else _BELOW
        draw.text((left, top), heading, colour, large)
        draw.rectangle((left, top + px(43), left + cell - 1, top + px(46)), colour)
        top += head
        for strip, height in zip(strips, heights, strict=False):
            draw.text((left, top), _cut(strip.title, bold, cell), _INK, bold)
            draw.text((left, top + line), _cut(strip.caption, plain, cell), _GREY, plain)
            across = left
            first = strip.frames[0]
            ratio = min(most_width / first.width, height / first.height)
            shown = (max(1, round(first.width * ratio)), max(1, round(first.height * ratio)))
            for frame in _evenly(strip.frames, (cell + frame_gap) // (shown[0] + frame_gap)):
                image.paste(frame.resize(shown), (across, top + 2 * line + px(8)))
                across += shown[0] + frame_gap
            top += 2 * line + px(8) + height + below
    return image


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of equal bins of a round width, zero among them wherever it lies in the range."""
    low, high = float(values.min()), float(values.max())
    bins = min(40, max(8, round(2 * math.sqrt(len(values)))))
    rough = (high - low) / bins if high - low > 1e-3 else 0.01
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))
    # A value on an edge opens its bin, though the division may fall short of it; one below zero stays below.
    first, last = math.floor(low / width + (1e-9 if low > 0 else 0)), math.floor(high / width + 1e-9) + 1
    return np.arange(first, last + 1) * width


def _counts(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Clips a bin. A value that rounding puts outside of its bin stays on its own side of zero."""
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(places, minlength=len(edges) - 1)


def _clips(values: np.ndarray) -> str:
    return f"{len(values):,} clip{'s' * (len(values) != 1)}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _evenly(items: list[Any], count: int) -> list[Any]:
    """At most `count` of them, the first and the last among them."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The beginning of a text that fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text.rstrip() + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _font(weight: str, size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    # Basic layout: what is drawn does not depend on whether a shaping library is installed.
    return ImageFont.truetype(str(_font_file(weight)), size, layout_engine=ImageFont.Layout.BASIC)


def _font_file(weight: str) -> Path:
    import matplotlib

    name = f"DejaVuSans-{weight}.ttf" if weight else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name  # it comes with matplotlib


@cache
def _known_characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_file(""))).get_charmap())


def _png(image: Image.Image, colours: int) -> bytes:
    """A palette of the picture's own colours: a third of the bytes. No metadata: no date, no name of a program."""
    from PIL import Image

    out = io.BytesIO()
    image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def strips_of(clips: Iterable[tuple[Any, str, str]], seconds: float = 5.0) -> list[Strip]:
    """(video, title, caption) to strips; a clip that cannot be decoded is left out."""
    strips = []
    for video, title, caption in clips:
        try:
            frames = thumbnails(video, seconds=seconds)
        except (ClipError, OSError, TypeError):
            continue
        strips.append(Strip(frames, title, caption))
    return strips
