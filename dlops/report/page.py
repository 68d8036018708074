"""The parts of every page: parameters, the answer, sources, provenance, the last mark."""

from __future__ import annotations

import ast
import html
import inspect
import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown, display
from IPython.utils.capture import capture_output

from dlops import metrics
from dlops.experiment import Experiment
from dlops.machine import choose_device, git_state
from dlops.machine import describe as machine
from dlops.report.output import show, table
from dlops.report.style import PALETTE, Drawing
from dlops.series import SERIES
from dlops.series.presets import from_preset
from dlops.settings import DATASETS, PARAMETERS, DlopsError, describe
from dlops.store import Result

SENTINEL = "application/vnd.dlops.finished+json"

OPTIMIZERS = {
    "adam": "Adam",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "rmsprop": "RMSprop",
}
LOSSES = {"cross-entropy": "cross-entropy", "triplet": "triplet loss", "center": "center loss"}

# Parameters ---------------------------------------------------------------------------------------


def declared(namespace: Mapping[str, Any]) -> list[str]:
    """The names that the parameters cell, and papermill's injected cell after it, assign.

    The parameters cell is the newest executed one that assigns `preset`. Whatever else a kernel
    knows, a reader's `k = 3` or what an earlier pass left behind, is no parameter.
    """
    if not any(namespace.get("In", ())):  # a plain script, or a kernel without history (nbval's)
        return [name for name in namespace if name in (*PARAMETERS, "preset")]
    cells = list(namespace["In"])
    assigned = [_assigned(cell) for cell in cells]
    injected = [cell.lstrip().startswith("# Parameters") for cell in cells]
    for i in reversed(range(len(cells))):
        if "preset" in assigned[i] and not injected[i]:
            after = assigned[i + 1] if i + 1 < len(cells) and injected[i + 1] else []
            return list(dict.fromkeys(assigned[i] + after))
    raise DlopsError("The parameters cell, which assigns `preset`, has not been run; run it first.")


def _assigned(cell: str) -> list[str]:
    """The names that a cell's own statements assign."""
    try:
        tree = ast.parse(cell)
    except SyntaxError:
        return []
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def preset_of(namespace: Mapping[str, Any]) -> str:
    """The preset that a notebook's parameters ask for, else $DLOPS_PRESET, else "quick"."""
    return namespace.get("preset") or os.environ.get("DLOPS_PRESET") or "quick"


def parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a notebook sets, None left out; call it with `globals()`.

    Raises DlopsError for a name that is no parameter, and suggests one: papermill only warns.
    """
    given = {name: namespace[name] for name in declared(namespace) if name != "preset"}
    for name in given:
        if name not in PARAMETERS:
            Experiment.from_flat({name: given[name]})  # raises
    namespace["_parameters"] = {name: value for name, value in given.items() if value is not None}
    return namespace["_parameters"]


def experiment(namespace: dict[str, Any], question: str) -> Experiment:
    """The experiment that a notebook's parameters describe; call it with `globals()`.

    Raises DlopsError for an unknown or mistyped parameter, before anything trains.
    """
    return from_preset(question, preset_of(namespace), **parameters(namespace))


# Words --------------------------------------------------------------------------------------------


def percent(share: float, digits: int = 1) -> str:
    """0.9815 -> "98.2 %"."""
    return f"{100 * share:.{digits}f} %".replace("-", "−")


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n images."""
    return metrics.wilson(round(share * n), n)


def estimate(results: Sequence[Result], name: str) -> tuple[float, float, float]:
    """Mean and 95 % interval of a test accuracy: Student's over seeds; of one run, Wilson's over
    its test images."""
    values = [result.metrics[name] for result in results]
    if len(values) > 1:
        return metrics.student_interval(values)
    return values[0], *interval(values[0], results[0].metrics["test_images"])


def accuracy(results: Sequence[Result], name: str = "test_top5") -> str:
    """A test accuracy in words, e.g. "98.1 % (95 % interval 97.2 to 99.0 %, 3 seeds)"."""
    mean, low, high = estimate(results, name)
    n, images = len(results), results[0].metrics["test_images"]
    counted = f"{n} seeds" if n > 1 else f"this network, {images:,} test images"
    low, high = max(0.0, low), min(1.0, high)
    return f"{percent(mean)} (95 % interval {100 * low:.1f} to {100 * high:.1f} %, {counted})"


def row(
    name: str, results: Sequence[Result], metric: str, color: str = PALETTE["cross-entropy"]
) -> dict[str, Any]:
    """A row of the figure `scores`: an accuracy of each seed, its interval, and chance."""
    _, low, high = estimate(results, metric)
    values = [result.metrics[metric] for result in results]
    guesses = 5 if metric.endswith("top5") else 1
    chance = min(1.0, guesses / results[0].experiment.num_classes)
    given = {"low": max(0.0, low), "high": min(1.0, high), "chance": chance, "color": color}
    return {"name": name, "values": values, **given}


def data_title(experiment: Experiment) -> str:
    """The data set with its classes, e.g. "Tiny ImageNet (20 classes)"."""
    kind = "coarse classes" if experiment.data.labels == "coarse" else "classes"
    return f"{DATASETS[experiment.data.name].title} ({experiment.num_classes} {kind})"


def method(experiment: Experiment) -> str:
    """Loss and optimizer, e.g. "center loss, Adam"."""
    return f"{LOSSES[experiment.loss.name]}, {OPTIMIZERS[experiment.optimizer.name]}"


# Parts that pages share ---------------------------------------------------------------------------


class Answer:
    """The place at the top of a page: progress while there is no answer, then the answer."""

    def __init__(self) -> None:
        self.text = display(Markdown("*The answer comes with the numbers.*"), display_id=True)
        self.figure = display(HTML(""), display_id=True)

    def write(self, text: str, figure: Drawing, caption: str, alt: str) -> None:
        """The answer in Markdown, and the one figure that shows it."""
        self.text.update(Markdown(text))
        show(figure, caption, alt, key="answer", where=self.figure)


def source(*objects: Any) -> None:
    """Display the source code of functions or classes, as it runs."""
    for item in objects:
        code = textwrap.dedent(inspect.getsource(item))
        display(Markdown(f"```python\n{code}```"))


QUIET = {"labels", "label_fraction", "tune", "body_lr", "val_fraction"}  # shown if they differ


def settings(experiment: Experiment, preset: str) -> None:
    """The resolved settings as a table; what is off, or neutral and of no matter here, is not."""
    neutral = Experiment.from_flat({}).flat
    off = (None, False, 0, "none", ())
    rows = [("preset", preset, "where these numbers come from")]
    rows += [
        (name, value, describe(name))
        for name, value in experiment.settings.items()
        if name == "seed" or not any(value is x or value == x for x in off)
        if name not in QUIET or value != neutral[name]
    ]
    frame = pd.DataFrame(rows, columns=["setting", "value", "meaning"]).astype(str)
    table(frame, "The settings; what is not listed is off.")


def log(*results: Result) -> None:
    """The training log: a row an epoch of each seed, accuracies in per cent."""
    frames = [result.history.assign(seed=result.experiment.seed) for result in results]
    frame = pd.concat(frames).dropna(axis=1, how="all")
    first = ["seed", "epoch"] if len(results) > 1 else ["epoch"]
    frame = frame[first + [name for name in frame.columns if name not in ("seed", "epoch")]]
    for name in frame.columns:
        if name.endswith(("_top1", "_top5")):
            frame[name] = frame[name].map(lambda x: f"{100 * x:.1f}")
        elif name not in ("epoch", "layer", "seed"):
            frame[name] = frame[name].map(lambda x: f"{x:.3g}")
    frame = frame.rename(columns=lambda name: str(name).replace("_", " "))
    table(frame, "The training log, an epoch a row. Accuracies are in per cent.")


def try_it(function: Any, **choices: Any) -> None:
    """Sliders and menus for a function; what it shows or prints follows them at once.

    choices: for each argument a list or a range to choose from, or a widget. What is shown goes
    into a widget of HTML: one of outputs (as `interact` makes it) now and then stops a notebook
    that is executed without a browser, because nbclient answers it while it waits for the cell.
    """
    import ipywidgets

    controls = {
        name: given
        if isinstance(given, ipywidgets.Widget)
        else ipywidgets.Dropdown(options=list(given), description=name)
        for name, given in choices.items()
    }
    place = ipywidgets.HTML()

    def follow(_: Any = None) -> None:
        with capture_output() as said:
            function(**{name: control.value for name, control in controls.items()})
        parts = [output.data.get("text/html", "") for output in said.outputs]
        place.value = "".join(
            [f"<pre>{html.escape(said.stdout)}</pre>" * bool(said.stdout), *parts]
        )

    for name, control in controls.items():
        control.description = control.description or name
        control.observe(follow, "value")
    follow()
    display(ipywidgets.VBox([*controls.values(), place]))


def limitations(results: Sequence[Result]) -> list[str]:
    """What results of one experiment cannot say, from their own settings; a sentence each."""
    e, n = results[0].experiment, results[0].metrics["test_images"]
    info = DATASETS[e.data.name]
    said = [
        f"{len(results)} seeds on the same {n:,} test images: the interval is for another seed,"
        " not for other images."
        if len(results) > 1
        else f"One network, of seed {e.seed}. The interval is for the {n:,} test images; another"
        " seed would move the figure as well."
    ]
    if e.data.name == "digits":
        said.append(
            "These are handwritten digits, not the assignment's data set: they show that the method"
            " works, and nothing of how well it does on photographs. The other presets train on the"
            " real data."
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


def bullets(sentences: Sequence[str]) -> None:
    """Display sentences as a list."""
    display(Markdown("\n".join(f"- {sentence}" for sentence in sentences)))


def provenance(*results: Result) -> None:
    """Where the numbers come from: what all results share, what they do not, and this execution."""
    frame = pd.DataFrame([_origin(result) for result in results])
    same = frame.nunique() == 1
    shared = frame.loc[:, same].iloc[0].rename_axis("what").reset_index(name="value")
    table(shared, "Provenance" + (", as far as the results share it." if len(results) > 1 else "."))
    if len(results) > 1:
        table(frame.loc[:, ~same], "Provenance of each result.")
    here = {**machine(choose_device("cpu")), **git_state()}
    executed = f"{here['processor']}, Python {here['python']}, commit {_commit(here)}"
    display(Markdown(f"This notebook was executed on {executed}."))


def _origin(result: Result) -> dict[str, Any]:
    p = result.provenance
    memory = (("peak_rss_mib", "resident"), ("peak_gpu_mib", "GPU"))
    return {
        "identity": result.id,
        "experiment": result.experiment.title,
        "trained": p["when"],
        "commit": _commit(p),
        "device": p["device"],
        "processor": f"{p['processor']}, {p['cores']} cores, {p['threads']} threads",
        "versions": f"Python {p['python']}, torch {p['torch']}, NumPy {p['numpy']}",
        "data": f"{result.experiment.data.name}, {p['checksum']}",
        "images": f"{p['train_images']:,} training, {p['val_images']:,} validation",
        "wall time": f"{p['seconds']:.1f} s",
        "peak memory": ", ".join(f"{p[key]:,.0f} MiB {word}" for key, word in memory if key in p),
    }


def _commit(p: Mapping[str, Any]) -> str:
    return f"{p['commit']}{' with uncommitted changes' if p['dirty'] else ''}"


# The last mark ------------------------------------------------------------------------------------

Results = Sequence[Result] | Mapping[str, Sequence[Result]]


def finish(
    namespace: Mapping[str, Any],
    question: str,
    results: Results,
    *,
    claims: Any = None,
    title: str = "",
    headline: Sequence[tuple[str, str]] = (),
) -> None:
    """The last cell's mark, with what the index shows: without it the run counts as failed.

    results: those of one experiment's seeds, or by name where a page compares; title: only where
    it does not follow from the question and the first experiment; headline: pairs of what and its
    value, only where it is not the first experiment's accuracy.
    """
    groups = dict(results) if isinstance(results, Mapping) else {"": results}
    main = next(iter(groups.values()), ())
    first = main[0].experiment if main else Experiment()
    marks = [_mark(name or method(first), group) for name, group in groups.items()]
    asked = next(r for r in SERIES if r.question == question)
    headline = headline or [
        (words, percent(estimate(main, name)[0]))
        for name, words in (("test_top5", "Test top-5"), ("test_top1", "top-1"))
    ]
    payload = {
        "id": question,
        "assignment": asked.assignment,
        "title": title or page_title(question, first),
        "preset": preset_of(namespace),
        "parameters": namespace["_parameters"],
        "settings": first.settings if main else {},
        "headline": [list(pair) for pair in headline],
        "results": marks,
        "claims": claims.payload() if claims else [],
        "commit": git_state()["commit"],
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    display({SENTINEL: payload, "text/plain": "finished"}, raw=True)


def page_title(question: str, experiment: Experiment) -> str:
    """What a page is called, from what it really shows: "Question 1.1: ResNet18 with ..."."""
    if question.startswith("q1."):
        return (
            f"Question {question[1:]}: ResNet18 with {method(experiment)}, {data_title(experiment)}"
        )
    name = "Lab 3" if question.startswith("lab3") else f"Question {question[1:]}"
    return f"{name}: {method(experiment)}, {data_title(experiment)}"


def _mark(name: str, results: Sequence[Result]) -> dict[str, Any]:
    """A point of the index's chart."""
    mean, low, high = estimate(results, "test_top5")
    classes = results[0].experiment.num_classes
    chance = min(1.0, 5 / classes)
    point = {"name": name, "top5": mean, "low": max(0.0, low), "high": min(1.0, high)}
    return {**point, "seeds": len(results), "classes": classes, "chance": chance}
