"""A process that trains: freed memory costs no new pages, and waiting threads leave the processor to others."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from harness.schedule.on_ray import _environment
from harness.store.results import RunStore
from harness.system.process import ALLOCATOR, GROWING, allocator, let_segments_grow, wait_politely
from harness.trial.record import _device

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


@pytest.fixture
def no_allocator(monkeypatch):
    for name in ALLOCATOR:
        monkeypatch.setenv(name, "")  # which is put back, whatever a test sets
        monkeypatch.delenv(name)


@pytest.mark.skipif(sys.platform != "linux", reason="torch can do it on Linux")
def test_segments_grow_unless_told_otherwise(no_allocator, monkeypatch):
    let_segments_grow()
    assert allocator() == os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ALLOCATOR:  # the older names, too
        monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
        monkeypatch.setenv(name, "max_split_size_mb:128")
        let_segments_grow()
        assert allocator() == "max_split_size_mb:128" and os.environ.get(name) == "max_split_size_mb:128"
        monkeypatch.delenv(name)


def test_a_command_tells_the_processes_it_starts_to_let_segments_grow():
    """Those of the trials: torch reads it when it is loaded."""
    program = """
import os, sys
from harness.__main__ import main
sys.argv = ["codetr", "plan", "nowhere.yaml"]
main()
assert "torch" not in sys.modules
print(os.environ["PYTORCH_ALLOC_CONF"])
"""
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1:] == [GROWING if sys.platform == "linux" else ""], done.stderr


def test_only_the_users_own_setting_goes_to_other_nodes(no_allocator, monkeypatch, tmp_path):
    let_segments_grow()
    assert not set(_environment(RunStore(tmp_path))) & set(ALLOCATOR)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
    sent = _environment(RunStore(tmp_path))
    assert {name: sent[name] for name in ALLOCATOR if name in sent} == {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"
    }


def test_the_record_of_a_trial_on_a_gpu_has_the_setting(no_allocator, monkeypatch):
    assert _device(torch.device("cpu")) == {"device": "cpu"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert _device(torch.device("cuda")) == {"device": "a GPU", "allocator": None}
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", GROWING)
    assert _device(torch.device("cuda")) == {"device": "a GPU", "allocator": GROWING}
