"""The numbers of each preset: what a question trains, at which size and budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlops.experiment import DlopsError, Experiment

PRESETS = ("test", "quick", "lite", "original", "full")

# A question's own settings; its family's numbers come from FAMILIES. A key that names a loss
# or an optimizer holds settings that apply only with it.
QUESTIONS: dict[str, dict[str, Any]] = {
    "q1.1": {"family": "q1", "loss": "cross-entropy"},
    "q1.2": {"family": "q1", "loss": "triplet"},
    "q1.3": {"family": "q1", "loss": "center"},
}

_DIGITS = {"data": "digits", "per_class": 100, "stem": "stride2"}
_TEST = {"data": "digits", "per_class": 30, "test_per_class": 10, "stem": "stride2"}
_TINY = {"data": "tiny-imagenet"}

FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
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
            "triplet": {"classes_per_batch": 8, "images_per_class": 4},
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
            "cross-entropy": {"label_smoothing": 0.1, "mix": 0.2},
            "center": {"label_smoothing": 0.1, "mix": 0.0, "center_weight": 0.003},
            "triplet": {"classes_per_batch": 64, "images_per_class": 8, "margin": "soft"},
            "adam": {"lr": 0.002, "weight_decay": 0.05, "decoupled": True},
            "sgd": {"lr": 0.4, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        },
    },
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
    for part in ("model", "loss", "optimizer"):
        default = {"model": "resnet18", "loss": "cross-entropy", "optimizer": "adam"}[part]
        chosen = flat.get(part, values.get(part, default))
        values.update(special.get(str(chosen), {}))
    return values


def source(name: str, preset: str) -> Experiment:
    """The experiment that `weights="run:NAME"` starts from, in the same preset."""
    return Experiment.from_preset(name, preset=preset)
