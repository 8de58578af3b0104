"""The picture of an explanation: influence over time above the clip's frames, and its regions beside them.

Drawn as the cards' pictures are: without pyplot, with matplotlib's own defaults, on opaque paper.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from .hub.pictures import _ABOVE, _BELOW, _GREY, _INK, _PAPER, can_show
from .parts import Parts
from .regions import REST

if TYPE_CHECKING:
    from .explaining import Explanation

_REGION_COLOURS = ("#2166ac", "#d6604d", "#1b7837", "#762a83", "#b8860b", "#01665e")
_MOST_LINES = 12  # queries whose own curves are drawn behind the mean
_MOST_FRAMES = 9
_DPI = 200


def picture(explanation: Explanation, form: str = "png") -> bytes:
    """An explanation as a picture.

    Above, the influence per second: bold the mean over the queries, with its sign in colour, and pale each query's
    own. Below, frames of the clip at their times, with the outlines of the regions. At the right, each region's share
    (of a clip of one window), and beside it what share of the motion is the region's.

    Args:
        explanation: Of one clip.
        form: "png" or "svg".
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    parts = explanation.windows[0].parts
    has_regions = len(explanation.windows) == 1 and len(parts.regions) > 1
    has_frames = any(len(window.parts.frames) for window in explanation.windows)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "hf_motive"  # the same ids for the same numbers
        figure = Figure(figsize=(10 if has_regions else 8, 3.9 if has_frames else 2.8), dpi=_DPI, facecolor=_PAPER)
        canvas = FigureCanvasSVG(figure) if form == "svg" else FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            2 if has_frames else 1,
            2 if has_regions else 1,
            height_ratios=(2.4, 1) if has_frames else None,
            width_ratios=(3.2, 1) if has_regions else None,
            left=0.08,
            right=0.98,
            top=0.86,
            bottom=0.04 if has_frames else 0.2,
            hspace=0.42,
            wspace=0.28,
        )
        _curve(figure.add_subplot(grid[0, 0]), explanation)
        if has_frames:
            _strip(figure.add_subplot(grid[1, 0]), explanation, outlined=has_regions)
        if has_regions:
            _bars(figure.add_subplot(grid[:, 1]), explanation)
        out = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        canvas.print_figure(out, format=form, metadata=metadata, facecolor=_PAPER, dpi=_DPI)
    return out.getvalue()


def _curve(axes: Any, explanation: Explanation) -> None:
    edges, values = explanation.curve()
    if 1 < len(explanation.queries) <= _MOST_LINES:
        for query in explanation.queries:
            _, own = explanation.curve(query)
            axes.stairs(own, edges, baseline=None, color="#c8cdd3", linewidth=0.9)
    for chosen, colour in ((np.maximum(values, 0), _ABOVE), (np.minimum(values, 0), _BELOW)):
        axes.stairs(chosen, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
    axes.stairs(values, edges, baseline=None, color=_INK, linewidth=1.8)
    axes.axhline(0, color=_GREY, linewidth=0.8)
    start, end = explanation.best()
    axes.axvspan(start, end, color="#fff3cd", zorder=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("seconds", color=_INK, labelpad=1)
    axes.set_ylabel("influence per second", color=_INK)
    influence = float(explanation.influence.double().mean())
    windows = len(explanation.windows)
    said = "influence" if windows == 1 else f"mean influence of {windows} windows"
    axes.set_title(
        f"{_shown(explanation.name)}: {said} {influence:+.3f}; most per second from {start:.2f} to {end:.2f} s",
        color=_INK,
        fontsize=10,
        loc="left",
    )
    _dress(axes)


def _strip(axes: Any, explanation: Explanation, *, outlined: bool) -> None:
    """Frames side by side, each in the middle of its share of time."""
    from PIL import Image

    edges, _ = explanation.curve()
    pictures = sorted(
        (
            (time, frame, window.parts, number)
            for window in explanation.windows
            for number, (time, frame) in enumerate(zip(window.parts.times, window.parts.frames, strict=True))
        ),
        key=lambda item: item[0],
    )
    height, width = pictures[0][1].shape[:2]
    box = axes.get_window_extent()
    count = max(1, min(_MOST_FRAMES, int(box.width / (box.height * width / height))))
    chosen = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, count).round().astype(int))]
    slots = np.linspace(edges[0], edges[-1], len(chosen) + 1)
    for (time, frame, parts, number), left, right in zip(chosen, slots[:-1], slots[1:], strict=True):
        inches = box.height / _DPI * width / height
        share = min(right - left, inches / (box.width / _DPI) * (edges[-1] - edges[0])) * 0.96
        middle = (left + right) / 2
        image = np.asarray(frame)
        extent = (middle - share / 2, middle + share / 2, 0, 1)
        axes.imshow(image, extent=extent, aspect="auto", interpolation="nearest", zorder=2)
        if outlined:
            for region, colour in zip(range(len(parts.regions)), _colours(parts), strict=True):
                if parts.regions[region] == REST:
                    continue
                mask = parts.masks[region, min(_latent(parts, number), parts.masks.shape[1] - 1)].numpy()
                smooth = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))
                if smooth.max() > 0.5 > smooth.min():
                    x = np.linspace(extent[0], extent[1], width)
                    y = np.linspace(1, 0, height)
                    axes.contour(x, y, smooth, levels=[0.5], colors=[colour], linewidths=1.4, zorder=3)
        axes.text(middle, -0.06, f"{time:.2f} s", ha="center", va="top", fontsize=7, color=_GREY)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1)
    axes.axis("off")


def _latent(parts: Parts, number: int) -> int:
    """The latent frame of a picture: pictures are spread evenly over the clip."""
    return round(number / max(1, len(parts.frames) - 1) * (parts.masks.shape[1] - 1))


def _bars(axes: Any, explanation: Explanation) -> None:
    rows = explanation.regions()
    places = np.arange(len(rows))[::-1]
    parts = explanation.windows[0].parts
    colours = _colours(parts)
    axes.barh(places + 0.17, [row["influence"] for row in rows], 0.34, color=colours)
    total = float(explanation.influence.double().mean())
    axes.barh(places - 0.2, [row["motion"] * total for row in rows], 0.14, color="#c8cdd3")
    axes.set_yticks(places, [_shown(row["region"]) for row in rows])
    axes.axvline(0, color=_GREY, linewidth=0.8)
    axes.set_title("share of the influence\n(grey: if it went by the motion)", fontsize=9, color=_INK, loc="left")
    _dress(axes, "x")


def _colours(parts: Parts) -> list[str]:
    named = iter(_REGION_COLOURS * (len(parts.regions) // len(_REGION_COLOURS) + 1))
    return ["#8c959f" if name == REST else next(named) for name in parts.regions]


def _shown(text: str) -> str:
    """As a title shows it: `$` would begin mathematics, and what the font lacks is an empty box."""
    text = "".join(letter if can_show(letter) else "?" for letter in text)
    return (text if len(text) <= 40 else text[:39] + "…").replace("$", r"\$")


def _dress(axes: Any, along: str = "y") -> None:
    axes.grid(axis=along, color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_GREY, length=0, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
