"""The figures that pages share, on seaborn where it knows the figure and matplotlib for the rest.

They come back undrawn, as `show` wants them. Shares lie between 0 and 1, and are drawn in per cent.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from dlops.report.style import (
    CLASSES,
    FAINT,
    INK,
    MARKERS,
    PAPER,
    SOFT,
    direct_labels,
    drawing,
    epoch_axis,
    is_narrow,
    panels,
    percent_axis,
    short,
    width,
    wrapped,
)

# Curves


HEADINGS = {"loss": "loss", "top1": "top-1 accuracy", "top5": "top-5 accuracy"}


@drawing
def curves(histories: Sequence[pd.DataFrame], *, title: str, color: str = CLASSES[0]) -> Figure:
    """Loss, top-5 and top-1 on training images (dashed) and validation images, by epoch.

    histories: one a seed, drawn as their mean in a band from the lowest to the highest.
    """
    runs = pd.concat(histories)
    kinds = [kind for kind in ("loss", "top5", "top1") if f"val_{kind}" in runs]
    figure, grid = panels(len(kinds), title)
    for axes, kind in zip(grid, kinds):
        for part, name, dashes in (("train", "training", "--"), ("val", "validation", "-")):
            look: dict[str, Any] = {"linestyle": dashes, "label": name, "color": color}
            look["marker"] = "o" if runs.epoch.nunique() <= 12 else None
            band: Any = ("pi", 100) if len(histories) > 1 else None
            sns.lineplot(runs, x="epoch", y=f"{part}_{kind}", errorbar=band, ax=axes, **look)
        axes.set(title=HEADINGS[kind], ylabel="")
        epoch_axis(axes)
        if kind == "loss":
            axes.set_ylim(bottom=0)
        else:
            axes.set_ylim(0, 1.02)
            percent_axis(axes)
        direct_labels(axes)
    return figure


# Scores and classes


@drawing
def scores(rows: Sequence[Mapping[str, Any]], *, title: str, xlabel: str = "") -> Figure:
    """A row a score: a dot for each seed, the mean with its interval, and chance.

    rows: name, values (one a seed), low, high (None: no interval), chance (None: none), color.
    """
    height = 0.45 + (0.34 if not is_narrow() else 0.5) * len(rows)
    figure, (axes,) = panels(1, title, height=height)
    for y, row in enumerate(rows):
        values, color = np.asarray(row["values"], float), row.get("color", CLASSES[0])
        mean, low, high = values.mean(), row.get("low"), row.get("high")
        if len(values) > 1:
            axes.plot(values, [y] * len(values), "o", color=color, alpha=0.45, ms=4, mew=0)
        if low is not None and high is not None:
            axes.hlines(y, low, high, color=color, lw=2.2)
        axes.plot(mean, y, "D", color=color, ms=6, mec=PAPER, mew=0.8)
        if row.get("chance"):
            axes.plot(row["chance"], y, "|", color=SOFT, ms=13, mew=1.6)
        axes.annotate(
            f"{100 * mean:.1f} %", (1.02, y), xycoords=("axes fraction", "data"), va="center"
        )
    if chances := [(row["chance"], y) for y, row in enumerate(rows) if row.get("chance")]:
        spot: Any = {"textcoords": "offset points", "xytext": (5, 7), "size": 7.5, "color": SOFT}
        axes.annotate("chance", chances[0], **spot)
    wrap = 16 if is_narrow() else 34
    names = [textwrap.fill(row["name"], wrap) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlim=(0, 1.01), ylim=(len(rows) - 0.5, -0.6), xlabel=xlabel)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    percent_axis(axes, "x")
    return figure


@drawing
def class_bars(
    names: Sequence[str], values: ArrayLike, ranges: ArrayLike, *, title: str, xlabel: str
) -> Figure:
    """A bar and a number for each class, highest first; of more than 40 the 15 at either end.

    values: [C] shares, nan for a class without images; ranges: [C, 2] intervals.
    """
    values, ranges = np.asarray(values, np.float64), np.asarray(ranges)
    order = np.argsort(-values, kind="stable")[: np.isfinite(values).sum()]
    parts = [order] if len(order) <= 40 else [order[:15], order[-15:]]
    figure, grid = panels(len(parts), title, height=0.6 + 0.175 * len(parts[0]), columns=2)
    for axes, part, heading in zip(grid, parts, ("highest 15", "lowest 15")):
        rows = np.arange(len(part))
        axes.barh(rows, values[part], height=0.7, color=CLASSES[0], alpha=0.55, lw=0)
        axes.hlines(rows, *ranges[part].T, color=INK, lw=1)
        for y, c in zip(rows, part):
            text = f"{100 * values[c]:.0f} %"
            axes.annotate(
                text, (1.02, y), xycoords=("axes fraction", "data"), va="center", size=7.5
            )
        axes.axvline(values[order].mean(), color=SOFT, ls="--", lw=1)
        axes.set_yticks(rows, [short(names[int(c)], 20) for c in part], size=7.5)
        axes.set(xlim=(0, 1), ylim=(len(part) - 0.4, -0.6), xlabel=xlabel)
        axes.set_title(heading if len(parts) > 1 else "")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        percent_axis(axes, "x")
    return figure


@drawing
def confusion(matrix: ArrayLike, names: Sequence[str], *, title: str) -> Figure:
    """A confusion matrix [C, C] of counts, a row for each true class, coloured by its share.

    Up to 20 classes with the counts; more in the order that puts the confused beside each other.
    """
    counts = np.asarray(matrix)
    n = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.arange(n) if n <= 20 else _similar_first(share)
    labels = [short(names[int(c)], 16) for c in order] if n <= 50 else []
    written = np.where(counts > 0, counts.astype(str), "") if n <= 20 else None
    size = (7 if n <= 10 else 5.5) * (0.62 if is_narrow() and n > 10 else 1)
    figure, (axes,) = panels(1, title, height=0.8 * width() if n > 10 else 0.66 * width())
    sns.heatmap(
        share[np.ix_(order, order)],
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 1),  # shows a confusion of 1 % beside a diagonal of 90 %
        annot=written,
        fmt="",
        annot_kws={"size": size},
        square=True,
        xticklabels=labels or False,
        yticklabels=labels or False,
        rasterized=n > 50,
        cbar=not is_narrow(),
        cbar_kws={"shrink": 0.6, "aspect": 25, "label": "share of the true class"},
        ax=axes,
    )
    if not is_narrow():
        bar = axes.collections[0].colorbar
        assert bar is not None
        bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1 %", "5 %", "20 %", "50 %", "1"])
        bar.outline.set_visible(False)  # type: ignore[operator]
    longest = max((len(label) for label in labels), default=0)
    axes.tick_params(length=0, labelsize=8 if n <= 10 else 6.5)
    axes.tick_params(axis="x", rotation=90 if longest > 2 else 0)
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


def _similar_first(share: np.ndarray) -> np.ndarray:
    """Leaves of an average-linkage tree over how often two classes are taken for each other."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", True))


# Pictures


@drawing
def images(
    pictures: ArrayLike,
    captions: Sequence[str] = (),
    *,
    title: str,
    columns: int = 10,
    row_names: Sequence[str] = (),
) -> Figure:
    """Pictures [N, C, H, W] or [N, H, W], uint8 or in [0, 1], row by row.

    captions: one a picture, two lines at most. With row_names (one a row, on the left) the columns
    belong together: a narrow figure shows the first few.
    """
    shown = np.asarray(pictures)
    if shown.dtype != np.uint8:
        shown = np.round(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    if shown.ndim == 3:
        shown = shown[:, None]
    shown = np.broadcast_to(shown, (len(shown), 3, *shown.shape[2:])).transpose(0, 2, 3, 1)
    keep = np.arange(len(shown))
    most = 4 if row_names else 5
    if is_narrow() and columns > most:
        if row_names:
            keep = keep[keep % columns < most]
        columns = most
    left = 0.85 if row_names else 0.02
    cell = min((width() - left) / columns, 1.25)
    size, step = cell * 0.94, int(cell * 72 / 4.4)
    texts = [_two_lines(captions[int(i)], step) for i in keep] if captions else []
    below = 0.06 + 0.12 * max((text.count("\n") + 1 for text in texts), default=0)
    heading = wrapped(title)
    top = 0.14 + 0.19 * (heading.count("\n") + 1)
    height = top + math.ceil(len(keep) / columns) * (size + below)

    figure = Figure(figsize=(width(), height))
    axes = figure.add_axes((0, 0, 1, 1))  # one, in inches: an axes a picture takes seconds
    axes.text(0.02, 0.04, heading, size=9.5, weight="bold", va="top")
    for place, i in enumerate(keep):
        x, y = left + place % columns * cell, top + place // columns * (size + below)
        axes.imshow(shown[i], extent=(x, x + size, y + size, y))
        if texts:
            axes.text(x + size / 2, y + size + 0.03, texts[place], size=7, ha="center", va="top")
    for row, name in enumerate(row_names):
        middle = top + row * (size + below) + size / 2
        axes.text(0.02, middle, textwrap.fill(name, 11), size=8, va="center")
    axes.axis("off")
    axes.set(xlim=(0, width()), ylim=(height, 0), aspect="auto")
    return figure


def _two_lines(text: str, length: int) -> str:
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, length)]
    lines = [*lines[:1], " ".join(lines[1:])] if len(lines) > 2 else lines
    return "\n".join(short(line, length) for line in lines)


# Embeddings


@drawing
def embedding(points: ArrayLike, labels: ArrayLike, names: Sequence[str], *, title: str) -> Figure:
    """A map of points [M, 2] with labels [M]: up to 10 classes that lie apart with their names in
    one map, else each in a panel of its own before all others, the 20 most frequent at most."""
    points, labels = np.asarray(points), np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) <= 10 and _apart(points, labels):
        figure, (axes,) = panels(1, title, height=min(4.6, 0.95 * width()))
        class_points(axes, points, labels, names)
        return _without_axes(figure)
    classes = np.sort(classes[np.argsort(-counts, kind="stable")[:20]])
    columns = 5 if not is_narrow() else 3
    text = wrapped(title)
    rows = math.ceil(len(classes) / columns)
    height = rows * width() / columns + 0.2 + 0.18 * (text.count("\n") + 1)
    figure = Figure(figsize=(width(), height), layout="constrained")
    figure.suptitle(text, x=0.01, ha="left", size=9.5, weight="bold")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, (axes, c) in enumerate(zip(grid, classes)):
        mine = labels == c
        others = np.flatnonzero(~mine)[:: -(-len(points) // 1000)]  # a thousand are enough
        chosen: Any
        for chosen, size, color in ((others, 2, FAINT), (mine, 7, CLASSES[i % 10])):
            x, y = points[chosen].T
            axes.scatter(x, y, s=size, color=color, lw=0, rasterized=True)
        axes.set_title(short(names[c], 18), size=7.5, color=CLASSES[i % 10], weight="bold")
    for unused in grid[len(classes) :]:
        unused.remove()
    return _without_axes(figure)


def _apart(points: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the middles of classes are farther from each other than points from their own."""
    found, own = np.unique(labels, return_inverse=True)
    middles = np.array([np.median(points[labels == c], axis=0) for c in found])
    between = [np.linalg.norm(a - b) for a, b in itertools.combinations(middles, 2)]
    within = np.linalg.norm(points - middles[own], axis=1).mean()
    return not between or bool(np.mean(between) > within)


def class_points(axes: Axes, points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    """Points [M, 2] of up to ten classes: a colour, a mark and a name in its middle for each."""
    classes = np.unique(labels)
    size = float(np.clip(9000 / len(labels), 4, 18))
    middles = [np.median(points[labels == c], axis=0) for c in classes]
    for i, c in enumerate(classes):
        look: dict[str, Any] = {"color": CLASSES[i % 10], "marker": MARKERS[i % 10]}
        x, y = points[labels == c].T
        axes.scatter(x, y, s=size, alpha=0.75, lw=0, **look)
    for i, (c, middle) in enumerate(zip(classes, middles)):
        halo = [withStroke(linewidth=3, foreground=PAPER)]
        look = {"size": 8.5, "weight": "bold", "ha": "center", "va": "center", "zorder": 5}
        axes.annotate(short(names[c], 18), middle, color=CLASSES[i % 10], path_effects=halo, **look)
    axes.set_aspect("equal", "datalim")


def _without_axes(figure: Figure) -> Figure:
    """No ticks, no frames: where coordinates mean nothing."""
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    return figure


@drawing
def distributions(panels_: Mapping[str, pd.DataFrame], *, title: str, xlabel: str) -> Figure:
    """Histograms in panels on common axes: frames with columns value and kind."""
    figure, grid = panels(len(panels_), title, height=2.3, columns=2, sharex=True, sharey=True)
    kinds = list(dict.fromkeys(kind for frame in panels_.values() for kind in frame.kind))
    colors = dict(zip(kinds, (CLASSES[2], CLASSES[1], CLASSES[0])))
    for axes, (heading, frame) in zip(grid, panels_.items()):
        sns.histplot(
            frame,
            x="value",
            hue="kind",
            hue_order=kinds,
            palette=colors,
            bins=50,
            element="step",
            stat="proportion",
            common_norm=False,
            legend=axes is grid[0],
            ax=axes,
        )
        axes.set(title=heading, xlabel=xlabel, ylabel="share in each bin")
        percent_axis(axes)
        if legend := axes.get_legend():
            legend.set_title("")
    return figure
