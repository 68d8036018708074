"""The numbers of each preset: what a question trains, at which size and budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dlops.experiment import Data, DlopsError, Experiment

PRESETS = ("test", "quick", "lite", "original", "full")

# A question's own settings; its family's numbers come from FAMILIES. A key that names a loss,
# an optimizer, a loss with an optimizer ("triplet sgd") or the starting weights holds settings
# that apply only with it.
QUESTIONS: dict[str, dict[str, Any]] = {
    "q1.1": {"family": "q1", "loss": "cross-entropy"},
    "q1.2": {"family": "q1", "loss": "triplet"},
    "q1.3": {"family": "q1", "loss": "center"},
    "q2": {"family": "q2", "model": "stacked", "weights": "run:q2.autoencoder"},
    "q2.autoencoder": {"family": "q2", "model": "autoencoder", "loss": "reconstruction"},
    "lab3.source": {"family": "lab3.source"},
    "lab3.adam": {"family": "lab3", "optimizer": "adam"},
    "lab3.adagrad": {"family": "lab3", "optimizer": "adagrad"},
    "lab3.adadelta": {"family": "lab3", "optimizer": "adadelta"},
    "lab3.rmsprop": {"family": "lab3", "optimizer": "rmsprop"},
}

_DIGITS = {"data": "digits", "per_class": 100, "stem": "stride2"}
_TEST = {"data": "digits", "per_class": 30, "test_per_class": 10, "stem": "stride2"}
_TINY = {"data": "tiny-imagenet"}
_FINE_TUNED = {  # half of the images to validate on; the middle of the rates that are tried
    "weights": "run:lab3.source",
    "stem": "imagenet",
    "val_fraction": 0.5,
    "adam": {"lr": 0.0003},
    "adagrad": {"lr": 0.001},
    "adadelta": {"lr": 0.1},
    "rmsprop": {"lr": 0.0001},
}

# Question 2's hidden layers, by the parity of the roll number; an eighth of the units on digits.
_ASSIGNED = {"odd": (1024, 1200, 728, 512, 128), "even": (1024, 1000, 500, 256, 128, 64)}
_EIGHTH = {"odd": (128, 150, 91, 64, 16), "even": (128, 125, 62, 32, 16, 8)}


def structure(name: str, preset: str) -> tuple[int, ...]:
    """The units of Question 2's hidden layers: name is "odd" or "even"."""
    structures = _EIGHTH if preset in ("test", "quick") else _ASSIGNED
    if name not in structures:
        raise DlopsError(f"sizes is {name!r}, but must be odd, even, or a list of whole numbers.")
    return structures[name]


FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "q2": {
        "test": {
            "data": "digits",
            "per_class": 30,
            "test_per_class": 10,
            "grayscale": True,
            "sizes": _EIGHTH["odd"],
            "batch_size": 32,
            "autoencoder": {"epochs": 2, "lr": 0.003},
            "stacked": {"epochs": 2},
        },
        "quick": {
            "data": "digits",
            "per_class": 100,
            "grayscale": True,
            "sizes": _EIGHTH["odd"],
            "batch_size": 32,
            "autoencoder": {"epochs": 10, "lr": 0.002},
            "stacked": {"epochs": 8, "schedule": "cosine", "warmup": 0.1},
        },
        "lite": {
            "data": "cifar100",
            "labels": "coarse",
            "classes": 10,
            "per_class": 500,
            "grayscale": True,
            "sizes": _ASSIGNED["odd"],
            "batch_size": 64,
            "autoencoder": {"epochs": 5, "batch_size": 128},
            "stacked": {"epochs": 10, "lr": 0.0003, "schedule": "cosine", "warmup": 0.1},
        },
        "original": {
            "data": "stl10",
            "grayscale": True,
            "sizes": _ASSIGNED["odd"],
            "lr": 0.001,
            "batch_size": 128,
            "autoencoder": {"epochs": 50},
            "stacked": {"epochs": 30},
        },
        "full": {
            "data": "stl10",
            "grayscale": True,
            "sizes": _ASSIGNED["odd"],
            "batch_size": 128,
            "autoencoder": {"epochs": 10, "batch_size": 256, "unlabelled": 20_000},
            "stacked": {
                "epochs": 40,
                "augment": "crop-flip",
                "lr": 0.0005,
                "schedule": "cosine",
                "warmup": 0.1,
                "weight_decay": 0.05,
                "decoupled": True,
                "dropout": 0.3,
            },
        },
    },
    "q1": {
        "test": {
            **_TEST,
            "epochs": 2,
            "batch_size": 64,
            "sgd": {"lr": 0.02, "momentum": 0.9},
            "center": {"center_weight": 0.003},
        },
        "quick": {
            **_DIGITS,
            "epochs": 3,
            "batch_size": 64,
            "schedule": "cosine",
            "warmup": 0.2,
            "lr": 0.001,
            "sgd": {"lr": 0.02, "momentum": 0.9, "nesterov": True},
            "triplet sgd": {"lr": 0.05},
            "center": {"center_weight": 0.01},
        },
        "lite": {
            **_TINY,
            "classes": 20,
            "per_class": 150,
            "augment": "crop-flip",
            "epochs": 6,
            "batch_size": 32,
            "schedule": "cosine",
            "warmup": 0.2,
            "lr": 0.001,
            "sgd": {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "center": {"center_weight": 0.003},
            "triplet": {
                "classes_per_batch": 8,
                "images_per_class": 4,
                "margin": "soft",
                "normalize": False,
            },
            "triplet adam": {"lr": 0.0005},
        },
        "original": {
            **_TINY,
            "epochs": 10,
            "batch_size": 128,
            "lr": 0.001,
            "center": {"center_weight": 0.003},
        },
        "full": {
            **_TINY,
            "stem": "stride2",
            "augment": "crop-flip",
            "epochs": 40,
            "batch_size": 512,
            "schedule": "cosine",
            "warmup": 0.1,
            "ema": 0.999,
            "precision": "bfloat16",
            "cross-entropy": {"label_smoothing": 0.1},
            "center": {"label_smoothing": 0.1, "center_weight": 0.003},
            "triplet": {"classes_per_batch": 64, "images_per_class": 8, "margin": "soft"},
            "adam": {"lr": 0.002, "weight_decay": 0.05, "decoupled": True},
            "sgd": {"lr": 0.4, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        },
    },
    # What fine-tuning starts from, and fine-tuning with each optimizer. Weights decide the stem and
    # the input size; those given here are for training without any.
    "lab3.source": {
        "test": {**_TEST, "stem": "imagenet", "inverted": True, "epochs": 1, "batch_size": 32},
        "quick": {
            **_DIGITS,
            "per_class": 60,
            "stem": "imagenet",
            "inverted": True,
            "epochs": 3,
            "batch_size": 32,
            "schedule": "cosine",
            "warmup": 0.2,
        },
        "lite": {
            **_TINY,
            "per_class": 100,
            "test_per_class": 10,
            "image_size": 32,
            "augment": "crop-flip",
            "epochs": 6,
            "batch_size": 32,
            "schedule": "cosine",
            "warmup": 0.1,
        },
        "original": {**_TINY, "epochs": 10, "batch_size": 128},
        "full": {
            **_TINY,
            "stem": "stride2",
            "augment": "crop-flip",
            "epochs": 40,
            "batch_size": 512,
            "lr": 0.002,
            "weight_decay": 0.05,
            "decoupled": True,
            "schedule": "cosine",
            "warmup": 0.1,
            "ema": 0.999,
            "label_smoothing": 0.1,
            "mix": 0.2,
            "precision": "bfloat16",
        },
    },
    "lab3": {
        "test": {
            **_TEST,
            **_FINE_TUNED,
            "per_class": 8,
            "test_per_class": 5,
            "epochs": 1,
            "batch_size": 20,
        },
        "quick": {
            **_TEST,
            **_FINE_TUNED,
            "per_class": 20,
            "val_fraction": 0.4,
            "test_per_class": 12,
            "epochs": 2,
            "batch_size": 24,
        },
        "lite": {
            "data": "cifar100",
            **_FINE_TUNED,
            "classes": 10,
            "per_class": 100,
            "test_per_class": 100,
            "epochs": 5,
            "batch_size": 32,
        },
        "original": {
            "data": "stl10",
            "weights": "imagenet",
            "epochs": 10,
            "batch_size": 128,
            "lr": 0.001,
        },
        "full": {
            "data": "cifar100",
            **_FINE_TUNED,
            "val_fraction": 0.1,
            "image_size": 64,
            "stem": "stride2",
            "augment": "crop-flip",
            "epochs": 40,
            "batch_size": 256,
            "schedule": "cosine",
            "warmup": 0.1,
            "ema": 0.999,
            "label_smoothing": 0.1,
            "mix": 0.2,
            "precision": "bfloat16",
            "imagenet": {"stem": "imagenet"},
        },
    },
}


# Question 1.3's figure in the plane: as many classes as a plane can hold apart, in less time.
PLANE: dict[str, dict[str, Any]] = {"lite": {"classes": 10, "per_class": 100, "epochs": 4}}

# Other settings of the triplet loss that were tried on real images; Question 1.2 shows them all.
TRIED: dict[str, tuple[dict[str, Any], ...]] = {
    "lite": (
        {"mining": "hard", "margin": 0.2, "normalize": True, "lr": 0.001},
        {"mining": "semihard", "margin": 0.2, "normalize": True, "lr": 0.001},
    )
}

# The comparison's seeds: more than one only where a few more runs are affordable.
COMPARISON_SEEDS: dict[str, tuple[int, ...]] = {
    "test": (0,),
    "quick": (0,),
    "lite": (0,),
    "original": (0,),
    "full": (0, 1, 2),
}


def defaults(question: str, preset: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `question` in `preset`, given the loss and optimizer that `flat` may name."""
    if question not in QUESTIONS:
        raise DlopsError(f"There is no question {question!r}; known are {', '.join(QUESTIONS)}.")
    own = dict(QUESTIONS[question])
    family = FAMILIES[own.pop("family")]
    if preset not in family:
        raise DlopsError(f"There is no preset {preset!r}; known are {', '.join(family)}.")
    values = {**family[preset], **own}
    special = {name: values.pop(name) for name in list(values) if isinstance(values[name], dict)}
    usual = {"model": "resnet18", "loss": "cross-entropy", "optimizer": "adam", "weights": "none"}
    for part, default in usual.items():
        chosen = flat.get(part, values.get(part, default))
        values.update(special.get(str(chosen), {}))
    loss, optimizer = (flat.get(x, values.get(x, usual[x])) for x in ("loss", "optimizer"))
    return {**values, **special.get(f"{loss} {optimizer}", {})}


def source(name: str, preset: str, flat: Mapping[str, Any]) -> tuple[Experiment, dict[str, Any]]:
    """The experiment that `weights="run:NAME"` starts from, and what of `flat` is left.

    An auto-encoder sees the same images, has the same units and the same seed as the stack that
    starts from it, so it shares those settings; how it is trained is its own.
    """
    rest = {key: value for key, value in flat.items() if key != "weights"}
    shared: dict[str, Any] = {}
    if QUESTIONS.get(name, {}).get("model") == "autoencoder":
        own = {"pretraining", "tied", "noise", "unlabelled"}
        images = {field.name for field in fields(Data)} - {"name", "label_fraction", "augment"}
        both = {"data", "sizes", "activation", "seed", *images} - own
        shared = {key: value for key, value in rest.items() if key in own | both}
        rest = {key: value for key, value in rest.items() if key not in own}
    return Experiment.from_preset(name, preset=preset, **shared), rest
