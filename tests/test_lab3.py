"""Fine-tuning: studies as lists of experiments, ImageNet's weights, parallel slots, findings."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dlops import cli
from dlops.experiment import Experiment
from dlops.report import Claims, lab3, spread
from dlops.series import SERIES, select, sweeps
from dlops.series.presets import PRESETS
from dlops.settings import DlopsError
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
        for lr, seeds in plan.rates.items():
            assert {e.optimizer.lr for e in seeds} == {lr}
        for name_, seeds in plan.claimed.items():
            assert seeds[0] in plan.responses[name_].values()
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
    lean = preset in sweeps.LEAN
    assert sum(len(plan.members) for plan in plans) <= (70 if lean else 100)
    assert {len(plan.rates) for plan in plans} == {1 if lean else 3}


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
    rows = {f"step_{stage}": [step, step] for stage in lab3.STAGES}
    rows |= {"epoch": [1, 2], "train_loss": [2.0, loss], "val_top5": [val / 2, val]}
    metrics = {
        "val_top5": val,
        "val_top1": val / 2,
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


def results_of(plan, changed=()):
    """Every member at 60 %; those that change "lr 0.003" as given, with every seed."""
    given = dict(changed)
    results = {}
    for e in plan.members:
        words = e.with_(seed=0).differs(plan.base) or "base"
        results[e.id] = fake(e, given.get(words, 0.6))
    return results


def test_the_noise_floor_is_that_of_what_it_judges(plan):
    found = lab3.Study(plan, results_of(plan))
    p = (0.6 * 80 + 1) / 82
    one = math.sqrt(p * (1 - p) / 80)
    assert found.floor(1) == pytest.approx(1.96 * one, rel=1e-3)
    assert found.floor(2) == pytest.approx(1.96 * math.sqrt(2) * one, rel=1e-3)
    assert found.floor(2) < found.floor(3) < found.floor(9) < found.floor(9, of=5)
    seeds = results_of(plan)
    seeds[plan.seeds[1].id] = fake(plan.seeds[1], 0.95)
    spread = np.std([0.6, 0.95, 0.6], ddof=1)  # larger than that of 80 images
    assert lab3.Study(plan, seeds).floor(1) == pytest.approx(1.96 * spread, rel=1e-3)


@pytest.mark.parametrize("beyond", [False, True])
def test_a_response_is_titled_by_its_own_side_of_the_noise(plan, beyond):
    floor = lab3.Study(plan, results_of(plan)).floor(3, of=len(plan.responses))
    score = 0.6 - floor + (-0.001 if beyond else 0.001)
    found = lab3.Study(plan, results_of(plan, {"beta2 0.9": score}))
    title = found.title("beta2")
    assert ("by more than noise" in title) == beyond
    assert ("no more than noise" in title) == (not beyond)
    assert "no more than noise" in found.title("beta1")
    assert found.effects().moved.sum() == beyond
    figure = lab3.effects(found)()
    heading = "beta2 moves" if beyond else "No attribute moves"
    assert figure.get_suptitle().startswith(heading)


def test_settings_are_chosen_by_validation_top5_never_by_test(plan):
    results = results_of(plan, {"beta1 0": 0.9, "lr 0.003": 0.8})
    for e in plan.members:
        if e.optimizer.lr == 3e-5:
            results[e.id] = fake(e, 0.2, test=0.7)
    found = lab3.Study(plan, results)
    assert found.picked().changes == "beta1 0"
    assert {r.experiment.optimizer.lr for r in found.tuned()} == {0.003}
    assert len(found.tuned()) == 3
    tie = results_of(plan)
    for e in plan.rates[3e-5]:
        tie[e.id] = fake(e, 0.6, loss=0.5)
    assert {r.experiment.optimizer.lr for r in lab3.Study(plan, tie).tuned()} == {3e-5}


def test_a_frame_has_a_row_a_run(plan):
    frame = lab3.Study(plan, results_of(plan)).frame()
    assert len(frame) == len(plan.members)
    assert set(frame.attribute) == {"base", "grid", *plan.responses}
    assert (frame[frame.attribute == "base"].changes == "base").all()
    decay = frame[frame.attribute == "decoupled decay"]
    assert sorted(zip(decay.value, decay.seed)) == [(0.01, 0), (0.1, 0), (0.1, 1), (0.1, 2)]


def test_one_seed_is_never_more_than_undecided(plan):
    lean = sweeps.sweep(Experiment.from_preset("lab3.adam", "lite"), "lite")
    few = lab3.Study(lean, results_of(lean, {"weight_decay 0.1": 0.1}))
    many = lab3.Study(plan, results_of(plan, {"weight_decay 0.1": 0.1}))
    for study, verdict in ((few, "undecided"), (many, "supported")):
        claims = Claims()
        claims.add("It harms.", study.against_base("weight_decay"), below=-0.02)
        assert claims.verdict("It harms.") == verdict
    assert few.over_rates().reason and not many.over_rates().reason


def test_a_member_that_diverged_is_told(plan):
    results = results_of(plan, {"lr 0.003": 0.9})
    for e in plan.claimed["weight_decay"]:
        del results[e.id]
    del results[plan.base.with_(lr=1e-4).id]
    found = lab3.Study(plan, results)
    assert found.against_base("weight_decay").reason == "every run diverged"
    assert "1 of its values made training diverge" in found.title("lr")
    assert math.isnan(found.frame().set_index("changes").step["lr 0.0001"])
    assert np.isnan(found.grid().loc["0.0001"].iloc[0])
    assert found.fitted().step.notna().all()
    assert found.effects().loc["lr"].moved
    with pytest.raises(DlopsError, match="base setting"):
        lab3.Study(plan, {})


def test_a_diverged_member_is_not_trained_again():
    member, other = small(lr=0.1), small(lr=0.01)
    Store().fail(member, "The loss was not finite.")
    results = lab3.collect([member, other])
    assert set(results) == {other.id}
    assert not lab3.diverged(small(lr=0.1).with_(keep="arrays"))


@pytest.fixture
def studies():
    """Four studies in which a wrong rate costs 0.2, and 0.001 suits Adagrad alone."""
    found = {}
    for name, headline in sweeps.headlines("quick").items():
        plan = sweeps.sweep(headline, "quick")
        runs = [*plan.members, *sum(sweeps.fixed_rates(plan.base, "quick").values(), [])]
        own = sweeps.OWN_LR[name]
        results = {
            e.id: fake(e, *((0.8, 0.6) if e.optimizer.lr == own else (0.6, 0.4))) for e in runs
        }
        found[name] = lab3.Study(plan, results)
    return found


def test_the_four_get_equal_budgets(studies):
    for name, study in studies.items():
        assert list(study.rates()) == pytest.approx([sweeps.OWN_LR[name] * r for r in (1, 0.1, 10)])
        assert all(len(results) == 3 for results in study.rates().values())


def test_the_four_are_compared_by_seed(studies):
    groups = lab3.groups(studies, "quick")
    assert list(groups) == ["lr 0.001", "own default", "tuned"]
    assert all(len(results) == 3 for group in groups.values() for results in group.values())
    lost = lab3.mean_difference(groups["own default"], groups["tuned"], "test_top5")
    assert lost.estimate == pytest.approx(-0.2) and lost.n.startswith("3 seeds")
    assert lab3.least_loss(studies).estimate == pytest.approx(0.2)
    apart = spread(groups["lr 0.001"], "test_top5")
    assert apart.estimate == pytest.approx(0.2)
    lab3.show_published(groups["lr 0.001"])
    lab3.show_published({"adam": []})


def test_limitations_name_the_weights():
    provenance = {"val_images": 80, "train_images": 120}
    stl = Experiment.from_preset("lab3.adam", "original")
    ours = Experiment.from_preset("lab3.adam", "lite")
    for experiment, words in ((stl, "taken from ImageNet"), (ours, "not from ImageNet's")):
        result = SimpleNamespace(
            experiment=experiment, metrics={"test_images": 100}, provenance=provenance
        )
        assert any(words in sentence for sentence in lab3.limitations([result]))
