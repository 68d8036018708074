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
        check_batch(logits, labels, num_classes=logits.shape[-1])
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
    margin), or log(1 + exp(s (d_ap - d_an))) / s for margin="soft". The loss
    is the mean over the triplets mined from the batch; without any it is 0,
    and so is its gradient.

    distance: "euclidean", or "squared" as in FaceNet
    mining: "hard", see `batch_hard`; "semihard", see `semi_hard`; or
        "annealed", see `softmax_weighted`
    normalize: scale every embedding to length 1 first
    scale: s of the soft margin; the larger, the nearer to max(0, d_ap - d_an)

    `hardness` is the t of annealed mining, to be set before each step from
    the share of the training that is done: `hardness_at`. At first it is 1.
    """

    def __init__(
        self,
        margin: float | str = 0.2,
        distance: str = "euclidean",
        mining: str = "hard",
        normalize: bool = True,
        scale: float = 1.0,
    ):
        super().__init__()
        if margin != "soft" and (isinstance(margin, str) or margin < 0):
            raise ValueError(f"margin is 'soft' or >= 0, not {margin!r}")
        if not scale > 0:
            raise ValueError(f"scale must be above 0, not {scale!r}")
        check_choice("distance", distance, "euclidean", "squared")
        check_choice("mining", mining, "hard", "semihard", "annealed")
        self.margin = margin
        self.squared = distance == "squared"
        self.mining = mining
        self.normalize = normalize
        self.scale = scale
        self.hardness = 1.0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [B, D] and labels [B] -> scalar."""
        d_ap, d_an, valid = self.mine(embeddings, labels)
        gap = d_ap - d_an  # -inf, so a loss of 0, where there is no triplet
        if isinstance(self.margin, str):
            loss = F.softplus(gap, beta=self.scale)
        else:
            loss = F.relu(gap + self.margin)
        return loss.sum() / valid.sum().clamp(min=1)

    def mine(
        self,
        embeddings: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The distances d_ap and d_an of the mined triplets, and which exist.

        Three tensors, [B] for hard and annealed mining and [B, B] for
        semi-hard. Where the third is False there is no triplet (no positive
        or no negative).
        """
        check_batch(embeddings, labels)
        x = at_least_float32(embeddings)
        if self.normalize:
            x = F.normalize(x, eps=1e-6)
        distance = pairwise_distance(x, squared=self.squared)
        if self.mining == "hard":
            d_ap, d_an = batch_hard(distance, labels)
        elif self.mining == "semihard":
            d_ap, d_an = semi_hard(distance, labels)
        else:
            d_ap, d_an = softmax_weighted(distance, labels, self.hardness)
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


def softmax_weighted(
    distance: Tensor,
    labels: Tensor,
    hardness: float,
) -> tuple[Tensor, Tensor]:
    """Every positive and negative, the harder ones with a larger weight.

    d_ap = sum over positives p of w_p d_p, with w = softmax(t d), and
    d_an = sum over negatives n of w_n d_n, with w = softmax(-t d).

    Ristani and Tomasi 2018 ("Features for Multi-Target Multi-Camera Tracking
    and Re-Identification") have these weights without the hardness t >= 0,
    which is ours. At 0 it gives the means over all, at infinity `batch_hard`.
    It counts per unit of distance: for embeddings of length 1, which are at
    most 2 apart, 16 is hard. The weights are constants to the gradient, which
    would otherwise push the nearest positives away: t (d_ap - d_p) > 1.

    distance: [B, B]; labels: [B]. Returns two [B] tensors, with -inf and inf
    where `batch_hard` has them.
    """
    if hardness == torch.inf:
        return batch_hard(distance, labels)
    positive, negative = relations(labels)
    score = hardness * distance.detach()
    d_ap = weighted_mean(distance, positive, score)
    d_an = weighted_mean(distance, negative, -score)
    d_ap = d_ap.masked_fill(~positive.any(dim=1), -torch.inf)
    d_an = d_an.masked_fill(~negative.any(dim=1), torch.inf)
    return d_ap, d_an


def weighted_mean(x: Tensor, mask: Tensor, score: Tensor) -> Tensor:
    """Each row's mean of x where mask is True, weighted by softmax(score)."""
    # Finite, so that a row without any has a value, to be replaced.
    lowest = torch.finfo(score.dtype).min
    weight = score.masked_fill(~mask, lowest).softmax(dim=1)
    return (weight * x).sum(dim=1)


def hardness_at(done: float, start: float, end: float) -> float:
    """The hardness when a share `done` (0 to 1) of the training is done.

    It rises from `start` to `end` by the same factor in equal times.
    """
    return start * (end / start) ** done


class CenterLoss(nn.Module):
    """Half the mean squared distance to the own class's center.

    Wen et al. 2016, eq. 2, as a mean over the batch. It is added to the
    cross-entropy, which keeps the centers apart, times a small factor.
    `centers` [num_classes, dim] is a buffer that starts at 0: the optimizer
    does not see it. `update` moves it, once after each optimizer step.

    A label outside 0 to num_classes - 1 is a ValueError on the CPU. On a GPU,
    where looking at it would mean waiting, CUDA stops with its own assertion.
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
        check_batch(embeddings, labels, num_classes=len(self.centers))
        own = self.centers.index_select(0, labels)  # no -1 as the last row
        offset = at_least_float32(embeddings) - own
        return offset.square().sum(dim=1).mean() / 2

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move the centers of the classes in this batch (eq. 4).

        c_j <- c_j - alpha * sum(c_j - x_i) / (1 + n_j), summed over the n_j
        embeddings x_i of class j; the others stay where they are.
        """
        check_batch(embeddings, labels, num_classes=len(self.centers))
        own = self.centers.index_select(0, labels)
        offset = own - embeddings.to(self.centers.dtype)
        total = torch.zeros_like(self.centers).index_add_(0, labels, offset)
        ones = torch.ones_like(offset[:, :1])
        count = torch.zeros_like(total[:, :1]).index_add_(0, labels, ones)
        self.centers -= self.alpha * total / (1 + count)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or float64 as it is; autocast narrows neither here."""
    return x if x.dtype == torch.float64 else x.float()


def check_batch(
    x: Tensor,
    labels: Tensor,
    num_classes: int | None = None,
) -> None:
    """ValueError unless x is [B, n], labels [B] and, on the CPU, in range.

    Another device would have to be waited for: its own kernels check there.
    """
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        found = f"{list(x.shape)} and {list(labels.shape)}"
        raise ValueError(f"expected shapes [B, n] and [B], got {found}")
    if num_classes is not None and labels.device.type == "cpu":
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            allowed = f"0 to {num_classes - 1}"
            raise ValueError(f"labels must be {allowed}, got {wrong[0]}")


def check_choice(name: str, value: str, *choices: str) -> None:
    """ValueError unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {' or '.join(choices)}, not {value!r}")
