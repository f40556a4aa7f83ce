"""The tracking store goes away at any moment and comes back: it misses nothing, and training does not notice."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from harness.spec.grid import open_grid
from harness.store.results import RunStore
from harness.tracking import mirror as mirror_room
from harness.tracking.mirror import Mirror, sync
from tests.support.fakes import entry, finish, make_grid, make_trial, record
from tests.support.tracked import assert_equal_to_records, runs_of_trials

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "ablations" / "quickstart.yaml")
CALLS = ("search_runs", "create_run", "set_tag", "log_param", "log_batch", "log_artifact", "update_run")


class Outage:
    """Counts the calls that change or ask the store, and lets them fail from the `fails_from`-th on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.fails_from = 0, 10**9
        for name in CALLS:
            monkeypatch.setattr(MlflowClient, name, self._wrapped(getattr(MlflowClient, name)))

    def _wrapped(self, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count > self.fails_from:
                raise ConnectionError("connection refused")
            return real(*arguments, **options)

        return call


def test_an_outage_at_any_call_costs_nothing(
    tmp_path: Path, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th trial loses the connection at the n-th call, is on record by then or goes on, and is replayed."""
    store, outage = RunStore(tmp_path / "store"), Outage(monkeypatch)
    monkeypatch.setattr(mirror_room, "RETRY_SECONDS", 0.0)
    trials = [make_trial(number) for number in range(1, 60)]
    mirror = Mirror(store, make_grid(*trials), warn=lambda line: None)
    mirror.open()
    cut = 0
    for number, trial in enumerate(trials):
        store.write_config(trial.trial_id, {"seed": number})
        store.append_metrics(trial.trial_id, entry(trial, 1))
        record(store, trial, "running" if number % 2 else "failed", error=None if number % 2 else "ValueError: no")
        outage.count, outage.fails_from = 0, number
        through = mirror.sync([trial])
        outage.fails_from = 10**9
        finish(store, trial) if number % 2 else store.append_metrics(trial.trial_id, entry(trial, 2))
        if through:
            break
        cut += 1
    else:
        pytest.fail("it never got through")
    assert cut > 10
    assert mirror.close()
    for trial in trials:
        (store.dir(trial.trial_id) / "log.txt").unlink(missing_ok=True)
    assert_equal_to_records(tracking_store, store, trials, "fakes")


def test_epochs_trained_again_otherwise_replace_what_the_store_was_told(tmp_path: Path, tracking_store: str) -> None:
    """As when both checkpoints were torn, or a trial was begun anew by hand."""
    store, trial = RunStore(tmp_path / "store"), make_trial(1)
    grid = make_grid(trial)
    finish(store, trial)
    sync(store, grid)
    (first,) = runs_of_trials(tracking_store)
    sync(store, grid)
    assert [run.info.run_id for run in runs_of_trials(tracking_store)] == [first.info.run_id]
    for epoch in (2, 3):
        store.append_metrics(trial.trial_id, {**entry(trial, epoch), "AP": 50.0 + epoch})
    record(store, trial, "finished")
    sync(store, grid)
    assert_equal_to_records(tracking_store, store, [trial], "fakes")
    (second,) = runs_of_trials(tracking_store)
    assert second.data.tags["mlflow.parentRunId"] == first.data.tags["mlflow.parentRunId"]
    assert second.info.run_name == first.info.run_name


# ---- a real server


class Server:
    """An `mlflow server` on loopback that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        database, artifacts = self.folder / "mlflow.db", self.folder / "artifacts"
        places = ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(artifacts)]
        listen = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with open(self.folder / "server.log", "ab") as log:
            command = [sys.executable, "-m", "mlflow", "server", *places, *listen]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: the server and its workers, no others
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, template_store: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(template_store, folder / "mlflow.db")
    made = Server(folder)
    made.start()
    yield made
    made.stop()


@pytest.mark.slow
def test_a_server_killed_in_mid_run_gets_all_by_sync(tmp_path: Path, server: Server) -> None:
    """Real trials and the real commands: run, the server dies, the run ends well, the server is back, sync."""
    places = {"CODETR_STORE": str(tmp_path / "store"), "MLFLOW_TRACKING_URI": server.uri}
    environment, store = {**os.environ, **places, "OMP_NUM_THREADS": "1"}, RunStore(tmp_path / "store")
    options = [QUICKSTART, "--preset", "digits_fast", "--set", "train.epochs=8"]
    grid = open_grid(QUICKSTART, "digits_fast", ["train.epochs=8"])

    def command(name: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "harness", name, *options, *more]

    with open(tmp_path / "run.log", "w") as log:
        run = subprocess.Popen(command("run", "--executor", "local"), cwd=ROOT, env=environment, stdout=log)
    try:
        while run.poll() is None and len(store.metrics(grid.trials[1].trial_id)) < 2:
            time.sleep(0.05)
        server.stop()
        assert run.wait(240) == 0
    finally:
        run.kill()
    lines = (tmp_path / "run.log").read_text()
    assert lines.count("is away") == 1 and "training goes on" in lines
    assert [store.status(trial.trial_id) for trial in grid.trials] == ["finished"] * 3

    refused = subprocess.run(command("sync"), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and server.uri in refused.stderr and "Traceback" not in refused.stderr
    server.start()
    done = subprocess.run(command("sync"), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_equal_to_records(server.uri, store, grid.trials, grid.key)
