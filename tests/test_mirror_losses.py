"""What was deleted in MLflow, and what it refuses, costs nothing else: the mirror brings back what the records have."""

from __future__ import annotations

import re
from typing import Any

import pytest
from mlflow import MlflowClient

from harness.errors import UserError
from harness.store.housekeeping import remove
from harness.store.results import RunStore
from harness.tracking import mirror as mirror_room
from harness.tracking import mlflow_runs, tracking
from harness.tracking.failures import ExperimentDeleted
from harness.tracking.mirror import Mirror, sync
from tests.support.fakes import finish, make_grid, make_trial, record
from tests.support.tracked import assert_equal_to_records, runs_of_trials

CLASSES = {
    **{name: float(number) for number, name in enumerate((".", "/", "+", "*", "", "..", "AP", "a\nb", "é", "日本"))},
    **{
        "x" * 300: 20.0,
        "x" * 299 + "y": 21.0,
        "Car": 22.0,
        "car": 23.0,
        "traffic light": 24.0,
        "a@b": 25.0,
        "a#b": 26.0,
    },
}


def delete_experiment(uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)


def test_class_names_come_back_as_they_were(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    finish(store, trial)
    record(store, trial, "finished", per_class=CLASSES, metrics={"AP": 31.0, "AP@300": 33.0, "atss/AP": 15.0})
    lines: list[str] = []
    sync(store, make_grid(trial), say=lines.append)
    assert not lines
    (back,) = tracking.read_records([trial.trial_id])
    assert back["per_class"] == CLASSES and back["metrics"]["AP@300"] == 33.0 and "AP_300" not in back["metrics"]
    assert_equal_to_records(tracking_store, store, [trial], "fakes")
    sync(store, make_grid(trial), say=lines.append)  # and there is nothing left to do
    assert not lines


def test_names_of_many_classes_are_read_from_the_record(store: RunStore, tracking_store: str) -> None:
    """A tag holds 5,000 letters."""
    trial = make_trial(1)
    finish(store, trial)
    per_class = {f"class number {number} (of a thousand)": float(number) for number in range(1000)}
    record(store, trial, "finished", per_class=per_class)
    sync(store, make_grid(trial))
    (back,) = tracking.read_records([trial.trial_id])
    assert back["per_class"] == per_class


def test_a_metric_of_later_epochs_has_its_course_under_its_own_name(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    for epoch in (1, 2):
        store.append_metrics(trial.trial_id, {"epoch": epoch, "step": epoch, "AP": 1.0 * epoch, "AP@300": 2.0 * epoch})
    record(store, trial, "finished")
    sync(store, make_grid(trial))
    (back,) = tracking.read_records([trial.trial_id], history=("AP@300",))
    assert [entry["AP@300"] for entry in back["history"]] == [2.0, 4.0]


def test_what_mlflow_refuses_is_told_once_and_costs_nothing_else(
    store: RunStore, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(1)
    finish(store, trial)
    record(store, trial, "finished", per_class={f"c{number}": 1.0 * number for number in range(40)} | {"bad": 1.0})
    real = MlflowClient.log_batch

    def picky(client: MlflowClient, run_id: str, metrics: Any = (), **rest: Any) -> Any:
        if any(metric.key == "per_class/bad" for metric in metrics):
            from mlflow.exceptions import MlflowException
            from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

            raise MlflowException("Invalid value for name", INVALID_PARAMETER_VALUE)
        return real(client, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", picky)
    lines: list[str] = []
    mirror = Mirror(store, make_grid(trial), tracking_store, lines.append)
    mirror.open()
    assert mirror.sync() and mirror.close()
    assert len(lines) == 1 and "does not take the metric 'per_class/bad' (Invalid value for name)" in lines[0]
    (back,) = tracking.read_records([trial.trial_id])
    assert back["status"] == "finished" and len(back["per_class"]) == 40
    sync(store, make_grid(trial), say=lines.append)
    assert len(lines) == 1


def test_a_deleted_run_is_no_refusal() -> None:
    class Error(Exception):
        error_code = "INVALID_PARAMETER_VALUE"

    assert mlflow_runs.is_refusal(Error("Invalid value"))
    assert not mlflow_runs.is_refusal(Error("The run must be in the 'active' state. Current state is deleted."))
    assert not mlflow_runs.is_refusal(ConnectionError("refused"))


def test_deleted_runs_are_made_again(store: RunStore, tracking_store: str) -> None:
    trials = [make_trial(1), make_trial(2)]
    for trial in trials:
        finish(store, trial)
    sync(store, make_grid(*trials))
    client = MlflowClient(tracking_uri=tracking_store)
    for run in runs_of_trials(tracking_store)[:1]:
        client.delete_run(run.info.run_id)
    sync(store, make_grid(*trials))
    assert_equal_to_records(tracking_store, store, trials, "fakes")


def test_a_deleted_experiment_is_restored_without_what_was_removed(store: RunStore, tracking_store: str) -> None:
    trials = [make_trial(number) for number in (1, 2, 3)]
    for trial in trials:
        finish(store, trial)
    sync(store, make_grid(*trials))
    remove(store, trials[2].trial_id)
    finish(store, trials[1], epochs=1)  # trained again otherwise: another run takes the place of the first
    store.restore_metrics(trials[1].trial_id, [{"epoch": 1, "step": 3, "AP": 1.0, "time": 5.0}])
    sync(store, make_grid(*trials))
    before = {run.info.run_id for run in runs_of_trials(tracking_store)}
    assert len(before) == 2
    delete_experiment(tracking_store)
    with pytest.raises(ExperimentDeleted, match="codetr sync .*mlflow experiments restore --experiment-id 1"):
        tracking.read_records([trials[0].trial_id])
    lines: list[str] = []
    sync(store, make_grid(*trials), say=lines.append)
    assert [line for line in lines if "is restored" in line] == lines and len(lines) == 1
    assert {run.info.run_id for run in runs_of_trials(tracking_store)} == before


def test_an_experiment_deleted_in_mid_run_is_restored(
    store: RunStore, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_room, "RETRY_SECONDS", 0.0)
    first, second = make_trial(1), make_trial(2)
    lines: list[str] = []
    mirror = Mirror(store, make_grid(first, second), tracking_store, lines.append)
    mirror.open()
    finish(store, first)
    assert mirror.sync()
    delete_experiment(tracking_store)
    finish(store, second)
    mirror.sync()
    assert mirror.close() and len(lines) == 1 and "is restored" in lines[0]
    assert_equal_to_records(tracking_store, store, [first, second], "fakes")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied"), "cannot be written .*; give this user the right"),
        (OSError(28, "No space left on device"), "has no room left .*; make room"),
        (ConnectionRefusedError(111, "Connection refused"), r"is away \(Connection refused\)"),
        (ValueError("went wrong at http://alice:SECRET@host"), r"cannot be used: .*http://alice:\*\*\*@host"),
    ],
)
def test_a_failure_in_mid_run_is_told_as_what_it_is(
    error: Exception, told: str, store: RunStore, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    trial = make_trial(1)
    mirror = Mirror(store, make_grid(trial), tracking_store, lines.append)
    mirror.open()
    finish(store, trial)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as failing:
        failing.setattr(MlflowClient, "log_batch", fail)
        assert not mirror.sync() and not mirror.close()
        with pytest.raises(UserError, match=told.replace(r"is away \(Connection refused\)", "Connection refused")):
            sync(store, make_grid(trial))
    assert len(lines) == 1 and re.search(told, lines[0]) and "training goes on" in lines[0]
