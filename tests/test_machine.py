"""Peak memory that is a run's own, and the precision that a machine has natively."""

import subprocess
import sys

import pytest
import torch

from dlops import machine

CPU = torch.device("cpu")


# In a process of its own: what the heap looks like beforehand decides what a tensor costs.
MEASURE = """
import torch
from dlops import machine

cpu = torch.device("cpu")
torch.ones(80_000_000)
high = machine.peak(cpu)["peak_rss_mib"]
machine.reset_peak(cpu)
low = machine.peak(cpu)["peak_rss_mib"]
torch.ones(40_000_000)
print(high, low, machine.peak(cpu)["peak_rss_mib"])
"""


@pytest.mark.skipif(not (machine.PROCESS / "clear_refs").exists(), reason="only Linux counts anew")
def test_the_peak_counts_anew():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    high, low, again = map(float, done.stdout.split())
    assert high > low + 200
    assert low + 100 < again < high


def test_where_the_system_tells_nothing_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "PROCESS", tmp_path)
    machine.reset_peak(CPU)
    assert machine.peak(CPU)["peak_rss_mib"] > 50


def test_auto_precision_is_what_the_device_has_natively(monkeypatch):
    native = {"avx512": False, "amx": False}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native["avx512"])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native["amx"])
    assert machine.precision("auto", CPU) == "float32"
    assert machine.precision("bfloat16", CPU) == "bfloat16"
    for name in native:
        native |= {"avx512": False, "amx": False, name: True}
        assert machine.precision("auto", CPU) == "bfloat16"
        assert machine.precision("float32", CPU) == "float32"
    assert machine.precision("auto", torch.device("mps")) == "float32"


def test_auto_precision_on_a_gpu_goes_by_its_generation(monkeypatch):
    for capability, expected in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert machine.precision("auto", torch.device("cuda")) == expected
