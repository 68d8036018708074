"""Settings are checked in one sentence; an identity is stable, and says only what applies."""

import hashlib
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from dlops import experiment as module
from dlops.experiment import Experiment
from dlops.settings import (
    DATASETS,
    PARAMETERS,
    Data,
    DlopsError,
    Model,
    Optimizer,
    Schedule,
    describe,
)

STACK = {"model": "stacked", "sizes": [64, 32]}
AUTOENCODER = {"model": "autoencoder", "loss": "reconstruction", "sizes": [64, 32]}


def flat(**settings):
    return Experiment.from_flat(settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learning_rate": 0.1}, "no parameter learning_rate"),
        ({"epoch": 3}, "did you mean epochs?"),
        ({"lr": "fast"}, "lr is 'fast', but must be a number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"lr": 0}, "above 0"),
        ({"epochs": -3}, "epochs is -3, but must be at least 1"),
        ({"epochs": 2.5}, "a whole number"),
        ({"epochs": True}, "a whole number"),
        ({"grayscale": 1}, "true or false"),
        ({"val_fraction": 0.9}, "at most 0.5"),
        ({"label_fraction": 1.5}, "at most 1"),
        ({"data": "mnist"}, "digits, tiny-imagenet"),
        ({"model": None}, "must be text"),
        ({"optimizer": ["sgd"]}, "must be text"),
        ({"stem": "cifr"}, "imagenet, stride2, cifar"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "1"}, "seed is '1'"),
        ({"loss": "triplet", "margin": "hard"}, "must be one of soft"),
        ({"model": "stacked", "sizes": [64, 0]}, "positive whole numbers"),
        ({"model": "stacked"}, "needs sizes"),
        ({"data": "tiny-imagenet", "classes": 201}, "Tiny ImageNet has only 200"),
        ({"data": "cifar100", "labels": "coarse", "classes": 21}, "only 20"),
        ({"class_seed": 1}, "set classes to fewer than 10"),
        ({"class_seed": 1, "classes": 10}, "set classes to fewer than 10"),
        ({"labels": "coarse"}, "applies to data cifar100"),
        ({"fold": 3}, "applies to data stl10"),
        ({"augment": "crop-flip"}, "mirror digits"),
        ({"loss": "triplet", "classes_per_batch": 11}, "only 10 classes"),
        ({"weights": "run"}, "needs a parent"),
        ({"loss": "reconstruction"}, "goes with model autoencoder"),
        ({"model": "stacked", "sizes": [8], "loss": "center", "center_weight": 1}, "cross-entropy"),
    ],
    ids=str,
)
def test_a_bad_setting_is_one_sentence(settings, says):
    with pytest.raises(DlopsError) as caught:
        flat(**settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"momentum": 0.9}, "optimizer adam"),
        ({"beta1": 0.8, "optimizer": "sgd"}, "optimizer sgd"),
        ({"nesterov": True, "optimizer": "rmsprop"}, "optimizer rmsprop"),
        ({"margin": 0.3}, "loss cross-entropy"),
        ({"center_alpha": 0.3, "loss": "triplet"}, "loss triplet"),
        ({"batch_size": 32, "loss": "triplet"}, "loss triplet"),
        ({"mix": 0.2, "loss": "triplet"}, "loss triplet"),
        ({"stem": "cifar", **STACK}, "model stacked"),
        ({"sizes": [64]}, "model resnet18"),
        ({"noise": 0.1, **STACK}, "model stacked"),
        ({"dropout": 0.1, **AUTOENCODER}, "model autoencoder"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_apply_is_refused(settings, part):
    with pytest.raises(DlopsError, match=f"does not apply to {part}"):
        flat(**settings)


def test_parts_put_together_by_hand_are_checked_too():
    with pytest.raises(DlopsError, match="does not apply"):
        Experiment(optimizer=Optimizer("adam", momentum=0.9))
    with pytest.raises(DlopsError, match="at least 1"):
        Experiment(schedule=Schedule(epochs=0))
    with pytest.raises(DlopsError, match="one of"):
        Experiment(data=Data("mnist"))


def test_parts_put_together_by_hand_have_the_identity_of_flat_settings():
    assert Experiment(optimizer=Optimizer(lr=1, eps=1e-8)).id == flat(lr=1.0).id
    by_hand = Experiment(model=Model("stacked", sizes=[64, 32]))
    assert (by_hand.id, by_hand) == (flat(**STACK).id, flat(**STACK))
    assert hash(by_hand) == hash(flat(**STACK))


def test_an_experiment_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Experiment().seed = 1


def test_every_parameter_is_described():
    assert all(describe(name) for name in PARAMETERS)


def test_defaults_that_do_not_apply_are_dropped():
    made = Experiment.from_flat({"loss": "triplet"}, defaults={"batch_size": 32, "mix": 0.3})
    assert made.schedule == Schedule()
    assert "batch_size" not in made.settings


# Identity ------------------------------------------------------------------------------------


@pytest.fixture
def recipe(monkeypatch):
    """The recipe of the first version: golden identities do not move when a component is bumped."""
    monkeypatch.setattr(module, "RECIPE", dict.fromkeys(module.RECIPE, 1))


def test_identity_is_a_hash_of_canonical_json(recipe):
    """Written out by hand: only what applies and is not neutral, and the published checksum."""
    made = flat(lr=0.05, optimizer="sgd", momentum=0.9, epochs=3, seed=2)
    canonical = {
        "checksum": "sklearn-digits-1797",
        "config": {
            "data": "digits",
            "epochs": 3,
            "loss": "cross-entropy",
            "lr": 0.05,
            "model": "resnet18",
            "momentum": 0.9,
            "optimizer": "sgd",
            "seed": 2,
        },
        "recipe": {"data": 1, "losses": 1, "resnet": 1, "train": 1},
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    assert made.id == hashlib.sha256(text.encode()).hexdigest()[:12]


GOLDEN = {
    "d6b6a55633ff": {},
    "43453fd5e2ff": {
        "loss": "triplet",
        "margin": "soft",
        "optimizer": "sgd",
        "momentum": 0.9,
        "seed": 3,
        "data": "tiny-imagenet",
        "classes": 20,
    },
    "5bece8f65632": STACK,
}


@pytest.mark.parametrize("golden", GOLDEN)
def test_identities_stay_as_they_were(golden, recipe):
    assert flat(**GOLDEN[golden]).id == golden


def test_the_identity_of_a_fine_tuned_run_stays(recipe):
    parent = flat(**AUTOENCODER, epochs=2)
    made = Experiment.from_flat({**STACK, "weights": "run"}, parent=parent)
    assert made.id == "3d295a7a18f5"
    assert made.with_(parent=parent.with_(epochs=3)).id != made.id


@pytest.mark.parametrize(
    "neutral",
    [
        {"lr": 0.001},
        {"weight_decay": 0},
        {"eps": 1e-8},
        {"beta2": 0.999, "amsgrad": False},
        {"label_smoothing": 0, "mix": 0, "ema": 0.0},
        {"loss": "center", "center_weight": 0, "center_alpha": 0.1},
        {"loss": "center"},
        {"stem": "imagenet", "classes": None, "class_seed": None},
        {"keep": "metrics"},
    ],
    ids=str,
)
def test_neutral_values_are_not_in_the_identity(neutral):
    keep = neutral.get("keep", "arrays")
    settings = {name: value for name, value in neutral.items() if name != "keep"}
    made = Experiment.from_flat(settings, keep=keep)
    assert made.id == Experiment().id
    assert made == Experiment()


def test_a_field_added_later_leaves_old_identities_alone(monkeypatch):
    before = Experiment().id
    part, field = module.FIELDS["mix"]
    monkeypatch.setitem(module.FIELDS, "a_new_one", (part, field))
    assert Experiment().id == before
    assert flat(mix=0.1).id != before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"lr": 0.002},
        {"optimizer": "sgd"},
        {"loss": "triplet"},
        {"data": "cifar100"},
        {"stem": "cifar"},
        {"per_class": 10},
        {"precision": "bfloat16"},
        {"weights": "imagenet"},
    ],
    ids=str,
)
def test_what_moves_numbers_is_in_the_identity(change):
    assert flat(**change).id != Experiment().id


def test_the_published_checksum_is_in_the_identity(monkeypatch):
    before = Experiment().id
    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], checksum="another"))
    assert Experiment().id != before


@pytest.mark.parametrize(
    ("component", "moves"),
    [("resnet", (True, False, False)), ("autoencoder", (False, True, True))]
    + [("losses", (True, True, False)), ("train", (True,) * 3), ("data", (True,) * 3)],
)
def test_a_bumped_component_renames_the_results_that_use_it(component, moves, monkeypatch):
    def ids():
        return [flat().id, flat(**STACK).id, flat(**AUTOENCODER).id]

    before = ids()
    monkeypatch.setitem(module.RECIPE, component, 99)
    assert tuple(new != old for new, old in zip(ids(), before)) == moves


def test_an_experiment_comes_back_from_json():
    parent = flat(**AUTOENCODER, noise=0.2)
    made = Experiment.from_flat({**STACK, "weights": "run", "lr": 0.3}, parent=parent)
    back = Experiment.from_json(json.loads(json.dumps(made.to_json())))
    assert (back, back.id) == (made, made.id)
    assert back.parent == parent


def test_with_changes_some_settings_and_keeps_the_others():
    made = flat(optimizer="sgd", momentum=0.9, lr=0.1, classes=5)
    changed = made.with_(lr=0.2, keep="metrics")
    assert (changed.optimizer.lr, changed.optimizer.momentum) == (0.2, 0.9)
    assert (changed.data.classes, changed.keep) == (5, "metrics")
    assert made.with_(optimizer="adam").optimizer == Optimizer("adam", lr=0.1)
    with pytest.raises(DlopsError, match="does not apply"):
        made.with_(beta1=0.5)


def test_presets_take_none_as_their_own_value_and_name_what_they_know():
    assert Experiment.from_preset("q1.1", "test", lr=None, seed=None).seed == 0
    assert Experiment.from_preset("q1.1", "test", optimizer="sgd").optimizer.momentum == 0.9
    assert Experiment.from_preset("q1.1", "test", epochs=7).schedule.epochs == 7
    with pytest.raises(DlopsError, match=r"question 'q9'.*q1\.1"):
        Experiment.from_preset("q9", "test")
    with pytest.raises(DlopsError, match="preset 'tset'.*quick"):
        Experiment.from_preset("q1.1", "tset")


def test_a_preset_can_start_from_another_question():
    made = Experiment.from_preset("q1.1", "test", weights="run:q1.1", tune="head")
    assert made.model == Model(stem="stride2", weights="run", tune="head")
    assert made.parent == Experiment.from_preset("q1.1", "test")


def test_the_identity_needs_neither_torch_nor_data():
    """In a process of its own; another hash seed gives the same identity."""
    code = """if True:
        import sys
        from dlops import Experiment
        print(Experiment.from_preset("q1.1", preset="full").id)
        heavy = {"torch", "numpy", "pandas", "sklearn", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == Experiment.from_preset("q1.1", preset="full").id
