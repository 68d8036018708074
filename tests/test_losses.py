"""The losses against explicit loops, torch's own and pytorch-metric-learning's."""

import math

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch.nn import functional as F

from dlops.losses import (
    CenterLoss,
    CrossEntropy,
    TripletHard,
    batch_hard,
    hardness_at,
    pairwise_distance,
    softmax_weighted,
)


def batch(n, classes, dim=16, seed=0, dtype=torch.float64):
    """Random embeddings that need a gradient, and labels of at most `classes` classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), torch.randint(classes, (n,), generator=generator)


def value_and_gradient(loss, x, labels):
    x = x.detach().clone().requires_grad_()
    value = loss(x, labels)
    value.backward()
    return value.detach(), x.grad


def assert_same(ours, theirs, x, labels, value=1e-12, gradient=1e-12):
    (v1, g1), (v2, g2) = (value_and_gradient(f, x, labels) for f in (ours, theirs))
    torch.testing.assert_close(v1, v2, rtol=value, atol=value)
    torch.testing.assert_close(g1, g2, rtol=gradient, atol=gradient)


# Cross-entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_cross_entropy_equals_torchs(scale, smoothing):
    x, labels = batch(33, 10, dim=10)
    logits = x.detach() * scale
    if scale == 1e4:  # right and wrong with certainty, all equal, and far from zero
        logits = logits.sign() * scale
        logits[0], logits[1] = scale, -scale
    assert_same(
        CrossEntropy(smoothing),
        torch.nn.CrossEntropyLoss(label_smoothing=smoothing),
        *(logits, labels),
    )


def test_smoothed_target_is_spread_over_all_classes():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    log_p = logits.log_softmax(1)[0]
    expected = -(0.925 * log_p[2] + 0.025 * (log_p[0] + log_p[1] + log_p[3]))
    torch.testing.assert_close(CrossEntropy(0.1)(logits, torch.tensor([2])), expected)


def test_cross_entropy_is_finite_at_float32s_end():
    value, gradient = value_and_gradient(
        CrossEntropy(), torch.tensor([[1e38, -1e38]]), torch.tensor([1])
    )
    assert value == pytest.approx(2e38)
    assert gradient.tolist() == [[1, -1]]


# Triplet loss


def triplet_loop(
    x, labels, *, margin=0.2, squared=False, mining="hard", scale=1.0, hardness=math.nan
):
    """The definition, by loops over all triplets of a batch."""
    n = range(len(labels))
    d = {(i, j): (x[i] - x[j]).square().sum() for i in n for j in n if i != j}
    if not squared:
        d = {pair: v.sqrt() for pair, v in d.items()}
    mined = []
    for a in n:
        positives = [d[a, p] for p in n if p != a and labels[p] == labels[a]]
        negatives = [d[a, k] for k in n if labels[k] != labels[a]]
        if positives and negatives and mining == "hard":
            mined.append((max(positives), min(negatives)))
        elif positives and negatives and mining == "annealed":
            mined.append((average(positives, hardness), average(negatives, -hardness)))
        elif positives and negatives:
            for d_ap in positives:
                beyond = [d_an for d_an in negatives if d_an > d_ap]
                mined.append((d_ap, min(beyond) if beyond else max(negatives)))
    if not mined:
        return x.sum() * 0
    gaps = torch.stack([d_ap - d_an for d_ap, d_an in mined])
    if margin == "soft":
        return (1 + (scale * gaps).exp()).log().mean() / scale
    return (gaps + margin).clamp(min=0).mean()


def average(distances, t):
    """The mean with constant weights exp(t d), in plain exponentials."""
    weights = [(t * d.detach()).exp() for d in distances]
    return sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)


def metric_learning(margin, power=1):
    distance = LpDistance(normalize_embeddings=False, power=power)
    loss = TripletMarginLoss(
        margin=0 if margin == "soft" else margin,
        smooth_loss=margin == "soft",
        distance=distance,
        reducer=MeanReducer(),
    )
    miner = BatchHardMiner(distance=distance)
    return lambda x, labels: loss(x, labels, miner(x, labels))


def unit(loss):
    return lambda x, labels: loss(x / x.norm(dim=1, keepdim=True), labels)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", ["euclidean", "squared"])
@pytest.mark.parametrize("margin", [0.0, 0.2, 4.0, "soft"])
@pytest.mark.parametrize("n", [25, 26])  # where cdist changes its method by default
def test_batch_hard_equals_loops_and_pytorch_metric_learning(n, margin, distance, normalize):
    x, labels = batch(n, 5)
    x = x / 2  # softplus of more than 20 is its argument in torch, which 1e-12 would show
    ours = TripletHard(margin=margin, distance=distance, normalize=normalize)
    squared = distance == "squared"

    def loops(x, labels):
        return triplet_loop(x, labels, margin=margin, squared=squared)

    library = metric_learning(margin, power=2 if squared else 1)
    for oracle in (loops, library):
        assert_same(ours, unit(oracle) if normalize else oracle, x, labels, gradient=1e-10)
    assert value_and_gradient(ours, x, labels)[0] > 0


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
@pytest.mark.parametrize("margin", [0.2, "soft"])
@pytest.mark.parametrize(("n", "classes"), [(26, 4), (12, 2), (9, 30)])
def test_semihard_equals_loops(n, classes, margin, distance):
    x, labels = batch(n, classes, dim=3)
    ours = TripletHard(margin, distance, mining="semihard", normalize=False)

    def loops(x, labels):
        squared = distance == "squared"
        return triplet_loop(x, labels, margin=margin, squared=squared, mining="semihard")

    assert_same(ours, loops, x, labels, gradient=1e-10)


def test_semihard_takes_the_farthest_negative_where_none_lies_beyond_the_positive():
    x = torch.tensor([[0.0], [5.0], [1.0], [2.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    loss = TripletHard(mining="semihard", normalize=False)
    d_ap, d_an, valid = loss.mine(x, labels)
    assert (d_ap[0, 1].item(), d_an[0, 1].item()) == (5, 2)
    assert (d_ap[2, 3].item(), d_an[2, 3].item()) == (1, 4)  # 1 is as near as the positive
    assert valid.nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]


def annealed(hardness, *settings, **more):
    loss = TripletHard(*settings, mining="annealed", **more)
    loss.hardness = hardness
    return loss


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
@pytest.mark.parametrize("margin", [0.2, "soft"])
@pytest.mark.parametrize("hardness", [0.0, 0.8, 5.0])
@pytest.mark.parametrize(("n", "classes"), [(26, 4), (9, 30)])
def test_annealed_equals_loops(n, classes, hardness, margin, distance):
    x, labels = batch(n, classes, dim=3)
    x = x / 2  # below softplus's 20, as above
    ours = annealed(hardness, margin, distance, normalize=False, scale=2.0)

    def loops(x, labels):
        settings = {"margin": margin, "squared": distance == "squared", "scale": 2.0}
        return triplet_loop(x, labels, mining="annealed", hardness=hardness, **settings)

    assert_same(ours, loops, x, labels, gradient=1e-10)


@pytest.mark.parametrize("hardness", [0.0, math.inf])  # where the weights do not change
def test_annealed_gradient_equals_finite_differences(hardness):
    x, labels = batch(9, 3, dim=3)
    labels[0] = 7  # alone in its class
    loss = annealed(hardness, "soft", scale=4.0)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), x)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_annealed_becomes_batch_hard(distance, dtype, limit):
    x, labels = batch(26, 4, dtype=dtype)
    labels[0] = 9  # no positive
    settings = ("soft", distance)
    hard = value_and_gradient(TripletHard(*settings), x, labels)
    exact = value_and_gradient(annealed(math.inf, *settings), x, labels)
    assert torch.equal(exact[0], hard[0]) and torch.equal(exact[1], hard[1])
    near = value_and_gradient(annealed(1e6, *settings), x, labels)
    torch.testing.assert_close(near[0], hard[0], rtol=limit, atol=0)
    far = value_and_gradient(annealed(1.0, *settings), x, labels)[0]
    assert (hard[0] - far) / hard[0] > 0.01  # easier triplets, a smaller loss


def test_annealed_means_lie_between_the_mean_and_the_hardest():
    x, labels = batch(26, 4)
    d = pairwise_distance(x.detach())
    hard_ap, hard_an = batch_hard(d, labels)
    before_ap, before_an = softmax_weighted(d, labels, 0.0)
    for t in (0.5, 2.0, 8.0):
        d_ap, d_an = softmax_weighted(d, labels, t)
        assert ((before_ap < d_ap) & (d_ap < hard_ap)).all()
        assert ((before_an > d_an) & (d_an > hard_an)).all()
        before_ap, before_an = d_ap, d_an


def test_annealed_gradient_of_a_distance_is_its_weight():
    x, labels = batch(12, 3)
    d = pairwise_distance(x.detach()).requires_grad_()
    d_ap, d_an = softmax_weighted(d, labels, 16.0)
    (weights,) = torch.autograd.grad(d_ap.sum() + d_an.sum(), d)
    positive = (labels[:, None] == labels) & ~torch.eye(12, dtype=torch.bool)
    expected = (16 * d).masked_fill(~positive, -math.inf).softmax(1)
    expected = expected + (-16 * d).masked_fill(labels[:, None] == labels, -math.inf).softmax(1)
    torch.testing.assert_close(weights, expected.detach(), rtol=1e-12, atol=1e-15)


def test_hardness_rises_by_equal_factors():
    rising = [hardness_at(done / 4, 0.5, 8.0) for done in range(5)]
    assert rising == pytest.approx([0.5, 1, 2, 4, 8])
    assert hardness_at(0.0, 2.0, math.inf) == 2
    assert hardness_at(0.01, 2.0, math.inf) == hardness_at(1.0, 2.0, math.inf) == math.inf


@pytest.mark.parametrize("mining", ["hard", "semihard", "annealed"])
def test_scaled_soft_margin_nears_the_ramp(mining):
    x, labels = batch(26, 4)
    losses = [TripletHard("soft", mining=mining, scale=s)(x, labels).item() for s in (1, 16, 1e6)]
    ramp = TripletHard(0.0, mining=mining)(x, labels).item()
    assert losses[0] > losses[1] > losses[2] == pytest.approx(ramp, rel=1e-5)


@pytest.mark.parametrize("mining", ["hard", "semihard", "annealed"])
@pytest.mark.parametrize("n", [1, 2, 25, 26])
@pytest.mark.parametrize("labels", ["one class", "all singletons"])
def test_without_triplets_loss_and_gradient_are_zero(labels, n, mining):
    x, _ = batch(n, 1)
    y = torch.zeros(n, dtype=torch.long) if labels == "one class" else torch.arange(n)
    loss = TripletHard(mining=mining, margin="soft")
    value, gradient = value_and_gradient(loss, x, y)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert not loss.mine(x, y)[2].any()


@pytest.mark.parametrize("mining", ["hard", "semihard", "annealed"])
def test_a_lone_image_is_no_anchor_but_a_negative(mining):
    x = torch.tensor([[0.0], [1.0], [1.5]])
    labels = torch.tensor([0, 0, 1])
    loss = TripletHard(margin=1.0, mining=mining, normalize=False)(x, labels)
    # One positive and one negative an anchor, so that every mining takes the same.
    # Anchor 0: 1 - 1.5 + 1. Anchor 1: 1 - 0.5 + 1; its farthest negative is the same image.
    assert loss.item() == pytest.approx((0.5 + 1.5) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", ["euclidean", "squared"])
@pytest.mark.parametrize("n", [24, 25, 26, 60])
def test_duplicates_have_the_loops_value_and_a_finite_gradient(n, distance, normalize, dtype):
    x, labels = batch(n, 4, dtype=dtype)
    x = x.detach() + 3
    x[1::2] = x[0::2][: n // 2]  # each image twice, often with another label
    y = labels.repeat_interleave(2)[:n] if distance == "squared" else labels
    z = F.normalize(x) if normalize else x
    value, gradient = value_and_gradient(TripletHard(0.5, distance, normalize=normalize), x, y)
    expected = triplet_loop(z.double(), y, margin=0.5, squared=distance == "squared")
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10


@pytest.mark.parametrize("mining", ["hard", "annealed"])
@pytest.mark.parametrize("normalize", [True, False])
def test_all_embeddings_equal_gives_the_margin_and_no_gradient(normalize, mining):
    x, labels = torch.full((30, 8), 3.7), torch.arange(30) % 3
    loss = TripletHard(0.2, mining=mining, normalize=normalize)
    value, gradient = value_and_gradient(loss, x, labels)
    assert value.item() == pytest.approx(0.2)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("mining", ["hard", "semihard", "annealed"])
def test_a_broken_embedding_is_not_hidden(mining):
    x, labels = batch(12, 3)
    x = x.detach()
    x[4] = math.nan
    assert TripletHard(mining=mining)(x, labels).isnan()


def test_zero_embeddings_have_a_finite_gradient():
    value, gradient = value_and_gradient(TripletHard(), torch.zeros(26, 4), torch.arange(26) % 2)
    assert value.item() == pytest.approx(0.2)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("n", [25, 26, 300])
def test_distances_are_exact_in_float32(n):
    x, _ = batch(n, 2, dtype=torch.float32)
    x = x.detach() + 100  # where |x|^2 - 2xy + |y|^2 loses its digits
    exact = (x.double()[:, None] - x.double()[None]).square().sum(-1)
    assert pairwise_distance(x).diagonal().abs().max() == 0
    torch.testing.assert_close(pairwise_distance(x).double(), exact.sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(pairwise_distance(x, True).double(), exact, rtol=1e-5, atol=0)


# Center loss


def center_step(centers, x, labels, alpha):
    """Equation 4 of Wen et al. (2016), one sample at a time."""
    moved = [list(row) for row in centers]
    for j in range(len(centers)):
        mine = [i for i in range(len(x)) if labels[i] == j]
        for k in range(len(centers[j])):
            total = sum(centers[j][k] - x[i][k] for i in mine)
            moved[j][k] = centers[j][k] - alpha * total / (1 + len(mine))
    return moved


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_center_loss_follows_the_papers_equations(alpha):
    loss = CenterLoss(6, 4, alpha=alpha).double()
    expected = loss.centers.tolist()
    for step in range(5):
        x, labels = batch(9, 5, dim=4, seed=step)  # class 5 never comes
        rows, y = x.tolist(), labels.tolist()
        squares = [
            sum((a - c) ** 2 for a, c in zip(row, expected[j], strict=True))
            for row, j in zip(rows, y, strict=True)
        ]
        value, gradient = value_and_gradient(loss, x, labels)
        assert value.item() == pytest.approx(sum(squares) / len(y) / 2, rel=1e-12)
        offsets = (x.detach() - loss.centers[labels]) / len(y)
        torch.testing.assert_close(gradient, offsets, rtol=1e-12, atol=1e-12)

        before = loss.centers.clone()
        loss.update(x, labels)
        expected = center_step(expected, rows, y, alpha)
        torch.testing.assert_close(
            loss.centers, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )
        absent = [j for j in range(6) if j not in y]
        assert torch.equal(loss.centers[absent], before[absent])
    assert torch.equal(loss.centers[5], torch.zeros(4, dtype=torch.float64))


def test_centers_are_a_buffer_that_forward_leaves_alone():
    loss = CenterLoss(3, 16)
    x, labels = batch(8, 3, dtype=torch.float32)
    loss(x, labels).backward()
    assert torch.equal(loss.centers, torch.zeros(3, 16))
    loss.update(x, labels)
    assert loss.centers.abs().max() > 0
    assert not loss.centers.requires_grad and not list(loss.parameters())
    assert list(loss.state_dict()) == ["centers"]


def test_center_update_takes_half_precision_embeddings_in_float32():
    exact, rounded = CenterLoss(3, 16), CenterLoss(3, 16)
    x, labels = batch(8, 3, dtype=torch.bfloat16)
    exact.update(x.float(), labels)
    rounded.update(x, labels)
    assert rounded.centers.dtype == torch.float32
    assert torch.equal(exact.centers, rounded.centers)


@pytest.mark.parametrize("label", [-1, 4])
@pytest.mark.parametrize("method", ["forward", "update"])
def test_a_label_without_a_center_is_refused(method, label):
    loss = CenterLoss(4, 16)
    labels = torch.tensor([0, 3, label])
    with pytest.raises(ValueError, match=f"labels must be 0 to 3, got {label}"):
        getattr(loss, method)(torch.ones(3, 16), labels)
    assert torch.equal(loss.centers, torch.zeros(4, 16))


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_without_a_logit_is_refused(label):
    with pytest.raises(ValueError, match=f"labels must be 0 to 3, got {label}"):
        CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, label]))


# All three


def losses():
    center = CenterLoss(4, 16)
    center.centers += torch.linspace(-1, 1, 64).reshape(4, 16)
    hard, semihard = TripletHard(), TripletHard("soft", "squared", "semihard", normalize=False)
    return [CrossEntropy(0.1), hard, semihard, annealed(4.0, "soft", scale=16.0), center]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", range(5))
def test_half_precision_is_close_to_double(which, dtype):
    x, labels = batch(26, 4)
    loss = losses()[which]
    exact, exact_gradient = value_and_gradient(loss, x, labels)
    value, gradient = value_and_gradient(loss, x.to(dtype), labels)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert value.item() == pytest.approx(exact.item(), rel=1e-2)
    # Gradients are those of float32 at the rounded input, rounded once more.
    _, rounded = value_and_gradient(loss, x.to(dtype).float(), labels)
    assert torch.equal(gradient, rounded.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("which", range(5))
def test_autocast_changes_no_bit(which, dtype):
    x, labels = batch(30, 4, dtype=dtype)
    loss = losses()[which]
    value, gradient = value_and_gradient(loss, x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under, under_gradient = value_and_gradient(loss, x, labels)
    assert torch.equal(value, under) and value.dtype == under.dtype
    assert torch.equal(gradient, under_gradient)


@pytest.mark.parametrize("which", range(5))
def test_mismatched_labels_are_refused(which):
    with pytest.raises(ValueError, match=r"got \[4, 16\] and \[3\]"):
        losses()[which](torch.zeros(4, 16), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(1.0), "label_smoothing must lie in"),
        (lambda: TripletHard(margin=-0.1), "margin is 'soft' or >= 0, not -0.1"),
        (lambda: TripletHard(margin="hard"), "margin is 'soft' or >= 0, not 'hard'"),
        (lambda: TripletHard(distance="cosine"), "distance is euclidean or squared"),
        (lambda: TripletHard(mining="easy"), "mining is hard or semihard or annealed, not 'easy'"),
        (lambda: TripletHard("soft", scale=0.0), "scale must be above 0, not 0.0"),
        (lambda: CenterLoss(2, 2, alpha=1.5), "alpha must lie in"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
