"""ResNet18, losses and layer-wise pretraining from scratch, as a series of notebook reports.

from dlops import Experiment, run

result = run(Experiment.from_preset("q1.1", preset="quick", optimizer="sgd", lr=0.05))
result.history, result.metrics["test_top5"], result.predictions
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dlops.experiment import Experiment
from dlops.series import presets as _presets  # noqa: F401  (gives Experiment its from_preset)
from dlops.settings import DlopsError

__all__ = ["DlopsError", "Experiment", "Result", "Store", "run", "run_all"]


def __getattr__(name: str) -> Any:
    """What imports torch or reads results loads on first use."""
    homes = {"run": "runs", "run_all": "runs", "Result": "store", "Store": "store"}
    if name not in homes:
        raise AttributeError(f"module 'dlops' has no attribute {name!r}")
    return getattr(import_module(f"dlops.{homes[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
