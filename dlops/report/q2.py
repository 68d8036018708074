"""What only the notebook of Question 2 needs: its ablation, auto-encoders, published figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dlops import metrics
from dlops.experiment import Experiment
from dlops.report.output import table
from dlops.report.page import data_title, percent
from dlops.report.page import limitations as usual_limitations
from dlops.report.style import PALETTE, SOFT, direct_labels, drawing, panels, percent_axis
from dlops.series import PUBLISHED
from dlops.series.questions import STARTS
from dlops.settings import DATASETS
from dlops.store import Result

Runs = Mapping[tuple[str, float, int], Result]  # by start, share of the labels, and seed

NAMES = {
    "none": "random weights",
    "layerwise": "layer by layer",
    "end-to-end": "end to end",
    "original": "end to end, ReLU on the logits",
}
# The share of normally distributed weights that makes up half of the sum of their sizes.
NOISE_HALF = math.erfc(math.sqrt(math.log(2)))


def group(runs: Runs, start: str, share: float = 1.0) -> list[Result]:
    """The results of all seeds with one start and one share of the labels."""
    return [result for (s, f, _), result in runs.items() if (s, f) == (start, share)]


def structure(experiment: Experiment) -> str:
    """The hidden layers in words, e.g. "5 hidden layers (128-150-91-64-16)"."""
    sizes = experiment.model.sizes
    return f"{len(sizes)} hidden layers ({'-'.join(map(str, sizes))})"


def title(experiment: Experiment) -> str:
    """What the page is called, from what it really shows."""
    return (
        f"Question 2: {structure(experiment)} pretrained layer by layer, {data_title(experiment)}"
    )


def points(share: float) -> str:
    """A difference of shares in points, e.g. "+1.2", "−0.3" or "0.0"."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return text if text.strip("+−0.") else "0.0"


# The ablation -------------------------------------------------------------------------------------


def frame(runs: Runs) -> pd.DataFrame:
    """A row for each classifier of the three starts: start, labels (their share), seed, test_top1,
    and gain, its difference to the one of the same seed and labels with random weights."""
    top1 = {key: result.metrics["test_top1"] for key, result in runs.items() if key[0] in STARTS}
    rows = [
        (start, share, seed, value, value - top1["none", share, seed])
        for (start, share, seed), value in top1.items()
    ]
    found = pd.DataFrame(rows, columns=["start", "labels", "seed", "test_top1", "gain"])
    return found.sort_values(["labels", "seed"], ignore_index=True)


@drawing
def ablation(runs: pd.DataFrame, *, chance: float, title: str) -> Figure:
    """Test top-1 over the share of the labels for each start; and what a start gains over random
    weights, a dot a seed, with their mean and Student's 95 % interval. runs: as from `frame`."""
    figure, (left, right) = panels(2, title, height=2.6, columns=2)
    dots: dict[str, Any] = {"alpha": 0.45, "ms": 4, "mew": 0}
    for i, start in enumerate(STARTS):
        rows, color = runs[runs.start == start], PALETTE[start]
        left.plot(rows.labels, rows.test_top1, "o", color=color, **dots)
        mean = rows.groupby("labels").test_top1.mean()
        left.plot(mean.index, mean, color=color, label=NAMES[start])
        for share in rows.labels.unique() if start != "none" else ():
            gains = rows.gain[rows.labels == share]
            x = share * (0.94, 1.06)[i - 1]
            right.plot([x] * len(gains), gains, "o", color=color, **dots)
            right.plot(x, gains.mean(), "D", color=color, ms=5)
            right.vlines(x, *metrics.student_interval(gains)[1:], color=color, lw=2)
    left.axhline(chance, color=SOFT, lw=1, ls=":")
    left.annotate("chance", (1, chance), xytext=(0, 3), textcoords="offset points", size=7.5)
    left.set(title="test top-1 accuracy", ylim=(0, min(1.02, 1.15 * runs.test_top1.max())))
    right.axhline(0, color=PALETTE["none"], lw=1.7)
    right.set(title="gain over random weights, in points")
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}".replace("-", "−"))
    percent_axis(left)
    for axes in (left, right):
        shares = sorted(runs.labels.unique())
        axes.set(xscale="log", xlabel="share of the labels", xticks=shares, xlim=(0.085, 1.18))
        axes.minorticks_off()
        percent_axis(axes, "x")
    direct_labels(left)
    return figure


# The auto-encoders --------------------------------------------------------------------------------


def units(sources: Mapping[tuple[str, int], Result]) -> pd.DataFrame:
    """A row for each layer of each auto-encoder: start, seed, layer (X[0], ...), units, dead (the
    share of them that are 0 for every validation image)."""
    rows = [
        (start, seed, f"X[{k}]", size, dead)
        for (start, seed), result in sources.items()
        for k, (size, dead) in enumerate(
            zip(result.experiment.model.sizes, result.metrics["dead_units"])
        )
    ]
    return pd.DataFrame(rows, columns=["start", "seed", "layer", "units", "dead"])


def concentration(filters: NDArray[Any]) -> float:
    """The share of pixels that holds half of a typical filter's weight; NOISE_HALF for noise.

    filters: [N, ...], any real numbers.
    """
    sizes = np.sort(np.abs(filters.astype(np.float64)).reshape(len(filters), -1))[:, ::-1]
    reached = sizes.cumsum(axis=1) / sizes.sum(axis=1, keepdims=True)
    return float(np.median(((reached < 0.5).sum(axis=1) + 1) / sizes.shape[1]))


def layer_table(layerwise: Result, deep: Result) -> None:
    """A row a layer of the stack trained one by one, and one for the stack trained at once."""
    m, d = layerwise.metrics, deep.metrics
    before = layerwise.history[layerwise.history.epoch == 0].val_loss
    rows = [
        (f"X[{k}], {size} units", first, last, through, percent(dead, 0))
        for k, (size, first, last, through, dead) in enumerate(
            zip(
                layerwise.experiment.model.sizes,
                before,
                m["val_loss"],
                m["val_error"],
                m["dead_units"],
            )
        )
    ]
    whole = deep.history.val_loss.iloc[0], d["val_loss"][0], d["val_error"][0]
    rows.append(("end to end", *whole, percent(d["dead_units"][-1], 0)))
    columns = ["layer", "own task before", "and after", "pixels through all so far", "dead units"]
    table(
        pd.DataFrame(rows, columns=columns),
        "Mean squared errors on validation images: of each layer's own task, and of the pixels"
        " through all layers so far and back. Always showing the mean image would give"
        f" {m['mean_image_error']:.3g}. A dead unit is 0 for every validation image; end to end it"
        " is those of the code that are counted.",
        digits=3,
    )


# Beside others, and what is not known -------------------------------------------------------------


def beside_published(runs: Runs, seed: int) -> None:
    """The original report's figures, and ours in the same columns."""
    theirs = PUBLISHED["q2"]
    shares = list(theirs["class_accuracy"].values())
    found = [("the original report", "STL-10", theirs, "", shares)]
    for start in ("original", *reversed(STARTS)):
        r = runs[start, 1.0, seed]
        data = DATASETS[r.experiment.data.name].title
        classes = r.metrics["class_accuracy"]
        found.append((f"here, {NAMES[start]}", data, r.metrics, "test_", classes))
    rows = [
        (
            name,
            data,
            *(percent(m[key]) for key in (f"{test}top1", f"{test}top5", "train_top1")),
            f"{sum(share == 0 for share in classes)} of {len(classes)}",
        )
        for name, data, m, test, classes in found
    ]
    columns = ["classifier", "data", "test top-1", "top-5", "training top-1", "never right"]
    table(
        pd.DataFrame(rows, columns=columns),
        f"The published figures ({PUBLISHED['test_images']:,} test images of 10 classes) and ours"
        f" (seed {seed}). Never right: classes without a single test image right.",
    )


def published_notes() -> list[str]:
    """What is to be known of the published figures."""
    return list(PUBLISHED["q2"]["notes"])


def limitations(runs: Runs) -> list[str]:
    """What these results cannot say, from their settings; a sentence each."""
    headline = group(runs, "layerwise")
    e = headline[0].experiment
    said = usual_limitations(headline)
    if e.data.name != "stl10":
        said.append(
            f"{DATASETS[e.data.name].title} stands in for STL-10, so no figure here is comparable"
            " with a published one: other images, fewer pixels, and, of the classes, other ones."
        )
    if e.model.sizes[0] < 1024:
        said.append("The layers are narrower than the assigned ones, which the other presets have.")
    if len(headline) > 1:
        said.append(
            f"{len(headline)} seeds settle large differences only. A seed draws its own validation"
            " images, first weights and auto-encoders; the test images are the same."
        )
    return [
        *said,
        "Every start is fine-tuned with the same learning rate, epochs and batches. Where they were"
        " tried out at all, on validation images, it was with the layers pretrained one by one; the"
        " best rate of another start could lift it.",
        "Each layer gets as many epochs of pretraining as the end-to-end stack gets in all. Every"
        " weight takes as many steps, but an early layer has a harder task end to end.",
        "Only ReLU with He's initialisation is tried, where gradients reach all layers from the"
        " start. The pretraining of 2006 was an answer to sigmoids and small random weights.",
    ]


def provenance(results: Sequence[Result]) -> str:
    """What all runs of the page took, in a sentence."""
    seconds = sum(result.provenance["seconds"] for result in results)
    commits = sorted({result.provenance["commit"] for result in results})
    return f"The page stands on {len(results)} runs of {seconds:,.0f} s in all, of commit" + (
        f" {', '.join(commits)}."
    )
