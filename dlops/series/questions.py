"""The experiments of Assignment 1: each question's seeds, illustrations and ablations."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from dlops.experiment import Experiment
from dlops.series.presets import NUMBERS, check_preset, from_preset
from dlops.settings import DlopsError, Optimizer

OPTIMIZER_SETTINGS = {"optimizer", *(field.name for field in fields(Optimizer))}

LOSSES = {"cross-entropy": "q1.1", "center loss": "q1.3", "triplet loss": "q1.2"}


def seeds(headline: Experiment, preset: str) -> list[Experiment]:
    """A Question 1 experiment with the preset's seeds, from its own on; the first keeps arrays."""
    count = NUMBERS["seeds"]["q1"][check_preset(preset)]
    if isinstance(count, dict):
        count = count.get(headline.optimizer.name, 1)
    others = range(headline.seed + 1, headline.seed + count)
    return [headline, *(headline.with_(seed=seed, keep="metrics") for seed in others)]


def seeded(question: str, preset: str, **parameters: Any) -> list[Experiment]:
    """The experiment of a question, with the preset's seeds."""
    return seeds(from_preset(question, preset, **parameters), preset)


def plain(preset: str, **parameters: Any) -> list[Experiment]:
    """Question 1.1."""
    return seeded("q1.1", preset, **parameters)


def planar(preset: str, **parameters: Any) -> dict[str, Experiment]:
    """Center loss on an embedding of two units, without (lambda = 0) and with its weight.

    With the preset's own optimizer, whichever the report is about: one pair serves both.
    """
    own = {name: value for name, value in parameters.items() if name not in OPTIMIZER_SETTINGS}
    own = {**NUMBERS["plane"].get(preset, {}), **own, "embedding_dim": 2}
    weighted = from_preset("q1.3", preset, **own)
    without = from_preset("q1.3", preset, **{**own, "center_weight": 0})
    return {"λ = 0": without, f"λ = {weighted.loss.center_weight:g}": weighted}


def center(preset: str, **parameters: Any) -> list[Experiment]:
    """Question 1.3: its seeds, those of lambda = 0, and the illustrations in the plane."""
    own = seeded("q1.3", preset, **parameters)
    rest = {name: v for name, v in parameters.items() if not name.startswith("center_")}
    return [*own, *plain(preset, **rest), *planar(preset, **parameters).values()]


def tried(preset: str, **parameters: Any) -> list[Experiment]:
    """Question 1.2 with the other minings that were tried; none beside settings of one's own."""
    given = {name for name, value in parameters.items() if value is not None}
    if given - {"optimizer"} or parameters.get("optimizer", "adam") != "adam":
        return []
    mine = {e.id for e in seeded("q1.2", preset)}
    found: dict[str, Experiment] = {}
    for row in NUMBERS["tried"].get(preset, ()):
        own = {name: value for name, value in row.items() if name != "seeds"}
        found |= {e.id: e for e in seeded("q1.2", preset, **own)[: row.get("seeds")]}
    return [e for e in found.values() if e.id not in mine]


def triplet(preset: str, **parameters: Any) -> list[Experiment]:
    """Question 1.2: its seeds, and what else was tried."""
    return [*seeded("q1.2", preset, **parameters), *tried(preset, **parameters)]


def by_loss(preset: str, **parameters: Any) -> dict[str, list[Experiment]]:
    """What the comparison compares: for each loss the experiments of the preset's seeds."""
    return {name: seeded(question, preset, **parameters) for name, question in LOSSES.items()}


def compared(preset: str, **parameters: Any) -> list[Experiment]:
    """The experiments that the comparison cannot do without."""
    groups = by_loss(preset, **parameters).values()
    return list({e.id: e for group in groups for e in group}.values())


STARTS = ("none", "layerwise", "end-to-end")  # what Question 2's stack is fine-tuned from
LABELS = {0.1: 4, 0.3: 2, 1.0: 1}  # shares of the labels; so many times smaller batches


def stack(preset: str, start: str = "layerwise", **parameters: Any) -> Experiment:
    """Question 2's classifier, fine-tuned from one of STARTS. sizes may be "odd" or "even"."""
    how = {"weights": "none"} if start == "none" else {"pretraining": start}
    return from_preset("q2", preset, **{**parameters, **how})


def ablation(preset: str, **parameters: Any) -> dict[tuple[str, float, int], Experiment]:
    """Question 2's classifiers, by start, share of the labels and seed; the headline is first.

    Beside those of STARTS there is "original": end-to-end, with a ReLU on the logits.
    """
    for name in ("label_fraction", "pretraining", "weights", "relu_logits"):
        if parameters.get(name) is not None:
            raise DlopsError(f"Question 2 compares settings of {name} itself; leave it out.")
    first = parameters.pop("seed", None) or 0
    found = {("layerwise", 1.0, first): stack(preset, **parameters, seed=first)}
    for seed in range(first, first + NUMBERS["seeds"]["q2"][check_preset(preset)]):
        for start in STARTS:
            whole = stack(preset, start, **parameters, seed=seed).with_(keep="metrics")
            for share, times in LABELS.items():
                batch_size = whole.schedule.batch_size // times
                member = whole.with_(label_fraction=share, batch_size=batch_size)
                found.setdefault((start, share, seed), member)
        keep = "arrays" if seed == first else "metrics"
        found["original", 1.0, seed] = whole.with_(relu_logits=True, keep=keep)
    return found


def sources(plan: dict[tuple[str, float, int], Experiment]) -> dict[tuple[str, int], Experiment]:
    """The auto-encoders that the ablation's classifiers start from, by start and seed; those of its
    first seed keep their pictures."""
    first = next(iter(plan))[2]
    return {
        (start, seed): member.parent.with_(keep="arrays" if seed == first else "metrics")
        for (start, share, seed), member in plan.items()
        if member.parent and start in STARTS and share == 1
    }


def pretrained(preset: str, **parameters: Any) -> list[Experiment]:
    """What Question 2 asks for: its classifiers, and the auto-encoders that they start from."""
    plan = ablation(preset, **parameters)
    return [*plan.values(), *sources(plan).values()]
