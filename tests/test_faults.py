"""What lies on disk is what was written, or it is not believed; a kill at any moment loses nothing.

A killed process is played by a disk that answers nothing from the k-th operation on, for every k.
"""

import builtins
import errno
import io
import json
import os
import shutil
import signal
import tempfile
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dlops import Experiment, run
from dlops import train as training
from dlops.build import Network
from dlops.divergence import suspects, wild
from dlops.evaluate import compact
from dlops.experiment import RECIPE
from dlops.settings import DlopsError
from dlops.store import Store, publish, reports_root
from dlops.store.checkpoint import Checkpoint

EXPERIMENT = Experiment.from_preset("q1.1", "test")
OTHER = EXPERIMENT.with_(seed=1)
STATE = {"epoch": 3, "weights": torch.arange(5.0)}


class Killed(BaseException):
    """The process is gone: nothing that it would still do reaches the disk."""


class Disk:
    """Every operation on files that changes something is counted; `at` is the first that fails.

    error: an errno that this one operation fails with, or None, for the process to be killed there
    (and a write stays half done).
    """

    NAMES = ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync")

    def __init__(self, monkeypatch, at=None, error=None):
        self.at, self.error, self.log = at, error, []
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        opened = builtins.open

        def open_(file, mode="r", *args, **kwargs):
            if "w" not in mode:
                return opened(file, mode, *args, **kwargs)
            self._happens("open", file)
            return Written(opened(file, mode, *args, **kwargs), self, file)

        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(io, "open", open_)

    def _counted(self, name, original):
        def operation(*args, **kwargs):
            self._happens(name, *args)
            return original(*args, **kwargs)

        return operation

    def _happens(self, name, *args):
        self.log.append((name, *(os.fspath(a) if isinstance(a, os.PathLike) else a for a in args)))
        if self.at is None or len(self.log) < self.at:
            return
        if self.error is None:
            raise Killed
        if len(self.log) == self.at:
            raise OSError(self.error, os.strerror(self.error))


class Written:
    """A file that is open for writing, on such a disk."""

    def __init__(self, file, disk, path):
        self._file, self._disk, self._path = file, disk, path

    def write(self, content):
        try:
            self._disk._happens("write", self._path)
        except BaseException:
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise
        return self._file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def every_operation(monkeypatch, action, prepare, error=None):
    """Do the action on a disk that fails at its first, second, ... operation, until it succeeds."""
    at = 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            patch.setenv("DLOPS_STORE", f"{os.environ['DLOPS_STORE']}-{at}")
            prepare()
            with patch.context() as broken:
                disk = Disk(broken, at, error)
                try:
                    action()
                    caught = None
                except (Killed, DlopsError) as problem:
                    caught = problem
            yield caught
        if len(disk.log) < at:
            return


def save(number, experiment=EXPERIMENT, keep="arrays", store=None):
    """A result that is told from others by its number."""
    size = 10 + number
    labels = np.arange(size, dtype=np.uint8)
    return (store or Store()).save(
        experiment.with_(keep=keep),
        metrics={"test_top1": 1.0, "number": number},
        history=[{"epoch": 1, "train_loss": number / 3}],
        provenance={"when": "2026-01-02T03:04:05Z"},
        arrays={"predictions": labels[:, None], "labels": labels},
        weights={"w": np.full(3, number, np.float32)},
    )


def number_of(result):
    """Which result this is; fails unless all its parts are of the same one."""
    number = result.metrics["number"]
    assert result.history.train_loss.tolist() == [number / 3]
    assert len(result.labels) == 10 + number
    if result.keep == "weights":
        assert result.weights["w"].tolist() == [number] * 3
    return number


@contextmanager
def aside(match):
    """Something is set aside in here, with a warning, and nothing else is said."""
    with pytest.warns(UserWarning, match=match) as told:
        yield
    assert len(told) == 1


# Killed, or out of order, between any two operations on files -----------------------------------


def test_a_first_result_is_whole_or_not_there(monkeypatch):
    seen = []
    for _ in every_operation(monkeypatch, lambda: save(1), lambda: None):
        result = Store().get(EXPERIMENT)
        seen.append(result and number_of(result))
        with Store().claim(EXPERIMENT):
            pass
        assert number_of(save(2)) == number_of(Store().get(EXPERIMENT)) == 2
        assert sorted(p.name for p in Store().root.iterdir() if p.is_dir()) == [EXPERIMENT.id]
    assert len(seen) > 10 and set(seen) == {None, 1}
    assert seen == sorted(seen, key=bool)  # once seen it stays


@pytest.mark.parametrize("keep", ["arrays", "weights"])
def test_the_old_result_stays_until_the_new_one_is_whole(monkeypatch, keep):
    seen = []
    for _ in every_operation(monkeypatch, lambda: save(2, keep=keep), lambda: save(1)):
        seen.append(number_of(Store().get(EXPERIMENT)))
        with Store().claim(EXPERIMENT):  # the next process finishes it
            assert number_of(Store().get(EXPERIMENT)) == seen[-1]
        names = sorted(p.name for p in Store().root.iterdir() if p.is_dir())
        assert [n for n in names if not n.endswith(".run")] == [EXPERIMENT.id]
    assert set(seen) == {1, 2} and seen == sorted(seen)


def test_a_published_result_is_whole_or_not_there(monkeypatch):
    result = save(1, keep="weights")
    seen = []
    for _ in every_operation(monkeypatch, lambda: publish(result, "full"), lambda: None):
        found = Store().get(EXPERIMENT)
        seen.append(found and number_of(found))
    assert set(seen) == {None, 1} and seen == sorted(seen, key=bool)


def test_the_last_whole_checkpoint_stays(monkeypatch):
    def prepare():
        with Store().claim(EXPERIMENT):
            place().save({"epoch": 1})

    def place():
        return Checkpoint(Store().workplace(EXPERIMENT) / "checkpoint.pt", EXPERIMENT.id)

    seen = []
    for _ in every_operation(monkeypatch, lambda: place().save({"epoch": 2}), prepare):
        seen.append(place().load()["epoch"])
        with Store().claim(EXPERIMENT) as folder:  # what was left half written goes
            assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]
    assert set(seen) == {1, 2} and seen == sorted(seen)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "EIO"])
def test_a_result_that_cannot_be_written_is_one_sentence(monkeypatch, error):
    failed = 0
    for caught in every_operation(monkeypatch, lambda: save(2), lambda: save(1), error):
        if caught:
            failed += 1
            assert f"could not be written to {Store().root}" in str(caught)
            assert os.strerror(error) in str(caught) and "MiB" in str(caught)
        found = number_of(Store().get(EXPERIMENT))
        assert found == 2 or caught
        with Store().claim(EXPERIMENT):
            assert number_of(Store().get(EXPERIMENT)) == found
    assert failed > 10


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "EIO"])
def test_training_goes_on_where_a_checkpoint_cannot_be_written(monkeypatch, tmp_path, error):
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "id")
    checkpoint.save({"epoch": 1})
    for at in range(1, 4):  # to open, to write twice
        with monkeypatch.context() as patch:
            Disk(patch, at, error)
            with pytest.warns(UserWarning, match=f"could not be written.*{os.strerror(error)}"):
                checkpoint.save({"epoch": 2})
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
        assert checkpoint.load() == {"epoch": 1}


def test_everything_is_on_the_disk_before_the_rename_that_counts(monkeypatch):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        save(1, keep="weights")
        with Store().claim(EXPERIMENT) as folder:
            Checkpoint(folder / "checkpoint.pt", EXPERIMENT.id).save(STATE)
    names = [operation[0] for operation in disk.log]
    for last, operation in enumerate(disk.log):
        if operation[0] not in ("rename", "replace"):
            continue
        written = [i for i, (name, *_) in enumerate(disk.log[:last]) if name == "write"]
        files = {disk.log[i][1] for i in written}
        assert names[:last].count("fsync") >= len(files)
        assert names[last - 1] == "fsync" and names[last + 1] == "fsync"
    assert names.count("rename") == names.count("replace") == 1


# Damage to a result -----------------------------------------------------------------------------


def edit(change):
    def damage(folder):
        path = folder / "result.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def flip(name, position):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[int(position * len(content))] ^= 4
        (folder / name).write_bytes(content)

    return damage


def overwrite(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def foreign(name):
    def damage(folder):
        other = save(2, OTHER).folder
        (folder / name).write_bytes((other / name).read_bytes())

    return damage


DAMAGES = {
    "a digit of a metric": edit(lambda r: r["metrics"].update(test_top1=0.9)),
    "the settings": edit(lambda r: r["config"].update(seed=1)),
    "the identity": edit(lambda r: r.update(id=OTHER.id)),
    "an empty history": edit(lambda r: r.update(history=[])),
    "an infinite metric": edit(lambda r: r["metrics"].update(number=1e999)),
    "what it keeps": edit(lambda r: r.update(keep="metrics")),
    "no digest": edit(lambda r: r.pop("digest")),
    "no manifest": edit(lambda r: r.pop("files")),
    "another result.json": foreign("result.json"),
    "other arrays": foreign("arrays.npz"),
    "no arrays": lambda folder: (folder / "arrays.npz").unlink(),
    "arrays cut off": overwrite("arrays.npz", b"PK"),
    "a bit of the arrays": flip("arrays.npz", 0.5),
    "the first bit of the arrays": flip("arrays.npz", 0),
    "nothing in result.json": overwrite("result.json", b""),
    "half of result.json": overwrite("result.json", b'{"id": "x"'),
    "a list": overwrite("result.json", b"[1, 2]"),
    "no text": overwrite("result.json", b"\xff\xfe\x00"),
    "an empty record": overwrite("result.json", b"{}"),
}
CHEAP = [name for name in DAMAGES if "bit" not in name and name != "other arrays"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_set_aside_and_missing(damage):
    folder = save(1).folder
    DAMAGES[damage](folder)
    with aside(f"Result {EXPERIMENT.id} is not what was stored: .* set aside as .*damaged-1"):
        assert Store().get(EXPERIMENT) is None
    assert not folder.exists() and folder.with_name(f"{folder.name}.damaged-1").is_dir()
    assert Store().status(EXPERIMENT) == "missing"
    assert number_of(save(2)) == number_of(Store().get(EXPERIMENT)) == 2


@pytest.mark.parametrize("damage", CHEAP)
def test_a_list_of_runs_sees_damage_that_is_cheap_to_see(damage):
    DAMAGES[damage](save(1).folder)
    with aside("set aside"):
        assert Store().status(EXPERIMENT) == "missing"


def test_a_list_of_runs_reads_no_arrays(monkeypatch):
    save(1)
    monkeypatch.setattr(
        "dlops.store.result.Result.content", lambda *_: pytest.fail("arrays were read")
    )
    assert Store().status(EXPERIMENT) == "complete"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_published_result_is_refused(damage):
    publish(save(1), "lite")
    Store().forget(EXPERIMENT)
    place = reports_root() / "lite" / "results" / EXPERIMENT.id
    DAMAGES[damage](place)
    before = sorted(place.iterdir())
    with pytest.raises(DlopsError, match="is not what was published.*Restore it, or remove it"):
        Store().get(EXPERIMENT)
    assert sorted(place.iterdir()) == before
    if damage in CHEAP:
        assert Store().status(EXPERIMENT) == "failed"
        assert "is not what was published" in Store().failure(EXPERIMENT)


def test_arrays_that_change_after_they_were_found_are_refused():
    result = save(1)
    flip("arrays.npz", 0.5)(result.folder)
    with pytest.raises(DlopsError, match="no longer what was found there.*ask for the result"):
        _ = result.labels


def test_arrays_are_never_pickles(tmp_path):
    result = save(1)
    np.savez(result.folder / "arrays.npz", labels=np.array([{"not": "plain"}], dtype=object))
    unprove(result.folder)
    with aside("cannot be unpacked"):
        assert Store().get(EXPERIMENT) is None


def test_a_result_that_cannot_be_read_now_stays(monkeypatch):
    folder = save(1).folder
    with monkeypatch.context() as patch:
        fails = OSError(errno.EIO, os.strerror(errno.EIO))
        patch.setattr("pathlib.Path.read_text", lambda *_, **__: (_ for _ in ()).throw(fails))
        with pytest.raises(DlopsError, match="cannot be read now"):
            Store().get(EXPERIMENT)
    assert number_of(Store().get(EXPERIMENT)) == 1 and folder.exists()


def test_a_damaged_result_is_trained_again():
    first = run(STACK)
    flip("arrays.npz", 0.5)(first.folder)
    with aside("set aside"):
        again = run(STACK)
    assert same(again) == same(first)


# Published before results had digests -----------------------------------------------------------


def unprove(folder):
    """Make a record as it was before it proved itself; its precision was always written then."""
    path = folder / "result.json"
    record = json.loads(path.read_text())
    del record["digest"], record["files"]
    record["config"]["precision"] = "float32"
    path.write_text(json.dumps(record))


def test_a_result_of_before_digests_is_found():
    unprove(save(1).folder)
    result = Store().get(EXPERIMENT)
    assert number_of(result) == 1 and result.experiment == EXPERIMENT


@pytest.mark.parametrize(
    "damage", ["the settings", "the identity", "other arrays", "no arrays", "a bit of the arrays"]
)
def test_what_can_be_proven_of_it_is(damage):
    folder = save(1).folder
    unprove(folder)
    if damage == "other arrays":
        labels = np.arange(4)
        np.savez(folder / "arrays.npz", predictions=labels[::-1, None], labels=labels)
    else:
        DAMAGES[damage](folder)
    with aside("set aside"):
        assert Store().get(EXPERIMENT) is None


# Damage to a checkpoint -------------------------------------------------------------------------


def checkpoint(identity=EXPERIMENT.id, replaces=None):
    place = Store().workplace(EXPERIMENT)
    place.mkdir(parents=True, exist_ok=True)
    return Checkpoint(place / "checkpoint.pt", identity, replaces)


def test_no_flipped_bit_of_a_checkpoint_is_believed():
    checkpoint().save(STATE)
    path = checkpoint().path
    content = path.read_bytes()
    assert checkpoint().load()["epoch"] == 3
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = checkpoint().load()
        assert (found is None) == (len(told) == 1)
        if found is not None:  # a name of the first line that proves nothing
            assert found["epoch"] == 3 and torch.equal(found["weights"], STATE["weights"])


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off", b"{}\n", b"[]\n"]
)
def test_what_is_no_checkpoint_is_set_aside(content):
    checkpoint().path.write_bytes(content)
    with aside("set aside as .*damaged-1.pt, for it does not say"):
        assert checkpoint().load() is None
    assert (Store().root / f"{EXPERIMENT.id}.damaged-1.pt").read_bytes() == content


def test_a_folder_is_no_checkpoint():
    checkpoint().path.mkdir()
    with aside("it is a folder"):
        assert checkpoint().load() is None


def test_a_checkpoint_of_another_run_or_recipe_is_not_used(monkeypatch):
    checkpoint(OTHER.id).save(STATE)
    with aside(f"it is of experiment {OTHER.id}"):
        assert checkpoint().load() is None
    monkeypatch.setitem(RECIPE, "train", 0)
    checkpoint(EXPERIMENT.with_(seed=0).id).save(STATE)
    with aside("or of an older recipe.*beginning"):
        assert checkpoint().load() is None


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), MemoryError()], ids=repr
)
@pytest.mark.parametrize("where", ["pathlib.Path.read_bytes", "torch.load"])
def test_a_checkpoint_that_cannot_be_read_now_stays(monkeypatch, error, where):
    def fails(*_, **__):
        raise error

    checkpoint().save(STATE)
    with monkeypatch.context() as patch:
        patch.setattr(where, fails)
        with pytest.raises(DlopsError, match="cannot be read now.*it is kept"):
            checkpoint().load()
    assert checkpoint().load()["epoch"] == 3


def test_a_checkpoint_of_before_the_result_is_outdated():
    """It is the one of the result's own training, killed before it was removed."""
    checkpoint().save(STATE)
    assert checkpoint(replaces="a result").load() is None
    assert not checkpoint().path.exists()
    checkpoint(replaces="a result").save(STATE)
    assert checkpoint(replaces="a result").load()["epoch"] == 3
    assert checkpoint().load()["epoch"] == 3  # that result was set aside meanwhile


@pytest.mark.parametrize(
    "misfit",
    [lambda state: [state], lambda state: {}, lambda state: {**state, "network": {}},
     lambda state: {**state, "optimizer": {"state": {}, "param_groups": []}}],
    ids=["a list", "nothing", "another network", "another optimizer"],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_costs_time_only(monkeypatch, misfit):
    stopped(STACK, 2, monkeypatch)
    place = Checkpoint(Store().workplace(STACK) / "checkpoint.pt", STACK.id)
    place.save(misfit(place.load()))
    with aside("does not fit this run"):
        resumed = run(STACK)
    assert same(resumed) == same(run(STACK, store=Store(Store().root / "anew")))


# Interrupted at every step ----------------------------------------------------------------------

DIGITS = {"data": "digits", "per_class": 3, "test_per_class": 2, "epochs": 2, "lr": 0.01}
NET = {**DIGITS, "stem": "stride2", "image_size": 8, "batch_size": 8}  # two steps an epoch
FLAT = {**DIGITS, "model": "stacked", "sizes": [12], "per_class": 4, "batch_size": 10}
ENCODER = {**DIGITS, "model": "autoencoder", "loss": "reconstruction", "sizes": [12, 8]}
ENCODER |= {"batch_size": 8}
STACK = Experiment.from_flat(FLAT)
GROUPS = {"loss": "triplet", "classes_per_batch": 4, "images_per_class": 2, "batch_size": None}
RUNS = {
    "cross-entropy": {**NET, "optimizer": "sgd", "momentum": 0.9, "augment": "crop"},
    "averaged mixup": {**NET, "ema": 0.9, "mix": 0.3, "schedule": "cosine", "warmup": 0.3},
    "triplet, hard": {**NET, **GROUPS, "optimizer": "rmsprop", "momentum": 0.5},
    "triplet, annealed": {**NET, **GROUPS, "mining": "annealed", "embedding_dim": 8},
    "center": {**NET, "loss": "center", "center_weight": 0.1, "optimizer": "adadelta"},
    "fine-tuned": {**NET, "weights": "imagenet", "optimizer": "adagrad", "lr_decay": 0.1},
    "fine-tuned head": {**NET, "weights": "imagenet", "tune": "head", "amsgrad": True},
    "stacked with dropout": {**FLAT, "dropout": 0.5, "augment": "crop"},
    "auto-encoder": {**ENCODER, "noise": 0.2},
    "auto-encoder, at once": {**ENCODER, "pretraining": "end-to-end", "tied": True},
}
CLOCK = ("seconds", "images_per_second")


def flat(name):
    return Experiment.from_flat({k: v for k, v in RUNS[name].items() if v is not None})


def same(result):
    """Everything of a result that must be the same again, in comparable form."""
    kept = [name for name in result.history if name not in CLOCK]
    arrays = {name: (x.dtype, x.shape, x.tobytes()) for name, x in result.arrays.items()}
    return result.metrics, result.history[kept].to_dict("list"), arrays


class AtStep:
    """Counts the steps of a run, and ends it, as a scheduler does, in one of them."""

    def __init__(self, monkeypatch, number=None):
        self.number, self.count = number, 0
        backward = torch.Tensor.backward

        def counted(tensor, *args, **kwargs):
            self.count += 1
            if self.count == self.number:
                signal.raise_signal(signal.SIGTERM)
            return backward(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, "backward", counted)


def stopped(experiment, number, monkeypatch, **options):
    """Run it, interrupted in this step; the steps it did."""
    with monkeypatch.context() as patch:
        steps = AtStep(patch, number)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, **options)
    return steps.count


class Small(torch.nn.Module):
    """In place of ResNet18, whose checkpoints take most of the time: the same kinds of layers."""

    def __init__(self, num_classes, stem, in_channels):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(in_channels, 512, 3, stride=2, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(512)
        self.fc = torch.nn.Linear(512, num_classes)

    def features(self, x):
        return self.bn1(self.conv1(x)).relu().mean((2, 3))

    def classify(self, features):
        return self.fc(features)


@pytest.fixture
def quick(monkeypatch):
    """A small network, no map of points, and weights to start from that need no file."""
    for place in ("dlops.metrics.tsne", "dlops.layerwise.tsne"):
        monkeypatch.setattr(place, lambda x, seed: x[:, :2])
    monkeypatch.setattr("dlops.build.ResNet18", Small)
    torch.manual_seed(1)
    weights = Network(flat("fine-tuned"), (3, 8, 8)).body.state_dict()
    monkeypatch.setattr("dlops.runs.source_weights", lambda source: (weights, "a digest"))


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_at_any_step_the_result_is_the_same(name, monkeypatch, quick):
    experiment = flat(name)
    with monkeypatch.context() as patch:
        steps = AtStep(patch)
        whole = same(run(experiment))
    assert steps.count >= 4
    for number in range(1, steps.count + 1):
        Store().forget(experiment)
        first = stopped(experiment, number, monkeypatch)
        with monkeypatch.context() as patch:
            rest = AtStep(patch)
            assert same(run(experiment)) == whole, f"interrupted in step {number}"
        assert first + rest.count == steps.count  # none is done twice
        assert first == number or name.startswith("auto-encoder")  # which ends its epoch


def test_interrupted_while_an_epoch_is_evaluated(monkeypatch):
    evaluate = training.evaluate

    def ended(current):
        signal.raise_signal(signal.SIGINT)
        return evaluate(current)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", ended)
        with pytest.raises(KeyboardInterrupt):
            run(STACK)
    assert same(run(STACK)) == same(run(STACK, force=True))


def test_interrupted_after_the_last_step_the_result_is_saved_and_no_other_run_starts(monkeypatch):
    def ended(*_):
        signal.raise_signal(signal.SIGINT)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr("dlops.layerwise.views", ended)
        with pytest.raises(KeyboardInterrupt):
            run(STACK)
    assert Store().status(STACK) == "complete"


def test_a_forced_run_goes_on_from_its_checkpoint_and_the_old_result_stays(monkeypatch):
    old = same(run(STACK))
    assert stopped(STACK, 4, monkeypatch, force=True) == 4
    assert same(run(STACK)) == old
    with monkeypatch.context() as patch:
        steps = AtStep(patch)
        assert same(run(STACK, force=True)) == old
        assert steps.count == 2  # of six
        run(STACK, force=True)
        assert steps.count == 8  # there is nothing left to go on from


def test_a_forced_run_does_not_take_the_checkpoint_of_the_run_before(monkeypatch):
    """A process killed after its result was there and before its checkpoint went."""
    monkeypatch.setenv("DLOPS_CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as patch:
        patch.setattr("dlops.store.results.remove", lambda folder: None)
        run(STACK)
    assert (Store().workplace(STACK) / "checkpoint.pt").exists()
    with monkeypatch.context() as patch:
        steps = AtStep(patch)
        run(STACK, force=True)
    assert steps.count == 6


# Training that cannot go on ---------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_told_with_its_step_and_rate(monkeypatch):
    calls = []
    smoothed = training.Objective.__call__

    def fails(self, *args):
        calls.append(None)
        loss = smoothed(self, *args)
        return loss * float("inf") if len(calls) == 2 else loss

    monkeypatch.setattr(training.Objective, "__call__", fails)
    said = (
        r"not finite in epoch 1, step 2 \(learning rate 0.01\): training diverged. Try a learning"
    )
    with pytest.raises(DlopsError, match=said):
        run(STACK)
    assert Store().status(STACK) == "failed"
    assert not (Store().workplace(STACK) / "checkpoint.pt").exists()


def test_the_device_is_not_asked_at_every_step(monkeypatch):
    asked = []
    monkeypatch.setattr(training.Training, "check", lambda self: asked.append(self.step))
    run(STACK)
    assert len(asked) <= 4 < 6  # after each of two epochs, and every 0.2 s


def test_weights_that_are_not_finite_after_the_last_step_are_seen(monkeypatch):
    step = torch.optim.Adam.step
    steps = []

    def spoils(self, *args):
        step(self, *args)
        steps.append(None)
        if len(steps) == 6:
            self.param_groups[1]["params"][1].data[0] = -float("inf")  # a unit that ReLU hides

    monkeypatch.setattr(torch.optim.Adam, "step", spoils)
    with pytest.raises(DlopsError, match="Not all weights and measures were finite after epoch 2"):
        run(STACK)


@pytest.mark.parametrize(
    ("losses", "last", "gone"),
    [
        ([2.0, 2.0, 2001.0], True, True),
        ([2.0, 2.0, 1999.0], True, False),
        ([2.0, 2001.0], True, False),  # too short to tell
        ([2001.0, 2001.0, 2001.0], False, True),
        ([2001.0, 2001.0], False, False),
        ([2001.0, 1999.0, 2001.0], False, False),
        ([2001.0, 2001.0, 2001.0, 3.0], True, False),
    ],
)
def test_a_loss_has_left_when_it_has_no_epoch_left_to_come_back(losses, last, gone):
    assert wild(losses, 2.0, last) == gone


def test_a_first_loss_of_nothing_is_no_measure():
    assert not wild([99.0] * 3, 0.0, True) and wild([101.0] * 3, 0.0, True)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"loss": "center", "center_weight": 200.0, "optimizer": "sgd", "momentum": 0.9},
         "a center_weight below 200, a learning rate below 0.01, a momentum below 0.9 or a warmup"),
        ({"loss": "center", "center_weight": 0.01, "optimizer": "sgd", "warmup": 0.1},
         "a learning rate below 0.01 or a center_weight below 0.01"),
        ({"optimizer": "rmsprop", "centered": True},
         "a learning rate below 0.01, centered=False or a warmup"),
        ({"optimizer": "adam"}, "a learning rate below 0.01, an eps above 1e-08 or a warmup"),
        ({"optimizer": "sgd", "weight_decay": 50.0},
         "a weight_decay below 50, a learning rate below 0.01 or a warmup"),
        ({**GROUPS, "normalize": False, "optimizer": "sgd", "warmup": 0.1},
         "a learning rate below 0.01 or normalize=True"),
    ],
)  # fmt: skip
def test_the_settings_to_blame_fit_the_loss_and_the_optimizer(changes, advice):
    settings = {k: v for k, v in {**NET, **changes}.items() if v is not None}
    assert suspects(Experiment.from_flat(settings)) == advice


@pytest.mark.parametrize(("lr", "explodes"), [(1.0, True), (0.1, False)])
def test_a_center_loss_that_explodes_is_a_diverged_run(lr, explodes, quick):
    """With a rate of 0.1 the loss is 25 times its first value after an epoch, and returns."""
    settings = {**NET, "loss": "center", "center_weight": 200.0, "optimizer": "sgd", "lr": lr}
    settings["epochs"] = 4
    experiment = Experiment.from_flat(settings)
    if explodes:
        with pytest.raises(DlopsError, match="left for good.*diverged. Try a center_weight below"):
            run(experiment)
    else:
        assert run(experiment).history.train_loss.is_monotonic_decreasing


def test_embeddings_that_float16_cannot_hold_are_float32():
    small, large = np.array([65504.0, -1.0]), np.array([1.0, -65505.0])
    assert compact(small).dtype == np.float16 and compact(large).dtype == np.float32
    assert compact(large).tolist() == large.tolist()


def test_what_is_not_finite_at_the_end_is_not_stored(monkeypatch):
    finish = training.finish

    def spoilt(*args):
        outcome = finish(*args)
        outcome.arrays["embeddings"][0] = np.inf
        return outcome

    monkeypatch.setattr("dlops.runs.finish", spoilt)
    with pytest.raises(DlopsError, match="At the end of training embeddings was not finite"):
        run(STACK)
    assert Store().get(STACK) is None


# What get returns is what was saved, or nothing -------------------------------------------------


class Histories(RuleBasedStateMachine):
    """Save, be killed while saving, damage, publish, forget, claim, ask; in any order."""

    @initialize()
    def start(self):
        self.patch = pytest.MonkeyPatch()
        folder = Path(tempfile.mkdtemp())
        self.patch.setenv("DLOPS_REPORTS", str(folder / "reports"))
        self.store = Store(folder / "store")
        self.number = 0
        self.possible: set[int | None] = {None}  # what get may return; one of them, and no other

    def teardown(self):
        shutil.rmtree(self.store.root.parent)
        self.patch.undo()

    @rule(keep=st.sampled_from(["arrays", "weights"]))
    def save(self, keep):
        self.number += 1
        save(self.number, keep=keep, store=self.store)
        self.possible = {self.number}

    @rule(at=st.integers(1, 30))
    def killed(self, at):
        self.number += 1
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, at)
            try:
                save(self.number, store=self.store)
            except Killed:
                self.possible = self.possible | {self.number}
            else:
                self.possible = {self.number}

    @rule(damage=st.sampled_from(sorted(set(DAMAGES) - {"other arrays", "another result.json"})))
    def damage(self, damage):
        folder = self.store.folder(EXPERIMENT)
        if (folder / "result.json").exists() and (folder / "arrays.npz").exists():
            with suppress(ValueError, KeyError):  # of a record that is damaged already
                DAMAGES[damage](folder)
            self.possible = self.possible | {None}
            if self.store._old(EXPERIMENT).exists():  # what a killed save was replacing
                self.possible |= set(range(1, self.number))

    @rule()
    def claim(self):
        with self.store.claim(EXPERIMENT):
            pass

    @rule()
    def forget(self):
        self.store.forget(EXPERIMENT)
        self.possible = {None}

    @invariant()
    def what_is_found_was_saved(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self.store.get(EXPERIMENT)
        found = number_of(result) if result else None
        assert found in self.possible
        self.possible = {found}


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=30, stateful_step_count=12, deadline=None, derandomize=True, database=None
)
