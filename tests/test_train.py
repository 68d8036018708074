"""Training: bit-identical again, after SIGKILL and after Ctrl-C; each experiment trained once."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dlops import DlopsError, Experiment, run, run_all
from dlops import train as module
from dlops.build import Network, make_optimizer
from dlops.data import load
from dlops.evaluate import Evaluation
from dlops.experiment import RECIPE
from dlops.machine import choose_device
from dlops.runs import interruptible
from dlops.store import Store
from dlops.train import Training, average, lr_factor


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """A shell's background job ignores Ctrl-C, and so would its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


TINY = {
    "data": "digits",
    "per_class": 3,
    "test_per_class": 2,
    "stem": "stride2",
    "epochs": 1,
    "batch_size": 8,
    "optimizer": "sgd",
    "lr": 0.01,
}  # 20 training, 10 validation and 20 test images; two steps an epoch
STACK = {
    "model": "stacked",
    "sizes": [16],
    "data": "digits",
    "per_class": 6,
    "test_per_class": 4,
    "epochs": 1,
    "batch_size": 16,
    "lr": 0.01,
}  # trains in no time: 50 training, 10 validation and 40 test images; three steps an epoch
CLOCK = ("seconds", "images_per_second")


def tiny(keep="metrics", **changes):
    return Experiment.from_flat(changes, defaults=TINY, keep=keep)


def stack(keep="metrics", **changes):
    return Experiment.from_flat(changes, defaults=STACK, keep=keep)


def numbers(result):
    """Everything that must be the same again: metrics and history, but for the clock."""
    return result.metrics, result.history.drop(columns=list(CLOCK)).to_dict("list")


class Watching:
    """Progress that remembers which experiments started and which epochs ended."""

    def __init__(self):
        self.started, self.epochs = [], []

    def __call__(self, event):
        if "experiment" in event:
            self.started.append(event["experiment"].id)
        elif "row" in event:
            self.epochs.append(event["epoch"])


# The same again -------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits():
    experiment = tiny(optimizer="adam", lr=0.001, augment="crop")
    assert numbers(run(experiment)) == numbers(run(experiment, force=True))


def test_the_same_seed_gives_the_same_arrays_and_another_one_others():
    experiment = stack(keep="arrays", augment="crop")
    first = run(experiment)
    again = run(experiment, force=True)
    assert numbers(again) == numbers(first)
    assert set(again.arrays) == set(first.arrays) >= {"predictions", "embeddings", "tsne"}
    for name, values in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], values, err_msg=name)
    other = run(experiment.with_(seed=1, keep="metrics"))
    assert other.metrics["test_images"] == first.metrics["test_images"]
    assert other.metrics["val_loss"] != first.metrics["val_loss"]


# What a checkpoint must hold: moments, centers, averaged weights, history, sums, the step.
AVERAGED = {"optimizer": "adam", "lr": 0.001, "schedule": "cosine", "ema": 0.9, "mix": 0.2}
KILLED = tiny(epochs=2, loss="center", center_weight=0.1, augment="crop", **AVERAGED)
STOPPED = stack(epochs=2, augment="crop", **AVERAGED)


def at_step(number, action):
    """A learning rate that also does something, when it is asked for in that step of the run."""
    steps = []

    def factor(experiment, done):
        if done not in steps:
            steps.append(done)
            if len(steps) == number:
                action()
        return lr_factor(experiment, done)

    return factor, steps


def test_killed_in_the_middle_and_asked_again(tmp_path):
    """SIGKILL in the second step of the second epoch: the first epoch is not trained again."""
    code = """if True:
        import json, os, signal, sys
        from dlops import Experiment, run, train
        from test_train import at_step

        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
        train.lr_factor, _ = at_step(4, kill)
        run(Experiment.from_flat(json.loads(sys.argv[1]), keep="metrics"))
    """
    environment = {**os.environ, "DLOPS_CHECKPOINT_SECONDS": "0"}
    command = [sys.executable, "-c", code, json.dumps(KILLED.settings)]
    folder = os.path.dirname(__file__)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Store().get(KILLED) is None
    assert Store().status(KILLED) == "interrupted"
    watching = Watching()
    resumed = run(KILLED, progress=watching)
    assert watching.epochs == [2]
    assert numbers(resumed) == numbers(run(KILLED, store=Store(tmp_path)))
    assert Store().status(KILLED) == "complete"
    assert not Store().workplace(KILLED).exists()


@pytest.mark.parametrize("step", [2, 3, 5], ids=["mid-epoch", "last step", "second epoch"])
def test_ctrl_c_saves_and_the_same_call_goes_on(step, monkeypatch, tmp_path):
    factor, steps = at_step(step, lambda: signal.raise_signal(signal.SIGINT))
    with monkeypatch.context() as patch:
        patch.setattr(module, "lr_factor", factor)
        with pytest.raises(KeyboardInterrupt):
            run(STOPPED)
    assert len(steps) == step  # it stopped after the step that it was in
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert Store().status(STOPPED) == "interrupted"
    watching = Watching()
    resumed = run(STOPPED, progress=watching)
    assert watching.epochs == ([1, 2] if step <= 3 else [2])
    assert numbers(resumed) == numbers(run(STOPPED, store=Store(tmp_path)))


# From the store -------------------------------------------------------------------------------


def test_a_result_is_trained_once_and_again_by_force():
    watching = Watching()
    first = run(stack(), progress=watching)
    assert run(stack(), progress=watching).folder == first.folder
    assert watching.started == [stack().id]
    run(stack(), progress=watching, force=True)
    assert watching.started == [stack().id] * 2


def test_the_old_result_stays_until_a_forced_run_replaces_it(monkeypatch):
    first = run(stack(keep="arrays"))

    def breaks(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("dlops.runs.finish", breaks)
        with pytest.raises(OSError):
            run(stack(keep="arrays"), force=True)
    assert numbers(Store().get(stack(keep="arrays"))) == numbers(first)
    less = run(stack(keep="metrics"), force=True)
    assert less.arrays == {} and less.keep == "metrics"


def test_what_breaks_the_final_evaluation_costs_no_training(monkeypatch):
    monkeypatch.setenv("DLOPS_CHECKPOINT_SECONDS", "0")

    def breaks(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("dlops.runs.finish", breaks)
        with pytest.raises(OSError):
            run(stack())
    watching = Watching()
    resumed = run(stack(), progress=watching)
    assert watching.epochs == []
    assert numbers(resumed) == numbers(run(stack(), force=True))


def test_a_result_that_keeps_too_little_is_trained_again():
    run(stack(keep="metrics"))
    result = run(stack(keep="arrays"))
    assert result.predictions.shape == (40, 5)
    assert run(stack(keep="metrics")).keep == "arrays"


def test_a_report_never_trains(monkeypatch):
    monkeypatch.setenv("DLOPS_TRAIN", "never")
    with pytest.raises(DlopsError, match=r"is missing.*dlops train"):
        run(stack())
    assert Store().status(stack()) == "missing"


def test_a_result_tells_where_it_comes_from():
    told = run(stack()).provenance
    assert told["threads"] == 1 and told["torch"] == torch.__version__
    assert (told["train_images"], told["val_images"]) == (50, 10)
    assert told["checksum"] == "sklearn-digits-1797"
    assert told["seconds"] >= told["train_seconds"] > 0
    assert told["peak_rss_mib"] > 50
    assert {"commit", "dirty", "processor", "when", "precision"} <= set(told)


# Settings that change the loop ----------------------------------------------------------------


def test_label_fraction_trains_on_that_share_of_every_class():
    experiment = tiny(per_class=20, label_fraction=0.25)
    data = load(experiment.data, 0)
    current = Training(experiment, data, torch.device("cpu"))
    shares = torch.bincount(current.train.labels).double() / torch.bincount(data.train.labels)
    assert shares.tolist() == pytest.approx([0.25] * 10, abs=0.03)
    assert len(current.val.labels) == len(data.val)
    assert len(current.train) == len(data.labelled) // 8


@pytest.mark.parametrize(
    "change",
    [{"mix": 0.4}, {"ema": 0.5}, {"augment": "crop"}, {"label_smoothing": 0.1}],
    ids=str,
)
def test_a_setting_moves_the_numbers(change):
    plain, changed = run(stack()).metrics, run(stack(**change)).metrics
    assert all(math.isfinite(value) for value in changed.values() if isinstance(value, float))
    assert changed["val_loss"] != plain["val_loss"]


def test_bfloat16_moves_the_numbers_a_little():
    plain, changed = (run(stack(precision=p)).metrics for p in ("float32", "bfloat16"))
    assert changed["train_loss"] != plain["train_loss"]
    assert changed["train_loss"] == pytest.approx(plain["train_loss"], rel=0.05)


def test_averaged_weights_move_towards_the_network():
    ours, theirs = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    before, target = ours.weight.clone(), theirs.weight
    average(ours.requires_grad_(False), theirs, decay=0.9, step=10_000)
    torch.testing.assert_close(ours.weight, 0.9 * before + 0.1 * target)
    average(ours, theirs, decay=0.9, step=0)  # fast while it is cold: decay 0.1
    torch.testing.assert_close(ours.weight, 0.09 * before + 0.91 * target)


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    experiment = tiny(schedule="cosine", warmup=0.2)
    at = [lr_factor(experiment, done) for done in (0, 0.1, 0.2, 0.6, 1)]
    assert at == pytest.approx([0.01, 0.505, 1, 0.5, 0])
    assert [lr_factor(tiny(), done) for done in (0, 0.5, 1)] == [1, 1, 1]


def test_mixup_mixes_by_seed_epoch_and_step_alone():
    share, order = module.mixup(0, 1, 2, 0.4, 16)
    again, order_again = module.mixup(0, 1, 2, 0.4, 16)
    assert 0 <= share <= 1 and again == share
    assert sorted(order) == list(range(16)) and list(order_again) == list(order)
    assert module.mixup(0, 1, 3, 0.4, 16)[0] != share


@pytest.mark.parametrize(
    ("optimizer", "attributes"),
    [
        ("sgd", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
        ("adam", {"beta1": 0.8, "beta2": 0.9, "eps": 1e-5, "amsgrad": True}),
        ("adam", {"decoupled": True, "weight_decay": 0.1}),
        ("adagrad", {"lr_decay": 0.1, "initial_accumulator": 0.2, "eps": 1e-6}),
        ("adadelta", {"rho": 0.8, "eps": 1e-4}),
        ("rmsprop", {"alpha": 0.9, "momentum": 0.5, "centered": True}),
    ],
)
def test_attributes_reach_the_optimizer(optimizer, attributes):
    experiment = stack(optimizer=optimizer, lr=0.3, **attributes)
    made = make_optimizer(experiment, Network(experiment, (3, 16, 16)))
    assert type(made).__name__.lower() == ("adamw" if "decoupled" in attributes else optimizer)
    names = {"initial_accumulator": "initial_accumulator_value"}
    for group in made.param_groups:
        assert group["lr"] == 0.3
        for name, value in attributes.items():
            if name in ("beta1", "beta2"):
                assert group["betas"][name == "beta2"] == value
            elif name != "decoupled":
                assert group[names.get(name, name)] == value


# Failures -------------------------------------------------------------------------------------


def test_a_diverged_run_fails_in_one_sentence_and_can_be_tried_again():
    wild = stack(optimizer="sgd", lr=1e30)
    with pytest.raises(DlopsError, match=r"diverged.*learning rate below 1e\+30"):
        run(wild)
    assert Store().status(wild) == "failed"
    assert "not finite" in Store().failure(wild)
    assert [path.name for path in Store().workplace(wild).iterdir()] == ["failed.json"]
    assert not Store().folder(wild).exists()
    with pytest.raises(DlopsError, match="diverged"):
        run(wild)


def test_a_collapsed_embedding_stops_the_run():
    flat = tiny(loss="triplet", classes_per_batch=4, images_per_class=3, normalize=False)
    current = Training(flat, load(flat.data, 0), torch.device("cpu"))
    current.begin()
    current.first_spread = 1.0
    current.sums[1], current.sums[5] = 12, 0.001
    with pytest.raises(DlopsError, match=r"collapsed.*semihard"):
        module.end_epoch(current, 0.0)


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps"])
def test_a_device_that_is_not_there(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DlopsError, match=f"Device {device} was asked for"):
        run(stack(), device=device)
    assert not any(Store().root.iterdir())
    monkeypatch.setenv("DLOPS_DEVICE", device)
    with pytest.raises(DlopsError, match=f"Device {device} was asked for"):
        run(stack())
    assert choose_device("cpu").type == "cpu"


def test_a_device_of_no_kind():
    with pytest.raises(DlopsError, match="no device 'tpu'; choose cpu, cuda or mps"):
        choose_device("tpu")


def test_weights_that_do_not_fit_are_refused():
    parent = stack(keep="weights")
    child = stack(sizes=[32]).with_(weights="run", parent=parent)
    with pytest.raises(DlopsError, match="do not fit this network at body"):
        run(child)
    assert Store().get(child) is None


# Many -----------------------------------------------------------------------------------------


def test_run_all_trains_each_once_parents_first():
    parent = stack(lr=0.02)
    child = stack(epochs=2).with_(weights="run", parent=parent)
    watching, told = Watching(), []
    results = run_all(
        [child, stack(), child, parent, stack()],
        progress=watching,
        on_result=lambda experiment, result: told.append(experiment.id),
    )
    assert [result.id for result in results] == [
        e.id for e in (child, stack(), child, parent, stack())
    ]
    assert watching.started == told == [parent.id, child.id, stack().id]


def test_run_all_needs_no_parent_of_what_is_there(monkeypatch):
    """A published result is read without the weights that it once started from."""
    parent = stack(lr=0.02)
    child = stack(epochs=2).with_(weights="run", parent=parent)
    run_all([child])
    shutil.rmtree(Store().folder(parent))
    monkeypatch.setenv("DLOPS_TRAIN", "never")
    assert [result.id for result in run_all([child])] == [child.id]
    with pytest.raises(DlopsError, match=f"{parent.id} .* is missing"):
        run_all([child, child.with_(seed=1)])


def test_run_all_takes_an_executor():
    wanted = [stack(seed=seed) for seed in (0, 1, 0)]
    with ThreadPoolExecutor(2) as executor:
        results = run_all(wanted, executor)
    assert [result.id for result in results] == [experiment.id for experiment in wanted]


def test_two_that_ask_at_once_train_once():
    watching = Watching()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(run, stack(), progress=watching) for _ in range(2)]
        first, second = (future.result() for future in asked)
    assert watching.started == [stack().id]
    assert numbers(first) == numbers(second)


def test_one_failure_does_not_stop_the_others():
    bad, good = stack(optimizer="sgd", lr=1e30), stack()
    told = []
    with pytest.raises(DlopsError, match="diverged"):
        run_all([bad, good], on_result=lambda experiment, result: told.append(type(result)))
    assert [kind.__name__ for kind in told] == ["Diverged", "Result"]
    assert Store().status(good) == "complete"


def test_what_nobody_expected_does_not_stop_the_others_and_is_not_hidden(monkeypatch):
    bad, worse, good = stack(optimizer="sgd", lr=1e30), stack(seed=1), stack(seed=2)

    begin = Training.begin

    def fails(self):
        if self.experiment.seed == 1:
            raise ZeroDivisionError
        begin(self)

    monkeypatch.setattr(Training, "begin", fails)
    with pytest.raises(ZeroDivisionError):
        run_all([bad, worse, good])
    assert Store().status(good) == "complete"


def test_a_run_starts_from_another_ones_weights():
    """With a learning rate of next to nothing it stays there; the classifier is new."""
    parent = stack(keep="weights")
    child = stack(keep="weights", lr=1e-12).with_(weights="run", parent=parent)
    result = run(child)
    before = Store().get(parent).weights
    assert set(before) == set(result.weights)
    for name, value in result.weights.items():
        assert np.allclose(value, before[name], atol=1e-6) == ("head" not in name), name


def test_interrupts_are_left_alone_in_other_threads():
    seen = []

    def inside():
        with interruptible() as event:
            seen.append((signal.getsignal(signal.SIGINT), event.is_set()))

    worker = threading.Thread(target=inside)
    worker.start()
    worker.join()
    assert seen == [(signal.default_int_handler, False)]


# Golden ---------------------------------------------------------------------------------------

ONE_STEP = {"batch_size": 20, "epochs": 2, "lr": 1e-4}  # an epoch, so that rounding cannot grow
GOLDEN_RECIPE = {"data": 1, "resnet": 1, "losses": 1, "autoencoder": 1, "train": 2}
GOLDEN = {  # batch loss after no step and one, training loss, distances within and between classes
    "cross-entropy": (
        {**ONE_STEP, "label_smoothing": 0.1, "mix": 0.4, "augment": "crop"},
        [2.40571785, 2.45006294, 2.29809427, 0.91031837, 1.51258659],
    ),
    "triplet": (
        {"loss": "triplet", "classes_per_batch": 10, "images_per_class": 2}
        | {"epochs": 2, "lr": 1e-4},
        [0.19522215, 0.19006016, 0.18110651, 0.38815117, 0.64615220],
    ),
    "center": (
        {**ONE_STEP, "lr": 1e-5, "loss": "center", "center_weight": 0.01, "embedding_dim": 8}
        | {"optimizer": "adam", "schedule": "cosine", "warmup": 0.5},
        [2.38519859, 2.37473297, 2.32975268, 0.05757108, 0.12028708],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_numbers_move_only_with_the_recipe(name):
    """In float32 with one thread. If this fails because training was meant to change, bump the
    component in dlops.experiment.RECIPE, so that old results keep their names, and renew GOLDEN.
    """
    assert RECIPE == GOLDEN_RECIPE
    settings, golden = GOLDEN[name]
    result = run(tiny(**settings))
    measured = [
        *result.history.batch_loss,
        result.history.train_loss.iloc[-1],
        result.metrics["within_class"],
        result.metrics["between_class"],
    ]
    assert measured == pytest.approx(golden, rel=1e-4)


# What accuracy on training images means ---------------------------------------------------------


def test_a_points_own_class_mean_is_made_without_it():
    evaluation = object.__new__(Evaluation)
    generator = torch.Generator().manual_seed(0)
    evaluation.normalize = False
    evaluation.embeddings = torch.randn(12, 4, generator=generator)
    evaluation.labels = torch.tensor([0] * 6 + [1] * 5 + [2])  # class 3 has no point, class 2 one
    scores = evaluation.held_out_scores(4)
    for point in range(12):
        for c in range(4):
            others = (evaluation.labels == c) & (torch.arange(12) != point)
            mean = evaluation.embeddings[others].mean(dim=0)
            wanted = -(evaluation.embeddings[point] - mean).norm() if others.any() else -torch.inf
            torch.testing.assert_close(
                scores[point, c].nan_to_num(), torch.as_tensor(wanted).nan_to_num()
            )


def test_training_accuracy_is_of_images_whose_labels_are_used():
    experiment = tiny(label_fraction=0.3)
    data = load(experiment.data, experiment.seed)
    sample = Training(experiment, data, torch.device("cpu")).sample
    assert 0 < len(data.labelled) < len(data.train)
    seen = torch.cat([images for images, _ in sample.ordered(512)])
    assert len(seen) == len(data.labelled)
