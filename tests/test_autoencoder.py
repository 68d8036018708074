"""Layer-wise pretraining: what it trains, what it leaves alone, and what it reproduces."""

import copy

import pytest
import torch

from dlops.autoencoder import (
    StackedClassifier,
    make_decoders,
    pretrain_layerwise,
    reconstruct,
    train_part,
)

SETTINGS = {"epochs": 3, "batch_size": 32, "lr": 3e-3, "seed": 5}


@pytest.fixture(scope="module")
def images():
    """300 uint8 images [300, 1, 8, 8] that a few factors explain."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(300, 6, generator=generator)
    patterns = torch.randn(6, 64, generator=generator)
    return (torch.sigmoid(factors @ patterns) * 255).byte().view(300, 1, 8, 8)


def stack(sizes=(48, 24, 12), **settings):
    torch.manual_seed(1)
    return StackedClassifier(sizes, 10, input_size=64, **settings)


def state(module):
    return copy.deepcopy(module.state_dict())


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def split(images):
    return {"images": images[:240], "val_images": images[240:]}


@pytest.mark.parametrize("sizes", [[1024, 1200, 728, 512, 128], [1024, 1000, 500, 256, 128, 64]])
def test_both_assigned_structures(sizes):
    with torch.device("meta"):
        model = StackedClassifier(sizes, 10, input_size=9216)
        x = torch.zeros(2, 1, 96, 96)
    assert [tuple(layer.weight.shape) for layer in model.encoder] == list(
        zip(sizes, [9216, *sizes[:-1]], strict=True)
    )
    assert model.codes(x, 4).shape == (2, sizes[3])
    assert sizes[3] in (256, 512)
    assert model.features(x).shape == (2, sizes[-1])
    assert model(x).shape == (2, 10)


def test_codes_are_the_layers_one_after_the_other(images):
    model = stack().eval()
    x = images.flatten(1) / 255
    torch.testing.assert_close(model.codes(images, 0), x)
    for layers in (1, 2, 3):
        x = (x @ model.encoder[layers - 1].weight.T + model.encoder[layers - 1].bias).relu()
        torch.testing.assert_close(model.codes(images, layers), x)
    torch.testing.assert_close(model(images), model.head(x))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_falls_at_every_layer(images, activation, tied):
    seen = []
    model = stack(activation=activation)
    pretrain_layerwise(
        model,
        **split(images),
        **SETTINGS,
        decoders=make_decoders(model, tied),
        on_epoch=lambda *row: seen.append(row),
    )
    assert [row[:2] for row in seen] == [(k, e) for k in range(3) for e in range(4)]
    for k in range(3):
        rows = [row for row in seen if row[0] == k]
        assert rows[-1][2] < 0.7 * rows[0][2]  # training
        assert rows[-1][3] < 0.7 * rows[0][3]  # validation


def test_a_layer_leaves_the_others_and_the_head_bit_identical(images):
    model = stack()
    at_start = {0: state(model)}
    pretrain_layerwise(
        model,
        **split(images),
        **SETTINGS,
        on_epoch=lambda layer, *_: at_start.update({layer + 1: state(model)}),
    )
    for k in range(3):
        before, after = at_start[k], at_start[k + 1]
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed == {f"encoder.{k}.weight", f"encoder.{k}.bias"}


def test_the_reported_loss_is_the_mean_squared_error_on_the_codes_below(images):
    model, last = stack(), {}

    def on_epoch(layer, epoch, train_loss, val_loss, _):
        last[layer] = (train_loss, val_loss)

    decoders = pretrain_layerwise(model, **split(images), **SETTINGS, on_epoch=on_epoch)
    with torch.no_grad():
        for k in range(3):
            target = model.codes(images, k)
            back = decoders[k](model.codes(images, k + 1), model.encoder[k])
            error = (back - target).square().mean(1)
            expected = (error[:240].mean().item(), error[240:].mean().item())
            assert last[k] == pytest.approx(expected, rel=1e-5)


def test_same_seed_same_weights_and_another_seed_others(images):
    runs = []
    for seed in (5, 5, 6):
        torch.rand(seed)  # the global generator has no say
        model = stack()
        settings = {**SETTINGS, "seed": seed, "epochs": 1, "noise": 0.2}
        decoders = pretrain_layerwise(model, **split(images), **settings)
        runs.append({**state(model), **{f"decoder.{k}": v for k, v in state(decoders).items()}})
    assert_equal(runs[0], runs[1])
    assert not torch.equal(runs[0]["encoder.0.weight"], runs[2]["encoder.0.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_going_on_at_a_layer_gives_the_weights_of_an_uninterrupted_run(images, tied):
    settings = {**SETTINGS, "epochs": 1, "noise": 0.3}
    whole = stack()
    whole_decoders = make_decoders(whole, tied)
    pretrain_layerwise(whole, **split(images), **settings, decoders=whole_decoders)

    class Interrupted(Exception):
        pass

    model, saved = stack(), {}
    decoders = make_decoders(model, tied=tied)

    def interrupt(layer, epoch, *_):
        if layer == 1 and epoch == 0:
            saved.update(model=state(model), decoders=state(decoders))
        if layer == 1 and epoch == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain_layerwise(
            model, **split(images), **settings, decoders=decoders, on_epoch=interrupt
        )
    resumed = stack()
    resumed_decoders = make_decoders(resumed, tied=tied)
    resumed.load_state_dict(saved["model"])
    resumed_decoders.load_state_dict(saved["decoders"])
    pretrain_layerwise(
        resumed, **split(images), **settings, decoders=resumed_decoders, start_layer=1
    )
    assert_equal(state(resumed), state(whole))
    assert_equal(state(resumed_decoders), state(whole_decoders))


def test_reconstructions_are_images_and_better_than_the_mean_image(images):
    model = stack()
    settings = {**SETTINGS, "epochs": 20}
    decoders = pretrain_layerwise(model, **split(images), **settings)
    truth = images[240:] / 255
    mean_error = (truth - truth.mean(0)).square().mean()
    torch.testing.assert_close(reconstruct(model, decoders, images[240:], layers=0), truth)
    for layers in (1, 2, 3, None):
        back = reconstruct(model, decoders, images[240:], layers=layers)
        assert back.shape == (60, 1, 8, 8)
        assert 0 <= back.min() and back.max() <= 1
        assert (back - truth).square().mean() < 0.5 * mean_error


def test_end_to_end_trains_every_layer_on_the_pixels(images):
    model, losses = stack(), []
    before = state(model)
    decoders = make_decoders(model, hidden=model.activation)
    train_part(
        model,
        decoders,
        slice(None),
        **split(images),
        **{**SETTINGS, "epochs": 10},
        on_epoch=lambda *row: losses.append(row),
    )
    after = state(model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"encoder.{k}.{p}" for k in range(3) for p in ("weight", "bias")}
    assert [row[:2] for row in losses] == [(0, epoch) for epoch in range(11)]
    assert losses[-1][3] < 0.7 * losses[0][3]
    back = reconstruct(model, decoders, images[240:])
    error = (back - images[240:] / 255).square().mean().item()
    assert losses[-1][3] == pytest.approx(error, rel=1e-4)


def test_noise_reaches_training_but_not_the_reported_loss(images):
    def first_and_last(noise):
        rows = []
        pretrain_layerwise(
            stack((48,)),
            **split(images),
            **SETTINGS,
            noise=noise,
            on_epoch=lambda *r: rows.append(r[:4]),
        )
        return rows[0], rows[-1]

    (clean_start, clean_end), (noisy_start, noisy_end) = first_and_last(0.0), first_and_last(0.4)
    assert clean_start == noisy_start
    assert clean_end != noisy_end


def test_tied_decoders_have_only_biases_and_use_the_encoders_weights(images):
    model = stack()
    decoders = make_decoders(model, tied=True)
    pretrain_layerwise(model, **split(images), **SETTINGS, decoders=decoders)
    assert [name for name, _ in decoders.named_parameters()] == ["0.bias", "1.bias", "2.bias"]
    codes = model.codes(images, 3)
    expected = codes @ model.encoder[2].weight + decoders[2].bias
    torch.testing.assert_close(decoders[2](codes, model.encoder[2]), expected)


def test_bytes_are_read_as_shares_of_one(images):
    model = stack()
    torch.testing.assert_close(model.pixels(images), model.pixels(images / 255))


def test_dropout_is_for_training_the_classifier_only(images):
    model = stack(dropout=0.5)
    plain = stack()
    pretrain_layerwise(model, **split(images), **SETTINGS)
    pretrain_layerwise(plain, **split(images), **SETTINGS)
    assert_equal(state(model), state(plain))
    assert not model.training
    torch.testing.assert_close(model(images), plain(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_relu_on_logits_leaves_a_negative_class_without_a_gradient(images):
    model, usual = stack(relu_logits=True), stack()
    for each in (model, usual):
        with torch.no_grad():
            each.head.bias[3] = -100
        each(images).logsumexp(1).sum().backward()
    assert model(images).min() == 0 and usual(images).min() < 0
    assert model.head.weight.grad[3].abs().sum() == 0
    assert usual.head.bias.grad[3] > 0
