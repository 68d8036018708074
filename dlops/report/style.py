"""How every figure looks, and what figures are made with: style, colours, panels, labels.

A figure is drawn by a function without arguments, so that `show` can draw it wide and narrow, under
our own style whatever a reader's matplotlibrc says. Titles state the finding.
"""

from __future__ import annotations

import colorsys
import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

Drawing = Callable[[], Figure]
P = ParamSpec("P")

WIDE, NARROW = 7.0, 3.6  # inches: a page's column, and a telephone
PAPER, INK, SOFT, LINE, FAINT = "#fefefe", "#1d1d1f", "#55585e", "#d5d8dd", "#c3c7cd"

# One colour a method on every page (Okabe and Ito 2008, with a few more).
PALETTE = {
    "cross-entropy": "#0072b2",
    "triplet": "#d55e00",
    "center": "#009e73",
    "adam": "#6a3d9a",
    "sgd": "#8c510a",
    "adagrad": "#d18f00",
    "adadelta": "#c2588f",
    "rmsprop": "#3a9ad0",
    "none": "#6b7078",
    "layerwise": "#0b7a75",
    "end-to-end": "#b5485d",
    "baseline": "#6b7078",
}
CLASSES = (
    *("#0072b2", "#d55e00", "#009e73", "#c2588f", "#d18f00"),
    *("#3a9ad0", "#6b7078", "#8c510a", "#a39400", "#6a3d9a"),
)
MARKERS = "os^DvPX<>*"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every page looks the same
    "font.size": 8.5,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "dlops",
}


def _dark(color: str) -> str:
    """A colour of the palette as it stands on a dark page: as light as it must be."""
    hue, light, saturation = colorsys.rgb_to_hls(*to_rgb(color))
    rgb = colorsys.hls_to_rgb(hue, max(light, 0.62), min(saturation, 0.8))
    return matplotlib.colors.to_hex(rgb)


DARK = {color: _dark(color) for color in (*PALETTE.values(), *CLASSES)} | {
    PAPER: "#17181b",
    INK: "#e4e5e8",
    SOFT: "#a6abb4",
    LINE: "#3a3e45",
    FAINT: "#4b5059",
}


@contextmanager
def style(width: float = WIDE) -> Iterator[None]:
    """Our settings and no one else's; figures made in it are `width` inches wide."""
    own = {**STYLE, "figure.figsize": (width, 0.4 * width)}
    with matplotlib.style.context(["default", own]):
        yield


def width() -> float:
    """Inches that the figure being drawn is wide."""
    return float(matplotlib.rcParams["figure.figsize"][0])


def is_narrow() -> bool:
    """Whether the figure being drawn is the one for a telephone."""
    return width() < 5


def drawing(function: Callable[P, Figure]) -> Callable[P, Drawing]:
    """Make a function that draws into one that returns its drawing, undrawn."""

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> Drawing:
        return partial(function, *args, **kwargs)

    return made


def panels(
    count: int, title: str, *, height: float = 2.2, columns: int = 3, **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with its title and so many axes: side by side if wide, below each other if narrow.

    height: inches of a row; kwargs go to `Figure.subplots`.
    """
    columns = min(count, columns, max(1, int(width() // 2.2)))
    rows = math.ceil(count / columns)
    text = wrapped(title)
    top = 0.1 + 0.18 * (text.count("\n") + 1) * bool(text)
    figure = Figure(figsize=(width(), rows * height + top), layout="constrained")
    if text:
        figure.suptitle(text, x=0.01, ha="left", size=9.5, weight="bold")
    axes = list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def wrapped(title: str) -> str:
    """The title in lines that fit the figure."""
    return textwrap.fill(title, int(width() * 11.2), break_on_hyphens=False)


def short(name: object, length: int) -> str:
    """At most so many characters, with an ellipsis if there were more."""
    text = str(name)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Ticks in per cent."""
    form = FuncFormatter(lambda value, _: f"{100 * value:.4g} %".replace("-", "−"))
    getattr(axes, f"{which}axis").set_major_formatter(form)


def epoch_axis(axes: Axes) -> None:
    """Whole epochs, few of them."""
    steps = [1, 2, 2.5, 5, 10]
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=steps))
    axes.set_xlabel("epoch")


def direct_labels(axes: Axes) -> None:
    """Write each line's name at its end, in its colour, instead of a legend."""
    handles, names = axes.get_legend_handles_labels()
    ends = []
    for handle, name in zip(handles, names):
        assert isinstance(handle, Line2D)
        look = handle.get_color(), handle.get_linestyle()
        for line in axes.lines:
            heights = np.asarray(line.get_ydata())
            if (line.get_color(), line.get_linestyle()) == look and len(heights):
                ends.append((float(heights[-1]), name, line.get_color()))
                break
    if legend := axes.get_legend():
        legend.remove()
    axes.get_ylim()  # brings stale limits up to date
    place = axes.transLimits.transform  # data to shares of the axes, linear or logarithmic
    at = [place(axes.transScale.transform((1, y)))[1] for y, *_ in ends]
    gap, below = 13 / (axes.bbox.height / axes.figure.dpi * 72 + 1e-9), -math.inf
    for i in np.argsort(at, kind="stable"):
        below = max(at[i], below + gap)
        words: dict[str, Any] = {"color": ends[i][2], "size": 8, "va": "center"}
        axes.annotate(ends[i][1], (1.02, below), xycoords="axes fraction", **words)
