"""The bench: fair ways, nothing measured twice, and figures that say what was measured."""

import itertools
import json
import os
from multiprocessing import get_start_method
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlops import bench, ordinary
from dlops.data import load
from dlops.data.readers import class_labels
from dlops.evaluate import Evaluation
from dlops.settings import Data, DlopsError
from dlops.train import Training

CPU = torch.device("cpu")
RUN = {"epochs": 3, "precision": "float32", "loss": 0.5, "peak_mib": 900.0}


@pytest.fixture
def cross_entropy():
    return bench.recipe("q1.1", "test", 1)


@pytest.fixture
def training(cross_entropy):
    made = Training(cross_entropy, load(cross_entropy.data, 0), CPU)
    made.begin()
    return made


# The ordinary script


def test_the_ordinary_script_sees_the_very_pixels_of_ours(tmp_path, cross_entropy):
    data = load(cross_entropy.data, 0)
    ordinary.write_images(data.train, tmp_path)
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    found = ImageFolder(str(tmp_path), pil_to_tensor)
    assert len(found.classes) == 10
    theirs = {(image.numpy().tobytes(), label) for image, label in found}
    assert theirs == {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(data.train.images, data.train.labels)
    }


@pytest.mark.parametrize("triplet", [False, True])
def test_the_ordinary_input_goes_on_over_epochs(tmp_path, monkeypatch, cross_entropy, triplet):
    monkeypatch.setattr(ordinary.os, "cpu_count", lambda: 0)  # no workers
    data = load(cross_entropy.data, 0)
    ordinary.write_images(data.train, tmp_path)
    batches = list(itertools.islice(ordinary.ordinary_input(tmp_path, data, triplet), 5))
    assert len(data.train) < 3 * ordinary.BATCH
    for images, labels in batches:
        assert tuple(images.shape) == (128, 3, 16, 16) and len(labels) == 128
        if triplet:
            assert set(torch.bincount(labels).tolist()) <= {0, 16}
    assert not torch.equal(batches[0][0], batches[1][0])
    assert abs(torch.cat([images for images, _ in batches]).mean()) < 0.5  # normalised


def test_the_cosine_ends_with_the_time(monkeypatch):
    """By a clock that ticks once a look, training stops when the time is over."""
    script = ordinary.Ordinary(10, False, CPU)
    rates, step = [], script.optimizer.step
    monkeypatch.setattr(
        script.optimizer,
        "step",
        lambda: (rates.append(script.optimizer.param_groups[0]["lr"]), step()),
    )
    ticks = itertools.count()
    monkeypatch.setattr(ordinary, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    one = torch.randn(4, 3, 16, 16), torch.arange(4)
    rate, taken = script.train(itertools.repeat(one), 5.0)
    assert len(rates) == 4 and rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.001 * 0.9045, rel=1e-3)
    assert rates[-1] == pytest.approx(0.001 * 0.0955, rel=1e-3)
    assert taken == 6 and rate == 16 / 6


def test_the_ordinary_triplet_loss_is_the_hardest_of_the_batch():
    torch.manual_seed(0)
    x, labels = torch.randn(12, 8), torch.arange(12) % 3
    unit = torch.nn.functional.normalize(x)
    distance = torch.cdist(unit, unit)
    same = labels[:, None] == labels
    positive = distance.masked_fill(~same, 0).amax(1)
    negative = distance.masked_fill(same, torch.inf).amin(1)
    each = (positive - negative + 0.2).clamp(min=0)
    found = ordinary.ordinary_loss(triplet=True)(x, x, labels)
    torch.testing.assert_close(found, each[each > 0].mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("question", ["q1.1", "q1.2"])
def test_both_ways_give_the_same_figures(monkeypatch, question):
    monkeypatch.setattr(ordinary.os, "cpu_count", lambda: 0)
    base = bench.recipe(question, "test", 1).with_(seed=1)
    theirs, mine = bench.ordinary(base, 0.01), bench.ours(base.with_(epochs=1))
    for found in (theirs, mine):
        assert 0 <= found["top1"] <= found["top5"] <= 1
        assert found["seconds"] > 0 and found["images_per_second"] > 0
        assert found["precision"] == "float32"
    assert theirs["ceiling"] == theirs["images_per_second"] / theirs["resident"]
    assert mine["epochs"] == 1 and mine["epochs_seconds"] < mine["seconds"]
    assert json.loads(json.dumps([theirs, mine])) == [theirs, mine]


def test_networks_of_theirs_are_judged_as_ours(cross_entropy):
    """The test accuracy of a network of ours, by way of the ordinary script's judge."""
    network = Training(cross_entropy, load(cross_entropy.data, 0), CPU)
    own = Evaluation(network.network, network.test, network.autocast())
    right = (own.logits.argmax(1) == own.labels).double().mean().item()
    assert bench.judged(network.network, cross_entropy, CPU)["top1"] == right


# Ours


def test_a_rate_is_images_over_time_and_one_batch_is_always_the_same(training, monkeypatch):
    seen, whole = [], training.train
    training.network.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    training.train = bench.OneBatch(next(whole.epoch(0)), 3)
    ticks = iter([0.0, 4.0])
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    found = bench.rate(training, 0.0)
    assert found == len(seen) * 64 / 4.0
    assert all(torch.equal(batch, seen[0]) for batch in seen)
    training.train = whole
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=iter([0.0, 1.0]).__next__))
    seen.clear()
    assert bench.rate(training, 0.2) == len(seen) * 64


def test_a_pace_has_its_turns_and_the_first_is_not_counted(cross_entropy, monkeypatch):
    asked = []

    def rate(training, seconds):
        asked.append(type(training.train).__name__)
        return float(len(asked))

    monkeypatch.setattr(bench, "rate", rate)
    monkeypatch.setattr(bench, "ours", lambda e: {"seconds": 10.0, "epochs_seconds": 8.0})
    found = bench.pace(cross_entropy, 3.0, turns=2)
    assert asked == ["Batches", "OneBatch", "OneBatch", "Batches", "Batches", "OneBatch"]
    assert found["end_to_end"] == [4, 5] and found["resident"] == [3, 6]
    assert found["ceiling"] == (4 / 3 + 5 / 6) / 2  # the median of the turns' ratios
    assert (found["epoch_seconds"], found["other_seconds"]) == (2.0, 2.0)


def test_as_many_epochs_as_fit_but_one_at_least():
    paced = {"epoch_seconds": 20.0, "other_seconds": 5.0}
    assert [bench.fitting(s, paced) for s in (3.0, 44.9, 45.0, 300.0)] == [1, 1, 2, 14]


# What is measured


def test_classes_are_those_that_no_setting_was_chosen_on():
    for first in (0, 1, 500):
        seed = bench.untouched(first)
        drawn = class_labels(Data("tiny-imagenet", classes=20, class_seed=seed), 200)
        assert seed >= first and not bench.TUNED & set(drawn.tolist())
    real = bench.recipe("q1.2", "lite", 7)
    assert (real.data.classes, real.data.class_seed, real.data.per_class) == (20, 7, 500)
    assert bench.recipe("q1.1", "quick", 7).data.class_seed is None


@pytest.fixture
def measured(monkeypatch):
    """Ways that take no time, and the list of those that were asked for."""
    asked = []

    def alone(function, experiment, *rest):
        if function is bench.pace:
            rates = {"end_to_end": [90.0, 95.0, 80.0], "resident": [100.0] * 3, "ceiling": 0.9}
            return {"epoch_seconds": 1.0, "other_seconds": 0.0, **rates}
        question = {"cross-entropy": "q1.1", "triplet": "q1.2"}[experiment.loss.name]
        seed, epochs = experiment.seed, experiment.schedule.epochs
        asked.append((question, function.__name__, seed, *([] if rest else [epochs])))
        if len(asked) == stop_at[0]:
            raise DlopsError("stopped")
        if function is bench.ordinary:
            own = {"resident": 120.0, "ceiling": 0.8}
            return {**RUN, **own, "seconds": 10.0, "images_per_second": 100.0 + seed} | top(0.5)
        rate = 150.0 + seed
        return {**RUN, "epochs": epochs, "seconds": 9.0, "images_per_second": rate} | top(
            0.4 + 0.02 * epochs + 0.01 * seed
        )

    def top(share):
        return {"top1": share, "top5": 0.9}

    stop_at = [0]
    monkeypatch.setattr(bench, "alone", alone)
    return SimpleNamespace(asked=asked, stop_at=stop_at)


def test_all_ways_take_turns_backwards_every_other_seed(measured):
    figures = bench.measure("quick", 10.0, 2, say=lambda line: None)
    assert measured.asked == [
        ("q1.1", "ordinary", 0),
        *[("q1.1", "ours", 0, epochs) for epochs in (4, 6, 10)],
        ("q1.2", "ordinary", 0),
        *[("q1.2", "ours", 0, epochs) for epochs in (4, 10)],
        *[("q1.1", "ours", 1, epochs) for epochs in (10, 6, 4)],
        ("q1.1", "ordinary", 1),
        *[("q1.2", "ours", 1, epochs) for epochs in (10, 4)],
        ("q1.2", "ordinary", 1),
    ]
    assert json.loads(bench.where("quick").read_text()) == figures == bench.stored("quick")
    assert len(figures["runs"]) == len(measured.asked)
    assert figures["machine"]["torch"] == torch.__version__ and "commit" in figures["machine"]


def test_a_stopped_bench_measures_only_what_is_missing(measured):
    measured.stop_at[0] = 4
    with pytest.raises(DlopsError, match="stopped"):
        bench.measure("quick", 10.0, 1, say=lambda line: None)
    assert not bench.where("quick").exists()
    measured.stop_at[0] = 0
    bench.measure("quick", 10.0, 1, say=lambda line: None)
    assert measured.asked[3] == measured.asked[4]  # the one that was stopped
    assert len(measured.asked) == 7 + 1
    bench.measure("quick", 10.0, 2, say=lambda line: None)  # a further seed
    assert len(measured.asked) == 8 + 7
    bench.measure("quick", 11.0, 1, say=lambda line: None)  # another budget is another bench
    assert len(measured.asked) == 15 + 7


def test_the_summary_has_means_of_accuracies_and_medians_of_rates(measured):
    figures = bench.measure("quick", 10.0, 3, say=lambda line: None)
    for run in figures["runs"]:
        if (run["way"], run["share"], run["seed"]) == ("ours", 1.0, 2):
            run["images_per_second"], run["seconds"] = 9000.0, 90.0  # one that was lucky
    table = bench.summary(figures).set_index(["question", "way", "share"])
    assert len(table) == 4 + 3 and set(table.seeds) == {3}
    mine, theirs = table.loc[("q1.1", "ours", 1.0)], table.loc[("q1.1", "ordinary", 1.0)]
    assert mine.top1 == pytest.approx(0.6 + 0.01)
    assert (mine.images_per_second, mine.seconds, mine.epochs) == (151.0, 9.0, 10)
    assert (mine.ceiling, mine.resident) == (0.9, 100.0)
    assert (theirs.images_per_second, theirs.ceiling, theirs.resident) == (101.0, 0.8, 120.0)


def test_gains_are_paired_by_seed_and_what_is_reached_is_the_mean(measured):
    figures = bench.measure("quick", 10.0, 2, say=lambda line: None)
    found = bench.gains(figures, "q1.1", 0.4)
    assert found == {0: pytest.approx(-0.02), 1: pytest.approx(-0.01)}
    assert bench.reached(figures, "q1.1") == 0.6  # 4 epochs give 48.5 %, 6 give 52.5 %
    assert bench.reached(figures, "q1.2") == 1.0
    for run in figures["runs"]:
        run["top1"] += 0.015 * (run["way"] == "ours")
    assert bench.reached(figures, "q1.1") == 0.4  # equal on average is reached
    for run in figures["runs"]:
        run["top1"] -= 0.5 * (run["way"] == "ours")
    assert bench.reached(figures, "q1.1") is None


def test_reports_never_measure(monkeypatch):
    monkeypatch.setenv("DLOPS_TRAIN", "never")
    with pytest.raises(DlopsError, match="make it with `python -m dlops.bench --preset lite`"):
        bench.stored("lite")


def test_a_way_has_a_process_of_its_own():
    assert bench.alone(os.getpid) != os.getpid()
    assert (
        bench.alone(get_start_method) == get_start_method()
    )  # as a script's loader starts its own
    with pytest.raises(DlopsError, match="no device 'tpu'"):
        bench.alone(bench.machine.choose_device, "tpu")


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--seeds", "0"]])
def test_bad_words_are_one_sentence(words):
    with pytest.raises(DlopsError, match="must be above 0"):
        bench.main(words)


def test_the_command_prints_a_table_and_where_it_is(measured, capsys):
    bench.main(["--preset", "test", "--seconds", "5"])
    printed = capsys.readouterr().out
    assert "q1.1, seed 0, ordinary: top-1 50.0 %, top-5 90.0 % in 10.0 s" in printed
    place = Path(printed.splitlines()[-1])
    assert place == bench.where("test") and place.exists()
    assert len(measured.asked) == 4  # of a test, one share of the time
