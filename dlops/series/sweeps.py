"""The attribute studies of lab 3: lists of experiments around a base setting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dlops.experiment import Experiment
from dlops.series.presets import from_preset

OPTIMIZERS = {
    "adam": "Adam",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "rmsprop": "RMSprop",
}
ORIGINAL_LR = 0.001  # what the original reports used with every optimizer
USUAL_LR = {"adam": 0.001, "adagrad": 0.01, "adadelta": 1.0, "rmsprop": 0.01}  # torch's defaults
STUDY_EPOCHS = {"full": 6}  # presets whose study is shorter than their headline runs


@dataclass(frozen=True)
class Attribute:
    """One attribute and the values tried beside the base setting's; `also` changes with it."""

    setting: str
    values: tuple[Any, ...]
    also: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """What figures call it, e.g. "beta1" or "decoupled decay"."""
        return "decoupled decay" if self.also else self.setting


ATTRIBUTES: dict[str, tuple[Attribute, ...]] = {
    "adam": (
        Attribute("lr", (0.0001, 0.001)),
        Attribute("beta1", (0.0, 0.99)),
        Attribute("beta2", (0.9, 0.9999)),
        Attribute("eps", (1e-4, 1e-2)),
        Attribute("weight_decay", (0.01, 0.1)),
        Attribute("weight_decay", (0.01, 0.1), also=(("decoupled", True),)),
        Attribute("amsgrad", (True,)),
    ),
    "adagrad": (
        Attribute("lr", (0.0001, 0.01)),
        Attribute("lr_decay", (0.1, 1.0)),
        Attribute("initial_accumulator", (0.0001, 0.01)),
        Attribute("eps", (1e-4, 1e-2)),
    ),
    "adadelta": (
        Attribute("lr", (0.01, 1.0, ORIGINAL_LR)),
        Attribute("rho", (0.5, 0.99)),
        Attribute("eps", (1e-8, 1e-4)),
    ),
    "rmsprop": (
        Attribute("lr", (1e-5, 0.001, USUAL_LR["rmsprop"])),
        Attribute("alpha", (0.9, 0.999)),
        Attribute("momentum", (0.5, 0.9)),
        Attribute("centered", (True,)),
        Attribute("eps", (1e-4, 1e-2)),
    ),
}
# The attribute that the grid crosses with the learning rate: the one that scales the step most.
CROSSED = {
    "adam": "eps",
    "adagrad": "initial_accumulator",
    "adadelta": "eps",
    "rmsprop": "momentum",
}


@dataclass(frozen=True)
class Sweep:
    """The experiments of a study of one optimizer's attributes.

    seeds: the base setting with other seeds too, base first. responses: {attribute: {value:
    experiment}}, the base among them. grid: {(lr, value of the crossed attribute): experiment}.
    """

    base: Experiment
    seeds: tuple[Experiment, ...]
    responses: dict[str, dict[Any, Experiment]]
    grid: dict[tuple[float, Any], Experiment]

    @property
    def crossed(self) -> str:
        """The attribute that the grid crosses with the learning rate."""
        return CROSSED[self.base.optimizer.name]

    def setting_of(self, attribute: str) -> str:
        """The setting that an attribute of `responses` changes."""
        known = ATTRIBUTES[self.base.optimizer.name]
        return next(a.setting for a in known if a.name == attribute)

    @property
    def members(self) -> list[Experiment]:
        """All of them, each once, the base first."""
        rest = [e for values in self.responses.values() for e in values.values()]
        return list({e.id: e for e in (*self.seeds, *rest, *self.grid.values())}.values())


def value_of(experiment: Experiment, setting: str) -> Any:
    """A setting's value, with the optimizer's own eps where none is given."""
    return experiment.eps if setting == "eps" else experiment.settings[setting]


def sweep(headline: Experiment, preset: str) -> Sweep:
    """The study around a headline experiment; the preset "test" takes one value of each."""
    epochs = STUDY_EPOCHS.get(preset, headline.schedule.epochs)
    base = headline.with_(epochs=min(epochs, headline.schedule.epochs), keep="metrics")
    optimizer = base.optimizer.name

    def axis(attribute: Attribute, count: int | None = None) -> list[Any]:
        own = value_of(base, attribute.setting)
        others = attribute.values[: 1 if preset == "test" else count]
        return sorted({own, *others})

    responses = {
        attribute.name: {
            value: base
            if value == value_of(base, attribute.setting)
            else base.with_(**{attribute.setting: value}, **dict(attribute.also))
            for value in axis(attribute)
        }
        for attribute in ATTRIBUTES[optimizer]
    }
    by_name = {attribute.name: attribute for attribute in ATTRIBUTES[optimizer]}
    crossed = CROSSED[optimizer]
    grid = {
        (lr, value): base.with_(lr=lr, **{crossed: value})
        for lr in axis(by_name["lr"], 2)
        for value in axis(by_name[crossed], 2)
    }
    return Sweep(base, tuple(headline_seeds(base, preset)), responses, grid)


def fixed_rates(base: Experiment) -> dict[str, Experiment]:
    """The base setting at the original's learning rate, and at the optimizer's usual one."""
    rates = {"lr 0.001": ORIGINAL_LR, "own default": USUAL_LR[base.optimizer.name]}
    return {name: base.with_(lr=lr, keep="metrics") for name, lr in rates.items()}


def start(experiment: Experiment) -> list[Experiment]:
    """The run whose weights an experiment starts from, if it does."""
    return [experiment.parent] if experiment.parent else []


def optimizer_study(question: str) -> Any:
    """The experiments of one optimizer's notebook: source, headline, sweep."""

    def experiments(preset: str, **parameters: Any) -> list[Experiment]:
        headline = from_preset(question, preset, **parameters)
        return [*start(headline), headline, *sweep(headline, preset).members]

    return experiments


def headlines(preset: str, **parameters: Any) -> dict[str, Experiment]:
    """What the comparison compares: for each optimizer the experiment of its own notebook."""
    return {name: from_preset(f"lab3.{name}", preset, **parameters) for name in OPTIMIZERS}


def seeds(preset: str) -> int:
    """How many seeds a base setting gets."""
    return 2 if preset == "test" else 3


def headline_seeds(headline: Experiment, preset: str) -> list[Experiment]:
    """A headline experiment with several seeds; the first keeps its predictions."""
    others = range(headline.seed + 1, headline.seed + seeds(preset))
    return [headline, *(headline.with_(seed=seed, keep="metrics") for seed in others)]


def comparison(preset: str, **parameters: Any) -> list[Experiment]:
    """The experiments of the comparison: every optimizer's study, and the fixed rates."""

    def of(headline: Experiment) -> Iterable[Experiment]:
        yield from start(headline)
        yield from headline_seeds(headline, preset)
        study = sweep(headline, preset)
        yield from study.members
        yield from fixed_rates(study.base).values()

    return [e for headline in headlines(preset, **parameters).values() for e in of(headline)]
