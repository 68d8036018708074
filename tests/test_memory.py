"""Peak memory that is a run's own, and freed memory that is reused while a run trains."""

import platform
import subprocess
import sys

import pytest
import torch

from dlops import memory

CPU = torch.device("cpu")
NUMBERS = 20_000_000  # 76 MiB, more than glibc keeps


# In a process of its own: what the heap looks like beforehand decides what a tensor costs.
MEASURE = """
import resource
import torch
from dlops import memory

def resident():
    status = (memory.PROCESS / "status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(20_000_000)  # 76 MiB, more than glibc keeps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults(5)
with memory.reused():
    faults(10)  # what is freed serves again once it lies together
    reused = faults(5)
    held = resident()
print(usual, reused, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_freed_memory_is_reused_and_what_is_free_at_the_end_given_back():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    usual, reused, given_back = map(float, done.stdout.split())
    assert reused < usual / 10
    assert given_back > 60


def test_an_error_inside_is_passed_on():
    with pytest.raises(ZeroDivisionError), memory.reused():
        raise ZeroDivisionError


@pytest.mark.parametrize("system", ["Darwin", "Windows", "Linux"])
def test_systems_without_glibc_train_as_well(monkeypatch, system):
    monkeypatch.setattr(memory.platform, "system", lambda: system)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with memory.reused():
        assert torch.ones(3).sum() == 3


@pytest.mark.skipif(not (memory.PROCESS / "clear_refs").exists(), reason="only Linux counts anew")
def test_the_peak_counts_anew():
    torch.ones(4 * NUMBERS)
    high = memory.peak(CPU)["peak_rss_mib"]
    memory.reset_peak(CPU)
    low = memory.peak(CPU)["peak_rss_mib"]
    assert high > low + 200
    torch.ones(2 * NUMBERS)
    assert low + 100 < memory.peak(CPU)["peak_rss_mib"] < high


def test_where_the_system_tells_nothing_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    memory.reset_peak(CPU)
    assert memory.peak(CPU)["peak_rss_mib"] > 50
