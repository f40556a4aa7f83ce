"""Damaged files in a store: a line that names the file and says what to do, and nothing else is lost."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.errors import UserError
from harness.schedule.progress import Progress
from harness.schedule.schedule import run_grid
from harness.spec.grid import open_grid
from harness.store import housekeeping, ledger
from harness.tracking import tracking
from tests.support.fakes import entry, finish, make_grid, make_trial, record, run_fake, starts

QUICKSTART = str(Path(__file__).parents[1] / "ablations" / "quickstart.yaml")
FAST = ["--preset", "digits_fast"]


@pytest.fixture
def grid():
    return open_grid(QUICKSTART, "digits_fast")


@pytest.fixture
def said(capsys):
    """Run a command; returns its exit code, standard output and standard error."""

    def run(*argv):
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return run


def run_local(grid, store):
    lines = []
    run_grid(grid, store, executor="local", run_trial=run_fake, check_data=lambda *_: None, out=lines.append)
    return lines


DAMAGES = {
    "torn": b'{"status": "fini',
    "empty": b"",
    "binary": b"\x00\xff\xfe" * 99,
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "null": b"null",
}
RECORDS = {
    **DAMAGES,
    "unknown status": b'{"status": "perhaps"}',
    "metrics a list": b'{"status": "finished", "metrics": [1]}',
    "history a text": b'{"status": "finished", "history": "x"}',
    "error a number": b'{"status": "failed", "error": 3}',
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_told_kept_aside_and_made_again(name, store, grid, said, monkeypatch):
    monkeypatch.setattr(tracking, "available", lambda: False)
    good, bad, _ = grid.trials
    finish(store, good), finish(store, bad)
    path = store.dir(bad.trial_id) / "result.json"
    path.write_bytes(RECORDS[name])
    before = (store.dir(good.trial_id) / "result.json").read_bytes()
    for argv in (["status"], ["status", "--all"], ["plan", QUICKSTART, *FAST], ["plan", QUICKSTART, *FAST, "--cost"]):
        code, out, err = said(*argv)
        assert code == 0 and "1 finished" in out and "1 failed" in out, "the others are as they were"
        [line] = err.splitlines()
        assert line.startswith(f"warning: {path} is damaged (") and "attempts/" in line
    for argv in (["logs", bad.trial_id], ["diff", good.trial_id, bad.trial_id], ["gc"]):
        assert said(*argv)[0] == 0
    assert path.read_bytes() == RECORDS[name], "who only looks changes nothing"
    lines = run_local(grid, store)
    assert any(str(path) in line for line in lines)
    assert [store.status(trial.trial_id) for trial in grid.trials] == ["finished"] * 3
    assert (store.dir(bad.trial_id) / "attempts" / "1" / "result.json").read_bytes() == RECORDS[name]
    assert (store.dir(good.trial_id) / "result.json").read_bytes() == before
    assert (starts(store, good), starts(store, bad)) == (0, 1)


def test_a_damaged_record_can_be_set_back_or_removed(store, said, monkeypatch):
    monkeypatch.setattr(tracking, "available", lambda: False)
    for number in (1, 2):
        finish(store, make_trial(number))
        (store.dir(make_trial(number).trial_id) / "result.json").write_bytes(b"{")
    code, out, _ = said("retry", make_trial(1).trial_id)
    assert code == 0 and "result.json cannot be read" in out and store.status(make_trial(1).trial_id) == "pending"
    assert said("rm", "--yes", make_trial(2).trial_id)[0] == 0
    assert store.trials() == [make_trial(1).trial_id]


@pytest.mark.parametrize("tail", [b'{"epoch": 3, "A', b"\xff\xfe\n", b"[]\n", b'{"epoch": "3"}\n', b"[" * 100_000])
def test_whole_lines_of_damaged_metrics_are_used_and_the_rest_is_kept(tail, store, said):
    trial = make_trial(1)
    for epoch in (1, 2):
        store.append_metrics(trial.trial_id, entry(trial, epoch))
    record(store, trial, "interrupted")
    path = store.dir(trial.trial_id) / "metrics.jsonl"
    damaged = path.read_bytes() + tail
    path.write_bytes(damaged)
    code, _, err = said("status")
    assert code == 0 and err.count("\n") == 1 and f"{path} is damaged (line 3" in err
    assert [line["epoch"] for line in store.metrics(trial.trial_id)] == [1, 2]
    store.append_metrics(trial.trial_id, entry(trial, 3))
    assert [line["epoch"] for line in store.metrics(trial.trial_id)] == [1, 2, 3]
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == damaged
    assert not housekeeping.damages(store, trial.trial_id)


BEATS = {
    **DAMAGES,
    "eta a text": b'{"step": 3, "eta_seconds": "soon"}',
    "warnings a number": b'{"step": 1, "warnings": 5}',
}


@pytest.mark.parametrize("name", BEATS)
def test_a_damaged_heartbeat_hides_only_the_progress(name, store, said):
    trial = make_trial(1)
    record(store, trial, "running")
    path = store.dir(trial.trial_id) / "heartbeat.json"
    lines = []
    with store.claim(trial.trial_id), Progress(make_grid(trial), store, lines.append, 0.01, 0.01) as progress:
        progress.watch([trial])
        path.write_bytes(BEATS[name])
        code, out, err = said("status")
        assert code == 0 and "running" in out and f"warning: {path} is damaged" in err and err.count("\n") == 1
        store.heartbeat(trial.trial_id, {"step": 7, "total_steps": 9})
        assert "step 7/9" in said("status")[1]
    assert any("step 7/9" in line for line in lines), "the driver's lines go on"


LEASES = {**DAMAGES, "pid a text": None, "pid missing": None}


@pytest.mark.parametrize("name", LEASES)
def test_a_damaged_lease_is_taken_over(name, store, said, monkeypatch):
    from harness.store.lease import machine_id

    monkeypatch.setattr(tracking, "available", lambda: False)
    trial = make_trial(1)
    record(store, trial, "running")
    path = store.dir(trial.trial_id) / "lease.json"
    content = LEASES[name]
    if content is None:
        content = json.dumps({"machine": machine_id(), **({"pid": "x"} if "text" in name else {})}).encode()
    path.write_bytes(content)
    code, out, err = said("status")
    assert code == 0 and "interrupted" in out
    assert (f"warning: {path} is damaged" in err and "takes the trial over" in err) == (name in DAMAGES)
    run_local(make_grid(trial), store)
    assert store.status(trial.trial_id) == "finished" and not path.exists()


@pytest.mark.parametrize("name", [*DAMAGES, "labels a list"])
def test_a_damaged_grid_is_told_and_made_again(name, store, said, monkeypatch):
    monkeypatch.setattr(tracking, "available", lambda: False)
    mine, other = make_grid(make_trial(1)), make_grid(make_trial(2), name="other")
    for grid in (mine, other):
        finish(store, grid.trials[0])
        ledger.remember(store, grid)
    [path] = (store.root / "grids" / "fakes").glob("*.json")
    path.write_bytes({**DAMAGES, "labels a list": b'{"name": "fakes", "trials": []}'}[name])
    for argv in (["status"], ["retry"]):
        assert said(*argv)[0] == 0
    code, out, err = said("status")
    assert f"warning: {path} is damaged" in err and err.count("\n") == 1
    assert "other (digits_fast)  1 trial" in out and "others  1 trial: 1 finished" in out
    run_local(mine, store)
    code, out, err = said("status")
    assert not err and "fakes (digits_fast)  1 trial: 1 finished" in out and "others" not in out


# ---- MLflow's database


def spoil_header(path):
    path.write_bytes(b"not a database at all" * 1000)


def spoil_pages(path):
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.fixture
def recorded(store, grid, tracking_store):
    """A finished grid in a store and a tracking store of its own."""
    run_local(grid, store)
    return tracking.database_file(tracking_store)


@pytest.mark.parametrize("spoil", [spoil_header, spoil_pages, cut])
def test_a_damaged_database_is_one_line_and_is_made_again_from_the_records(
    spoil, store, grid, recorded, said, tmp_path, template_store, monkeypatch
):
    records = {trial.trial_id: store.read(trial.trial_id) for trial in grid.trials}
    spoil(recorded)
    code, out, err = said("report", QUICKSTART, *FAST, "--out", tmp_path / "reports")
    assert code == 0 and "not run yet" not in out and err.startswith("note: "), err  # the records know all of it
    assert f"tracking store sqlite:///{recorded} is damaged" in err and "codetr sync" in err
    for argv in (
        ["report", QUICKSTART, *FAST, "--out", tmp_path / "reports", "--from", "tracking"],
        ["sync", QUICKSTART, *FAST],
        ["run", QUICKSTART, *FAST, "--executor", "local"],
        ["ui", "--port", "5999"],
        ["diff", "0" * 32, grid.trials[0].trial_id],
    ):
        code, _, err = said(*argv)
        assert code == 2 and err.count("\n") == 1 and err.startswith("error: "), (argv, err)
        assert f"tracking store sqlite:///{recorded} is damaged" in err and "codetr sync" in err
    assert said("status")[0] == 0
    code, out, err = said("rm", "--yes", grid.trials[2].trial_id)
    assert code == 0 and "removed" in out and "are still there" in err
    # this process has connections to the old file, so the new one gets another name
    shutil.copy(template_store, tmp_path / "new.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'new.db'}")
    assert said("sync", QUICKSTART, *FAST)[0] == 0
    made = tracking.read_records([trial.trial_id for trial in grid.trials])
    assert [(r["trial_id"], r["status"], len(r["history"])) for r in made] == [
        (trial.trial_id, "finished", trial.config.train.epochs) for trial in grid.trials[:2]
    ]
    assert all(store.read(trial.trial_id) == records[trial.trial_id] for trial in grid.trials[:2])


def test_a_database_that_gets_damaged_while_a_grid_runs_does_not_stop_it(store, tracking_store):
    trials = [make_trial(1), make_trial(2)]
    lines = []

    def spoiling(trial, *args, **options):
        spoil_header(tracking.database_file(tracking_store))
        return run_fake(trial, *args, **options)

    options = {"executor": "local", "run_trial": spoiling, "check_data": lambda *_: None, "out": lines.append}
    assert len(run_grid(make_grid(*trials), store, **options).finished) == 2
    assert any("training goes on" in line for line in lines)


def test_an_empty_or_locked_database_is_not_called_damaged(tmp_path):
    empty = tmp_path / "empty.db"
    empty.write_bytes(b"")
    tracking.check_database(f"sqlite:///{empty}")
    tracking.check_database(f"sqlite:///{tmp_path / 'absent.db'}")
    tracking.check_database("http://127.0.0.1:9")
    with closing(sqlite3.connect(tmp_path / "locked.db")) as database:
        database.execute("CREATE TABLE runs (id)")
        database.commit()
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        tracking.check_database(f"sqlite:///{tmp_path / 'locked.db'}", patience=0.1)
    spoil_header(empty)
    with pytest.raises(UserError, match=re.escape(f"{empty} is damaged")):
        tracking.check_database(f"sqlite:///{empty}")
