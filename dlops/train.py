"""The visible training loop: epochs, evaluation, checkpoints."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlops import machine
from dlops.accelerate import accelerate
from dlops.build import Network, Objective, Probe, make_optimizer, norm
from dlops.data import Batches, DataSet, Split, class_batches
from dlops.data.weights import matching
from dlops.divergence import WILD, Diverged, suspects, wild
from dlops.evaluate import BATCH, Evaluation, test_results, top
from dlops.experiment import Experiment
from dlops.store.checkpoint import Checkpoint, fitting
from dlops.store.result import finite

Progress = Callable[[dict[str, Any]], None]

SAMPLE = 2000  # training images that every epoch's accuracy is measured on
KEPT = "history", "epoch", "step", "first_spread", "first_loss", "probed", "seconds"


@dataclass
class Outcome:
    """What training gives: for the store, but for its provenance (`about` is part of that)."""

    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)


def lr_factor(experiment: Experiment, done: float) -> float:
    """What the learning rate is multiplied by when `done` (0 to 1) of the steps are done."""
    warmup = experiment.schedule.warmup
    if done < warmup:
        return 0.01 + 0.99 * done / warmup
    if experiment.schedule.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def mixup(seed: int, epoch: int, step: int, alpha: float, size: int) -> tuple[float, np.ndarray]:
    """The share and the permutation of Zhang et al. 2018, from (seed, epoch, step) alone."""
    rng = np.random.default_rng((seed, epoch, step, 7))
    return float(rng.beta(alpha, alpha)), rng.permutation(size)


class Training:
    """Everything that one training run needs, and its state: what a checkpoint holds."""

    def __init__(self, experiment: Experiment, data: DataSet, device: torch.device) -> None:
        self.experiment, self.data, self.device = experiment, data, device
        self.precision = machine.precision(experiment.schedule.precision, device)
        schedule, loss = experiment.schedule, experiment.loss
        torch.manual_seed(experiment.seed)
        self.network = Network(experiment, data.train.shape[1:]).to(device)
        self.network = self.network.to(memory_format=torch.channels_last)
        self.accelerated = self.precision == "float32" and accelerate(self.network)
        self.objective = Objective(experiment, self.network.head.in_features, device)
        self.averaged: Network | None = None

        stack = experiment.model.name == "stacked"
        self.statistics: dict[str, Any] = {
            "mean": (0.0,) * len(data.mean) if stack else data.mean,
            "std": (1.0,) * len(data.std) if stack else data.std,
            "device": device,
            "seed": experiment.seed,
        }
        groups = loss.classes_per_batch, loss.images_per_class
        self.train = Batches(
            data.train,
            batch_size=schedule.batch_size,
            augment=experiment.data.augment,
            indices=data.labelled if experiment.data.label_fraction < 1 else None,
            groups=groups if loss.name == "triplet" else None,
            **self.statistics,
        )
        rng = np.random.default_rng((experiment.seed, 11))
        sample = np.sort(rng.permutation(data.labelled)[:SAMPLE])
        self.sample = self.fixed(data.train, sample)
        self.val = self.fixed(data.val)
        self.test = self.fixed(data.test)
        self.groups = {}
        if loss.name == "triplet":  # what the loss is evaluated on, the same after every epoch
            for name, part in (("train", self.sample), ("val", self.val)):
                drawn = class_batches(part.labels.cpu().numpy(), *groups, rng)
                self.groups[name] = torch.from_numpy(drawn).to(device)
        self.history: list[dict[str, Any]] = []
        self.epoch = self.step = 0
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)
        self.first_spread: float | None = None
        self.first_loss: float | None = None
        self.bad_step = torch.full((), -1, device=device)  # the first whose loss is not finite
        self.seconds = 0.0

    def fixed(self, split: Split, indices: np.ndarray | None = None) -> Batches:
        """Batches for evaluation: in order, un-augmented."""
        chosen = None if indices is None else torch.from_numpy(indices)
        return Batches(split, batch_size=BATCH, indices=chosen, **self.statistics)

    def autocast(self) -> torch.autocast:
        """16 bits for the network, where the precision says so; losses stay in 32."""
        wanted = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def evaluation(self, batches: Batches) -> Evaluation:
        """Of the averaged weights, if there are any."""
        loss = self.experiment.loss
        normalize = loss.name == "triplet" and loss.normalize
        return Evaluation(self.averaged or self.network, batches, self.autocast(), normalize)

    def start_from(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take over the body of another network; the classifier stays new."""
        state = self.network.state_dict()
        ours = {name: own for name, own in state.items() if not self.network.is_new(name)}
        for name, value in matching(weights, ours, source).items():
            ours[name].copy_(value)

    def begin(self) -> None:
        """Make the optimizer and, if asked for, the averaged weights."""
        self.optimizer = make_optimizer(self.experiment, self.network)
        tuned = self.experiment.model.weights != "none" and self.network.head_name == "fc"
        self.probe = Probe(self.network, self.optimizer) if tuned else None
        self.probed: dict[str, float] = {}
        if self.experiment.schedule.ema:
            self.averaged = copy.deepcopy(self.network).requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        center = self.objective.center.state_dict() if self.objective.name == "center" else None
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "center": center,
            "sums": self.sums,
            **{name: getattr(self, name) for name in KEPT},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state. Raises Misfit for one of another kind of run."""
        with fitting():
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.averaged:
                self.averaged.load_state_dict(state["averaged"])
            if self.objective.name == "center":
                self.objective.center.load_state_dict(state["center"])
            for name in KEPT:
                setattr(self, name, state[name])
            self.sums = state["sums"].to(self.device)
        if self.step:
            self.objective.at(self.done(self.step - 1))

    def done(self, step: int) -> float:
        """The share of all steps that is done before this one of the current epoch."""
        steps = len(self.train)
        return (self.epoch * steps + step) / (self.experiment.schedule.epochs * steps)

    def check(self) -> None:
        """Raise Diverged if a loss of this epoch was not finite. Waits for the device."""
        if (step := int(self.bad_step)) >= 0:
            raise diverged(self, f"The loss was not finite in epoch {self.epoch + 1}, step {step}")


def train_epoch(run: Training, interrupt: threading.Event, progress: Progress) -> bool:
    """One epoch over the training batches, from run.step; False if it was interrupted."""
    experiment, network, optimizer = run.experiment, run.network, run.optimizer
    schedule, steps = experiment.schedule, len(run.train)
    start = last = time.perf_counter()
    first = run.step
    for step, (images, labels) in enumerate(run.train.epoch(run.epoch)):
        if step < first:
            continue
        done = run.done(step)
        for group in optimizer.param_groups:
            group["lr"] = experiment.optimizer.lr * group["scale"] * lr_factor(experiment, done)
        run.objective.at(done)
        drawn = (experiment.seed * 100_003 + run.epoch) * 1_000_003 + step
        torch.manual_seed(drawn % 2**63)  # dropout's
        if schedule.mix:
            share, order = mixup(experiment.seed, run.epoch, step, schedule.mix, len(images))
            others = torch.from_numpy(order).to(run.device)
            images = share * images + (1 - share) * images[others]
        with run.autocast():
            embeddings, logits = network(images)
        loss = run.objective(embeddings, logits, labels)
        if schedule.mix:
            mixed = run.objective(embeddings, logits, labels[others])
            loss = share * loss + (1 - share) * mixed

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if run.probe and step == steps - 1:
            run.probed = run.probe.step()
        else:
            optimizer.step()
        logged = run.objective.after_step(embeddings.detach(), labels)

        if run.averaged:
            average(run.averaged, network, schedule.ema, run.epoch * steps + step)
        run.bad_step.masked_fill_(~loss.detach().isfinite() & (run.bad_step < 0), step + 1)
        run.sums[0] += loss.detach() * len(labels)
        run.sums[1] += len(labels)
        if logged is not None:
            run.sums[2:5] += logged[:3] * len(labels)
            run.sums[5] = torch.maximum(run.sums[5], logged[3].double())
            if run.first_spread is None:
                run.first_spread = logged[3].item()
        if run.first_loss is None:
            run.first_loss = loss.item()
        run.step = step + 1
        if interrupt.is_set():
            run.seconds += time.perf_counter() - start
            return False
        if time.perf_counter() - last > 0.2:
            run.check()
            last = time.perf_counter()
            rate = (run.step - first) * len(labels) / (last - start)
            progress({"epoch": run.epoch, "step": run.step, "steps": steps, "rate": rate})
    return True


def average(averaged: Network, network: Network, decay: float, step: int) -> None:
    """Move the averaged weights and statistics towards the network's, slowly once it is warm."""
    decay = min(decay, (1 + step) / (10 + step))
    ours = [x for x in averaged.state_dict().values() if x.is_floating_point()]
    theirs = [x for x in network.state_dict().values() if x.is_floating_point()]
    torch._foreach_lerp_(ours, theirs, 1 - decay)


def evaluate(run: Training) -> tuple[dict[str, float], Evaluation]:
    """Loss, top-1 and top-5 on the fixed sample of training images and on validation."""
    sample, val = run.evaluation(run.sample), run.evaluation(run.val)
    triplet = run.experiment.loss.name == "triplet"
    means = sample.class_means(run.experiment.num_classes) if triplet else None
    row: dict[str, float] = {}
    for name, part in (("train", sample), ("val", val)):
        own = triplet and part is sample  # whose class means must not know the point
        scores = part.held_out_scores(run.experiment.num_classes) if own else part.scores(means)
        with torch.no_grad():
            if triplet:  # over P x K groups of the split, the same after every epoch
                groups = run.groups[name]
                losses = [run.objective.triplet(part.embeddings[i], part.labels[i]) for i in groups]
                if losses:  # none where no class of the split has a second image
                    row[f"{name}_loss"] = torch.stack(losses).mean().item()
            else:
                loss = run.objective(part.embeddings, part.logits, part.labels)
                row[f"{name}_loss"] = loss.item()
        row[f"{name}_top1"] = top(scores, part.labels, 1)
        row[f"{name}_top5"] = top(scores, part.labels, 5)
    return row, sample


def diverged(run: Training, what: str) -> Diverged:
    """The error that says what happened, at which rate, and what to try."""
    rate = run.optimizer.param_groups[0]["lr"]
    return Diverged(
        f"{what} (learning rate {rate:.3g}): training diverged. Try {suspects(run.experiment)}."
    )


def stop_if_lost(run: Training, row: dict[str, Any], spread: float) -> None:
    """Raise Diverged after an epoch that leaves no hope; spread: its largest mean distance."""
    whole = [row, norm([p.detach() for p in run.network.parameters()])]
    if not finite(whole):
        raise diverged(run, f"Not all weights and measures were finite after epoch {run.epoch + 1}")
    last = run.epoch + 1 == run.experiment.schedule.epochs
    rows = *run.history, row
    # Running statistics that lag behind inflate the evaluated loss a thousandfold, and it returns.
    losses = [max(r["batch_loss"], r["train_loss"] / WILD) for r in rows]
    if wild(losses, run.first_loss, last):
        now = f"{row['train_loss']:.3g} after epoch {run.epoch + 1}"
        words = f"The loss has left for good: {now}, and {run.first_loss:.3g} in the first step"
        raise diverged(run, words)
    if run.first_spread is not None and spread < 0.01 * run.first_spread:
        raise Diverged(
            f"The embedding collapsed: through all of epoch {run.epoch + 1} the mean distance"
            f" between images stayed below 1 % of the first step's {run.first_spread:.3g}. Try a"
            f" learning rate below {run.experiment.optimizer.lr:g}, mining='semihard', or"
            " margin='soft'."
        )


def end_epoch(run: Training, started: float) -> dict[str, Any]:
    """Evaluate the epoch, and append its row to the history. Raises Diverged."""
    batch_loss, seen, active, positive, negative, spread = run.sums.tolist()
    train_seconds = time.perf_counter() - started
    measured, sample = evaluate(run)
    row: dict[str, Any] = {"epoch": run.epoch + 1, **measured, "batch_loss": batch_loss / seen}
    row["lr"] = run.optimizer.param_groups[0]["lr"]
    if run.objective.name == "triplet":
        row |= {"active": active / seen, "d_ap": positive / seen, "d_an": negative / seen}
    if run.objective.name == "center":
        own = run.objective.center.centers[sample.labels]
        row["center_distance"] = (sample.embeddings - own).norm(dim=1).mean().item()
    row |= run.probed
    stop_if_lost(run, row, spread)
    row["seconds"] = time.perf_counter() - started
    row["images_per_second"] = seen / max(train_seconds, 1e-9)
    run.history.append(row)
    run.epoch, run.step = run.epoch + 1, 0
    run.sums.zero_()
    run.seconds += row["seconds"]
    return row


def train_classifier(
    run: Training, checkpoint: Checkpoint, interrupt: threading.Event, progress: Progress
) -> None:
    """The training loop: epochs, evaluation, checkpoints."""
    while run.epoch < run.experiment.schedule.epochs:
        started = time.perf_counter()
        finished = train_epoch(run, interrupt, progress)
        run.check()
        if finished:
            row = end_epoch(run, started)
            progress({"epoch": run.epoch, "row": row})
        if interrupt.is_set() or checkpoint.due:
            checkpoint.save(run.state())
        if interrupt.is_set():
            raise KeyboardInterrupt


def finish(run: Training, arrays: dict[str, np.ndarray]) -> Outcome:
    """The test set, touched once: its metrics, and what the result keeps beside `arrays`."""
    triplet = run.experiment.loss.name == "triplet"
    train = run.evaluation(run.fixed(run.data.train)) if triplet else None
    keep = run.experiment.keep != "metrics"
    classes, test = run.experiment.num_classes, run.evaluation(run.test)
    metrics, kept = test_results(test, train, classes, keep)
    row = run.history[-1]
    metrics |= {name: row[name] for name in row if name.startswith(("train_", "val_"))}
    metrics["parameters"] = sum(p.numel() for p in run.network.parameters())
    network = run.averaged or run.network
    weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    about = {"precision": run.precision, "accelerated": run.accelerated}
    return Outcome(metrics, run.history, {**kept, **arrays}, weights, run.seconds, about)
