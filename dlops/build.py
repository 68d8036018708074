"""What an experiment names, built: its network, its loss, its optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlops.autoencoder import StackedClassifier
from dlops.experiment import Experiment
from dlops.losses import CenterLoss, CrossEntropy, TripletHard, hardness_at, pairwise_distance
from dlops.resnet import ResNet18


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
        self.on_logits = CrossEntropy(loss.label_smoothing)
        if loss.name == "triplet":
            options = loss.margin, loss.distance, loss.mining, loss.normalize, loss.scale
            self.triplet = TripletHard(*options)
            self.hardness = loss.hardness_start, loss.hardness_end
        if loss.name == "center":
            self.weight = loss.center_weight
            self.center = CenterLoss(experiment.num_classes, dim, loss.center_alpha).to(device)

    def __call__(self, embeddings: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if self.name == "triplet":
            return self.triplet(embeddings, labels)
        loss = self.on_logits(logits, labels)
        if self.name == "center":
            loss = loss + self.weight * self.center(embeddings, labels)
        return loss

    def at(self, done: float) -> None:
        """Set what changes over training, of which `done` (0 to 1) is done."""
        if self.name == "triplet":
            self.triplet.hardness = hardness_at(done, *self.hardness)

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
    rates: dict[str, Any] = {"lr": o.lr, "weight_decay": o.weight_decay}
    if o.name == "sgd":
        nesterov = o.nesterov and o.momentum > 0
        return torch.optim.SGD(groups, momentum=o.momentum, nesterov=nesterov, fused=True, **rates)
    rates["eps"] = experiment.eps
    if o.name == "adam":
        kind = torch.optim.AdamW if o.decoupled else torch.optim.Adam
        return kind(groups, betas=(o.beta1, o.beta2), amsgrad=o.amsgrad, fused=True, **rates)
    if o.name == "adagrad":
        rates |= {"lr_decay": o.lr_decay, "initial_accumulator_value": o.initial_accumulator}
        fused = groups[0]["params"][0].device.type == "cpu"  # on a GPU only the newest torch has it
        return torch.optim.Adagrad(groups, fused=fused, **rates)
    if o.name == "adadelta":
        return torch.optim.Adadelta(groups, rho=o.rho, **rates)
    rates |= {"alpha": o.alpha, "momentum": o.momentum, "centered": o.centered}
    return torch.optim.RMSprop(groups, **rates)


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
