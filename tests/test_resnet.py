"""ResNet18 against torchvision's, and its stems."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

import dlops.resnet
from dlops.resnet import STEMS, ResNet18, stages


def images(n: int, side: int, dtype: torch.dtype = torch.float32, channels: int = 3):
    generator = torch.Generator().manual_seed(side)
    return torch.randn(n, channels, side, side, generator=generator, dtype=dtype)


def test_state_dict_has_torchvisions_keys_shapes_and_dtypes():
    ours, theirs = ResNet18(1000).state_dict(), resnet18().state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[k].shape == theirs[k].shape for k in theirs)
    assert all(ours[k].dtype == theirs[k].dtype for k in theirs)


def test_1000_classes_have_11_689_512_parameters():
    table = stages(ResNet18(1000))
    assert [name for name, _ in table] == [
        *("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"),
    ]
    assert sum(count for _, count in table) == 11_689_512


def test_same_seed_gives_torchvisions_initial_weights():
    torch.manual_seed(3)
    ours = ResNet18(10).state_dict()
    torch.manual_seed(3)
    theirs = resnet18(num_classes=10).state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("stem", STEMS)
def test_initial_weights_are_drawn_layer_by_layer_and_convolutions_then_again(stem):
    torch.manual_seed(0)
    ours = ResNet18(5, stem)
    drawn = copy.deepcopy(ours)
    layers = [m for m in drawn.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    torch.manual_seed(0)
    for layer in layers:
        layer.reset_parameters()
    for layer in layers[:-1]:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    assert all(torch.equal(v, drawn.state_dict()[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_outputs_and_gradients_equal_torchvisions(dtype, tolerance, training):
    torch.manual_seed(0)
    theirs = resnet18(num_classes=7).to(dtype)
    for name, buffer in theirs.named_buffers():  # as after some training, so that eval mode counts
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) / 5 + 0.9 * name.endswith("var"))
    ours = ResNet18(7).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x_ours, x_theirs = (images(4, 64, dtype).requires_grad_() for _ in range(2))
    weight = torch.randn(4, 7, dtype=dtype)
    out_ours = ours.train(training)(x_ours)
    out_theirs = theirs.train(training)(x_theirs)
    (out_ours * weight).sum().backward()
    (out_theirs * weight).sum().backward()

    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(out_ours, out_theirs, **close)
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, **close)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():  # other sums, through twenty layers
        wanted = gradients[name].grad
        assert (parameter.grad - wanted).norm() < 5 * tolerance * wanted.norm(), name
    for key, value in theirs.state_dict().items():  # batch norm's running statistics
        torch.testing.assert_close(ours.state_dict()[key], value, **close)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 16), ("stride2", 32), ("cifar", 64)])
def test_stems_keep_the_promised_resolution(stem, side):
    model = ResNet18(5, stem=stem, in_channels=1).eval()
    seen = []
    model.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    x = images(2, 64, channels=1)
    features = model.features(x)
    assert seen == [(2, 64, side, side)]
    assert features.shape == (2, 512)
    assert features.min() >= 0
    torch.testing.assert_close(model(x), model.fc(features))


def test_every_parameter_learns_from_a_tiny_image():
    model = ResNet18(10, stem="stride2")
    model(images(3, 16)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_channels_last_gives_the_same_output():
    model = ResNet18(10, stem="stride2").eval()
    x = images(4, 32)
    with torch.no_grad():
        plain = model(x)
        model.to(memory_format=torch.channels_last)
        strided = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(strided, plain, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=STEMS)
def network(request):
    """With each stem, as after some training."""
    torch.manual_seed(1)
    model = ResNet18(5, request.param)
    model(images(8, 16))
    return model.eval()


@torch.no_grad()
def test_can_be_scripted_and_traced(network):
    x = images(2, 16)
    for program in (torch.jit.script(network), torch.fx.symbolic_trace(network)):
        torch.testing.assert_close(program(x), network(x))


@torch.no_grad()
def test_gives_its_inner_features(network):
    found = create_feature_extractor(network, ["layer1", "layer4", "avgpool"])(images(2, 16))
    assert [x.shape[1] for x in found.values()] == [64, 512, 512]
    torch.testing.assert_close(network.fc(found["avgpool"].flatten(1)), network(images(2, 16)))


@torch.no_grad()
def test_can_be_exported_for_any_batch(network):
    program = torch.export.export(
        network, (images(2, 16),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    x = images(5, 16)
    torch.testing.assert_close(program.module()(x), network(x))


def test_has_functional_gradients(network):
    x, parameters = images(2, 16), dict(network.named_parameters())

    def loss(p):
        return torch.func.functional_call(network, p, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters)
    wanted = torch.autograd.grad(loss(parameters), list(parameters.values()))
    torch.testing.assert_close(list(found.values()), list(wanted))


@torch.no_grad()
def test_fused_with_its_batch_normalisations_it_gives_the_same(network):
    network, x = copy.deepcopy(network), images(4, 16)
    wanted = network(x)
    torch.testing.assert_close(fuse(network)(x), wanted, rtol=1e-4, atol=1e-4)
    for module in list(network.modules()):
        for name, conv in list(module.named_children()):
            if isinstance(conv, nn.Conv2d):
                norm = "1" if name == "0" else name.replace("conv", "bn")
                setattr(module, name, fuse_conv_bn_eval(conv, getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)


def test_unknown_stem_is_refused_in_one_sentence():
    with pytest.raises(
        ValueError, match="^unknown stem 'vgg': choose one of imagenet, stride2, cifar$"
    ):
        ResNet18(10, stem="vgg")


@pytest.mark.parametrize("name", ["resnet", "losses", "autoencoder"])
def test_code_shown_in_reports_is_from_scratch_and_fits_their_columns(name):
    text = Path(inspect.getfile(dlops.resnet)).with_name(f"{name}.py").read_text()
    assert max(len(line) for line in text.splitlines()) <= 78
    for library in ("import torchvision", "from torchvision", "functional.cross_entropy"):
        assert library not in text
    for shortcut in ("F.cross_entropy", "CrossEntropyLoss", "nll_loss", "TripletMargin"):
        assert shortcut not in text
