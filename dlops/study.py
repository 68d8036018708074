"""What the notebooks of lab 3 show of their studies: responses, steps, and sentences from numbers.

Accuracies that settings are chosen by are validation top-1; test figures only stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dlops import plots, report
from dlops.experiment import KEEP, Experiment
from dlops.report import percent, show, table
from dlops.series import PUBLISHED, sweeps
from dlops.series.sweeps import OPTIMIZERS, Sweep, value_of
from dlops.settings import DATASETS, DlopsError
from dlops.store import Result, Store

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")


def collect(experiments: Iterable[Experiment]) -> dict[str, Result]:
    """The results by identity, trained where they are missing; a run that diverged has none.

    In JupyterLab a table fills as they come; elsewhere a line tells of each that is trained.
    """
    from dlops.runs import run
    from dlops.train import Diverged

    asked = list(experiments)
    most = {e.id: e for e in sorted(asked, key=lambda e: KEEP.index(e.keep))}
    wanted = [most[name] for name in dict.fromkeys(e.id for e in asked)]
    results: dict[str, Result] = {}
    live = display(HTML(""), display_id=True, metadata={"live_only": True})
    rows: list[dict[str, Any]] = []
    for number, experiment in enumerate(wanted, 1):
        trained: list[Any] = []
        words = said(experiment, wanted[0])
        try:
            result = Store().get(experiment) or (
                run(experiment, progress=trained.append) if not failed(experiment) else None
            )
        except Diverged:
            result = None
        score = result.metrics["val_top1"] if result else math.nan
        if result:
            results[experiment.id] = result
        if trained and not report.INTERACTIVE:
            print(f"{number:3d}/{len(wanted)}  {words:<40} validation top-1 {percent(score)}")
        rows.append({"run": number, "setting": words, "validation top-1": percent(score)})
        if report.INTERACTIVE and live is not None:
            done = f"<progress value='{number}' max='{len(wanted)}'></progress>"
            live.update(HTML(done + pd.DataFrame(rows).to_html(index=False)))
    return results


def failed(experiment: Experiment) -> bool:
    """Whether a member of a sweep was trained and diverged, which is a finding."""
    return experiment.keep == "metrics" and Store().failure(experiment) is not None


def said(experiment: Experiment, base: Experiment) -> str:
    """What an experiment changes of the base setting, e.g. "lr 0.01, beta1 0"."""
    names = [name for name in experiment.settings if name in base.settings]
    changed = [n for n in names if value_of(experiment, n) != value_of(base, n)]
    if experiment.data.name != base.data.name:
        return experiment.title
    return ", ".join(f"{name} {_text(value_of(experiment, name))}" for name in changed) or "base"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def step_of(result: Result) -> float:
    """The effective step after the first epoch: the geometric mean over the stages."""
    row = result.history.iloc[0]
    steps = [row[f"step_{s}"] for s in STAGES if f"step_{s}" in row]
    return float(np.exp(np.mean(np.log(np.maximum(steps, 1e-12))))) if steps else math.nan


def list_of(words: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def points(share: float) -> str:
    """0.0123 -> "1.2 points"."""
    return f"{100 * share:.1f} points"


class Study:
    """The results of one optimizer's sweep, and what they say.

    Raises DlopsError if the base setting itself has no result.
    """

    def __init__(self, sweep: Sweep, results: Mapping[str, Result]) -> None:
        self.sweep, self.results = sweep, results
        self.name = OPTIMIZERS[sweep.base.optimizer.name]
        if sweep.base.id not in results:
            raise DlopsError(f"The base setting of the study with {self.name} has no result.")
        self.base = results[sweep.base.id]

    def score(self, experiment: Experiment) -> float:
        """Validation top-1 after the last epoch; nan for a run that diverged."""
        result = self.results.get(experiment.id)
        return result.metrics["val_top1"] if result else math.nan

    @cached_property
    def seed_scores(self) -> np.ndarray:
        """Test top-1 of the base setting's seeds: the test images are the same for all of them,
        while the validation images are drawn by the seed."""
        found = (self.results.get(e.id) for e in self.sweep.seeds)
        return np.array([result.metrics["test_top1"] for result in found if result])

    @cached_property
    def noise(self) -> float:
        """The noise floor: two standard deviations, of the seeds or of a share of so many
        validation images, whichever is larger."""
        n = self.base.provenance["val_images"]
        p = (self.base.metrics["val_top1"] * n + 1) / (n + 2)
        spread = self.seed_scores.std(ddof=1) if len(self.seed_scores) > 1 else 0.0
        return 2 * max(float(spread), math.sqrt(p * (1 - p) / n))

    @property
    def band(self) -> tuple[float, float]:
        """The base setting's score, less and plus the noise floor."""
        score = self.score(self.sweep.base)
        return score - self.noise, score + self.noise

    @cached_property
    def candidates(self) -> list[Experiment]:
        """The sweep's members with the base setting's seed that have a result."""
        seed = self.sweep.base.seed
        return [e for e in self.sweep.members if e.seed == seed and e.id in self.results]

    @cached_property
    def tuned(self) -> Result:
        """The member with the best validation top-1; of equals the one with the lowest loss."""

        def rank(experiment: Experiment) -> tuple[float, float]:
            m = self.results[experiment.id].metrics
            return m["val_top1"], -m["val_loss"]

        return self.results[max(self.candidates, key=rank).id]

    @property
    def tuned_words(self) -> str:
        """What the tuned setting changes."""
        return said(self.tuned.experiment, self.sweep.base)

    @cached_property
    def ranges(self) -> dict[str, float]:
        """How far apart each attribute's values lie in validation top-1, largest first."""
        ranges = {}
        for name, values in self.sweep.responses.items():
            scores = [self.score(e) for e in values.values()]
            scores[:] = [0.0 if math.isnan(s) else s for s in scores]
            base = self.score(self.sweep.base)
            ranges[name] = max(*scores, base) - min(*scores, base)
        return dict(sorted(ranges.items(), key=lambda item: -item[1]))

    @cached_property
    def cells(self) -> dict[tuple[float, Any], float]:
        """Validation top-1 of every (lr, value of the crossed attribute) of the grid."""
        return {key: self.score(e) for key, e in self.sweep.grid.items()}

    @property
    def best_cell(self) -> tuple[float, Any]:
        """The best cell of the grid."""
        cells = {key: score for key, score in self.cells.items() if not math.isnan(score)}
        return max(cells, key=cells.__getitem__)

    @cached_property
    def grid(self) -> pd.DataFrame:
        """Validation top-1: a row a learning rate, a column a value of the crossed attribute."""
        frame = pd.Series(self.cells).unstack()
        frame.index.name, frame.columns.name = "lr", self.sweep.crossed
        return frame

    # Figures and tables

    def show_responses(self, only: str | None = None) -> None:
        """Response curves of the attributes (or of one) against the noise floor."""
        panels = {
            name: {value: [self.score(e)] for value, e in values.items()}
            for name, values in self.sweep.responses.items()
            if only in (None, name)
        }
        base = {name: value_of(self.sweep.base, self.sweep.setting_of(name)) for name in panels}
        first = next(name for name in self.ranges if name in panels)
        title = (
            f"{first} moves validation top-1 by {points(self.ranges[first])}, more than the noise"
            f" of {points(self.noise)}"
            if self.ranges[first] > self.noise
            else f"{'No attribute' if only is None else only} moves validation top-1 by more than"
            f" the noise of {points(self.noise)}"
        )
        show(
            plots.responses(panels, base, self.band, title=title, ylabel="Validation top-1"),
            "Validation top-1 after the last epoch, one attribute changed at a time, with one seed."
            " Shaded: as far from the base setting as noise alone may lead.",
            f"Response curves of {list_of(list(panels))} with {self.name}. {title}.",
        )

    def show_grid(self) -> None:
        """The heat map of learning rate against the attribute that it is crossed with."""
        lr, value = self.best_cell
        best = self.cells[lr, value]
        title = (
            f"Best of the grid: lr {_text(lr)} with {self.sweep.crossed} {_text(value)},"
            f" {percent(best)}"
        )
        show(
            plots.heatmap(self.grid, title=title, label="Validation top-1", noise=self.noise),
            f"Validation top-1 over the learning rate and {self.sweep.crossed}.",
            f"A heat map of {self.grid.shape[0]} learning rates by {self.grid.shape[1]} values of"
            f" {self.sweep.crossed}. {title}.",
        )

    def show_table(self) -> None:
        """Every member: its scores, the gap between training and test, its effective step."""
        rows = []
        for e in self.sweep.members:
            result = self.results.get(e.id)
            m = result.metrics if result else {}
            shares = [m.get(k, math.nan) for k in ("val_top1", "test_top1", "test_top5")]
            gap = m.get("train_top1", math.nan) - m.get("test_top1", math.nan)
            step = f"{step_of(result):.2g}" if result else "diverged"
            cells = ["–" if math.isnan(x) else f"{100 * x:.1f}" for x in (*shares, gap)]
            rows.append((said(e, self.sweep.base), *cells, step))
        columns = ["setting", "val. top-1", "test top-1", "test top-5", "gap", "step"]
        table(
            pd.DataFrame(rows, columns=columns),
            "Every run of the study: accuracies in per cent after the last epoch; gap: training"
            " less test top-1, in points; step: the effective step after the first epoch.",
        )

    def show_probes(self) -> None:
        """Gradients, second moments and effective steps of each stage over the epochs."""
        history = self.base.history.set_index("epoch")
        headings = {
            "gradient": "Gradient norm",
            "moment": "Second moment (rms)",
            "step": "Effective step",
        }
        panels = {
            heading: {s: history[f"{kind}_{s}"] for s in STAGES if f"{kind}_{s}" in history}
            for kind, heading in headings.items()
        }
        panels = {heading: series for heading, series in panels.items() if series}
        if not panels:
            display(Markdown("Nothing was measured: this run trained from random weights."))
            return
        last = {s: float(v.iloc[-1]) for s, v in panels["Effective step"].items()}
        large, small = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
        title = (
            f"A step changes {large} by {last[large]:.2g} of its norm, {small} by {last[small]:.2g}"
        )
        show(
            plots.lines(panels, title=title, log=list(panels)),
            "The base setting at the last step of each epoch, stage by stage: the norm of the"
            " gradient, the root mean square of the optimizer's second moment, and the effective"
            " step, the norm of a step's change relative to that of the weights.",
            f"Curves of {len(last)} stages over {len(history)} epochs. {title}.",
        )

    def show_steps(self) -> None:
        """Validation top-1 of every setting against its effective step."""
        chosen = [(step_of(self.results[e.id]), self.score(e), e) for e in self.candidates]
        chosen = [(step, score, e) for step, score, e in chosen if step > 0]
        if not chosen:
            return
        best = max(chosen, key=lambda item: item[1])
        low, high = min(step for step, _, _ in chosen), max(step for step, _, _ in chosen)
        title = (
            f"Effective steps from {low:.1g} to {high:.1g} of the weights' norm;"
            f" the best setting's is {best[0]:.1g}"
        )
        groups: dict[str, list[tuple[float, float]]] = {}
        for step, score, e in chosen:
            name = said(e, self.sweep.base)
            kind = "base" if name == "base" else "lr alone" if name.startswith("lr ") else "other"
            kind = "lr and another" if name.startswith("lr ") and "," in name else kind
            groups.setdefault(kind, []).append((step, score))
        show(
            steps_figure(groups, self.band, title=title),
            "Each setting of the study: validation top-1 against the effective step after the"
            " first epoch (geometric mean over the stages). Shaded: the noise floor.",
            f"A scatter chart of {len(chosen)} settings. {title}.",
        )

    def original(self, headline: Result) -> Result:
        """The result at the original's learning rate if the study has one, else the headline's."""
        lr = self.sweep.responses["lr"].get(sweeps.ORIGINAL_LR)
        return self.results.get(lr.id, headline) if lr else headline

    def sources(self, headline: Result) -> list[Result]:
        """The results that the report's main figures come from, each once."""
        parent = headline.experiment.parent
        first = [self.results[parent.id]] if parent else []
        return list({r.id: r for r in (*first, headline, self.tuned)}.values())

    # Sentences

    def findings(self) -> list[str]:
        """What the study's numbers say, a sentence each."""
        return [*self._noise(), *self._attributes(), *self._grid(), *self._steps(), *self._gaps()]

    def _noise(self) -> list[str]:
        seeds = list_of([percent(s) for s in self.seed_scores])
        n, images = self.base.provenance["val_images"], self.base.metrics["test_images"]
        return [
            f"The noise floor: {len(self.seed_scores)} seeds of the base setting reach {seeds} on"
            f" the same {images:,} test images, and every choice rests on {n:,} validation images;"
            f" differences below {points(self.noise)} mean nothing here."
        ]

    def _attributes(self) -> list[str]:
        said_ = []
        for name in (name for name, size in self.ranges.items() if size > self.noise):
            values = self.sweep.responses[name]
            scores = {v: self.score(e) for v, e in values.items()}
            finite = {v: s for v, s in scores.items() if not math.isnan(s)}
            best, worst = max(finite, key=finite.__getitem__), min(finite, key=finite.__getitem__)
            base = value_of(self.sweep.base, self.sweep.setting_of(name))
            gone = [_text(v) for v in scores if v not in finite]
            said_.append(
                f"**{name}** matters: from {percent(finite[worst])} at {_text(worst)} to"
                f" {percent(finite[best])} at {_text(best)} (base: {_text(base)})"
                + (f"; {list_of(gone)} diverged." if gone else ".")
                + self._step_words({v: values[v] for v in (worst, best)})
            )
        within = [
            f"{name} ({points(size)})" for name, size in self.ranges.items() if size <= self.noise
        ]
        if within:
            said_.append(
                f"Within the noise: {list_of(within)}. Whether they matter cannot be told from"
                " runs of this size."
            )
        largest = next(iter(self.ranges))
        others = [name for name in self.ranges if name != "lr"]
        if largest == "lr" and self.ranges["lr"] > self.noise:
            said_.append(
                f"The learning rate moves accuracy most; after it {others[0]}"
                f" ({points(self.ranges[others[0]])})."
            )
        return said_

    def _step_words(self, pair: Mapping[Any, Experiment]) -> str:
        steps = [(v, step_of(self.results[e.id])) for v, e in pair.items()]
        if any(math.isnan(s) or s <= 0 for _, s in steps) or len(steps) < 2:
            return ""
        (worst, a), (best, b) = steps
        if 0.8 < a / b < 1.25:
            return " The effective step hardly differs between the two, so its size is not why."
        more = "larger" if a > b else "smaller"
        return (
            f" Its reason as measured: at {_text(worst)} the first epoch's effective step is"
            f" {max(a / b, b / a):.2g} times {more} than at {_text(best)}."
        )

    def _grid(self) -> list[str]:
        lr, value = self.best_cell
        highest = self.cells[lr, value]
        near = sum(score >= highest - 0.01 for score in self.cells.values())
        close = sum(score >= highest - self.noise for score in self.cells.values())
        text = (
            f"In the grid, lr {_text(lr)} with {self.sweep.crossed} {_text(value)} is best"
            f" ({percent(highest)}); {near} of {self.grid.size} cells lie within 1 point of it,"
            f" {close} within the noise."
        )
        edge = lr in (self.grid.index[0], self.grid.index[-1])
        said_ = [text + (" It lies at the edge of the rates tried." if edge else "")]
        if close == self.grid.size:
            return [*said_, "So the grid says nothing of how the two attributes act together."]
        best, crossed = self.grid.idxmax(), self.sweep.crossed
        serves = (self.grid >= self.grid.max() - self.noise).all(axis=1)
        if serves.any():
            rates = list_of([_text(float(rate)) for rate in self.grid.index[serves]])
            said_.append(
                f"Within the noise, a learning rate of {rates.replace(' and ', ' or ')} is as good"
                f" as the best at every {crossed} tried."
            )
        else:
            pairs = [f"{_text(rate)} at {_text(value)}" for value, rate in best.items()]
            said_.append(
                f"The best learning rate moves with {crossed}: {list_of(pairs)}. The two are tuned"
                " together, not one after the other."
            )
        return said_

    def _steps(self) -> list[str]:
        pairs = [(step_of(self.results[e.id]), self.score(e)) for e in self.candidates]
        pairs = [(a, b) for a, b in pairs if a > 0]
        if len(pairs) < 4:
            return []
        best = max(b for _, b in pairs)
        good = [a for a, b in pairs if b >= best - self.noise]
        low, high = min(good), max(good)
        said_ = [
            f"The {len(good)} settings that the noise does not tell from the best took effective"
            f" steps between {low:.1g} and {high:.1g} of the weights' norm."
        ]
        for words, outside in (
            ("larger", [b for a, b in pairs if a > high]),
            ("smaller", [b for a, b in pairs if a < low]),
        ):
            if outside:
                several = len(outside) > 1
                count = f"{len(outside)} settings" if several else "one setting"
                said_.append(
                    f"The {count} with {words} steps reached {percent(float(np.mean(outside)))}"
                    f"{' on average' if several else ''}: "
                    + (
                        "the pretrained weights are overwritten before they can help."
                        if words == "larger"
                        else "too little is learned in the epochs there are."
                    )
                )
        return said_

    def _gaps(self) -> list[str]:
        m, n = self.base.metrics, self.base.metrics["test_images"]
        gap = m["train_top1"] - m["test_top1"]
        gaps = {
            said(e, self.sweep.base): r.metrics["train_top1"] - r.metrics["test_top1"]
            for e in self.candidates
            for r in [self.results[e.id]]
        }
        most = max(gaps, key=gaps.__getitem__)
        return [
            f"The base setting's gap between training and test top-1 is {points(gap)}"
            f" ({n:,} test images); the largest of the study is {points(gaps[most])} ({most})."
        ]

    def answer(self, place: Any, headline: Result) -> None:
        """The answer in one paragraph, from the numbers."""
        largest = [name for name, size in self.ranges.items() if size > self.noise]
        what = (
            f"Of its attributes, {list_of(largest)} moved validation top-1 by more than the noise"
            f" ({points(self.noise)})."
            if largest
            else f"None of its attributes moved validation top-1 beyond the noise"
            f" ({points(self.noise)})."
        )
        e, images = headline.experiment, headline.metrics["test_images"]
        place.update(
            Markdown(
                f"ResNet18 {origin(e)}, fine-tuned for {e.schedule.epochs}"
                f" epoch{'s' * (e.schedule.epochs > 1)} with {self.name} on"
                f" {DATASETS[e.data.name].title} ({e.num_classes} classes), reaches a **top-5"
                f" accuracy of {report.accuracy(headline)}** on {images:,} test images, and a"
                f" top-1 accuracy of {report.accuracy(headline, 'test_top1')}. {what}"
                f" The best setting by validation ({self.tuned_words}) reaches"
                f" {percent(self.tuned.metrics['val_top1'])} on validation against the base"
                f" setting's {percent(self.base.metrics['val_top1'])}."
            )
        )


@rc_context(plots.STYLE)
def steps_figure(
    groups: Mapping[str, Sequence[tuple[float, float]]], band: tuple[float, float], *, title: str
) -> Figure:
    """Shares against effective steps on a logarithmic axis: {group: [(step, share)]}."""
    figure, grid = plots._figure(2.8, title)
    axes = grid[0, 0]
    handles: dict[str, Any] = {"noise floor of the base setting": axes.axhspan(*band, color="#DDD")}
    for i, (name, pairs) in enumerate(groups.items()):
        look: Any = {"color": plots.COLORS[i], "marker": plots.MARKERS[i], "s": 30, "zorder": 3}
        handles[name] = axes.scatter(*zip(*pairs), **look)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="Effective step (relative change of the weights)", ylabel="Validation top-1")
    plots._percent_axis(axes)
    plots._legend(figure, handles)
    return figure


# Where training starts, and the published figures


def origin(e: Experiment) -> str:
    """Where training started, in words."""
    if e.parent:
        what = "the negatives of " if e.parent.data.inverted else ""
        return f"pretrained on {what}{DATASETS[e.parent.data.name].title}"
    return "pretrained on ImageNet" if e.model.weights == "imagenet" else "from random weights"


def without_probes(result: Result) -> Result:
    """The result with a history that leaves out what the probes measured."""
    plain = Result(result.folder)
    probes = ("gradient_", "moment_", "step_")
    kept = [name for name in plain.history if not str(name).startswith(probes)]
    plain.history = plain.history[kept]
    return plain


def show_source(headline: Experiment, results: Mapping[str, Result]) -> None:
    """What the starting weights come from, in a table or a sentence."""
    if not headline.parent:
        display(Markdown(f"This run starts {origin(headline)}."))
        return
    result = results[headline.parent.id]
    e, p = result.experiment, result.provenance
    size = e.data.image_size or DATASETS[e.data.name].image_size
    rows = [
        ("data", f"{DATASETS[e.data.name].title}{', inverted' if e.data.inverted else ''}"),
        ("classes", f"{e.num_classes}"),
        ("training images", f"{p['train_images']:,}, {size} x {size} pixels"),
        ("epochs", f"{e.schedule.epochs}"),
        ("stem", e.model.stem),
        ("its own test top-5", report.accuracy(result)),
        ("its own test top-1", report.accuracy(result, "test_top1")),
        ("identity", result.id),
    ]
    table(pd.DataFrame(rows, columns=["", "the starting weights"]), "Where fine-tuning starts.")


def limitations(headline: Result, noise: float) -> list[str]:
    """What the study cannot say, from its own settings."""
    e = headline.experiment
    said_ = report.limitations(headline)
    if e.parent:
        source = e.parent
        words = (
            "The starting weights are not ImageNet's: they come from our own ResNet18, trained on"
            f" {DATASETS[source.data.name].title}"
        )
        if source.data.per_class:
            words += f" with at most {source.data.per_class} images a class"
        said_.append(f"{words}. Better weights would raise every figure, and may favour others.")
        if source.data.name == e.data.name:
            said_.append(
                "Source and target show images of the same data set, the source's inverted: the"
                " transfer is easier than between two data sets."
            )
    if e.model.weights == "imagenet" and e.data.name == "stl10":
        said_.append(
            "STL-10's images were taken from ImageNet, so ImageNet's weights may have seen test"
            " images or their likes: the figure is too good for images that are really new."
        )
    said_.append(
        f"Each setting beside the base was trained with one seed; differences below"
        f" {points(noise)} are noise. A setting chosen as the best of many looks better on"
        " validation than it is; its test figure does not have that fault."
    )
    return said_


def show_published(rows: Mapping[str, Result]) -> None:
    """Our test figures beside the published ones: {optimizer: result at the original's rate}."""
    lines = []
    for name, result in rows.items():
        m, old = result.metrics, PUBLISHED["lab3"][name]
        ours = f"{percent(m['test_top5'])} / {percent(m['test_top1'])}"
        theirs = f"{percent(old['top5'])} / {percent(old['top1'])}"
        gaps = m["train_top1"] - m["test_top1"], old["train_top1"] - old["top1"]
        lines.append((OPTIMIZERS[name], theirs, ours, *(f"{100 * gap:.1f}" for gap in gaps[::-1])))
    e = next(iter(rows.values())).experiment
    columns = ["optimizer", "published top-5 / top-1", "ours", "published gap", "our gap"]
    table(
        pd.DataFrame(lines, columns=columns),
        "Published test accuracy and ours, at lr 0.001; gap: training less test top-1, in points.",
    )
    same = e.data.name == "stl10" and e.model.weights == "imagenet" and e.schedule.epochs == 10
    if same:
        display(Markdown("Like for like, but for the images that the original evaluated on."))
        return
    display(
        Markdown(
            "The two columns are not comparable. Published: ImageNet's weights, STL-10, 10 epochs,"
            f" 1,000 test images. Ours: {origin(e)}, {DATASETS[e.data.name].title},"
            f" {e.num_classes} classes, {e.schedule.epochs}"
            f" epoch{'s' * (e.schedule.epochs > 1)}. The preset `original` is the like-for-like"
            " row; it needs ImageNet's weights and STL-10."
        )
    )
