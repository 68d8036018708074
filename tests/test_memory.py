"""Peak memory that is a run's own, and freed memory that is reused while a run trains."""

import platform
import resource

import pytest
import torch

from dlops import memory

CPU = torch.device("cpu")
NUMBERS = 20_000_000  # 76 MiB, more than glibc keeps


def faults(times=5):
    """Pages that the system had to give for the same tensor, made again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident():
    status = (memory.PROCESS / "status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_freed_memory_is_reused_and_given_back_at_the_end():
    pages = NUMBERS * 4 // resource.getpagesize()
    with memory.reused():
        faults(10)  # what is freed serves again once it lies together
        assert faults() < pages / 10
    assert faults() > 3 * pages
    before = _resident()
    with memory.reused():
        torch.ones(NUMBERS)
        assert _resident() > before + 60
    assert _resident() < before + 20


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
