"""Every setting of an experiment: its help, its range, and what it applies to.

The default of a setting is its neutral value for ever: it is left out of the identity. Nothing here
imports torch or reads data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class DlopsError(ValueError):
    """A user's mistake or a missing piece, told in one sentence that says what to do."""


@dataclass(frozen=True)
class DataSetInfo:
    """What is published about a data set: enough to name, fetch and verify it."""

    name: str
    title: str
    checksum: str  # the publisher's, of the archive; part of every identity
    num_classes: int
    image_size: int
    channels: int
    folder: str = ""  # under DLOPS_DATA
    url: str = ""
    size: int | None = None  # bytes of the archive


DATASETS = {
    info.name: info
    for info in (
        DataSetInfo(
            "digits", "scikit-learn's handwritten digits", "sklearn-digits-1797", 10, 16, 3
        ),
        DataSetInfo(
            "tiny-imagenet",
            "Tiny ImageNet",
            "md5:90528d7ca1a48142e341f4ef8d21d0de",
            200,
            64,
            3,
            "tiny-imagenet-200",
            "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
            248_100_043,
        ),
        DataSetInfo(
            "cifar100",
            "CIFAR-100",
            "md5:03b5dce01913d631647c71ecec9e9cb8",
            100,
            32,
            3,
            "cifar-100-binary",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        ),
        DataSetInfo(
            "stl10",
            "STL-10",
            "md5:91f7769df0f17e558f3565bffb0c7dfb",
            10,
            96,
            3,
            "stl10_binary",
            "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        ),
    )
}


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    only: Mapping[str, tuple[str, ...]] | None = None,
) -> Any:
    """A field with its help, its range, and the models, losses or optimizers it applies to.

    The default is the neutral value for ever: it is left out of the identity.
    """
    limits = {"choices": choices, "low": low, "above": above, "high": high}
    return dataclasses.field(default=default, metadata={"help": help, "only": only, **limits})


IMAGE_MODELS = {"model": ("resnet18",)}
STACKS = {"model": ("stacked", "autoencoder")}
TRIPLET = {"loss": ("triplet",)}
CENTER = {"loss": ("center",)}
NOT_TRIPLET = {"loss": ("cross-entropy", "center", "reconstruction")}


@dataclass(frozen=True)
class Data:
    name: str = setting("digits", "the data set", choices=tuple(DATASETS))
    classes: int | None = setting(None, "so many classes, the first", low=2)
    class_seed: int | None = setting(None, "draw the classes by this seed instead", low=0)
    per_class: int | None = setting(None, "training images a class", low=2)
    test_per_class: int | None = setting(None, "test images a class", low=1)
    image_size: int | None = setting(None, "pixels a side", low=4, high=512)
    grayscale: bool = setting(False, "one channel instead of three")
    inverted: bool = setting(False, "the negative of each image")
    labels: str = setting("fine", "CIFAR-100's label set", choices=("fine", "coarse"))
    val_fraction: float = setting(
        0.1, "share of the training images to validate on", above=0, high=0.5
    )
    fold: int | None = setting(None, "STL-10's predefined fold", low=0, high=9)
    label_fraction: float = setting(1.0, "share of the training labels used", above=0, high=1)
    augment: str = setting(
        "none", "augmentation of training images", choices=("none", "crop", "crop-flip")
    )
    unlabelled: int = setting(
        0, "images without labels that pretraining adds", low=0, only={"model": ("autoencoder",)}
    )


@dataclass(frozen=True)
class Model:
    name: str = setting("resnet18", "the network", choices=("resnet18", "stacked", "autoencoder"))
    stem: str = setting(
        "imagenet", "first layers", choices=("imagenet", "stride2", "cifar"), only=IMAGE_MODELS
    )
    embedding_dim: int | None = setting(
        None, "units of a linear layer on the 512 features", low=2, only=IMAGE_MODELS
    )
    weights: str = setting("none", "where training starts", choices=("none", "imagenet", "run"))
    tune: str = setting(
        "all", "layers that are fine-tuned", choices=("all", "head"), only=IMAGE_MODELS
    )
    body_lr: float = setting(
        1.0, "learning rate of the body, relative to the head's", above=0, high=1, only=IMAGE_MODELS
    )
    sizes: tuple[int, ...] = setting((), "units of the hidden layers", only=STACKS)
    pretraining: str = setting(
        "layerwise",
        "how the auto-encoder is trained",
        choices=("layerwise", "end-to-end"),
        only={"model": ("autoencoder",)},
    )
    activation: str = setting(
        "relu", "between layers", choices=("relu", "tanh", "gelu"), only=STACKS
    )
    tied: bool = setting(
        False, "decoder weights are the encoder's transposed", only={"model": ("autoencoder",)}
    )
    noise: float = setting(
        0.0,
        "share of inputs masked while denoising",
        low=0,
        high=0.9,
        only={"model": ("autoencoder",)},
    )
    dropout: float = setting(
        0.0, "share of units dropped in fine-tuning", low=0, high=0.9, only={"model": ("stacked",)}
    )
    relu_logits: bool = setting(
        False, "a ReLU after the last layer (the original's mistake)", only={"model": ("stacked",)}
    )


@dataclass(frozen=True)
class Loss:
    name: str = setting(
        "cross-entropy",
        "the loss",
        choices=("cross-entropy", "triplet", "center", "reconstruction"),
    )
    label_smoothing: float = setting(
        0.0,
        "share of the target spread over all classes",
        low=0,
        high=0.99,
        only={"loss": ("cross-entropy", "center")},
    )
    margin: float | str = setting(
        0.2, "triplet margin, or soft", choices=("soft",), above=0, only=TRIPLET
    )
    distance: str = setting(
        "euclidean", "triplet distance", choices=("euclidean", "squared"), only=TRIPLET
    )
    mining: str = setting(
        "hard", "triplets mined", choices=("hard", "semihard", "annealed"), only=TRIPLET
    )
    scale: float = setting(1.0, "steepness of the soft margin", above=0, only=TRIPLET)
    hardness_start: float = setting(0.8, "annealed mining's first hardness", above=0, only=TRIPLET)
    hardness_end: float = setting(16.0, "annealed mining's last hardness", above=0, only=TRIPLET)
    normalize: bool = setting(True, "embeddings on the unit sphere", only=TRIPLET)
    classes_per_batch: int = setting(8, "P of the P x K batches", low=2, only=TRIPLET)
    images_per_class: int = setting(8, "K of the P x K batches", low=2, only=TRIPLET)
    center_weight: float = setting(0.0, "weight (lambda) of the center loss", low=0, only=CENTER)
    center_alpha: float = setting(
        0.5, "rate (alpha) of the center update", low=0, high=1, only=CENTER
    )


_ADAMS, _MOMENTUM = {"optimizer": ("adam",)}, {"optimizer": ("sgd", "rmsprop")}
_NOT_SGD = {"optimizer": ("adam", "adagrad", "adadelta", "rmsprop")}
EPS = {"adam": 1e-8, "adagrad": 1e-10, "adadelta": 1e-6, "rmsprop": 1e-8}  # torch's defaults


@dataclass(frozen=True)
class Optimizer:
    name: str = setting(
        "adam", "the optimizer", choices=("adam", "sgd", "adagrad", "adadelta", "rmsprop")
    )
    lr: float = setting(0.001, "learning rate", above=0)
    weight_decay: float = setting(0.0, "weight decay", low=0)
    momentum: float = setting(0.0, "momentum", low=0, high=0.9999, only=_MOMENTUM)
    nesterov: bool = setting(False, "Nesterov momentum", only={"optimizer": ("sgd",)})
    beta1: float = setting(0.9, "decay of the first moment", low=0, high=0.99999, only=_ADAMS)
    beta2: float = setting(0.999, "decay of the second moment", low=0, high=0.99999, only=_ADAMS)
    eps: float | None = setting(None, "added to the denominator", above=0, only=_NOT_SGD)
    amsgrad: bool = setting(False, "maximum of second moments", only=_ADAMS)
    decoupled: bool = setting(False, "decoupled weight decay (AdamW)", only=_ADAMS)
    lr_decay: float = setting(0.0, "learning rate decay", low=0, only={"optimizer": ("adagrad",)})
    initial_accumulator: float = setting(
        0.0, "start of the sum of squares", low=0, only={"optimizer": ("adagrad",)}
    )
    rho: float = setting(
        0.9, "decay of squared gradients", low=0, high=0.99999, only={"optimizer": ("adadelta",)}
    )
    alpha: float = setting(
        0.99, "decay of squared gradients", low=0, high=0.99999, only={"optimizer": ("rmsprop",)}
    )
    centered: bool = setting(False, "divide by the variance", only={"optimizer": ("rmsprop",)})


@dataclass(frozen=True)
class Schedule:
    epochs: int = setting(10, "passes over the training images (auto-encoder: per layer)", low=1)
    batch_size: int = setting(
        128, "images a step (triplet: P x K instead)", low=2, high=65536, only=NOT_TRIPLET
    )
    schedule: str = setting("constant", "learning rate over time", choices=("constant", "cosine"))
    warmup: float = setting(0.0, "share of the steps with a rising rate", low=0, high=0.9)
    ema: float = setting(0.0, "decay of averaged weights (0: none)", low=0, high=0.99999)
    mix: float = setting(
        0.0, "mixup's Beta parameter (0: none)", low=0, only={"loss": ("cross-entropy", "center")}
    )
    precision: str = setting(
        "auto",
        "arithmetic of the network (auto: bfloat16 where the device has it natively)",
        choices=("auto", "float32", "bfloat16"),
        only={"model": ("resnet18", "stacked")},
    )


PARTS = {"data": Data, "model": Model, "loss": Loss, "optimizer": Optimizer, "schedule": Schedule}
FIELDS: dict[str, tuple[str, dataclasses.Field[Any]]] = {
    (part if field.name == "name" else field.name): (part, field)
    for part, cls in PARTS.items()
    for field in dataclasses.fields(cls)
}
# A schedule's own shape is the field `schedule`; a data set's name is the flat name `data`.
PARAMETERS = (*FIELDS, "seed")


def describe(name: str) -> str:
    """One line of help for the flat parameter `name`."""
    return "the random seed" if name == "seed" else FIELDS[name][1].metadata["help"]


def choices(name: str) -> tuple[Any, ...]:
    """The words that the flat parameter `name` may be; none where it is a number, or unknown."""
    return (FIELDS[name][1].metadata["choices"] or ()) if name in FIELDS else ()


def _accepts(annotation: str, value: Any) -> bool:
    for kind in annotation.split(" | "):
        if kind == "None" and value is None:
            return True
        if kind == "bool" and isinstance(value, bool):
            return True
        if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return math.isfinite(value)
        if kind == "str" and isinstance(value, str):
            return True
        if kind.startswith("tuple") and isinstance(value, tuple) and value:
            return all(isinstance(item, int) and item > 0 for item in value)
    return False


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "None": "nothing",
    "tuple[int, ...]": "a list of positive whole numbers",
}


def check(name: str, value: Any) -> Any:
    """The value in its field's type, or a DlopsError that names both."""
    field = FIELDS[name][1]
    annotation, limits = str(field.type), field.metadata
    if isinstance(value, list):
        value = tuple(value)
    if "float" in annotation and isinstance(value, str):  # YAML 1.1 reads 5e-05 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if value == field.default and type(value) is type(field.default):
        return value
    choices = limits["choices"]
    if not _accepts(annotation, value):
        wanted = " or ".join(_KINDS[kind] for kind in annotation.split(" | ") if kind != "None")
        raise DlopsError(f"{name} is {value!r}, but must be {wanted} ({limits['help']}).")
    if isinstance(value, str) and choices and value not in choices:
        known = ", ".join(str(choice) for choice in choices)
        raise DlopsError(f"{name} is {value!r}, but must be one of {known}.")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for word, limit, fine in (
            ("at least", limits["low"], lambda x, y: x >= y),
            ("above", limits["above"], lambda x, y: x > y),
            ("at most", limits["high"], lambda x, y: x <= y),
        ):
            if limit is not None and not fine(value, limit):
                raise DlopsError(
                    f"{name} is {value}, but must be {word} {limit} ({limits['help']})."
                )
        if "float" in annotation:
            value = float(value)
    return value


def kinds(flat: Mapping[str, Any]) -> dict[str, str]:
    """The model, loss and optimizer of flat settings: what decides which others apply."""
    return {
        part: flat.get(part, FIELDS[part][1].default) for part in ("model", "loss", "optimizer")
    }


def misplaced(name: str, names: Mapping[str, str]) -> str | None:
    """Why `name` does not apply beside these models, losses and optimizers, or None."""
    only = FIELDS[name][1].metadata["only"] or {}
    for part, allowed in only.items():
        if names[part] not in allowed:
            return (
                f"{name} does not apply to {part} {names[part]}, only to {', '.join(allowed)};"
                f" leave it out, or choose another {part}."
            )
    return None
