"""The three classification losses from scratch, in plain tensor operations.

All compute in float32 or wider, whatever the precision of the network: half
precision would round away the small differences that losses are made of.
None waits for the device, so that training steps can queue up on a GPU.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossEntropy(nn.Module):
    """The mean over the batch of -log p(label), where p = softmax(logits).

    label_smoothing: the share e of the target that is spread evenly over the
    C classes, so that it becomes 1 - e + e/C for the label and e/C for every
    other class (Szegedy et al. 2016, section 7). ValueError outside [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError("label_smoothing must lie in [0, 1)")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, C] and labels [B] (int64, 0 to C - 1) -> scalar."""
        check_batch(logits, labels)
        logits = at_least_float32(logits)
        # The largest logit becomes 0: no exponential can overflow.
        logits = logits - logits.detach().amax(dim=1, keepdim=True)
        log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()

        loss = -log_p.gather(1, labels[:, None]).mean()
        if self.label_smoothing:
            uniform = -log_p.mean()
            e = self.label_smoothing
            loss = (1 - e) * loss + e * uniform
        return loss


class TripletHard(nn.Module):
    """Triplet loss with online mining (Hermans et al. 2017).

    An anchor should be nearer to the images of its own class (distance d_ap)
    than to those of any other (d_an), by a margin: max(0, d_ap - d_an +
    margin), or log(1 + exp(d_ap - d_an)) for margin="soft". The loss is the
    mean over the triplets mined from the batch; without any it is 0, and so
    is its gradient.

    distance: "euclidean", or "squared" as in FaceNet
    mining: "hard", see `batch_hard`; or "semihard", see `semi_hard`
    normalize: scale every embedding to length 1 first
    """

    def __init__(
        self,
        margin: float | str = 0.2,
        distance: str = "euclidean",
        mining: str = "hard",
        normalize: bool = True,
    ):
        super().__init__()
        if margin != "soft" and (isinstance(margin, str) or margin < 0):
            raise ValueError(f"margin is 'soft' or >= 0, not {margin!r}")
        check_choice("distance", distance, "euclidean", "squared")
        check_choice("mining", mining, "hard", "semihard")
        self.margin = margin
        self.squared = distance == "squared"
        self.miner = batch_hard if mining == "hard" else semi_hard
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [B, D] and labels [B] -> scalar."""
        d_ap, d_an, valid = self.mine(embeddings, labels)
        gap = d_ap - d_an  # -inf, so a loss of 0, where there is no triplet
        if isinstance(self.margin, str):
            loss = F.softplus(gap)
        else:
            loss = F.relu(gap + self.margin)
        return loss.sum() / valid.sum().clamp(min=1)

    def mine(
        self,
        embeddings: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The distances d_ap and d_an of the mined triplets, and which exist.

        Three tensors, [B] for hard mining and [B, B] for semi-hard. Where
        the third is False there is no triplet (no positive or no negative).
        """
        check_batch(embeddings, labels)
        x = at_least_float32(embeddings)
        if self.normalize:
            x = F.normalize(x, eps=1e-6)
        distance = pairwise_distance(x, squared=self.squared)
        d_ap, d_an = self.miner(distance, labels)
        valid = (d_ap != -torch.inf) & (d_an != torch.inf)
        return d_ap, d_an, valid


def pairwise_distance(x: Tensor, squared: bool = False) -> Tensor:
    """Euclidean distances between the rows of x: [B, D] -> [B, B].

    Exact, also between equal rows, where the gradient is 0: cdist's default
    computes |x|^2 - 2xy + |y|^2 above 25 rows and loses small distances.
    """
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(x, x, compute_mode=exact)
    return distance.square() if squared else distance


def relations(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs are positive (same class, two images), which negative.

    Labels [B] -> two boolean tensors [B, B]; the diagonal is neither.
    """
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def batch_hard(distance: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Farthest positive, nearest negative (Hermans et al. 2017, eq. 5).

    distance: [B, B]; labels: [B]. Returns two [B] tensors; an anchor without
    a positive has -inf in the first, without a negative inf in the second.
    """
    positive, negative = relations(labels)
    d_ap = distance.masked_fill(~positive, -torch.inf).amax(dim=1)
    d_an = distance.masked_fill(~negative, torch.inf).amin(dim=1)
    return d_ap, d_an


def semi_hard(distance: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every positive, nearest negative beyond (Schroff et al. 2015, eq. 4).

    A positive beyond which there is no negative takes the farthest one: the
    paper leaves the case open, and the pair would not be trained at all.

    distance: [B, B]; labels: [B]. Returns two [B, B] tensors, a row for each
    anchor and a column for each positive, with -inf and inf where
    `batch_hard` has them.
    """
    positive, negative = relations(labels)
    d_ap = distance.masked_fill(~positive, -torch.inf)
    d_an = distance.masked_fill(~negative, torch.inf).sort(dim=1).values
    beyond = torch.searchsorted(d_an.detach(), distance.detach(), right=True)
    last = negative.sum(dim=1, keepdim=True) - 1
    return d_ap, d_an.gather(1, beyond.minimum(last).clamp(min=0))


class CenterLoss(nn.Module):
    """Half the mean squared distance to the own class's center.

    Wen et al. 2016, eq. 2, as a mean over the batch. It is added to the
    cross-entropy, which keeps the centers apart, times a small factor.
    `centers` [num_classes, dim] is a buffer that starts at 0: the optimizer
    does not see it. `update` moves it, once after each optimizer step.
    """

    centers: Tensor

    def __init__(self, num_classes: int, dim: int, alpha: float = 0.5):
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError("alpha must lie in [0, 1]")
        self.alpha = alpha
        self.register_buffer("centers", torch.zeros(num_classes, dim))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [B, dim] and labels [B] -> scalar; changes nothing."""
        check_batch(embeddings, labels)
        offset = at_least_float32(embeddings) - self.centers[labels]
        return offset.square().sum(dim=1).mean() / 2

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move the centers of the classes in this batch (eq. 4).

        c_j <- c_j - alpha * sum(c_j - x_i) / (1 + n_j), summed over the n_j
        embeddings x_i of class j; the others stay where they are.
        """
        check_batch(embeddings, labels)
        offset = self.centers[labels] - embeddings.to(self.centers.dtype)
        total = torch.zeros_like(self.centers).index_add_(0, labels, offset)
        ones = torch.ones_like(offset[:, :1])
        count = torch.zeros_like(total[:, :1]).index_add_(0, labels, ones)
        self.centers -= self.alpha * total / (1 + count)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or float64 as it is; autocast narrows neither here."""
    return x if x.dtype == torch.float64 else x.float()


def check_batch(x: Tensor, labels: Tensor) -> None:
    """ValueError unless x is [B, n] and labels [B]."""
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        found = f"{list(x.shape)} and {list(labels.shape)}"
        raise ValueError(f"expected shapes [B, n] and [B], got {found}")


def check_choice(name: str, value: str, *choices: str) -> None:
    """ValueError unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {' or '.join(choices)}, not {value!r}")
