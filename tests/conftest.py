"""What every test gets: stores of its own, one thread, no screen, no network."""

import ipaddress
import os
import socket
import sys

import pytest

# Before any test imports torch or numpy; processes that tests start inherit it. The thread count is
# part of every claim of bit-identity, and two test processes share two cores.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True, scope="session")
def session_stores(tmp_path_factory):
    """Fixtures of a module or a session find no results and no data of the user's either."""
    with pytest.MonkeyPatch.context() as patch:
        _empty_stores(patch, tmp_path_factory)
        yield


@pytest.fixture(autouse=True)
def own_stores(monkeypatch, tmp_path_factory):
    """Each test starts with empty stores of results, of data sets and of published reports."""
    _empty_stores(monkeypatch, tmp_path_factory)


def _empty_stores(patch, tmp_path_factory):
    for variable in [name for name in os.environ if name.startswith("DLOPS_")]:
        patch.delenv(variable)
    patch.setenv("DLOPS_STORE", str(tmp_path_factory.mktemp("store")))
    patch.setenv("DLOPS_DATA", str(tmp_path_factory.mktemp("data")))
    patch.setenv("DLOPS_REPORTS", str(tmp_path_factory.mktemp("reports")))


@pytest.fixture(autouse=True)
def one_thread():
    """A test that asked torch for more threads does not hand them to the next one."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A connection to another machine fails the test, also where the code catches errors."""
    for method in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, method, _guarded(getattr(socket.socket, method)))


def _guarded(connect):
    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            pytest.fail(f"a test tried to connect to {address[0]}:{address[1]}")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
