"""3x3 convolutions against torch's own, forward and backward, each way that they can go, and which
of a network's they replace.
"""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from dlops import accelerate as module
from dlops.accelerate import Conv3x3, accelerate
from dlops.resnet import STEMS, ResNet18


def conv3x3(in_channels, out_channels, stride=1):
    return Conv3x3(in_channels, out_channels, 3, stride, 1, bias=False)


@pytest.fixture
def avx2(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.delenv("DLOPS_ACCELERATE", raising=False)


@pytest.mark.parametrize("stem", STEMS)
def test_a_network_learns_the_same_and_stays_what_it_was(avx2, stem):
    torch.manual_seed(0)
    plain = ResNet18(5, stem).to(memory_format=torch.channels_last)
    network = copy.deepcopy(plain)
    assert accelerate(network)
    twin = copy.deepcopy(network)
    assert list(network.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64).to(memory_format=torch.channels_last)
    for model in (plain, network, twin):
        model.double()(x).square().sum().backward()
    for name, wanted in plain.named_parameters():
        gradient = network.get_parameter(name).grad
        torch.testing.assert_close(gradient, wanted.grad, rtol=1e-7, atol=1e-9, msg=name)
        assert torch.equal(twin.get_parameter(name).grad, gradient)
    loaded = ResNet18(5, stem).double()
    loaded.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), loaded.eval()(x))


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX512"])
def test_other_processors_keep_torchs_own(avx2, monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    network = ResNet18(5)
    assert not accelerate(network)
    assert not any(isinstance(m, Conv3x3) for m in network.modules())


@pytest.mark.parametrize(("setting", "done"), [("0", False), ("1", True)])
def test_the_environment_can_forbid_it(avx2, monkeypatch, setting, done):
    monkeypatch.setenv("DLOPS_ACCELERATE", setting)
    assert accelerate(ResNet18(5)) is done


OTHERS = [
    *({"kernel_size": 1}, {"padding": 0}, {"padding": 2}, {"stride": 3}, {"dilation": 2}),
    *({"groups": 2}, {"bias": True}, {"padding_mode": "reflect"}),
    *({"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"device": "meta"}),
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_no_other_convolution_is_replaced(avx2, other):
    usual = {"kernel_size": 3, "padding": 1, "bias": False}
    conv = nn.Conv2d(4, 4, **(usual | other))
    assert not accelerate(nn.Sequential(conv)) and type(conv) is nn.Conv2d
    assert accelerate(nn.Sequential(conv, nn.Conv2d(4, 4, **usual)))
    assert type(conv) is nn.Conv2d


SIDES = [1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("many", [1, 99], ids=["many channels", "few channels"])
def test_values_and_both_gradients_are_torchs(monkeypatch, side, stride, layout, many):
    monkeypatch.setattr(module, "MANY_CHANNELS", many)
    monkeypatch.setattr(module, "PART", 1500)  # parts of one image up to all three
    generator = torch.Generator().manual_seed(side)
    conv = conv3x3(5, 7, stride).double().to(memory_format=layout)
    images = torch.randn(3, 5, side, side, generator=generator, dtype=torch.float64)
    images = images.to(memory_format=layout).requires_grad_()
    out = conv(images)
    theirs = functional.conv2d(images, conv.weight, None, stride, 1)
    assert out.shape == theirs.shape
    torch.testing.assert_close(out, theirs)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(theirs, (images, conv.weight), upstream)
    given = torch.autograd.grad(out, (images, conv.weight), upstream)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (2, 2), (4, 1), (8, 2)])
def test_gradcheck(side, stride):
    conv = conv3x3(2, 3, stride).double()
    images = torch.randn(2, 2, side, side, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _with(conv, w)(x), (images, conv.weight.detach()))


def _with(conv, weight):
    return lambda x: torch.func.functional_call(conv, {"weight": weight}, (x,))


@pytest.mark.parametrize(
    "shape", [(2, 3, 1, 2), (2, 3, 2, 4), (2, 3, 4, 1), (0, 3, 2, 2), (0, 3, 4, 4)]
)
def test_maps_that_are_not_square_and_empty_batches(shape):
    conv, images = conv3x3(3, 4), torch.ones(shape)
    torch.testing.assert_close(conv(images), functional.conv2d(images, conv.weight, None, 1, 1))


WAYS = {  # channels, side, stride that take each
    "torch": (3, 8, 1),
    "small": (3, 2, 1),
    "tiled": (128, 24, 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("linear", [True, False])
def test_a_gradient_of_the_gradient_is_right_or_refused(way, linear):
    channels, side, stride = WAYS[way]
    conv = conv3x3(channels, channels, stride).double()
    images = torch.randn(1, channels, side, side, dtype=torch.float64, requires_grad=True)

    def second(out):
        out = out.sum() if linear else out.square().sum()
        (gradient,) = torch.autograd.grad(out, images, create_graph=True)
        return torch.autograd.grad(
            gradient.square().sum() + conv.weight.square().sum(), conv.weight
        )

    if way in ("small", "tiled"):
        with pytest.raises(RuntimeError, match="create_graph"):
            second(conv(images))
        return
    theirs = functional.conv2d(images, conv.weight, None, stride, 1)
    torch.testing.assert_close(second(conv(images)), second(theirs))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("learns", [(True, False), (False, True)], ids=["images", "weights"])
def test_only_what_learns_gets_a_gradient(way, learns):
    channels, side, stride = WAYS[way]
    conv, images = conv3x3(channels, channels, stride), torch.randn(2, channels, side, side)
    images.requires_grad_(learns[0])
    conv.requires_grad_(learns[1])
    conv(images).square().sum().backward()
    assert (images.grad is not None, conv.weight.grad is not None) == learns


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [0, 1])
def test_16_bits_and_empty_batches_are_torchs(way, batch):
    channels, side, stride = WAYS[way]
    images = torch.randn(batch, channels, side, side)
    for conv, x in [
        (conv3x3(channels, 4, stride), images[:0]),
        (conv3x3(channels, channels, stride).bfloat16(), images.bfloat16()),
    ]:
        wanted = functional.conv2d(x, conv.weight, None, conv.stride, 1)
        torch.testing.assert_close(conv(x), wanted, rtol=0, atol=0)
        conv(x).sum().backward()


@pytest.mark.parametrize("way", WAYS)
def test_autocast_computes_in_bfloat16(way):
    channels, side, stride = WAYS[way]
    conv, images = conv3x3(channels, channels, stride), torch.randn(2, channels, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(images)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept_for_them(monkeypatch, mode):
    monkeypatch.setattr(module, "PART", 1)
    alive, spread = [], module._windows

    def windows(images):
        found = spread(images)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(module, "_windows", windows)
    most, kernels = [], module.torch.bmm

    def bmm(*tensors):
        most.append(sum(reference() is not None for reference in alive))
        return kernels(*tensors)

    monkeypatch.setattr(module.torch, "bmm", bmm)
    with mode():
        conv3x3(128, 128)(torch.randn(4, 128, 16, 16))
    assert most == [1, 1, 1, 1]
