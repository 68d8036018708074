"""What only the notebooks of Question 1 need: samples, classes, mistakes, triplets, prototypes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from dlops import metrics
from dlops.data import DataSet
from dlops.losses import batch_hard, pairwise_distance, relations
from dlops.report import figures
from dlops.report.output import show, table
from dlops.report.page import interval, percent
from dlops.report.style import PALETTE
from dlops.store import Result

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


# Triplets and centers -----------------------------------------------------------------------------

MININGS = {"hard": "batch hard", "semihard": "semi-hard", "annealed": "annealed"}
MINING_COLORS = (PALETTE["triplet"], "#c2588f", "#6a3d9a", "#3a9ad0", "#a39400", "#6b7078")


def by_mining(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The seeds of each mining by its name; where one was tried with two margins, with these."""
    losses = {result.experiment.loss for result in results}
    twice = {loss.mining for loss in losses if sum(loss.mining == x.mining for x in losses) > 1}
    groups: dict[str, list[Result]] = {}
    for result in results:
        loss = result.experiment.loss
        name = MININGS[loss.mining]
        name += f", margin {loss.margin}" if loss.mining in twice else ""
        groups.setdefault(name, []).append(result)
    return groups


def mining_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name of `by_mining`, the same on every page for the three minings."""
    known = list(MININGS.values())
    order = sorted(names, key=lambda name: (known + [name]).index(name))
    return {
        name: MINING_COLORS[known.index(name) if name in known else i % len(MINING_COLORS)]
        for i, name in enumerate(order)
    }


def hardest(result: Result) -> pd.DataFrame:
    """A row for each sampled test image that has a triplet: anchor, positive, negative (positions
    in the test set), d_ap, d_an, label; the most violated first."""
    points, labels, positions = sampled(result)
    distance = pairwise_distance(points)
    positive, negative = relations(labels)
    d_ap, d_an = batch_hard(distance, labels)
    frame = pd.DataFrame(
        {
            "anchor": positions,
            "positive": positions[distance.masked_fill(~positive, -torch.inf).argmax(dim=1)],
            "negative": positions[distance.masked_fill(~negative, torch.inf).argmin(dim=1)],
            "d_ap": d_ap.numpy(),
            "d_an": d_an.numpy(),
            "label": labels.numpy(),
        }
    )
    frame = frame[(positive.any(dim=1) & negative.any(dim=1)).numpy()]
    order = np.argsort((frame.d_an - frame.d_ap).to_numpy(), kind="stable")
    return frame.iloc[order].reset_index(drop=True)


def triplets(result: Result, data: DataSet, label: int | None = None, n: int = 8) -> None:
    """The n most violated triplets of the sampled test images: of one class, or one a class."""
    mined = hardest(result)
    chosen = mined.groupby("label", sort=False).head(1) if label is None else mined
    chosen = (chosen if label is None else chosen[chosen.label == label]).head(n)
    wrong = int((mined.d_ap > mined.d_an).sum())
    title = (
        f"For {wrong:,} of {len(mined):,} images some other class is nearer than the own farthest"
    )
    if label is not None:
        title = f"The hardest triplets of {data.class_names[label]}"
    roles = ("anchor", "positive", "negative")
    pictures = [data.test.take(torch.tensor(chosen[role].to_numpy())).numpy() for role in roles]
    names = [data.class_names[i] for i in chosen.label]
    others = [data.class_names[i] for i in result.labels[chosen.negative]]
    captions = [
        *names,
        *(f"d = {d:.2f}" for d in chosen.d_ap),
        *(f"{name}\nd = {d:.2f}" for name, d in zip(others, chosen.d_an)),
    ]
    show(
        figures.images(
            np.concatenate(pictures),
            captions,
            title=title,
            columns=len(chosen),
            row_names=["anchor", "hardest positive", "hardest negative"],
        ),
        "Triplets mined from the sampled test images, one a column: the anchor, the farthest image"
        " of its class and the nearest of any other, with their distances to the anchor.",
        f"Three rows of images. {title}. The anchors show {', '.join(names)}.",
        key="triplets" if label is None else "",
    )


def pairs(result: Result, name: str = "embeddings") -> pd.DataFrame:
    """The distances of all pairs of sampled test images: value, and kind (same class, or not)."""
    points, labels, _ = sampled(result, name)
    distance = pairwise_distance(points)
    frames = [
        pd.DataFrame({"value": distance[mask.triu()].numpy(), "kind": kind})
        for mask, kind in zip(relations(labels), ("same class", "different classes"))
    ]
    return pd.concat(frames, ignore_index=True)


def in_order(frame: pd.DataFrame) -> float:
    """How often a pair of one class is nearer than one of two classes, ties counted half: the
    Mann-Whitney statistic of `pairs`, as a share."""
    same = frame.value[frame.kind == "same class"]
    different = frame.value[frame.kind != "same class"]
    return float(mannwhitneyu(different, same).statistic / (len(same) * len(different)))


def prototypes(result: Result, data: DataSet, label: int | None = None, n: int = 10) -> None:
    """The sampled test images nearest to and farthest from the mean of their class."""
    points, labels, positions = sampled(result)
    means = torch.stack([points[labels == c].mean(dim=0) for c in labels])
    distance = (points - means).norm(dim=1).numpy()
    ranked = pd.DataFrame({"at": positions, "label": labels.numpy(), "d": distance})
    ranked = ranked.sort_values("d", kind="stable")
    if label is None:
        groups = ranked.groupby("label").filter(lambda group: len(group) > 1).groupby("label")
        near, far = groups.head(1).sort_values("label")[:n], groups.tail(1).sort_values("label")[:n]
    else:
        ranked = ranked[ranked.label == label]
        near, far = ranked[:n], ranked[::-1][: len(ranked[:n])]
    times = far.d.mean() / max(near.d.mean(), 1e-12)
    title = f"The farthest lie {times:.1f} times as far from their class mean as the nearest"
    shown = pd.concat([near, far])
    captions = [f"{data.class_names[c]}\nd = {d:.2g}" for c, d in zip(shown.label, shown.d)]
    show(
        figures.images(
            data.test.take(torch.tensor(shown["at"].to_numpy())).numpy(),
            captions,
            title=title,
            columns=len(near),
            row_names=["nearest", "farthest"],
        ),
        "Test images nearest to and farthest from their class mean, with their distance to it.",
        f"Two rows of images. {title}.",
        key="prototypes" if label is None else "",
    )
