"""What notebooks call: parameters, captioned figures, findings made from numbers, provenance."""

from __future__ import annotations

import inspect
import io
import math
import os
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Image, Markdown, display
from matplotlib.figure import Figure
from torch import nn

from dlops import metrics, plots
from dlops.data import DataSet
from dlops.experiment import Experiment
from dlops.export import SENTINEL
from dlops.series import SERIES
from dlops.settings import DATASETS, PARAMETERS, DlopsError, describe
from dlops.store import Result

INTERACTIVE = "JPY_SESSION_NAME" in os.environ  # set by a Jupyter server, not by papermill


def preset_of(namespace: Mapping[str, Any]) -> str:
    """The preset that a notebook's parameters ask for, else $DLOPS_PRESET, else "quick"."""
    return namespace.get("preset") or os.environ.get("DLOPS_PRESET") or "quick"


def parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a notebook's namespace sets, None left out.

    Raises DlopsError for a plain value whose name is no parameter: papermill would only warn.
    """
    plain = (type(None), bool, int, float, str, list, tuple)
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in ("In", "Out") and isinstance(value, plain)
    }
    given.pop("preset", None)
    known = {name: value for name, value in given.items() if name in PARAMETERS}
    for name in set(given) - set(known):
        Experiment.from_flat({name: given[name]})  # raises, and suggests the name that was meant
    namespace["_parameters"] = {name: v for name, v in known.items() if v is not None}
    return namespace["_parameters"]


def experiment(namespace: dict[str, Any], question: str) -> Experiment:
    """The experiment that a notebook's parameters describe; call it with `globals()`.

    Raises DlopsError for an unknown or mistyped parameter, before anything trains.
    """
    return Experiment.from_preset(question, preset_of(namespace), **parameters(namespace))


def settings(experiment: Experiment, preset: str) -> None:
    """Show the resolved settings, but for those that are off, as a table."""
    off = (None, False, 0, "none", ())
    rows = [("preset", preset, "where these numbers come from")]
    rows += [
        (name, value, describe(name))
        for name, value in experiment.settings.items()
        if name == "seed" or not any(value is x or value == x for x in off)
    ]
    frame = pd.DataFrame(rows, columns=["setting", "value", "meaning"])
    table(frame, "The settings; what is not listed is off.")


class Live:
    """Progress of a run: a line an epoch; in JupyterLab a bar within the epoch as well."""

    def __init__(self) -> None:
        self.epochs = 0
        live = {"live_only": True}
        self.bar = display(HTML(""), display_id=True, metadata=live) if INTERACTIVE else None

    def __call__(self, event: dict[str, Any]) -> None:
        if "experiment" in event:
            self.epochs = event["epochs"]
            print(f"training {event['experiment'].title} ({event['experiment'].id})")
        elif "row" in event:
            row = event["row"]
            shown = {
                k: row[k] for k in ("train_loss", "val_loss", "val_top1", "val_top5") if k in row
            }
            numbers = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            layer = f"layer {row['layer'] or 'all'}  " if "layer" in row else ""
            epochs = event.get("epochs", self.epochs)  # an auto-encoder's are those of all layers
            print(f"{layer}epoch {event['epoch']:3d}/{epochs}  {numbers}  {row['seconds']:.1f} s")
            if self.bar is not None:
                self.bar.update(HTML(""))
        elif "steps" in event and self.bar is not None:
            value, most = event["step"], event["steps"]
            words = f"epoch {event['epoch'] + 1} of {self.epochs}, {event['rate']:.0f} images/s"
            self.bar.update(HTML(f'<progress value="{value}" max="{most}"></progress> {words}'))


def show(figure: Figure, caption: str, alt: str) -> None:
    """Display a figure with its caption and a text for those who cannot see it."""
    if not caption.strip() or not alt.strip():
        raise DlopsError("A figure needs a caption and an alt text that says what it shows.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    about = {"caption": caption, "alt": alt}
    display(Image(buffer.getvalue(), alt=alt, metadata=about))
    if INTERACTIVE:
        display(Markdown(f"*{caption}*"), metadata={"live_only": True})


def table(frame: pd.DataFrame, caption: str, *, index: bool = False, digits: int = 4) -> None:
    """Display a table with its caption."""
    text = frame.to_html(
        index=index, border=0, escape=True, na_rep="–", float_format=lambda x: f"{x:.{digits}g}"
    )
    display(HTML(text, metadata={"caption": caption}))
    if INTERACTIVE:
        display(Markdown(f"*{caption}*"), metadata={"live_only": True})


def source(*objects: Any) -> None:
    """Display the source code of functions or classes, as it runs."""
    for item in objects:
        display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(item))}```"))


def samples(data: DataSet, n: int = 10) -> None:
    """Two training images of each of the first n classes, and a table of the splits."""
    labels = data.train.labels.numpy()
    shown = [c for c in range(len(data.class_names)) if (labels == c).sum() > 1][:n]
    first = np.array([np.flatnonzero(labels == c)[i] for i in (0, 1) for c in shown])
    names = [data.class_names[c] for c in shown]
    show(
        plots.image_grid(
            data.train.take(torch.from_numpy(first)).numpy(),
            names * 2,
            title=f"{len(data.train):,} training images of {len(data.class_names)} classes",
            columns=len(shown),
        ),
        f"Training images, two of each of {len(shown)} classes.",
        "A grid of small training images. Its columns show: " + ", ".join(names) + ".",
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


def curves(result: Result) -> None:
    """Loss, top-1 and top-5 on training and validation images after each epoch."""
    frame, name = result.history, OPTIMIZERS[result.experiment.optimizer.name]
    last, n = frame.iloc[-1], len(frame)
    says = (
        f"top-5 is {percent(last.train_top5)} on training and {percent(last.val_top5)} on"
        " validation images"
    )
    show(
        plots.curves(frame, title=f"After {n} epochs with {name}, {says}"),
        "Training and validation loss, top-1 and top-5 accuracy after each epoch.",
        f"Three panels of curves over {n} epochs. Training loss goes from"
        f" {frame.train_loss[0]:.3g} to {last.train_loss:.3g}, validation loss from"
        f" {frame.val_loss[0]:.3g} to {last.val_loss:.3g}; at the end {says}.",
    )


def stages(network: nn.Module, parts: Sequence[tuple[str, int]]) -> None:
    """The parameters of each stage of a network, as a table."""
    total = sum(p.numel() for p in network.parameters())
    rows = [(name, f"{count:,}", percent(count / total)) for name, count in parts]
    rows.append(("all", f"{total:,}", percent(1)))
    table(pd.DataFrame(rows, columns=["stage", "parameters", "share"]), "Parameters per stage.")


def log(result: Result) -> None:
    """The training log: a row an epoch, accuracies in per cent."""
    frame = result.history.copy()
    for name in map(str, frame.columns):
        if name.endswith(("_top1", "_top5")):
            frame[name] = frame[name].map(lambda x: f"{100 * x:.1f}")
        elif name not in ("epoch", "layer"):
            frame[name] = frame[name].map(lambda x: f"{x:.4g}")
    frame = frame.rename(columns=lambda name: str(name).replace("_", " "))
    table(frame, "The training log, an epoch a row. Accuracies are in per cent.")


def percent(share: float, digits: int = 1) -> str:
    """0.9815 -> "98.2 %"."""
    return f"{100 * share:.{digits}f} %"


def interval(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many test images."""
    return metrics.wilson(round(share * images), images)


def accuracy(result: Result, name: str = "test_top5") -> str:
    """A test accuracy with its interval, e.g. "98.1 % (95 % interval 96.0 to 99.1 %)"."""
    share = result.metrics[name]
    low, high = interval(share, result.metrics["test_images"])
    return f"{percent(share)} (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"


def answer() -> Any:
    """A place near the top of the notebook for the answer; `fill` writes it."""
    return display(Markdown("*The answer stands here when the notebook has run.*"), display_id=True)


def fill(place: Any, result: Result, model: str) -> None:
    """The answer in one paragraph, from the numbers."""
    e, images = result.experiment, result.metrics["test_images"]
    classes, epochs = e.num_classes, len(result.history)
    place.update(
        Markdown(
            f"{model}, trained for {epochs} {'epoch' if epochs == 1 else 'epochs'} with"
            f" {OPTIMIZERS[e.optimizer.name]} on {DATASETS[e.data.name].title} ({classes} classes),"
            f" reaches a **top-5 accuracy of {accuracy(result)}** on {images:,} test images,"
            f" and a top-1 accuracy of {accuracy(result, 'test_top1')}. By chance they would be"
            f" {percent(min(1, 5 / classes))} and {percent(1 / classes)}."
        )
    )


OPTIMIZERS = {
    "adam": "Adam",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "rmsprop": "RMSprop",
}


def try_it(function: Callable[..., None], **choices: Any) -> None:
    """In JupyterLab, sliders and menus for a function; elsewhere its first choice, once.

    choices: for each argument a list or a range to choose from.
    """
    if INTERACTIVE:
        import ipywidgets

        ipywidgets.interact(function, **{name: list(values) for name, values in choices.items()})
    else:
        function(**{name: next(iter(values)) for name, values in choices.items()})


def bullets(sentences: Sequence[str]) -> None:
    """Display sentences as a list."""
    display(Markdown("\n".join(f"- {sentence}" for sentence in sentences)))


def scores(result: Result) -> None:
    """The test accuracies with their intervals, as a table."""
    rows, n = [], result.metrics["test_images"]
    for name, words in (("test_top5", "top-5"), ("test_top1", "top-1"), ("knn_top1", "k-NN top-1")):
        if name in result.metrics:
            share = result.metrics[name]
            low, high = interval(share, n)
            rows.append((words, percent(share), f"{100 * low:.1f} to {100 * high:.1f} %", f"{n:,}"))
    columns = ["accuracy", "test", "95 % interval (Wilson)", "images"]
    table(pd.DataFrame(rows, columns=columns), "Final test accuracy.")


def class_accuracy(result: Result, names: Sequence[str]) -> None:
    """Top-1 accuracy of every class, with intervals, as a chart."""
    shares = np.array([math.nan if x is None else x for x in result.metrics["class_accuracy"]])
    counts = np.bincount(result.labels, minlength=len(names))
    ranges = [
        interval(share, int(n)) if n else (math.nan, math.nan) for share, n in zip(shares, counts)
    ]
    worst, best = int(np.nanargmin(shares)), int(np.nanargmax(shares))
    says = (
        f"from {percent(shares[worst], 0)} ({names[worst]}) to"
        f" {percent(shares[best], 0)} ({names[best]})"
    )
    show(
        plots.class_bars(names, shares, ranges, title=f"Class accuracy ranges {says}"),
        "Top-1 accuracy of each class on the test set, with Wilson's 95 % intervals.",
        f"A bar chart of the accuracy of {len(names)} classes, {says}.",
    )


def confusion(result: Result, names: Sequence[str]) -> None:
    """The confusion matrix, and for many classes the most confused pairs."""
    matrix = metrics.confusion(result.labels, result.predictions[:, 0], len(names))
    pairs = metrics.most_confused(matrix, names, 10)
    title = "No test image was misclassified"
    if pairs:
        true, other, count, share = pairs[0]
        title = f"Most often, {true} is taken for {other} ({count} images, {percent(share, 0)})"
    show(
        plots.confusion(matrix, names, title=title),
        "The confusion matrix on the test set: a row for each true class.",
        f"A matrix of {len(names)} true against {len(names)} predicted classes. {title}.",
    )
    if len(names) > 10 and pairs:
        rows = [(a, b, n, percent(share, 0)) for a, b, n, share in pairs]
        columns = ["true class", "taken for", "images", "share of the class"]
        table(pd.DataFrame(rows, columns=columns), "The most confused pairs of classes.")


def mistakes(result: Result, data: DataSet, n: int = 18) -> None:
    """The misclassified test images that the network was surest of."""
    wrong = np.flatnonzero(result.predictions[:, 0] != result.labels)
    if not len(wrong):
        display(Markdown("There are none: every test image was classified correctly."))
        return
    sure = result.arrays["confidence"]
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")[:n]]
    true = [data.class_names[i] for i in result.labels[chosen]]
    predicted = [data.class_names[i] for i in result.predictions[chosen, 0]]
    show(
        plots.mistakes(
            data.test.take(torch.from_numpy(chosen)).numpy(),
            true,
            predicted,
            sure[chosen],
            title=f"The {len(chosen)} surest of {len(wrong):,} mistakes"
            f" among {len(result.labels):,} test images",
        ),
        "Misclassified test images, the most confident first: class, prediction, confidence.",
        "A grid of misclassified images. The first shows "
        f"{true[0]}, taken for {predicted[0]} with confidence {percent(float(sure[chosen][0]))}.",
    )


def embedding(result: Result, names: Sequence[str]) -> None:
    """The t-SNE map of the fixed sample of test images."""
    points, sample = result.arrays["tsne"], result.arrays["sample"]
    labels = result.labels[sample]
    between = result.metrics["between_class"] / max(result.metrics["within_class"], 1e-12)
    title = f"Class means lie {between:.1f} times as far apart as images from their class mean"
    show(
        plots.tsne(points, labels, names, title=title),
        f"t-SNE of the embeddings of {len(points):,} test images, coloured by class.",
        f"A map of {len(points):,} points in {len(np.unique(labels))} colours. {title}.",
    )


def findings(result: Result, class_names: Sequence[str]) -> list[str]:
    """What this result's numbers say, a sentence each."""
    return [
        *_convergence(result.history),
        *_generalisation(result),
        *_saturation(result),
        *_classes(result, class_names),
    ]


def _convergence(history: pd.DataFrame) -> list[str]:
    first, last = history.iloc[0], history.iloc[-1]
    said = [
        f"Training loss went from {first.train_loss:.3g} after the first epoch to"
        f" {last.train_loss:.3g} after the last ({len(history)}), validation loss from"
        f" {first.val_loss:.3g} to {last.val_loss:.3g}."
    ]
    if len(history) < 3:
        return said + ["So few epochs say nothing about convergence."]
    best = int(history.val_loss.to_numpy().argmin())
    tail = max(1, len(history) // 5)
    before = history.iloc[-1 - tail]
    gain, fall = last.val_top1 - before.val_top1, 1 - last.val_loss / max(before.val_loss, 1e-12)
    during = f"in the last {'epoch' if tail == 1 else f'{tail} epochs'}"
    if last.val_loss > 1.05 * history.val_loss.iloc[best]:
        memorised = last.train_loss <= history.train_loss.iloc[best]
        said.append(
            f"Validation loss was lowest after epoch {int(history.epoch.iloc[best])} and rose after"
            f" it{': the network began to overfit.' if memorised else ', as did training loss.'}"
        )
    elif gain > 0.01 and fall > 0:
        said.append(
            f"It had not converged: validation top-1 still rose by {100 * gain:.1f} points"
            f" {during}, so more epochs should help."
        )
    elif fall > 0.05:
        said.append(
            f"It had not converged: validation loss still fell by {percent(fall, 0)} {during}."
        )
    else:
        said.append(
            f"Validation loss had levelled off: it changed by {percent(abs(fall))} {during}."
        )
    return said


def _generalisation(result: Result) -> list[str]:
    m = result.metrics
    gap = m["train_top1"] - m["val_top1"]
    n = result.provenance["val_images"]
    if abs(gap) < 2 * math.sqrt(0.25 / n):
        return [
            f"Training and validation top-1 ({percent(m['train_top1'])} and"
            f" {percent(m['val_top1'])}) differ by less than {n:,} validation images can tell."
        ]
    if gap < 0:
        return [
            f"Validation top-1 ({percent(m['val_top1'])}) lies above training top-1"
            f" ({percent(m['train_top1'])})."
        ]
    return [
        f"Top-1 is {percent(m['train_top1'])} on training images and {percent(m['val_top1'])} on"
        f" validation: a gap of {100 * gap:.1f} points is what the network learned of its training"
        " images alone."
    ]


def _saturation(result: Result) -> list[str]:
    top1, top5 = result.metrics["test_top1"], result.metrics["test_top5"]
    classes = result.experiment.num_classes
    if top5 > 0.99 and classes <= 20:
        return [
            f"With {classes} classes top-5 saturates ({percent(top5)}): top-1 ({percent(top1)}) is"
            " the figure that tells models apart here."
        ]
    near = (top5 - top1) / max(1 - top1, 1e-9)
    return [
        f"Of the images that top-1 gets wrong, {percent(near, 0)} have their class among the next"
        " four guesses."
    ]


def _classes(result: Result, names: Sequence[str]) -> list[str]:
    shares = [math.nan if x is None else x for x in result.metrics["class_accuracy"]]
    order = [i for i in np.argsort(shares, kind="stable") if not math.isnan(shares[i])]
    if shares[order[0]] == shares[order[-1]]:
        said = [f"All classes are equally hard: each has {percent(shares[order[0]])}."]
    else:
        easiest, hardest = (
            _named([names[k] for k in order if shares[k] == shares[extreme]])
            for extreme in (order[-1], order[0])
        )
        said = [
            f"Easiest: {easiest} ({percent(shares[order[-1]])}); hardest: {hardest}"
            f" ({percent(shares[order[0]])})."
        ]
    predicted = np.bincount(result.predictions[:, 0], minlength=len(names))
    never = [names[i] for i in range(len(names)) if predicted[i] == 0]
    if never:
        said.append(f"Never predicted: {_named(never)}.")
    matrix = metrics.confusion(result.labels, result.predictions[:, 0], len(names))
    if pairs := metrics.most_confused(matrix, names, 1):
        true, other, count, share = pairs[0]
        said.append(
            f"The most frequent confusion: {true} taken for {other} ({count} images,"
            f" {percent(share, 0)} of that class)."
        )
    return said


def _named(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def limitations(result: Result) -> list[str]:
    """What this result cannot say, from its own settings."""
    e, n = result.experiment, result.metrics["test_images"]
    info = DATASETS[e.data.name]
    said = [
        f"One run with seed {e.seed}. The interval is for the {n:,} test images; another seed"
        " would move the figure as well."
    ]
    if e.data.name == "digits":
        said.append(
            "These are handwritten digits, not the assignment's data set: they show that the method"
            " works, and nothing of how well it does on photographs. The presets `lite` and `full`"
            " train on the real data."
        )
    total = f"20 {e.data.labels}" if e.data.labels == "coarse" else info.num_classes
    cut = [
        f"{e.data.classes} of {total} classes" if e.data.classes else "",
        f"at most {e.data.per_class} training images a class" if e.data.per_class else "",
    ]
    if any(cut) and e.data.name != "digits":
        said.append(
            f"A subset of {info.title}: {' and '.join(x for x in cut if x)}. Accuracy on it is not"
            " comparable with published results on all of it."
        )
    if e.data.name == "tiny-imagenet":
        said.append(
            "Tiny ImageNet's test labels are not public: its 10,000 validation images serve as the"
            " test set, and validation images are taken from the training set."
        )
    return said


def provenance(*results: Result) -> None:
    """Where the numbers come from: a column a result, and the execution of this notebook."""
    from dlops.machine import choose_device, git_state
    from dlops.machine import describe as machine

    here = {**machine(choose_device("cpu")), **git_state()}
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        p = result.provenance
        rows[result.id] = {
            "trained": p["when"],
            "commit": _commit(p),
            "device": p["device"],
            "processor": f"{p['processor']}, {p['cores']} cores, {p['threads']} threads",
            "versions": f"Python {p['python']}, torch {p['torch']}, NumPy {p['numpy']}",
            "seed": result.experiment.seed,
            "data": f"{result.experiment.data.name}, {p['checksum']}",
            "images": f"{p['train_images']:,} training, {p['val_images']:,} validation",
            "training time": f"{p['train_seconds']:.1f} s of {p['seconds']:.1f} s",
            "peak memory": ", ".join(
                f"{p[key]:,.0f} MiB {words}"
                for key, words in (("peak_rss_mib", "resident"), ("peak_gpu_mib", "GPU"))
                if key in p
            ),
        }
    frame = pd.DataFrame(rows)
    caption = "Provenance of the results."
    if len(results) > 3:  # what all share once, the rest in a row each
        same = frame.nunique(axis=1) == 1
        shared = frame[same].iloc[:, :1].set_axis(["value"], axis=1)
        table(shared.reset_index(names="shared by all"), "What the results share.")
        frame, caption = frame[~same].T, "Provenance of each result."
    table(frame.reset_index(names="identity"), caption)
    executed = f"{here['processor']}, Python {here['python']}, commit {_commit(here)}"
    display(Markdown(f"This notebook was executed on {executed}."))


def _commit(p: Mapping[str, Any]) -> str:
    return f"{p['commit']}{' with uncommitted changes' if p['dirty'] else ''}"


def finish(
    namespace: Mapping[str, Any],
    question: str,
    result: Result | None = None,
    headline: Mapping[str, str] | None = None,
) -> None:
    """The last cell's mark, with what the index shows: without it the run counts as failed."""
    from dlops.machine import git_state

    if result and headline is None:
        m = result.metrics
        headline = {"Test top-5": percent(m["test_top5"]), "top-1": percent(m["test_top1"])}
    payload = {
        "id": question,
        "assignment": next(r.assignment for r in SERIES if r.question == question),
        "preset": preset_of(namespace),
        "parameters": namespace["_parameters"],
        "headline": [list(pair) for pair in (headline or {}).items()],
        "commit": git_state()["commit"],
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    display({SENTINEL: payload, "text/plain": "finished"}, raw=True)
