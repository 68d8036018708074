"""Several results side by side: tables, figures, paired tests, and what their numbers say.

`Rows` maps a model's name, such as "triplet loss (Adam)", to its results, one a seed. All are
evaluated on the same test images in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from dlops import metrics, plots
from dlops.report import OPTIMIZERS, Live, interval, percent, show, table
from dlops.report.q1 import sampled
from dlops.report.q1 import separation as spread
from dlops.runs import run_all
from dlops.series.questions import OPTIMIZER_SETTINGS, by_loss
from dlops.settings import DATASETS, DlopsError
from dlops.store import Result, Store

Rows = dict[str, list[Result]]

TOP5, TOP1 = "test_top5", "test_top1"
WORDS = {TOP5: "top-5", TOP1: "top-1"}
LEVEL = 0.05  # of the tests, after Holm's correction


def losses(preset: str, **parameters: Any) -> Rows:
    """The losses with the optimizer that is asked for (else the preset's), run where missing, and
    with the other of Adam and SGD where they were run before."""
    wanted = by_loss(preset, **parameters)
    results = iter(run_all([e for group in wanted.values() for e in group], progress=Live()))
    rows = {name: [next(results) for _ in group] for name, group in wanted.items()}
    mine = next(iter(rows.values()))[0].experiment.optimizer.name
    named = {f"{name} ({OPTIMIZERS[mine]})": group for name, group in rows.items()}
    other = {"adam": "sgd", "sgd": "adam"}.get(mine)
    if other and not parameters.keys() & OPTIMIZER_SETTINGS - {"optimizer"}:
        store = Store()
        for name, group in by_loss(preset, **{"seed": 0, **parameters, "optimizer": other}).items():
            if result := store.get(group[0]):
                named[f"{name} ({OPTIMIZERS[other]})"] = [result]
    check(named)
    return named


def check(rows: Rows) -> None:
    """Raise DlopsError unless all results are of the same test images."""
    first, *rest = (result for group in rows.values() for result in group)
    for result in rest:
        if not np.array_equal(first.labels, result.labels):
            raise DlopsError(
                f"Results {first.id} and {result.id} are of different test images and cannot be"
                " compared; give both the same data set and the same subset of it."
            )


def distinct(rows: Rows) -> Rows:
    """The rows, without those that repeat the results of another under a second name."""
    kept: dict[tuple[str, ...], str] = {}
    for name, group in rows.items():
        kept.setdefault(tuple(result.id for result in group), name)
    return {name: rows[name] for name in kept.values()}


def split(name: str) -> tuple[str, str]:
    """ "triplet loss (Adam)" -> ("triplet loss", "Adam")."""
    loss, _, optimizer = name.rpartition(" (")
    return loss, optimizer.removesuffix(")")


def sentence(text: str) -> str:
    """The text, beginning with a capital."""
    return text[0].upper() + text[1:]


def mean(group: Sequence[Result], name: str) -> float:
    """A metric's mean over the seeds."""
    return float(np.mean([result.metrics[name] for result in group]))


def deciding(rows: Rows) -> str:
    """The metric that tells the models apart: top-5, or top-1 where top-5 is saturated."""
    return TOP1 if min(mean(group, TOP5) for group in rows.values()) > 0.99 else TOP5


def correct(result: Result, name: str) -> np.ndarray:
    """[N] booleans: is the class among the first guesses that `name` counts?"""
    guesses = result.predictions[:, : {TOP5: 5, TOP1: 1}[name]]
    return (guesses == result.labels[:, None]).any(axis=1)


@dataclass(frozen=True)
class Pair:
    """Accuracy of `first` minus that of `second` on the same test images, their first seeds."""

    first: str
    second: str
    metric: str
    difference: float
    low: float
    high: float
    p: float  # McNemar's exact test
    adjusted: float  # after Holm
    per_seed: tuple[float, ...]

    @property
    def certain(self) -> bool:
        """Whether the test images can tell the two apart."""
        return self.adjusted < LEVEL


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: they bound the risk of any false alarm."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.maximum.accumulate(np.asarray(p, float)[order] * factors).clip(max=1)
    result = np.empty(len(p))
    result[order] = adjusted
    return result.tolist()


def paired(rows: Rows) -> list[Pair]:
    """Pairs of models that differ in one thing, the loss or the optimizer.

    Top-5 and top-1 of each; p-values are adjusted for the number of all tests.
    """
    models = distinct(rows)
    found = []
    for first, second in combinations(models, 2):
        if sum(a != b for a, b in zip(split(first), split(second), strict=True)) != 1:
            continue
        for name in (TOP5, TOP1):
            a, b = (correct(models[model][0], name) for model in (first, second))
            seeds = zip(models[first], models[second], strict=False)
            differences = tuple(x.metrics[name] - y.metrics[name] for x, y in seeds)
            numbers = *metrics.paired_bootstrap(a, b), metrics.mcnemar(a, b)
            found.append((first, second, name, *numbers, differences))
    adjusted = holm([row[6] for row in found])
    return [Pair(*row[:7], q, row[7]) for row, q in zip(found, adjusted, strict=True)]


def points(share: float) -> str:
    """0.0123 -> "+1.2", and 0 without a sign."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def settings(rows: Rows) -> None:
    """The settings in which the models differ, and how many they share."""
    flat = {name: group[0].experiment.settings for name, group in distinct(rows).items()}
    known = dict.fromkeys(key for values in flat.values() for key in values)
    said = {key: [values.get(key, "–") for values in flat.values()] for key in known}
    off = ("–", None, False, 0)
    differing = [
        key
        for key, values in said.items()
        if len(set(map(repr, values))) > 1 and any(value not in off for value in values)
    ]
    frame = pd.DataFrame(
        {name: [values.get(key, "–") for key in differing] for name, values in flat.items()},
        index=differing,
        dtype=object,
    )
    table(
        frame,
        "Settings in which the models differ (–: does not apply). The others are the same for all:"
        " data, split, seed, network, epochs, augmentation.",
        index=True,
    )


def curves(rows: Rows) -> None:
    """Training and validation accuracy of all models after each epoch."""
    models = distinct(rows)
    name = deciding(rows).removeprefix("test_")
    last = {model: mean(group, f"val_{name}") for model, group in models.items()}
    best = max(last, key=lambda model: last[model])
    says = (
        f"On validation images {best} ends highest in {WORDS['test_' + name]}:"
        f" {percent(last[best])}"
    )
    show(
        plots.compare_curves(
            {model: [result.history for result in group] for model, group in models.items()},
            ["train_top5", "val_top5", "val_top1"],
            title=says,
        ),
        "Accuracy on training and validation images after each epoch. Losses are not drawn"
        " together: their values mean different things.",
        f"Three panels of curves for {', '.join(models)}. {says}.",
    )


def accuracy(rows: Rows) -> None:
    """Top-5 and top-1 of all models with intervals, as a table and two figures."""
    records = []
    for model, group in rows.items():
        n = group[0].metrics["test_images"]
        record: dict[str, Any] = {"model": model}
        for name, words in WORDS.items():
            share = mean(group, name)
            low, high = interval(share, n)
            record[f"test {words}"] = percent(share) + _spread(group, name)
            record[f"{words}, 95 %"] = f"{100 * low:.1f} to {100 * high:.1f} %"
        neighbours = [r.metrics["knn_top1"] for r in group if "knn_top1" in r.metrics]
        record["k-NN top-1"] = percent(float(np.mean(neighbours))) if neighbours else "–"
        records.append(record)
    seeds = max(map(len, rows.values()))
    table(
        pd.DataFrame(records),
        f"Accuracy on the same {n:,} test images, with Wilson's 95 % intervals."
        + (f" Means of up to {seeds} seeds ± standard deviation." if seeds > 1 else "")
        + " k-NN is measured where the loss trains no classifier.",
    )
    for name in (TOP5, TOP1):
        shares = {model: mean(group, name) for model, group in rows.items()}
        best, worst = (f(shares, key=lambda m: shares[m]) for f in (max, min))
        leaders = [m for m in distinct(rows) if shares[m] == shares[best]]
        says = (
            f"In {WORDS[name]}, {best if len(leaders) == 1 else f'{len(leaders)} models'}"
            f" {'reaches' if len(leaders) == 1 else 'reach'} {percent(shares[best])},"
            f" {worst} {percent(shares[worst])}"
        )
        if shares[best] == shares[worst]:
            says = f"In {WORDS[name]}, all models reach {percent(shares[best])}"
        show(
            plots.intervals(
                {model: (share, *interval(share, n)) for model, share in shares.items()},
                title=says,
                xlabel=f"Test {WORDS[name]} accuracy",
            ),
            f"Test {WORDS[name]} accuracy with Wilson's 95 % intervals.",
            f"A forest plot of {len(rows)} models. {says}.",
        )


def _spread(group: Sequence[Result], name: str) -> str:
    if len(group) < 2:
        return ""
    deviation = np.std([result.metrics[name] for result in group], ddof=1)
    return f" ± {100 * deviation:.1f} (n = {len(group)})"


def tests(rows: Rows, pairs: Sequence[Pair]) -> None:
    """The paired tests, as a table, and the differences in the deciding metric as a figure."""
    records = [
        {
            "first": pair.first,
            "second": pair.second,
            "accuracy": WORDS[pair.metric],
            "difference": points(pair.difference),
            "95 % interval": f"{points(pair.low)} to {points(pair.high)}",
            "p": f"{pair.p:.2g}",
            "p (Holm)": f"{pair.adjusted:.2g}",
            **(
                {"over seeds": _over_seeds(pair)} if any(len(p.per_seed) > 1 for p in pairs) else {}
            ),
        }
        for pair in pairs
    ]
    table(
        pd.DataFrame(records),
        "First minus second, in percentage points, on the same test images (of the first seed):"
        " paired bootstrap interval, McNemar's exact p, and p adjusted by Holm for all"
        f" {len(pairs)} tests of this table.",
    )
    name = deciding(rows)
    drawn = [pair for pair in pairs if pair.metric == name]
    certain = sum(pair.certain for pair in drawn)
    says = (
        f"Of {len(drawn)} differences in {WORDS[name]}, {certain or 'none'}"
        f" {'is' if certain < 2 else 'are'} larger than chance explains"
    )
    show(
        plots.intervals(
            {
                f"{pair.first}\nminus {pair.second}": (pair.difference, pair.low, pair.high)
                for pair in drawn
            },
            title=says,
            xlabel=f"Difference in test {WORDS[name]}",
            reference=0,
        ),
        f"Differences in {WORDS[name]} on the same test images, with paired bootstrap 95 %"
        " intervals, which are not adjusted for their number; the count in the title is.",
        f"A forest plot of {len(drawn)} differences around zero. {says}.",
    )


def _over_seeds(pair: Pair) -> str:
    if len(pair.per_seed) < 2:
        return "–"
    average, deviation = np.mean(pair.per_seed), np.std(pair.per_seed, ddof=1)
    return f"{points(float(average))} ± {100 * deviation:.1f} (n = {len(pair.per_seed)})"


def against(rows: Rows, loss: str) -> tuple[str, str] | None:
    """The names of a loss's model and of cross-entropy's with the same optimizer, the first."""
    for name in rows:
        if split(name)[0] == loss:
            return name, f"cross-entropy ({split(name)[1]})"
    return None


def by_class(first: Result, second: Result, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 of `first` minus `second` in each class [C], and 95 % intervals [C, 2]."""
    difference = correct(first, TOP1).astype(float) - correct(second, TOP1)
    value, limits = np.full(num_classes, math.nan), np.full((num_classes, 2), math.nan)
    for c in np.unique(first.labels):
        own = difference[first.labels == c]
        value[c] = own.mean()
        limits[c] = metrics.bootstrap_interval(own, draws=400)
    return value, limits


def class_differences(rows: Rows, loss: str, names: Sequence[str]) -> None:
    """Top-1 of a loss minus that of cross-entropy, class by class."""
    first, second = against(rows, loss)  # type: ignore[misc]
    value, limits = by_class(rows[first][0], rows[second][0], len(names))
    better, worse = int((value > 0).sum()), int((value < 0).sum())
    says = (
        f"{sentence(first)} is better than cross-entropy in {better} of"
        f" {len(names)} classes, worse in {worse}"
    )
    show(
        plots.class_bars(
            names, value, limits, title=says, xlabel=f"Top-1 of {loss} minus cross-entropy"
        ),
        f"Class-wise top-1 accuracy: {first} minus {second}, with paired bootstrap 95 % intervals.",
        f"A bar chart of differences for {len(names)} classes, from"
        f" {points(float(np.nanmin(value)))} to {points(float(np.nanmax(value)))} points. {says}.",
    )


def nearest_same(result: Result) -> float:
    """Share of the sampled test images whose nearest other one is of their class (recall at 1)."""
    x, labels, _ = (np.asarray(part) for part in sampled(result))
    x = x.astype(np.float64)
    squares = np.square(x).sum(axis=1)
    distance = squares[:, None] - 2 * (x @ x.T) + squares
    np.fill_diagonal(distance, np.inf)
    return float((labels[distance.argmin(axis=1)] == labels).mean())


def geometry(rows: Rows) -> None:
    """Distances between and within classes, as a table, and the t-SNE maps of one optimizer."""
    records = [
        {
            "model": model,
            "between class means": mean(group, "between_class"),
            "within a class": mean(group, "within_class"),
            "ratio": f"{np.mean([spread(result) for result in group]):.2f}",
            "nearest is of the same class": percent(
                float(np.mean([nearest_same(result) for result in group]))
            ),
        }
        for model, group in rows.items()
    ]
    table(
        pd.DataFrame(records),
        "Geometry of the test images' embeddings: mean distance between class means, and of an"
        " image to its class mean. Only their ratio compares, as losses set their own scale. Last:"
        " the share of sampled images whose nearest other sampled image is of their class.",
    )


def maps(rows: Rows, names: Sequence[str]) -> None:
    """t-SNE maps of the same test images under each loss, with the first optimizer."""
    models = distinct(rows)
    optimizer = split(next(iter(models)))[1]
    shown = {name: group[0] for name, group in models.items() if split(name)[1] == optimizer}
    first = next(iter(shown.values()))
    labels = first.labels[first.arrays["sample"]]
    ratios = {name: spread(result) for name, result in shown.items()}
    best = max(ratios, key=lambda name: ratios[name])
    says = f"Classes lie farthest apart, for their size, with {split(best)[0]} ({ratios[best]:.1f})"
    show(
        plots.scatter(
            {split(name)[0]: result.arrays["tsne"] for name, result in shown.items()},
            labels,
            names,
            title=says,
            ticks=False,
        ),
        f"t-SNE of the embeddings of the same {len(labels):,} test images, trained with"
        f" {optimizer}. In brackets: distance between class means relative to that within classes.",
        f"Maps of {len(labels):,} points coloured by class, one for each of {', '.join(shown)}."
        f" {says}.",
    )


def cost(rows: Rows) -> None:
    """Training time, rate and memory, as a table."""
    records = []
    for model, group in distinct(rows).items():
        p = group[0].provenance
        memory = p.get("peak_gpu_mib", p.get("peak_rss_mib"))
        records.append(
            {
                "model": model,
                "epochs": len(group[0].history),
                "training": f"{np.mean([r.provenance['train_seconds'] for r in group]):.1f} s",
                "images/s": f"{rate(group):,.0f}",
                "parameters": f"{group[0].metrics['parameters']:,}",
                "peak memory": f"{memory:,.0f} MiB" if memory else "–",
                "device": p["device"] if p["device"] != "cpu" else f"CPU, threads: {p['threads']}",
            }
        )
    table(
        pd.DataFrame(records),
        "Training cost. Times are of the runs as they happened, evaluation after each epoch"
        " included; images/s are of training steps alone, in the fastest epoch. Other work on the"
        " machine slows both.",
    )


def rate(group: Sequence[Result]) -> float:
    """Training images a second in the fastest epoch: the least disturbed by other work."""
    return max(float(result.history.images_per_second.max()) for result in group)


def fill(place: Any, rows: Rows, pairs: Sequence[Pair]) -> None:
    """The answer in one paragraph, from the numbers."""
    first = next(iter(rows.values()))[0]
    e, n = first.experiment, first.metrics["test_images"]
    name = deciding(rows)
    models = distinct(rows)
    ranked = sorted(models, key=lambda model: -mean(models[model], name))
    listed = "; ".join(
        f"{model} **{percent(mean(models[model], TOP5))}** ({percent(mean(models[model], TOP1))})"
        for model in ranked
    )
    place.update(
        Markdown(
            f"Trained on {DATASETS[e.data.name].title} ({e.num_classes} classes) for"
            f" {len(first.history)} epochs each, the models reach these **top-5** (and top-1)"
            f" accuracies on the same {n:,} test images, the best in {WORDS[name]} first: {listed}."
            f" {_leader(models, ranked, pairs, name)}"
        )
    )


def _leader(models: Rows, ranked: Sequence[str], pairs: Sequence[Pair], name: str) -> str:
    """Whether the best model is certainly better than which of those it was tested against."""
    best = ranked[0]
    if mean(models[best], name) == mean(models[ranked[-1]], name):
        return f"All have the same {WORDS[name]}."
    beaten = [
        pair.second if pair.first == best else pair.first
        for pair in pairs
        if pair.metric == name and best in (pair.first, pair.second) and pair.certain
    ]
    tested = [p for p in pairs if p.metric == name and best in (p.first, p.second)]
    if not beaten:
        return (
            f"The lead of {best} over the {len(tested)} models that differ from it in one thing is"
            " within what chance explains on so many test images."
        )
    return (
        f"The lead of {best} is more than chance over {' and '.join(beaten)}"
        f" ({len(beaten)} of {len(tested)} models that differ from it in one thing)."
    )


def findings(rows: Rows, pairs: Sequence[Pair], names: Sequence[str]) -> list[str]:
    """What the comparison's numbers say, a sentence each."""
    models = distinct(rows)
    name = deciding(rows)
    ranked = sorted(models, key=lambda model: -mean(models[model], name))
    said = []
    if name == TOP1:
        said.append(
            f"All models are above 99 % in top-5: with {len(names)} classes it saturates, and top-1"
            " tells them apart."
        )
    said.append(_leader(models, ranked, pairs, name))
    said += _effects(pairs, name)
    said += _lambda_zero(rows)
    said += _class_effects(rows, names)
    said += _geometry(models)
    said += _cost(models)
    tests = len(pairs)
    said.append(
        f"Called larger than chance is a difference whose p stays below {LEVEL:g} when Holm's"
        f" method corrects it for all {tests} tests; a single interval that excludes zero is not"
        " enough."
    )
    return said


def _effects(pairs: Sequence[Pair], name: str) -> Iterator[str]:
    """Each loss against cross-entropy, what else is certain, and the rest in one sentence."""
    rest = []
    for pair in pairs:
        if pair.metric != name:
            continue
        same = split(pair.first)[1] == split(pair.second)[1]
        swapped = pair.difference < 0
        first, second = (pair.second, pair.first) if swapped else (pair.first, pair.second)
        size = f"{100 * abs(pair.difference):.1f} points in {WORDS[name]}"
        p = f"p = {pair.adjusted:.2g} after Holm"
        if pair.certain:
            yield sentence(f"{first} beats {second} by {size} ({p}).")
        elif not (same and "cross-entropy" in (split(first)[0], split(second)[0])):
            rest.append(abs(pair.difference))
        elif pair.difference == 0:
            yield sentence(f"{first} and {second} are equal in {WORDS[name]}.")
        else:
            yield sentence(f"{first} is {size} above {second}, no more than chance explains ({p}).")
    if rest:
        yield (
            f"The other {len(rest)} tested differences, up to {100 * max(rest):.1f} points, are no"
            " more than chance explains."
        )


def _lambda_zero(rows: Rows) -> Iterator[str]:
    found = against(rows, "center, λ = 0")
    if not found or found[1] not in rows:
        return
    zero, plain = rows[found[0]][0], rows[found[1]][0]
    if zero.id == plain.id:
        yield (
            f"Center loss with λ = 0 is the cross-entropy run itself (identity {plain.id}), not a"
            " second one: its row repeats the numbers."
        )
    else:
        a, b = zero.experiment.settings, plain.experiment.settings
        differing = ", ".join(sorted(k for k in {*a, *b} if a.get(k) != b.get(k)))
        yield (
            f"Center loss with λ = 0 is a cross-entropy run of its own here: it differs from the"
            f" first row in {differing}, as center loss does."
        )


def _class_effects(rows: Rows, names: Sequence[str]) -> Iterator[str]:
    for loss in ("center loss", "triplet loss"):
        found = against(rows, loss)
        if not found or found[1] not in rows:
            continue
        value, limits = by_class(rows[found[0]][0], rows[found[1]][0], len(names))
        gains, losses = (limits[:, 0] > 0).sum(), (limits[:, 1] < 0).sum()
        best, worst = int(np.nanargmax(value)), int(np.nanargmin(value))
        yield (
            f"Class by class, {found[0]} gains most over cross-entropy in class {names[best]}"
            f" ({points(float(value[best]))} points) and least in {names[worst]}"
            f" ({points(float(value[worst]))}); the interval excludes zero in {gains} classes above"
            f" and {losses} below, of {len(names)}, without correction for their number."
        )


def _geometry(models: Rows) -> Iterator[str]:
    ratios = {name: float(np.mean([spread(r) for r in group])) for name, group in models.items()}
    best, worst = (f(ratios, key=lambda name: ratios[name]) for f in (max, min))
    yield (
        f"Classes are most compact for their distance with {best} (class means lie"
        f" {ratios[best]:.2f} times as far apart as images from their class mean), least with"
        f" {worst} ({ratios[worst]:.2f})."
    )


def _cost(models: Rows) -> Iterator[str]:
    devices = {result.provenance["device"] for group in models.values() for result in group}
    if len(devices) > 1:
        yield f"Training times do not compare: the runs were on {', '.join(sorted(devices))}."
        return
    rates = {name: rate(group) for name, group in models.items()}
    fast, slow = (f(rates, key=lambda name: rates[name]) for f in (max, min))
    lost = 1 - rates[slow] / rates[fast]
    said = (
        f"In the fastest epoch of each run {fast} trained {rates[fast]:,.0f} images a second and"
        f" {slow} {rates[slow]:,.0f}, {percent(lost, 0)} less"
    )
    histories = [result.history.images_per_second for group in models.values() for result in group]
    within = max(1 - float(x.min() / x.max()) for x in histories)
    if lost <= 1.5 * within:
        said += (
            f"; but epochs of one and the same run differ by up to {percent(within, 0)}, so that"
            " this says little of the losses"
        )
    yield f"{said}."


def limitations(rows: Rows) -> list[str]:
    """What the comparison cannot say, beyond what a single result cannot."""
    seeds = min(map(len, rows.values()))
    said = [
        "Each loss has the one setting of its preset (learning rate, margin, P and K, λ, α). A loss"
        " that ends lower might do better with another.",
        "Epochs and images are the same for all, as far as batches divide them; time is not.",
    ]
    if seeds == 1:
        said.append(
            "With one seed a model, the paired tests speak of these trained networks on other"
            " test images, not of the losses under another seed."
        )
    return said


def headline(rows: Rows) -> Mapping[str, str]:
    """Top-5 and top-1 of the first optimizer's losses, for the index."""
    models = distinct(rows)
    optimizer = split(next(iter(models)))[1]
    return {
        split(name)[0].capitalize(): f"{percent(mean(group, TOP5))} / {percent(mean(group, TOP1))}"
        for name, group in models.items()
        if split(name)[1] == optimizer
    }
