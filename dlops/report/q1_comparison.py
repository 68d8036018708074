"""What only the comparison of Question 1's losses needs: the other optimizer, and three figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from dlops.data import DataSet
from dlops.report import figures, style
from dlops.report.output import show
from dlops.report.style import drawing, panels, short
from dlops.series.questions import OPTIMIZER_SETTINGS, by_loss
from dlops.store import Result, Store


def other_optimizer(preset: str, **parameters: Any) -> dict[str, list[Result]]:
    """The losses with the other of Adam and SGD, as far as the store has them: nothing is trained.

    None beside a setting of the optimizer's that was asked for, which is not the other's.
    """
    mine = next(iter(by_loss(preset, **parameters).values()))[0].optimizer.name
    other = {"adam": "sgd", "sgd": "adam"}.get(mine)
    if other is None or parameters.keys() & OPTIMIZER_SETTINGS - {"optimizer"}:
        return {}
    store, wanted = Store(), by_loss(preset, **{**parameters, "optimizer": other})
    found = {name: [store.get(e) for e in group] for name, group in wanted.items()}
    kept = {name: [result for result in group if result] for name, group in found.items()}
    return {name: group for name, group in kept.items() if group}


@drawing
def class_gains(gains: Mapping[str, pd.DataFrame], *, title: str) -> Figure:
    """Differences by class, largest first; of more than 40 classes the 15 at either end.

    gains: for each loss a frame of name, gain (a share) and certain (drawn filled).
    """
    ends = {}
    for loss, frame in gains.items():
        ranked = frame.sort_values("gain", ascending=False, kind="stable", ignore_index=True)
        ends[loss] = ranked if len(ranked) <= 40 else pd.concat([ranked[:15], ranked[-15:]])
    rows = max(map(len, ends.values()))
    figure, grid = panels(len(ends), title, height=0.7 + 0.17 * rows, columns=2, sharex=True)
    for axes, (loss, frame) in zip(grid, ends.items()):
        color = style.PALETTE[loss.split()[0]]
        y, x = np.arange(len(frame)), 100 * frame.gain.to_numpy()
        axes.hlines(y, np.minimum(x, 0), np.maximum(x, 0), color=color, lw=1.2, alpha=0.5)
        for sure in (True, False):
            mine = (frame.certain == sure).to_numpy()
            axes.plot(x[mine], y[mine], "o", color=color, mfc=color if sure else style.PAPER, ms=5)
        axes.axvline(0, color=style.SOFT, lw=1)
        axes.set_yticks(y, [short(name, 18) for name in frame.name], size=7.5)
        axes.set(title=loss, xlabel="points of top-1", ylim=(len(frame) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    return figure


@drawing
def maps(
    results: Mapping[str, Result], names: Sequence[str], marked: Sequence[int], *, title: str
) -> Figure:
    """The t-SNE maps of networks side by side, with the marked classes in colour.

    Their names stand in the maps if there are no others, else below them.
    """
    figure, grid = panels(len(results), title, height=2.5)
    for axes, (name, result) in zip(grid, results.items()):
        points, labels = result.arrays["tsne"], result.labels[result.arrays["sample"]]
        if len(marked) == len(names):
            figures.class_points(axes, points, labels, names)
        else:
            axes.scatter(points[:, 0], points[:, 1], s=2, color=style.FAINT, lw=0)
            for c, color, marker in zip(marked, style.CLASSES, style.MARKERS):
                x, y = points[labels == c].T
                axes.scatter(x, y, s=9, lw=0, c=color, marker=marker, label=short(names[c], 18))
        axes.set(title=name, xticks=[], yticks=[])
        axes.margins(0.12)
        axes.spines[:].set_visible(False)
    if len(marked) < len(names):
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2 if style.is_narrow() else 5)
    return figure


def confused(results: Mapping[str, Result], data: DataSet, a: int, b: int, key: str = "") -> None:
    """The test images of classes a and b that one or both of two networks take for the other."""
    names, labels = data.class_names, next(iter(results.values())).labels
    guesses = {name: result.predictions[:, 0] for name, result in results.items()}
    taken = {
        name: np.isin(labels, (a, b)) & np.isin(guess, (a, b)) & (guess != labels)
        for name, guess in guesses.items()
    }
    found = np.flatnonzero(np.any(list(taken.values()), axis=0))
    by = [next(n for n in taken if taken[n][i]) for i in found]
    if len(taken) > 1:
        both = np.all(list(taken.values()), axis=0)
        by = ["both" if both[i] else f"{name} alone" for i, name in zip(found, by)]
    counts = ", ".join(f"{by.count(who)} by {who}" for who in dict.fromkeys(sorted(by)))
    title = f"{names[a]} and {names[b]}, taken for each other: {counts or 'none'}"
    if not len(found):
        print(title)
        return
    pictures = data.test.take(torch.from_numpy(found[:12])).numpy()
    captions = [f"{names[labels[i]]}\n{who}" for i, who in zip(found[:12], by)]
    show(
        figures.images(pictures, captions, title=title, columns=6),
        "Test images of two classes that are taken for the other: their class, and by whom.",
        f"A grid of test images. {title}.",
        key=key,
    )
