"""The scheduler: runs what is missing, nothing twice, and leaves true statuses whatever happens to trials."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import RuntimeConfig
from harness.errors import UserError
from harness.schedule import execute
from harness.schedule.cluster import bundle, resource_notes
from harness.schedule.schedule import Summary, run_grid
from harness.spec.grid import Grid
from harness.spec.identity import config_to_dict
from harness.store.results import RunStore
from harness.tracking import tracking
from tests.support.fakes import EPOCHS, epochs_run, finish, make_grid, make_trial, record, run_fake, starts

ROOT = Path(__file__).parents[1]


@pytest.fixture
def lines() -> list[str]:
    return []


def no_check(*_: Any) -> None:
    pass


def run_local(grid: Grid, store: RunStore, lines: list[str], **options: Any) -> Summary:
    options = {"run_trial": run_fake, "check_data": no_check, **options}
    return run_grid(grid, store, executor="local", out=lines.append, **options)


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{number:012x}" for number in numbers)


def test_runs_what_is_missing_and_nothing_twice(store: RunStore, lines: list[str], without_mlflow: None) -> None:
    trials = [make_trial(number) for number in (1, 2, 3)]
    finish(store, trials[0])
    summary = run_local(make_grid(*trials), store, lines)
    assert summary == Summary(ids(2, 3), (), (), ids(1), ())
    assert [starts(store, trial) for trial in trials] == [0, 1, 1]
    lines.clear()
    again = run_local(make_grid(*trials), store, lines)
    assert again.skipped == ids(1, 2, 3) and again.finished == ()
    assert [starts(store, trial) for trial in trials] == [0, 1, 1]
    assert lines[-1] == "fakes  nothing is left to do: all 3 trials are finished"


def test_a_failing_trial_does_not_stop_the_grid(
    store: RunStore, lines: list[str], without_mlflow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "1")
    grid = make_grid(make_trial(1), make_trial(2))
    summary = run_local(grid, store, lines)
    assert (summary.finished, summary.failed) == (ids(2), ids(1))
    assert any("failed  ValueError: told to fail" in line for line in lines)
    assert "told to fail" in lines[-1]
    monkeypatch.delenv("FAKE_FAIL")
    assert run_local(grid, store, lines).finished == ids(1)
    assert epochs_run(store, grid.trials[0]) == [1, 2, 3]  # continued after the first epoch


def test_a_trial_that_dies_without_a_word_has_its_reason_and_log(
    store: RunStore, lines: list[str], without_mlflow: None
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel\nsecond line")

    trial = make_trial(1)
    record(store, trial, "failed", error="an older reason")
    assert run_local(make_grid(trial), store, lines, run_trial=broken).failed == ids(1)
    assert (store.read(trial.trial_id) or {})["error"] == "RuntimeError: no kernel"
    log = store.dir(trial.trial_id) / "log.txt"
    assert "second line" in log.read_text() and str(log) in lines[-1]


def test_a_trial_that_dies_before_its_first_record_leaves_what_it_was(
    store: RunStore, lines: list[str], without_mlflow: None
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel")

    trial = make_trial(1)
    run_local(make_grid(trial), store, lines, run_trial=broken)
    found = store.read(trial.trial_id) or {}
    assert found["config"] == config_to_dict(trial.config)
    assert (found["label"], found["factors"]) == (trial.label, trial.factors)
    assert (found["fingerprint"], found["weights_hash"]) == (trial.fingerprint, trial.weights_hash)


def test_a_trial_of_another_process_is_left_to_it(store: RunStore, lines: list[str], without_mlflow: None) -> None:
    trials = [make_trial(1), make_trial(2)]
    with store.claim(trials[0].trial_id):  # type: ignore[union-attr]
        summary = run_local(make_grid(*trials), store, lines)
        assert summary.elsewhere == ids(1) and summary.finished == ids(2)
    assert starts(store, trials[0]) == 0
    assert "1 run by another process" in lines[-1]


def test_limit_runs_some_now_and_the_rest_later(store: RunStore, lines: list[str], without_mlflow: None) -> None:
    grid = make_grid(make_trial(1), make_trial(2), make_trial(3))
    first = run_local(grid, store, lines, limit=1, concurrent=4)
    assert first.finished == ids(1) and first.interrupted == ids(2, 3)
    assert any("--concurrent 4 has no effect" in line for line in lines)
    assert run_local(grid, store, lines).finished == ids(2, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_trial_stop_by_itself(
    number: int, store: RunStore, lines: list[str], without_mlflow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_HANG", "1")
    grid = make_grid(make_trial(1), make_trial(2))

    def stop_when_running() -> None:
        while store.status(grid.trials[0].trial_id) != "running":
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop_when_running)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_local(grid, store, lines)
    thread.join()
    assert [store.status(trial.trial_id) for trial in grid.trials] == ["interrupted", "pending"]
    assert "stopped: 2 not finished" in lines[-1]
    monkeypatch.delenv("FAKE_HANG")
    assert run_local(grid, store, lines).finished == ids(1, 2)
    assert epochs_run(store, grid.trials[0]) == [1, 2, 3]


def test_a_signal_gets_through_even_where_python_drops_what_its_handler_raises() -> None:
    class Last:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler raises here

    with pytest.raises(KeyboardInterrupt), execute.on_signals(execute.stop_now):
        last = Last()
        del last
        time.sleep(5)
        pytest.fail("it was dropped")


def test_data_is_checked_once_and_before_anything_runs(
    store: RunStore, lines: list[str], without_mlflow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.data

    opened: list[Any] = []

    def open_splits(config: Any, *, progress: Callable[[str], None], with_masks: bool) -> None:
        assert not with_masks
        opened.append(config)
        progress("looking")
        raise UserError("val: image 3 is missing")

    monkeypatch.setattr(harness.data, "open_splits", open_splits)
    grid = make_grid(make_trial(1), make_trial(2))
    with pytest.raises(UserError, match="image 3 is missing"):
        run_local(grid, store, lines, check_data=None)
    assert len(opened) == 1 and "fakes  looking" in lines
    assert [starts(store, trial) for trial in grid.trials] == [0, 0]


def test_mlflow_equals_the_records_at_the_end(
    store: RunStore, lines: list[str], tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "2")
    trials = [make_trial(number) for number in (1, 2)]
    finish(store, trials[0])  # by an earlier run that could not reach the tracking store
    run_local(make_grid(*trials), store, lines)
    found = tracking.read_records([trial.trial_id for trial in trials])
    assert [(r["status"], len(r["history"]), list(r["grids"])) for r in found] == [
        ("finished", EPOCHS, ["fakes"]),
        ("failed", 1, ["fakes"]),
    ]


def test_unreachable_tracking_store_stops_before_anything_runs(
    store: RunStore, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    trial = make_trial(1)
    with pytest.raises(UserError, match="127.0.0.1:9 cannot be reached"):
        run_local(make_grid(trial), store, lines)
    assert starts(store, trial) == 0


def test_local_executor_needs_neither_ray_nor_mlflow(store: RunStore) -> None:
    code = """
import sys
sys.modules["ray"] = sys.modules["mlflow"] = None  # as if not installed
from importlib import util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name in ("ray", "mlflow") else found(name, package)
from tests.support.fakes import make_grid, make_trial, run_fake
from harness.store.results import RunStore
from harness.schedule.schedule import run_grid
print(run_grid(make_grid(make_trial(1)), RunStore(), executor="local", run_trial=run_fake, check_data=lambda *_: None))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"finished=({ids(1)[0]!r},)" in done.stdout
    assert "mlflow is not installed" in done.stdout


def test_threads_follow_the_cpu_share(store: RunStore, lines: list[str], without_mlflow: None) -> None:
    import torch

    before = torch.get_num_threads()
    seen: list[int] = []

    def work(trial: Any, *_: Any, **__: Any) -> None:
        seen.append(torch.get_num_threads())
        record(store, trial, "finished")

    grid = make_grid(
        make_trial(1, runtime=RuntimeConfig(cpus_per_trial=0.5)), make_trial(2, runtime=RuntimeConfig(cpus_per_trial=2))
    )
    try:
        run_local(grid, store, lines, run_trial=work)
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]


def test_a_lost_rank_fails_a_local_trial_which_can_be_run_again(
    store: RunStore, lines: list[str], without_mlflow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LOSE", "1")
    grid = make_grid(make_trial(1), make_trial(2))
    summary = run_local(grid, store, lines)
    assert (summary.finished, summary.failed) == (ids(2), ids(1))
    assert "rank 1 of 2 was ended by SIGKILL" in lines[-1]
    assert run_local(grid, store, lines).finished == ids(1)


def test_what_a_trial_asks_of_ray() -> None:
    assert bundle(RuntimeConfig(cpus_per_trial=0.5)) == {"CPU": 0.5, "GPU": 0.0}
    two = RuntimeConfig(cpus_per_trial=4, gpus_per_trial=2, ranks=2, accelerator_type="H100")
    assert bundle(two) == {"CPU": 4, "GPU": 2, "accelerator_type:H100": 0.001}


def test_a_trial_that_can_never_start_is_refused_where_nothing_can_be_added() -> None:
    runtimes = [RuntimeConfig(), RuntimeConfig(gpus_per_trial=1, accelerator_type="H100")]
    there = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}
    assert resource_notes(runtimes, there, may_grow=False) == []
    other = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}
    with pytest.raises(UserError, match=r"asks for a GPU of type H100, this machine has 8 CPUs and 1 GPUs \(L4\)"):
        resource_notes(runtimes, other, may_grow=False)
    (note,) = resource_notes(runtimes, {"CPU": 8.0}, may_grow=True)
    assert note == "a trial asks for 1 CPUs and 1 GPUs and a GPU of type H100; the cluster has 8 CPUs and 0 GPUs now"
    assert resource_notes(runtimes[:1], there, may_grow=False) == [
        "there are GPUs, but no trial asks for one; see --gpus-per-trial"
    ]


@pytest.mark.ray
def test_ray_runs_fails_retries_and_repeats_nothing(
    store: RunStore, lines: list[str], tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is well, one raises, one loses its worker in the last epoch and continues there, one loses a rank."""
    monkeypatch.setenv("FAKE_FAIL", "2")
    monkeypatch.setenv("FAKE_KILL", "3")
    monkeypatch.setenv("FAKE_LOSE", "4")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers
    grid = make_grid(*[make_trial(number, runtime=RuntimeConfig(cpus_per_trial=0.5)) for number in (1, 2, 3, 4)])
    summary = run_grid(grid, store, run_trial=run_fake, check_data=no_check, concurrent=4, out=lines.append)
    assert (summary.finished, summary.failed) == (ids(1, 3, 4), ids(2))
    assert [starts(store, trial) for trial in grid.trials] == [1, 1, 2, 2]
    assert epochs_run(store, grid.trials[2]) == epochs_run(store, grid.trials[3]) == [1, 2, 3]
    told = tracking.read_records([trial.trial_id for trial in grid.trials])
    assert [r["status"] for r in told] == ["finished", "failed", "finished", "finished"]
    assert not list((store.root / "launches").iterdir())
    again = run_grid(grid, store, run_trial=run_fake, check_data=no_check, limit=0, out=lines.append)
    assert again.skipped == ids(1, 3, 4) and [starts(store, trial) for trial in grid.trials] == [1, 1, 2, 2]


def test_a_cluster_that_does_not_answer_is_one_line(
    store: RunStore, lines: list[str], without_mlflow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # taken, but nobody listens
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match="RAY_ADDRESS"):
            run_grid(make_grid(make_trial(1)), store, run_trial=run_fake, check_data=no_check, out=lines.append)


def test_available_cpus_is_what_this_process_may_use() -> None:
    assert 1 <= execute.available_cpus() <= (os.cpu_count() or 1)
