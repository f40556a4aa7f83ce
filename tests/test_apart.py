"""A trial whose process dies of a signal: told with all that is known, by whoever started it, and the rest goes on."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.schedule import on_ray
from harness.schedule.apart import Apart, run_apart
from harness.spec.grid import Trial, open_grid
from harness.store.results import RunStore
from harness.system.endings import story
from harness.system.forkserver import ForkServer, WorkerLost
from tests.support.fakes import make_trial, record, run_fake

ROOT = Path(__file__).parents[1]
SIGNALS = ("SIGSEGV", "SIGABRT", "SIGKILL", "SIGBUS", "SIGFPE", "SIGILL")


def die_in_step(trial: Trial, store: RunStore, *, report: Callable[[dict[str, Any]], None], **_: Any) -> None:
    """Reports a step, and then $DEATH."""
    record(store, trial, "running")
    if step := int(os.environ.get("STEP", "0")):
        report({"kind": "step", "step": step, "total_steps": 9})
    how = os.environ["DEATH"]
    if how == "exit":
        os._exit(5)
    if how == "fault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.Signals[how])


def wait_to_stop(trial: Trial, store: RunStore, *, should_stop: Callable[[], bool], **_: Any) -> None:
    record(store, trial, "running")
    while not should_stop():
        time.sleep(0.01)
    record(store, trial, "interrupted")


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@pytest.fixture
def apart(store: RunStore) -> Iterator[Callable[..., Apart]]:
    opened: list[Apart] = []

    def make(run_trial: Any) -> Apart:
        opened.append(Apart(store, "launch", run_trial))
        return opened[-1]

    yield make
    for one in opened:
        one.__exit__()


@pytest.mark.parametrize("name", SIGNALS)
def test_the_record_says_which_signal_and_after_which_step(
    name: str, store: RunStore, apart: Callable[..., Apart], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEATH", name)
    monkeypatch.setenv("STEP", "3")
    trial, place = make_trial(1), apart(die_in_step)
    assert place.run(trial) == ("failed", "")
    found = store.read(trial.trial_id) or {}
    assert found["status"] == store.status(trial.trial_id) == "failed"
    assert found["error"].startswith(f"its process was ended by {name} after step 3 of 9; ")
    assert "\n" not in found["error"] and ("out of memory?" in found["error"]) == (name == "SIGKILL")
    assert not (store.dir(trial.trial_id) / "lease.json").exists()
    monkeypatch.setattr(os, "environ", {**os.environ})
    assert place.run(make_trial(2))[0] == "failed", "the next one has its turn"


def test_the_log_has_where_it_was(
    store: RunStore, apart: Callable[..., Apart], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEATH", "fault")
    trial = make_trial(1)
    apart(die_in_step).run(trial)
    assert (store.read(trial.trial_id) or {})["error"].startswith(
        "its process was ended by SIGSEGV before its first step"
    )
    log = (store.dir(trial.trial_id) / "log.txt").read_text()
    assert log.startswith("its process was ended by SIGSEGV") and "in die_in_step" in log


def test_an_exit_without_a_word_is_told_too(
    store: RunStore, apart: Callable[..., Apart], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEATH", "exit")
    apart(die_in_step).run(make_trial(1))
    error = (store.read(make_trial(1).trial_id) or {})["error"]
    assert error == "its process ended with exit code 5 before its first step"


def test_the_server_of_the_forks_may_die_too(store: RunStore, apart: Callable[..., Apart]) -> None:
    place = apart(wait_to_stop)
    thread = threading.Timer(0.5, lambda: place._forks.process.kill())
    thread.start()
    assert place.run(make_trial(1)) == ("failed", "")
    thread.join()
    found = store.read(make_trial(1).trial_id) or {}
    assert (found["status"], found["error"]) == ("failed", "the process that forks the trials was killed")
    place._run_trial = run_fake
    assert place.run(make_trial(2)) == ("finished", "")


def test_a_stop_reaches_the_fork_and_a_signal_to_all_does_not(store: RunStore, apart: Callable[..., Apart]) -> None:
    """A terminal sends its signal to every process: the driver decides."""
    place, trial = apart(wait_to_stop), make_trial(1)

    def interrupt() -> None:
        while store.status(trial.trial_id) != "running" or not store.read(trial.trial_id):
            time.sleep(0.01)
        holder = (store.dir(trial.trial_id) / "lease.json").read_text()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(int(holder.partition('"pid": ')[2].partition(",")[0]), number)
            place._forks.process.send_signal(number)
        time.sleep(0.1)
        place.stop()

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert place.run(trial) == ("interrupted", "")
    thread.join()


def test_closing_ends_what_is_at_work_and_leaves_no_trial_running(store: RunStore) -> None:
    place, trial = Apart(store, "launch", wait_to_stop), make_trial(1)
    thread = threading.Thread(target=lambda: place.run(trial))
    thread.start()
    while store.status(trial.trial_id) != "running" or not store.read(trial.trial_id):
        time.sleep(0.01)
    place.__exit__()
    thread.join()
    assert store.status(trial.trial_id) in ("interrupted", "failed")


def test_a_worker_of_ray_leaves_the_reason_before_the_trial_is_tried_again(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEATH", "SIGSEGV")
    trial, forks = make_trial(1), ForkServer(preload=())
    try:
        with pytest.raises(WorkerLost) as lost:
            run_apart(forks, trial, store, "interrupted", die_alone, trial, store)
    finally:
        forks.close()
    found = store.read(trial.trial_id) or {}
    assert found["status"] == "interrupted" and found["error"] == str(lost.value)
    assert "SIGSEGV" in on_ray._reason(RuntimeError(f"a trace\nharness.forkserver.WorkerLost: {lost.value}"))


def die_alone(trial: Trial, store: RunStore) -> None:
    die_in_step(trial, store, report=lambda event: None)


def test_words_for_every_end() -> None:
    beat = {"step": 4, "total_steps": 8}
    assert story(-signal.SIGKILL, beat).startswith("was ended by SIGKILL after step 4 of 8; out of memory?")
    assert "/dev/shm" in story(-signal.SIGBUS, {"step": 4}) and " of " not in story(-signal.SIGBUS, {"step": 4})[:40]
    assert story(-64, {}) == "was ended by SIGRTMAX before its first step"
    assert story(-50, {}) == "was ended by signal 50 before its first step"
    assert story(1, {}) == "ended with exit code 1 before its first step"


def test_a_killed_trial_of_the_local_executor_is_told_and_the_next_one_runs(
    tmp_path: Path, tracking_store: str
) -> None:
    """The real one: `codetr run --executor local`, whose first trial is killed while it trains."""
    store = RunStore(tmp_path / "store")
    places = {"CODETR_STORE": str(store.root), "MLFLOW_TRACKING_URI": tracking_store}
    options = ["--preset", "digits_fast", "--set", "train.epochs=2", "--executor", "local", "--limit", "2"]
    command = [sys.executable, "-m", "harness", "run", "ablations/quickstart.yaml", *options]
    environment = {**os.environ, **places, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    deadline, killed = time.monotonic() + 120, ""
    while not killed and driver.poll() is None and time.monotonic() < deadline:
        for trial_id in store.trials():
            beat = store.read_heartbeat(trial_id) or {}
            if beat.get("step"):
                os.kill(beat["pid"], signal.SIGKILL)
                killed = trial_id
        time.sleep(0.01)
    told = driver.communicate(timeout=120)[0]
    assert driver.returncode == 1 and killed, told
    assert f"{killed}  failed  its process was ended by SIGKILL after step " in told and "out of memory?" in told
    assert sorted(store.status(trial_id) for trial_id in store.trials()) == ["failed", "finished"]
    assert "1 finished, 1 failed" in told


def test_every_shipped_preset_is_wide_enough_for_any_image_size() -> None:
    """Where a register has 16 lanes, narrower convolutions are the least tested ones of every library."""
    for name in ("digits", "digits_fast"):
        grid = open_grid(ROOT / "ablations" / "quickstart.yaml", name)
        assert {trial.config.model.backbone.width >= 16 for trial in grid.trials} == {True}, name
