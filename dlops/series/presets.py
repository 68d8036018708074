"""What a question trains in a preset: the numbers of presets.yaml, as experiments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from dlops.experiment import Experiment
from dlops.settings import DATASETS, Data, DlopsError

PRESETS = ("test", "quick", "lite", "original", "full")
NUMBERS: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")
)
USUAL = {"model": "resnet18", "loss": "cross-entropy", "optimizer": "adam", "weights": "none"}


def check_preset(preset: str) -> str:
    """The preset itself, or a DlopsError that lists the known ones."""
    if preset not in PRESETS:
        raise DlopsError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    return preset


def structure(name: str, preset: str) -> tuple[int, ...]:
    """The units of Question 2's hidden layers: name is "odd" or "even"."""
    small = check_preset(preset) in ("test", "quick")
    structures = NUMBERS["structures"]["eighth" if small else "assigned"]
    if name not in structures:
        raise DlopsError(f"sizes is {name!r}, but must be odd, even, or a list of whole numbers.")
    return tuple(structures[name])


def defaults(question: str, preset: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `question` in `preset`, given the loss and optimizer that `flat` may name."""
    if question not in NUMBERS["questions"]:
        known = ", ".join(NUMBERS["questions"])
        raise DlopsError(f"There is no question {question!r}; known are {known}.")
    own = dict(NUMBERS["questions"][question])
    family = NUMBERS["families"][own.pop("family")]
    values = {**family[check_preset(preset)], **own}
    special = {name: values.pop(name) for name in list(values) if isinstance(values[name], dict)}
    for part, default in USUAL.items():
        chosen = flat.get(part, values.get(part, default))
        values.update(special.get(str(chosen), {}))
    loss, optimizer = (flat.get(x, values.get(x, USUAL[x])) for x in ("loss", "optimizer"))
    values |= special.get(f"{loss} {optimizer}", {})
    if isinstance(sizes := values.get("sizes"), str):
        values["sizes"] = structure(sizes, preset)
    return values


def from_preset(question: str, preset: str = "quick", **flat: Any) -> Experiment:
    """The experiment of a question ("q1.1", "lab3.adam", ...) in a preset, with changes.

    A setting of None means the preset's value; `sizes` may be "odd" or "even".
    `weights="run:q1.1"` starts from that question's run in the same preset.
    """
    flat = {name: value for name, value in flat.items() if value is not None}
    if isinstance(sizes := flat.get("sizes"), str):
        flat["sizes"] = structure(sizes, preset)
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
            base |= {"stem": parent.model.stem, "image_size": None if size == own else size}
    return Experiment.from_flat(flat, defaults=base, parent=parent)


Experiment.from_preset = staticmethod(from_preset)


def source(name: str, preset: str, flat: Mapping[str, Any]) -> tuple[Experiment, dict[str, Any]]:
    """The experiment that `weights="run:NAME"` starts from, and what of `flat` is left.

    An auto-encoder sees the same images, has the same units and the same seed as the stack that
    starts from it, so it shares those settings; how it is trained is its own.
    """
    rest = {key: value for key, value in flat.items() if key != "weights"}
    shared: dict[str, Any] = {}
    if NUMBERS["questions"].get(name, {}).get("model") == "autoencoder":
        own = {"pretraining", "tied", "noise", "unlabelled"}
        images = {field.name for field in fields(Data)} - {"name", "label_fraction", "augment"}
        both = {"data", "sizes", "activation", "seed", *images} - own
        shared = {key: value for key, value in rest.items() if key in own | both}
        rest = {key: value for key, value in rest.items() if key not in own}
    return from_preset(name, preset=preset, **shared), rest
