"""The command: bad input is one sentence and leaves nothing behind; what it says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlops import cli, data
from dlops.experiment import Experiment
from dlops.series import select
from dlops.settings import DlopsError
from dlops.store import Store

TEST = ["q1.1", "--preset", "test"]


@pytest.fixture
def dlops(monkeypatch, capsys):
    """The command as its entry point runs it: (exit code, what it said, what it complained)."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["dlops", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return command


def left_behind():
    """Files and folders in the stores, but for the locks that name no result."""
    roots = [Path(os.environ[f"DLOPS_{name}"]) for name in ("STORE", "REPORTS")]
    found = [path for root in roots for path in root.rglob("*")]
    cache = Path(os.environ["DLOPS_DATA"]) / "cache"
    found += list(cache.rglob("*")) if cache.exists() else []
    return [path for path in found if path.suffix != ".lock"]


def refused(outcome, *says):
    code, _, complaint = outcome
    assert code == 2
    lines = complaint.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("dlops: "), complaint
    for words in says:
        assert words in lines[0]
    assert left_behind() == []


@pytest.mark.parametrize("command", ["train", "report", "run"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "epoch=3"], "no parameter epoch; did you mean epochs?"),
        (["--set", "lr=fast"], "lr is 'fast', but must be a number"),
        (["--set", "epochs=-1"], "epochs is -1, but must be at least 1"),
        (["--set", "epochs=1.5"], "must be a whole number"),
        (["--set", "momentum=0.9"], "does not apply to optimizer adam"),
        (["--set", "lr"], "not NAME=VALUE"),
        (["--preset", "tset"], "no preset 'tset'"),
        (["--roll-number", "none"], "must end with a digit"),
        (["q9.9"], "no question 'q9.9'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_words_are_one_sentence(command, words, says, dlops):
    refused(dlops(command, "q1.1", *words), says)


def test_a_data_set_that_is_not_there_says_how_to_get_it(dlops):
    refused(dlops("train", "q1.1", "--preset", "lite"), "dlops data fetch tiny-imagenet")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(device, dlops, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused(dlops("train", *TEST, "--device", device), f"Device {device} was asked for")


@pytest.fixture
def tiny(monkeypatch):
    """Tiny ImageNet's layout with two classes of three training images and a validation image."""
    monkeypatch.setitem(data.COUNTS, "tiny-imagenet", (6, 2, 0))
    folder = Path(os.environ["DLOPS_DATA"]) / "tiny-imagenet-200"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    paths = [
        folder / "train" / n / "images" / f"{n}_{i}.JPEG" for n in ("n1", "n2") for i in (0, 1, 2)
    ]
    paths += [folder / "val" / "images" / f"val_{i}.JPEG" for i in (0, 1)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, "JPEG")
    lines = "val_0.JPEG\tn1\t0\t0\t1\t1\nval_1.JPEG\tn2\t0\t0\t1\t1\n"
    (folder / "val" / "val_annotations.txt").write_text(lines)
    (folder / "wnids.txt").write_text("n1\nn2\n")
    (folder / "words.txt").write_text("n1\tcat\nn2\tdog\n")
    return folder


LITE = ["train", "q1.1", "--preset", "lite", "--set", "classes=2"]


def test_a_truncated_image_is_named(tiny, dlops):
    path = tiny / "train" / "n2" / "images" / "n2_1.JPEG"
    path.write_bytes(path.read_bytes()[:400])
    refused(dlops(*LITE), str(path))


def test_a_class_without_images_is_named(tiny, dlops):
    for path in (tiny / "train" / "n2" / "images").iterdir():
        path.unlink()
    refused(dlops(*LITE), str(tiny / "train" / "n2" / "images"), "holds no images")


def test_the_installed_command_says_the_same():
    """In a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "dlops.cli", "train", "q1.1", "--set", "epochs=-1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("dlops: epochs is -1")
    assert done.stderr.count("\n") == 1
    assert left_behind() == []


def test_an_unknown_option_shows_the_usage(dlops):
    code, _, complaint = dlops("train", "--presett", "test")
    assert code == 2 and "--presett" in complaint and "Usage" in complaint


def test_help_teaches(dlops):
    code, said, _ = dlops("--help")
    assert code == 0
    for words in ("dlops run q1.1", "train", "report", "list", "doctor", "data"):
        assert words in said
    code, said, _ = dlops("run", "--help")
    for words in ("--preset", "--roll-number", "--set", "--force", "--device", "--author"):
        assert words in said


# What is there ----------------------------------------------------------------------------------


def filled(preset="test"):
    """Results of q1.1 that nothing was trained for."""
    for report in select(["q1.1"]):
        for experiment in report.wanted(preset):
            empty = {"metrics": {}, "provenance": {}, "arrays": {}, "weights": {}}
            Store().save(experiment, history=[{"epoch": 1}], **empty)


def row(said, experiment):
    return next(line.strip() for line in said.splitlines() if experiment.id in line)


def test_list_tells_the_state_of_every_run(dlops):
    adam = Experiment.from_preset("q1.1", "test", optimizer="adam")
    sgd = Experiment.from_preset("q1.1", "test", optimizer="sgd")
    code, said, _ = dlops("list", *TEST)
    assert code == 0
    assert row(said, adam).endswith("missing") and row(said, sgd).endswith("missing")
    filled()
    Store().forget(sgd)
    Store().fail(sgd, "it diverged")
    _, said, _ = dlops("list", *TEST)
    assert row(said, adam).endswith("complete") and row(said, sgd).endswith("failed")
    assert "it diverged" in said


def test_a_roll_number_picks_the_variant(dlops):
    _, odd, _ = dlops("list", *TEST, "--roll-number", "225")
    _, even, _ = dlops("list", *TEST, "--roll-number", "MT20224")
    assert "-adam" in odd and "-sgd" not in odd
    assert "-sgd" in even and "-adam" not in even


@pytest.mark.parametrize("words", [["--help"], ["list"], ["data", "list"], ["train", *TEST]])
def test_what_trains_nothing_does_not_import_torch(words):
    filled()
    code = """if True:
        import sys
        from dlops.cli import main
        try:
            main()
        except SystemExit as ended:
            assert not ended.code
        heavy = {"torch", "sklearn", "matplotlib", "nbconvert"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_what_is_in_the_store_is_not_trained_again(dlops, monkeypatch):
    filled()
    monkeypatch.setattr("dlops.runs.run_all", lambda *_, **__: pytest.fail("it trained"))
    code, said, _ = dlops("train", *TEST)
    assert code == 0 and "2 of 2 results are in the store" in said


def test_a_report_without_results_names_the_command(dlops):
    changes = ["--set", "lr=0.01"]
    refused(
        dlops("report", *TEST, *changes), "dlops train q1.1 --preset test --set lr=0.01", "q1.1"
    )


def test_training_says_a_line_an_epoch_and_how_it_ended(dlops):
    small = ("per_class=4", "model=stacked", "sizes=8,", "batch_size=8")
    words = [word for pair in small for word in ("--set", pair)]
    code, said, _ = dlops("train", *TEST, "--roll-number", "2", *words)
    assert code == 0
    lines = said.strip().splitlines()
    assert "1/1 cross-entropy, sgd, digits, seed 0" in lines[0]
    epochs = [line for line in lines if line.strip().startswith("epoch")]
    assert len(epochs) == 2 and "2/2" in epochs[1]
    assert "val_top5" in epochs[0] and "images/s" in epochs[0] and "left" in epochs[0]
    assert lines[-1].strip().startswith("done test top-5")
    code, said, _ = dlops("train", *TEST, "--roll-number", "2", *words)
    assert "1 of 1 results are in the store" in said


def test_ctrl_c_says_that_it_goes_on(dlops, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dlops.runs.run_all", interrupted)
    code, said, _ = dlops("train", *TEST)
    assert code == 130 and "the same command goes on" in said


def test_settings_are_read_as_numbers_lists_and_words():
    pairs = ["lr=1e-3", "epochs=3", "sizes=64,32", "tied=true", "stem=cifar", "classes=none"]
    assert cli.settings(pairs) == {
        "lr": 0.001,
        "epochs": 3,
        "sizes": (64, 32),
        "tied": True,
        "stem": "cifar",
        "classes": None,
    }
    for bad in ("lr", "=3", ""):
        with pytest.raises(DlopsError, match="NAME=VALUE"):
            cli.settings([bad])


def test_a_changed_report_replaces_no_other():
    assert cli.suffix({}) == ""
    assert cli.suffix({"seed": 1, "lr": 0.1}) == cli.suffix({"lr": 0.1, "seed": 1}) != ""
    assert "/" not in cli.suffix({"weights": "a/../b"})


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (75, "1 min 15 s"), (3600, "1 h 0 min"), (59.7, "1 min 0 s")],
)
def test_durations_in_words(seconds, words):
    assert cli.duration(seconds) == words


def test_a_table_names_what_a_run_changes_when_optimizers_take_turns():
    board = cli.Board(cli.console, set())
    board.words(Experiment.from_preset("q1.1", preset="test"))  # Adam on digits too
    adam = Experiment.from_preset("lab3.adam", preset="test")
    adagrad = Experiment.from_preset("lab3.adagrad", preset="test")
    for first in (adam, adagrad):
        assert board.words(first) == first.title
    assert board.words(adam.with_(lr=0.5)).endswith(", lr 0.5")
    assert board.words(adagrad.with_(eps=0.5)).endswith(", eps 0.5")
