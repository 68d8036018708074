"""Training that cannot go on: how it shows, and which settings are most likely to blame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlops.experiment import Experiment
from dlops.settings import DlopsError
from dlops.store.result import finite

WILD = 1000  # times its first value: a loss that has left for good
SMALL = 0.1  # a first value that is smaller (no triplet is active, say) counts as this
PATIENCE = 3  # epochs in which it may come back


class Diverged(DlopsError):
    """Training that cannot go on: a loss that is not finite, or a collapsed embedding."""


def wild(losses: list[float], first: float | None, last: bool) -> bool:
    """Whether an epoch's loss is far above its first value and has no epoch left to come back."""
    if len(losses) < PATIENCE:
        return False
    recent = losses[-1:] if last else losses[-PATIENCE:]
    return min(recent) > WILD * max(first or 0, SMALL)


def suspects(experiment: Experiment) -> str:
    """What to change of a run that diverged: the settings most likely to blame, worst first."""
    s = experiment.settings
    found = [f"a learning rate below {s['lr']:g}"]
    if s["loss"] == "center":
        found.insert(s["center_weight"] < 1, f"a center_weight below {s['center_weight']:g}")
    if s["loss"] == "triplet" and not s["normalize"]:
        found.append("normalize=True")
    if s.get("momentum", 0) >= 0.9:
        found.append(f"a momentum below {s['momentum']:g}")
    if s["weight_decay"] * s["lr"] > 0.1:
        found.insert(0, f"a weight_decay below {s['weight_decay']:g}")
    if s.get("centered"):
        found.append("centered=False")
    elif s["optimizer"] != "sgd":
        found.append(f"an eps above {experiment.eps:g}")
    if not s["warmup"] and s["model"] != "autoencoder":
        found.append("a warmup")
    return ", ".join(found[:-1]) + f" or {found[-1]}"


def check_finite(experiment: Experiment, measures: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise Diverged unless everything that will be stored is finite."""
    names = [n for n, x in arrays.items() if x.dtype.kind == "f" and not np.isfinite(x).all()]
    if names or not finite(measures):
        raise Diverged(
            f"At the end of training {', '.join(names) or 'a measure'} was not finite: training"
            f" diverged. Try {suspects(experiment)}."
        )
