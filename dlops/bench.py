"""`python -m dlops.bench`: time to accuracy, beside the script one would write otherwise.

Both train on the same images, of classes that no setting was chosen on: the ordinary script (see
ordinary.py) for some minutes, ours, a preset's recipe in the loop that `run` uses, with a schedule
that fits a share of that time. Each way has a process of its own. A way that is done is kept in
the store: a bench that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dlops import machine
from dlops.data import Batches, Split, load
from dlops.data.readers import class_labels
from dlops.evaluate import Evaluation, test_results
from dlops.experiment import Experiment
from dlops.ordinary import BATCH, Ordinary, ordinary_input, write_images
from dlops.runs import run
from dlops.series.presets import from_preset
from dlops.settings import DATASETS, Data, DlopsError
from dlops.store import Store, reports_root
from dlops.store.disk import write_json
from dlops.train import Training, train_epoch

SHARES = {"q1.1": (0.4, 0.6, 1.0), "q1.2": (0.4, 1.0)}  # of the ordinary script's time
SECONDS = {"test": 0.5, "quick": 3.0}  # of presets that only rehearse, on digits
CLASSES, PER_CLASS = 20, 500
TUNED = {*range(20), *range(100, 120)}  # Tiny ImageNet's classes that settings were chosen on
Figures = dict[str, Any]


def ordinary(experiment: Experiment, seconds: float) -> Figures:
    """The ordinary script for so many seconds, on the experiment's images; with its test.

    Then, for a twentieth of the time, the same on one batch that is already there.
    """
    device, triplet = machine.choose_device(), experiment.loss.name == "triplet"
    with tempfile.TemporaryDirectory() as folder:
        data = load(experiment.data, experiment.seed)
        write_images(data.train, Path(folder))
        batches = ordinary_input(Path(folder), data, triplet)
        del data  # no part of the script, nor of its memory
        machine.reset_peak(device)
        torch.manual_seed(experiment.seed)
        np.random.seed(experiment.seed)  # noqa: NPY002 - pytorch-metric-learning draws from it
        script = Ordinary(experiment.num_classes, triplet, device)
        rate, taken = script.train(batches, seconds)
        found = {"seconds": taken, "precision": "float32", "images_per_second": rate}
        used = machine.peak(device)  # the loader's workers not counted
        found |= {"peak_mib": used.get("peak_gpu_mib", used.get("peak_rss_mib"))}
        found |= {"loss": statistics.mean(script.losses)}
        found |= judged(script.network, experiment, device)
        resident = script.train(itertools.repeat(next(iter(batches))), seconds / 20)[0]
    return found | {"resident": resident, "ceiling": rate / resident}


def judged(network: Any, experiment: Experiment, device: torch.device) -> Figures:
    """Test top-1 and top-5 of a network of theirs, measured as those of ours."""
    data, triplet = load(experiment.data, experiment.seed), experiment.loss.name == "triplet"

    def of(split: Split) -> Evaluation:
        batches = Batches(split, data.mean, data.std, batch_size=BATCH, seed=0, device=device)
        return Evaluation(network, batches, torch.autocast(device.type, enabled=False), triplet)

    train = of(data.train) if triplet else None
    metrics, _ = test_results(of(data.test), train, experiment.num_classes, arrays=False)
    return {"top1": metrics["test_top1"], "top5": metrics["test_top5"]}


def ours(experiment: Experiment) -> Figures:
    """The experiment by `run`: the seconds are all of it, from the data to the stored result."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(experiment, store=Store(folder), force=True)
        rates, told = result.history["images_per_second"], result.provenance
    return {
        "seconds": told["seconds"],
        "epochs_seconds": told["train_seconds"],
        "precision": told["precision"],
        "epochs": len(rates),
        "images_per_second": statistics.harmonic_mean(rates),
        "peak_mib": told.get("peak_gpu_mib", told.get("peak_rss_mib")),
        "loss": float(result.history["batch_loss"].iloc[-1]),
        "top1": result.metrics["test_top1"],
        "top5": result.metrics["test_top5"],
    }


class OneBatch:
    """An epoch that is the same batch over and over: training without input."""

    def __init__(self, batch: tuple[Tensor, Tensor], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(self.batch, self.steps)


def pace(experiment: Experiment, seconds: float, turns: int = 5) -> Figures:
    """What ours takes: the seconds of an epoch with its evaluation, and of what is beside epochs;
    and in turns of so many seconds the images a second with the input, and on one batch that is
    there already, with the median of their ratios, the ceiling."""
    short = ours(experiment.with_(epochs=4))
    device = machine.choose_device()
    data = load(experiment.data, experiment.seed)
    training = Training(experiment.with_(epochs=10_000), data, device)
    training.begin()
    whole: Any = training.train
    kinds = {"end_to_end": whole, "resident": OneBatch(next(whole.epoch(0)), len(whole))}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(turns + 1):
        for name in list(kinds)[:: (-1) ** turn]:
            training.train = kinds[name]
            rates[name].append(rate(training, seconds))
    end_to_end, resident = (found[1:] for found in rates.values())  # the first finds memory cold
    return {
        "epoch_seconds": short["epochs_seconds"] / 4,
        "other_seconds": short["seconds"] - short["epochs_seconds"],
        "end_to_end": end_to_end,
        "resident": resident,
        "ceiling": statistics.median(a / b for a, b in zip(end_to_end, resident)),
    }


def rate(training: Training, seconds: float) -> float:
    """Images a second of the training loop, stopped as Ctrl-C would stop it."""
    stop, steps = threading.Event(), 0
    timer = threading.Timer(seconds, stop.set)
    started = time.perf_counter()
    timer.start()
    while not (steps and stop.is_set()):
        training.epoch, training.step = training.epoch + 1, 0
        training.sums.zero_()
        train_epoch(training, stop, lambda event: None)
        steps += training.step
    timer.cancel()
    images = training.sums[1].item() / training.step  # of a step; waits for the device
    return steps * images / (time.perf_counter() - started)


def recipe(question: str, preset: str, class_seed: int) -> Experiment:
    """The preset's, on a draw of CLASSES classes where the data set has more."""
    made = from_preset(question, preset).with_(keep="metrics")
    if DATASETS[made.data.name].num_classes <= CLASSES:
        return made
    return made.with_(classes=CLASSES, class_seed=class_seed, per_class=PER_CLASS)


def untouched(first: int) -> int:
    """The first seed from `first` on that draws none of the classes TUNED."""
    total = DATASETS["tiny-imagenet"].num_classes

    def free(seed: int) -> bool:
        data = Data("tiny-imagenet", classes=CLASSES, class_seed=seed)
        return TUNED.isdisjoint(class_labels(data, total).tolist())

    return next(filter(free, itertools.count(first)))


def alone(function: Callable[..., Figures], *arguments: Any) -> Figures:
    """What the function returns in a process of its own."""
    usual, spawn = multiprocessing.get_start_method(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _as_a_script, (usual,)) as process:
        return process.submit(function, *arguments).result()


def _as_a_script(usual: str) -> None:
    """A spawned process would spawn the loader's workers too, seconds an epoch; no script does."""
    multiprocessing.set_start_method(usual, force=True)


def measure(
    preset: str,
    seconds: float | None = None,
    seeds: int | None = None,
    say: Callable[[str], None] = print,
) -> Figures:
    """All ways in turns, every other seed backwards; stored as the preset's figures.

    What is kept holds for this machine, these versions and this commit. Raises DlopsError.
    """
    seconds = seconds or SECONDS.get(preset, 300.0)
    seeds = seeds or (1 if preset in SECONDS else 3)
    bases = {question: recipe(question, preset, untouched(1)) for question in SHARES}
    shares = {question: s[-1:] if preset == "test" else s for question, s in SHARES.items()}
    data = load(bases["q1.1"].data, 0)  # decoded before any clock runs
    about = {**machine.describe(machine.choose_device()), **machine.git_state()}
    key = [seconds, [base.id for base in bases.values()], about]
    folder = Store().root / "speed" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]

    def one(name: str, *call: Any) -> Figures:
        """What was measured before, or is measured now and kept."""
        path = folder / f"{name}.json"
        if not path.exists():
            write_json(path, alone(*call))
        return json.loads(path.read_text(encoding="utf-8"))

    paces = {q: one(f"{q}-pace", pace, base, seconds / 100) for q, base in bases.items()}
    runs = []
    for seed, (question, base) in itertools.product(range(seeds), bases.items()):
        ways = [("ordinary", 1.0), *(("ours", share) for share in shares[question])]
        for way, share in ways[:: (-1) ** seed]:
            own, name = base.with_(seed=seed), f"{question}-{way}-{share:g}-{seed}"
            epochs = fitting(share * seconds, paces[question])
            call = (
                (ordinary, own, seconds) if way == "ordinary" else (ours, own.with_(epochs=epochs))
            )
            found = one(name, *call)
            accuracy = f"top-1 {100 * found['top1']:.1f} %, top-5 {100 * found['top5']:.1f} %"
            say(f"{question}, seed {seed}, {way}: {accuracy} in {found['seconds']:.1f} s")
            runs.append({"question": question, "way": way, "share": share, "seed": seed, **found})
    figures = {
        "preset": preset,
        "seconds": seconds,
        "class_seed": bases["q1.1"].data.class_seed,
        "classes": list(data.class_names),
        "images": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "settings": {question: base.to_json() for question, base in bases.items()},
        "machine": about,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "paces": paces,
        "runs": sorted(runs, key=lambda r: (r["question"], r["way"] != "ordinary", r["share"])),
    }
    write_json(where(preset), figures)
    return figures


def fitting(seconds: float, paced: Figures) -> int:
    """The epochs of ours that fit into the time, at least one."""
    return max(1, int((seconds - paced["other_seconds"]) / paced["epoch_seconds"]))


def where(preset: str) -> Path:
    """The file of a preset's figures."""
    return reports_root() / preset / "speed" / "figures.json"


def stored(preset: str) -> Figures:
    """A preset's figures; measured now if there are none, unless DLOPS_TRAIN is never."""
    if where(preset).exists():
        return json.loads(where(preset).read_text(encoding="utf-8"))
    if os.environ.get("DLOPS_TRAIN") == "never":
        raise DlopsError(
            f"{where(preset)} is missing, and reports never measure; make it with"
            f" `python -m dlops.bench --preset {preset}`."
        )
    return measure(preset)


def summary(figures: Figures) -> pd.DataFrame:
    """A row for each question, way and share of the time, over the seeds: means of accuracies,
    medians of times, rates and ceilings, the largest of the peaks."""
    runs = pd.DataFrame(figures["runs"])
    for question, found in figures["paces"].items():
        own = (runs.question == question) & (runs.way == "ours")
        runs.loc[own, "ceiling"] = found["ceiling"]
        runs.loc[own, "resident"] = statistics.median(found["resident"])
    median = ("seconds", "images_per_second", "resident", "ceiling")
    table = runs.groupby(["question", "way", "share"], sort=False).agg(
        seeds=("seed", "count"),
        epochs=("epochs", "first"),
        precision=("precision", "first"),
        **{name: (name, "mean") for name in ("top1", "top5", "loss")},
        **{name: (name, "median") for name in median},
        peak_mib=("peak_mib", "max"),
    )
    return table.reset_index()


def gains(figures: Figures, question: str, share: float, name: str = "top1") -> dict[int, float]:
    """By seed: ours after this share of the ordinary script's time, minus that one at the end."""
    runs = [found for found in figures["runs"] if found["question"] == question]
    theirs = {found["seed"]: found[name] for found in runs if found["way"] == "ordinary"}
    same = [found for found in runs if found["way"] == "ours" and found["share"] == share]
    return {found["seed"]: found[name] - theirs[found["seed"]] for found in same}


def reached(figures: Figures, question: str) -> float | None:
    """The least share of the time after which ours has the ordinary script's mean top-1."""
    runs = [found for found in figures["runs"] if found["question"] == question]
    shares = sorted({found["share"] for found in runs if found["way"] == "ours"})
    good = (s for s in shares if statistics.mean(gains(figures, question, s).values()) >= 0)
    return next(good, None)


def main(words: list[str] | None = None) -> None:
    """Measure, store and print."""
    parser = argparse.ArgumentParser(prog="python -m dlops.bench", description=__doc__)
    parser.add_argument("--preset", default="lite", help="whose recipe is trained")
    parser.add_argument("--seconds", type=float, help="of the ordinary script; default 300")
    parser.add_argument("--seeds", type=int, help="default 3")
    a = parser.parse_args(words)
    if (a.seconds is not None and a.seconds <= 0) or (a.seeds is not None and a.seeds < 1):
        raise DlopsError("--seconds must be above 0, and --seeds at least 1.")
    figures = measure(a.preset, a.seconds, a.seeds)
    print(summary(figures).to_string(index=False, float_format="{:.3g}".format))
    print(where(a.preset))


if __name__ == "__main__":
    try:
        main()
    except DlopsError as error:
        sys.exit(f"dlops.bench: {error}")
