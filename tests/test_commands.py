"""Commands about trials in the store: what they say, what they change, and what they leave alone."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.schedule.schedule import run_grid
from harness.spec.grid import open_grid
from harness.spec.identity import config_to_dict
from harness.spec.variants import Variant
from harness.store import housekeeping, ledger
from harness.store.closure import code_of
from harness.store.results import RunStore
from harness.tracking import tracking
from tests.support.fakes import STEPS, finish, make_grid, make_trial, record, run_fake, starts

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "ablations" / "quickstart.yaml")
FAST = ["--preset", "digits_fast"]


@pytest.fixture
def said(capsys):
    """Run a command; returns its exit code, standard output and standard error."""

    def run(*argv):
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return run


def fail(store, trial, reason="ValueError: told to fail"):
    store.append_metrics(trial.trial_id, {"epoch": 1, "step": STEPS, "loss": 2.0})
    housekeeping.write_atomic(store.dir(trial.trial_id) / "checkpoint" / "state.safetensors", "whole")
    housekeeping.write_atomic(store.dir(trial.trial_id) / "log.txt", f"Traceback\n{reason}\n")
    return record(store, trial, "failed", error=reason)


def run_local(grid, store, **options):
    lines = []
    options = {"executor": "local", "run_trial": run_fake, "check_data": lambda *_: None, **options}
    return run_grid(grid, store, out=lines.append, **options), lines


# ---- status by grid


def test_a_run_leaves_the_grid_so_that_status_knows_what_is_pending(store, without_mlflow, said):
    grid = make_grid(make_trial(1), make_trial(2), make_trial(3))
    fail(store, replace(make_trial(9), trial_id="f" * 12))
    run_local(grid, store, limit=1)
    code, out, err = said("status")
    assert code == 0 and not err
    assert "fakes (digits_fast)  3 trials: 1 finished, 2 pending\n" in out
    assert "others  1 trial: 1 failed\n" in out and "f" * 12 in out and "told to fail" in out
    assert grid.trials[0].trial_id not in out, "what is finished or pending is only counted"
    assert out.rstrip().endswith(f"{store.root}  4 trials: 1 finished, 1 failed, 2 pending")
    assert all(trial.trial_id in said("status", "--all")[1] for trial in grid.trials)


def test_status_tells_step_and_time_left_of_a_running_trial(store, said):
    trial = make_trial(1)
    ledger.remember(store, make_grid(trial))
    with store.claim(trial.trial_id):
        store.heartbeat(trial.trial_id, {"step": 30, "total_steps": 90, "eta_seconds": 600.0})
        [line] = [line for line in said("status")[1].splitlines() if trial.trial_id in line]
    assert "running" in line and "step 30/90" in line and "10.0 min left" in line


def test_the_ledger_keeps_earlier_trials_while_they_have_a_record(store):
    first, second, third = (make_trial(number) for number in (1, 2, 3))
    ledger.remember(store, make_grid(first, second))
    finish(store, first)
    ledger.remember(store, make_grid(third))
    [known], lines = ledger.known_grids(store)
    assert list(known.labels) == [third.trial_id, first.trial_id] and not lines
    ledger.remember(store, replace(make_grid(second), preset="digits"))
    assert [grid.preset for grid in ledger.known_grids(store)[0]] == ["digits", "digits_fast"]


def test_status_keeps_other_data_and_settings_apart(store, said):
    """The same row asked for again with --data or --set has the same label, and stands under another heading."""
    plain, changed = make_trial(1), make_trial(2)
    command = "codetr run grid.yaml --preset digits_fast --set train.epochs=9 --data 'my data' --seeds 0,1"
    ledger.remember(store, replace(make_grid(plain), command="codetr run grid.yaml --seeds 0,1"))
    finish(store, plain)
    variant = Variant("my_data 1f3c, train.epochs=9", "01234567")
    ledger.remember(store, replace(make_grid(changed), command=command, variant=variant))
    out = said("status", "--all")[1]
    first, second = (
        out.index("fakes (digits_fast)  1 trial"),
        out.index("fakes (digits_fast, my_data 1f3c, train.epochs=9)"),
    )
    assert first < out.index(plain.trial_id) < second < out.index(changed.trial_id)


def test_a_ledger_from_before_variants_is_read_apart(store, said):
    """Its labels end with --data and --set, and it has the command that was given last."""
    plain, other, both = (make_trial(number) for number in (1, 2, 3))
    labels = {
        plain.trial_id: "heads=none --set runtime.num_workers=2",
        other.trial_id: "heads=none --data 'my data'",
        both.trial_id: "heads=none --set train.epochs=9 --data cards",
    }
    command = "codetr run grid.yaml --preset digits_fast --set train.epochs=9 --data cards --seeds 0,1"
    known = {"name": "fakes", "preset": "digits_fast", "title": "t", "command": command, "trials": labels}
    housekeeping.write_atomic(store.grid_dir("fakes") / "grid.digits_fast.json", json.dumps(known))
    for trial in (plain, other, both):
        fail(store, trial)
    out = said("status")[1]
    for heading in ("digits_fast", "digits_fast, my data", "digits_fast, train.epochs=9, cards"):
        assert f"fakes ({heading})  1 trial: 1 failed" in out
    # A file of its own takes the trial out of the old one, which nothing rewrites.
    variant = Variant("cards 1f3c, train.epochs=9", "01234567")
    ledger.remember(store, replace(make_grid(both), command=command, variant=variant))
    assert said("status")[1].count(both.trial_id) == 1
    out = said("retry")[1]
    assert [line for line in out.splitlines() if line.startswith("run next")] == [
        "run next: codetr run grid.yaml --preset digits_fast --seeds 0,1",
        f"run next: {command}",
        "run next: codetr run grid.yaml --preset digits_fast --seeds 0,1 --data 'my data'",
    ]


def test_a_ledger_whose_trials_have_all_moved_on_is_no_grid_without_trials(store, said):
    trial = make_trial(1)
    labels = {trial.trial_id: "heads=none --set train.epochs=9"}
    command = "codetr run grid.yaml --preset digits_fast --set train.epochs=9"
    known = {"name": "fakes", "preset": "digits_fast", "title": "t", "command": command, "trials": labels}
    housekeeping.write_atomic(store.grid_dir("fakes") / "grid.digits_fast.json", json.dumps(known))
    ledger.remember(store, replace(make_grid(trial), command=command, variant=Variant("train.epochs=9", "01234567")))
    finish(store, trial)
    out = said("status")[1].splitlines()
    assert out[0] == "fakes (digits_fast, train.epochs=9)  1 trial: 1 finished" and len(out) == 2


def test_retry_prints_every_command_that_it_prepared(store, said):
    """Of each data set, and of seeds that were asked for before."""
    trials = [make_trial(number) for number in (1, 2, 3)]
    for trial in trials:
        fail(store, trial)
    ledger.remember(store, replace(make_grid(trials[0]), command="codetr run grid.yaml --seeds 1"))
    ledger.remember(store, replace(make_grid(trials[1]), command="codetr run grid.yaml --seeds 2"))
    ledger.remember(store, replace(make_grid(trials[1]), command="codetr run grid.yaml --seeds 2"))
    variant = Variant("cards 1f3c", "01234567")
    ledger.remember(store, replace(make_grid(trials[2]), command="codetr run grid.yaml --data cards", variant=variant))
    lines = [line for line in said("retry")[1].splitlines() if line.startswith("run next")]
    assert sorted(lines) == [
        f"run next: codetr run grid.yaml {rest}" for rest in ("--data cards", "--seeds 1", "--seeds 2")
    ]


def test_a_grid_knows_the_command_that_runs_it(tmp_path):
    path = tmp_path / "my grid.yaml"
    path.write_text("rows: [{label: a}]")
    grid = open_grid(path, "digits_fast", ["train.epochs=3"], seeds=[0, 1])
    assert grid.command == f"codetr run '{path}' --preset digits_fast --set train.epochs=3 --seeds 0,1"
    assert open_grid(QUICKSTART).command == f"codetr run {QUICKSTART}"


# ---- finding a trial


def test_a_trial_is_found_by_the_beginning_of_its_id(store, said):
    for name in ("a1b2c3d4e5f6", "a1b2ffffffff", "0123456789ab"):
        finish(store, replace(make_trial(1), trial_id=name))
    assert "0123456789ab" in said("logs", "01")[1]
    code, out, err = said("logs", "a1b2")
    assert code == 2 and not out and "2 ids begin so: a1b2c3d4e5f6, a1b2ffffffff" in err and err.count("\n") == 1
    code, _, err = said("logs", "a1b3")
    assert code == 2 and "no such trial" in err and "a1b2c3d4e5f6" in err and err.count("\n") == 1


@pytest.mark.parametrize("argv", [["logs", "x"], ["rm", "x"], ["diff", "x", "y"], ["retry", "x"]])
def test_no_trial_in_an_empty_store_is_one_line(store, said, argv):
    code, out, err = said(*argv)
    assert code == 2 and not out and err.startswith(f"error: trial 'x': there are no trials in {store.root}")
    assert err.count("\n") == 1 and not store.root.exists()


def test_every_command_takes_an_mlflow_run_for_its_trial(store, tracking_store, said, tmp_path):
    trials = [make_trial(1), make_trial(2)]
    run_local(make_grid(*trials), store)
    first, second = (found["run_id"] for found in tracking.read_records([trial.trial_id for trial in trials]))
    assert said("logs", first)[1].startswith(trials[0].trial_id)
    code, out, _ = said("export", first, "--out", str(tmp_path / "records.zip"))
    assert code == 0 and out.endswith("1 record\n")
    assert said("retry", first)[1] == "no trial of these has failed\n"
    assert said("rm", second, "--yes")[0] == 0 and store.trials() == [trials[0].trial_id]
    code, _, err = said("export", second, "--out", str(tmp_path / "records.zip"))
    assert code == 2 and f"run {second}: " in err and err.count("\n") == 1


def test_what_is_neither_a_trial_nor_a_file_is_told_with_what_is_near(store, said, tmp_path):
    finish(store, replace(make_trial(1), trial_id="a1b2c3d4e5f6"))
    for command in (["export", "--out", str(tmp_path / "records.zip")], ["retry"], ["report"]):
        code, out, err = said(*command, "a1b3")
        assert code == 2 and not out and err.count("\n") == 1
        assert err.startswith("error: trial 'a1b3': no such trial in ") and "nearest: a1b2c3d4e5f6" in err
        assert "an ablation file ends in .yaml" in err


# ---- logs


def test_logs_tells_epochs_warnings_and_the_reason_of_failure(store, said):
    trial = make_trial(1)
    fail(store, trial)
    store.heartbeat(trial.trial_id, {"step": 5, "total_steps": 12, "warnings": ["checkpoint is torn"]})
    code, out, _ = said("logs", trial.trial_id)
    assert code == 0
    for part in ("epoch 1  step 4  loss 2.00", "warning: checkpoint is torn", "step 5/12", "log.txt", "told to fail"):
        assert part in out
    housekeeping.set_back(store, trial.trial_id)
    out = said("logs", trial.trial_id)[1]
    assert "earlier attempt failed: ValueError: told to fail" in out and str(Path("attempts") / "1") in out


def test_logs_follows_until_the_trial_has_ended(store, said, monkeypatch):
    trial = make_trial(1)
    store.append_metrics(trial.trial_id, {"epoch": 1, "step": 4})
    held = store.claim(trial.trial_id)

    def next_second(_):
        store.append_metrics(trial.trial_id, {"epoch": 2, "step": 8})
        record(store, trial, "finished", metrics={"AP": 12.5})
        held.release()

    monkeypatch.setattr(time, "sleep", next_second)
    out = said("logs", "--follow", trial.trial_id)[1]
    assert [out.count(part) for part in ("epoch 1", "epoch 2", "finished  AP 12.5")] == [1, 1, 1]


# ---- diff


def test_diff_shows_settings_data_provenance_and_results(store, said):
    first, second = (trial for trial in open_grid(QUICKSTART, "digits_fast").trials[:2])
    for trial, ap, commit in ((first, 30.0, "aaa"), (second, 33.5, "bbb")):
        made = {"config": config_to_dict(trial.config), "metrics": {"AP": ap, "AP50": 50.0}}
        record(store, trial, "finished", **made, provenance={"commit": commit, "device": "cpu"})
    code, out, _ = said("diff", first.trial_id[:6], second.trial_id[:6])
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(" ") and line.split()}
    assert code == 0 and rows["model.heads"] == ["none", "atss"] and rows["metrics.AP"] == ["30", "33.5"]
    assert rows["provenance.commit"] == ["aaa", "bbb"]
    assert not {"metrics.AP50", "provenance.device", "train.epochs", "model.heads.atss.top_k"} & rows.keys()
    assert "do not differ" in said("diff", first.trial_id, first.trial_id)[1]


def test_diff_of_two_settings_of_one_head(store, said, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("axes: {model.heads: [[atss, {name: atss, top_k: 5}], [atss, {name: atss, top_k: 7}]]}")
    first, second = open_grid(path, "digits_fast").trials
    for trial in (first, second):
        store.write_config(trial.trial_id, config_to_dict(trial.config))  # a trial that has no record yet
    out = said("diff", first.trial_id, second.trial_id)[1]
    assert [line.split() for line in out.splitlines() if "top_k" in line] == [["model.heads.atss.2.top_k", "5", "7"]]


def test_diff_takes_mlflow_runs_too(store, tracking_store, said):
    trials = [make_trial(1), make_trial(2)]
    run_local(make_grid(*trials), store)
    runs = [found["run_id"] for found in tracking.read_records([trial.trial_id for trial in trials])]
    code, out, _ = said("diff", *runs)
    assert code == 0 and all(trial.trial_id in out for trial in trials)
    code, _, err = said("diff", "0" * 32, runs[0])
    assert code == 2 and "0" * 32 in err and err.count("\n") == 1


# ---- retry


def test_retry_makes_failed_trials_pending_and_keeps_what_is_good(store, said):
    bad, good = make_trial(1), make_trial(2)
    grid = replace(make_grid(bad, good), command="codetr run my.yaml")
    ledger.remember(store, grid)
    fail(store, bad), finish(store, good)
    code, out, _ = said("retry")
    assert code == 0 and bad.trial_id in out and "told to fail" in out and "run next: codetr run my.yaml" in out
    assert [store.status(trial.trial_id) for trial in grid.trials] == ["pending", "finished"]
    folder = store.dir(bad.trial_id)
    kept = json.loads((folder / "attempts" / "1" / "result.json").read_text())
    assert kept["error"] == "ValueError: told to fail" and (folder / "attempts" / "1" / "log.txt").exists()
    assert (folder / "checkpoint" / "state.safetensors").read_text() == "whole" and len(
        store.metrics(bad.trial_id)
    ) == 1
    assert "has failed" in said("retry")[1]


def test_retry_of_some_and_from_scratch(store, said):
    first, second = make_trial(1), make_trial(2)
    fail(store, first), fail(store, second)
    assert said("retry", first.trial_id, "--from-scratch")[0] == 0
    assert [store.status(trial.trial_id) for trial in (first, second)] == ["pending", "failed"]
    assert not (store.dir(first.trial_id) / "checkpoint").exists() and not store.metrics(first.trial_id)
    fail(store, first, "another reason"), said("retry", first.trial_id)
    names = [path.name for path in housekeeping.attempts(store, first.trial_id)]
    assert names == ["1", "2"]
    trial = open_grid(QUICKSTART, "digits_fast").trials[0]
    fail(store, trial)
    said("retry", QUICKSTART, *FAST)
    assert (store.status(trial.trial_id), store.status(second.trial_id)) == ("pending", "failed")


def test_retry_tells_of_the_same_file_under_another_preset(store, said):
    """Without its options a file's failed trials are not found, which must not read as if there were none."""
    grid = open_grid(QUICKSTART, "digits_fast")
    ledger.remember(store, grid)
    fail(store, grid.trials[0])
    first, second = said("retry", QUICKSTART, "--preset", "digits")[1].splitlines()
    assert first == "no trial of these has failed"
    assert second.startswith("1 of quickstart (digits_fast): codetr retry ") and "--preset digits_fast" in second
    assert store.status(grid.trials[0].trial_id) == "failed"
    assert said(*shlex.split(second.partition(": codetr ")[2]))[0] == 0
    assert store.status(grid.trials[0].trial_id) == "pending"


def test_retry_leaves_a_trial_alone_that_somebody_works_on(store):
    trial = make_trial(1)
    fail(store, trial)
    with store.claim(trial.trial_id):
        assert not housekeeping.set_back(store, trial.trial_id)
    assert store.status(trial.trial_id) == "failed"


def test_run_tries_failed_trials_again_and_keeps_their_records(store, without_mlflow, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "1")
    grid = make_grid(make_trial(1))
    run_local(grid, store)
    monkeypatch.delenv("FAKE_FAIL")
    summary, lines = run_local(grid, store)
    assert summary.finished and any("1 failed before" in line for line in lines)
    [folder] = housekeeping.attempts(store, grid.trials[0].trial_id)
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"


# ---- rm


def test_rm_asks_and_removes_here_and_in_mlflow(store, tracking_store, said, monkeypatch):
    trials = [make_trial(1), make_trial(2)]
    run_local(make_grid(*trials), store)
    answers = iter(["", "y"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    first = trials[0].trial_id
    assert said("rm", first)[0] == 1 and store.status(first) == "finished"
    code, out, err = said("rm", first)
    assert code == 0 and "removed" in out and "1 run deleted" in out and not err
    assert store.trials() == [trials[1].trial_id]
    assert [found["trial_id"] for found in tracking.read_records([t.trial_id for t in trials])] == [trials[1].trial_id]
    run_local(make_grid(*trials), store)
    assert starts(store, trials[0]) == 1 and len(tracking.read_records([first])[0]["history"]) == 3


def test_rm_refuses_a_running_trial_and_removes_nothing(store, said):
    first, second = make_trial(1), make_trial(2)
    finish(store, first), finish(store, second)
    record(store, second, "running")
    with store.claim(second.trial_id):
        code, out, err = said("rm", "--yes", first.trial_id, second.trial_id)
        assert code == 2 and "is running" in err and err.count("\n") == 1
        assert not housekeeping.remove(store, second.trial_id)
    assert len(store.trials()) == 2


def test_rm_without_the_tracking_store_says_so_and_sync_follows_later(store, tracking_store, said, monkeypatch):
    grid = open_grid(QUICKSTART, "digits_fast")
    run_local(grid, store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    first = grid.trials[0].trial_id
    code, out, err = said("rm", "--yes", first)
    assert code == 0 and "removed" in out and "MLflow runs are still there" in err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_store)
    assert len(tracking.read_records([first])) == 1
    assert said("sync", QUICKSTART, *FAST)[0] == 0
    assert not tracking.read_records([first]) and not housekeeping.marks(store)


# ---- gc


def test_a_report_of_nothing_names_what_has_finished_of_the_file(store, without_mlflow, said, tmp_path):
    words = [QUICKSTART, *FAST, "--set", "train.epochs=3"]
    out = ["--format", "md", "--out", str(tmp_path / "reports")]
    asked, named = open_grid(QUICKSTART, "digits_fast"), "codetr report grid.yaml --set train.epochs=3"
    longer = open_grid(QUICKSTART, "digits_fast", ["train.epochs=3"])
    ledger.remember(store, asked)
    ledger.remember(store, replace(longer, command=named.replace("report", "run")))
    assert "nothing asked for" not in said("report", QUICKSTART, *FAST, *out)[2], "nothing is there"
    finish(store, longer.trials[0])
    code, _, err = said("report", QUICKSTART, *FAST, *out)
    assert code == 0 and f"note: nothing asked for has finished; in {store.root} there are, of the same file,\n" in err
    assert f"note:   1 of quickstart (digits_fast, train.epochs=3): {named}\n" in err
    assert "nothing asked for" not in said("report", *words, *out)[2]


def age(path):
    old = time.time() - 2 * housekeeping.QUIET_SECONDS
    for entry in [path, *path.rglob("*")]:
        os.utime(entry, (old, old))


def test_gc_lists_and_deletes_what_is_certainly_garbage(store, said, tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    done, stopped = make_trial(1), make_trial(2)
    finish(store, done), record(store, stopped, "interrupted")
    for trial in (done, stopped):
        for name in ("state.safetensors", "previous.safetensors", "model.safetensors"):
            housekeeping.write_atomic(store.dir(trial.trial_id) / "checkpoint" / name, "x" * 1000)
    garbage = [store.dir(done.trial_id) / "checkpoint" / name for name in housekeeping.RESUME_FILES]
    for path in (
        store.root / "launches" / "old" / "state.json",
        store.dir(stopped.trial_id) / ".result.json.0123.tmp",
        store.dir(stopped.trial_id) / "checkpoint" / ".state.safetensors.77.tmp",
        store.dir(stopped.trial_id) / "checkpoint" / ".tmpOKs7Z2",  # what safetensors writes to first
        tmp_path / "cache" / "digits" / "abc.def.tmp" / "train" / "1.jpg",
    ):
        housekeeping.write_atomic(path, "x" * 500)
        garbage.append(path)
    age(store.root), age(tmp_path / "cache")
    housekeeping.write_atomic(store.root / "launches" / "new" / "state.json", "at work")
    housekeeping.write_atomic(store.dir(stopped.trial_id) / ".result.json.4567.tmp", "being written")
    (store.dir(stopped.trial_id) / "lease.json").write_text(json.dumps({"machine": "gone", "pid": 1}))
    os.utime(store.dir(stopped.trial_id) / "lease.json", (1e9, 1e9))
    kept = {path for path in store.root.rglob("*") if path.is_file()} - {*garbage}
    kept.remove(store.dir(stopped.trial_id) / "lease.json")
    before = (store.read(done.trial_id), store.status(stopped.trial_id))

    code, out, _ = said("gc")
    assert code == 0 and "8 leftovers, 4.5 kB; `codetr gc --yes` deletes them" in out
    assert all(path.exists() for path in garbage)
    code, out, _ = said("gc", "--yes")
    assert code == 0 and "deleted 8, freed 4.5 kB" in out
    assert not any(path.exists() for path in garbage) and all(path.exists() for path in kept)
    assert (store.read(done.trial_id), store.status(stopped.trial_id)) == before
    assert "nothing to clear away" in said("gc", "--yes")[1]


def test_gc_speaks_of_one_leftover_as_of_one(store: RunStore, said):
    housekeeping.write_atomic(store.root / "launches" / "old" / "state.json", "x" * 500)
    age(store.root)
    code, out, _ = said("gc")
    assert code == 0 and "1 leftover, 500 B; `codetr gc --yes` deletes it" in out


def test_gc_leaves_living_leases_and_their_launches(store, said):
    trial = make_trial(1)
    housekeeping.write_atomic(store.root / "launches" / "mine" / "state.json", "{}")
    age(store.root / "launches")
    with store.claim(trial.trial_id, owner="mine"):
        assert "nothing to clear away" in said("gc", "--yes")[1]
        assert store.status(trial.trial_id) == "running"
    assert "launches" in said("gc")[1]


# ---- run --only and --fail-fast, plan --cost


def grid_file(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "rows: [{label: plain, set: {model.heads: []}}, {label: one head, set: {model.heads: [atss]}}]\nseeds: [0, 1]\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("only", "shown"),
    [
        (["heads=atss"], ["heads=atss seed=0", "heads=atss seed=1"]),
        (["model.heads=atss", "seed=1"], ["heads=atss seed=1"]),
        (["row=plain", "seed=0", "seed=1"], ["heads=none seed=0", "heads=none seed=1"]),
        (["row=one head", "heads=atss", "seed=0"], ["heads=atss seed=0"]),
    ],
)
def test_only_chooses_trials_by_what_differs(store, tmp_path, said, only, shown):
    options = [word for text in only for word in ("--only", text)]
    code, out, _ = said("plan", grid_file(tmp_path), *FAST, *options)
    labels = ["heads=none seed=0", "heads=none seed=1", "heads=atss seed=0", "heads=atss seed=1"]
    assert code == 0 and [label for label in labels if label in out] == shown


@pytest.mark.parametrize(
    ("only", "told"),
    [
        (["heads"], "must be name=value; names here: row, model.heads, heads, seed"),
        (["epochs=3"], "nothing in grid is called 'epochs'; names here: row, model.heads, heads, seed"),
        (["heads=atts"], "no trial of grid has it; did you mean 'atss'?"),
        (["seed=7"], "no trial of grid has it; known: '0', '1'"),
        (["row=plain", "heads=atss"], "no trial of grid has all of it"),
    ],
)
def test_a_mistaken_only_names_what_is_known(store, tmp_path, said, only, told):
    options = [word for text in only for word in ("--only", text)]
    code, out, err = said("plan", grid_file(tmp_path), *FAST, *options)
    assert code == 2 and not out and told in err and err.count("\n") == 1


def test_run_runs_the_chosen_ones_alone(store, without_mlflow):
    grid = make_grid(make_trial(1), make_trial(2))
    run_local(grid, store, only={grid.trials[1].trial_id})
    assert [starts(store, trial) for trial in grid.trials] == [0, 1]


def test_run_tells_of_finished_trials_that_other_code_made(store, without_mlflow, said, tmp_path):
    """An edited head is no other trial: nothing is trained again, so the person must be told, and what to do."""
    path = tmp_path / "grid.yaml"
    path.write_text("rows: [{label: a, set: {model.num_queries: 9}}, {label: b, set: {model.num_queries: 8}}]")
    old, same = open_grid(path, "digits_fast").trials
    finish(store, old), finish(store, same)
    for trial, code in ((old, "0123456789ab"), (same, code_of(()))):
        record(store, trial, "finished", provenance={"code": code})
    code, _, err = said("run", path, *FAST)
    [line] = [line for line in err.splitlines() if line.startswith("note: ")]
    assert code == 0 and "1 finished trial was made by other code" in line
    assert line.endswith(f"codetr rm {old.trial_id}") and same.trial_id not in line
    assert "made by other code" not in said("run", path, *FAST, "--only", "row=b")[2]


def test_fail_fast_starts_nothing_after_a_failure(store, without_mlflow, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "2")
    grid = make_grid(*(make_trial(number) for number in (1, 2, 3)))
    summary, lines = run_local(grid, store, fail_fast=True)
    assert [store.status(trial.trial_id) for trial in grid.trials] == ["finished", "failed", "pending"]
    assert summary.failed and any("stopping" in line and "--fail-fast" in line for line in lines)


def second_waits_for_first(trial, store, **options):
    """For workers: the second trial begins when the first is at work, however long its process took to start."""
    while trial.config.seed == 2 and store.status(make_trial(1).trial_id) != "running":
        time.sleep(0.05)
    return run_fake(trial, store, **options)


@pytest.mark.ray
def test_fail_fast_on_ray_interrupts_the_others_with_their_checkpoints(store, without_mlflow, monkeypatch):
    """The second trial fails in its second epoch while the first hangs in its own, and stops when asked."""
    monkeypatch.setenv("FAKE_FAIL", "2")
    monkeypatch.setenv("FAKE_HANG", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))
    trials = [make_trial(n, runtime=replace(make_trial(n).runtime, cpus_per_trial=0.5)) for n in (1, 2, 3)]
    summary, _ = run_local(
        make_grid(*trials), store, executor="ray", concurrent=2, fail_fast=True, run_trial=second_waits_for_first
    )
    assert [store.status(trial.trial_id) for trial in trials] == ["interrupted", "failed", "pending"]
    assert len(summary.failed) == 1 and starts(store, trials[2]) == 0
    assert not list((store.root / "launches").iterdir())


def measured(store, trial, **changes):
    """A finished record that tells what it took: 10 steps an epoch, 2 s each, 5 s an evaluation."""
    epochs = trial.config.train.epochs
    history = [{"epoch": epoch, "step": 10 * epoch, "AP": 1.0} for epoch in range(1, epochs + 1)]
    cost = {"seconds_per_step": 2.0, "eval_seconds": 5.0 * epochs, "wall_seconds": 1.0}
    made = {"config": config_to_dict(trial.config), "history": history, "cost": cost}
    record(store, trial, "finished", **{**made, "provenance": {"device": "cpu", "threads": 1}, **changes})


def test_cost_is_unknown_until_something_was_measured(store, said):
    code, out, _ = said("plan", QUICKSTART, *FAST, "--cost")
    assert code == 0 and out.count("unknown") == 4 and "nothing like it was measured yet" in out


def test_cost_comes_from_the_nearest_finished_trials(store, said):
    first, second, third = open_grid(QUICKSTART, "digits_fast").trials
    measured(store, first), measured(store, second)
    store.write_result(second.trial_id, {**store.read(second.trial_id), "cost": {"seconds_per_step": 4.0}})
    code, out, _ = said("plan", QUICKSTART, *FAST, "--cost")
    # two epochs of 32 / 8 = 4 steps at 4 s: as its neighbour with the same head, not as the one without
    [line] = [line for line in out.splitlines() if line.split()[:1] == [third.trial_id]]
    assert code == 0 and line.endswith("32 s")
    assert f"{second.trial_id} (differs in model.positive_queries)" in out and first.trial_id + " (" not in out
    record(store, third, "interrupted", history=[{"epoch": 1, "step": 4}])
    assert "left: 16 s of trial time for 1 of them" in said("plan", QUICKSTART, *FAST, "--cost")[1]


def test_cost_of_another_device_or_data_is_not_taken_for_the_same(store, said):
    first, *_ = open_grid(QUICKSTART, "digits_fast").trials
    measured(store, first, provenance={"device": "NVIDIA H200", "threads": 1})
    assert "nothing like it was measured yet" in said("plan", QUICKSTART, *FAST, "--cost")[1]
    measured(store, first)
    out = said("plan", QUICKSTART, *FAST, "--cost", "--set", "data.digits.num_train=80")[1]
    assert "other data, training only" in out and "40 s" in out  # 2 epochs of 10 steps at 2 s


# ---- speed


@pytest.mark.slow
def test_a_thousand_trials_are_planned_and_told_quickly(store, tmp_path, said):
    """Processor seconds, which other work on the machine does not change much: 5 for `plan`, 3 for `status`."""
    path = tmp_path / "many.yaml"
    numbers = ", ".join(map(str, range(1, 51)))
    path.write_text(f"axes:\n  train.epochs: [{numbers}]\n  model.heads: [[], [atss], [fcos], [atss, fcos]]\n")
    options = [str(path), *FAST, "--seeds", "0,1,2,3,4"]
    grid = open_grid(path, "digits_fast", seeds=range(5))
    assert len(grid.trials) == 1000
    ledger.remember(store, grid)
    config = config_to_dict(grid.trials[-1].config)
    losses = {f"decoder.{layer}/{name}": 1.0 for layer in range(6) for name in ("classification", "l1", "giou")}
    history = [{"epoch": epoch, "step": epoch, "AP": 1.0, "losses": losses} for epoch in range(1, 13)]
    for trial in grid.trials:
        folder = store.dir(trial.trial_id)
        folder.mkdir(parents=True)
        found = {"status": "finished", "config": config, "history": history, "metrics": {"AP": 1.0}, "cost": {}}
        (folder / "result.json").write_text(json.dumps(found))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    for argv, limit in ((["plan", *options], 5.0), (["status"], 3.0), (["status", "--all"], 3.0)):
        start = time.process_time()
        code, out, _ = said(*argv)
        assert code == 0 and "1000 trials: 1000 finished" in out
        assert time.process_time() - start < limit, argv


def test_trials_are_chosen_also_where_the_data_is_not(tmp_path, said):
    """They have no ids then, but rows and factors."""
    options = ["--preset", "digits_fast", "--data", str(tmp_path / "nowhere"), "--seeds", "0,1"]
    code, out, _ = said("plan", "ablations/table07_heads.yaml", *options, "--only", "heads=atss", "--only", "seed=1")
    assert code == 0 and "1 trial: 1 pending" in out and "K = 1: ATSS" in out and "K = 0" not in out


def test_a_run_that_is_refused_leaves_no_grid_behind(tmp_path, said):
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).mkdir()
        (folder / "annotations" / f"instances_{split}.json").write_text("{}")
    code, _, err = said("run", QUICKSTART, *FAST, "--data", folder, "--executor", "local")
    assert code == 2 and "instances_train.json" in err
    assert "pending" not in said("status")[1]
