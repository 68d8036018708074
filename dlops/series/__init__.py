"""Which notebooks answer which questions, and with which experiments.

presets.yaml has the numbers, presets.py makes experiments of them; questions.py and sweeps.py say
which experiments a notebook asks for; this file lists the notebooks. Nothing here trains, reads
results or imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlops.experiment import Experiment
from dlops.series import questions, sweeps
from dlops.series.presets import PRESETS
from dlops.settings import DlopsError

Experiments = Callable[..., list[Experiment]]

ASSIGNMENTS = {
    "assignment1": "Assignment 1: ResNet18 and layer-wise pretraining",
    "lab3": "Lab assignment 3: optimizers",
}
# What the original reports and others published: data, never code.
PUBLISHED: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Report:
    """One executed notebook: a question with fixed parameters.

    variant: what distinguishes it among the question's reports, e.g. "adam"; parity: the roll
    numbers that it answers ("odd", "even" or "both"); default: whether it is part of the series
    when no roll number is given; presets: those in which it is part of it.
    """

    question: str
    notebook: str  # under notebooks/
    title: str
    experiments: Experiments
    variant: str = ""
    parity: str = "both"
    parameters: tuple[tuple[str, Any], ...] = ()
    default: bool = True
    presets: tuple[str, ...] = PRESETS

    @property
    def assignment(self) -> str:
        """The assignment's folder name."""
        return self.notebook.split("/")[0]

    @property
    def name(self) -> str:
        """The file name of the report without its ending, e.g. "q1_1_cross_entropy-adam"."""
        stem = self.notebook.split("/")[1].removesuffix(".ipynb")
        return f"{stem}-{self.variant}" if self.variant else stem

    def wanted(self, preset: str, **changes: Any) -> list[Experiment]:
        """The experiments that the notebook asks for."""
        return self.experiments(preset, **{**dict(self.parameters), **changes})


def _question1() -> Iterator[Report]:
    """The three losses and their comparison, with Adam for odd roll numbers and SGD for even."""
    notebooks = (
        ("q1.1", "q1_1_cross_entropy", "1.1: ResNet18 with cross-entropy", questions.plain),
        ("q1.2", "q1_2_triplet_loss", "1.2: ResNet18 with triplet loss", questions.triplet),
        ("q1.3", "q1_3_center_loss", "1.3: ResNet18 with center loss", questions.center),
        ("q1", "q1_comparison", "1: the three losses compared", questions.compared),
    )
    for question, notebook, words, experiments in notebooks:
        for optimizer, title, parity in (("adam", "Adam", "odd"), ("sgd", "SGD", "even")):
            yield Report(
                question,
                f"assignment1/{notebook}.ipynb",
                f"Question {words}, {title}",
                experiments,
                variant=optimizer,
                parity=parity,
                parameters=(("optimizer", optimizer),),
                default=optimizer == "adam" or question == "q1.1",
            )


def _question2() -> Iterator[Report]:
    for name in ("odd", "even"):
        yield Report(
            "q2",
            "assignment1/q2_layerwise_autoencoder.ipynb",
            f"Question 2: a stack pretrained layer by layer, {name} structure",
            questions.pretrained,
            variant=name,
            parity=name,
            parameters=(("sizes", name),),
            default=name == "odd",
        )


def _lab3() -> Iterator[Report]:
    """Each optimizer, then the comparison, on digits or on the roll number's data set.

    Without a roll number it is CIFAR-100, and STL-10 in the preset "original", as published.
    """
    notebooks = {
        f"lab3.{name}": (f"lab3/{name}.ipynb", f"fine-tuning with {title}", study)
        for name, title in sweeps.OPTIMIZERS.items()
        for study in [sweeps.optimizer_study(f"lab3.{name}")]
    }
    notebooks["lab3.comparison"] = (
        "lab3/comparison.ipynb",
        "four optimizers compared",
        sweeps.comparison,
    )
    real = (("stl10", "STL-10", "odd"), ("cifar100", "CIFAR-100", "even"))
    for question, (notebook, words, experiments) in notebooks.items():
        about = f"Lab 3: {words}"
        yield Report(question, notebook, about, experiments, presets=("test", "quick"))
        for data, title, parity in real:
            for presets, first in ((("lite", "full"), "cifar100"), (("original",), "stl10")):
                yield Report(
                    question,
                    notebook,
                    f"{about}, {title}",
                    experiments,
                    variant=data,
                    parity=parity,
                    parameters=(("data", data),),
                    default=data == first,
                    presets=presets,
                )


SERIES: tuple[Report, ...] = (*_question1(), *_question2(), *_lab3())


def ids() -> list[str]:
    """The question ids that `dlops run` takes, in the order of the series."""
    return list(dict.fromkeys(report.question for report in SERIES))


def parity(roll_number: str) -> str:
    """ "odd" or "even", by the last digit of a roll number."""
    if roll_number[-1:] not in tuple("0123456789"):
        raise DlopsError(
            f"Roll number {roll_number!r} must end with a digit, which picks the variant."
        )
    return "odd" if int(roll_number[-1]) % 2 else "even"


def select(
    wanted: list[str] | None = None, roll_number: str | None = None, preset: str = "quick"
) -> list[Report]:
    """The reports of a preset: for question ids or assignments (all if none), and a roll number.

    Raises DlopsError for an unknown id.
    """
    for name in wanted or []:
        if name not in ids() and name not in ASSIGNMENTS:
            known = ", ".join([*ids(), *ASSIGNMENTS])
            raise DlopsError(f"There is no question {name!r}; choose from {known}.")

    def chosen() -> Iterator[Report]:
        for report in SERIES:
            if wanted and report.question not in wanted and report.assignment not in wanted:
                continue
            if preset not in report.presets:
                continue
            if roll_number is None and not report.default:
                continue
            if roll_number is not None and report.parity not in ("both", parity(roll_number)):
                continue
            yield report

    return list(chosen())
