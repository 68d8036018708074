"""Question 2: auto-encoders that stop and go on, the stack that starts from them, its ablation."""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlops import data as data_module
from dlops import layerwise, run
from dlops.autoencoder import StackedClassifier
from dlops.data import Split, load
from dlops.experiment import Experiment
from dlops.series import select
from dlops.series.questions import LABELS, STARTS, ablation, pretrained, sources, stack
from dlops.settings import DlopsError
from dlops.store.checkpoint import Checkpoint

CPU = torch.device("cpu")
SMALL = {"sizes": (48, 40, 24, 16), "per_class": 20, "test_per_class": 10}


def quiet(event):
    pass


def source(**changes):
    """A small auto-encoder on digits."""
    experiment = Experiment.from_preset("q2", "test", **{**SMALL, **changes})
    return experiment.parent


def train(experiment, folder, progress=quiet, interrupt=None):
    images = load(experiment.data, experiment.seed)
    interrupt = interrupt or threading.Event()
    checkpoint = Checkpoint(folder / "work" / "checkpoint.pt", experiment.id)
    checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
    return layerwise.train(experiment, images, CPU, checkpoint, interrupt, progress)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(source(), tmp_path_factory.mktemp("whole"))


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def test_every_layer_has_its_rows_and_its_loss_falls(whole):
    rows = [(row["layer"], row["epoch"]) for row in whole.history]
    assert rows == [(layer, epoch) for layer in (1, 2, 3, 4) for epoch in (0, 1, 2)]
    for layer in (1, 2, 3, 4):
        own = [row for row in whole.history if row["layer"] == layer]
        assert own[-1]["train_loss"] < own[0]["train_loss"]
        assert own[-1]["val_loss"] < own[0]["val_loss"]
    assert whole.seconds == pytest.approx(sum(row["seconds"] for row in whole.history))


def test_what_is_kept_of_an_auto_encoder(whole):
    arrays, metrics = whole.arrays, whole.metrics
    assert arrays["pictures"].shape == (10, 1, 16, 16)
    assert arrays["reconstructions"].shape == (4, 10, 1, 16, 16)
    assert arrays["filters"].shape == (48, 1, 16, 16)
    assert metrics["val_error"][0] == pytest.approx(whole.history[2]["val_loss"], rel=1e-4)
    assert len(metrics["dead_units"]) == 4 and 0 <= min(metrics["dead_units"])
    assert sum(array.nbytes for array in arrays.values()) < 1_500_000


class Stop:
    """Progress that remembers its epochs, and stops the run after one of them."""

    def __init__(self, after=None, crash=False):
        self.after, self.crash, self.seen = after, crash, []
        self.interrupt = threading.Event()

    def __call__(self, event):
        self.seen.append((event["row"]["layer"], event["row"]["epoch"]))
        if self.seen[-1] == self.after:
            self.interrupt.set()
            if self.crash:
                raise RuntimeError("power cut")


@pytest.mark.parametrize("pretraining", ["layerwise", "end-to-end"])
@pytest.mark.parametrize("crash", [False, True], ids=["Ctrl-C", "crash"])
def test_a_run_that_stops_after_any_epoch_goes_on_there(pretraining, crash, tmp_path, monkeypatch):
    """A crash goes on from the epoch before: its own was not saved yet."""
    monkeypatch.setenv("DLOPS_CHECKPOINT_SECONDS", "0")
    experiment = source(pretraining=pretraining, sizes=(24, 16), per_class=10, noise=0.2)
    whole = train(experiment, tmp_path / "whole")
    rows = [(row["layer"], row["epoch"]) for row in whole.history if row["epoch"]]
    for number, after in enumerate(rows):
        folder = tmp_path / str(number)
        stop, again = Stop(after, crash), Stop()
        with pytest.raises(RuntimeError if crash else KeyboardInterrupt):
            train(experiment, folder, stop, stop.interrupt)
        resumed = train(experiment, folder, again)
        assert again.seen == rows[number + (not crash) :]
        assert without_seconds(resumed.history) == without_seconds(whole.history)
        assert resumed.metrics == whole.metrics
        for kept in ("weights", "arrays"):
            ours, theirs = getattr(resumed, kept), getattr(whole, kept)
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_progress_counts_the_epochs_of_all_layers(tmp_path):
    events = []
    train(source(), tmp_path, events.append)
    assert [event["epoch"] for event in events] == list(range(1, 9))
    assert {event["epochs"] for event in events} == {8}


def test_end_to_end_is_one_part_through_all_layers(tmp_path):
    outcome = train(source(pretraining="end-to-end"), tmp_path)
    assert [row["layer"] for row in outcome.history] == [0, 0, 0]
    assert outcome.arrays["reconstructions"].shape == (1, 10, 1, 16, 16)
    assert outcome.metrics["depths"] == [4]
    assert outcome.history[-1]["val_loss"] < outcome.history[0]["val_loss"]


def test_the_classifier_starts_from_the_encoders_weights():
    still = Experiment.from_preset("q2", "test", **SMALL, lr=1e-12, epochs=1)
    still = still.with_(keep="weights")
    started = run(still)
    encoder = run(still.parent.with_(keep="weights"))
    names = [f"body.encoder.{k}.{part}" for k in range(4) for part in ("weight", "bias")]
    assert set(names) <= set(encoder.weights)
    for name in names:
        np.testing.assert_allclose(started.weights[name], encoder.weights[name], atol=1e-9)
    anew = run(still.with_(weights="none", parent=None))
    assert not np.allclose(anew.weights[names[0]], encoder.weights[names[0]], atol=1e-4)
    np.testing.assert_allclose(  # the starts differ in the body alone
        anew.weights["body.head.weight"], started.weights["body.head.weight"], atol=1e-9
    )


def test_an_auto_encoder_refuses_what_it_would_ignore(tmp_path):
    for changes in ({"optimizer": "sgd"}, {"beta1": 0.5}, {"schedule": "cosine"}, {"ema": 0.9}):
        with pytest.raises(DlopsError, match="trained by plain Adam"):
            train(source().with_(**changes), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(DlopsError, match="not finite"):
        train(source().with_(lr=1e30), tmp_path)


# The layers' t-SNE


def test_views_show_the_first_test_images_of_each_class_after_the_relu(monkeypatch):
    monkeypatch.setattr(layerwise, "FIRST", 5)
    monkeypatch.setattr(layerwise, "OTHERS", 2)
    monkeypatch.setattr("dlops.layerwise.tsne", lambda codes, seed: codes[:, :2])
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 0, 1, 0, 0, 2, 1, 0, 0, 0, 2, 1])  # six of 0, three of 1 and of 2
    images = torch.randint(0, 256, (12, 1, 4, 4), generator=generator, dtype=torch.uint8)
    test = SimpleNamespace(test=Split(images, labels))
    body = StackedClassifier((9, 8, 7, 6, 5), 3, input_size=16, dropout=0.5)
    arrays = layerwise.views(body, test, CPU)
    first = [i for i in range(12) if i != 9]  # the sixth 0 is left out
    two = [0, 1, 2, 3, 5, 6]
    for k, rows in enumerate([two, two, two, first, two]):
        codes = body.eval().codes(images[rows], k + 1)
        assert codes.min() == 0
        np.testing.assert_allclose(arrays[f"layer_tsne_{k}"], codes[:, :2].detach(), rtol=1e-5)
        assert arrays[f"layer_labels_{k}"].tolist() == labels[rows].tolist()
    assert arrays["layer_spread"].shape == (5, 2)
    codes = body.codes(images[first], 4).detach().numpy()
    own = labels[first].numpy()
    means = np.stack([codes[own == c].mean(0) for c in range(3)])
    within = np.mean([math.dist(code, means[c]) for code, c in zip(codes, own, strict=True)])
    between = np.mean([math.dist(means[a], means[b]) for a, b in ((0, 1), (0, 2), (1, 2))])
    np.testing.assert_allclose(arrays["layer_spread"][3], [within, between], rtol=1e-4)


def test_a_result_has_a_map_of_every_layer():
    result = run(Experiment.from_preset("q2", "test", **SMALL, epochs=1))
    for k in range(4):
        assert result.arrays[f"layer_tsne_{k}"].shape == (100, 2)
    mistaken = run(Experiment.from_preset("q2", "test", **SMALL, epochs=1, relu_logits=True))
    assert "predictions" in mistaken.arrays and "layer_tsne_3" not in mistaken.arrays


# STL-10's unlabelled images


@pytest.fixture
def stl(tmp_path, monkeypatch):
    monkeypatch.setitem(data_module.COUNTS, "stl10", (40, 20, 30))
    monkeypatch.setenv("DLOPS_DATA", str(tmp_path))
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 20), ("unlabeled", 30)):
        pixels = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (folder / f"{name}_X.bin").write_bytes(pixels.tobytes())
        if name != "unlabeled":
            labels = (np.arange(count) % 10 + 1).astype(np.uint8)
            (folder / f"{name}_y.bin").write_bytes(labels.tobytes())
    (folder / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    return folder


def test_unlabelled_images_are_added_to_pretraining(stl, tmp_path):
    settings = {"sizes": (8, 6), "epochs": 1, "data": "stl10", "image_size": 12}
    both = Experiment.from_preset("q2", "full", **settings, unlabelled=25)
    assert both.parent.data.unlabelled == 25 and both.data.unlabelled == 0
    images = load(both.parent.data, 0)
    gathered = layerwise.gather(images, 25, CPU)
    assert gathered.shape == (len(images.train) + 25, 1, 12, 12)
    assert torch.equal(gathered[: len(images.train)], images.train.images)
    assert torch.equal(gathered[-1], images.unlabelled.take(torch.tensor([24]))[0])
    outcome = train(both.parent.with_(epochs=1), tmp_path)
    assert outcome.metrics["pretraining_images"] == len(images.train) + 25
    with pytest.raises(DlopsError, match="unlabelled is 31, but stl10 has 30"):
        layerwise.gather(images, 31, CPU)


def test_only_stl10_has_unlabelled_images():
    with pytest.raises(DlopsError, match="unlabelled applies to data stl10"):
        source(unlabelled=5)


# The series


@pytest.mark.parametrize("preset", ["lite", "original", "full"])
def test_the_roll_number_picks_the_assigned_structure(preset):
    for roll, sizes in (
        ("7", (1024, 1200, 728, 512, 128)),
        ("8", (1024, 1000, 500, 256, 128, 64)),
    ):
        (report,) = select(["q2"], roll)
        assert {e.model.sizes for e in report.wanted(preset)} == {sizes}


def test_quick_keeps_the_number_of_layers():
    for name, layers in (("odd", 5), ("even", 6)):
        for preset in ("test", "quick"):
            assert len(stack(preset, sizes=name).model.sizes) == layers
    with pytest.raises(DlopsError, match="must be odd, even"):
        stack("quick", sizes="both")


def test_the_ablation_compares_like_with_like():
    plan = ablation("quick", sizes="even", seed=4)
    assert next(iter(plan)) == ("layerwise", 1.0, 4)
    assert next(iter(plan.values())).keep == "arrays"
    for seed in (4, 5, 6):
        for share in LABELS:
            same = [plan[start, share, seed] for start in ("none", "layerwise", "end-to-end")]
            assert len({e.id for e in same}) == 3
            own = [{k: v for k, v in e.settings.items() if k != "weights"} for e in same]
            assert own[0] == own[1] == own[2]
        whole, least = plan["layerwise", 1.0, seed], plan["layerwise", min(LABELS), seed]
        assert whole.parent == least.parent and whole.parent.seed == seed
        assert whole.parent.data.label_fraction == 1
        assert plan["original", 1.0, seed].parent == plan["end-to-end", 1.0, seed].parent


def test_the_auto_encoders_of_every_seed_are_asked_for():
    plan = ablation("quick", sizes="even", seed=4)
    found = sources(plan)
    assert list(found) == [(start, seed) for seed in (4, 5, 6) for start in STARTS[1:]]
    for (start, seed), source in found.items():
        assert (source.model.pretraining, source.seed) == (start, seed)
        assert source == plan[start, 1.0, seed].parent
        assert source.keep == ("arrays" if seed == 4 else "metrics")
    asked = pretrained("quick", sizes="even", seed=4)
    assert asked == [*plan.values(), *found.values()] and asked[0].keep == "arrays"


def test_settings_of_the_pretraining_reach_the_auto_encoder_alone():
    found = Experiment.from_preset(
        "q2", "quick", tied=True, noise=0.2, lr=0.5, epochs=3, activation="tanh", per_class=40
    )
    parent = found.parent
    assert parent.model.tied and parent.model.noise == 0.2
    assert parent.optimizer.lr != 0.5 and parent.schedule.epochs != 3
    assert parent.model.activation == found.model.activation == "tanh"
    assert parent.data.per_class == found.data.per_class == 40


def test_the_ablation_refuses_what_it_varies():
    with pytest.raises(DlopsError, match="label_fraction itself"):
        ablation("quick", label_fraction=0.5)
