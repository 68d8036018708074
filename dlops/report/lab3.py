"""What only the notebooks of lab 3 need: a study's runs as a data frame, and how much is noise.

Settings are chosen by validation top-5, and by nothing else; test figures stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from scipy.stats import norm, studentized_range

from dlops.experiment import KEEP, Experiment
from dlops.report.live import Live
from dlops.report.output import table
from dlops.report.page import Answer, accuracy, estimate, percent
from dlops.report.page import limitations as usual_limitations
from dlops.report.quantities import ALPHA, Quantity, difference, spread, values
from dlops.report.style import FAINT, INK, PALETTE, drawing, is_narrow, panels, percent_axis
from dlops.runs import run_all
from dlops.series import PUBLISHED
from dlops.series.sweeps import OPTIMIZERS, ORIGINAL_LR, Sweep, fixed_rates, value_of
from dlops.settings import DATASETS, DlopsError
from dlops.store import Result, Store
from dlops.train import Diverged

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
ONE_RATE = "in this preset only one rate has several seeds"
SCORES = ("val_top5", "val_top1", "val_loss", "test_top5", "test_top1", "train_top1")


def collect(wanted: Iterable[Experiment], answer: Answer | None = None) -> dict[str, Result]:
    """The results by identity, trained where they are missing; a run that diverged has none.

    Of a source whose result is published, no weights are asked for unless something trains.
    """
    asked = sorted(wanted, key=lambda e: KEEP.index(e.keep))
    most = {e.id: e for e in asked}  # of two that differ in what they keep, the one that keeps more
    store = Store()
    found = {name: store.get(e) for name, e in most.items()}
    results = {name: result for name, result in found.items() if result}
    missing = [e for e in most.values() if e.id not in results and not diverged(e)]
    live = Live(answer, total=len(missing))
    errors: list[Exception] = []

    def told(experiment: Experiment, outcome: Result | Exception) -> None:
        live.on_result(experiment, outcome)
        if isinstance(outcome, Result):
            results[experiment.id] = outcome
        elif not (isinstance(outcome, Diverged) and experiment.keep == "metrics"):
            errors.append(outcome)

    try:
        run_all(missing, progress=live, on_result=told)
    except DlopsError:
        if errors:
            raise errors[0] from None
    return results


def diverged(experiment: Experiment) -> bool:
    """Whether a member of a sweep was trained and diverged, which is a finding."""
    return experiment.keep == "metrics" and Store().failure(experiment) is not None


def step_of(result: Result) -> float:
    """The effective step after the first epoch: the geometric mean over the stages; nan if none."""
    row = result.history.iloc[0]
    steps = [row[f"step_{stage}"] for stage in STAGES if row.get(f"step_{stage}", 0) > 0]
    return float(np.exp(np.mean(np.log(steps)))) if steps else math.nan


def text(value: Any) -> str:
    """A setting's value as figures write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def _range(k: int, level: float) -> float:
    """The range of k standard normal values at that level; of one, its distance from zero."""
    if k == 1:
        return float(norm.ppf((1 + level) / 2))
    return float(studentized_range.ppf(level, k, np.inf))


class Study:
    """The results of one optimizer's sweep.

    Raises DlopsError if the base setting itself has no result.
    """

    def __init__(self, sweep: Sweep, results: Mapping[str, Result]) -> None:
        self.sweep, self.results = sweep, results
        self.name = OPTIMIZERS[sweep.base.optimizer.name]
        self.color = PALETTE[sweep.base.optimizer.name]
        if sweep.base.id not in results:
            raise DlopsError(f"The base setting of the study with {self.name} has no result.")
        self.base = self.of(sweep.seeds)

    def of(self, experiments: Iterable[Experiment]) -> list[Result]:
        """The results of experiments, those that diverged left out."""
        return [self.results[e.id] for e in experiments if e.id in self.results]

    def frame(self) -> pd.DataFrame:
        """A row a run: optimizer, attribute ("base", or "grid" if two change), value, seed, lr,
        the SCORES (nan for one that diverged), step (the effective one), changes ("base" or words).
        """
        sweep = self.sweep
        place: dict[str, tuple[str, Any]] = {}
        for name, axis in sweep.responses.items():
            place |= {e.id: (name, value) for value, e in axis.items()}
        for lr, seeds in sweep.rates.items():
            place |= {e.id: ("lr", lr) for e in seeds}
        for name, seeds in sweep.claimed.items():
            place |= {e.id: (name, value_of(seeds[0], sweep.setting_of(name))) for e in seeds}
        place |= {e.id: ("base", None) for e in sweep.seeds}
        rows = []
        for e in sweep.members:
            attribute, value = place.get(e.id, ("grid", None))
            result = self.results.get(e.id)
            scores = {name: result.metrics[name] if result else math.nan for name in SCORES}
            step = step_of(result) if result else math.nan
            changes = e.with_(seed=sweep.base.seed).differs(sweep.base) or "base"
            first = (self.name, attribute, value, e.seed, e.optimizer.lr)
            rows.append((*first, *scores.values(), step, changes))
        columns = ["optimizer", "attribute", "value", "seed", "lr", *SCORES, "step", "changes"]
        return pd.DataFrame(rows, columns=columns)

    def response(self, attribute: str) -> pd.DataFrame:
        """The rows of one attribute and of the base setting, by its value; value is text."""
        frame = self.frame()
        own = value_of(self.sweep.base, self.sweep.setting_of(attribute))
        rows = frame[frame.attribute.isin([attribute, "base"])]
        rows = rows.assign(value=rows.value.where(rows.attribute != "base", own))
        rows = rows.sort_values("value", kind="stable")
        return rows.assign(value=rows.value.map(text))

    def grid(self, metric: str = "val_top5") -> pd.DataFrame:
        """A row a learning rate, a column a value of the attribute that it is crossed with."""
        cells = {
            (text(lr), text(value)): self.results[e.id].metrics[metric]
            if e.id in self.results
            else math.nan
            for (lr, value), e in self.sweep.grid.items()
        }
        frame = pd.Series(cells).unstack(sort=False)
        frame.index.name, frame.columns.name = "lr", self.sweep.crossed
        return frame

    # What is noise ------------------------------------------------------------------------------

    @cached_property
    def deviation(self) -> float:
        """Standard deviation of one validation top-5: over the base setting's seeds, or of a share
        of so many images, whichever is larger."""
        scores = [result.metrics["val_top5"] for result in self.base]
        n = self.base[0].provenance["val_images"]
        p = (np.mean(scores) * n + 1) / (n + 2)
        seeds = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        return max(seeds, math.sqrt(p * (1 - p) / n))

    def floor(self, k: int = 2, of: int = 1) -> float:
        """How far apart the best and the worst of k equal settings lie at most, in 95 of 100 cases;
        k = 1: how far one lies from its mean. of: the number of such ranges that are looked at."""
        return self.deviation * _range(k, 1 - ALPHA / of)

    def effects(self) -> pd.DataFrame:
        """A row an attribute, largest first: lowest and highest validation top-5 with their values
        (one seed), their range, the floor of such a range, moved, how many diverged, and the
        effective step at the lowest over that at the highest."""
        rows = []
        for name, axis in self.sweep.responses.items():
            found = {value: r for value, e in axis.items() for r in self.of([e])}
            scores = {value: r.metrics["val_top5"] for value, r in found.items()}
            low, high = min(scores, key=scores.__getitem__), max(scores, key=scores.__getitem__)
            width, lost = scores[high] - scores[low], len(axis) - len(scores)
            floor = self.floor(len(axis), of=len(self.sweep.responses))
            steps = step_of(found[low]) / step_of(found[high])
            cells = (width, floor, width > floor or lost > 0, lost, steps)
            rows.append((name, low, scores[low], high, scores[high], *cells))
        columns = ["attribute", "worst", "lowest", "best", "highest", "range", "floor", "moved"]
        frame = pd.DataFrame(rows, columns=[*columns, "diverged", "step ratio"])
        frame = frame.sort_values("range", ascending=False, kind="stable")
        return frame.set_index("attribute")

    def title(self, attribute: str) -> str:
        """What the response to one attribute shows, on either side of the noise."""
        row: Any = self.effects().loc[attribute]
        noise = f"{100 * row.floor:.1f} points"
        if row.diverged:
            return f"{attribute}: {row.diverged} of its values made training diverge"
        span = f"{percent(row.lowest)} at {text(row.worst)} to {percent(row.highest)}"
        span += f" at {text(row.best)}"
        if row.moved:
            return f"{attribute} moves validation top-5 by more than noise ({noise}): {span}"
        return f"{attribute} moves validation top-5 no more than noise does ({noise}): {span}"

    def picked(self) -> pd.Series:
        """The row of the highest validation top-5 of one seed; of equals that of the lowest loss.
        Being the best of many flatters it."""
        frame = self.frame()
        frame = frame[frame.seed == self.sweep.base.seed]
        return frame.sort_values(["val_top5", "val_loss"], ascending=[False, True]).iloc[0]

    def fitted(self) -> pd.DataFrame:
        """One seed's runs with log_step, and left_over: their validation top-5 less what a parabola
        in log_step expects."""
        frame = self.frame()
        frame = frame[frame.seed == self.sweep.base.seed].dropna(subset=["step", "val_top5"])
        steps = np.log10(frame.step)
        expected = np.polyval(np.polyfit(steps, frame.val_top5, min(2, len(frame) - 1)), steps)
        return frame.assign(log_step=steps, left_over=frame.val_top5 - expected)

    # What claims stand on -----------------------------------------------------------------------

    def against_base(self, attribute: str, metric: str = "val_top5") -> Quantity:
        """The claimed value of an attribute less the base setting, paired by seed."""
        changed = self.of(self.sweep.claimed[attribute])
        if not changed:
            return Quantity(reason="every run diverged")
        return difference(changed, self.base, metric)

    def step_ratio(self, attribute: str) -> Quantity:
        """The effective step at the claimed value over the base setting's, paired by seed."""
        base = {result.experiment.seed: step_of(result) for result in self.base}
        changed = self.of(self.sweep.claimed[attribute])
        return values({r.experiment.seed: step_of(r) / base[r.experiment.seed] for r in changed})

    def rates(self) -> dict[float, list[Result]]:
        """The seeds of each of the rates that every optimizer gets; without the diverged."""
        found = {lr: self.of(seeds) for lr, seeds in self.sweep.rates.items()}
        return {lr: results for lr, results in found.items() if results}

    def tuned(self) -> list[Result]:
        """The seeds of the rate with the highest mean validation top-5; ties: the lowest loss."""

        def mean(results: Sequence[Result], name: str) -> float:
            return float(np.mean([result.metrics[name] for result in results]))

        return max(self.rates().values(), key=lambda r: (mean(r, "val_top5"), -mean(r, "val_loss")))

    def original(self) -> list[Result]:
        """The seeds of the base setting at the original's learning rate; none if there are none."""
        base = self.sweep.base
        rest = (e for e in self.sweep.members if e.optimizer.lr == ORIGINAL_LR)
        return self.of(e for e in rest if e.with_(lr=base.optimizer.lr, seed=base.seed) == base)

    def over_rates(self) -> Quantity:
        """How far apart validation top-5 lies over these rates."""
        groups = {text(lr): results for lr, results in self.rates().items()}
        if len(groups) < 2:
            return Quantity(reason=ONE_RATE, unit="points")
        return spread(groups, "val_top5")


@drawing
def effects(study: Study) -> Figure:
    """A row an attribute: validation top-5 of each of its values, and what noise may do."""
    frame = study.effects()
    moved = list(frame.index[frame.moved])
    title = (
        f"{' and '.join(moved)} {'moves' if len(moved) == 1 else 'move'} validation top-5 by more"
        " than noise"
        if moved
        else "No attribute moves validation top-5 by more than noise"
    )
    height = 0.5 + (0.42 if is_narrow() else 0.34) * len(frame)
    figure, (axes,) = panels(1, title, height=height)
    middle = float(np.mean([r.metrics["val_top5"] for r in study.base]))
    axes.axvspan(middle - study.floor(2), min(1, middle + study.floor(2)), color=FAINT, alpha=0.4)
    for y, name in enumerate(frame.index):
        axis = study.sweep.responses[name]
        found = {v: r.metrics["val_top5"] for v, e in axis.items() for r in study.of([e])}
        axes.hlines(y, min(found.values()), max(found.values()), color=study.color, lw=1.2)
        for value, x in found.items():
            own = axis[value].id == study.sweep.base.id
            axes.plot(x, y, "D" if own else "o", color=INK if own else study.color, ms=5)
        row = frame.loc[name]
        if row.moved:
            place: Any = {"textcoords": "offset points", "xytext": (-5, 0), "ha": "right"}
            axes.annotate(text(row.worst), (row.lowest, y), va="center", size=7.5, **place)
    axes.set_yticks(range(len(frame)), list(frame.index))
    axes.set(ylim=(len(frame) - 0.5, -0.5), xlabel="validation top-5, one attribute changed")
    left, right = axes.get_xlim()
    axes.set_xlim(left - 0.08 * (right - left), min(right, 1.01))
    axes.grid(axis="y", visible=False)
    percent_axis(axes, "x")
    return figure


# The four compared --------------------------------------------------------------------------------

Groups = dict[str, dict[str, list[Result]]]  # {setting: {optimizer: its seeds}}


def groups(studies: Mapping[str, Study], preset: str) -> Groups:
    """The runs at the original's rate, at each optimizer's usual one, and tuned."""
    found: Groups = {}
    for name, study in studies.items():
        for setting, seeds in fixed_rates(study.sweep.base, preset).items():
            if results := study.of(seeds):
                found.setdefault(setting, {})[name] = results
    return {**found, "tuned": {name: study.tuned() for name, study in studies.items()}}


def _by_seed(results: Sequence[Result], metric: str) -> dict[int, float]:
    return {result.experiment.seed: result.metrics[metric] for result in results}


def mean_difference(
    a: Mapping[str, Sequence[Result]], b: Mapping[str, Sequence[Result]], metric: str
) -> Quantity:
    """The metric of a less that of b, the mean over the optimizers, one a seed that all have."""
    pairs = [(_by_seed(a[name], metric), _by_seed(b[name], metric)) for name in b if name in a]
    seeds = sorted(set.intersection(*(set(one) for pair in pairs for one in pair)))
    each = {seed: float(np.mean([x[seed] - y[seed] for x, y in pairs])) for seed in seeds}
    return values(each, "points", signed=True)


def least_loss(studies: Mapping[str, Study]) -> Quantity:
    """What a wrong rate costs at least, one a seed: the smallest, over optimizers and their equal
    rates but the tuned one, of the loss in validation top-5."""
    losses: dict[int, list[float]] = {}
    for study in studies.values():
        best = _by_seed(study.tuned(), "val_top5")
        for results in study.rates().values():
            for seed, score in _by_seed(results, "val_top5").items():
                if results[0].id != study.tuned()[0].id and seed in best:
                    losses.setdefault(seed, []).append(best[seed] - score)
    if not losses:
        return Quantity(reason=ONE_RATE, unit="points")
    return values({seed: min(each) for seed, each in losses.items()}, "points")


# Where training starts, and the published figures -------------------------------------------------


def origin(e: Experiment) -> str:
    """Where training started, in words."""
    if e.parent:
        what = "the negatives of " if e.parent.data.inverted else ""
        return f"pretrained on {what}{DATASETS[e.parent.data.name].title}"
    return "pretrained on ImageNet" if e.model.weights == "imagenet" else "from random weights"


def _epochs(e: Experiment) -> str:
    return f"{e.schedule.epochs} epoch{'s' * (e.schedule.epochs > 1)}"


def show_source(e: Experiment, results: Mapping[str, Result]) -> None:
    """Say where the starting weights come from."""
    words = f"The starting weights are those of a ResNet18 {origin(e)}"
    if source := e.parent:
        result = results[source.id]
        size = source.data.image_size or DATASETS[source.data.name].image_size
        words += (
            f": {source.num_classes} classes, {result.provenance['train_images']:,} training images"
            f" of {size} x {size} pixels, {_epochs(source)}. That network's own test"
            f" top-5 is {accuracy([result])}"
        )
    display(Markdown(f"{words}."))


def show_published(rows: Mapping[str, Sequence[Result]]) -> None:
    """Our test figures beside the published ones: {optimizer: its seeds at the original's rate}."""
    lines = []
    rows = {name: results for name, results in rows.items() if results}
    if not rows:
        display(Markdown("This preset trains nothing at the original's learning rate of 0.001."))
        return
    for name, results in rows.items():
        old = PUBLISHED["lab3"][name]
        ours = [percent(estimate(results, f"test_top{k}")[0]) for k in (5, 1)]
        theirs = [percent(old[f"top{k}"]) for k in (5, 1)]
        n = len(results)
        lines.append((OPTIMIZERS[name], *theirs, *ours, f"{n} seed{'s' * (n > 1)}"))
    columns = ["optimizer", "published top-5", "top-1", "our top-5", "our top-1", "n"]
    table(pd.DataFrame(lines, columns=columns), "Published test accuracy and ours, at lr 0.001.")
    e = next(iter(rows.values()))[0].experiment
    if e.data.name == "stl10" and e.model.weights == "imagenet" and e.schedule.epochs == 10:
        display(Markdown("Like for like, but for the images that the original evaluated on."))
        return
    display(
        Markdown(
            "**Not comparable.** Published: ImageNet's weights, STL-10, 10 epochs, 1,000 test"
            " images; and STL-10's images were taken from ImageNet, so that those weights may have"
            f" seen them. Ours: {origin(e)}, {DATASETS[e.data.name].title}, {e.num_classes}"
            f" classes, {_epochs(e)}. The preset"
            " `original` is the like-for-like row."
        )
    )


def limitations(results: Sequence[Result]) -> list[str]:
    """What the study cannot say, from its own settings."""
    e, said = results[0].experiment, usual_limitations(results)
    if source := e.parent:
        words = f"Fine-tuning starts from our own ResNet18, {origin(e)}"
        if source.data.per_class:
            words += f" with at most {source.data.per_class} images a class"
        said.append(
            f"{words}, not from ImageNet's weights. Better weights would raise each figure."
        )
        if source.data.name == e.data.name:
            said.append(
                "Source and target show images of the same data set, the source's inverted: the"
                " transfer is easier than between two data sets."
            )
    if e.model.weights == "imagenet" and e.data.name == "stl10":
        said.append(
            "STL-10's images were taken from ImageNet, so ImageNet's weights may have seen test"
            " images or their likes: the figure is too good for images that are really new."
        )
    said.append(
        "A value that no claim stands on was trained with one seed: what it shows is about that"
        " network. The noise floor covers validation images and the base setting's seeds."
    )
    return said


def without_probes(results: Sequence[Result]) -> list[Result]:
    """The results with histories that leave out what was measured stage by stage."""
    plain = [Result(result.folder) for result in results]
    for result in plain:
        names = [str(name) for name in result.history]
        result.history = result.history[[n for n in names if n.split("_")[-1] not in STAGES]]
    return plain
