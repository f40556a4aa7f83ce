"""Forks of one loaded process: fresh every time, and nothing outlives whom it works for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.system.forkserver import PRELOAD, ForkServer, WorkerError, WorkerLost

ROOT = Path(__file__).parents[1]
LEAK: list[str] = []


@pytest.fixture
def forks() -> Iterator[ForkServer]:
    made = ForkServer(preload=())
    yield made
    made.close()


def leave_traces(name: str) -> tuple[int, list[str], str | None]:
    LEAK.append(name)
    os.environ["TRACE"] = name
    return os.getpid(), LEAK, os.environ.get("GIVEN")


def fail(text: str) -> None:
    raise ValueError(f"{text}\nmore")


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def live_on(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_each_call_has_a_fresh_process_with_this_environment(
    forks: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIVEN", "a")
    first = forks.run(leave_traces, "x")
    monkeypatch.setenv("GIVEN", "b")
    second = forks.run(leave_traces, "y")
    assert first[1:] == (["x"], "a") and second[1:] == (["y"], "b")
    assert len({first[0], second[0], forks.process.pid, os.getpid()}) == 4


def test_what_goes_wrong_in_a_fork_is_told_and_leaves_the_server(forks: ForkServer) -> None:
    with pytest.raises(WorkerError, match="^ValueError: no$"):
        forks.run(fail, "no")
    with pytest.raises(WorkerLost, match="killed by SIGKILL"):
        forks.run(die, signal.SIGKILL)
    with pytest.raises(WorkerError, match="SystemExit"):
        forks.run(sys.exit, 3)
    assert forks.run(leave_traces, "z")[1] == ["z"]


@pytest.mark.parametrize("end", ["server killed", "closed"])
def test_a_fork_does_not_outlive_its_server(tmp_path: Path, end: str) -> None:
    forks, caught = ForkServer(preload=()), []

    def call() -> None:
        try:
            forks.run(live_on, str(tmp_path / "pid"))
        except WorkerLost as lost:
            caught.append(lost)

    thread = threading.Thread(target=call)
    thread.start()
    assert eventually((tmp_path / "pid").exists)
    assert eventually(lambda: (tmp_path / "pid").read_text() != "")
    pid = int((tmp_path / "pid").read_text())
    if end == "closed":
        forks.close()
    else:
        forks.process.kill()
        forks.process.wait()
    assert eventually(lambda: is_gone(pid))
    thread.join(20)
    assert len(caught) == 1


def test_a_fork_does_not_outlive_the_process_it_works_for(tmp_path: Path) -> None:
    code = "import sys; from harness.system.forkserver import ForkServer; from tests.test_forkserver import live_on\n"
    code += "ForkServer(preload=()).run(live_on, sys.argv[1])"
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pid")], cwd=ROOT)
    try:
        assert eventually((tmp_path / "pid").exists)
        assert eventually(lambda: (tmp_path / "pid").read_text() != "")
    finally:
        worker.kill()
        worker.wait()
    assert eventually(lambda: is_gone(int((tmp_path / "pid").read_text())))


def test_preloading_starts_no_thread_and_touches_no_accelerator() -> None:
    code = "import sys, importlib, os; [importlib.import_module(name) for name in sys.argv[1:]]\n"
    code += "import torch; print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Ray sets it in a worker of one CPU
    command = [sys.executable, "-c", code, *PRELOAD]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
