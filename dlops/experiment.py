"""An experiment is a frozen, validated configuration; its identity names its result.

Nothing here imports torch or reads data: `dlops list` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from dlops.settings import (
    DATASETS,
    EPS,
    FIELDS,
    PARAMETERS,
    PARTS,
    Data,
    DlopsError,
    Loss,
    Model,
    Optimizer,
    Schedule,
    check,
    kinds,
    misplaced,
)

# Bumped by hand when a change moves numbers by more than rounding; part of every identity.
RECIPE = {"data": 1, "resnet": 1, "losses": 1, "autoencoder": 1, "train": 2}

KEEP = ("metrics", "arrays", "weights")  # what a result holds; each includes those before it


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

    from_preset: ClassVar[Callable[..., Experiment]]  # set by dlops.series.presets

    def __post_init__(self) -> None:
        names = kinds(self.flat)
        for name, value in self.flat.items():
            if name == "seed":
                continue
            part, field = FIELDS[name]
            checked = check(name, value)
            if name == "eps" and checked == EPS.get(self.optimizer.name):
                checked = None
            if checked is not value:  # one identity, however it was written
                group = dataclasses.replace(getattr(self, part), **{field.name: checked})
                object.__setattr__(self, part, group)
            if checked != field.default and (problem := misplaced(name, names)):
                raise DlopsError(problem)
        for sentence in self._problems():
            raise DlopsError(sentence)

    def _problems(self) -> Iterator[str]:
        """What is wrong with these settings together, a sentence each."""
        data, model, loss, seed = self.data, self.model, self.loss, self.seed
        title, total = DATASETS[data.name].title, self._labels
        if type(seed) is not int or not 0 <= seed < 2**31:
            yield f"seed is {seed!r}, but must be a whole number from 0 to 2147483647."
        if self.keep not in KEEP:
            yield f"keep is {self.keep!r}, but must be one of {', '.join(KEEP)}."
        if (model.weights == "run") != (self.parent is not None):
            yield "weights='run' needs a parent experiment, and a parent needs it."
        if model.name != "resnet18" and not model.sizes:
            yield f"model {model.name} needs sizes, for example [1024, 512, 128]."
        if (model.name == "autoencoder") != (loss.name == "reconstruction"):
            yield "loss reconstruction goes with model autoencoder, and only with it."
        if model.name == "stacked" and loss.name != "cross-entropy":
            yield f"model stacked trains with cross-entropy, not with {loss.name}."
        if (data.classes or 0) > total:
            yield f"classes is {data.classes}, but {title} has only {total}."
        if data.class_seed is not None and (data.classes or total) >= total:
            yield f"class_seed draws some of {title}'s classes: set classes to fewer than {total}."
        if data.labels == "coarse" and data.name != "cifar100":
            yield f"labels='coarse' applies to data cifar100, not to {data.name}."
        for name in ("fold", "unlabelled"):
            if getattr(data, name) not in (None, 0) and data.name != "stl10":
                yield f"{name} applies to data stl10, not to {data.name}."
        if data.name == "digits" and data.augment == "crop-flip":
            yield "augment='crop-flip' would mirror digits; choose 'crop' or 'none'."
        if loss.name == "triplet" and loss.classes_per_batch > self.num_classes:
            own = loss.classes_per_batch
            yield f"classes_per_batch is {own}, but there are only {self.num_classes} classes."
        if loss.name == "triplet" and loss.scale != 1 and loss.margin != "soft":
            yield f"scale is {loss.scale:g}, but applies only to margin='soft'."

    @property
    def _labels(self) -> int:
        """Classes of the whole data set, under the label set that is used."""
        return 20 if self.data.labels == "coarse" else DATASETS[self.data.name].num_classes

    @property
    def num_classes(self) -> int:
        return self.data.classes or self._labels

    @property
    def flat(self) -> dict[str, Any]:
        """All settings by their flat names, e.g. {"data": "digits", "lr": 0.001, ...}."""
        fields = ((name, part, field.name) for name, (part, field) in FIELDS.items())
        return {n: getattr(getattr(self, part), f) for n, part, f in fields} | {"seed": self.seed}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The flat settings that apply to this model, loss and optimizer."""
        names = kinds(self.flat)
        return {
            name: value
            for name, value in self.flat.items()
            if name == "seed" or misplaced(name, names) is None
        }

    @cached_property
    def id(self) -> str:
        """The identity: 12 hex digits of SHA-256 over canonical JSON (see the module's rules)."""
        names = ("data", "model", "loss", "optimizer")
        config = {
            name: value
            for name, value in self.settings.items()
            if name in names or name == "seed" or value != FIELDS[name][1].default
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

    def differs(self, base: Experiment) -> str:
        """What this changes of another experiment, e.g. "lr 0.01, seed 1"; "" for nothing."""
        old, new = base.settings, self.settings
        changed = {n: v for n, v in new.items() if old.get(n) != v and v is not None}
        words = (f"{v:g}" if isinstance(v, float) else str(v) for v in changed.values())
        return ", ".join(f"{name} {word}" for name, word in zip(changed, words))

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
                check(name, values[name])
        if values.get("loss") == "center" and values.get("center_weight", 0) == 0:
            values["loss"] = "cross-entropy"  # lambda = 0 is the cross-entropy run, by definition
            flat = {name: v for name, v in flat.items() if not name.startswith("center_")}
        names = kinds(values)
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for name, value in values.items():
            if name == "seed":
                continue
            if problem := misplaced(name, names):
                if name in flat:
                    raise DlopsError(problem)
                continue
            part, field = FIELDS[name]
            parts[part][field.name] = check(name, value)
        groups = {part: PARTS[part](**group) for part, group in parts.items()}
        return cls(**groups, seed=values.get("seed", 0), parent=parent, keep=keep)

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
        return self.optimizer.eps or EPS[self.optimizer.name]
