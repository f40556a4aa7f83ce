"""A process that trains: freed memory costs no new pages, and waiting threads leave the processor to others."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from harness.process import wait_politely

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of the GNU C library")

PROGRAM = """
import resource, sys, torch
from harness.process import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory() and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""


def run(program: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@glibc
def test_freed_memory_is_used_again():
    kept, given_back = int(run(PROGRAM, "keep")[1]), int(run(PROGRAM, "")[1])
    assert kept < 100 and given_back > 10 * max(kept, 1), (kept, given_back)


@glibc
def test_the_heap_has_large_pages():
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not offered.exists() or "[never]" in offered.read_text():
        pytest.skip("this system has no transparent huge pages")
    first = int(run(PROGRAM, "keep")[0])
    assert first < 12_000_000 * 4 / 4096 / 4  # pages of 4 KB would be 11,719 for one tensor


def test_a_limit_of_address_space_is_no_obstacle():
    program = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from harness.process import keep_freed_memory
keep_freed_memory()
print(len(bytearray(2**27)))
"""
    assert run(program) == [str(2**27)]


def test_waiting_threads_sleep_soon_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    wait_politely()
    assert int(os.environ["GOMP_SPINCOUNT"]) <= 10_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_politely()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
