"""Which notebook answers which question, with which parameters and experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from dlops import sweeps
from dlops.experiment import DlopsError, Experiment, Optimizer
from dlops.presets import COMPARISON_SEEDS, PLANE, PRESETS, TRIED, structure

Experiments = Callable[..., list[Experiment]]

ASSIGNMENTS = {
    "assignment1": "Assignment 1: ResNet18 and layer-wise pretraining",
    "lab3": "Lab assignment 3: optimizers",
}


@dataclass(frozen=True)
class Report:
    """One executed notebook: a question with fixed parameters.

    variant: what distinguishes it among the question's reports, e.g. "adam"; parity: the roll
    numbers that it answers ("odd", "even" or "both").
    """

    question: str
    notebook: str  # under notebooks/
    title: str
    experiments: Experiments
    variant: str = ""
    parity: str = "both"
    parameters: tuple[tuple[str, Any], ...] = ()
    default: bool = True  # part of the series when no roll number is given
    presets: tuple[str, ...] = PRESETS  # those in which it is part of the series

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


def single(question: str) -> Experiments:
    """The one experiment of a question."""

    def experiments(preset: str, **parameters: Any) -> list[Experiment]:
        return [Experiment.from_preset(question, preset=preset, **parameters)]

    return experiments


OPTIMIZER_SETTINGS = {"optimizer", *(field.name for field in fields(Optimizer))}


def planar(preset: str, **parameters: Any) -> dict[str, Experiment]:
    """Center loss on an embedding of two units, without (lambda = 0) and with its weight.

    With the preset's own optimizer, whichever the report is about: one pair serves both.
    """
    own = {name: value for name, value in parameters.items() if name not in OPTIMIZER_SETTINGS}
    own = {**PLANE.get(preset, {}), **own, "embedding_dim": 2}
    weighted = Experiment.from_preset("q1.3", preset=preset, **own)
    plain = Experiment.from_preset("q1.3", preset=preset, **{**own, "center_weight": 0})
    return {"λ = 0": plain, f"λ = {weighted.loss.center_weight:g}": weighted}


def with_planar(preset: str, **parameters: Any) -> list[Experiment]:
    """The experiment of Question 1.3 and its illustrations in the plane."""
    return [*single("q1.3")(preset, **parameters), *planar(preset, **parameters).values()]


def tried(preset: str, **parameters: Any) -> list[Experiment]:
    """Question 1.2 with the other settings that were tried; none beside settings of one's own."""
    if parameters.pop("optimizer", "adam") != "adam" or any(
        value is not None for value in parameters.values()
    ):
        return []
    main = Experiment.from_preset("q1.2", preset)
    others = [Experiment.from_preset("q1.2", preset, **own) for own in TRIED.get(preset, ())]
    return [other for other in others if other.id != main.id]


def with_tried(preset: str, **parameters: Any) -> list[Experiment]:
    """The experiment of Question 1.2, and what else was tried."""
    return [*single("q1.2")(preset, **parameters), *tried(preset, **parameters)]


LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy": ("q1.1", {}),
    "center, λ = 0": ("q1.3", {"center_weight": 0}),
    "center loss": ("q1.3", {}),
    "triplet loss": ("q1.2", {}),
}


def by_loss(preset: str, **parameters: Any) -> dict[str, list[Experiment]]:
    """What the comparison compares: for each loss the experiments of the preset's seeds."""
    seed = parameters.pop("seed", None)
    seeds = COMPARISON_SEEDS[check_preset(preset)] if seed is None else (seed,)
    return {
        name: [
            Experiment.from_preset(question, preset=preset, **{**parameters, **own, "seed": seed})
            for seed in seeds
        ]
        for name, (question, own) in LOSSES.items()
    }


def compared(preset: str, **parameters: Any) -> list[Experiment]:
    """The experiments that the comparison cannot do without."""
    groups = by_loss(preset, **parameters).values()
    return list({e.id: e for group in groups for e in group}.values())


STARTS = ("none", "layerwise", "end-to-end")  # what Question 2's stack is fine-tuned from
LABELS = {0.1: 4, 0.3: 2, 1.0: 1}  # shares of the labels; so many times smaller batches
STACK_SEEDS = {"test": 1, "quick": 3, "lite": 3, "original": 3, "full": 5}


def stack(preset: str, start: str = "layerwise", **parameters: Any) -> Experiment:
    """Question 2's classifier, fine-tuned from one of STARTS. sizes may be "odd" or "even"."""
    if isinstance(sizes := parameters.get("sizes"), str):
        parameters["sizes"] = structure(sizes, check_preset(preset))
    how = {"weights": "none"} if start == "none" else {"pretraining": start}
    return Experiment.from_preset("q2", preset=preset, **{**parameters, **how})


def ablation(preset: str, **parameters: Any) -> dict[tuple[str, float, int], Experiment]:
    """Question 2's classifiers, by start, share of the labels and seed; the headline is first.

    Beside those of STARTS there is "original": end-to-end, with a ReLU on the logits.
    """
    for name in ("label_fraction", "pretraining", "weights", "relu_logits"):
        if parameters.get(name) is not None:
            raise DlopsError(f"Question 2 compares settings of {name} itself; leave it out.")
    first = parameters.pop("seed", None) or 0
    found = {("layerwise", 1.0, first): stack(preset, **parameters, seed=first)}
    for seed in range(first, first + STACK_SEEDS[check_preset(preset)]):
        for start in STARTS:
            whole = stack(preset, start, **parameters, seed=seed).with_(keep="metrics")
            for share, times in LABELS.items():
                batch_size = whole.schedule.batch_size // times
                member = whole.with_(label_fraction=share, batch_size=batch_size)
                found.setdefault((start, share, seed), member)
        keep = "arrays" if seed == first else "metrics"
        found["original", 1.0, seed] = whole.with_(relu_logits=True, keep=keep)
    return found


def pretrained(preset: str, **parameters: Any) -> list[Experiment]:
    """What Question 2 asks for: its classifiers, and the auto-encoders that its figures show."""
    found = ablation(preset, **parameters)
    seed = next(iter(found))[2]
    sources = [found[start, 1.0, seed].parent for start in STARTS[1:]]
    return [*found.values(), *(source for source in sources if source)]


def lab3() -> Iterator[Report]:
    """Lab 3: each optimizer, then the comparison, on digits or on the roll number's data set.

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


SERIES: tuple[Report, ...] = (
    Report(
        "q1.1",
        "assignment1/q1_1_cross_entropy.ipynb",
        "Question 1.1: ResNet18 with cross-entropy, Adam",
        single("q1.1"),
        variant="adam",
        parity="odd",
        parameters=(("optimizer", "adam"),),
    ),
    Report(
        "q1.1",
        "assignment1/q1_1_cross_entropy.ipynb",
        "Question 1.1: ResNet18 with cross-entropy, SGD",
        single("q1.1"),
        variant="sgd",
        parity="even",
        parameters=(("optimizer", "sgd"),),
    ),
    Report(
        "q1.2",
        "assignment1/q1_2_triplet_loss.ipynb",
        "Question 1.2: ResNet18 with triplet loss, Adam",
        with_tried,
        variant="adam",
        parity="odd",
        parameters=(("optimizer", "adam"),),
    ),
    Report(
        "q1.2",
        "assignment1/q1_2_triplet_loss.ipynb",
        "Question 1.2: ResNet18 with triplet loss, SGD",
        single("q1.2"),
        variant="sgd",
        parity="even",
        parameters=(("optimizer", "sgd"),),
        default=False,
    ),
    Report(
        "q1.3",
        "assignment1/q1_3_center_loss.ipynb",
        "Question 1.3: ResNet18 with center loss, Adam",
        with_planar,
        variant="adam",
        parity="odd",
        parameters=(("optimizer", "adam"),),
    ),
    Report(
        "q1.3",
        "assignment1/q1_3_center_loss.ipynb",
        "Question 1.3: ResNet18 with center loss, SGD",
        with_planar,
        variant="sgd",
        parity="even",
        parameters=(("optimizer", "sgd"),),
        default=False,
    ),
    Report(
        "q1",
        "assignment1/q1_comparison.ipynb",
        "Question 1: the three losses compared, Adam",
        compared,
        variant="adam",
        parity="odd",
        parameters=(("optimizer", "adam"),),
    ),
    Report(
        "q1",
        "assignment1/q1_comparison.ipynb",
        "Question 1: the three losses compared, SGD",
        compared,
        variant="sgd",
        parity="even",
        parameters=(("optimizer", "sgd"),),
        default=False,
    ),
    *(
        Report(
            "q2",
            "assignment1/q2_layerwise_autoencoder.ipynb",
            f"Question 2: a stack pretrained layer by layer, {name} structure",
            pretrained,
            variant=name,
            parity=name,
            parameters=(("sizes", name),),
            default=name == "odd",
        )
        for name in ("odd", "even")
    ),
    *lab3(),
)


def questions() -> list[str]:
    """The ids that `dlops run` takes, in the order of the series."""
    return list(dict.fromkeys(report.question for report in SERIES))


def check_preset(preset: str) -> str:
    """The preset itself, or a DlopsError that lists the known ones."""
    if preset not in PRESETS:
        raise DlopsError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    return preset


def parity(roll_number: str) -> str:
    """ "odd" or "even", by the last digit of a roll number."""
    if not roll_number or not roll_number[-1].isdigit():
        raise DlopsError(
            f"Roll number {roll_number!r} must end with a digit, which picks the variant."
        )
    return "odd" if int(roll_number[-1]) % 2 else "even"


def select(
    ids: list[str] | None = None, roll_number: str | None = None, preset: str = "quick"
) -> list[Report]:
    """The reports of a preset: for question ids or assignments (all if none), and a roll number.

    Raises DlopsError for an unknown id.
    """
    for name in ids or []:
        if name not in questions() and name not in ASSIGNMENTS:
            known = ", ".join([*questions(), *ASSIGNMENTS])
            raise DlopsError(f"There is no question {name!r}; choose from {known}.")

    def chosen() -> Iterator[Report]:
        for report in SERIES:
            if ids and report.question not in ids and report.assignment not in ids:
                continue
            if preset not in report.presets:
                continue
            if roll_number is None and not report.default:
                continue
            if roll_number is not None and report.parity not in ("both", parity(roll_number)):
                continue
            yield report

    return list(chosen())
