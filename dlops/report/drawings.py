"""Drawings of what is taught: ResNet18 and its block, and what each loss does.

The names in them are those of the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from dlops.report.style import INK, PALETTE, PAPER, SOFT, drawing, is_narrow, panels, width


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
def resnet18(network: nn.Module, image: Sequence[int]) -> Figure:
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
        text = f"{name}\n" + "×".join(map(str, [n for n in shape if n > 1] or shape))
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
def softmax(logits: Sequence[float], label: int) -> Figure:
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


@drawing
def triplet() -> Figure:
    """An anchor, its positive beyond its negative, and how the loss moves them."""
    figure, grid = panels(2, "", height=2.1, columns=2)
    colors = {"a": INK, "p": PALETTE["center"], "n": PALETTE["triplet"]}
    spots = (
        ("before: d_ap − d_an + margin > 0", {"a": (0, 0), "p": (1.5, 0.75), "n": (1.1, -0.5)}),
        ("after: loss 0", {"a": (0, 0), "p": (0.75, 0.4), "n": (1.75, -0.75)}),
    )
    for axes, (heading, at) in zip(grid, spots):
        for name in "pn":
            axes.plot(*zip(at["a"], at[name]), color=colors[name], lw=1.3, ls="--", zorder=1)
            middle = (at[name][0] / 2, at[name][1] / 2 + (0.2 if name == "p" else -0.22))
            axes.text(*middle, f"d_a{name}", color=colors[name], size=8.5, ha="center", va="center")
        for name, words in (("a", "anchor"), ("p", "positive"), ("n", "negative")):
            axes.plot(*at[name], "o", ms=11, color=colors[name])
            axes.annotate(
                words, at[name], xytext=(0, 9), textcoords="offset points", ha="center", size=8
            )
        reach = math.hypot(*at["p"])
        angles = np.linspace(-0.75, 0.75, 50)
        for radius, style in ((reach, "-"), (reach + 0.35, ":")):
            axes.plot(radius * np.cos(angles), radius * np.sin(angles), style, color=SOFT, lw=0.9)
        axes.set(title=heading, xlim=(-0.4, 2.5), ylim=(-1.2, 1.3), xticks=[], yticks=[])
        axes.set_aspect("equal")
        axes.axis("off")
        axes.set_title(heading)
    return figure


@drawing
def center() -> Figure:
    """Samples of two classes pulled to the centers of their own, which follow them."""
    figure, (axes,) = panels(1, "", height=2.2)
    angles = np.linspace(0.2, 2 * math.pi + 0.2, 9)[:-1]
    for k, color in enumerate((PALETTE["cross-entropy"], PALETTE["triplet"])):
        x, y = 2.2 + 4 * k, 0.0
        for i, angle in enumerate(angles):
            far = 0.75 + 0.25 * ((i * 3 + k) % 4) / 3
            dx, dy = 1.5 * far * math.cos(angle), far * math.sin(angle)
            axes.plot(x + dx, y + dy, "o", color=color, ms=5.5, alpha=0.7)
            _arrow(axes, (x + 0.9 * dx, y + 0.9 * dy), (x + 0.5 * dx, y + 0.5 * dy), color=color)
        axes.plot(x, y, "X", color=color, ms=11, mec=PAPER)
        axes.text(x, y - 0.32, f"center {k + 1}", ha="center", size=7.5)
    axes.plot([4.2, 4.2], [-1.2, 1.2], "--", color=SOFT, lw=1)
    words = "cross-entropy keeps the classes apart"
    axes.text(4.2, 1.27, words, size=7.5, color=SOFT, ha="center")
    axes.set(xlim=(0, 8.4), ylim=(-1.3, 1.45))
    axes.axis("off")
    return figure


@drawing
def greedy(inputs: int, sizes: Sequence[int], classes: int) -> Figure:
    """The stacked classifier with the names of its code, and one step of its pretraining."""
    parts = [("pixels", inputs), *((f"encoder[{k}]", n) for k, n in enumerate(sizes))]
    parts.append(("head", classes))
    columns = math.ceil(len(parts) / (2 if is_narrow() else 1))
    rows = math.ceil(len(parts) / columns)
    figure, axes = _canvas("", 1.85 + 0.75 * rows)
    step, color = width() / columns, PALETTE["layerwise"]
    for i, (name, units) in enumerate(parts):
        x, y = (i % columns + 0.5) * step, 2.2 + 0.75 * (rows - 1 - i // columns)
        edge = color if name.startswith("encoder") else SOFT
        _box(axes, x, y, f"{name}\n{units:,}", edge, (step * 0.8, 0.5))
        if i % columns:
            _arrow(axes, (x - step * 0.6, y), (x - step * 0.42, y))
    axes.text(0.02, 1.72, "one greedy step, for layer k", size=8, color=SOFT, va="top")
    names = ["layers\n0 … k−1", "encoder[k]", "codes", "decoders[k]", "restored"]
    step, y = width() / len(names), 1.05
    for i, name in enumerate(names):
        x = (i + 0.5) * step
        edge = color if name in ("encoder[k]", "decoders[k]") else SOFT
        if name in ("codes", "restored"):
            axes.text(x, y, name, ha="center", va="center", size=8)
        else:
            _box(axes, x, y, name, edge, (step * 0.76, 0.44))
        if i:
            _arrow(axes, (x - step * 0.61, y), (x - step * 0.4, y))
    axes.text(0.5 * step, y - 0.34, "fixed", size=7.5, ha="center", va="center", color=SOFT)
    from_, to = 1.0 * step, 4.5 * step
    axes.plot([from_, from_, to, to], [y - 0.06, 0.3, 0.3, y - 0.14], "--", color=SOFT, lw=1.1)
    words = "mse_loss: what comes back against what came in"
    axes.text((from_ + to) / 2, 0.14, words, size=7.5, ha="center", va="center", color=SOFT)
    return figure
