"""Fine-tuning: studies as lists of experiments, ImageNet's weights, parallel slots, findings."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dlops import cli, study
from dlops.contest import Contest
from dlops.experiment import Experiment
from dlops.series import SERIES, select, sweeps
from dlops.series.presets import PRESETS
from dlops.settings import DATASETS, DlopsError
from dlops.store import Store


def small(**settings):
    """A tenth of a second of training."""
    base = Experiment.from_preset("lab3.source", "test", per_class=3, test_per_class=1, epochs=1)
    return base.with_(keep="metrics", **settings)


# Studies


@pytest.mark.parametrize("preset", PRESETS)
def test_a_study_is_a_list_of_experiments_around_one_setting(preset):
    for name, headline in sweeps.headlines(preset).items():
        plan = sweeps.sweep(headline, preset)
        assert plan.base.with_(epochs=headline.schedule.epochs) == headline
        assert len({e.id for e in plan.members}) == len(plan.members)
        assert all(e.keep == "metrics" and e.parent == headline.parent for e in plan.members)
        assert plan.base in plan.grid.values()
        for attribute, values in plan.responses.items():
            assert plan.base in values.values(), attribute
            for value, experiment in values.items():
                setting = plan.setting_of(attribute)
                assert sweeps.value_of(experiment, setting) == value
                assert experiment.seed == headline.seed
        wanted = sweeps.optimizer_study(f"lab3.{name}")(preset)
        assert {headline.id, *(e.id for e in plan.members)} <= {e.id for e in wanted}
        assert {e.id for e in wanted} <= {e.id for e in sweeps.comparison(preset)}


@pytest.mark.parametrize("preset", ["quick", "lite", "full"])
def test_the_studies_are_as_large_as_the_assignment_wants(preset):
    plans = [sweeps.sweep(e, preset) for e in sweeps.headlines(preset).values()]
    for plan in plans:
        assert len(plan.seeds) == 3
        assert len(plan.grid) == 9
        for name, values in plan.responses.items():
            flags = [isinstance(v, bool) for v in values]
            assert len(values) >= (2 if all(flags) else 3), name
    assert 60 <= sum(len(plan.members) for plan in plans) <= 80


def test_changes_reach_every_member():
    changed = sweeps.comparison("quick", seed=5, body_lr=0.1)
    fine_tuned = [e for e in changed if e.parent]
    assert {e.seed for e in fine_tuned} == {5, 6, 7}
    assert all(e.model.body_lr == 0.1 for e in fine_tuned)


def test_weights_decide_stem_and_input_size():
    ours = Experiment.from_preset("lab3.adam", "lite")
    assert ours.parent.data.name == "tiny-imagenet" and ours.parent.num_classes == 200
    assert ours.model.stem == ours.parent.model.stem
    assert ours.data.image_size is None and ours.parent.data.image_size == 32
    stl = Experiment.from_preset("lab3.adam", "lite", data="stl10")
    assert stl.data.image_size == 32
    other = Experiment.from_preset("lab3.adam", "quick", weights="run:q1.1")
    assert other.model.stem == other.parent.model.stem == "stride2"
    assert Experiment.from_preset("lab3.adam", "full", weights="imagenet").model.stem == "imagenet"


def test_no_weights_can_be_asked_for():
    changes = cli.settings(["weights=none", "classes=none", "lr=0.1"])
    assert changes == {"weights": "none", "classes": None, "lr": 0.1}
    assert Experiment.from_preset("lab3.adam", "quick", **changes).parent is None


@pytest.mark.parametrize(
    ("preset", "roll", "names"),
    [
        ("quick", None, {"adam", "comparison"}),
        ("quick", "8", {"adam", "comparison"}),
        ("lite", None, {"adam-cifar100", "comparison-cifar100"}),
        ("lite", "7", {"adam-stl10", "comparison-stl10"}),
        ("original", None, {"adam-stl10", "comparison-stl10"}),
        ("original", "8", {"adam-cifar100", "comparison-cifar100"}),
    ],
)
def test_a_roll_number_picks_the_data_set(preset, roll, names):
    chosen = select(["lab3.adam", "lab3.comparison"], roll, preset)
    assert {report.name for report in chosen} == names


def test_every_report_has_its_notebook_and_experiments():
    for report in SERIES:
        if report.assignment == "lab3":
            assert all(report.wanted(preset) for preset in report.presets)


# What studies say


def fake(experiment, val, test=0.5, loss=1.0, step=0.01):
    """A result as far as studies read it."""
    rows = {f"step_{stage}": [step, step] for stage in study.STAGES}
    rows |= {f"gradient_{stage}": [1.0, 2.0] for stage in study.STAGES}
    rows |= {f"moment_{stage}": [0.1, 0.2] for stage in study.STAGES}
    rows |= {"epoch": [1, 2], "val_top1": [val / 2, val], "train_loss": [2.0, loss]}
    rows |= {"train_top1": [val, val]}
    metrics = {
        "val_top1": val,
        "val_loss": loss,
        "train_top1": min(1.0, val + 0.1),
        "test_top1": test,
        "test_top5": min(1.0, test + 0.3),
        "test_images": 100,
    }
    return SimpleNamespace(
        id=experiment.id,
        experiment=experiment,
        metrics=metrics,
        history=pd.DataFrame(rows),
        provenance={"val_images": 80, "train_images": 120},
    )


@pytest.fixture
def plan():
    return sweeps.sweep(Experiment.from_preset("lab3.adam", "quick"), "quick")


def results_of(plan, **scores):
    """Every member at 60 %, the seeds at 50, 51 and 52 % of the test images; those named by their
    change as given."""
    results = {}
    for e in plan.members:
        results[e.id] = fake(e, 0.6, test=0.5 + 0.01 * e.seed)
    for change, score in scores.items():
        name, value = change.rsplit("__", 1)
        experiment = plan.base.with_(**{name: float(value.replace("m", "-"))})
        results[experiment.id] = fake(experiment, score, test=1 - score, step=0.1)
    return results


def test_the_noise_floor_covers_seeds_and_images(plan):
    found = study.Study(plan, results_of(plan))
    p = (0.6 * 80 + 1) / 82
    assert found.noise == pytest.approx(2 * math.sqrt(p * (1 - p) / 80))  # the images' is larger
    wide = results_of(plan)
    wide[plan.seeds[1].id] = fake(plan.seeds[1], 0.6, test=0.9)
    spread = np.std([0.5, 0.9, 0.52], ddof=1)
    assert study.Study(plan, wide).noise == pytest.approx(2 * spread)


def test_what_lies_within_the_noise_is_said_to(plan):
    said = study.Study(plan, results_of(plan)).findings()
    (within,) = [s for s in said if s.startswith("Within the noise")]
    assert all(name in within for name in plan.responses)
    assert not any("matters" in s for s in said)
    said = study.Study(plan, results_of(plan, beta1__0=0.1)).findings()
    (matters,) = [s for s in said if "matters" in s]
    assert "**beta1** matters: from 10.0 % at 0" in matters and "10 times larger" in matters
    (within,) = [s for s in said if s.startswith("Within the noise")]
    assert "beta1" not in within


def test_settings_are_chosen_by_validation_never_by_test(plan):
    results = results_of(plan, beta1__0=0.9, beta2__0=0.2)  # their test figures: 10 %, 80 %
    results |= results_of(plan, **{"beta1__0": 0.9})
    tuned = study.Study(plan, results).tuned
    assert tuned.experiment.optimizer.beta1 == 0
    tie = results_of(plan, beta1__0=0.9, **{"lr__1em4": 0.9})
    tie[plan.base.with_(lr=1e-4).id].metrics["val_loss"] = 0.5
    assert study.Study(plan, tie).tuned.experiment.optimizer.lr == 1e-4


def test_a_member_that_diverged_is_told(plan):
    results = results_of(plan, lr__1em3=0.9)
    del results[plan.base.with_(lr=1e-4).id]
    found = study.Study(plan, results)
    assert math.isnan(found.score(plan.base.with_(lr=1e-4)))
    assert any("0.0001 diverged" in s for s in found.findings())
    found.show_responses()
    found.show_grid()
    found.show_table()
    with pytest.raises(DlopsError, match="base setting"):
        study.Study(plan, {})


def test_a_diverged_member_is_not_trained_again():
    member, other = small(lr=0.1), small(lr=0.01)
    Store().fail(member, "The loss was not finite.")
    results = study.collect([member, other])
    assert set(results) == {other.id}
    assert not study.failed(small(lr=0.1).with_(keep="arrays"))


@pytest.fixture
def contest(monkeypatch):
    """A comparison in which Adagrad wins at 0.001, and RMSprop, clearly, when tuned."""
    results = {}
    for name, headline in sweeps.headlines("quick").items():
        plan = sweeps.sweep(headline, "quick")
        members = [*plan.members, *sweeps.fixed_rates(plan.base).values()]
        for e in [*members, *sweeps.headline_seeds(headline, "quick"), *sweeps.start(headline)]:
            results[e.id] = fake(e, 0.5, test=0.5)
        if name == "adagrad":
            results[plan.base.id] = fake(plan.base, 0.7, test=0.6, step=0.2)
        if name == "rmsprop":
            best = plan.base.with_(alpha=0.9)
            results[best.id] = fake(best, 0.95, test=0.9)
    monkeypatch.setattr(study, "collect", lambda experiments: results)
    return Contest("quick")


def test_the_comparison_ranks_by_validation_and_says_what_is_noise(contest):
    assert contest.best("lr 0.001") == "adagrad"
    assert contest.best("tuned") == "rmsprop"
    assert contest.target == pytest.approx(0.9 * 0.95)
    assert contest.epochs_to_target(contest.finished("tuned")["rmsprop"]) == 2
    assert contest.epochs_to_target(contest.finished("tuned")["adam"]) is None
    said = " ".join(contest.findings())
    assert "Which one comes first depends on the setting" in said
    assert "not reached by Adam, Adagrad and Adadelta" in said
    assert "exceeds the noise" in contest._lead("tuned")
    assert "cannot be told from it" in contest._lead("own default")
    assert contest.headline()["Best when tuned"] == "RMSprop"
    assert contest.within(0.01)["rmsprop"] == pytest.approx(1 / 15)


def test_the_comparison_draws_what_it_says(contest):
    for setting in contest.rows:
        contest.show_curves(setting)
    contest.show_scores()
    contest.show_intervals("test_top5")
    contest.show_headlines()
    contest.show_sensitivity()
    study.show_published(contest.finished("lr 0.001"))


def test_limitations_name_the_weights():
    provenance = {"val_images": 80, "train_images": 120}
    stl = Experiment.from_preset("lab3.adam", "original")
    ours = Experiment.from_preset("lab3.adam", "lite")
    for experiment, words in ((stl, "taken from ImageNet"), (ours, "not ImageNet's")):
        result = SimpleNamespace(
            experiment=experiment, metrics={"test_images": 100}, provenance=provenance
        )
        assert any(words in sentence for sentence in study.limitations(result, 0.1))
    assert DATASETS["stl10"].title in study.origin(stl) or "ImageNet" in study.origin(stl)
