"""The comparison of lab 3: four optimizers at one rate, at their own, and each tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from typing import Any

import pandas as pd
from IPython.display import Markdown

from dlops import metrics, plots, study
from dlops.experiment import Experiment
from dlops.report import interval, percent, show, table
from dlops.series import sweeps
from dlops.series.sweeps import OPTIMIZERS
from dlops.settings import DATASETS, describe
from dlops.store import Result
from dlops.study import Study, list_of, origin, points, said, step_of

WORDS = {
    "lr 0.001": "At the original's learning rate of 0.001",
    "own default": "At torch's default rates",
    "tuned": "Each tuned on validation",
}
SETTINGS = tuple(WORDS)
TARGET = 0.9  # of the best run's validation top-1: what "epochs to a target" counts to


def times(ratio: float) -> str:
    """How much larger, in words: "a factor of 2.3", "a factor of 2,300"."""
    return f"a factor of {ratio:,.0f}" if ratio >= 10 else f"a factor of {ratio:.1f}"


class Contest:
    """Every optimizer's study, and one result for each optimizer and setting of SETTINGS."""

    def __init__(self, preset: str, **parameters: Any) -> None:
        self.headlines = sweeps.headlines(preset, **parameters)
        plans = {name: sweeps.sweep(e, preset) for name, e in self.headlines.items()}
        self.seeds = {name: sweeps.headline_seeds(e, preset) for name, e in self.headlines.items()}
        self.results = study.collect(sweeps.comparison(preset, **parameters))
        self.studies = {name: Study(plan, self.results) for name, plan in plans.items()}
        self.rows: dict[str, dict[str, Result | None]] = {
            setting: {
                name: s.tuned
                if setting == "tuned"
                else self.results.get(sweeps.fixed_rates(s.sweep.base)[setting].id)
                for name, s in self.studies.items()
            }
            for setting in SETTINGS
        }

    @property
    def first(self) -> Experiment:
        """An experiment that stands for what all have in common."""
        return next(iter(self.headlines.values()))

    @property
    def headline_results(self) -> dict[str, list[Result]]:
        """{optimizer: the headline runs of all seeds}"""
        return {name: [self.results[e.id] for e in group] for name, group in self.seeds.items()}

    def finished(self, setting: str) -> dict[str, Result]:
        """The results of a setting, by optimizer; those that diverged left out."""
        return {name: r for name, r in self.rows[setting].items() if r}

    def best(self, setting: str, by: str = "val_top1") -> str:
        """The optimizer with the highest figure in a setting."""
        rows = self.finished(setting)
        return max(rows, key=lambda name: rows[name].metrics[by])

    @cached_property
    def target(self) -> float:
        """The validation top-1 that epochs are counted to."""
        return TARGET * max(r.metrics["val_top1"] for r in self.finished("tuned").values())

    @cached_property
    def noise(self) -> float:
        """The largest noise floor of the studies."""
        return max(s.noise for s in self.studies.values())

    def epochs_to_target(self, result: Result) -> int | None:
        """The first epoch after which validation top-1 reached the target, if one did."""
        reached = result.history.loc[result.history.val_top1 >= self.target, "epoch"]
        return int(reached.iloc[0]) if len(reached) else None

    def headline(self) -> dict[str, str]:
        """What the index shows."""
        best = self.best("tuned")
        m = self.finished("tuned")[best].metrics
        return {
            "Best when tuned": OPTIMIZERS[best],
            "test top-5": percent(m["test_top5"]),
            "top-1": percent(m["test_top1"]),
        }

    def sources(self) -> list[Result]:
        """The run that was started from, and the best tuned one."""
        first = [self.results[e.id] for e in sweeps.start(self.first)]
        return [*first, self.finished("tuned")[self.best("tuned")]]

    # Figures and tables

    def show_settings(self, preset: str) -> None:
        """The settings that all four share, but for those that are off."""
        off = (None, False, 0, "none", ())
        first, *rest = (e.settings for e in self.headlines.values())
        rows = [("preset", preset, "where these numbers come from")]
        rows += [
            (name, value, describe(name))
            for name, value in first.items()
            if all(name in other and other[name] == value for other in rest)
            and (name == "seed" or not any(value is x or value == x for x in off))
        ]
        frame = pd.DataFrame(rows, columns=["setting", "value", "meaning"])
        table(frame, "The settings that all four share; what is not listed is off.")

    def show_scores(self) -> None:
        """Every optimizer in every setting, as a table."""
        lines: list[tuple[Any, ...]] = []
        for setting, row in self.rows.items():
            for place, (name, result) in enumerate(row.items()):
                first = "" if place else setting
                if result is None:
                    lines.append((first, OPTIMIZERS[name], "diverged", *["–"] * 4))
                    continue
                m, n = result.metrics, result.metrics["test_images"]
                ranges = [interval(m[k], n) for k in ("test_top5", "test_top1")]
                shares = [
                    f"{100 * m[k]:.1f}\u00a0({100 * low:.0f}\u2060–\u2060{100 * high:.0f})"
                    for k, (low, high) in zip(("test_top5", "test_top1"), ranges)
                ]
                e, base = result.experiment, self.studies[name].sweep.base
                others = said(e.with_(lr=base.optimizer.lr), base)
                words = f"lr {e.optimizer.lr:g}" + (f", {others}" if others != "base" else "")
                epoch = self.epochs_to_target(result)
                lines.append(
                    (
                        first,
                        OPTIMIZERS[name],
                        words,
                        *shares,
                        f"{100 * m['val_top1']:.1f}",
                        epoch or "never",
                    )
                )
        columns = ["setting", "optimizer", "attributes", "test top-5", "test top-1"]
        columns += ["val. top-1", "epochs"]
        table(
            pd.DataFrame(lines, columns=columns),
            "All four in all three settings: accuracies in per cent, in brackets Wilson's 95 %"
            " interval over the test images; tuned: the best of the study by validation. Epochs:"
            f" to a validation top-1 of {percent(self.target)}, 90 % of the best tuned run's.",
        )

    def show_intervals(self, metric: str = "test_top1") -> None:
        """The test accuracies of all settings as a forest plot."""
        words = "top-5" if metric.endswith("5") else "top-1"
        rows: dict[str, tuple[float, float | None, float | None]] = {}
        for setting in SETTINGS:
            for name, r in self.finished(setting).items():
                share, n = r.metrics[metric], r.metrics["test_images"]
                rows[f"{OPTIMIZERS[name]}, {setting}"] = (share, *interval(share, n))
        tuned = {name: r.metrics[metric] for name, r in self.finished("tuned").items()}
        high, low = max(tuned, key=tuned.__getitem__), min(tuned, key=tuned.__getitem__)
        title = (
            f"Tuned, the four reach a test {words} between {percent(tuned[low])}"
            f" ({OPTIMIZERS[low]}) and {percent(tuned[high])} ({OPTIMIZERS[high]})"
            if tuned[low] < tuned[high]
            else f"Tuned, all four reach a test {words} of {percent(tuned[high])}"
        )
        show(
            plots.intervals(rows, title=title, xlabel=f"Test {words} accuracy"),
            f"Test {words} with Wilson's 95 % intervals.",
            f"A forest plot of {len(rows)} runs. {title}.",
        )

    def show_curves(self, setting: str) -> None:
        """Loss and accuracy over the epochs of all four in one setting."""
        rows = self.finished(setting)
        columns = {
            "Training loss": "train_loss",
            "Training top-1": "train_top1",
            "Validation top-1": "val_top1",
        }
        panels = {
            heading: {OPTIMIZERS[n]: r.history.set_index("epoch")[column] for n, r in rows.items()}
            for heading, column in columns.items()
        }
        losses = pd.concat(panels["Training loss"].values())
        log = ["Training loss"] if losses.max() > 100 * losses.min() > 0 else []
        best = self.best(setting)
        title = (
            f"{WORDS[setting]}, {OPTIMIZERS[best]} ends with the highest validation top-1,"
            f" {percent(rows[best].metrics['val_top1'])}"
        )
        show(
            plots.lines(panels, title=title, percent=list(columns)[1:], log=log),
            f"Training loss, training and validation top-1 after each epoch, {setting}.",
            f"Three panels with a curve for each of {list_of([OPTIMIZERS[n] for n in rows])}."
            f" {title}.",
        )

    def show_headlines(self) -> None:
        """The headline run of each optimizer over the seeds."""
        lines = []
        for name, group in self.headline_results.items():
            cells = []
            for metric in ("test_top5", "test_top1", "val_top1"):
                shares = pd.Series([r.metrics[metric] for r in group])
                cells.append(f"{100 * shares.mean():.1f} ± {100 * shares.std():.1f}")
            lr = f"{self.headlines[name].optimizer.lr:g}"
            lines.append((OPTIMIZERS[name], lr, *cells, len(group)))
        columns = ["optimizer", "lr", "test top-5", "test top-1", "val. top-1", "seeds"]
        table(
            pd.DataFrame(lines, columns=columns),
            "Each optimizer's base setting over several seeds: mean and standard deviation, in per"
            " cent.",
        )

    def show_pairs(self) -> None:
        """Paired tests between the headline runs on the same test images."""
        runs = {name: group[0] for name, group in self.headline_results.items()}
        right = {name: r.predictions[:, 0] == r.labels for name, r in runs.items()}
        lines = []
        for a, b in combinations(runs, 2):
            difference, low, high = metrics.paired_bootstrap(right[a], right[b])
            lines.append(
                (
                    f"{OPTIMIZERS[a]} less {OPTIMIZERS[b]}",
                    f"{100 * difference:+.1f}",
                    f"{100 * low:+.1f} to {100 * high:+.1f}",
                    f"{min(1.0, 6 * metrics.mcnemar(right[a], right[b])):.2g}",
                )
            )
        columns = ["base settings", "difference in top-1", "95 % interval", "p"]
        table(
            pd.DataFrame(lines, columns=columns),
            "Differences in test top-1 between the base settings, in points, on the same test"
            " images: paired bootstrap, and McNemar's exact test times six, for six pairs.",
        )

    def show_sensitivity(self) -> None:
        """How quickly accuracy falls from each optimizer's best setting to its worst."""
        profiles = {}
        for name, s in self.studies.items():
            scores = sorted((s.score(e) for e in s.candidates), reverse=True)
            shares = [(i + 0.5) / len(scores) * 100 for i in range(len(scores))]
            profiles[OPTIMIZERS[name]] = pd.Series(scores, index=shares)
        within = self.within(0.01)
        close = {name: self.within(s.noise)[name] for name, s in self.studies.items()}
        most, least = max(close, key=close.__getitem__), min(close, key=close.__getitem__)
        title = (
            f"The noise does not tell {percent(close[most], 0)} of {OPTIMIZERS[most]}'s settings"
            f" from its best, but only {percent(close[least], 0)} of {OPTIMIZERS[least]}'s"
            if close[most] > close[least]
            else f"The noise does not tell {percent(close[most], 0)} of the settings from the best"
        )
        heading = "Validation top-1"
        show(
            plots.lines(
                {heading: profiles},
                title=title,
                xlabel="Settings of the study, best first (per cent of them)",
                percent=[heading],
            ),
            "Validation top-1 of every setting of each study, sorted. A flat curve forgives a"
            " badly chosen setting; a steep one does not.",
            f"Four falling curves. {title}.",
        )
        lines = [
            (
                OPTIMIZERS[name],
                len(s.candidates),
                percent(within[name], 0),
                percent(close[name], 0),
                percent(self.within(0.01, grid=True)[name], 0),
                next(iter(s.ranges)),
            )
            for name, s in self.studies.items()
        ]
        columns = ["optimizer", "settings", "within 1 point of the best", "within its noise"]
        columns += ["of its grid within 1 point", "largest effect"]
        table(pd.DataFrame(lines, columns=columns), "Sensitivity of each optimizer to its setting.")

    def within(self, margin: float, grid: bool = False) -> dict[str, float]:
        """The share of each study's settings (or grid) at most `margin` below its best."""
        shares = {}
        for name, s in self.studies.items():
            scores = list(s.cells.values()) if grid else [s.score(e) for e in s.candidates]
            best = max(score for score in scores if not math.isnan(score))
            shares[name] = sum(score >= best - margin for score in scores) / len(scores)
        return shares

    # Sentences

    def answer(self, place: Any) -> None:
        """The answer in one paragraph, from the numbers."""
        e, best, fixed = self.first, self.best("tuned"), self.best("lr 0.001")
        m = self.finished("tuned")[best].metrics
        low, high = interval(m["test_top5"], m["test_images"])
        place.update(
            Markdown(
                f"Fine-tuning ResNet18 {origin(e)} on {DATASETS[e.data.name].title}"
                f" ({e.num_classes} classes): tuned on validation, **{OPTIMIZERS[best]}** comes"
                f" first, with a **top-5 accuracy of {percent(m['test_top5'])}** (95 % interval"
                f" {100 * low:.1f} to {100 * high:.1f} %) and a top-1 accuracy of"
                f" {percent(m['test_top1'])} on {m['test_images']:,} test images."
                f" {self._lead('tuned')} At the original's learning rate of 0.001 it is"
                f" {OPTIMIZERS[fixed]}. {self._lead('lr 0.001')}"
            )
        )

    def clear(self, setting: str) -> bool:
        """Whether the first of a setting leads the second by more than the noise."""
        *_, second, best = sorted(r.metrics["val_top1"] for r in self.finished(setting).values())
        return best - second > self.noise

    def _lead(self, setting: str) -> str:
        """Whether the first of a setting leads by more than the noise."""
        scores = {name: r.metrics["val_top1"] for name, r in self.finished(setting).items()}
        best = max(scores, key=scores.__getitem__)
        if not self.clear(setting):
            near = [
                OPTIMIZERS[name]
                for name in scores
                if name != best and scores[best] - scores[name] <= self.noise
            ]
            return (
                f"{list_of(near)} cannot be told from it: the difference on validation is within"
                f" the noise of {points(self.noise)}."
            )
        second = sorted(scores.values())[-2]
        return (
            f"Its lead of {points(scores[best] - second)} on validation exceeds the noise of"
            f" {points(self.noise)}."
        )

    def findings(self) -> list[str]:
        """Which optimizer is better here, why, and when it would not be."""
        return [*self._settings(), *self._reasons(), *self._speed(), *self._robustness()]

    def _ranking(self, rows: Mapping[str, Result]) -> str:
        order = sorted(rows, key=lambda name: -rows[name].metrics["val_top1"])
        shares = [(OPTIMIZERS[n], rows[n].metrics["val_top1"]) for n in order]
        return list_of([f"{name} {percent(share)}" for name, share in shares])

    def _settings(self) -> list[str]:
        said_ = [
            f"{WORDS[setting]}, validation top-1: {self._ranking(self.finished(setting))}."
            f" {self._lead(setting)}"
            for setting in SETTINGS
        ]
        firsts = {setting: self.best(setting) for setting in SETTINGS}
        if len(set(firsts.values())) > 1:
            pairs = [f"{OPTIMIZERS[name]} ({setting})" for setting, name in firsts.items()]
            said_.append(
                f"Which one comes first depends on the setting: {list_of(pairs)}. A ranking at one"
                " learning rate ranks that rate as much as the optimizers."
                + ("" if any(map(self.clear, SETTINGS)) else " No lead exceeds the noise.")
            )
        spreads = {
            setting: max(scores) - min(scores)
            for setting in SETTINGS
            for scores in [[r.metrics["val_top1"] for r in self.finished(setting).values()]]
        }
        said_.append(
            f"The four lie {points(spreads['lr 0.001'])} apart at lr 0.001,"
            f" {points(spreads['own default'])} at their defaults, and"
            f" {points(spreads['tuned'])} when tuned."
        )
        return said_

    def _reasons(self) -> list[str]:
        rows = self.finished("lr 0.001")
        steps = {n: step_of(r) for n, r in rows.items()}
        steps = {n: s for n, s in steps.items() if s > 0}
        if len(steps) < 2:
            return []
        high, low = max(steps, key=steps.__getitem__), min(steps, key=steps.__getitem__)
        said_ = [
            "Why: at the same rate of 0.001 the first epoch's effective step (the weights'"
            f" relative change in one step) runs from {steps[low]:.1g} ({OPTIMIZERS[low]}) to"
            f" {steps[high]:.1g} ({OPTIMIZERS[high]}), {times(steps[high] / steps[low])}:"
            " one learning rate does not mean one size of step."
        ]
        tuned = {n: step_of(r) for n, r in self.finished("tuned").items()}
        large, small = max(tuned, key=tuned.__getitem__), min(tuned, key=tuned.__getitem__)
        ratio = tuned[large] / tuned[small]
        closer = ratio < steps[high] / steps[low]
        said_.append(
            f"Tuned, they run from {tuned[small]:.1g} ({OPTIMIZERS[small]}) to {tuned[large]:.1g}"
            f" ({OPTIMIZERS[large]}), {times(ratio)}"
            + (
                ": tuning brings the sizes of steps together, whichever rule makes them."
                if closer
                else ": tuning does not bring the sizes of steps together."
            )
        )
        gaps = {
            OPTIMIZERS[n]: r.metrics["train_top1"] - r.metrics["test_top1"]
            for n, r in self.finished("tuned").items()
        }
        said_.append(
            "Gap between training and test top-1, tuned: "
            + list_of([f"{name} {points(gap)}" for name, gap in gaps.items()])
            + "."
        )
        return said_

    def _speed(self) -> list[str]:
        said_ = []
        for setting in ("lr 0.001", "tuned"):
            epochs = {n: self.epochs_to_target(r) for n, r in self.finished(setting).items()}
            reached = {n: e for n, e in epochs.items() if e}
            never = [OPTIMIZERS[n] for n, e in epochs.items() if not e]
            parts = [f"{OPTIMIZERS[n]} after {e}" for n, e in reached.items()]
            count = f"{'epoch' if max(reached.values(), default=2) == 1 else 'epochs'}"
            text = f"To a validation top-1 of {percent(self.target)}, {setting}: "
            if parts:
                text += f"{list_of(parts)} {count}"
            if never:
                text += f"{'; ' if parts else ''}not reached by {list_of(never)}"
            said_.append(text + ".")
        return said_

    def _robustness(self) -> list[str]:
        within = self.within(0.01)
        most, least = max(within, key=within.__getitem__), min(within, key=within.__getitem__)
        said_ = [
            f"Sensitivity: {percent(within[most], 0)} of the settings tried with"
            f" {OPTIMIZERS[most]} lie within 1 point of its best, {percent(within[least], 0)} with"
            f" {OPTIMIZERS[least]}; within the noise of its best lie "
            + list_of(
                [
                    f"{percent(self.within(s.noise)[name], 0)} ({OPTIMIZERS[name]})"
                    for name, s in self.studies.items()
                ]
            )
            + "."
        ]
        best = self.best("tuned")
        base = self.studies[best]
        worst = min(base.candidates, key=base.score)
        said_.append(
            f"When it would not be: {OPTIMIZERS[best]}, first when tuned, falls to"
            f" {percent(base.score(worst))} at {said(worst, base.sweep.base)}. The values tried are"
            " not equally far apart for the four optimizers, so shares of settings compare them"
            " only roughly."
        )
        e = self.first
        images = next(iter(self.finished("tuned").values())).provenance["train_images"]
        steps = -(-images // e.schedule.batch_size) * e.schedule.epochs
        said_.append(
            f"All of this is about {steps:,} steps on {images:,} training images. With many more"
            " steps, what acts on early steps (bias correction, initial accumulator, warm-up)"
            " matters less, and what acts on late ones (decay of the rate, weight decay) more."
        )
        return said_
