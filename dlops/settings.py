"""Every setting of an experiment: its help, its range, and what it applies to.

The default of a setting is its neutral value for ever: it is left out of the identity. Nothing here
imports torch or reads data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le
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
    channels: int = 3
    folder: str = ""  # under DLOPS_DATA
    url: str = ""
    size: int | None = None  # bytes of the archive


_STANFORD, _TORONTO = "https://cs231n.stanford.edu/", "https://www.cs.toronto.edu/~kriz/"
_TABLE = (
    ("digits", "scikit-learn's handwritten digits", "sklearn-digits-1797", 10, 16),
    ("tiny-imagenet", "Tiny ImageNet", "md5:90528d7ca1a48142e341f4ef8d21d0de", 200, 64, 3)
    + ("tiny-imagenet-200", f"{_STANFORD}tiny-imagenet-200.zip", 248_100_043),
    ("cifar100", "CIFAR-100", "md5:03b5dce01913d631647c71ecec9e9cb8", 100, 32, 3)
    + ("cifar-100-binary", f"{_TORONTO}cifar-100-binary.tar.gz"),
    ("stl10", "STL-10", "md5:91f7769df0f17e558f3565bffb0c7dfb", 10, 96, 3)
    + ("stl10_binary", "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"),
)
DATASETS = {info.name: info for info in (DataSetInfo(*row) for row in _TABLE)}


def setting(default: Any, help: str, within: str = "", *, only: str = "") -> Any:
    """A field with its help, what it may be, and what it applies to.

    default: the neutral value for ever: it is left out of the identity. within: the words that it
    may be, or an interval: "[0, 0.9]" with its ends, "(0, 1]" without the first, "[2," with no
    upper end. only: the model, loss or optimizer beside which it applies, "loss center triplet".
    """
    part, *names = only.split() or [""]
    found = re.search(r"([\[(])(\S+), ?(?:(\S+)\])?", within)
    words = tuple((within[: found.start()] if found else within).split())
    limits: dict[str, Any] = {"words": words, "at least": None, "above": None, "at most": None}
    if found:
        limits["at least" if found[1] == "[" else "above"] = float(found[2])
        limits["at most"] = float(found[3]) if found[3] else None
    about = {"help": help, "only": {part: tuple(names)} if part else {}, **limits}
    return dataclasses.field(default=default, metadata=about)


# What settings apply to.
RESNET, STACK, AE = "model resnet18", "model stacked", "model autoencoder"
STACKS, NETWORKS = "model stacked autoencoder", "model resnet18 stacked"
TRIPLET, CENTER, ON_LOGITS = "loss triplet", "loss center", "loss cross-entropy center"
NOT_TRIPLET = "loss cross-entropy center reconstruction"
ADAM, ADAGRAD = "optimizer adam", "optimizer adagrad"
ADADELTA, RMSPROP = "optimizer adadelta", "optimizer rmsprop"
ADAPTIVE = "optimizer adam adagrad adadelta rmsprop"
EPS = {"adam": 1e-8, "adagrad": 1e-10, "adadelta": 1e-6, "rmsprop": 1e-8}  # torch's defaults


@dataclass(frozen=True)
class Data:
    name: str = setting("digits", "the data set", " ".join(DATASETS))
    classes: int | None = setting(None, "the first so many classes", "[2,")
    class_seed: int | None = setting(None, "draws the classes, instead of the first", "[0,")
    per_class: int | None = setting(None, "training images a class", "[2,")
    test_per_class: int | None = setting(None, "test images a class", "[1,")
    image_size: int | None = setting(None, "pixels a side", "[4, 512]")
    grayscale: bool = setting(False, "one channel instead of three")
    inverted: bool = setting(False, "the negative of each image")
    labels: str = setting("fine", "CIFAR-100's label set", "fine coarse")
    val_fraction: float = setting(0.1, "share of the training images to validate on", "(0, 0.5]")
    fold: int | None = setting(None, "STL-10's predefined fold", "[0, 9]")
    label_fraction: float = setting(1.0, "share of the training labels used", "(0, 1]")
    augment: str = setting("none", "augmentation of training images", "none crop crop-flip")
    unlabelled: int = setting(0, "images without labels that pretraining adds", "[0,", only=AE)


@dataclass(frozen=True)
class Model:
    name: str = setting("resnet18", "the network", "resnet18 stacked autoencoder")
    stem: str = setting("imagenet", "first layers", "imagenet stride2 cifar", only=RESNET)
    embedding_dim: int | None = setting(None, "units of a linear layer on 512", "[2,", only=RESNET)
    weights: str = setting("none", "where training starts", "none imagenet run")
    tune: str = setting("all", "layers that are fine-tuned", "all head", only=RESNET)
    body_lr: float = setting(1.0, "rate of the body, of the head's", "(0, 1]", only=RESNET)
    sizes: tuple[int, ...] = setting((), "units of the hidden layers", only=STACKS)
    pretraining: str = setting("layerwise", "order of training", "layerwise end-to-end", only=AE)
    activation: str = setting("relu", "between layers", "relu tanh gelu", only=STACKS)
    tied: bool = setting(False, "decoder weights are the encoder's transposed", only=AE)
    noise: float = setting(0.0, "share of inputs masked while denoising", "[0, 0.9]", only=AE)
    dropout: float = setting(0.0, "share of units dropped in fine-tuning", "[0, 0.9]", only=STACK)
    relu_logits: bool = setting(False, "a ReLU after the last layer, by mistake", only=STACK)


@dataclass(frozen=True)
class Loss:
    name: str = setting("cross-entropy", "the loss", "cross-entropy triplet center reconstruction")
    label_smoothing: float = setting(0.0, "target spread over all", "[0, 0.99]", only=ON_LOGITS)
    margin: float | str = setting(0.2, "triplet margin, or soft", "soft (0,", only=TRIPLET)
    distance: str = setting("euclidean", "between embeddings", "euclidean squared", only=TRIPLET)
    mining: str = setting("hard", "triplets mined", "hard semihard annealed", only=TRIPLET)
    scale: float = setting(1.0, "steepness of the soft margin", "(0,", only=TRIPLET)
    hardness_start: float = setting(0.8, "annealed mining's first hardness", "(0,", only=TRIPLET)
    hardness_end: float = setting(16.0, "annealed mining's last hardness", "(0,", only=TRIPLET)
    normalize: bool = setting(True, "embeddings on the unit sphere", only=TRIPLET)
    classes_per_batch: int = setting(8, "P of the P x K batches", "[2,", only=TRIPLET)
    images_per_class: int = setting(8, "K of the P x K batches", "[2,", only=TRIPLET)
    center_weight: float = setting(0.0, "weight (lambda) of the center loss", "[0,", only=CENTER)
    center_alpha: float = setting(0.5, "rate (alpha) of the centers", "[0, 1]", only=CENTER)


@dataclass(frozen=True)
class Optimizer:
    name: str = setting("adam", "the optimizer", "adam sgd adagrad adadelta rmsprop")
    lr: float = setting(0.001, "learning rate", "(0,")
    weight_decay: float = setting(0.0, "weight decay", "[0,")
    momentum: float = setting(0.0, "momentum", "[0, 0.9999]", only="optimizer sgd rmsprop")
    nesterov: bool = setting(False, "Nesterov momentum", only="optimizer sgd")
    beta1: float = setting(0.9, "decay of the first moment", "[0, 0.99999]", only=ADAM)
    beta2: float = setting(0.999, "decay of the second moment", "[0, 0.99999]", only=ADAM)
    eps: float | None = setting(None, "added to the denominator", "(0,", only=ADAPTIVE)
    amsgrad: bool = setting(False, "maximum of second moments", only=ADAM)
    decoupled: bool = setting(False, "decoupled weight decay (AdamW)", only=ADAM)
    lr_decay: float = setting(0.0, "learning rate decay", "[0,", only=ADAGRAD)
    initial_accumulator: float = setting(0.0, "start of the sum of squares", "[0,", only=ADAGRAD)
    rho: float = setting(0.9, "decay of squared gradients", "[0, 0.99999]", only=ADADELTA)
    alpha: float = setting(0.99, "decay of squared gradients", "[0, 0.99999]", only=RMSPROP)
    centered: bool = setting(False, "divide by the variance", only=RMSPROP)


@dataclass(frozen=True)
class Schedule:
    epochs: int = setting(10, "passes over the images (auto-encoder: per layer)", "[1, 100000]")
    batch_size: int = setting(128, "images a step", "[2, 65536]", only=NOT_TRIPLET)
    schedule: str = setting("constant", "learning rate over time", "constant cosine")
    warmup: float = setting(0.0, "share of the steps with a rising rate", "[0, 0.9]")
    ema: float = setting(0.0, "decay of averaged weights (0: none)", "[0, 0.99999]")
    mix: float = setting(0.0, "mixup's Beta parameter (0: none)", "[0,", only=ON_LOGITS)
    precision: str = setting(
        "auto", "arithmetic; auto: the device's own", "auto float32 bfloat16", only=NETWORKS
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
    return FIELDS[name][1].metadata["words"] if name in FIELDS else ()


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # of annotations
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a number", _number),
    "str": ("text", lambda value: isinstance(value, str)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "None": ("nothing", lambda value: value is None),
    "tuple[int, ...]": (
        "a list of positive whole numbers",
        lambda value: (
            isinstance(value, tuple)
            and len(value) > 0
            and all(isinstance(item, int) and item > 0 for item in value)
        ),
    ),
}


def check(name: str, value: Any) -> Any:
    """The value in its field's type, or a DlopsError that names both."""
    field = FIELDS[name][1]
    annotation, limits = str(field.type), field.metadata
    accepted = annotation.split(" | ")
    if isinstance(value, list):
        value = tuple(value)
    if "float" in accepted and isinstance(value, str):  # YAML 1.1 reads 5e-05 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if value == field.default and type(value) is type(field.default):
        return value
    if not any(_KINDS[kind][1](value) for kind in accepted):
        wanted = " or ".join(_KINDS[kind][0] for kind in accepted if kind != "None")
        raise DlopsError(f"{name} is {value!r}, but must be {wanted} ({limits['help']}).")
    if isinstance(value, str) and limits["words"] and value not in limits["words"]:
        raise DlopsError(f"{name} is {value!r}, but must be one of {', '.join(limits['words'])}.")
    if _number(value):
        for word, fine in (("at least", ge), ("above", gt), ("at most", le)):
            limit = limits[word]
            if limit is not None and not fine(value, limit):
                raise DlopsError(
                    f"{name} is {value}, but must be {word} {limit:g} ({limits['help']})."
                )
        if "float" in accepted:
            value = float(value)
    return value


def kinds(flat: Mapping[str, Any]) -> dict[str, str]:
    """The model, loss and optimizer of flat settings: what decides which others apply."""
    return {p: flat.get(p, FIELDS[p][1].default) for p in ("model", "loss", "optimizer")}


def misplaced(name: str, names: Mapping[str, str]) -> str | None:
    """Why `name` does not apply beside these models, losses and optimizers, or None."""
    only = FIELDS[name][1].metadata["only"]
    for part, allowed in only.items():
        if names[part] not in allowed:
            return (
                f"{name} does not apply to {part} {names[part]}, only to {', '.join(allowed)};"
                f" leave it out, or choose another {part}."
            )
    return None
