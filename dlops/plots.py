"""One function per kind of figure: arrays and DataFrames in, a matplotlib Figure out.

Every function takes `title`, where the caller states the finding. Figures are 7 inches wide, never
registered with pyplot, and leave matplotlib's settings as they were. Shares (accuracies) lie
between 0 and 1 and are drawn as percentages. Images are uint8 or floats in [0, 1].
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

WIDTH = 7.0  # inches
COLORS = (  # Okabe and Ito 2008, yellow darkened, with three more
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#444444", "#8C510A", "#B8A900", "#6A3D9A"),
)
BLUE, ORANGE, BLACK, GREY = COLORS[0], COLORS[1], "#222222", "#C8C8C8"
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = "os^DvPX<>*"
STYLE: Any = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


def _wrapped(title: str) -> str:
    """The title in lines of about equal length."""
    count = max(1, math.ceil(len(title) / 76))
    return textwrap.fill(title, min(76, len(title) // count + 10), break_on_hyphens=False)


def _figure(height: float, title: str, rows: int = 1, columns: int = 1, **kwargs: Any):
    """A figure with its title, and a [rows, columns] array of axes."""
    text = _wrapped(title)
    height += 0.3 + 0.17 * text.count("\n")
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(text, x=0.01, ha="left", size=10.5, weight="bold")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _short(name: object, length: int) -> str:
    text = str(name)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _two_lines(text: str, length: int) -> str:
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, length)]
    lines = [*lines[:1], " ".join(lines[1:])] if len(lines) > 2 else lines
    return "\n".join(_short(line, length) for line in lines)


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}%}".replace("-", "−")


def _percent_axis(axes: Axes, which: str = "y") -> None:
    """Ticks in per cent, and no room for a tick above 100 %."""
    form = FuncFormatter(lambda value, _: f"{100 * value:.4g}%".replace("-", "−"))
    getattr(axes, f"{which}axis").set_major_formatter(form)
    low, high = getattr(axes, f"get_{which}lim")()
    if low < 1 < high:
        getattr(axes, f"set_{which}lim")(low, min(high, 1 + 0.04 * (1 - low)))


def _legend(figure: Figure, handles: Mapping[str, Any], **kwargs: Any) -> None:
    """One legend below all panels, in as many columns as fit."""
    labels = [_short(name, 40) for name in handles]
    for rows in range(1, len(labels) + 1):
        columns = [labels[i : i + rows] for i in range(0, len(labels), rows)]
        if sum(42 + 4.8 * max(map(len, column)) for column in columns) < WIDTH * 72:
            break
    place: Any = {"loc": "outside lower center", "ncols": len(columns)}
    figure.legend(list(handles.values()), labels, **place, **kwargs)


# Images


@rc_context(STYLE)
def image_grid(
    images: ArrayLike,
    captions: Sequence[str] | None = None,
    *,
    title: str,
    columns: int = 10,
    row_names: Sequence[str] = (),
) -> Figure:
    """Images [N, C, H, W] or [N, H, W] in rows of `columns`.

    captions: one a picture, on two lines at most; row_names: one a row, on the left.
    """
    pictures = np.asarray(images)
    if pictures.dtype != np.uint8:
        pictures = np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
    if pictures.ndim == 4:
        one_channel = pictures.shape[1] == 1
        pictures = pictures[:, 0] if one_channel else pictures.transpose(0, 2, 3, 1)

    heading = _wrapped(title)
    left = 0.95 if row_names else 0.05
    cell = min((WIDTH - left) / columns, 1.4)
    size = cell * 0.94
    texts = [_two_lines(caption, int(cell * 72 / 4.1)) for caption in captions or ()]
    below = 0.06 + 0.125 * max((text.count("\n") + 1 for text in texts), default=0)
    top = 0.29 + 0.17 * heading.count("\n")
    height = top + math.ceil(len(pictures) / columns) * (size + below)

    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))  # one, in inches: an axes a picture takes seconds
    axes.text(0.05, 0.04, heading, size=10.5, weight="bold", va="top")
    for i, picture in enumerate(pictures):
        x, y = left + i % columns * cell, top + i // columns * (size + below)
        axes.imshow(picture, "gray", vmin=0, vmax=255, extent=(x, x + size, y + size, y))
        if texts:
            axes.text(x + size / 2, y + size + 0.02, texts[i], size=7, ha="center", va="top")
    for row, name in enumerate(row_names):
        middle = top + row * (size + below) + size / 2
        axes.text(0.05, middle, textwrap.fill(name, 14), size=8, va="center")
    axes.axis("off")
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
    return figure


def mistakes(
    images: ArrayLike,
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float] | np.ndarray,
    *,
    title: str,
) -> Figure:
    """Misclassified images [N, C, H, W], each with its class, the prediction and its confidence."""
    rows = zip(true, predicted, confidence, strict=True)
    captions = [f"{_short(t, 19)}\n→ {_short(p, 12)} {c:.0%}" for t, p, c in rows]
    return image_grid(images, captions, title=title, columns=6)


def triplets(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    distances: tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray] | None = None,
    *,
    title: str,
) -> Figure:
    """Mined triplets, one a column: images [N, C, H, W] each; distances: d_ap [N] and d_an [N]."""
    images = np.concatenate([np.asarray(group) for group in (anchors, positives, negatives)])
    count = len(images) // 3
    captions = None
    if distances is not None:
        captions = [""] * count + [f"d = {d:.2f}" for group in distances for d in group]
    names = ["anchor", "hardest positive", "hardest negative"]
    return image_grid(images, captions, title=title, columns=count, row_names=names)


def filters(weights: ArrayLike, *, title: str, columns: int = 12) -> Figure:
    """Weights [N, C, H, W] or [N, H, W] of a first layer; zero is mid-grey, each filter scaled."""
    weights = np.asarray(weights, np.float64)
    largest = np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True)
    scaled = 0.5 + 0.5 * weights / np.maximum(largest, 1e-12)
    return image_grid(scaled, title=title, columns=columns)


# Curves

HEADINGS = {"loss": "Loss", "top1": "Top-1 accuracy", "top5": "Top-5 accuracy"}
PREFIXES = {"train": "training", "val": "validation"}


@rc_context(STYLE)
def lines(
    panels: Mapping[str, Mapping[str, ArrayLike | pd.Series | pd.DataFrame]],
    *,
    title: str,
    xlabel: str = "Epoch",
    percent: Collection[str] = (),
    log: Collection[str] = (),
) -> Figure:
    """Panels of curves, {heading: {name: values}}; the same name has the same look everywhere.

    values: an array [T] (drawn at 1..T), a Series (drawn at its index), or a DataFrame with a
    column per run (their mean, in a band from the lowest to the highest). percent, log: headings
    of the panels whose values are shares or want a logarithmic axis.
    """
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    height = (2.8 if len(panels) == 1 else 2.2) * rows + 0.25 * (len(names) > 1)
    figure, grid = _figure(height, title, rows, columns)
    handles = {}
    for axes, (heading, series) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(heading)
        for name, values in series.items():
            if not isinstance(values, pd.Series | pd.DataFrame):
                values = pd.Series(np.asarray(values)).rename(lambda step: step + 1)
            frame = pd.DataFrame(values)
            i, mean = names.index(name), frame.mean(axis=1)
            look: Any = {"color": COLORS[i % 10], "linestyle": DASHES[i % 6]}
            look["marker"] = MARKERS[i % 10] if len(frame) <= 12 else ""
            (handles[name],) = axes.plot(mean.index, mean, **look)
            if frame.shape[1] > 1:
                band = frame.min(axis=1), frame.max(axis=1)
                axes.fill_between(frame.index, *band, color=COLORS[i % 10], alpha=0.2, lw=0)
        whole = MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10])
        axes.xaxis.set_major_locator(whole)
        if heading in log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if heading in percent:
            _percent_axis(axes)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(xlabel)
    if len(names) > 1:
        _legend(figure, handles)
    return figure


def curves(history: pd.DataFrame, *, title: str) -> Figure:
    """Loss, top-1 and top-5 on training and validation, as far as the history has them.

    history: a row an epoch, with epoch and some of train_loss, val_loss, train_top1, ...
    """
    table = history.set_index("epoch").dropna(axis=1, how="all")
    panels = {
        heading: {
            name: table[f"{prefix}_{kind}"]
            for prefix, name in PREFIXES.items()
            if f"{prefix}_{kind}" in table
        }
        for kind, heading in HEADINGS.items()
    }
    shown = {heading: series for heading, series in panels.items() if series}
    return lines(shown, title=title, percent=["Top-1 accuracy", "Top-5 accuracy"])


def compare_curves(
    histories: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    columns: str | Sequence[str],
    *,
    title: str,
) -> Figure:
    """A panel for each column of the histories, a curve for each name.

    Several histories of one name (seeds) are drawn as their mean in a band from lowest to highest.
    """
    panels: dict[str, dict[str, pd.DataFrame]] = {}
    columns = [columns] if isinstance(columns, str) else columns
    for column in columns:
        panel = panels.setdefault(_heading(column), {})
        for name, runs in histories.items():
            runs = [runs] if isinstance(runs, pd.DataFrame) else runs
            series = [run.set_index("epoch")[column] for run in runs if column in run]
            if series:
                panel[name] = pd.concat(series, axis=1)
    percent = [_heading(column) for column in columns if "_top" in column]
    return lines(panels, title=title, percent=percent)


def _heading(column: str) -> str:
    """val_top1 -> Top-1 accuracy, validation; other columns as words."""
    prefix, _, kind = column.partition("_")
    if kind in HEADINGS and prefix in PREFIXES:
        return f"{HEADINGS[kind]}, {PREFIXES[prefix]}"
    return column.replace("_", " ").capitalize()


@rc_context(STYLE)
def histogram(panels: Mapping[str, Mapping[str, ArrayLike]], *, title: str, xlabel: str) -> Figure:
    """Distributions in panels that share their axes: {heading: {name: values}}."""
    figure, grid = _figure(2.7, title, 1, len(panels), sharex=True, sharey=True)
    everything = [np.ravel(v) for group in panels.values() for v in group.values()]
    edges = np.histogram_bin_edges(np.concatenate(everything), 50)
    names = list(dict.fromkeys(name for group in panels.values() for name in group))
    handles = {}
    for axes, (heading, group) in zip(grid.flat, panels.items(), strict=True):
        axes.set_title(heading)
        axes.set_xlabel(xlabel)
        for name, values in group.items():
            i, flat = names.index(name), np.ravel(values)
            look: Any = {"facecolor": (COLORS[i], 0.3), "edgecolor": COLORS[i], "lw": 1.2}
            shape: Any = {"histtype": "stepfilled", "linestyle": DASHES[i]}
            weights = np.full(len(flat), 1 / max(len(flat), 1))
            handles[name] = axes.hist(flat, edges, weights=weights, **shape, **look)[2][0]
    _percent_axis(grid[0, 0])
    grid[0, 0].set_ylabel("Share in each bin")
    _legend(figure, handles)
    return figure


# Classes


@rc_context(STYLE)
def class_bars(
    names: Sequence[str],
    values: ArrayLike,
    intervals: ArrayLike | None = None,
    *,
    title: str,
    xlabel: str = "Top-1 accuracy",
) -> Figure:
    """A bar a class, highest first; of more than 40 classes all as a strip, and the 15
    highest and lowest by name.

    values: [C] shares, or differences of shares; nan (a class without images) is left out.
    intervals: [C, 2], low and high.
    """
    values = np.asarray(values, np.float64)
    limits = np.stack([values, values], 1) if intervals is None else np.asarray(intervals)
    order = np.argsort(-values, kind="stable")[: np.isfinite(values).sum()]
    mean = f"dashed: mean {_percent(values[order].mean())}"
    many = len(order) > 40
    parts = [order[:15], order[-15:]] if many else [order]
    headings = ["highest 15", "lowest 15"] if many else [mean]
    shape = [["all", "all"], [0, 1]] if many else [[0]]
    figure, grid = _figure(0.7 + 0.17 * len(parts[0]) + 1.4 * many, title)
    grid[0, 0].remove()
    heights = [1.2, 3.4] if many else [1]
    panels: Any = figure.subplot_mosaic(shape, height_ratios=heights)
    if many:
        colors = np.where(
            np.isin(order, parts[0]), BLUE, np.where(np.isin(order, parts[1]), ORANGE, "#A6CBE3")
        )
        panels["all"].bar(range(len(order)), values[order], width=1, color=colors)
        panels["all"].axhline(values[order].mean(), color=BLACK, ls="--", lw=1)
        panels["all"].set(xlim=(-1, len(order)), xticks=[])
        panels["all"].set_title(f"all {len(order)} classes, sorted ({mean})")
        _percent_axis(panels["all"])
    low, high = min(0.0, limits[order].min()), max(0.01, limits[order].max())
    for i, part in enumerate(parts):
        axes, rows = panels[i], np.arange(len(part))
        axes.barh(rows, values[part], height=0.72, color=(BLUE, ORANGE)[i], alpha=0.75)
        if intervals is not None:
            axes.hlines(rows, *limits[part].T, color=BLACK, lw=1)
        axes.axvline(values[order].mean(), color=BLACK, ls="--", lw=1)
        axes.set_yticks(rows, [_short(names[c], 22) for c in part], size=7.5)
        axes.set(xlim=(low * 1.05, high * 1.03), ylim=(len(part) - 0.4, -0.6), xlabel=xlabel)
        axes.grid(axis="y", visible=False)
        axes.set_title(headings[i])
        _percent_axis(axes, "x")
    return figure


@rc_context(STYLE)
def confusion(matrix: ArrayLike, names: Sequence[str], *, title: str) -> Figure:
    """A confusion matrix [C, C] of counts, a row per true class, coloured by share of the row.

    Up to 20 classes: with the counts. More: ordered so that classes mistaken for each other are
    neighbours; above 50 without names.
    """
    counts = np.asarray(matrix)
    n = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.arange(n) if n <= 20 else _similar_first(share)
    figure, grid = _figure(5.2 if n <= 20 else 5.9, title)
    axes = grid[0, 0]
    norm = PowerNorm(0.5, 0, 1)  # shows a confusion of 1 % beside a diagonal of 90 %
    picture = axes.imshow(share[np.ix_(order, order)], "Blues", norm=norm, interpolation="none")
    bar = figure.colorbar(picture, shrink=0.6, aspect=25, label="Share of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1%", "5%", "20%", "50%", "100%"])
    if n <= 50:
        size = 8 if n <= 10 else 7 if n <= 30 else 5.5
        labels = [_short(names[int(c)], 19) for c in order]
        axes.set_xticks(range(n), labels, size=size, rotation=90 * (max(map(len, labels)) > 2))
        axes.set_yticks(range(n), labels, size=size)
    else:
        axes.set(xticks=[], yticks=[])
    for i, j in np.argwhere(counts > 0) if n <= 20 else ():
        look = {"size": 8 if n <= 10 else 6, "color": "white" if share[i, j] > 0.35 else BLACK}
        axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", **look)
    note = "" if n <= 20 else " (classes mistaken for each other are neighbours)"
    axes.set(xlabel=f"Predicted class{note}", ylabel="True class")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure


def _similar_first(share: np.ndarray) -> np.ndarray:
    """Leaves of an average-linkage tree over how often two classes are taken for each other."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", True))


# Embeddings


@rc_context(STYLE)
def scatter(
    panels: Mapping[str, ArrayLike],
    labels: ArrayLike,
    names: Sequence[str],
    *,
    title: str,
    centers: Mapping[str, ArrayLike] | None = None,
    ticks: bool = True,
) -> Figure:
    """Points [M, 2] in panels {heading: points}, coloured by labels [M].

    Of more than 20 classes the ten most frequent are coloured, the others grey. centers: [C, 2]
    for headings that have them. ticks=False where the axes have no meaning (t-SNE).
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if many := len(classes) > 20:
        classes = classes[np.sort(np.argsort(-counts, kind="stable")[:10])]
    short = [_short(name, 24) for name in names]
    area = float(np.clip(9000 / len(labels), 4, 18))
    figure, grid = _figure(5.2 if len(panels) == 1 else 3.7, title, 1, len(panels))
    handles: dict[str, Any] = {}
    for axes, (heading, values) in zip(grid.flat, panels.items(), strict=True):
        points = np.asarray(values)
        axes.set_title(heading)
        if many:
            rest = points[~np.isin(labels, classes)]
            others = axes.scatter(*rest.T, s=area, color=GREY, alpha=0.6, linewidths=0)
        for i, c in enumerate(classes):
            look = {"color": COLORS[i % 10], "marker": MARKERS[(i + i // 10) % 10]}
            size = area * (3 if many else 1)
            mine = points[labels == c]
            handles[short[c]] = axes.scatter(*mine.T, s=size, alpha=0.8, linewidths=0, **look)
        if many:
            handles["other classes"] = others
        if centers and heading in centers:
            at = np.asarray(centers[heading])[classes]
            cross = {"color": "white", "edgecolors": "black", "marker": "X", "zorder": 4}
            handles["class center"] = axes.scatter(*at.T, s=30, **cross)
        if ticks:
            axes.axhline(0, color=GREY, lw=0.8, zorder=0)
            axes.axvline(0, color=GREY, lw=0.8, zorder=0)
        else:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes.set_aspect("equal", "datalim")
    _legend(figure, handles, markerscale=4.5 / math.sqrt(area * (3 if many else 1)))
    figure.draw_without_rendering()
    for axes, (heading, values) in zip(grid.flat, panels.items(), strict=True):
        points = np.asarray(values)
        middles = {short[c]: np.median(points[labels == c], axis=0) for c in classes}
        _label_where_free(axes, middles, 9 if centers and heading in centers else 0)
    return figure


def tsne(points: ArrayLike, labels: ArrayLike, names: Sequence[str], *, title: str) -> Figure:
    """A t-SNE map: points [M, 2], labels [M] (see scatter)."""
    return scatter({"": points}, labels, names, title=title, ticks=False)


def _label_where_free(axes: Axes, points: Mapping[str, np.ndarray], above: float) -> None:
    """Write names at (or some typographic points above) places, but never over each other."""
    taken: list[Any] = []
    look: Any = {"size": 8, "weight": "bold", "ha": "center", "va": "center", "zorder": 5}
    look["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
    for name, (x, y) in points.items():
        offset: Any = {"xytext": (0, above), "textcoords": "offset points"}
        text = axes.annotate(name, (x, y), **offset, **look)
        box = text.get_window_extent().padded(4)
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            text.set_in_layout(False)
            taken.append(box)


# Comparisons


@rc_context(STYLE)
def intervals(
    estimates: Mapping[str, tuple[float, float | None, float | None]],
    *,
    title: str,
    xlabel: str,
    percent: bool = True,
    reference: float | None = None,
) -> Figure:
    """A forest plot: {name: (value, low, high)} from top to bottom.

    A value without limits (None), such as a published one, is drawn hollow. reference: a vertical
    line, such as 0 for differences. percent=False for values that are no shares.
    """
    figure, grid = _figure(0.7 + 0.28 * len(estimates), title)
    axes = grid[0, 0]
    form = _percent if percent else "{:.3g}".format
    if reference is not None:
        axes.axvline(reference, color=BLACK, ls="--", lw=1)
    for row, (value, low, high) in enumerate(estimates.values()):
        text, fill = form(value), "white"
        if low is not None and high is not None:
            axes.hlines(row, low, high, color=BLUE, lw=2)
            text, fill = f"{text}  [{form(low)}, {form(high)}]", BLUE
        axes.plot(value, row, "o", color=BLUE, markerfacecolor=fill, markersize=6)
        axes.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center", size=8)
    axes.set_yticks(range(len(estimates)), [_two_lines(name, 38) for name in estimates])
    axes.margins(x=0.06)
    axes.set(ylim=(len(estimates) - 0.4, -0.6), xlabel=xlabel)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if percent:
        _percent_axis(axes, "x")
    return figure


@rc_context(STYLE)
def heatmap(grid: pd.DataFrame, *, title: str, label: str, noise: float = 0.0) -> Figure:
    """Shares over two settings: index and columns are their values, with names for the axes.

    The best cell is framed; values within `noise` of it are bold, as no different. nan: failed.
    """
    values = grid.to_numpy(np.float64)
    best = np.nanmax(values)
    figure, panel = _figure(1.0 + 0.42 * len(values), title)
    axes = panel[0, 0]
    lowest = np.nanquantile(values, 0.2)  # one hopeless cell must not wash out the others
    picture = axes.imshow(values, "cividis", vmin=lowest, aspect="auto")
    axes.set_facecolor("#E4E4E4")
    axes.set_title(label)
    for (i, j), value in np.ndenumerate(values):
        look: Any = {"color": "white" if picture.norm(value) < 0.5 else BLACK}
        look["weight"] = "bold" if value >= best - noise else "normal"
        text = _percent(value) if np.isfinite(value) else "failed"
        axes.text(j, i, text, ha="center", va="center", **look)
        if value == best:
            axes.add_patch(
                Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, ec=ORANGE, lw=2.5)
            )
    within = f"; bold: within the noise floor ({_percent(noise)}) of it" if noise else ""
    axes.set_xticks(range(len(grid.columns)), [_value(v) for v in grid.columns])
    axes.set_yticks(range(len(grid)), [_value(v) for v in grid.index])
    axes.set_xlabel(f"{grid.columns.name or ''}\nframed: best{within}")
    axes.set_ylabel(str(grid.index.name or ""))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure


@rc_context(STYLE)
def responses(
    panels: Mapping[str, Mapping[Any, ArrayLike]],
    base: Mapping[str, Any],
    band: tuple[float, float],
    *,
    title: str,
    ylabel: str,
) -> Figure:
    """Response curves: {attribute: {value: share, or the shares of several seeds}}.

    base: the base setting's value of each attribute, drawn filled. band: its noise floor (low,
    high), shaded in every panel. A nan is marked as failed.
    """
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure, grid = _figure(1.75 * rows + 0.35, title, rows, columns, sharey=True)
    handles: dict[str, Any] = {}
    for axes, (attribute, response) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(attribute)
        handles["noise floor of the base setting"] = axes.axhspan(*band, color="#DDDDDD", zorder=0)
        scores = [np.atleast_1d(np.asarray(runs, np.float64)) for runs in response.values()]
        means = [pd.Series(runs).mean() for runs in scores]
        axes.plot(means, color=BLUE, lw=1)
        for x, (value, runs) in enumerate(zip(response, scores, strict=True)):
            name, fill = "other setting", "white"
            if value == base[attribute]:
                name, fill = "base setting", BLUE
            if len(runs) > 1:
                axes.plot([x] * len(runs), runs, "_", color=BLUE, markersize=6, alpha=0.6)
            look: Any = {"color": BLUE, "markerfacecolor": fill, "markersize": 5}
            (handles[name],) = axes.plot(x, means[x], "o", **look)
            if np.isnan(runs).any():
                foot = axes.get_xaxis_transform()
                (handles["failed"],) = axes.plot(x, 0.06, "x", color=ORANGE, ms=6, transform=foot)
        axes.set_xticks(range(len(response)), [_value(v) for v in response])
        axes.margins(x=0.15)
        axes.grid(axis="x", visible=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    _percent_axis(grid[0, 0])
    _legend(figure, handles)
    return figure


def _value(value: object) -> str:
    """A setting as a tick label: 0.9, 1e-8, True."""
    if isinstance(value, float):
        text = f"{value:g}" if value == 0 or abs(value) >= 0.01 else f"{value:.3e}"
        digits, e, power = text.partition("e")
        return f"{float(digits):g}e{int(power)}" if e else text
    return _short(value, 14)
