"""The picture of a training: its loss, step by step, and what was measured on the way.

Drawn as `pictures.py` draws: without pyplot, with matplotlib's own defaults, the same bytes for the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .pictures import _ABOVE, _BELOW, _GREY, _INK, _PALE, _PAPER, _png, can_show

_COLOURS = (_BELOW, _INK)


def loss_curve(losses: Sequence[Sequence[float]], metrics: Sequence[Mapping[str, Any]] = ()) -> bytes | None:
    """The loss of a training and, beside it, that of its evaluations, as a PNG; None where there are no two points.

    Args:
        losses: [step, loss] each; what is not finite is left out.
        metrics: {"step": step, name: value} each. Of two whose scales are far apart the change is drawn, in percent.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    steps, values = _points([(row[0], row[1]) for row in losses])
    lines = {name: points for name in drawn(metrics) if len((points := series(metrics, name))[0]) > 1}
    panels = (len(steps) > 1) + bool(lines)
    if not panels:
        return None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        height = 3.45  # inches; the legend takes up to two rows
        figure = Figure(figsize=(8, height), dpi=200, facecolor=_PAPER)
        canvas = FigureCanvasAgg(figure)
        left, width = 0.085, 0.895 if panels == 1 else 0.4
        if len(steps) > 1:
            axes = figure.add_axes((left, 0.6 / height, width, 2.25 / height), facecolor=_PAPER)
            window = 2 * round(len(steps) / 40) + 1
            colour = _ABOVE if window == 1 else _PALE[_ABOVE]
            axes.plot(steps, values, color=colour, linewidth=1.2, label="loss of the training")
            if window > 1:
                smooth = _running_mean(values, window)
                axes.plot(steps, smooth, color=_ABOVE, linewidth=1.8, label=f"mean of {window} around it")
            _dress(axes)
            left += width + 0.095
        if lines:
            axes = figure.add_axes((left, 0.6 / height, width, 2.25 / height), facecolor=_PAPER)
            relative = _far_apart(list(lines.values()))
            for (name, (where, found)), colour in zip(lines.items(), _COLOURS, strict=False):
                found = 100 * (found / found[0] - 1) if relative else found
                label = _short(measure_name(name)) + (", change" if relative else "")
                axes.plot(where, found, color=colour, linewidth=1.6, marker="o", markersize=4, label=label)
            _dress(axes, "{x:+.3g} %" if relative else "")
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return _png(image, 256)


def drawn(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of what was measured, in their order, of which a curve is drawn: the first two.

    Losses go before all others, and a part (`eval_loss_t250`) is not drawn beside its whole (`eval_loss`).
    """
    names = list(dict.fromkeys(name for row in metrics for name in row if name != "step"))
    wholes = [name for name in names if not any(name != other and name.startswith(other) for other in names)]
    losses = [name for name in wholes if "loss" in name.lower()]
    return (losses or wholes)[: len(_COLOURS)]


def measure_name(name: str) -> str:
    """What a measure is called in a log, for people."""
    found = re.fullmatch(r"eval(_motion)?_loss(?:_t(\d+))?", name)
    if found is None:
        return name
    return "validation loss" + ", motion-weighted" * bool(found[1]) + (f", at timestep {found[2]}" if found[2] else "")


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


def _far_apart(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether lines on one scale would hide how each changes: where all are positive, of which a ratio can be had."""
    if len(lines) < 2 or any((values <= 0).any() for _, values in lines):
        return False
    middles = [float(np.median(values)) for _, values in lines]
    return max(middles) > 2 * min(middles)


def _short(name: str) -> str:
    """A name as a legend shows it: `$` would begin mathematics, and what the font lacks is an empty box."""
    name = "".join(letter if can_show(letter) else "?" for letter in name)
    return (name if len(name) <= 40 else name[:39] + "…").replace("$", r"\$")


def _dress(axes: Any, form: str = "") -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_xlabel("optimizer step", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if form:
        axes.yaxis.set_major_formatter(StrMethodFormatter(form))
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_GREY, length=0, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.03, 1.0),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handlelength=1.4,
        labelspacing=0.3,
    )
