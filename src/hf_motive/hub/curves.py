"""The picture of a training: its loss, step by step, and what was measured on the way.

Drawn as `pictures.py` draws: without pyplot, with matplotlib's own defaults, the same bytes for the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .pictures import _ABOVE, _BELOW, _GREY, _INK, _PALE, _PAPER, _png, can_show

_COLOURS = (_BELOW, _ABOVE, _INK, _GREY)


def loss_curve(losses: Sequence[Sequence[float]], metrics: Sequence[Mapping[str, Any]] = ()) -> bytes | None:
    """The loss of a training and, beside it, that of its evaluations, as a PNG; None where there are no two points.

    Args:
        losses: [step, loss] each; what is not finite is left out.
        metrics: {"step": step, name: value} each. Those whose name says loss are drawn, or all where none does.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    steps, values = _points([(row[0], row[1]) for row in losses])
    lines = {name: points for name in drawn(metrics) if len((points := series(metrics, name))[0]) > 1}
    panels = (len(steps) > 1) + bool(lines)
    if not panels:
        return None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        height = 3.25  # inches
        figure = Figure(figsize=(8, height), dpi=200, facecolor=_PAPER)
        canvas = FigureCanvasAgg(figure)
        width = 0.9 if panels == 1 else 0.405
        left = 0.085
        if len(steps) > 1:
            axes = figure.add_axes((left, 0.6 / height, width, 2.25 / height), facecolor=_PAPER)
            window = 2 * round(len(steps) / 40) + 1
            axes.plot(steps, values, color=_PALE[_ABOVE], linewidth=1.0, label="loss of training")
            if window > 1:
                smooth = _running_mean(values, window)
                axes.plot(steps, smooth, color=_ABOVE, linewidth=1.8, label=f"mean of {window} around it")
            _dress(axes, "optimizer step", MaxNLocator)
            left += width + 0.09
        if lines:
            axes = figure.add_axes((left, 0.6 / height, width, 2.25 / height), facecolor=_PAPER)
            for place, (name, points) in enumerate(lines.items()):
                colour = _COLOURS[place % len(_COLOURS)]
                axes.plot(*points, color=colour, linewidth=1.6, marker="o", markersize=4, label=_short(name))
            _dress(axes, "optimizer step", MaxNLocator)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return _png(image, 256)


def drawn(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of what was measured, in the order in which they come, of which a curve is drawn: four at most."""
    names = list(dict.fromkeys(name for row in metrics for name in row if name != "step"))
    losses = [name for name in names if "loss" in name.lower()]
    return (losses or names)[: len(_COLOURS)]


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one measure, where it is a number."""
    return _points([(row.get("step"), row.get(name)) for row in metrics])


def _points(pairs: Sequence[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    numbers = [pair for pair in pairs if all(isinstance(n, (int, float)) and np.isfinite(n) for n in pair)]
    table = np.asarray(sorted(numbers, key=lambda pair: pair[0]), dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of as many around each, of fewer at the ends. `window`: an odd number."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _short(name: str) -> str:
    """A name as a legend shows it: `$` would begin mathematics, and what the font lacks is an empty box."""
    name = "".join(letter if can_show(letter) else "?" for letter in name)
    return (name if len(name) <= 40 else name[:39] + "…").replace("$", r"\$")


def _dress(axes: Any, label: str, locator: Any) -> None:
    axes.set_xlabel(label, color=_INK)
    axes.xaxis.set_major_locator(locator(6, integer=True))
    axes.yaxis.set_major_locator(locator(5))
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_GREY, length=0, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handlelength=1.2,
        columnspacing=1.4,
    )
