"""What Question 2's notebook shows: auto-encoders, codes of each layer, and the ablation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from dlops import plots
from dlops.experiment import Experiment
from dlops.layerwise import FIRST, HEADLINE, OTHERS
from dlops.metrics import student_interval
from dlops.report import accuracy, bullets, percent, show, table
from dlops.report import limitations as usual_limitations
from dlops.series import PUBLISHED
from dlops.series.questions import LABELS, STARTS
from dlops.settings import DATASETS, describe
from dlops.store import Result

# The share of normally distributed weights that makes up half of the sum of their sizes.
RANDOM_HALF = math.erfc(math.sqrt(math.log(2)))

Runs = Mapping[tuple[str, float, int], Result]  # by start, share of the labels, and seed

NAMES = {
    "none": "random initialisation",
    "layerwise": "layer by layer",
    "end-to-end": "end to end",
    "original": "end to end, ReLU on the logits",
}


def fill(place: Any, runs: Runs) -> None:
    """The answer in one paragraph, from the numbers."""
    result = next(iter(runs.values()))
    e, m = result.experiment, result.metrics
    place.update(
        Markdown(
            f"A stack of {len(e.model.sizes)} hidden layers, pretrained layer by layer and"
            f" fine-tuned for {len(result.history)} epochs on {DATASETS[e.data.name].title}"
            f" ({e.num_classes} classes), reaches a **top-1 accuracy of"
            f" {accuracy(result, 'test_top1')}** on {m['test_images']:,} test images, and a top-5"
            f" accuracy of {accuracy(result)}. By chance they would be"
            f" {percent(1 / e.num_classes)} and {percent(min(1, 5 / e.num_classes))}."
            f" {verdict(runs, 'layerwise', 'none')}"
        )
    )


def settings(pretraining: Experiment, classifier: Experiment, preset: str) -> None:
    """The resolved settings of both, but for those that are off, as one table."""
    off = (None, False, 0, "none", ())
    both = [pretraining.settings, classifier.settings]
    rows: list[tuple[str, ...]] = [("preset", preset, preset, "where these numbers come from")]
    for name in dict.fromkeys(name for flat in both for name in flat):
        values = [flat.get(name) for flat in both]
        if name == "seed" or not all(any(v is x or v == x for x in off) for v in values):
            rows.append((name, *(_cell(value) for value in values), describe(name)))
    table(
        pd.DataFrame(rows, columns=["setting", "auto-encoder", "classifier", "meaning"]),
        "The settings; what is not listed is off.",
    )


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None or value is False else str(value)


# Pretraining


def layer_losses(encoder: Result) -> None:
    """The reconstruction loss of each layer, before training and after each epoch."""
    frame, sizes = encoder.history, encoder.experiment.model.sizes
    panels = {}
    for layer, units in enumerate(sizes, 1):
        rows = frame[frame.layer == layer].set_index("epoch")
        curves = {"training": rows.train_loss, "validation": rows.val_loss}
        panels[f"Layer {layer}: {units} units"] = curves
    start = frame[frame.epoch == 0].set_index("layer").val_loss
    end = frame[frame.epoch == frame.epoch.max()].set_index("layer").val_loss
    ratio = end / start
    risen = ", ".join(str(layer) for layer in ratio.index[ratio >= 1])
    title = (
        f"Validation loss falls at every layer, to {100 * ratio.min():.2g} % of its start in layer"
        f" {ratio.idxmin()} and to {100 * ratio.max():.2g} % in layer {ratio.idxmax()}"
    )
    if risen:
        title = f"Validation loss does not fall in layer {risen}"
    show(
        plots.lines(panels, title=title, log=list(panels)),
        "Mean squared error of each layer's auto-encoder on the codes below it; epoch 0 is before"
        " any training. Logarithmic axes.",
        f"{len(panels)} panels, one a layer, each with the training and the validation loss"
        f" over the epochs. {title}.",
    )


def layer_table(encoder: Result, deep: Result) -> None:
    """A row a layer, and one for the auto-encoder that was trained end to end."""
    m, e = encoder.metrics, encoder.experiment
    inputs = [encoder.arrays["pictures"][0].size, *e.model.sizes]
    first = encoder.history[encoder.history.epoch == 0]
    rows: list[tuple[Any, ...]] = [
        (str(k + 1), inputs[k], inputs[k + 1], before, train, val, through, percent(dead, 0))
        for k, (before, train, val, through, dead) in enumerate(
            zip(first.val_loss, m["train_loss"], m["val_loss"], m["val_error"], m["dead_units"])
        )
    ]
    d = deep.metrics
    start = deep.history.val_loss.iloc[0]
    dead = percent(float(np.mean(d["dead_units"])), 0)
    ends = d["train_loss"][0], d["val_loss"][0], d["val_error"][0]
    rows.append(("all at once", inputs[0], inputs[-1], start, *ends, dead))
    columns = ["layer", "inputs", "units", "before", "training", "validation"]
    columns += ["pixels through all so far", "dead units"]
    table(
        pd.DataFrame(rows, columns=columns),
        "Mean squared errors: of the layer's own task before and after its training, and of the"
        " validation pixels through all layers up to it and back. Always showing the mean image"
        f" would give {m['mean_image_error']:.3g}. Dead units are 0 for every validation image.",
        digits=3,
    )


def reconstructions(encoder: Result, deep: Result) -> None:
    """Test images, and what comes back through 1, 2, ... layers, and end to end."""
    pictures, back = encoder.arrays["pictures"], encoder.arrays["reconstructions"]
    rows = [pictures, *back, *deep.arrays["reconstructions"]]
    names = ["test image", *(f"{k} layer{'s' * (k > 1)}" for k in encoder.metrics["depths"])]
    shares = [x / encoder.metrics["mean_image_error"] for x in encoder.metrics["val_error"]]
    title = (
        f"The error, relative to the mean image's, is {percent(shares[0], 0)} through one layer and"
        f" {percent(shares[-1], 0)} through all {len(shares)}"
    )
    show(
        plots.image_grid(
            np.concatenate(rows),
            title=title,
            columns=len(pictures),
            row_names=[*names, "end to end"],
        ),
        "Test images, one of each class, and their reconstructions through the first layers and"
        " back; last those of the auto-encoder that was trained end to end.",
        f"A grid of {len(rows)} rows of {len(pictures)} images: originals, then reconstructions"
        f" through 1 to {len(shares)} layers, then end to end. {title}.",
    )


def filters(encoder: Result) -> None:
    """The strongest filters of the first layer."""
    weights = encoder.arrays["filters"].astype(np.float64)
    flat = np.abs(weights).reshape(len(weights), -1)
    flat = np.sort(flat / flat.sum(1, keepdims=True), axis=1)[:, ::-1]
    half = float(np.median((flat.cumsum(1) < 0.5).sum(1) + 1) / flat.shape[1])
    title = (
        f"Half of a typical first-layer filter's weight lies on {percent(half, 0)} of the pixels"
    )
    show(
        plots.filters(weights, title=title),
        f"The {len(weights)} first-layer filters of largest norm: light pixels excite the unit,"
        " dark ones inhibit it, mid-grey is zero. Random weights would put half on"
        f" {percent(RANDOM_HALF, 0)}.",
        f"A grid of {len(weights)} small grey images, one a filter. {title}.",
    )


# The stack


def class_table(result: Result, names: Sequence[str]) -> None:
    """Accuracy of each class, and how often it is predicted, as a table."""
    counts = np.bincount(result.labels, minlength=len(names))
    guesses = np.bincount(result.predictions[:, 0], minlength=len(names))
    rows = [
        (name, int(count), percent(share or 0.0), int(guess))
        for name, share, count, guess in zip(
            names, result.metrics["class_accuracy"], counts, guesses
        )
    ]
    columns = ["class", "test images", "top-1 accuracy", "times predicted"]
    table(pd.DataFrame(rows, columns=columns), "Accuracy of each class on the test set.")


def layer_map(result: Result, names: Sequence[str], layer: int | None = None) -> None:
    """t-SNE of a hidden layer's codes after its activation: X[3], or another (from 0)."""
    last = len(result.experiment.model.sizes) - 1
    layer = min(HEADLINE, last) if layer is None else layer
    points, labels = result.arrays[f"layer_tsne_{layer}"], result.arrays[f"layer_labels_{layer}"]
    within, between = result.arrays["layer_spread"][layer]
    sizes = result.experiment.model.sizes
    most = FIRST if layer == min(HEADLINE, last) else OTHERS
    fewest = int(np.bincount(labels, minlength=len(names)).min())
    shown = f"the first {most} test images of each class"
    if fewest < most:
        shown += f" (all {fewest} or more, where a class has fewer)"
    title = (
        f"In layer X[{layer}], class means lie {between / max(within, 1e-12):.2f} times as far"
        " apart as images from their class mean"
    )
    show(
        plots.tsne(points, labels, names, title=title),
        f"t-SNE of the {sizes[layer]} codes of hidden layer X[{layer}] after its"
        f" {NONLINEAR[result.experiment.model.activation]}: {shown}, {len(points):,} in all.",
        f"A map of {len(points):,} points in {len(np.unique(labels))} colours. {title}.",
    )


NONLINEAR = {"relu": "ReLU", "tanh": "tanh", "gelu": "GELU"}


def layer_spread(result: Result) -> None:
    """How well each layer separates the classes, as a table."""
    spread = result.arrays["layer_spread"].astype(float)
    sizes = result.experiment.model.sizes
    rows = [
        (f"X[{k}]", sizes[k], within, between, between / max(within, 1e-12))
        for k, (within, between) in enumerate(spread)
    ]
    columns = ["layer", "units", "to the class mean", "between class means", "ratio"]
    table(
        pd.DataFrame(rows, columns=columns),
        "Mean distances of test images' codes to their class mean, and between class means.",
        digits=3,
    )


# The ablation


def scores(runs: Runs, start: str, share: float = 1.0, name: str = "test_top1") -> pd.Series:
    """A metric of the runs of all seeds, by seed."""
    found = {seed: r.metrics[name] for (s, f, seed), r in runs.items() if (s, f) == (start, share)}
    return pd.Series(found).sort_index()


def points(value: float) -> str:
    """0.0123 -> "+1.2"."""
    return f"{100 * value:+.1f}".replace("-", "−")


def gain(runs: Runs, one: str, other: str, share: float) -> tuple[float, float, float]:
    """Mean difference of test top-1 over the seeds, and its 95 % t-interval."""
    return student_interval(scores(runs, one, share) - scores(runs, other, share))


def comparison(runs: Runs, one: str, other: str) -> list[str]:
    """What starting from `one` instead of `other` buys, a sentence for each share of labels."""
    said: list[str] = []
    images = next(iter(runs.values())).provenance["train_images"]
    for share in LABELS:
        value, low, high = gain(runs, one, other, share)
        n = len(scores(runs, one, share))
        labels = "all" if share == 1 else percent(share, 0)
        about = f"With {labels} of the labels ({share * images:,.0f})"
        start, instead = _phrase(one), _phrase(other)
        if n < 2:
            said.append(
                f"{about}, {start} differs from {instead} by {points(value)} points of top-1; one"
                " seed cannot tell whether that is chance."
            )
            continue
        interval = f"95 % interval {points(low)} to {points(high)}, {n} seeds"
        if low > 0 or high < 0:
            verb = "gains" if value > 0 else "loses"
            said.append(
                f"{about}, {start} {verb} {abs(100 * value):.1f} points of top-1 against {instead}"
                f" ({interval})."
            )
        else:
            said.append(
                f"{about}, {n} seeds show no certain difference between {start} and {instead}:"
                f" {points(value)} points ({interval})."
            )
    return said


def verdict(runs: Runs, one: str, other: str) -> str:
    """What starting from `one` instead of `other` buys, in one sentence."""
    gains = {share: gain(runs, one, other, share) for share in LABELS}
    about = f"Against {_phrase(other)}, {_phrase(one)}"
    if len(scores(runs, one)) < 2:
        changes = _and([points(value) for value, _, _ in gains.values()])
        shares = _and([percent(share, 0) for share in gains])
        return (
            f"{about} changes top-1 by {changes} points with {shares} of the labels; one seed"
            " cannot tell whether that is chance."
        )
    sure = [
        f"{'gains' if low > 0 else 'loses'} {abs(100 * value):.1f} points of top-1 with"
        f" {percent(share, 0)} of the labels"
        for share, (value, low, high) in gains.items()
        if low > 0 or high < 0
    ]
    unsure = [percent(share, 0) for share, (_, low, high) in gains.items() if low <= 0 <= high]
    if unsure:
        sure.append(f"makes no certain difference with {_and(unsure)} of the labels")
    return f"{about} {_and(sure)} ({_seeds(len(scores(runs, one)))})."


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _phrase(start: str) -> str:
    return NAMES[start] if start == "none" else f"pretraining {NAMES[start]}"


def ablation(runs: Runs) -> None:
    """Test top-1 over the share of the labels for each start: a figure and a table."""
    panel, rows = {}, []
    for start in STARTS:
        by_share = {100 * share: scores(runs, start, share) for share in LABELS}
        panel[NAMES[start]] = pd.DataFrame(by_share).T
        cells = (_mean(values) for values in by_share.values())
        rows.append((NAMES[start], *cells))
    fewest, n = min(LABELS), len(scores(runs, "none"))
    value, least = gain(runs, "layerwise", "none", 1.0)[0], gain(runs, "layerwise", "none", fewest)
    title = (
        f"Pretraining layer by layer changes top-1 by {points(least[0])} points with"
        f" {percent(fewest, 0)} of the labels, by {points(value)} with all"
    )
    heading = "Test top-1 accuracy"
    figure = plots.lines(
        {heading: panel}, title=title, xlabel="Share of the labels (%)", percent=[heading]
    )
    band = " Lines are means, bands reach from the lowest to the highest." if n > 1 else ""
    show(
        figure,
        f"Test top-1 accuracy by start and share of the labels, {_seeds(n)}.{band}",
        f"Three curves over {len(LABELS)} shares of the labels. {title}.",
    )
    batches = {share: runs["none", share, seed] for start, share, seed in runs if start == "none"}
    sizes = {share: r.experiment.schedule.batch_size for share, r in batches.items()}
    columns = [f"{percent(share, 0)} of labels, batches of {sizes[share]}" for share in LABELS]
    table(
        pd.DataFrame(rows, columns=["start", *columns]),
        f"Test top-1 accuracy in per cent, {_seeds(n)}: mean ± standard deviation. The three"
        " starts get the same epochs, batches and learning rate.",
    )


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def _mean(values: pd.Series) -> str:
    spread = f" ± {100 * values.std():.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{spread}"


# The original's mistake, and its figures


def never_right(runs: Runs, start: str) -> list[int]:
    """How many classes have no test image right, for each seed."""
    found = scores(runs, start, name="class_accuracy")
    return [sum(share == 0 for share in shares) for shares in found]


def relu_logits(runs: Runs, names: Sequence[str]) -> None:
    """The classes' accuracy with and without a ReLU on the logits, as a table."""
    seed = next(iter(runs))[2]
    mistaken, right = runs["original", 1.0, seed], runs["end-to-end", 1.0, seed]
    guesses = np.bincount(mistaken.predictions[:, 0], minlength=len(names))
    rows = [
        (name, percent(a), int(guess), percent(b))
        for name, a, guess, b in zip(
            names, mistaken.metrics["class_accuracy"], guesses, right.metrics["class_accuracy"]
        )
    ]
    every = [r.metrics["test_top1"] for r in (mistaken, right)]
    rows.append(("all", percent(every[0]), int(guesses.sum()), percent(every[1])))
    columns = ["class", "with the ReLU", "times predicted", "without"]
    table(pd.DataFrame(rows, columns=columns), f"Top-1 accuracy of each class, seed {seed}.")


def relu_findings(runs: Runs, names: Sequence[str]) -> list[str]:
    """What a ReLU on the logits does, from the numbers."""
    seed = next(iter(runs))[2]
    predicted = np.bincount(runs["original", 1.0, seed].predictions[:, 0], minlength=len(names))
    never = [name for name, count in zip(names, predicted) if count == 0]
    missed = f"never predicts {_and(never)}" if never else "predicts every class at least once"
    dead, usual = never_right(runs, "original"), never_right(runs, "end-to-end")
    value, low, high = gain(runs, "original", "end-to-end", 1.0)
    interval = f" (95 % interval {points(low)} to {points(high)})" if len(dead) > 1 else ""
    return [
        f"With the ReLU on its logits, the stack of seed {seed} {missed}.",
        f"Classes without a single test image right, by seed: {', '.join(map(str, dead))} with the"
        f" ReLU, {', '.join(map(str, usual))} without it.",
        f"The ReLU changes top-1 by {points(value)} points{interval}.",
    ]


def beside_published(runs: Runs) -> None:
    """The original report's figures, and ours in the same columns."""
    seed = next(iter(runs))[2]
    theirs = PUBLISHED["q2"]
    zero = sum(share == 0 for share in PUBLISHED["q2"]["class_accuracy"].values())
    rows = [
        (
            "the original report",
            "STL-10",
            *(percent(theirs[name]) for name in ("top1", "top5", "train_top1")),
            f"{zero} of {len(PUBLISHED['q2']['class_accuracy'])}",
        )
    ]
    for start in ("original", "end-to-end", "layerwise", "none"):
        r = runs[start, 1.0, seed]
        m = r.metrics
        zero = sum(share == 0 for share in m["class_accuracy"])
        shares = (percent(m[name]) for name in ("test_top1", "test_top5", "train_top1"))
        name = f"here, {NAMES[start]}"
        rows.append(
            (
                name,
                DATASETS[r.experiment.data.name].title,
                *shares,
                f"{zero} of {len(m['class_accuracy'])}",
            )
        )
    columns = ["classifier", "data", "test top-1", "test top-5", "training top-1"]
    table(
        pd.DataFrame(rows, columns=[*columns, "classes never right"]),
        f"Published figures ({PUBLISHED['test_images']:,} test images) and ours, seed {seed}.",
    )
    bullets([*PUBLISHED["q2"]["notes"], _comparable(runs)])


def _comparable(runs: Runs) -> str:
    result = runs["original", 1.0, next(iter(runs))[2]]
    e, theirs = result.experiment, PUBLISHED["q2"]["top1"]
    if e.data.name != "stl10":
        return (
            f"Our figures are on {DATASETS[e.data.name].title}, not on STL-10: beside the published"
            " ones they show the same mistake, not a better or worse result."
        )
    ours = result.metrics["test_top1"]
    return (
        f"Trained the original's way for {e.schedule.epochs} epochs, top-1 here is"
        f" {accuracy(result, 'test_top1')}, {points(ours - theirs)} points from the published one."
    )


def findings(runs: Runs, encoder: Result, deep: Result) -> list[str]:
    """What the auto-encoders and the ablation say, a sentence each."""
    a, b, mean = encoder.metrics, deep.metrics, encoder.metrics["mean_image_error"]
    better = "less" if b["val_error"][-1] < a["val_error"][-1] else "more"
    return [
        f"Through all {len(a['depths'])} layers and back, validation pixels have an error of"
        f" {a['val_error'][-1]:.3g}, {percent(a['val_error'][-1] / mean, 0)} of the mean image's."
        f" The auto-encoder trained end to end has {better}: {b['val_error'][-1]:.3g}.",
        verdict(runs, "layerwise", "none"),
        verdict(runs, "layerwise", "end-to-end"),
        _memorised(runs),
    ]


def _memorised(runs: Runs) -> str:
    shares = {
        start: [scores(runs, start, name=name).mean() for name in ("train_top1", "test_top1")]
        for start in STARTS
    }
    words = [
        f"{NAMES[start]} {percent(train)} and {percent(test)}"
        for start, (train, test) in shares.items()
    ]
    return (
        "How closely each start fits its training images, and what of that reaches new ones (mean"
        f" top-1 on training and on test images, all labels): {', '.join(words)}."
    )


def limitations(runs: Runs) -> list[str]:
    """What these results cannot say."""
    result = next(iter(runs.values()))
    e, n = result.experiment, len(scores(runs, "none"))
    said = usual_limitations(result)
    if e.data.name == "digits":
        said[1] = (
            "These are handwritten digits in 256 pixels, and the layers have an eighth of the"
            " assigned units: they show that the method works, and nothing of how well it does on"
            " photographs. The presets `lite` and `full` train the assigned structure."
        )
    if e.data.name == "cifar100":
        said.append("These are images of CIFAR-100 in place of STL-10's: 1,024 inputs, not 9,216.")
    if n > 1:
        said.append(
            f"{n} seeds tell only large differences for certain. Each seed draws its own validation"
            " images, starting weights and auto-encoders; the test images are the same."
        )
    epochs = e.parent.schedule.epochs if e.parent else 0
    said.append(
        f"Layer by layer, each layer is pretrained for {epochs} epochs; end to end, all layers"
        f" together are, for {epochs}. Every weight gets as many steps, but those of an early layer"
        " learn a harder task end to end, and might need more."
    )
    return said + [
        "Each start is fine-tuned with the same settings. Where they were tried out at all, on"
        " validation images, it was with the layer-by-layer start; its own best settings could move"
        " each figure.",
    ]


def provenance(runs: Runs) -> None:
    """Where the ablation's numbers come from, in a sentence."""
    found = list(runs.values())
    seconds = sum(r.provenance["seconds"] for r in found)
    commits = sorted({r.provenance["commit"] for r in found})
    bullets(
        [
            f"The ablation is {len(found)} results, {seconds:,.0f} s of training and evaluation in"
            f" all, of commit {', '.join(commits)}" + "."
        ]
    )
