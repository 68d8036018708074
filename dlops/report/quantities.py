"""What a claim can stand on: a difference, a score, a ratio, a spread, a fact, with its interval.

What is said of a method is sampled by its seeds: they are paired, and Student's t, which takes
the differences of the seeds as roughly normal, tests them against a threshold from both sides. An
exact permutation of signs needs no normality, but its p is never below 0.125 for 3 seeds and 0.031
for 5, which no correction survives. One seed is two networks on the same images: they have an
interval over images, and no test.
"""

from __future__ import annotations

import functools
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import studentized_range, t

from dlops import metrics
from dlops.settings import DlopsError

ALPHA = 0.05  # the risk of a wrong verdict
LEVEL = 1 - 2 * ALPHA  # of an interval: each bound is one of 95 %, as in the one-sided tests

Runs = Any  # a Result or a sequence of Results: one method, a result a seed


@dataclass(frozen=True)
class Quantity:
    """A number that a claim can stand on, with its interval; the functions below make them."""

    estimate: float = math.nan
    n: str = ""  # how many of what: "5 seeds"
    unit: str = ""  # "points" and "%" are shares times 100; any other is printed as it is
    signed: bool = False
    interval: tuple[float, float] | None = None
    test: Callable[[float], tuple[float, float]] | None = None  # p of "above x", p of "below x"
    text: str = ""  # of a fact: the words for its value
    reason: str = ""  # why there is no estimate

    def number(self, value: float, unit: bool = True) -> str:
        """A value of this quantity as text, with its unit."""
        if self.unit in ("points", "%"):
            digits = f"{100 * abs(value):.1f}"
        elif self.unit == "times":
            digits = f"{value:.2f}"
        else:
            digits = f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.3g}"
        zero = not digits.strip("0.")
        sign = "" if zero else "−" if value < 0 else "+" if self.signed else ""
        return f"{sign}{digits} {self.unit if unit else ''}".strip()

    @property
    def measured(self) -> str:
        """The estimate in words, or why there is none."""
        return self.reason or self.text or self.number(self.estimate)

    @property
    def bounds(self) -> str:
        """The interval in words: "+2.0 to +8.2"; empty if there is none."""
        return " to ".join(self.number(x, False) for x in self.interval) if self.interval else ""

    def __str__(self) -> str:
        interval = f"{100 * LEVEL:.0f} % interval {self.bounds}, " if self.interval else ""
        return f"{self.measured} ({interval}{self.n})" if self.n else self.measured


class _NotMeasured(Exception):
    """Its text says which number is missing."""


def _or_reason(function: Callable[..., Quantity]) -> Callable[..., Quantity]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Quantity:
        try:
            return function(*args, **kwargs)
        except _NotMeasured as missing:
            return Quantity(reason=str(missing))

    return wrapped


@_or_reason
def difference(a: Runs, b: Runs, metric: str, unit: str | None = None) -> Quantity:
    """The metric of a minus that of b, paired by the seeds that both have.

    With one such seed: these two networks on the same test images, with a paired bootstrap.
    """
    found = _Paired([a, b], metric)
    unit = _unit(metric, "points") if unit is None else unit
    each = found.values[:, 0] - found.values[:, 1]
    if len(each) > 1:
        return _over_seeds(each, found.n, unit, True, found.step * math.sqrt(2))
    right, n = found.images("these two networks")
    interval = None
    if right is not None and len(right) > 1:
        interval = metrics.paired_bootstrap(right[:, 0], right[:, 1], level=LEVEL)[1:]
    return Quantity(float(each[0]), n, unit, True, interval)


@_or_reason
def score(results: Runs, metric: str, unit: str | None = None) -> Quantity:
    """The metric of one method; with one seed, of one network, with Wilson's interval."""
    found = _Paired([results], metric)
    unit = _unit(metric, "%") if unit is None else unit
    each = found.values[:, 0]
    if len(each) > 1:
        return _over_seeds(each, found.n, unit, False, found.step)
    if not found.step:
        return Quantity(float(each[0]), "this network", unit)
    count = round(1 / found.step)
    interval = metrics.wilson(round(each[0] * count), count, LEVEL)
    return Quantity(float(each[0]), _over("this network", count), unit, False, interval)


@_or_reason
def ratio(a: Runs, b: Runs, metric: str) -> Quantity:
    """The metric of a over that of b, paired by seed: a geometric mean, tested as logarithms."""
    found = _Paired([a, b], metric)
    if (found.values <= 0).any():
        raise _NotMeasured(f"{metric} is not above zero everywhere, so it has no ratio")
    logs = np.log(found.values[:, 0] / found.values[:, 1])
    if len(logs) == 1:
        return Quantity(math.exp(logs[0]), "these two networks", "times")
    return _over_seeds(logs, found.n, "times")


@_or_reason
def spread(groups: Mapping[str, Runs], metric: str, unit: str | None = None) -> Quantity:
    """The largest of k means minus the smallest, over the seeds that all k groups have.

    Its law is that of a range of k: "above" is judged by Tukey's studentized range, the seeds
    being blocks (so that k equal groups seldom seem to differ), "below" by Student's t, which
    bounds the one difference that is truly the largest.
    """
    _several(groups)
    found, k = _Paired(list(groups.values()), metric), len(groups)
    unit = _unit(metric, "points") if unit is None else unit
    rows, n = found.values, found.n
    width = float(np.ptp(rows.mean(axis=0)))
    if one := len(rows) == 1:
        right, n = found.images(f"these {k} networks")
        if right is None or len(right) < 2:
            return Quantity(width, n, unit)
        rows = right.astype(np.float64)
    error, freedom = _blocks(rows, found.step)
    pair = error * math.sqrt(2)

    def test(x: float) -> tuple[float, float]:
        above = studentized_range.sf(max(0.0, _standard(width - x, error)), k, freedom)
        return float(above), float(t.cdf(_standard(width - x, pair), freedom))

    low = width - _tukey(k, freedom) * error
    high = width + float(t.ppf(1 - ALPHA, freedom)) * pair
    return Quantity(width, n, unit, False, (max(0.0, low), high), None if one else test)


@_or_reason
def values(by_seed: Mapping[int, float] | ArrayLike, unit: str = "", signed=False) -> Quantity:
    """Any number of a method, one a seed: {seed: number}, or the numbers alone.

    Ratios (unit "times") are above zero; they are averaged and tested as logarithms.
    """
    each = np.asarray(list(by_seed.values()) if isinstance(by_seed, Mapping) else by_seed, float)
    if not len(each) or not np.isfinite(each).all():
        raise _NotMeasured("not every seed has a number" if len(each) else "there is no seed")
    if len(each) == 1:
        return Quantity(float(each[0]), "1 seed", unit, signed)
    if unit == "times":
        if (each <= 0).any():
            raise _NotMeasured("a ratio is not above zero")
        each = np.log(each)
    return _over_seeds(each, f"{len(each)} seeds", unit, signed)


def fact(value: float, text: str) -> Quantity:
    """A number of this very run from which nothing is inferred: it is compared, not tested.

    text: the words that stand for it, such as "363 of 512 units are dead".
    """
    if not math.isfinite(value):
        return Quantity(reason=f"not a number: {text}")
    return Quantity(float(value), "this run", text=text)


@dataclass(frozen=True)
class Best:
    """Who leads, and who cannot be told from the leader."""

    leader: str  # "" if not every group was measured
    tied: tuple[str, ...]
    text: str  # "a leads: 95.0 %", "no winner: 93.4 to 95.0 %"

    def __str__(self) -> str:
        return self.text


def best(groups: Mapping[str, Runs], metric: str) -> Best:
    """The group with the highest mean of the metric, over the seeds that all have.

    Another is told from it if Tukey's studentized range of all k groups calls their distance
    larger than chance, since the leader was picked among k. With one seed, none is.
    """
    _several(groups)
    try:
        found = _Paired(list(groups.values()), metric)
    except _NotMeasured as missing:
        return Best("", (), f"no winner: {missing}")
    means = found.values.mean(axis=0)
    order = np.argsort(-means, kind="stable")
    level = list(order)
    if len(found.values) > 1:
        error, freedom = _blocks(found.values, found.step)
        least = _tukey(len(means), freedom)
        level = [i for i in order if _standard(means[order[0]] - means[i], error) <= least]
    names = [list(groups)[i] for i in level]
    number = Quantity(unit=_unit(metric, "%")).number
    top, lowest = number(means[level[0]]), number(means[level[-1]], False)
    if len(names) == 1:
        return Best(names[0], (), f"{names[0]} leads: {top}")
    among = "" if len(names) == len(groups) else f" among {', '.join(names)}"
    extent = top if number(means[level[0]], False) == lowest else f"{lowest} to {top}"
    return Best(names[0], tuple(names[1:]), f"no winner{among}: {extent}")


class _Paired:
    """The results of k groups whose seeds all of them have, and their metric.

    runs: n rows of k results; values: [n, k]; step: the smallest step of a value (an accuracy
    moves by whole images); n: the seeds in words.
    """

    def __init__(self, groups: Sequence[Runs], metric: str) -> None:
        several = [list(g) if isinstance(g, Sequence) else [g] for g in groups]
        by_seed = [{result.experiment.seed: result for result in group} for group in several]
        if any(len(seeds) < len(group) for seeds, group in zip(by_seed, several)):
            raise DlopsError("A seed occurs twice in one method; give one result a seed.")
        seeds = sorted(set.intersection(*map(set, by_seed)))
        if not seeds:
            raise DlopsError(
                f"No seed has a result of each method, so {metric} cannot be compared in pairs;"
                " train all of them with the same seeds."
            )
        self.metric = metric
        self.runs = [[results[seed] for results in by_seed] for seed in seeds]
        self.values = np.array([[_value(r, metric) for r in row] for row in self.runs])
        tested = {r.metrics.get("test_images") for row in self.runs for r in row}
        if metric.startswith("test_") and len(tested) > 1:
            raise DlopsError(f"{metric} comes from different test images; compare like with like.")
        count = tested.pop() if metric.startswith("test_top") else None
        self.step = 1 / count if count else 0.0
        every = len(set.union(*map(set, by_seed)))
        self.n = f"{len(seeds)} seeds" if len(seeds) == every else f"{len(seeds)} of {every} seeds"

    def images(self, who: str) -> tuple[NDArray[np.bool_] | None, str]:
        """Which test images each network of the first seed has right, [N, k], and n in words.

        None for a metric that is no mean over images, or without stored predictions.
        """
        k = re.fullmatch(r"test_top(\d+)", self.metric)
        if k is None:
            return None, who
        try:
            pairs = [(np.asarray(r.predictions), np.asarray(r.labels)) for r in self.runs[0]]
        except DlopsError:  # a sweep's members keep no predictions
            return None, who
        if any(not np.array_equal(labels, pairs[0][1]) for _, labels in pairs):
            raise DlopsError("The networks saw different test images; compare like with like.")
        right = [  # of fewer than five classes, top-5 is that of all
            metrics.topk_correct(best, labels, min(int(k[1]), best.shape[1]))
            for best, labels in pairs
        ]
        return np.stack(right, axis=1), _over(who, len(right[0]))


def _over(who: str, images: int) -> str:
    return f"{who}, over {images:,} image{'s' if images > 1 else ''}"


def _value(result: Any, metric: str) -> float:
    value = result.metrics.get(metric)
    if not isinstance(value, numbers.Real):
        raise _NotMeasured(f"{metric} is missing for seed {result.experiment.seed}")
    if not math.isfinite(value):
        raise _NotMeasured(f"{metric} is not finite for seed {result.experiment.seed}")
    return float(value)


def _over_seeds(
    each: NDArray, n: str, unit: str, signed: bool = False, step: float = 0.0
) -> Quantity:
    """The mean of one value a seed, [n]; those of a ratio ("times") are logarithms.

    That two or three seeds agree to the image does not prove that seeds never differ: the standard
    deviation of an accuracy is taken to be that of rounding to whole images at least.
    """
    mean, freedom, log = float(each.mean()), len(each) - 1, unit == "times"
    error = max(float(each.std(ddof=1)), step / math.sqrt(12)) / math.sqrt(len(each))
    half = float(t.ppf(1 - ALPHA, freedom)) * error

    def test(x: float) -> tuple[float, float]:
        if log:
            x = math.log(x) if x > 0 else -math.inf
        z = _standard(mean - x, error)
        return float(t.sf(z, freedom)), float(t.cdf(z, freedom))

    estimate, low, high = (math.exp(x) if log else x for x in (mean, mean - half, mean + half))
    if unit == "%":
        low, high = max(0.0, low), min(1.0, high)
    n += ", all equal" if np.ptp(each) < 1e-12 else ""
    return Quantity(estimate, n, unit, signed, (low, high), test)


def _blocks(rows: NDArray, step: float) -> tuple[float, int]:
    """Standard error of a column's mean and its degrees of freedom; rows [n, k] are blocks."""
    n, k = rows.shape
    rest = rows - rows.mean(axis=0) - rows.mean(axis=1, keepdims=True) + rows.mean()
    freedom = (n - 1) * (k - 1)
    deviation = math.sqrt(float(np.square(rest).sum()) / freedom)
    return max(deviation, step / math.sqrt(12)) / math.sqrt(n), freedom


@functools.cache
def _tukey(k: int, freedom: int) -> float:
    """Above it, in standard errors, is the range of k equal means once in 1 / ALPHA."""
    return float(studentized_range.ppf(1 - ALPHA, k, freedom))


def _standard(gap: float, error: float) -> float:
    """A gap in standard errors: with no error far from zero, or zero."""
    return 0.0 if abs(gap) < 1e-12 else gap / max(error, 1e-12)


def _several(groups: Mapping[str, Runs]) -> None:
    if len(groups) < 2:
        raise DlopsError(f"A comparison takes two groups or more, not {len(groups)}.")


def _unit(metric: str, share: str) -> str:
    return share if re.search(r"_top\d+$|accuracy$", metric) else ""
