"""An experiment is a frozen, validated configuration; its identity names its result.

Nothing here imports torch or reads data: `dlops list` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
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

# Bumped by hand when a change moves numbers by more than rounding; part of every identity.
RECIPE = {"data": 1, "resnet": 1, "losses": 1, "autoencoder": 1, "train": 2}

KEEP = ("metrics", "arrays", "weights")  # what a result holds; each includes those before it


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
    classes: int | None = setting(None, "the first so many classes", low=2)
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
    mining: str = setting("hard", "triplets mined", choices=("hard", "semihard"), only=TRIPLET)
    normalize: bool = setting(True, "embeddings on the unit sphere", only=TRIPLET)
    classes_per_batch: int = setting(8, "P of the P x K batches", low=2, only=TRIPLET)
    images_per_class: int = setting(8, "K of the P x K batches", low=2, only=TRIPLET)
    center_weight: float = setting(0.0, "weight (lambda) of the center loss", low=0, only=CENTER)
    center_alpha: float = setting(
        0.5, "rate (alpha) of the center update", low=0, high=1, only=CENTER
    )


_ADAMS, _MOMENTUM = {"optimizer": ("adam",)}, {"optimizer": ("sgd", "rmsprop")}
_NOT_SGD = {"optimizer": ("adam", "adagrad", "adadelta", "rmsprop")}
_EPS = {"adam": 1e-8, "adagrad": 1e-10, "adadelta": 1e-6, "rmsprop": 1e-8}  # torch's defaults


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
        "float32", "arithmetic of the network", choices=("float32", "bfloat16")
    )


PARTS = {"data": Data, "model": Model, "loss": Loss, "optimizer": Optimizer, "schedule": Schedule}
_FLAT: dict[str, tuple[str, dataclasses.Field[Any]]] = {
    (part if field.name == "name" else field.name): (part, field)
    for part, cls in PARTS.items()
    for field in dataclasses.fields(cls)
}
# A schedule's own shape is the field `schedule`; a data set's name is the flat name `data`.
PARAMETERS = (*_FLAT, "seed")


def describe(name: str) -> str:
    """One line of help for the flat parameter `name`."""
    return "the random seed" if name == "seed" else _FLAT[name][1].metadata["help"]


def choices(name: str) -> tuple[Any, ...]:
    """The words that the flat parameter `name` may be; none where it is a number, or unknown."""
    return (_FLAT[name][1].metadata["choices"] or ()) if name in _FLAT else ()


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


def _check(name: str, value: Any) -> Any:
    """The value in its field's type, or a DlopsError that names both."""
    field = _FLAT[name][1]
    annotation, limits = str(field.type), field.metadata
    if isinstance(value, list):
        value = tuple(value)
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
        low, above, high = limits["low"], limits["above"], limits["high"]
        if low is not None and value < low:
            raise DlopsError(f"{name} is {value}, but must be at least {low} ({limits['help']}).")
        if above is not None and value <= above:
            raise DlopsError(f"{name} is {value}, but must be above {above} ({limits['help']}).")
        if high is not None and value > high:
            raise DlopsError(f"{name} is {value}, but must be at most {high} ({limits['help']}).")
        if "float" in annotation:
            value = float(value)
    return value


def _names(flat: Mapping[str, Any]) -> dict[str, str]:
    return {part: flat.get(part, _FLAT[part][1].default) for part in ("model", "loss", "optimizer")}


def _misplaced(name: str, names: Mapping[str, str]) -> str | None:
    """Why `name` does not apply beside these models, losses and optimizers, or None."""
    only = _FLAT[name][1].metadata["only"] or {}
    for part, allowed in only.items():
        if names[part] not in allowed:
            return (
                f"{name} does not apply to {part} {names[part]}, only to {', '.join(allowed)};"
                f" leave it out, or choose another {part}."
            )
    return None


@dataclass(frozen=True)
class Experiment:
    """One training run: data, model, loss, optimizer, schedule, seed, and a run it starts from.

    keep: what the result holds ("metrics" < "arrays" < "weights"); not part of the identity.
    Raises DlopsError, in one sentence, for anything out of type or range or out of place.
    """

    data: Data = Data()
    model: Model = Model()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    seed: int = 0
    parent: Experiment | None = None
    keep: str = dataclasses.field(default="arrays", compare=False)

    def __post_init__(self) -> None:
        names = _names(self.flat)
        for name, value in self.flat.items():
            if name == "seed":
                continue
            part, field = _FLAT[name]
            checked = _check(name, value)
            if name == "eps" and checked == _EPS.get(self.optimizer.name):
                checked = None
            if checked is not value:  # one identity, however it was written
                group = dataclasses.replace(getattr(self, part), **{field.name: checked})
                object.__setattr__(self, part, group)
            problem = _misplaced(name, names) if checked != field.default else None
            if problem:
                raise DlopsError(problem)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise DlopsError(f"seed is {self.seed!r}, but must be a whole number from 0.")
        if self.keep not in KEEP:
            raise DlopsError(f"keep is {self.keep!r}, but must be one of {', '.join(KEEP)}.")
        if (self.model.weights == "run") != (self.parent is not None):
            raise DlopsError("weights='run' needs a parent experiment, and a parent needs it.")
        if self.model.name != "resnet18" and not self.model.sizes:
            raise DlopsError(f"model {self.model.name} needs sizes, for example [1024, 512, 128].")
        if (self.model.name == "autoencoder") != (self.loss.name == "reconstruction"):
            raise DlopsError("loss reconstruction goes with model autoencoder, and only with it.")
        if self.model.name == "stacked" and self.loss.name != "cross-entropy":
            raise DlopsError(f"model stacked trains with cross-entropy, not with {self.loss.name}.")
        info, data = DATASETS[self.data.name], self.data
        total = 20 if data.labels == "coarse" else info.num_classes
        if data.classes and data.classes > total:
            raise DlopsError(f"classes is {data.classes}, but {info.title} has only {total}.")
        if data.labels == "coarse" and data.name != "cifar100":
            raise DlopsError(f"labels='coarse' applies to data cifar100, not to {data.name}.")
        if data.fold is not None and data.name != "stl10":
            raise DlopsError(f"fold applies to data stl10, not to {data.name}.")
        if data.unlabelled and data.name != "stl10":
            raise DlopsError(f"unlabelled applies to data stl10, not to {data.name}.")
        if data.name == "digits" and data.augment == "crop-flip":
            raise DlopsError("augment='crop-flip' would mirror digits; choose 'crop' or 'none'.")
        if self.loss.name == "triplet" and self.loss.classes_per_batch > self.num_classes:
            raise DlopsError(
                f"classes_per_batch is {self.loss.classes_per_batch}, but there are only"
                f" {self.num_classes} classes."
            )

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        total = 20 if self.data.labels == "coarse" else DATASETS[self.data.name].num_classes
        return self.data.classes or total

    @property
    def flat(self) -> dict[str, Any]:
        """All settings by their flat names, e.g. {"data": "digits", "lr": 0.001, ...}."""
        values = {
            name: getattr(getattr(self, part), field.name) for name, (part, field) in _FLAT.items()
        }
        return {**values, "seed": self.seed}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The flat settings that apply to this model, loss and optimizer."""
        names = _names(self.flat)
        return {
            name: value
            for name, value in self.flat.items()
            if name == "seed" or _misplaced(name, names) is None
        }

    @cached_property
    def id(self) -> str:
        """The identity: 12 hex digits of SHA-256 over canonical JSON (see the module's rules)."""
        names = ("data", "model", "loss", "optimizer")
        config = {
            name: value
            for name, value in self.settings.items()
            if name in names or name == "seed" or value != _FLAT[name][1].default
        }
        parts = ["data", "train", "resnet" if self.model.name == "resnet18" else "autoencoder"]
        parts += ["losses"] if self.loss.name != "reconstruction" else []
        canonical = {
            "config": config,
            "checksum": DATASETS[self.data.name].checksum,
            "recipe": {part: RECIPE[part] for part in sorted(parts)},
            **({"parent": self.parent.id} if self.parent else {}),
        }
        text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """A short name for tables, e.g. "triplet, adam, digits, seed 0"."""
        return f"{self.loss.name}, {self.optimizer.name}, {self.data.name}, seed {self.seed}"

    def with_(self, **flat: Any) -> Experiment:
        """The same experiment with some flat settings (or parent, keep) changed."""
        extra = {name: flat.pop(name) for name in ("parent", "keep") if name in flat}
        base = {"parent": self.parent, "keep": self.keep, **extra}
        return Experiment.from_flat(flat, defaults=self.settings, **base)

    @classmethod
    def from_flat(
        cls,
        flat: Mapping[str, Any],
        *,
        defaults: Mapping[str, Any] | None = None,
        parent: Experiment | None = None,
        keep: str = "arrays",
    ) -> Experiment:
        """From flat names. A default that does not apply is dropped; a flat setting is refused."""
        for name in flat:
            if name not in PARAMETERS:
                close = difflib.get_close_matches(name, PARAMETERS, n=1)
                hint = f"; did you mean {close[0]}?" if close else f": {', '.join(PARAMETERS)}."
                raise DlopsError(f"There is no parameter {name}{hint}")
        values = {**(defaults or {}), **flat}
        for name in ("model", "loss", "optimizer"):
            if name in values:
                _check(name, values[name])
        if values.get("loss") == "center" and values.get("center_weight", 0) == 0:
            values["loss"] = "cross-entropy"  # lambda = 0 is the cross-entropy run, by definition
            flat = {name: v for name, v in flat.items() if not name.startswith("center_")}
        names = _names(values)
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for name, value in values.items():
            if name == "seed":
                continue
            if problem := _misplaced(name, names):
                if name in flat:
                    raise DlopsError(problem)
                continue
            part, field = _FLAT[name]
            parts[part][field.name] = _check(name, value)
        groups = {part: PARTS[part](**group) for part, group in parts.items()}
        return cls(**groups, seed=values.get("seed", 0), parent=parent, keep=keep)

    @classmethod
    def from_preset(cls, question: str, preset: str = "quick", **flat: Any) -> Experiment:
        """The experiment of a question ("q1.1", "lab3.adam", ...) in a preset, with changes.

        A setting of None means the preset's value. `weights="run:q1.1"` starts from that
        question's run in the same preset.
        """
        from dlops.presets import defaults, source

        flat = {name: value for name, value in flat.items() if value is not None}
        base = defaults(question, preset, flat)
        weights = flat.get("weights", base.get("weights", "none"))
        parent = None
        if isinstance(weights, str) and weights.startswith("run:"):
            parent, flat = source(weights.removeprefix("run:"), preset, flat)
            base = {**base, "weights": "run"}
            if parent.model.name == "resnet18":  # stem and input size follow the weights
                size = parent.data.image_size or DATASETS[parent.data.name].image_size
                name = flat.get("data", base.get("data", "digits"))
                own = DATASETS[name].image_size if name in DATASETS else None
                base |= {
                    "stem": parent.model.stem,
                    "image_size": None if size == own else size,
                }
        return cls.from_flat(flat, defaults=base, parent=parent)

    def to_json(self) -> dict[str, Any]:
        """The applying settings, and the parent's, as JSON-ready values."""
        parent = {"parent": self.parent.to_json()} if self.parent else {}
        return {**self.settings, **parent}

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Experiment:
        """The experiment that `to_json` described (unknown settings of a later version refused)."""
        config = dict(config)
        parent = config.pop("parent", None)
        return cls.from_flat(config, parent=cls.from_json(parent) if parent else None)

    @property
    def eps(self) -> float:
        """The denominator's eps: the setting, or the optimizer's own default."""
        return self.optimizer.eps or _EPS[self.optimizer.name]
