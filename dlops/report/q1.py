"""What only the notebooks of Question 1 need: drawings of network and losses, classes, triplets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from dlops import metrics
from dlops.data import DataSet
from dlops.report import figures
from dlops.report.output import show, table
from dlops.report.page import interval, percent
from dlops.report.style import INK, PALETTE, PAPER, SOFT, drawing, is_narrow, panels, width
from dlops.store import Result

# Drawings -----------------------------------------------------------------------------------------


def _box(axes: Axes, x: float, y: float, text: str, color: str, size: tuple[float, float]) -> None:
    """A rounded box around (x, y), with its text."""
    wide, high = size
    shape = "round,pad=0,rounding_size=0.06"
    corner = (x - wide / 2, y - high / 2)
    axes.add_patch(FancyBboxPatch(corner, wide, high, shape, fc=PAPER, ec=color, lw=1.4))
    axes.text(x, y, text, ha="center", va="center", size=7.5, linespacing=1.35)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **look: Any) -> None:
    style = {"arrowstyle": "-|>", "color": SOFT, "lw": 1.1, "shrinkA": 0, "shrinkB": 0, **look}
    axes.annotate("", end, start, arrowprops=style)


def _canvas(title: str, high: float) -> tuple[Figure, Axes]:
    """A figure with one axes in inches, without ticks or frames; y grows upwards."""
    figure, (axes,) = panels(1, title, height=high)
    axes.set(xlim=(0, width()), ylim=(0, high), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def shapes(network: nn.Module, image: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shape that each part of a ResNet18 makes of an image [C, H, W]."""
    names = ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        return lambda _, __, out: found.__setitem__(name, tuple(out.shape[1:]))

    hooks = [getattr(network, name).register_forward_hook(note(name)) for name in names]
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, *image))
    for hook in hooks:
        hook.remove()
    return found


@drawing
def network_drawing(network: nn.Module, image: Sequence[int]) -> Figure:
    """ResNet18 from left to right with the names of its code and the shapes between; a block."""
    made = shapes(network, image)
    if isinstance(network.maxpool, nn.Identity):
        del made["maxpool"]
    parts = [("image", tuple(image)), *made.items()]
    narrow = is_narrow()
    columns = 4 if narrow else len(parts)
    rows = math.ceil(len(parts) / columns)
    figure, axes = _canvas("", 1.65 + 0.8 * rows)
    step = width() / columns
    color = PALETTE["cross-entropy"]
    for i, (name, shape) in enumerate(parts):
        x, y = (i % columns + 0.5) * step, 2.05 + 0.8 * (rows - 1 - i // columns)
        text = f"{name}\n" + " × ".join(map(str, [n for n in shape if n > 1] or shape))
        _box(axes, x, y, text, SOFT if name == "image" else color, (step * 0.84, 0.5))
        if i % columns:
            _arrow(axes, (x - step * 0.58, y), (x - step * 0.43, y))
    _block(axes, width())
    return figure


def _block(axes: Axes, wide: float) -> None:
    """The basic block, its sum and its shortcut, in the lower inch and a half."""
    names = ["x", "conv1\nbn1", "relu", "conv2\nbn2", "+", "relu"]
    step, y = wide / 7, 0.8
    spots = [(i + 1) * step for i in range(len(names))]
    axes.text(0.02, 1.4, "each BasicBlock of layer1 to layer4", size=8, color=SOFT, va="top")
    for i, (x, name) in enumerate(zip(spots, names)):
        if i in (0, 4):
            axes.text(x, y, name, ha="center", va="center", size=11 if i == 4 else 9)
            if i == 4:
                axes.plot(x, y, "o", ms=16, mfc="none", mec=INK)
        else:
            _box(
                axes,
                x,
                y,
                name,
                PALETTE["cross-entropy"],
                (step * (0.86 if is_narrow() else 0.62), 0.42),
            )
        if i and not is_narrow():
            before, after = (0.2 if i in (1, 5) else 0.34), (0.2 if i == 4 else 0.33)
            _arrow(axes, (spots[i - 1] + step * before, y), (x - step * after, y))
    curve = {"connectionstyle": f"arc3,rad={0.55 if is_narrow() else 0.32}"}
    _arrow(axes, (spots[0] + 0.08, y - 0.12), (spots[4], y - 0.14), **curve)
    middle = (spots[0] + spots[4]) / 2
    axes.text(middle, y - 0.42, "shortcut", size=7.5, ha="center", va="center", color=SOFT)


@drawing
def softmax_drawing(logits: Sequence[float], label: int) -> Figure:
    """Logits, the probabilities that softmax makes of them, and the gradient of the loss."""
    z = np.asarray(logits, float)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    gradient = p - np.eye(len(z))[label]
    figure, grid = panels(3, "", height=1.6)
    loss = f"−log {p[label]:.2f} = {-math.log(p[label]):.2f}"
    headings = ("logits z", f"p = softmax(z); loss {loss}", "gradient p − [c = y]")
    for axes, values, heading in zip(grid, (z, p, gradient), headings):
        true, other = PALETTE["triplet"], PALETTE["cross-entropy"]
        colors = [true if c == label else other for c in range(len(z))]
        axes.bar(range(len(z)), values, color=colors, width=0.6)
        axes.axhline(0, color=SOFT, lw=0.8)
        axes.set(title=heading, xticks=range(len(z)))
        axes.set_xticklabels([f"c = {c}" if c != label else f"y = {c}" for c in range(len(z))])
        axes.grid(axis="x", visible=False)
    return figure


# What the test set shows --------------------------------------------------------------------------


def samples(data: DataSet, n: int = 10) -> None:
    """Two training images of each of the first n classes, and a table of the splits."""
    labels = data.train.labels.numpy()
    shown = [c for c in range(len(data.class_names)) if (labels == c).sum() > 1][:n]
    first = np.array([np.flatnonzero(labels == c)[i] for i in (0, 1) for c in shown])
    names = [data.class_names[c] for c in shown]
    show(
        figures.images(
            data.train.take(torch.from_numpy(first)).numpy(),
            names * 2,
            title=f"{len(data.train):,} training images of {len(data.class_names)} classes",
            columns=len(shown),
        ),
        f"Training images, two of each of {len(shown)} classes.",
        "A grid of small training images of " + ", ".join(names) + ".",
        key="samples",
    )
    rows = [
        (name, f"{len(part):,}", counts.min(), counts.max(), use)
        for name, part, use in (
            ("training", data.train, "learning"),
            ("validation", data.val, "watching, and every choice"),
            ("test", data.test, "the final figure, once"),
        )
        for counts in [np.bincount(part.labels, minlength=len(data.class_names))]
    ]
    columns = ["split", "images", "fewest in a class", "most in a class", "used for"]
    table(pd.DataFrame(rows, columns=columns), "The three splits.")


def class_accuracy(result: Result, names: Sequence[str]) -> None:
    """Top-1 accuracy of every class, with intervals over its test images."""
    shares = metrics.class_accuracy(result.labels, result.predictions[:, 0], len(names))
    counts = np.bincount(result.labels, minlength=len(names))
    ranges = [
        interval(share, int(n)) if n else (math.nan, math.nan) for share, n in zip(shares, counts)
    ]
    worst, best = int(np.nanargmin(shares)), int(np.nanargmax(shares))
    says = (
        f"from {percent(shares[worst], 0)} ({names[worst]}) to"
        f" {percent(shares[best], 0)} ({names[best]})"
    )
    per = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    show(
        figures.class_bars(
            names, shares, ranges, title=f"Class accuracy goes {says}", xlabel="top-1 accuracy"
        ),
        f"Top-1 accuracy of each class with Wilson's 95 % interval over its {per} test images;"
        f" dashed: the mean of the classes. One network, of seed {result.experiment.seed}.",
        f"A bar chart of the accuracy of {len(names)} classes, {says}.",
        key="classes",
    )


def mistakes(result: Result, data: DataSet, n: int = 12) -> None:
    """The misclassified test images that the network was surest of."""
    wrong = np.flatnonzero(result.predictions[:, 0] != result.labels)
    sure = result.arrays["confidence"]
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")[:n]]
    if not len(chosen):
        return
    true = [data.class_names[i] for i in result.labels[chosen]]
    taken = [data.class_names[i] for i in result.predictions[chosen, 0]]
    captions = [f"{t}\n→ {p} {c:.0%}" for t, p, c in zip(true, taken, sure[chosen])]
    pictures = data.test.take(torch.from_numpy(chosen)).numpy()
    title = f"The {len(chosen)} surest of {len(wrong):,} mistakes on {len(result.labels):,} images"
    show(
        figures.images(pictures, captions, title=title, columns=6),
        "Misclassified test images, the most confident first: class, prediction, confidence.",
        f"A grid of misclassified images. The first shows {true[0]}, taken for {taken[0]}.",
        key="mistakes",
    )


def embedding(result: Result, names: Sequence[str]) -> None:
    """The t-SNE map of the sampled test images."""
    points, labels = result.arrays["tsne"], result.labels[result.arrays["sample"]]
    times = f"{separation(result):.1f} times"
    title = f"Class means lie {times} as far apart as images from their class mean"
    show(
        figures.embedding(points, labels, names, title=title),
        f"t-SNE of the embeddings of {len(points):,} test images, by class. The title's number is"
        " measured in the embedding, before t-SNE.",
        f"A map of {len(points):,} points of {len(np.unique(labels))} classes. {title}.",
        key="tsne",
    )


def sampled(result: Result, name: str = "embeddings") -> tuple[Tensor, Tensor, np.ndarray]:
    """Embeddings [M, D] in float32, their labels [M], and their positions in the test set [M]."""
    points = torch.from_numpy(result.arrays[name].astype(np.float32))
    positions = result.arrays["sample"][: len(points)]
    return points, torch.from_numpy(result.labels[positions].astype(np.int64)), positions


def separation(result: Result) -> float:
    """How many times as far class means lie from each other as test images from their own."""
    return result.metrics["between_class"] / max(result.metrics["within_class"], 1e-12)
