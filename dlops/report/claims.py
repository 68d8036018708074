"""The statistics of every claim: a person writes it with its threshold, this run judges it.

What is claimed of a method is sampled by its seeds: seeds are paired, a Student's t (it takes the
seeds' differences as roughly normal) tests them against the threshold from both sides, and Holm
corrects for all tested claims of the page. Whatever the truth, one of the two sides is right, so
one-sided tests at 5 % keep the risk of a wrong verdict at 5 %. An exact permutation of signs
would need no normality, but with 3 seeds its p is never below 0.125, with 5 never below 0.031,
which no correction survives. One seed is two networks on the same images: an interval is
shown, and nothing is decided about the method.
"""

from __future__ import annotations

import functools
import html
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from IPython.display import HTML, Markdown, display
from numpy.typing import ArrayLike, NDArray
from scipy.stats import studentized_range, t

from dlops import metrics
from dlops.experiment import DlopsError

ALPHA = 0.05  # the risk of any wrong verdict on a page
LEVEL = 0.90  # of an interval: each of its bounds is a 95 % bound, as in the one-sided tests
CAPTION = "What is claimed, and whether this run supports it"

Runs = Any  # a Result or a sequence of Results: one method, a result a seed
Test = Callable[[float], tuple[float, float]]  # p-values of "above x" and of "below x"


@dataclass(frozen=True)
class Quantity:
    """A number that a claim can stand on, with its interval; made by the functions below."""

    estimate: float = math.nan
    n: str = ""  # how many of what: "5 seeds"
    unit: str = ""  # "points" and "%" are shares times 100; any other is printed as it is
    signed: bool = False
    interval: tuple[float, float] | None = None
    test: Test | None = None  # over seeds; None: nothing to infer, or one network each
    text: str = ""  # of a fact: the words for its value
    reason: str = ""  # why there is no estimate

    def number(self, value: float, unit: bool = True) -> str:
        """A value of this quantity as text, with its unit."""
        if self.unit in ("points", "%"):
            text = f"{100 * value:+.1f}"
        elif self.unit == "times":
            text = f"{value:+.2f}"
        else:
            text = f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"
        sign, digits = text[0], text[1:]
        if not digits.strip("0.") or (sign == "+" and not self.signed):
            sign = ""
        return f"{sign.replace('-', '−')}{digits} {self.unit if unit else ''}".strip()

    @property
    def measured(self) -> str:
        """The estimate in words, or why there is none."""
        return self.reason or self.text or self.number(self.estimate)

    @property
    def bounds(self) -> str:
        """The interval in words: "+2.0 to +8.2"; empty if there is none."""
        return " to ".join(self.number(x, False) for x in self.interval) if self.interval else ""

    def __str__(self) -> str:
        interval = f"{LEVEL:.0%} interval {self.bounds}, ".replace("%", " %") * bool(self.interval)
        return self.measured + f" ({interval}{self.n})" * bool(self.n)


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
    runs, values, step = _paired([a, b], metric)
    unit = _unit(metric, "points") if unit is None else unit
    if len(runs) > 1:
        return _over_seeds(values[:, 0] - values[:, 1], unit, signed=True, step=step * math.sqrt(2))
    right = _right(runs[0], metric)
    interval = None
    if right is not None and len(right) > 1:
        interval = metrics.paired_bootstrap(right[:, 0], right[:, 1], level=LEVEL)[1:]
    n = "these two networks" + _over_images(right)
    return Quantity(float(values[0, 0] - values[0, 1]), n, unit, signed=True, interval=interval)


@_or_reason
def score(results: Runs, metric: str, unit: str | None = None) -> Quantity:
    """The metric of one method; with one seed, of one network, with Wilson's interval."""
    runs, values, step = _paired([results], metric)
    unit = _unit(metric, "%") if unit is None else unit
    if len(runs) > 1:
        return _over_seeds(values[:, 0], unit, step=step)
    right = _right(runs[0], metric)
    interval = None
    if right is not None:
        interval = metrics.wilson(int(right.sum()), len(right), LEVEL)
    return Quantity(
        float(values[0, 0]), "this network" + _over_images(right), unit, False, interval
    )


@_or_reason
def ratio(a: Runs, b: Runs, metric: str) -> Quantity:
    """The metric of a over that of b, paired by seed: a geometric mean, tested as logarithms."""
    runs, values, _ = _paired([a, b], metric)
    if (values <= 0).any():
        raise _NotMeasured(f"{metric} is not above zero everywhere, so it has no ratio")
    logs = np.log(values[:, 0]) - np.log(values[:, 1])
    if len(runs) == 1:
        return Quantity(math.exp(logs[0]), "these two networks", "times")
    over = _over_seeds(logs, "times")
    assert over.test and over.interval
    low, high = over.interval
    return Quantity(
        math.exp(over.estimate),
        over.n,
        "times",
        interval=(math.exp(low), math.exp(high)),
        test=lambda x: over.test(math.log(x) if x > 0 else -math.inf),  # type: ignore[misc]
    )


@_or_reason
def spread(groups: Mapping[str, Runs], metric: str, unit: str | None = None) -> Quantity:
    """The largest of k means minus the smallest, over the seeds that all k groups have.

    Its law is that of a range of k: "above" is judged by Tukey's studentized range, the seeds
    being blocks (so k equal groups seldom seem to differ), "below" by Student's t, which bounds
    any one of the differences.
    """
    _several(groups)
    runs, values, step = _paired(list(groups.values()), metric)
    unit = _unit(metric, "points") if unit is None else unit
    k = len(groups)
    if len(runs) > 1:
        error, freedom = _blocks(values, step)
        n = _seeds(values)
    else:
        right = _right(runs[0], metric)
        n = f"these {k} networks{_over_images(right)}"
        if right is None or len(right) < 2:
            return Quantity(float(np.ptp(values)), n, unit)
        error, freedom = _blocks(right.astype(float), 0)
    found, pair = float(np.ptp(values.mean(axis=0))), error * math.sqrt(2)
    tail = (1 + LEVEL) / 2
    low = found - studentized_range.ppf(tail, k, freedom) * error
    interval = max(0.0, float(low)), found + float(t.ppf(tail, freedom)) * pair

    def test(x: float) -> tuple[float, float]:
        above = studentized_range.sf(max(0.0, _standard(found - x, error)), k, freedom)
        return float(above), float(t.cdf(_standard(found - x, pair), freedom))

    return Quantity(found, n, unit, False, interval, test if len(runs) > 1 else None)


@_or_reason
def values(by_seed: Mapping[int, float] | ArrayLike, unit: str = "", signed=False) -> Quantity:
    """Any number of a method, one a seed: {seed: number}, or the numbers alone."""
    each = np.asarray(list(by_seed.values()) if isinstance(by_seed, Mapping) else by_seed, float)
    if not len(each) or not np.isfinite(each).all():
        raise _NotMeasured("not every seed has a number" if len(each) else "there is no seed")
    if len(each) == 1:
        return Quantity(float(each[0]), "1 seed", unit, signed)
    return _over_seeds(each, unit, signed)


def fact(value: float, text: str) -> Quantity:
    """A number of this very run that nothing is inferred from: it is compared, not tested.

    text: the words that stand for it, such as "363 of 512 units are dead".
    """
    if not math.isfinite(value):
        return Quantity(reason=f"not a number: {text}")
    return Quantity(float(value), "this run", text=text)


@dataclass(frozen=True)
class Best:
    """Who leads, and who cannot be told from the leader."""

    leader: str
    tied: tuple[str, ...]
    text: str  # "a leads: 95.0 %", "no winner: 93.4 to 95.0 %"

    def __str__(self) -> str:
        return self.text


def best(groups: Mapping[str, Runs], metric: str) -> Best:
    """The group with the highest mean of the metric, over the seeds that all have.

    Told apart from it is a group whose distance Tukey's studentized range of all k groups calls
    larger than chance, for the leader was picked among k. With one seed, nobody is.
    """
    _several(groups)
    names = list(groups)
    try:
        runs, values, step = _paired(list(groups.values()), metric)
    except _NotMeasured as missing:
        return Best("", (), f"no winner: {missing}")
    means = values.mean(axis=0)
    first = int(means.argmax())
    p = np.ones(len(names))
    if len(runs) > 1:
        error, freedom = _blocks(values, step)
        gaps = [_standard(means[first] - mean, error) for mean in means]
        p = np.array([studentized_range.sf(gap, len(names), freedom) for gap in gaps])
    level = [i for i in range(len(names)) if i != first and p[i] > ALPHA]
    told = Quantity(unit=_unit(metric, "%"))
    top = told.number(means[first])
    if not level:
        return Best(names[first], (), f"{names[first]} leads: {top}")
    lowest = told.number(means[level].min(), False)
    extent = top if top.startswith(lowest) else f"{lowest} to {top}"
    tied = tuple(names[i] for i in level)
    who = "" if len(tied) == len(names) - 1 else f" among {', '.join([names[first], *tied])}"
    return Best(names[first], tied, f"no winner{who}: {extent}")


class Claims:
    """The claims of a page: added with their thresholds, judged together, shown in one table."""

    def __init__(self) -> None:
        self._claims: list[_Claim] = []

    def add(
        self,
        sentence: str,
        quantity: Quantity,
        *,
        above: float | None = None,
        below: float | None = None,
        between: tuple[float, float] | None = None,
        figure: str = "",
        key: str = "",
    ) -> None:
        """Claim that the quantity lies above, below or between what is given (exactly one).

        figure: the key of the figure that shows it; key: a short name for `verdict`. The
        threshold is in the unit of the metric: 0.05 of an accuracy is 5 points.
        """
        given = [x for x in (above, below, between) if x is not None]
        limits = between or (
            -math.inf if above is None else above,
            math.inf if below is None else below,
        )
        if len(given) != 1 or any(math.isnan(x) for x in limits) or limits[0] >= limits[1]:
            raise DlopsError(
                f'The claim "{sentence}" needs exactly one threshold: above=, below=, or'
                " between=(low, high) with low below high."
            )
        known = {name for claim in self._claims for name in (claim.sentence, claim.key)} - {""}
        if known & {sentence, key}:
            raise DlopsError(f'"{sentence}" is claimed twice; a sentence and a key stand once.')
        self._claims.append(_Claim(sentence, quantity, *limits, figure, key))

    def verdict(self, name: str) -> str:
        """supported, refuted, undecided or not measured, by a claim's sentence or key.

        Each further claim is one more to correct for: ask when all have been added.
        """
        for claim, (verdict, _) in zip(self._claims, self._judge()):
            if name in (claim.sentence, claim.key):
                return verdict
        raise DlopsError(f'There is no claim "{name}" on this page.')

    def payload(self) -> list[dict[str, Any]]:
        """Each claim as JSON: sentence, verdict, quantity, interval, threshold, n, anchor, figure.

        anchor: the id of its row in the table; figure: that of its figure, or "".
        """
        return [
            {
                "sentence": claim.sentence,
                "verdict": verdict,
                "quantity": claim.quantity.measured,
                "interval": claim.quantity.bounds,
                "threshold": claim.threshold,
                "n": claim.quantity.n,
                "anchor": f"claim-{i}",
                "figure": f"fig-{claim.figure}" if claim.figure else "",
            }
            for i, (claim, (verdict, _)) in enumerate(zip(self._claims, self._judge()), 1)
        ]

    def show(self) -> None:
        """Display the table of all claims; nothing without a claim."""
        if self._claims:
            display(HTML(self._html(), metadata={"caption": f"{CAPTION}. {self._note()}"}))
            display(Markdown(f"*{CAPTION}. {self._note()}*"), metadata={"live_only": True})

    def _judge(self) -> list[tuple[str, float | None]]:
        """The verdict on each claim, and for a tested one Holm's p of its likelier side."""
        sides = [claim.sides() for claim in self._claims]
        adjusted = iter(metrics.holm([min(pair) for pair in sides if pair]))
        found: list[tuple[str, float | None]] = []
        for claim, pair in zip(self._claims, sides):
            if not pair:
                found.append((claim.untested(), None))
                continue
            p, side = next(adjusted), "supported" if pair[0] < pair[1] else "refuted"
            found.append((side if p <= ALPHA else "undecided", p))
        return found

    def _note(self) -> str:
        tested = sum(claim.quantity.test is not None for claim in self._claims)
        note = f"Intervals are {LEVEL * 100:.0f} % ones: each bound is a 95 % bound."
        if tested:
            note += " p is one-sided, from Student's t over seeds" + (
                f", corrected for {tested} tested claims (Holm)." if tested > 1 else "."
            )
        return note

    def _html(self) -> str:
        rows = []
        for row, (verdict, p) in zip(self.payload(), self._judge()):
            link = f' <a href="#{html.escape(row["figure"])}">Figure</a>' * bool(row["figure"])
            chance = "" if p is None else f"<br><small>{_p(p)}</small>"
            cells = [html.escape(row[x]) or "–" for x in ("quantity", "interval", "n", "threshold")]
            rows.append(
                f'<tr id="{row["anchor"]}"><td>{html.escape(row["sentence"])}{link}</td>'
                f'<td class="verdict verdict-{verdict.replace(" ", "-")}">{verdict}{chance}</td>'
                + "".join(f"<td>{cell}</td>" for cell in cells)
                + "</tr>"
            )
        names = ("Claim", "Verdict", "Measured", "Interval", "n", "Claimed")
        head = "".join(f'<th scope="col">{name}</th>' for name in names)
        body = "\n".join(rows)
        return (
            f'<table class="claims"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
        )


@dataclass(frozen=True)
class _Claim:
    sentence: str
    quantity: Quantity
    low: float
    high: float
    figure: str
    key: str

    @property
    def threshold(self) -> str:
        words = self.quantity.number
        if math.isinf(self.high):
            return f"above {words(self.low)}"
        if math.isinf(self.low):
            return f"below {words(self.high)}"
        return f"between {words(self.low, False)} and {words(self.high)}"

    def sides(self) -> tuple[float, float] | None:
        """p-values of lying within the claim's limits and of lying outside; None if untested."""
        test = self.quantity.test
        if test is None:
            return None
        (over_low, under_low), (over_high, under_high) = test(self.low), test(self.high)
        two = 2 if math.isfinite(self.low) and math.isfinite(self.high) else 1
        return max(over_low, under_high), min(1.0, two * min(under_low, over_high))

    def untested(self) -> str:
        q = self.quantity
        if q.reason:
            return "not measured"
        if not q.text:
            return "undecided"  # one network each says nothing about the method
        ends = math.isfinite(self.low) and math.isfinite(
            self.high
        )  # those of between= belong to it
        inside = self.low < q.estimate < self.high or (ends and q.estimate in (self.low, self.high))
        return "supported" if inside else "refuted"


def _paired(groups: Sequence[Runs], metric: str) -> tuple[list[list[Any]], NDArray, float]:
    """The results [n][k] of the n seeds that all k groups have, the metric of each [n, k], and
    the smallest step that it can take (an accuracy moves by whole images)."""
    by_seed: list[dict[int, Any]] = []
    for group in groups:
        results = list(group) if isinstance(group, Sequence) else [group]
        by_seed.append({result.experiment.seed: result for result in results})
        if len(by_seed[-1]) < len(results):
            raise DlopsError("Two results of one method have the same seed; give one a seed.")
    seeds = sorted(set.intersection(*map(set, by_seed)))
    if not seeds:
        raise DlopsError(
            f"No seed has a result of each method, so {metric} cannot be compared in pairs;"
            " train all of them with the same seeds."
        )
    runs = [[results[seed] for results in by_seed] for seed in seeds]
    images = {result.metrics.get("test_images") for row in runs for result in row}
    if metric.startswith("test_") and len(images) > 1:
        raise DlopsError(f"{metric} was measured on different test images; compare like with like.")
    known = next(iter(images)) if metric.startswith("test_top") else None
    values = np.array([[_value(result, metric) for result in row] for row in runs])
    return runs, values, 1 / known if known else 0.0


def _value(result: Any, metric: str) -> float:
    value = result.metrics.get(metric)
    if not isinstance(value, numbers.Real):
        raise _NotMeasured(f"{metric} is missing for seed {result.experiment.seed}")
    if not math.isfinite(value):
        raise _NotMeasured(f"{metric} is not finite for seed {result.experiment.seed}")
    return float(value)


def _right(row: Sequence[Any], metric: str) -> NDArray[np.bool_] | None:
    """Which test images each network has right, [N, k]; None for a metric that is not of images."""
    found = re.fullmatch(r"test_top(\d+)", metric)
    try:
        pairs = [(np.asarray(r.predictions), np.asarray(r.labels)) for r in row] if found else []
    except DlopsError:  # a sweep's members keep no predictions
        return None
    if not found or any(p.shape[1] < int(found[1]) for p, _ in pairs):
        return None
    if any(not np.array_equal(labels, pairs[0][1]) for _, labels in pairs):
        raise DlopsError("The networks were tested on different images; compare like with like.")
    return np.stack([metrics.topk_correct(p, labels, int(found[1])) for p, labels in pairs], axis=1)


def _over_seeds(each: NDArray, unit: str, signed: bool = False, step: float = 0.0) -> Quantity:
    mean, freedom = float(each.mean()), len(each) - 1
    error = max(float(each.std(ddof=1)), step / math.sqrt(12)) / math.sqrt(len(each))
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    low, high = mean - half, mean + half
    if unit == "%":
        low, high = max(0.0, low), min(1.0, high)

    def test(x: float) -> tuple[float, float]:
        z = _standard(mean - x, error)
        return float(t.sf(z, freedom)), float(t.cdf(z, freedom))

    return Quantity(mean, _seeds(each), unit, signed, (low, high), test)


def _blocks(values: NDArray, step: float) -> tuple[float, int]:
    """Standard error of a column's mean and its degrees of freedom, rows [n, k] being blocks.

    Equal values of n seeds do not prove that there is no spread: an accuracy is rounded to whole
    images, so its standard deviation is taken to be that of rounding at least.
    """
    n, k = values.shape
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    freedom = (n - 1) * (k - 1)
    deviation = math.sqrt(float(np.square(rest).sum()) / freedom)
    return max(deviation, step / math.sqrt(12)) / math.sqrt(n), freedom


def _standard(gap: float, error: float) -> float:
    """A gap in standard errors; without any spread far from zero, or at zero."""
    return 0.0 if abs(gap) < 1e-12 else gap / max(error, 1e-12)


def _several(groups: Mapping[str, Runs]) -> None:
    if len(groups) < 2:
        raise DlopsError(f"To compare takes two groups or more, not {len(groups)}.")


def _unit(metric: str, share: str) -> str:
    return share if re.search(r"_top\d+$|accuracy$", metric) else ""


def _seeds(values: NDArray) -> str:
    return f"{len(values)} seeds" + ", all equal" * bool(np.ptp(values, axis=0).max() < 1e-12)


def _over_images(right: NDArray | None) -> str:
    return "" if right is None else f", over {len(right):,} image{'s' * (len(right) != 1)}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
