"""A process that trains: freed memory costs no new pages, and waiting threads leave the processor to others."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from harness.system.process import wait_politely

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of the GNU C library")

PROGRAM = """
import resource, sys, torch
from harness.system.process import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@glibc
def test_freed_memory_is_used_again():
    kept, given_back = int(run(PROGRAM, "keep")), int(run(PROGRAM, ""))
    assert kept < 100 and given_back > 10 * max(kept, 1), (kept, given_back)


def test_waiting_threads_sleep_soon_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    wait_politely()
    assert int(os.environ["GOMP_SPINCOUNT"]) <= 10_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_politely()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
