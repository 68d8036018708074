"""What notebooks show of embeddings: mined triplets, distances, centers, the plane.

Everything is computed from what results keep: the embeddings of the first of the sampled test
images, as the loss sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from torch import Tensor

from dlops import plots
from dlops.data import DataSet
from dlops.losses import batch_hard, pairwise_distance, relations
from dlops.report import interval, percent, show, table
from dlops.store import Result


def sampled(result: Result, name: str = "embeddings") -> tuple[Tensor, Tensor, np.ndarray]:
    """Embeddings [M, D] in float32, their labels [M], and their positions in the test set [M]."""
    points = torch.from_numpy(result.arrays[name].astype(np.float32))
    positions = result.arrays["sample"][: len(points)]
    return points, torch.from_numpy(result.labels[positions].astype(np.int64)), positions


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
    violated = int((mined.d_ap > mined.d_an).sum())
    says = (
        f"For {violated:,} of {len(mined):,} test images the hardest negative is nearer than the"
        " hardest positive"
    )
    if label is None:
        worst = mined.groupby("label", sort=False).head(1).head(n)
    else:
        worst = mined[mined.label == label].head(n)
        wrong = (worst.d_ap > worst.d_an).sum()
        says = (
            f"{wrong} of the {len(worst)} hardest triplets of {data.class_names[label]} are wrong"
        )
    anchor, positive, negative = (
        data.test.take(torch.tensor(worst[part].to_numpy())).numpy()
        for part in ("anchor", "positive", "negative")
    )
    distances = worst.d_ap.to_numpy(), worst.d_an.to_numpy()
    anchors = ", ".join(data.class_names[i] for i in worst.label)
    show(
        plots.triplets(anchor, positive, negative, distances, title=says),
        "Triplets mined from the sampled test images, one a column: the anchor, the farthest image"
        " of its class and the nearest of any other, with their distances to the anchor.",
        f"Three rows of images: anchors, hardest positives, hardest negatives. {says}. The anchors"
        f" show {anchors}.",
    )


def activity(result: Result) -> None:
    """The share of active triplets and the mined distances in each epoch's batches."""
    frame, margin = result.history.set_index("epoch"), result.experiment.loss.margin
    first, last = frame.active.iloc[0], frame.active.iloc[-1]
    wanted = (
        "nearer" if margin == "soft" else f"nearer, or farther by less than the margin {margin:g},"
    )
    says = (
        f"{percent(first)} of the triplets are active in the first epoch,"
        f" {percent(last)} in the last"
    )
    show(
        plots.lines(
            {
                "Active triplets": {"active share": frame.active},
                "Mean mined distance": {
                    "hardest positive": frame.d_ap,
                    "hardest negative": frame.d_an,
                },
            },
            title=says,
            percent=["Active triplets"],
        ),
        f"Triplets mined during training. One is active if its negative is {wanted} than its"
        " positive. Distances are means over an epoch's batches.",
        f"Two panels of curves over {len(frame)} epochs. {says}; the mean distance to the hardest"
        f" positive ends at {frame.d_ap.iloc[-1]:.3g}, to the hardest negative at"
        f" {frame.d_an.iloc[-1]:.3g}.",
    )


def pairs(points: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Distances of all pairs of two images of the same class, and of different classes."""
    positive, negative = (mask.triu() for mask in relations(labels))
    distance = pairwise_distance(points)
    return distance[positive].numpy(), distance[negative].numpy()


def order(same: np.ndarray, different: np.ndarray) -> float:
    """How often a pair of the same class is nearer than one of different classes (ties: half)."""
    far = np.sort(different)
    below = np.searchsorted(far, same, "left") + np.searchsorted(far, same, "right")
    return float(1 - below.mean() / (2 * len(far)))


def ordered(result: Result, name: str = "embeddings") -> float:
    """`order` of the sampled test images."""
    points, labels, _ = sampled(result, name)
    return order(*pairs(points, labels))


def distances(result: Result) -> None:
    """Distributions of the distances between test images, before and after training."""
    panels = {}
    for heading, name in (("before training", "embeddings_before"), ("after", "embeddings")):
        points, labels, _ = sampled(result, name)
        panels[heading] = dict(zip(("same class", "different classes"), pairs(points, labels)))
    before, after = (order(*group.values()) for group in panels.values())
    says = (
        f"A pair of the same class is nearer than one of different classes in {percent(before)} of"
        f" cases before training, in {percent(after)} after"
    )
    show(
        plots.histogram(panels, title=says, xlabel="Distance between embeddings"),
        f"Distances of all pairs of {len(points):,} test images.",
        "Histograms of distances within a class and between classes, before and after training."
        f" {says}.",
    )


def center_distance(result: Result) -> None:
    """Mean distance of training images to their class's center, after each epoch."""
    if "center_distance" not in result.history:
        display(Markdown("With λ = 0 this is the cross-entropy run, which has no centers."))
        return
    frame = result.history.set_index("epoch")
    first, last = frame.center_distance.iloc[0], frame.center_distance.iloc[-1]
    verb = "falls" if last < first else "rises"
    says = f"The mean distance to the own center {verb} from {first:.3g} to {last:.3g}"
    show(
        plots.lines(
            {
                "Distance to the own center": {"training": frame.center_distance},
                "Joint loss": {"training": frame.train_loss, "validation": frame.val_loss},
            },
            title=says,
        ),
        "Distance of the sampled training images to the center of their class, and the joint loss,"
        " after each epoch.",
        f"Two panels of curves over {len(frame)} epochs. {says}; the joint loss on training images"
        f" ends at {frame.train_loss.iloc[-1]:.3g}.",
    )


def spread(result: Result) -> float:
    """How many times as far class means lie from each other as test images from their mean."""
    return result.metrics["between_class"] / max(result.metrics["within_class"], 1e-12)


def tried(results: list[Result]) -> None:
    """Every setting of the triplet loss that was tried: what was shown first comes first."""
    rows = []
    for result in results:
        s, m, last = result.config, result.metrics, result.history.iloc[-1]
        rows.append(
            {
                "mining": s["mining"],
                "margin": s["margin"],
                "unit sphere": "yes" if s["normalize"] else "no",
                "learning rate": s["lr"],
                "d_an − d_ap, relative": f"{(last.d_an - last.d_ap) / last.d_ap:+.1%}",
                "validation top-1": percent(m["val_top1"]),
                "validation top-5": percent(m["val_top5"]),
                "test top-5": percent(m["test_top5"]),
            }
        )
    best = max(results, key=lambda result: result.metrics["val_top1"])
    number = ["first", "second", "third", "fourth"][results.index(best)]
    table(pd.DataFrame(rows), f"This report's settings first. Best on validation is the {number}.")


def plane(results: Mapping[str, Result], names: Sequence[str]) -> None:
    """Test images in embeddings of two units, a panel for each result."""
    first = next(iter(results.values()))
    _, labels, _ = sampled(first)
    panels = {
        f"{name} ({percent(result.metrics['test_top1'])} top-1)": sampled(result)[0].numpy()
        for name, result in results.items()
    }
    ratios = [f"{spread(result):.2f} with {name}" for name, result in results.items()]
    says = f"Class means lie apart, relative to the spread around them: {', '.join(ratios)}"
    classes, images = first.experiment.num_classes, first.provenance["train_images"]
    show(
        plots.scatter(panels, labels.numpy(), names[:classes], title=says),
        f"{len(labels):,} test images in an embedding of two units, as in figure 2 of Wen et al."
        " (2016): coordinates are the embedding itself, nothing was projected. Trained on"
        f" {images:,} images of {classes} classes, {len(first.history)} epochs.",
        f"Scatter plots of {len(labels):,} points coloured by class. {says}.",
    )


def prototypes(result: Result, data: DataSet, label: int | None = None, n: int = 10) -> None:
    """The test images nearest to and farthest from the mean of their class."""
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
    ratio = far.d.mean() / max(near.d.mean(), 1e-12)
    says = f"The farthest lie {ratio:.1f} times as far from their class mean as the nearest"
    shown = pd.concat([near, far])
    captions = [
        f"{data.class_names[c]}\nd = {d:.2g}" for c, d in zip(shown.label, shown.d, strict=True)
    ]
    show(
        plots.image_grid(
            data.test.take(torch.tensor(shown["at"].to_numpy())).numpy(),
            captions,
            title=says,
            columns=len(near),
            row_names=["nearest", "farthest"],
        ),
        "Test images nearest to and farthest from their class mean, with their distance to it.",
        f"Two rows of images. {says}.",
    )


def triplet_findings(result: Result) -> list[str]:
    """What the triplets and distances of a triplet run say, a sentence each."""
    frame, m = result.history, result.metrics
    first, last = frame.active.iloc[0], frame.active.iloc[-1]
    said = [
        f"The share of active triplets went from {percent(first)} in the first epoch to"
        f" {percent(last)} in the last; only these have a gradient."
        if result.experiment.loss.margin != "soft"
        else f"The share of triplets in the wrong order went from {percent(first)} in the first"
        f" epoch to {percent(last)} in the last; with a soft margin all have a gradient."
    ]
    before, after = ordered(result, "embeddings_before"), ordered(result)
    said.append(
        f"Two test images of one class were nearer than two of different classes in"
        f" {percent(before)} of cases before training, and {percent(after)} after it."
    )
    gap = m["knn_top1"] - m["test_top1"]
    low, high = interval(m["test_top1"], m["test_images"])
    if low <= m["knn_top1"] <= high:
        said.append(
            f"The vote of 20 neighbours ({percent(m['knn_top1'])}) and the nearest class mean"
            f" ({percent(m['test_top1'])}) do not differ by more than the interval of the latter."
        )
    else:
        better, worse = ("neighbours", "class means") if gap > 0 else ("class means", "neighbours")
        said.append(
            f"In top-1 {better} beat {worse} by {100 * abs(gap):.1f} points"
            f" ({percent(m['knn_top1'])} for 20 neighbours, {percent(m['test_top1'])} for class"
            " means)."
        )
    return said


def center_findings(result: Result, planar: Mapping[str, Result]) -> list[str]:
    """What the centers and the plane of a center-loss run say, a sentence each."""
    said = []
    if "center_distance" in result.history:
        first, last = result.history.center_distance.iloc[[0, -1]]
        verb = "fell" if last < first else "rose"
        said.append(
            f"The mean distance of training images to their center {verb} from {first:.3g} after"
            f" the first epoch to {last:.3g} after the last."
        )
    said.append(
        f"On test images, class means lie {spread(result):.2f} times as far from each other as an"
        " image from its class mean."
    )
    if len(planar) == 2:
        (plain, without), (weighted, having) = planar.items()
        a, b = spread(without), spread(having)
        verb = "tightens" if b > a else "does not tighten"
        x, y = without.metrics["test_top1"], having.metrics["test_top1"]
        said.append(
            f"In two dimensions the center loss ({weighted}) {verb} the classes: that ratio is"
            f" {b:.2f}, against {a:.2f} with {plain}; top-1 is {percent(y)} against {percent(x)}."
        )
    return said
