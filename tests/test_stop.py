"""A driver that is told to stop, and killed three seconds later as `ray job stop` does, at any phase of its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from harness.spec.grid import open_grid
from harness.store.results import RunStore
from harness.tracking import tracking
from harness.trial.checkpoint import CHECKPOINT

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "ablations" / "quickstart.yaml")
SETTINGS = ("train.epochs=40", "model.heads=[]")
GRACE = 3.0  # of `ray job stop`

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def store(tmp_path: Path, tracking_store: str, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return RunStore()


def command(*more: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return [
        sys.executable,
        "-m",
        "harness",
        "run",
        QUICKSTART,
        "--preset",
        "digits_fast",
        "--seeds",
        "0,1",
        *settings,
        *more,
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("phase", "later"),
    [
        ("trials to run", 0.0),
        ("starting Ray", 0.3),
        ("starting Ray", 2.0),
        ("waiting for workers", 0.5),
        ("epoch 2/", 0.5),
    ],
)
def test_statuses_are_true_whenever_it_is_stopped(
    store: RunStore, tracking_store: str, number: int, phase: str, later: float
) -> None:
    driver = subprocess.Popen(command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = []
        for line in driver.stdout:
            said.append(line)
            if phase in line:
                break
        time.sleep(later)
        driver.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(GRACE)
    finally:
        driver.kill()
    said += list(driver.stdout)
    text = "".join(said)
    assert driver.wait() in (130, -signal.SIGKILL), text
    assert "stopped: " in text and "the same command continues" in text and "Traceback" not in text, text

    client = tracking.connect(tracking_store)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    runs = tracking.find_runs(client, str(experiment.experiment_id), "")
    assert runs or phase == "trials to run"  # before the tracking store knows of it
    assert {run.info.status for run in runs} <= {"KILLED"}
    grid = open_grid(QUICKSTART, "digits_fast", SETTINGS, seeds=[0, 1])
    states = {trial.trial_id: store.status(trial.trial_id) for trial in grid.trials}
    assert set(states.values()) <= {"interrupted", "pending"}
    if phase == "epoch 2/":
        begun = [key for key, state in states.items() if state == "interrupted"]
        assert begun and all((store.dir(key) / "checkpoint" / CHECKPOINT).exists() for key in begun)
        reached = [max(line["step"] for line in store.metrics(key)) for key in begun if store.metrics(key)]
        again = subprocess.run(command("--executor", "local"), cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0, again.stderr
        assert {store.status(key) for key in states} == {"finished"}
        assert reached and "epoch 1/" not in "".join(line for line in again.stdout.splitlines() if begun[0] in line)


def test_the_next_run_sets_right_what_a_killed_driver_left_running(store: RunStore, tracking_store: str) -> None:
    driver = subprocess.Popen(command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    client = tracking.connect(tracking_store)
    experiment = str(client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    grid = open_grid(QUICKSTART, "digits_fast", SETTINGS, seeds=[0, 1])
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            runs = tracking.find_runs(client, experiment, "tags.trial_id LIKE '%'")
            if "RUNNING" in {run.info.status for run in runs}:
                break
            time.sleep(0.2)
    finally:
        driver.kill()
        driver.wait()
    runs = tracking.find_runs(client, experiment, "")
    assert {run.info.status for run in runs} == {"RUNNING"} and len(runs) > 1
    deadline = time.monotonic() + 30  # its workers end by themselves
    while "running" in {store.status(trial.trial_id) for trial in grid.trials} and time.monotonic() < deadline:
        time.sleep(0.1)
    synced = [sys.executable, "-m", "harness", "sync", *command()[4:]]
    done = subprocess.run(synced, cwd=ROOT, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert {run.info.status for run in tracking.find_runs(client, experiment, "")} == {"KILLED"}
