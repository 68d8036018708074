"""Which notebooks answer which questions, and with which experiments.

presets.yaml has the numbers, presets.py makes experiments of them; questions.py and sweeps.py say
which experiments a notebook asks for; this file lists the notebooks. Nothing here trains, reads
results or imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dlops.experiment import Experiment
from dlops.series import questions, sweeps
from dlops.series.presets import PRESETS, check_preset
from dlops.settings import DATASETS, DlopsError

Experiments = Callable[..., list[Experiment]]

ASSIGNMENTS = {
    "assignment1": "Assignment 1: ResNet18 and layer-wise pretraining",
    "lab3": "Lab assignment 3: optimizers",
    "speed": "Speed: beside the script one would write otherwise",
}
# What the original reports and others published: data, never code.
PUBLISHED: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
)
OPTIMIZERS = {"sgd": "SGD", **sweeps.OPTIMIZERS}


@dataclass(frozen=True)
class Report:
    """One notebook with its parameters; what names it is derived from them.

    words: its title but for the variant; varies: the parameter that tells the question's reports
    apart; parity: the roll numbers that it answers ("odd", "even" or "both"); default: whether it
    is part of the series when no roll number is given; presets: those in which it is part of it.
    """

    question: str
    notebook: str  # under notebooks/
    words: str
    experiments: Experiments
    varies: str = ""
    parity: str = "both"
    parameters: tuple[tuple[str, Any], ...] = ()
    default: bool = True
    presets: tuple[str, ...] = PRESETS

    @property
    def assignment(self) -> str:
        return self.notebook.split("/")[0]

    @property
    def variant(self) -> str:
        """The value of the parameter that varies, in a form for file names; "" without one."""
        value = dict(self.parameters).get(self.varies, "")
        return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    @property
    def changes(self) -> list[str]:
        """The other parameters, as "lr 0.05"."""
        rest = (pair for pair in sorted(self.parameters) if pair[0] != self.varies)
        return [f"{name} {value}" for name, value in rest]

    @property
    def name(self) -> str:
        """The file name of the report without its ending, e.g. "q1_1_cross_entropy-adam"."""
        parts = [self.notebook.split("/")[1].removesuffix(".ipynb"), self.variant, *self.changes]
        return "-".join(re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts if part)

    @property
    def title(self) -> str:
        """E.g. "Question 1.1: ResNet18 with cross-entropy, Adam, lr 0.05"."""
        variant = self.variant
        if self.varies == "optimizer":
            variant = OPTIMIZERS.get(variant, variant)
        elif self.varies == "data":
            variant = DATASETS[variant].title if variant in DATASETS else variant
        elif self.varies == "sizes":
            variant = f"{variant} structure" if variant in ("odd", "even") else f"units {variant}"
        return ", ".join(filter(None, [self.words, variant, *self.changes]))

    def wanted(self, preset: str) -> list[Experiment]:
        """The experiments that the notebook asks for."""
        return self.experiments(preset, **dict(self.parameters))


def _question1() -> Iterator[Report]:
    """The three losses and their comparison, with Adam for odd roll numbers and SGD for even."""
    notebooks = (
        ("q1.1", "q1_1_cross_entropy", "1.1: ResNet18 with cross-entropy", questions.plain),
        ("q1.2", "q1_2_triplet_loss", "1.2: ResNet18 with triplet loss", questions.triplet),
        ("q1.3", "q1_3_center_loss", "1.3: ResNet18 with center loss", questions.center),
        ("q1", "q1_comparison", "1: the three losses compared", questions.compared),
    )
    for question, notebook, words, experiments in notebooks:
        for optimizer, parity in (("adam", "odd"), ("sgd", "even")):
            yield Report(
                question,
                f"assignment1/{notebook}.ipynb",
                f"Question {words}",
                experiments,
                varies="optimizer",
                parity=parity,
                parameters=(("optimizer", optimizer),),
                default=optimizer == "adam" or question == "q1.1",
            )


def _question2() -> Iterator[Report]:
    for name in ("odd", "even"):
        yield Report(
            "q2",
            "assignment1/q2_layerwise_autoencoder.ipynb",
            "Question 2: a stack pretrained layer by layer",
            questions.pretrained,
            varies="sizes",
            parity=name,
            parameters=(("sizes", name),),
            default=name == "odd",
        )


def _lab3() -> Iterator[Report]:
    """Each optimizer, then the comparison, on digits or on the roll number's data set.

    Without a roll number it is CIFAR-100, and STL-10 in the preset "original", as published.
    """
    notebooks = {
        name: (f"fine-tuning with {title}", sweeps.optimizer_study(f"lab3.{name}"))
        for name, title in sweeps.OPTIMIZERS.items()
    }
    notebooks["comparison"] = ("four optimizers compared", sweeps.comparison)
    for name, (words, experiments) in notebooks.items():
        place = f"lab3.{name}", f"lab3/{name}.ipynb"
        one = Report(*place, f"Lab 3: {words}", experiments, varies="data")
        yield replace(one, presets=("test", "quick"))
        for data, parity in (("stl10", "odd"), ("cifar100", "even")):
            own = replace(one, parity=parity, parameters=(("data", data),))
            yield replace(own, default=data == "cifar100", presets=("lite", "full"))
            yield replace(own, default=data == "stl10", presets=("original",))


# Only by its name: its figures are stored by `python -m dlops.bench`, which takes long.
SPEED = Report(
    "speed",
    "speed/speed.ipynb",
    "Time to accuracy, beside an ordinary script",
    lambda preset, **_: [],
    default=False,
    presets=("lite", "full"),
)
SERIES: tuple[Report, ...] = (*_question1(), *_question2(), *_lab3(), SPEED)


def parity(roll_number: str) -> str:
    """ "odd" or "even", by the last digit of a roll number."""
    if roll_number[-1:] not in tuple("0123456789"):
        raise DlopsError(
            f"Roll number {roll_number!r} must end with a digit: it picks the variant."
        )
    return "odd" if int(roll_number[-1]) % 2 else "even"


def select(
    wanted: list[str] | None = None,
    roll_number: str | None = None,
    preset: str = "quick",
    changes: Mapping[str, Any] | None = None,
) -> list[Report]:
    """The reports of a preset, for question ids or assignments (all if none), and a roll number.

    changes: parameters of all of them; reports that they make equal are one. Raises DlopsError for
    an unknown id or preset, and for a change that contradicts the roll number's variant.
    """
    check_preset(preset)
    known = dict.fromkeys([*(report.question for report in SERIES), *ASSIGNMENTS])
    for name in wanted or []:
        if name not in known:
            raise DlopsError(f"There is no question {name!r}; choose from {', '.join(known)}.")
    own_parity = parity(roll_number) if roll_number is not None else ""
    changes = changes or {}
    chosen: dict[tuple[str, str], Report] = {}
    for report in SERIES:
        named = report.question in (wanted or ()) or report.assignment in (wanted or ())
        if preset not in report.presets or not (named or (not wanted and report is not SPEED)):
            continue
        own = changes.get(report.varies, report.variant)
        if not own_parity and not (report.default or report is SPEED or report.varies in changes):
            continue
        if own_parity and report.parity not in ("both", own_parity):
            continue
        if own_parity and own != report.variant:
            raise DlopsError(
                f"{report.varies}={own} contradicts roll number {roll_number}, whose variant of"
                f" {report.question} is {report.variant}: leave one of the two out."
            )
        report = replace(report, parameters=tuple({**dict(report.parameters), **changes}.items()))
        chosen[report.question, report.name] = report
    return list(chosen.values())
