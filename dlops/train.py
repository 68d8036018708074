"""`run(experiment)` returns its result from the store, or trains it: one visible loop."""

from __future__ import annotations

import copy
import math
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlops import memory
from dlops import metrics as measure
from dlops.autoencoder import StackedClassifier
from dlops.data import Batches, DataSet, Split, class_batches, load
from dlops.experiment import DATASETS, KEEP, DlopsError, Experiment
from dlops.losses import CenterLoss, CrossEntropy, TripletHard, pairwise_distance
from dlops.resnet import ResNet18
from dlops.store import Result, Store, project_root

Progress = Callable[[dict[str, Any]], None]

SAMPLE = 2000  # training images that every epoch's accuracy is measured on, and t-SNE's points
EMBEDDINGS = 500  # test images whose embeddings a result keeps
EVALUATION_BATCH = 512


class Diverged(DlopsError):
    """Training that cannot go on: a loss that is not finite, or a collapsed embedding."""


def choose_device(name: str | None = None) -> torch.device:
    """The device to train on: `name`, else $DLOPS_DEVICE, else CUDA if there, else the CPU."""
    name = name or os.environ.get("DLOPS_DEVICE") or None
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    kind = name.split(":")[0]
    if kind not in available:
        raise DlopsError(f"There is no device {name!r}; choose cpu, cuda or mps.")
    if not available[kind]:
        raise DlopsError(
            f"Device {name} was asked for, but torch {torch.__version__} sees none here;"
            " leave the device out to train on the CPU, or install a driver and a torch that fit."
        )
    return torch.device(name)


class Network(nn.Module):
    """A body, and for ResNet18 an optional linear embedding on its 512 features.

    images [B, C, H, W] -> (embeddings [B, D], logits [B, num_classes]).
    """

    def __init__(self, experiment: Experiment, image_shape: Sequence[int]) -> None:
        super().__init__()
        model, classes = experiment.model, experiment.num_classes
        self.embed: nn.Module | None = None
        self.head_name = "fc" if model.name == "resnet18" else "head"
        if model.name == "resnet18":
            self.body: Any = ResNet18(classes, model.stem, image_shape[0])
            if model.embedding_dim:
                self.embed = nn.Linear(512, model.embedding_dim)
                self.body.fc = nn.Linear(model.embedding_dim, classes)
        else:
            self.body = StackedClassifier(
                model.sizes,
                classes,
                input_size=math.prod(image_shape),
                activation=model.activation,
                dropout=model.dropout,
                relu_logits=model.relu_logits,
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.body.features(images)
        if self.embed is not None:
            embeddings = self.embed(embeddings)
        return embeddings, self.body.classify(embeddings)

    @property
    def head(self) -> nn.Linear:
        """The layer that makes logits."""
        return getattr(self.body, self.head_name)

    def is_new(self, name: str) -> bool:
        """Whether a parameter is not taken over from another run's weights."""
        return name.startswith(("embed.", f"body.{self.head_name}."))


class Objective:
    """The loss of an experiment on (embeddings, logits, labels), and what of it is logged."""

    def __init__(self, experiment: Experiment, dim: int, device: torch.device) -> None:
        loss = experiment.loss
        self.name = loss.name
        self.cross_entropy = CrossEntropy(loss.label_smoothing)
        if loss.name == "triplet":
            self.triplet = TripletHard(loss.margin, loss.distance, loss.mining, loss.normalize)
        if loss.name == "center":
            self.weight = loss.center_weight
            self.center = CenterLoss(experiment.num_classes, dim, loss.center_alpha).to(device)

    def __call__(self, embeddings: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if self.name == "triplet":
            return self.triplet(embeddings, labels)
        loss = self.cross_entropy(logits, labels)
        if self.name == "center":
            loss = loss + self.weight * self.center(embeddings, labels)
        return loss

    @torch.no_grad()
    def after_step(self, embeddings: Tensor, labels: Tensor) -> Tensor | None:
        """Update the centers; for triplets return (active share, d_ap, d_an, mean distance)."""
        if self.name == "center":
            self.center.update(embeddings, labels)
        if self.name != "triplet":
            return None
        positive, negative, valid = self.triplet.mine(embeddings, labels)
        margin = 0.0 if isinstance(self.triplet.margin, str) else self.triplet.margin
        active = (positive - negative + margin > 0).float()
        count = valid.sum().clamp(min=1)
        means = [torch.where(valid, x, 0).sum() / count for x in (active, positive, negative)]
        x = nn.functional.normalize(embeddings.float()) if self.triplet.normalize else embeddings
        return torch.stack([*means, pairwise_distance(x.float()).mean()])


def make_optimizer(experiment: Experiment, network: Network) -> torch.optim.Optimizer:
    """torch's optimizer with the experiment's attributes; the body's rate may be scaled."""
    o, model = experiment.optimizer, experiment.model
    head = [p for name, p in network.named_parameters() if network.is_new(name)]
    body = [p for name, p in network.named_parameters() if not network.is_new(name)]
    groups: list[dict[str, Any]] = [{"params": head, "scale": 1.0}]
    if model.tune == "head":
        for parameter in body:
            parameter.requires_grad_(False)
    else:
        groups.append({"params": body, "scale": model.body_lr})
    attributes: dict[str, Any] = {"lr": o.lr, "weight_decay": o.weight_decay}
    if o.name == "sgd":
        attributes |= {"momentum": o.momentum, "nesterov": o.nesterov and o.momentum > 0}
        return torch.optim.SGD(groups, fused=True, **attributes)
    attributes["eps"] = experiment.eps
    if o.name == "adam":
        attributes |= {"betas": (o.beta1, o.beta2), "amsgrad": o.amsgrad, "fused": True}
        return (torch.optim.AdamW if o.decoupled else torch.optim.Adam)(groups, **attributes)
    if o.name == "adagrad":
        attributes |= {"lr_decay": o.lr_decay}
        attributes |= {"initial_accumulator_value": o.initial_accumulator}
        fused = groups[0]["params"][0].device.type == "cpu"  # on a GPU only the newest torch has it
        return torch.optim.Adagrad(groups, fused=fused, **attributes)
    if o.name == "adadelta":
        return torch.optim.Adadelta(groups, rho=o.rho, **attributes)
    attributes |= {"alpha": o.alpha, "momentum": o.momentum, "centered": o.centered}
    return torch.optim.RMSprop(groups, **attributes)


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


class Evaluation:
    """Embeddings, logits and labels of one split's images, un-augmented, in eval mode."""

    def __init__(self, run: Run, batches: Batches) -> None:
        network = run.averaged or run.network
        network.eval()
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for images, labels in batches.ordered(EVALUATION_BATCH):
                with run.autocast():
                    embeddings, logits = network(images)
                parts.append((embeddings.float(), logits.float(), labels))
        network.train()
        self.embeddings, self.logits, self.labels = (torch.cat(x) for x in zip(*parts))
        self.normalize = run.experiment.loss.name == "triplet" and run.experiment.loss.normalize

    @property
    def points(self) -> Tensor:
        """Embeddings as the loss sees them: on the unit sphere if it normalises."""
        return nn.functional.normalize(self.embeddings) if self.normalize else self.embeddings

    def class_means(self, num_classes: int) -> Tensor:
        """[C, D] means of the points of each class; far away for a class without images."""
        sums = torch.zeros(num_classes, self.points.shape[1], device=self.points.device)
        sums.index_add_(0, self.labels, self.points)
        counts = torch.bincount(self.labels, minlength=num_classes)[:, None]
        return torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf)

    def scores(self, means: Tensor | None) -> Tensor:
        """[N, C]: the logits, or minus the distance to each class mean."""
        if means is None:
            return self.logits
        exact = "donot_use_mm_for_euclid_dist"
        return -torch.cdist(self.points, means, compute_mode=exact).nan_to_num(nan=torch.inf)

    def held_out_scores(self, num_classes: int) -> Tensor:
        """[N, C]: minus the distance to each class mean; its own is made without the point."""
        means, own = self.class_means(num_classes), self.labels[:, None]
        count = torch.bincount(self.labels, minlength=num_classes)[own]
        others = (count * means[self.labels] - self.points) / (count - 1).clamp(min=1)
        distance = (self.points - others).norm(dim=1, keepdim=True)
        return self.scores(means).scatter(1, own, -torch.where(count > 1, distance, torch.inf))


def top(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of labels among the k best scores."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).double().mean().item()


class Probe:
    """What an optimizer does to each stage of a network, at the last step of an epoch.

    For each stage: the gradient's norm, the root mean square of the optimizer's second moment,
    and the effective step, the norm of the weights' change relative to their own.
    """

    MOMENTS = ("exp_avg_sq", "square_avg", "sum")  # Adam, RMSprop and Adadelta, Adagrad

    def __init__(self, network: Network, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.stages: dict[str, list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            stage = name.removeprefix("body.").split(".")[0]
            stage = {"conv1": "stem", "bn1": "stem"}.get(stage, stage)
            self.stages.setdefault(stage, []).append(parameter)

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Take the optimizer's step, and measure it."""
        before = {name: [p.detach().clone() for p in ps] for name, ps in self.stages.items()}
        self.optimizer.step()
        row: dict[str, float] = {}
        for name, parameters in self.stages.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if not gradients:
                continue
            change = torch._foreach_sub([p.detach() for p in parameters], before[name])
            row[f"gradient_{name}"] = norm(gradients)
            row[f"step_{name}"] = norm(change) / max(norm(before[name]), 1e-12)
            states = [self.optimizer.state.get(p, {}) for p in parameters]
            moments = [s[key] for s in states for key in self.MOMENTS if key in s]
            if moments:
                total = sum(m.double().sum().item() for m in moments)
                row[f"moment_{name}"] = math.sqrt(total / sum(m.numel() for m in moments))
        return row


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all values together."""
    return torch.stack(torch._foreach_norm(list(tensors))).norm().item()


class Run:
    """Everything that one training run needs, and its state: what a checkpoint holds."""

    def __init__(self, experiment: Experiment, data: DataSet, device: torch.device) -> None:
        self.experiment, self.data, self.device = experiment, data, device
        schedule, loss = experiment.schedule, experiment.loss
        torch.manual_seed(experiment.seed)
        self.network = Network(experiment, data.train.shape[1:]).to(device)
        self.network = self.network.to(memory_format=torch.channels_last)
        self.objective = Objective(experiment, self.network.head.in_features, device)
        self.averaged: Network | None = None

        stack = experiment.model.name == "stacked"
        self.statistics: dict[str, Any] = {
            "mean": (0.0,) * len(data.mean) if stack else data.mean,
            "std": (1.0,) * len(data.std) if stack else data.std,
            "device": device,
            "seed": experiment.seed,
        }
        grouping: dict[str, Any] = {}
        if loss.name == "triplet":
            grouping = {
                "classes_per_batch": loss.classes_per_batch,
                "images_per_class": loss.images_per_class,
            }
        self.train = Batches(
            data.train,
            batch_size=schedule.batch_size,
            augment=experiment.data.augment,
            indices=data.labelled if experiment.data.label_fraction < 1 else None,
            **grouping,
            **self.statistics,
        )
        rng = np.random.default_rng((experiment.seed, 11))
        sample = np.sort(rng.permutation(data.labelled)[:SAMPLE])
        self.sample = self.fixed(data.train, sample)
        self.val = self.fixed(data.val)
        self.test = self.fixed(data.test)
        self.groups = {}
        if loss.name == "triplet":  # what the loss is evaluated on, the same after every epoch
            shape = loss.classes_per_batch, loss.images_per_class
            for name, part in (("train", self.sample), ("val", self.val)):
                groups = class_batches(part.labels.cpu().numpy(), *shape, rng)
                self.groups[name] = torch.from_numpy(groups).to(device)
        self.history: list[dict[str, Any]] = []
        self.epoch = self.step = 0
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)
        self.first_spread: float | None = None
        self.seconds = 0.0

    def fixed(self, split: Split, indices: np.ndarray | None = None) -> Batches:
        """Batches for evaluation: in order, un-augmented."""
        chosen = None if indices is None else torch.from_numpy(indices)
        return Batches(
            split, batch_size=EVALUATION_BATCH, shuffle=False, indices=chosen, **self.statistics
        )

    def autocast(self) -> torch.autocast:
        """bfloat16 for the network, where the experiment says so."""
        wanted = self.experiment.schedule.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def start_from(self, weights: dict[str, np.ndarray]) -> None:
        """Take over the body of another run's network; the classifier stays new."""
        ours = self.network.state_dict()
        for name, value in ours.items():
            if self.network.is_new(name):
                continue
            if name not in weights or weights[name].shape != tuple(value.shape):
                raise DlopsError(
                    f"The starting weights do not fit this network at {name};"
                    " choose the source's stem, sizes, channels and image size."
                )
            value.copy_(torch.from_numpy(weights[name]))

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
            "history": self.history,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "first_spread": self.first_spread,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        if self.objective.name == "center":
            self.objective.center.load_state_dict(state["center"])
        for name in ("history", "epoch", "step", "first_spread", "seconds"):
            setattr(self, name, state[name])
        self.sums = state["sums"].to(self.device)


def train_epoch(run: Run, interrupt: threading.Event, progress: Progress) -> bool:
    """One epoch over the training batches, from run.step; False if it was interrupted."""
    experiment, network, optimizer = run.experiment, run.network, run.optimizer
    schedule, steps = experiment.schedule, len(run.train)
    start = last = time.perf_counter()
    first = run.step
    for step, (images, labels) in enumerate(run.train.epoch(run.epoch)):
        if step < first:
            continue
        done = (run.epoch * steps + step) / (schedule.epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = experiment.optimizer.lr * group["scale"] * lr_factor(experiment, done)

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
        run.sums[0] += loss.detach() * len(labels)
        run.sums[1] += len(labels)
        if logged is not None:
            run.sums[2:5] += logged[:3] * len(labels)
            run.sums[5] = torch.maximum(run.sums[5], logged[3].double())
            if run.first_spread is None:
                run.first_spread = logged[3].item()
        run.step = step + 1
        if interrupt.is_set():
            run.seconds += time.perf_counter() - start
            return False
        if time.perf_counter() - last > 0.2:
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


def evaluate(run: Run) -> tuple[dict[str, float], Evaluation]:
    """Loss, top-1 and top-5 on the fixed sample of training images and on validation."""
    sample, val = Evaluation(run, run.sample), Evaluation(run, run.val)
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
                row[f"{name}_loss"] = torch.stack(losses).mean().item()
            else:
                loss = run.objective(part.embeddings, part.logits, part.labels)
                row[f"{name}_loss"] = loss.item()
        row[f"{name}_top1"] = top(scores, part.labels, 1)
        row[f"{name}_top5"] = top(scores, part.labels, 5)
    return row, sample


def end_epoch(run: Run, started: float) -> dict[str, Any]:
    """Evaluate, append the epoch's row to the history, and stop what cannot go on."""
    batch_loss, seen, active, positive, negative, spread = run.sums.tolist()
    train_seconds = time.perf_counter() - started
    row: dict[str, Any] = {"epoch": run.epoch + 1}
    measured, sample = evaluate(run)
    row |= measured
    row |= {"batch_loss": batch_loss / seen, "lr": run.optimizer.param_groups[0]["lr"]}
    if run.objective.name == "triplet":
        row |= {"active": active / seen, "d_ap": positive / seen, "d_an": negative / seen}
    if run.objective.name == "center":
        own = run.objective.center.centers[sample.labels]
        row["center_distance"] = (sample.embeddings - own).norm(dim=1).mean().item()
    row |= run.probed
    if not all(math.isfinite(value) for value in row.values()):
        raise Diverged(
            f"The loss was not finite in epoch {run.epoch + 1}: training diverged."
            f" Try a learning rate below {run.experiment.optimizer.lr:g}, or a longer warmup."
        )
    if run.first_spread is not None and spread < 0.01 * run.first_spread:
        raise Diverged(
            f"The embedding collapsed: through all of epoch {run.epoch + 1} the mean distance"
            f" between images stayed below 1 % of the first step's {run.first_spread:.3g}. Try a"
            f" learning rate below {run.experiment.optimizer.lr:g}, mining='semihard', or"
            " margin='soft'."
        )
    row["seconds"] = time.perf_counter() - started
    row["images_per_second"] = seen / max(train_seconds, 1e-9)
    run.history.append(row)
    run.epoch, run.step = run.epoch + 1, 0
    run.sums.zero_()
    run.seconds += row["seconds"]
    return row


def train_classifier(
    run: Run, checkpoint: Path, interrupt: threading.Event, progress: Progress
) -> None:
    """The training loop: epochs, evaluation, checkpoints."""
    pause = float(os.environ.get("DLOPS_CHECKPOINT_SECONDS", "30"))
    saved = time.monotonic()
    while run.epoch < run.experiment.schedule.epochs:
        started = time.perf_counter()
        finished = train_epoch(run, interrupt, progress)
        if finished:
            row = end_epoch(run, started)
            progress({"epoch": run.epoch, "row": row})
        if interrupt.is_set() or time.monotonic() - saved >= pause:
            save_checkpoint(checkpoint, run.state())
            saved = time.monotonic()
        if interrupt.is_set():
            raise KeyboardInterrupt


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint's state, or None if there is none that can be read."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged checkpoint costs time, not the run
        path.unlink()
        return None


def final(run: Run, arrays: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The test metrics, and what a result keeps of the test set."""
    experiment, classes = run.experiment, run.experiment.num_classes
    test = Evaluation(run, run.test)
    triplet = experiment.loss.name == "triplet"
    train = Evaluation(run, run.fixed(run.data.train)) if triplet else None
    means = train.class_means(classes) if train else None
    scores = test.scores(means)
    best = scores.topk(min(5, classes), dim=1).indices.cpu().numpy()
    labels = test.labels.cpu().numpy()
    by_class = measure.class_accuracy(labels, best[:, 0], classes)
    points = test.points.cpu().numpy()
    row = run.history[-1]
    metrics: dict[str, Any] = {
        "test_top1": measure.topk_accuracy(best, labels, 1),
        "test_top5": measure.topk_accuracy(best, labels, best.shape[1]),
        "test_images": len(labels),
        "class_accuracy": [None if math.isnan(value) else float(value) for value in by_class],
        **{name: row[name] for name in row if name.startswith(("train_", "val_"))},
        "parameters": sum(p.numel() for p in run.network.parameters()),
    }
    metrics |= geometry(test, classes)
    if train:
        neighbours = train.points.cpu().numpy(), train.labels.cpu().numpy()
        metrics["knn_top1"] = measure.knn_accuracy(*neighbours, points, labels)
    if not arrays:
        return metrics, {}
    order = np.random.default_rng(0).permutation(len(labels))[:SAMPLE]
    confidence = scores.softmax(dim=1).amax(dim=1).cpu().numpy()
    kept = {
        "predictions": best.astype(np.uint8 if classes <= 256 else np.int32),
        "labels": labels.astype(np.uint8 if classes <= 256 else np.int32),
        "confidence": confidence.astype(np.float32),
        "sample": order.astype(np.int32),
        "embeddings": points[order[:EMBEDDINGS]].astype(np.float16),
        "tsne": measure.tsne(points[order], seed=0).astype(np.float32),
    }
    return metrics, kept


def geometry(test: Evaluation, classes: int) -> dict[str, float]:
    """Mean distance of test points to their class mean, and between class means."""
    means = test.class_means(classes)
    within = (test.points - means[test.labels]).norm(dim=1).mean().item()
    present = means[means.isfinite().all(dim=1)]
    between = torch.pdist(present).mean().item()
    return {"within_class": within, "between_class": between}


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a run stops between two steps and saves itself."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def git_state() -> dict[str, Any]:
    """The commit, and whether the tree differed from it; nothing outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "dlops", "notebooks", "pyproject.toml")
        return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": True}


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, for the provenance."""
    import sklearn

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "platform": platform.system(),
    }


def _quiet(event: dict[str, Any]) -> None:
    pass


def run(
    experiment: Experiment,
    *,
    store: Store | None = None,
    device: str | None = None,
    force: bool = False,
    progress: Progress = _quiet,
) -> Result:
    """The experiment's result: from the store, resumed from its checkpoint, or trained.

    device: see `choose_device`; force: train again even if a result is there. progress is called
    with a dict of epoch, step, steps, rate (images/s), and after an epoch with its history row.
    Raises DlopsError if it cannot be trained (and notes why in the store), KeyboardInterrupt after
    Ctrl-C, when the next call continues.
    """
    store = store or Store()
    if not force and (result := store.get(experiment)):
        return result
    if os.environ.get("DLOPS_TRAIN") == "never":
        raise DlopsError(
            f"Result {experiment.id} ({experiment.title}) is missing, and reports never train;"
            " train it with `dlops train`, with the same preset and settings."
        )
    place = choose_device(device)
    parent = None
    if experiment.parent:
        source = experiment.parent.with_(keep="weights")
        parent = run(source, store=store, device=device, progress=progress)
    with store.claim(experiment) as folder:
        if force:  # the old result stays until the new one replaces it
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        elif result := store.get(experiment):  # another process finished it meanwhile
            return result
        return _train(experiment, store, folder, place, parent, progress)


def _train(
    experiment: Experiment,
    store: Store,
    folder: Path,
    device: torch.device,
    parent: Result | None,
    progress: Progress,
) -> Result:
    began = time.perf_counter()
    memory.reset_peak(device)
    progress({"experiment": experiment, "epochs": experiment.schedule.epochs})

    def decoding(done: int, total: int) -> None:
        progress({"what": "decoding images", "done": done, "total": total})

    data = load(experiment.data, experiment.seed, progress=decoding)
    checkpoint = folder / "checkpoint.pt"
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    with memory.reused(), interruptible() as interrupt:
        try:
            if experiment.model.name == "autoencoder":
                from dlops import pretraining

                outcome = pretraining.train(
                    experiment, data, device, checkpoint, interrupt, progress
                )
            else:
                outcome = _train_network(
                    experiment, data, device, parent, checkpoint, interrupt, progress
                )
        except Diverged as error:
            store.fail(experiment, str(error))
            raise
    provenance = {
        **machine(device),
        **git_state(),
        **memory.peak(device),
        "checksum": DATASETS[experiment.data.name].checksum,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "train_seconds": outcome.seconds,
        "seconds": time.perf_counter() - began,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return store.save(
        experiment,
        metrics=outcome.metrics,
        history=outcome.history,
        provenance=provenance,
        arrays=outcome.arrays,
        weights=outcome.weights,
    )


@dataclass
class Outcome:
    """What training gives: for the store, but for its provenance."""

    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    seconds: float


def _train_network(
    experiment: Experiment,
    data: DataSet,
    device: torch.device,
    parent: Result | None,
    checkpoint: Path,
    interrupt: threading.Event,
    progress: Progress,
) -> Outcome:
    current = Run(experiment, data, device)
    if parent:
        current.start_from(parent.weights)
    elif experiment.model.weights == "imagenet":
        from dlops.data.weights import source_weights

        found, _ = source_weights("imagenet")
        current.start_from({f"body.{name}": value.numpy() for name, value in found.items()})
    wanted = experiment.keep != "metrics"
    extra: dict[str, np.ndarray] = {}
    if wanted and experiment.loss.name == "triplet":
        before = Evaluation(current, current.test).points.cpu().numpy()
        order = np.random.default_rng(0).permutation(len(before))[:EMBEDDINGS]
        extra["embeddings_before"] = before[order].astype(np.float16)
    current.begin()
    if state := load_checkpoint(checkpoint):
        current.restore(state)
    train_classifier(current, checkpoint, interrupt, progress)
    metrics, arrays = final(current, wanted)
    network = current.averaged or current.network
    if wanted and experiment.model.name == "stacked":
        from dlops import pretraining

        extra |= pretraining.views(network.body, data, device)
    weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    return Outcome(metrics, current.history, {**arrays, **extra}, weights, current.seconds)


def run_all(
    experiments: Iterable[Experiment],
    executor: Executor | None = None,
    *,
    on_result: Callable[[Experiment, Result | Exception], None] | None = None,
    progress: Progress = _quiet,
    **options: Any,
) -> list[Result]:
    """The results of all experiments, each trained once, parents first.

    executor: any concurrent.futures.Executor (processes, Dask's Client.get_executor(), ...);
    without one they run here, one after another. One failure does not stop the others; the first
    is raised at the end. options go to `run`.
    """
    wanted = list(experiments)
    unique = {experiment.id: experiment for experiment in wanted}
    for experiment in wanted:  # of two that differ in what they keep, the one that keeps more
        if KEEP.index(experiment.keep) > KEEP.index(unique[experiment.id].keep):
            unique[experiment.id] = experiment
    parents = {e.parent.id: e.parent.with_(keep="weights") for e in wanted if e.parent}
    results: dict[str, Result] = {}
    errors: list[Exception] = []

    def settle(experiment: Experiment, outcome: Callable[[], Result]) -> None:
        try:
            result: Result | Exception = outcome()
            results[experiment.id] = result  # type: ignore[assignment]
        except DlopsError as error:
            result = error
            errors.append(error)
        if on_result:
            on_result(experiment, result)

    for wave in (parents, {i: e for i, e in unique.items() if i not in parents}):
        if executor is None:
            for experiment in wave.values():
                settle(experiment, partial(run, experiment, progress=progress, **options))
            continue
        futures = {executor.submit(run, e, **options): e for e in wave.values()}
        for future in as_completed(futures):
            settle(futures[future], future.result)
    if errors:
        raise errors[0]
    return [results[experiment.id] for experiment in wanted]
