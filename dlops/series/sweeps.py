"""The attribute studies of lab 3: lists of experiments around a base setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlops.experiment import Experiment
from dlops.series.presets import from_preset

OPTIMIZERS = {"adam": "Adam", "adagrad": "Adagrad", "adadelta": "Adadelta", "rmsprop": "RMSprop"}
ORIGINAL_LR = 0.001  # what the original reports used with every optimizer
USUAL_LR = {"adam": 0.001, "adagrad": 0.01, "adadelta": 1.0, "rmsprop": 0.01}  # torch's defaults
OWN_LR = {"adam": 0.0003, "adagrad": 0.001, "adadelta": 0.1, "rmsprop": 0.0001}  # to fine-tune
RATIOS = (1, 0.1, 10)  # equal budgets: so many rates around each optimizer's own
STUDY_EPOCHS = {"full": 6}  # presets whose study is shorter than their headline runs
LEAN = ("lite",)  # presets to try things out with: only the base setting gets several seeds


@dataclass(frozen=True)
class Attribute:
    """One attribute and the values tried beside the base setting's; `also` changes with it.

    claimed: the value that a notebook claims something of, which takes several seeds.
    """

    setting: str
    values: tuple[Any, ...]
    also: tuple[tuple[str, Any], ...] = ()
    claimed: Any = None

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
        Attribute("weight_decay", (0.01, 0.1), claimed=0.1),
        Attribute("weight_decay", (0.01, 0.1), also=(("decoupled", True),), claimed=0.1),
        Attribute("amsgrad", (True,)),
    ),
    "adagrad": (
        Attribute("lr", (0.0001, 0.01)),
        Attribute("lr_decay", (0.1, 1.0), claimed=1.0),
        Attribute("initial_accumulator", (0.0001, 0.01), claimed=0.01),
        Attribute("eps", (1e-4, 1e-2)),
    ),
    "adadelta": (
        Attribute("lr", (0.01, 1.0, ORIGINAL_LR), claimed=ORIGINAL_LR),
        Attribute("rho", (0.5, 0.99)),
        Attribute("eps", (1e-8, 1e-4), claimed=1e-8),
    ),
    "rmsprop": (
        Attribute("lr", (1e-5, 0.001, USUAL_LR["rmsprop"])),
        Attribute("alpha", (0.9, 0.999)),
        Attribute("momentum", (0.5, 0.9), claimed=0.9),
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
    rates: {lr: its seeds}, as many over equal ratios with every optimizer, its own rate first.
    claimed: {attribute: the seeds of the value that is claimed of}.
    """

    base: Experiment
    seeds: tuple[Experiment, ...]
    responses: dict[str, dict[Any, Experiment]]
    grid: dict[tuple[float, Any], Experiment]
    rates: dict[float, list[Experiment]]
    claimed: dict[str, list[Experiment]]

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
        varied = [e for values in self.responses.values() for e in values.values()]
        seeded = [e for own in (*self.rates.values(), *self.claimed.values()) for e in own]
        every = (*self.seeds, *varied, *self.grid.values(), *seeded)
        return list({e.id: e for e in every}.values())


def value_of(experiment: Experiment, setting: str) -> Any:
    """A setting's value, with the optimizer's own eps where none is given."""
    return experiment.eps if setting == "eps" else experiment.settings[setting]


def sweep(headline: Experiment, preset: str) -> Sweep:
    """The study around a headline experiment; the preset "test" takes one value of each."""
    own = headline.schedule.epochs
    base = headline.with_(epochs=min(own, STUDY_EPOCHS.get(preset, own)), keep="metrics")
    optimizer, crossed = base.optimizer.name, CROSSED[headline.optimizer.name]

    def axis(attribute: Attribute, count: int | None = None) -> list[Any]:
        own = value_of(base, attribute.setting)
        others = attribute.values[:count]
        if preset == "test":
            others = (attribute.claimed or attribute.values[0],)
        return sorted({own, *others})

    def changed(attribute: Attribute, value: Any) -> Experiment:
        if value == value_of(base, attribute.setting):
            return base
        return base.with_(**{attribute.setting: value}, **dict(attribute.also))

    by_name = {attribute.name: attribute for attribute in ATTRIBUTES[optimizer]}
    responses = {
        name: {value: changed(attribute, value) for value in axis(attribute)}
        for name, attribute in by_name.items()
    }
    grid = {
        (lr, value): base.with_(lr=lr, **{crossed: value})
        for lr in axis(by_name["lr"], 2)
        for value in axis(by_name[crossed], 2)
    }
    ratios = RATIOS[:1] if preset in LEAN else RATIOS[:2] if preset == "test" else RATIOS
    tried = (float(f"{OWN_LR[optimizer] * ratio:.3g}") for ratio in ratios)
    rates = {lr: seeded(base.with_(lr=lr), preset) for lr in tried}
    claimed = {
        name: seeded(changed(attribute, attribute.claimed), preset, lean=True)
        for name, attribute in by_name.items()
        if attribute.claimed is not None
    }
    return Sweep(base, tuple(seeded(base, preset)), responses, grid, rates, claimed)


def fixed_rates(base: Experiment, preset: str) -> dict[str, list[Experiment]]:
    """The base setting at the original's learning rate, and at the optimizer's usual one."""
    rates = {"lr 0.001": ORIGINAL_LR, "own default": USUAL_LR[base.optimizer.name]}
    return {
        name: seeded(base.with_(lr=lr), preset, lean=lr != base.optimizer.lr)
        for name, lr in rates.items()
    }


def start(experiment: Experiment) -> list[Experiment]:
    """The run whose weights an experiment starts from, if it does."""
    return [experiment.parent] if experiment.parent else []


def optimizer_study(question: str) -> Any:
    """The experiments of one optimizer's notebook: source, headline with its seeds, sweep."""

    def experiments(preset: str, **parameters: Any) -> list[Experiment]:
        headline = from_preset(question, preset, **parameters)
        own = seeded(headline, preset)
        return [*start(headline), *own, *sweep(headline, preset).members]

    return experiments


def headlines(preset: str, **parameters: Any) -> dict[str, Experiment]:
    """What the comparison compares: for each optimizer the experiment of its own notebook."""
    return {name: from_preset(f"lab3.{name}", preset, **parameters) for name in OPTIMIZERS}


def seeded(experiment: Experiment, preset: str, lean: bool = False) -> list[Experiment]:
    """An experiment with the seeds of a preset; only the first keeps its predictions.

    lean: what presets of LEAN train with one seed.
    """
    count = 1 if lean and preset in LEAN else 2 if preset == "test" else 3
    others = range(experiment.seed + 1, experiment.seed + count)
    return [experiment, *(experiment.with_(seed=seed, keep="metrics") for seed in others)]


def comparison(preset: str, **parameters: Any) -> list[Experiment]:
    """The experiments of the comparison: every optimizer's study, and the fixed rates."""
    found: list[Experiment] = []
    for name, headline in headlines(preset, **parameters).items():
        found += optimizer_study(f"lab3.{name}")(preset, **parameters)
        for rate in fixed_rates(sweep(headline, preset).base, preset).values():
            found += rate
    return found
