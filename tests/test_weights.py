"""Weights from files as they are found, checked by digests, fitted by names and shapes."""

import hashlib
import pickle
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from dlops import resnet
from dlops.data import weights as module
from dlops.data.weights import digest, fetch_imagenet, matching, read_weights, source_weights
from dlops.settings import DlopsError


@pytest.fixture(scope="module")
def theirs():
    """torchvision's network, its batch norms as after training."""
    torch.manual_seed(3)
    network = torchvision.models.resnet18()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return network.eval()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Writes a file where weights are looked for, and says that it is the published one."""
    monkeypatch.setenv("DLOPS_DATA", str(tmp_path))

    def write(content, name="IMAGENET", right=True):
        info = getattr(module, name)
        path = tmp_path / "weights" / info.url.rsplit("/", 1)[1]
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            torch.save(content, path)
        else:
            path.write_bytes(content)
        if right:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            monkeypatch.setattr(module, name, replace(info, checksum=f"sha256:{found}"))
        return path

    return write


def test_the_published_file_is_the_official_one():
    assert module.IMAGENET.url == torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    for info in (module.IMAGENET, module.OLD_NAME):
        kind, checksum = info.checksum.split(":")
        assert kind == "sha256" and len(checksum) == 64
        assert f"-{checksum[:8]}.pth" in info.url  # as torchvision names its files


@pytest.mark.parametrize("name", ["IMAGENET", "OLD_NAME"])
@pytest.mark.parametrize("counters", [True, False])
def test_imagenet_weights_give_torchvisions_outputs(published, theirs, name, counters):
    state = theirs.state_dict()
    if not counters:
        state = {k: v for k, v in state.items() if "num_batches" not in k}
    published(state, name)
    weights, found = source_weights("imagenet")
    assert found == digest(theirs.state_dict())
    network = resnet.ResNet18(7, stem="imagenet").eval()
    wanted = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    network.load_state_dict(matching(weights, wanted, "imagenet"), strict=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        body = nn.Sequential(*list(theirs.children())[:-1], nn.Flatten())
        torch.testing.assert_close(network.features(images), body(images), rtol=1e-5, atol=1e-5)
        assert network(images).shape == (2, 7)


def test_another_file_of_that_name_is_refused_and_kept(published):
    path = published(b"not what was published", right=False)
    with pytest.raises(DlopsError, match="has the SHA256 checksum .* must have f37072fd"):
        source_weights("imagenet")
    assert path.read_bytes() == b"not what was published"


def test_the_vector_quantised_weights_prove_themselves(tmp_path, monkeypatch, theirs):
    monkeypatch.setenv("DLOPS_DATA", str(tmp_path))
    path = tmp_path / "weights" / "resnet18-imagenet-vq.pth"
    with pytest.raises(DlopsError, match=f"{path} cannot be read"):
        source_weights("imagenet-vq")
    path.parent.mkdir()
    torch.save(theirs.state_dict(), path)
    with pytest.raises(DlopsError, match="tensors of the digest .* must have fcf84222"):
        source_weights("imagenet-vq")
    monkeypatch.setattr(module, "IMAGENET_VQ", digest(theirs.state_dict()))
    assert source_weights("imagenet-vq")[0].keys() == theirs.state_dict().keys()


def test_the_digest_is_of_names_and_bytes_by_name():
    tensors = {"b": torch.arange(3.0), "a": torch.tensor(7)}
    expected = hashlib.sha256()
    for name in sorted(tensors):
        expected.update(name.encode() + tensors[name].numpy().tobytes())
    assert digest(tensors) == expected.hexdigest()
    assert digest({**tensors, "b": torch.tensor([0.0, 1.0, 2.5])}) != digest(tensors)
    assert digest({"a": tensors["a"], "c": tensors["b"]}) != digest(tensors)
    assert digest({"a": torch.ones(2, dtype=torch.bfloat16)})


def wild():
    """As DataParallel, torch.compile and usual training scripts save a network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    plain = network.state_dict()
    return plain, {
        "bare": plain,
        "DataParallel": nn.DataParallel(network).state_dict(),
        "compiled": {f"_orig_mod.{name}": value for name, value in plain.items()},
        "both": {f"module._orig_mod.{name}": value for name, value in plain.items()},
        "checkpoint": {"state_dict": plain, "epoch": 3, "optimizer": {"lr": 0.1}},
        "another": {"model": plain, "arch": "resnet18"},
        "without counters": {k: v for k, v in plain.items() if "num_batches" not in k},
    }


@pytest.mark.parametrize("kind", wild()[1].keys())
def test_weights_in_the_wild(tmp_path, kind):
    """github.com/pytorch/pytorch/issues/101107: _orig_mod. in the names of a compiled network"""
    plain, kinds = wild()
    torch.save(kinds[kind], tmp_path / "weights.pth")
    found = read_weights(tmp_path / "weights.pth")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert source_weights(str(tmp_path / "weights.pth"))[1] == digest(plain)


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content, words",
    [
        (pickle.dumps({"conv1.weight": Harmful()}), "does not hold weights that can be read"),
        (b"", "does not hold weights"),
        (b"<html>Sign in</html>", "does not hold weights"),
        (nn.Linear(2, 2), "save a network's state_dict"),
        ([1, 2], "holds no state_dict, but a list"),
        ({}, "holds no state_dict"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({"w": torch.tensor([1.0, np.nan])}, "not finite, in 'w'"),
    ],
)
def test_what_is_no_weights_is_one_sentence(tmp_path, capsys, content, words):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(DlopsError, match=words) as error:
        read_weights(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert "run" not in capsys.readouterr().out


def test_a_cut_file_and_a_folder_are_one_sentence(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[:-500])
    with pytest.raises(DlopsError, match="does not hold weights"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(DlopsError, match="cannot be read"):
        read_weights(tmp_path)


def test_the_first_name_that_does_not_fit_is_told_with_both_shapes():
    there = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1000, 512)}
    assert list(matching(there, {"conv1.weight": there["conv1.weight"]}, "x")) == ["conv1.weight"]
    with pytest.raises(DlopsError, match=r"conv1.weight: \(64, 3, 7, 7\) there, \(64, 3, 3, 3\)"):
        matching(there, {"conv1.weight": torch.zeros(64, 3, 3, 3)}, "x")
    with pytest.raises(DlopsError, match="x do not fit this network at bn1.weight: none there"):
        matching(there, {"bn1.weight": torch.zeros(64)}, "x")


def test_weights_are_fetched_once_and_verified(published, tmp_path, monkeypatch):
    source = tmp_path / "served"
    source.mkdir()
    (source / "resnet18-f37072fd.pth").write_bytes(b"weights")
    handler = partial(SimpleHTTPRequestHandler, directory=source)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    path = published(b"weights")
    path.unlink()
    url = f"http://127.0.0.1:{server.server_port}/resnet18-f37072fd.pth"
    monkeypatch.setattr(module, "IMAGENET", replace(module.IMAGENET, url=url))
    assert fetch_imagenet() == path
    server.shutdown()
    server.server_close()
    assert path.read_bytes() == b"weights"
    assert fetch_imagenet() == path  # no server is needed any more
    assert not list(path.parent.glob("*.part"))
