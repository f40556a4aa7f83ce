"""The mirror: MLflow equals the records, each trial is one run, statuses are true, and outages cost nothing."""

from __future__ import annotations

import base64
import json
import sqlite3
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from harness.errors import UserError
from harness.files import write_atomic
from harness.revisit.kept import mirror_trials
from harness.spec.grid import Trial
from harness.spec.identity import config_to_dict
from harness.store.results import RunStore
from harness.tracking import mirror as mirror_room
from harness.tracking import tracking, ui, views
from harness.tracking.metric_names import flat_metrics
from harness.tracking.mirror import Mirror, sync
from harness.tracking.mlflow_runs import VIEW_TAG
from tests.support.fakes import EPOCHS, entry, finish, make_grid, make_trial, record
from tests.support.ports import free_port


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def runs(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def trial_runs(uri: str) -> list[Run]:
    return [run for run in runs(uri) if "trial_id" in run.data.tags]


def history(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=uri)
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_what_goes_in_comes_back(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    made = finish(store, trial)
    sync(store, make_grid(trial))
    (back,) = tracking.read_records([trial.trial_id, "unknown"])
    assert back["status"] == "finished" and back["label"] == trial.label and back["error"] is None
    assert back["metrics"] == {"AP": 31.0, "atss/AP": 15.0, "loss": 10.0 / 3, "seconds": 1.5}
    assert back["params"] == {"K": 0, "heads": "none", "seed": 1}
    assert back["grids"] == {"fakes": trial.row}
    for key in ("cost", "per_class", "provenance", "fingerprint", "started", "finished"):
        assert back[key] == made[key], key
    expected = [{key: entry(trial, epoch)[key] for key in ("epoch", "step", "loss", "AP")} for epoch in (1, 2, 3)]
    assert back["history"] == expected

    (run,) = trial_runs(tracking_store)
    (parent,) = [run for run in runs(tracking_store) if run.data.tags.get("codetr.grid") == "fakes"]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == run.info.status == "FINISHED"
    assert run.data.params == {"K": "0", "heads": "none", "seed": "1"}
    assert history(tracking_store, run, "losses/decoder/giou.2") == [(4, 1.0), (8, 0.5), (12, 1.0 / 3)]
    assert history(tracking_store, run, "cost/num_parameters") == [(0, 7.0)]  # of the whole trial: drawn as a bar
    assert "step" not in run.data.metrics
    assert (run.info.start_time, run.info.end_time) == (1577836800_000, 1577836860_000)  # the trial's, not the mirror's
    artifacts = MlflowClient(tracking_uri=tracking_store).list_artifacts(run.info.run_id)
    assert {artifact.path for artifact in artifacts} == {"config.yaml", "result.json"}


def test_repeated_and_gradual_mirroring_logs_each_epoch_once(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    mirror = Mirror(store, make_grid(trial))
    mirror.open()
    with store.claim(trial.trial_id):  # type: ignore[union-attr]
        record(store, trial, "running")
        for epoch in range(1, EPOCHS + 1):
            store.append_metrics(trial.trial_id, entry(trial, epoch))
            assert mirror.sync()
            assert trial_runs(tracking_store)[0].info.status == "RUNNING"
    record(store, trial, "finished")
    assert mirror.close()
    sync(store, make_grid(trial))
    (run,) = trial_runs(tracking_store)
    assert run.info.status == "FINISHED"
    for name in ("epoch", "AP", "cost/train_seconds"):
        database = sqlite3.connect(tracking_store.removeprefix("sqlite:///"))
        rows = database.execute("select count(*) from metrics where key = ?", (name,)).fetchone()[0]
        assert rows == (1 if "/" in name else EPOCHS), name


def test_one_replay_at_a_time(store: RunStore, tracking_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal can end the wait for the thread that replays every few seconds; what comes after waits for it."""
    inside, most = [], []

    def replay(mirror: Mirror, trial: Any) -> None:
        inside.append(trial)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(trial)

    monkeypatch.setattr(Mirror, "_sync_trial", replay)
    mirror = Mirror(store, make_grid(make_trial(1), make_trial(2)), tracking_store)
    threads = [threading.Thread(target=mirror.sync) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 6 and max(most) == 1


def test_drivers_that_tell_the_same_at_once_do_not_fail(store: RunStore, tracking_store: str) -> None:
    """MLflow looks for a tag and inserts it in two statements: whoever comes second between them meets a conflict."""
    trials = [make_trial(number) for number in range(1, 4)]
    for trial in trials:
        finish(store, trial)
    drivers, failures = 4, []
    start = threading.Barrier(drivers)

    def mirror_all() -> None:
        mirror = Mirror(store, make_grid(*trials), tracking_store)
        start.wait()
        try:
            mirror.open()
            mirror.replay_all()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=mirror_all) for _ in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(trial_runs(tracking_store)) == 3
    assert {run.data.tags["codetr.status"] for run in trial_runs(tracking_store)} == {"finished"}


def test_a_trial_shared_by_two_grids_is_one_run(store: RunStore, tracking_store: str) -> None:
    shared, other = make_trial(1), make_trial(2)
    finish(store, shared)
    finish(store, other)
    sync(store, make_grid(shared, name="first"))
    sync(store, make_grid(shared, other, name="second"))
    assert len(trial_runs(tracking_store)) == 2
    (back,) = tracking.read_records([shared.trial_id])
    assert set(back["grids"]) == {"first", "second"}


def test_failed_then_finished_is_told_truly(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    store.append_metrics(trial.trial_id, entry(trial, 1))
    record(store, trial, "failed", error="ValueError: no")
    grid = make_grid(trial)
    sync(store, grid)
    (back,) = tracking.read_records([trial.trial_id])
    assert (back["status"], back["error"]) == ("failed", "ValueError: no")
    finish(store, trial)
    sync(store, grid)
    (back,) = tracking.read_records([trial.trial_id])
    assert (back["status"], back["error"], len(back["history"])) == ("finished", None, EPOCHS)


def test_a_killed_run_does_not_stay_running(store: RunStore, tracking_store: str) -> None:
    trial, later = make_trial(1), make_trial(2)
    first = Mirror(store, make_grid(trial, name="first"))
    first.open()
    driver = store.claim_grid("first", "digits_fast")
    with store.claim(trial.trial_id):  # type: ignore[union-attr]
        record(store, trial, "running")
        first.sync()
        Mirror(store, make_grid(later, name="second")).open()
        assert {run.info.status for run in runs(tracking_store)} == {"RUNNING"}  # it lives: nothing to set right
    assert driver is not None
    driver.release()  # both end without a word
    Mirror(store, make_grid(later, name="second")).open()
    found = {run.info.run_name: run.info.status for run in runs(tracking_store)}
    assert found == {
        trial.label: "KILLED",
        "first (digits_fast)": "KILLED",
        "second (digits_fast)": "RUNNING",
    }


def test_one_file_under_two_presets_at_once_ends_twice(store: RunStore, tracking_store: str) -> None:
    """Each has a driver of its own, so the end of one says nothing about the other."""
    small = make_grid(make_trial(1), name="first")
    large = replace(make_grid(make_trial(2), name="first"), preset="digits")
    drivers = [store.claim_grid(grid.key, grid.preset) for grid in (small, large)]
    assert all(drivers)
    for grid in (small, large):
        Mirror(store, grid).open()
    for grid, driver in zip((small, large), drivers, strict=True):
        assert driver is not None
        finish(store, grid.trials[0])
        sync(store, grid)
        driver.release()
    found = {run.info.run_name: run.info.status for run in runs(tracking_store) if "codetr.grid" in run.data.tags}
    assert found == {"first (digits_fast)": "FINISHED", "first (digits)": "FINISHED"}


def test_an_outage_warns_once_and_is_replayed(
    store: RunStore, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(1)
    lines: list[str] = []
    mirror = Mirror(store, make_grid(trial), warn=lines.append)
    mirror.open()
    monkeypatch.setattr(mirror_room, "RETRY_SECONDS", 0.0)
    record(store, trial, "running")

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as outage:
        outage.setattr(MlflowClient, "search_runs", away)
        outage.setattr(MlflowClient, "log_batch", away)
        finish(store, trial)
        assert not mirror.sync() and not mirror.sync() and not mirror.close()
        assert len(lines) == 1 and "connection refused" in lines[0] and "\n" not in lines[0]
    assert mirror.sync()
    assert len(lines) == 2 and "is back" in lines[1]
    (back,) = tracking.read_records([trial.trial_id])
    assert back["status"] == "finished" and len(back["history"]) == EPOCHS


def test_many_trials_are_read_at_once(store: RunStore, tracking_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [make_trial(number) for number in (1, 2, 3)]
    for trial in trials:
        finish(store, trial, epochs=1)
    sync(store, make_grid(*trials))
    one_by_one = tracking.read_records([trials[2].trial_id, trials[0].trial_id])
    monkeypatch.setattr(tracking, "FEW", 1)
    assert tracking.read_records([trials[2].trial_id, trials[0].trial_id]) == one_by_one
    assert [back["params"]["seed"] for back in one_by_one] == [3, 1]


def test_more_metrics_than_a_call_may_carry(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    store.append_metrics(trial.trial_id, {"epoch": 1, "step": 4, "losses": {f"term {i}": i for i in range(1500)}})
    record(store, trial, "finished", metrics={"AP": 3.0})
    sync(store, make_grid(trial))
    (run,) = trial_runs(tracking_store)
    assert run.data.metrics["losses/term 1499"] == 1499 and run.data.metrics["epoch"] == 1


@pytest.mark.parametrize("kind", ["server", "file", "folder", "scheme"])
def test_unreachable_is_one_line_for_a_person(kind: str, store: RunStore, tmp_path: Path) -> None:
    write_atomic(tmp_path / "file.db", "this is no database")
    uri = {
        "server": f"http://127.0.0.1:{free_port()}",
        "file": f"sqlite:///{tmp_path / 'file.db'}",
        "folder": f"sqlite:///{tmp_path / 'file.db' / 'mlflow.db'}",
        "scheme": "nonsense://somewhere",
    }[kind]
    for attempt in (
        lambda: tracking.ensure_store(uri),
        lambda: tracking.read_records(["a"], uri),
        lambda: Mirror(store, make_grid(make_trial(1)), uri).open(),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert "\n" not in str(caught.value) and uri in str(caught.value)
        assert "MLFLOW_TRACKING_URI" in str(caught.value)


def test_nothing_recorded_yet_says_what_to_do(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}"
    for attempt in (lambda: tracking.read_records(["a"], uri), lambda: ui.server_command(uri, "127.0.0.1", 5000)):
        with pytest.raises(UserError, match="run a grid first"):
            attempt()
    assert not (tmp_path / "none").exists()


def test_default_store_lies_beside_the_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CODETR_STORE", str(tmp_path))
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.tracking_uri(tmp_path / "a #1 50%") == f"sqlite:///{tmp_path}/a #1 50%/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking.tracking_uri() == "http://host:5000"


@pytest.mark.parametrize(("name", "what"), [("exp?1", "?"), ("exp%3F1", "%3F"), ("a%20b", "%20")])
def test_a_store_whose_database_would_lie_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, what: str
) -> None:
    """SQLAlchemy ends a path at ?, and reads %20 as a space: two stores would share a database outside of both."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = RunStore(tmp_path / name)
    finish(store, make_trial(1))
    with pytest.raises(UserError) as caught:
        Mirror(store, make_grid(make_trial(1)))
    assert str(caught.value) == (
        f"store {store.root}: MLflow's database cannot lie there, as its address cannot hold {what}; "
        "take a folder of another name, or set MLFLOW_TRACKING_URI"
    )
    said: list[str] = []
    mirror_trials(store, [make_trial(1).trial_id], said.append)  # after an analysis, which is kept all the same
    assert said == [f"note: {caught.value}; `codetr sync` brings it up to date later"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking.tracking_uri(store.root) == "http://host:5000"


def test_flat_metrics_have_names_that_mlflow_takes() -> None:
    flat = flat_metrics({"AR@100": 1, "APL": None, "time": 3.0, "ok": True, "losses": {"a[0]/b(c)": 2.0}})
    assert flat == {"AR_100": 1.0, "losses/a_0_/b_c_": 2.0}
    assert json.dumps(flat)


def test_layers_of_a_loss_stand_side_by_side() -> None:
    """MLflow makes a section of charts of whatever stands before the last slash."""
    names = ("decoder.0/giou", "decoder.11/giou", "queries.atss.2.0/l1", "atss.2/centerness", "encoder/l1")
    flat = flat_metrics({"losses": dict.fromkeys(names, 1.0), "epoch": 1, "step": 3})
    assert list(flat) == [
        *("losses/decoder/giou.0", "losses/decoder/giou.11", "losses/queries.atss.2/l1.0"),
        *("losses/atss.2/centerness", "losses/encoder/l1", "epoch"),
    ]


def quality_first(uri: str, run: Run) -> str:
    """The metric that MLflow compares first: it shows them in the order in which they were first logged."""
    return next(iter(MlflowClient(tracking_uri=uri).get_run(run.info.run_id).data.metrics))


def analyse_again(store: RunStore, trial: Trial, numbers: dict[str, Any]) -> None:
    """Leave other numbers of an analysis, as `codetr analyse` does: the line keeps its time."""
    line = store.metrics(trial.trial_id)[-1]
    kept = {name: value for name, value in line.items() if not name.startswith("conflict/")}
    store.append_metrics(trial.trial_id, kept | numbers)
    record(store, trial, "finished")


def test_a_number_that_became_smaller_is_brought_up_to_date(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    finish(store, trial)
    for value in (0.5, 0.25, 0.375):
        analyse_again(store, trial, {"conflict/decoder": value})
        sync(store, make_grid(trial))
        (back,) = tracking.read_records([trial.trial_id], history=("conflict/decoder",))
        assert back["metrics"]["conflict/decoder"] == back["history"][-1]["conflict/decoder"] == value
    made = store.read(trial.trial_id) or {}
    for seconds in (3.0, 1.0):  # of the whole trial
        store.write_result(trial.trial_id, {**made, "cost": {"train_seconds": seconds}})
        sync(store, make_grid(trial))
        assert trial_runs(tracking_store)[0].data.metrics["cost/train_seconds"] == seconds


def test_a_number_that_went_leaves_the_run_which_keeps_its_times(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    finish(store, trial)
    times = set()
    for numbers in ({"conflict/decoder": 0.5, "conflict/floor": 0.1}, {"conflict/decoder": 0.5}):
        analyse_again(store, trial, numbers)
        sync(store, make_grid(trial))
        (run,) = trial_runs(tracking_store)
        assert {name for name in run.data.metrics if name.startswith("conflict/")} == numbers.keys()
        times.add((run.info.start_time, run.info.end_time))
    assert times == {(1577836800_000, 1577836860_000)}
    sync(store, make_grid(trial))
    assert [one.info.run_id for one in trial_runs(tracking_store)] == [run.info.run_id]


def test_average_precision_is_compared_first(store: RunStore, tracking_store: str) -> None:
    trial = make_trial(1)
    finish(store, trial)
    sync(store, make_grid(trial))
    assert quality_first(tracking_store, trial_runs(tracking_store)[0]) == "AP"


def test_a_grid_can_be_looked_at(store: RunStore, tracking_store: str) -> None:
    """Its run links to a view in MLflow's list of views, which shows the grid's trials by row."""
    trials = [make_trial(1), make_trial(2)]
    for trial in trials:
        finish(store, trial)
    grid = make_grid(*trials)
    sync(store, grid)
    client = MlflowClient(tracking_uri=tracking_store)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    key = VIEW_TAG + views.view_id(grid)
    view = json.loads(experiment.tags[key])
    assert view["name"] == "fakes (digits_fast)"
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    found = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.data.tags["trial_id"] for run in found} == {trial.trial_id for trial in trials}
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "grid.fakes"}]
    assert {run.data.tags["grid.fakes"] for run in found} == {"plain"}
    folded = {section["name"] for section in state["compareRunSections"] if not section["display"]}
    assert {"losses/decoder", "per_class", "atss"} <= folded

    (parent,) = [run for run in runs(tracking_store) if run.data.tags.get("codetr.grid") == "fakes"]
    note = parent.data.tags["mlflow.note.content"]
    assert f"viewStateShareKey={views.view_id(grid)}" in note and "A grid of fakes" in note
    assert all(run.info.run_id in note for run in found)

    sync(store, grid)
    assert json.loads(client.get_experiment_by_name(tracking.EXPERIMENT).tags[key]) == view  # not written again
    client.set_experiment_tag(experiment.experiment_id, key, json.dumps({**view, "updatedAt": 0, "state": "my own"}))
    sync(store, grid)
    assert json.loads(client.get_experiment_by_name(tracking.EXPERIMENT).tags[key])["state"] == "my own"


def test_a_view_that_cannot_be_written_costs_nothing_else(
    store: RunStore, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(1)
    finish(store, trial)
    lines: list[str] = []

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no views here")

    monkeypatch.setattr(mirror_room, "save_view", refuse)
    mirror = Mirror(store, make_grid(trial), warn=lines.append)
    mirror.open()
    assert mirror.close() and len(lines) == 1 and "no views here" in lines[0]
    assert {run.info.status for run in runs(tracking_store)} == {"FINISHED"}


def test_shared_trials_leave_nothing_unknown_to_compare(store: RunStore, tracking_store: str) -> None:
    """What one grid says of a trial, another grid says of all its trials."""
    shared, other, third = make_trial(1), make_trial(2), make_trial(3)
    third = replace(third, config=replace(third.config, model=replace(third.config.model, num_queries=100)))
    for trial in (shared, other, third):
        finish(store, trial)
        found = store.read(trial.trial_id) or {}
        store.write_result(trial.trial_id, {**found, "config": config_to_dict(trial.config)})
    sync(store, make_grid(shared, other, name="first"))
    sync(store, make_grid(shared, third, name="second"))
    params = {run.data.tags["trial_id"]: run.data.params for run in trial_runs(tracking_store)}
    assert {key: own["num_queries"] for key, own in params.items()} == {
        shared.trial_id: "300",
        other.trial_id: "300",
        third.trial_id: "100",
    }
