"""A report from the tracking store takes what that lacks from the records, and says so."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from harness.errors import UserError
from harness.report import write_report
from harness.report.notes import undefined_reason
from harness.report.reading import AUTO, RECORDS, TRACKING, links_from, read_trials
from harness.store.results import RunStore
from harness.tracking import tracking
from harness.tracking.mirror import sync
from tests.support.fakes import finish, make_grid, make_trial, record
from tests.support.tracked import runs_of_trials

TRIALS = (make_trial(1), make_trial(2))
IDS = [trial.trial_id for trial in TRIALS]
ANALYSIS = {"metrics": ["queries"]}


@pytest.fixture
def store(tmp_path: Path, tracking_store: str, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """Two finished trials that the tracking store has whole."""
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    store = RunStore()
    for trial in TRIALS:
        finish(store, trial)
        record(store, trial, "finished", analysis=ANALYSIS)
    sync(store, make_grid(*TRIALS))
    return store


def client_of(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri)


def delete_runs(uri: str) -> None:
    for run in runs_of_trials(uri):
        client_of(uri).delete_run(run.info.run_id)


def delete_experiment(uri: str) -> None:
    client = client_of(uri)
    client.delete_experiment(client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)


def leave_running(uri: str) -> None:
    client_of(uri).update_run(runs_of_trials(uri)[0].info.run_id, status="RUNNING")


def lose_metrics(uri: str) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        database.execute("DELETE FROM latest_metrics WHERE key = 'AP'")
        database.execute("DELETE FROM metrics WHERE key = 'AP'")


def lose_epochs(uri: str) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        database.execute("DELETE FROM metrics WHERE step < 8")


def lose_artifacts(uri: str) -> None:
    for run in runs_of_trials(uri):
        shutil.rmtree(run.info.artifact_uri.removeprefix("file://"))


def spoil(uri: str) -> None:
    Path(uri.removeprefix("sqlite:///")).write_text("this is no database" * 100)


LOSSES: dict[str, tuple[Callable[[str], None], str]] = {
    "runs": (delete_runs, "2 without a run"),
    "experiment": (delete_experiment, "codetr sync"),
    "status": (leave_running, "1 running instead of finished"),
    "metrics": (lose_metrics, "2 without some metrics"),
    "epochs": (lose_epochs, "2 without some epochs"),
    "artifacts": (lose_artifacts, "2 without their analysis"),
    "database": (spoil, "is damaged"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_the_records_count_where_the_tracking_store_has_less(what: str, store: RunStore, tracking_store: str) -> None:
    lose, told = LOSSES[what]
    notes: list[str] = []
    read_trials(IDS, notes=notes, analysis=True)
    assert not notes
    lose(tracking_store)
    found = read_trials(IDS, notes=notes, analysis=True)
    known = read_trials(IDS, RECORDS, analysis=True)
    for one, other in zip(found, known, strict=True):
        assert one["status"] == "finished" and one["analysis"] == ANALYSIS
        numbers = {name: value for name, value in other["metrics"].items() if value is not None}
        assert {name: one["metrics"][name] for name in numbers} == numbers
        assert len(one["history"]) == len(other["history"])
    assert len(notes) == 1 and told in notes[0]


def test_what_is_asked_of_the_tracking_store_alone_is_that(store: RunStore, tracking_store: str) -> None:
    leave_running(tracking_store)
    notes: list[str] = []
    found = read_trials(IDS, TRACKING, notes=notes)
    assert sorted(one["status"] for one in found) == ["finished", "running"]
    assert len(notes) == 1 and "without --from tracking" in notes[0]
    delete_experiment(tracking_store)
    with pytest.raises(UserError, match="was deleted"):
        read_trials(IDS, TRACKING)


def test_what_the_tracking_store_has_and_the_records_not_is_kept(store: RunStore, tracking_store: str) -> None:
    """A record that is damaged or gone, a store elsewhere."""
    (store.dir(IDS[0]) / "result.json").write_text("{")
    shutil.rmtree(store.dir(IDS[1]))
    notes: list[str] = []
    assert [one["status"] for one in read_trials(IDS, notes=notes)] == ["finished"] * 2
    assert not notes


def test_what_is_undefined_has_the_same_reason_from_the_tracking_store(store: RunStore, tracking_store: str) -> None:
    """MLflow keeps numbers alone."""
    for trial in TRIALS:
        made = record(store, trial, "finished")
        metrics = {**made["metrics"], "APr": None, "best_f1": None}
        record(store, trial, "finished", metrics=metrics, provenance={**made["provenance"], "protocol": "lvis"})
    sync(store, make_grid(*TRIALS))
    notes: list[str] = []
    tracked, known = read_trials(IDS, notes=notes), read_trials(IDS, RECORDS)
    assert all(one["run_id"] for one in tracked) and not notes
    for name, told in (("APr", "has no objects of rare classes"), ("best_f1", "nothing is right at any score")):
        assert undefined_reason(name, tracked) == undefined_reason(name, known)
        assert undefined_reason(name, known).endswith(told)


@pytest.mark.parametrize("source", [AUTO, TRACKING])
@pytest.mark.parametrize("last", [{}, {"conflict/decoder": None}])
def test_a_number_of_an_earlier_epoch_is_none_of_the_finished_trial(
    last: dict[str, None], source: str, store: RunStore
) -> None:
    for trial in TRIALS:
        lines = store.metrics(trial.trial_id)
        lines[1] |= {"conflict/decoder": 0.025}
        lines[-1] |= last
        store.write(trial.trial_id, "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        record(store, trial, "finished")
    delete_runs(tracking.tracking_uri())
    sync(store, make_grid(*TRIALS))
    numbers = [{k: v for k, v in one["metrics"].items() if "/" in k} for one in read_trials(IDS, RECORDS)]
    found = read_trials(IDS, source, history=("conflict/decoder",))
    assert [{k: v for k, v in one["metrics"].items() if "/" in k} for one in found] == numbers
    assert all(one["history"][1]["conflict/decoder"] == 0.025 for one in found)  # the curve has it
    for one in tracking.read_records(IDS):  # known without any record
        assert "conflict/decoder" not in one["metrics"]


def test_what_the_record_lacks_is_in_no_table_before_the_tracking_store_is_up_to_date(store: RunStore) -> None:
    for trial in TRIALS:
        store.append_metrics(trial.trial_id, store.metrics(trial.trial_id)[-1] | {"conflict/floor": 0.5})
        record(store, trial, "finished")
    sync(store, make_grid(*TRIALS))
    for trial in TRIALS:
        line = store.metrics(trial.trial_id)[-1]
        store.append_metrics(trial.trial_id, {k: v for k, v in line.items() if k != "conflict/floor"})
        record(store, trial, "finished")
    assert not any("conflict/floor" in one["metrics"] for one in read_trials(IDS))


def test_every_curve_that_is_asked_for_is_drawn_from_the_tracking_store(store: RunStore, tmp_path: Path) -> None:
    for trial in TRIALS:
        lines = [{**line, "conflict/decoder": 0.1 * line["epoch"]} for line in store.metrics(trial.trial_id)]
        store.write(trial.trial_id, "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        record(store, trial, "finished")
    delete_runs(tracking.tracking_uri())
    grid = replace(make_grid(*TRIALS), seeds=(1, 2), figures=("ap", "conflict/decoder"))
    sync(store, grid)
    for source in (TRACKING, RECORDS):
        made = write_report([grid], tmp_path / source, ["md", "png"], source=source)
        assert {path.name for path in made.paths} >= {"fakes_ap.png", "fakes_conflict_decoder.png"}, source


def test_a_server_that_is_away_stops_no_report_of_records(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:SECRET@127.0.0.1:9")
    grid = replace(make_grid(*TRIALS), seeds=(1, 2))
    made = write_report([grid], tmp_path / "reports", ["html", "csv"])
    assert len(made.notes) == 1 and "Connection refused" in made.notes[0] and "from the records" in made.notes[0]
    page = (tmp_path / "reports" / "report.html").read_text()
    assert "Connection refused" in page and "SECRET" not in page
    assert "31" in (tmp_path / "reports" / "fakes.csv").read_text()
    with pytest.raises(UserError, match="cannot be reached"):
        read_trials(["unknown"])


def test_links_of_a_page_hold_no_password(store: RunStore, tmp_path: Path) -> None:
    links = links_from(tmp_path, "http://alice:SECRET@host:5000/?token=SECRET", store)
    found = links({"trial_id": "x", "run_id": "r", "experiment_id": "1"})
    assert found == [("http://host:5000/#/experiments/1/runs/r", "MLflow")] and json.dumps(found)
