"""Questions 1.2 and 1.3: what the series asks for, runs that collapse and runs that do not."""

import numpy as np
import pandas as pd
import pytest
import torch

from dlops import Experiment, run
from dlops.data import class_batches
from dlops.losses import relations
from dlops.series import SERIES, select
from dlops.series.presets import NUMBERS, PRESETS
from dlops.series.questions import by_loss, plain, planar
from dlops.settings import DlopsError
from dlops.store import Store
from dlops.train import Diverged

SMALL = {"per_class": 6, "test_per_class": 4, "epochs": 2}


def small(question, **changes):
    return Experiment.from_preset(question, "test", **{**SMALL, **changes})


@pytest.mark.parametrize("question", ["q1.2", "q1.3", "q1"])
def test_parity_picks_the_optimizer(question):
    for roll, optimizer in (("7", "adam"), ("8", "sgd"), (None, "adam")):
        (report,) = select([question], roll)
        assert report.wanted("quick")[0].optimizer.name == optimizer


def test_report_names_are_unique():
    names = [report.name for report in SERIES if report.question.startswith("q1")]
    assert len(set(names)) == len(names) == 8


@pytest.mark.parametrize("preset", PRESETS)
def test_every_loss_shares_split_seed_and_epochs(preset):
    shared = ("data", "classes", "per_class", "epochs", "seed", "stem", "augment", "precision")
    groups = by_loss(preset)
    for seeds in zip(*groups.values(), strict=True):
        settings = [tuple(e.settings[name] for name in shared) for e in seeds]
        assert len(set(settings)) == 1
    assert len({e.id for group in groups.values() for e in group}) == sum(map(len, groups.values()))


@pytest.mark.parametrize("preset", PRESETS)
def test_lambda_zero_is_the_cross_entropy_run(preset):
    own, plain = (Experiment.from_preset(name, preset) for name in ("q1.3", "q1.1"))
    assert own.loss.center_weight > 0
    assert own.with_(center_weight=0).id == plain.id


def test_seeds_follow_the_experiments_own_and_the_first_keeps_its_arrays(monkeypatch):
    monkeypatch.setitem(NUMBERS["seeds"]["q1"], "quick", {"adam": 3})
    adam = plain("quick", seed=5)
    assert [(e.seed, e.keep) for e in adam] == [(5, "arrays"), (6, "metrics"), (7, "metrics")]
    assert [e.seed for e in plain("quick", optimizer="sgd")] == [0]


def test_the_pair_in_the_plane_serves_both_optimizers():
    pair = planar("quick", optimizer="sgd", lr=0.5, center_weight=0.1)
    assert [e.model.embedding_dim for e in pair.values()] == [2, 2]
    assert [e.loss.name for e in pair.values()] == ["cross-entropy", "center"]
    assert list(pair) == ["λ = 0", "λ = 0.1"]
    adam = planar("quick", optimizer="adam", center_weight=0.1)
    assert [e.id for e in pair.values()] == [e.id for e in adam.values()]


def test_a_collapse_is_caught_and_reported():
    """So strong a weight decay leaves nothing of the weights within an epoch."""
    batches = {"classes_per_batch": 3, "images_per_class": 2}
    absurd = small(
        "q1.2", epochs=9, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=10.0, **batches
    )
    with pytest.raises(Diverged, match="embedding collapsed.*Try a learning rate below 0.1"):
        run(absurd)
    assert Store().status(absurd) == "failed"
    assert "mining='semihard'" in Store().failure(absurd)


def test_an_early_plateau_is_not_a_collapse():
    result = run(small("q1.2", lr=1e-6))
    margin = result.experiment.loss.margin
    assert result.history.batch_loss.between(0.8 * margin, 2.5 * margin).all()
    assert result.history.active.min() > 0.8


def test_a_class_with_fewer_images_than_k_repeats_them():
    result = run(small("q1.2", per_class=4, epochs=1, images_per_class=8))
    assert result.provenance["train_images"] < 10 * 8
    assert np.isfinite(result.history.train_loss[0])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2])
    for batch in class_batches(labels, 3, 4, np.random.default_rng(0)):
        assert np.bincount(labels[batch]).tolist() == [4, 4, 4]


def test_more_classes_in_a_batch_than_there_are_is_refused():
    with pytest.raises(DlopsError, match="only 10 classes"):
        small("q1.2", classes_per_batch=11)


def test_center_loss_pulls_samples_to_their_centers():
    light = run(small("q1.3", center_weight=1e-6))
    heavy = run(small("q1.3", center_weight=0.3))
    nearer, farther = (r.history.center_distance.iloc[-1] for r in (heavy, light))
    assert nearer < 0.97 * farther


@pytest.fixture(scope="module")
def triplet(session_stores):
    return run(small("q1.2", epochs=1))


def test_mined_triplets_are_the_hardest(triplet):
    from dlops.report.q1 import hardest, sampled

    points, labels, positions = sampled(triplet)
    mined = hardest(triplet).set_index("anchor")
    positive, negative = relations(labels)
    assert len(mined) == len(positions)
    for i, at in enumerate(positions):
        distance = (points - points[i]).norm(dim=1)
        own = mined.loc[at]
        assert own.d_ap == pytest.approx(distance[positive[i]].max().item(), abs=1e-5)
        assert own.d_an == pytest.approx(distance[negative[i]].min().item(), abs=1e-5)
        chosen = positions.tolist().index(own.positive), positions.tolist().index(own.negative)
        assert distance[list(chosen)].tolist() == pytest.approx([own.d_ap, own.d_an], abs=1e-5)
    assert (mined.d_an - mined.d_ap).is_monotonic_increasing


def test_the_order_of_pairs_is_a_probability():
    from dlops.report.q1 import in_order

    rng = np.random.default_rng(0)
    same, different = rng.integers(0, 9, 40) / 4, rng.integers(2, 12, 50) / 4
    frames = [
        pd.DataFrame({"value": x, "kind": kind})
        for x, kind in ((same, "same class"), (different, "different classes"))
    ]
    grid = same[:, None] - different[None, :]
    expected = (grid < 0).mean() + (grid == 0).mean() / 2
    assert in_order(pd.concat(frames)) == pytest.approx(expected)


def test_embeddings_lie_on_the_sphere_before_and_after(triplet):
    from dlops.report.q1 import sampled

    for name in ("embeddings_before", "embeddings"):
        points, labels, _ = sampled(triplet, name)
        assert torch.allclose(points.norm(dim=1), torch.ones(len(labels)), atol=2e-3)
