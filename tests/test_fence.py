"""A lease that was lost: whoever trained under it leaves every byte of the trial's folder as it is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from harness.config import AnalyseConfig
from harness.schedule.execute import execute, note_loss
from harness.spec.grid import Trial
from harness.store import housekeeping, lease, transfer
from harness.store.lease import LeaseLost
from harness.store.results import RunStore
from harness.trial.analysis import run_analysis
from harness.trial.build import build_trial
from harness.trial.checkpoint import CHECKPOINT, PREVIOUS, save_checkpoint
from harness.trial.trial import run_trial
from tests.support.fakes import entry, finish, make_trial, record, run_fake
from tests.support.quickstart import silent, trial_of

SMALL = ("data.digits.num_train=4", "data.digits.num_val=2", "train.batch_size=2", "train.epochs=1")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder whose name has no leading dot (locks, and what is about to be written)."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def lose_lease(store: RunStore, trial_id: str) -> dict[str, bytes]:
    """Another process takes the trial over and leaves files of its own; returns all that is in the folder then."""
    path = store.dir(trial_id) / "lease.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "token": "of another", "machine": "elsewhere"}))
    names = ("result.json", "metrics.jsonl", "heartbeat.json", "log.txt", "detections.json", "per_class.json")
    for name in (*names, *(f"checkpoint/{file}.safetensors" for file in ("state", "previous", "model"))):
        other = store.dir(trial_id) / name
        other.parent.mkdir(exist_ok=True)
        other.write_text(f"the other's {name}")
    return contents(path.parent)


def test_two_ranks_that_have_lost_the_lease_while_training_change_nothing(tmp_path: Path) -> None:
    store, trial = RunStore(tmp_path), trial_of(1, "data.digits.num_train=16", "train.batch_size=4", "runtime.ranks=2")
    taken: list[dict[str, bytes]] = []

    def work(trial: Trial, own: RunStore, **_: Any) -> None:
        def losing(event: dict[str, Any]) -> None:  # nothing is passed on: the ranks themselves must notice
            if not taken and event["kind"] == "step":
                taken.append(lose_lease(store, trial.trial_id))

        run_trial(trial, own, report=losing, should_stop=lambda: False)

    assert execute(trial, store, "launch", work, lambda: False) == "running"
    time.sleep(0.2)
    assert contents(store.dir(trial.trial_id)) == taken[0]


def test_whenever_the_lease_is_lost_nothing_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th time that the trial makes sure of its lease, somebody else has it; until n is more than there are."""
    trial = trial_of(0, *SMALL)
    for number in count(1):
        store = RunStore(tmp_path / str(number))
        losing = Losing(store, trial.trial_id, number)
        with monkeypatch.context() as patch:
            patch.setattr(lease, "names", losing)
            status = execute(trial, store, "launch", None, lambda: False)
        for before in losing.taken:
            assert contents(store.dir(trial.trial_id)) == before, number
        if not losing.taken:
            break
    assert status == "finished" and number > 15


class Losing:
    """`lease.names`, before whose n-th call another process takes the trial over."""

    def __init__(self, store: RunStore, trial_id: str, number: int) -> None:
        self.store, self.trial_id, self.number, self.real = store, trial_id, number, lease.names
        self.taken: list[dict[str, bytes]] = []

    def __call__(self, path: Path, token: str) -> bool:
        self.number -= 1
        if self.number == 0 and path.exists():
            self.taken.append(lose_lease(self.store, self.trial_id))
        return self.real(path, token)


Stale = Callable[[RunStore, str], object]
WRITES: dict[str, Stale] = {
    "write_result": lambda store, key: store.write_result(key, {"status": "running"}),
    "write_config": lambda store, key: store.write_config(key, {"seed": 1}),
    "mark": lambda store, key: store.mark(key, "failed", "no"),
    "append_metrics": lambda store, key: store.append_metrics(key, {"epoch": 9}),
    "restore_metrics": lambda store, key: store.restore_metrics(key, [{"epoch": 9}]),
    "heartbeat": lambda store, key: store.heartbeat(key, {"step": 1}),
    "write": lambda store, key: store.write(key, "analysis/error.txt", "no"),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("removed", [False, True])
def test_no_file_is_written_without_the_lease_and_no_folder_made(tmp_path: Path, name: str, removed: bool) -> None:
    store, trial = RunStore(tmp_path), make_trial(1)
    held = store.claim(trial.trial_id)
    assert held is not None
    finish(store, trial)
    record(store, trial, "interrupted")
    stale = store.fenced(held.token)
    folder = store.dir(trial.trial_id)
    if removed:
        os.rename(folder, tmp_path / "removed")
    else:
        lose_lease(store, trial.trial_id)
        record(store, trial, "running")
    before = contents(tmp_path)
    with pytest.raises(LeaseLost):
        WRITES[name](stale, trial.trial_id)
    held.release()
    assert contents(tmp_path) == before and folder.exists() != removed


def test_the_lease_is_looked_at_again_when_all_is_written_and_before_it_replaces(tmp_path: Path) -> None:
    """A checkpoint takes its time: the lease may go while it is written."""
    state = build_trial(trial_of(0, *SMALL), RunStore(tmp_path), silent, lambda: False)

    def lost() -> None:
        assert len(list(tmp_path.glob("c/.*.tmp"))) == 1
        raise LeaseLost

    for _ in range(2):
        save_checkpoint(tmp_path / "c", state.detector, state.optimizer, state.progress)
    before = contents(tmp_path / "c")
    assert before.keys() == {CHECKPOINT, PREVIOUS}
    with pytest.raises(LeaseLost):
        save_checkpoint(tmp_path / "c", state.detector, state.optimizer, state.progress, lost)
    assert contents(tmp_path / "c") == before and not list(tmp_path.glob("c/.*"))


def test_an_analysis_that_finds_the_lease_lost_is_no_failed_analysis(tmp_path: Path) -> None:
    trial = trial_of(1, *SMALL)
    state = build_trial(trial, RunStore(tmp_path), silent, lambda: False)
    object.__setattr__(trial, "analyse", AnalyseConfig(("queries",), num_images=2))

    def lost(event: dict[str, Any]) -> None:
        raise LeaseLost

    state.report = lost
    import harness.trial.record as room

    patch = pytest.MonkeyPatch()
    patch.setattr(room, "REPORT_SECONDS", 0.0)
    with pytest.raises(LeaseLost):
        run_analysis(state, 1.0)
    patch.undo()
    assert not (state.folder / "analysis").exists()


def test_whoever_tells_of_a_lost_process_does_so_under_the_lease(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("harness.schedule.execute.LOSS_SECONDS", 0.1)
    store, trial = RunStore(tmp_path), make_trial(1)
    record(store, trial, "running")
    with store.claim(trial.trial_id):
        before = contents(store.dir(trial.trial_id))
        note_loss(trial, store, "failed", "it died", "where")
        assert contents(store.dir(trial.trial_id)) == before, "somebody is at it again"
    note_loss(trial, store, "failed", "it died", "where")
    found = store.read(trial.trial_id) or {}
    assert (found["status"], found["error"]) == ("failed", "it died")
    finish(store, trial)
    before = contents(store.dir(trial.trial_id))
    note_loss(trial, store, "failed", "it died", "where")
    assert contents(store.dir(trial.trial_id)) == before, "what has finished stays so"


def test_a_retry_that_was_cut_off_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, trial = RunStore(tmp_path), make_trial(1)
    store.append_metrics(trial.trial_id, entry(trial, 1))
    record(store, trial, "failed", error="no")
    taken, real = [], RunStore.read

    def read(self: RunStore, trial_id: str) -> Any:
        found = real(self, trial_id)
        if not taken:
            taken.append(lose_lease(store, trial_id))
        return found

    monkeypatch.setattr(RunStore, "read", read)
    with pytest.raises(LeaseLost):
        housekeeping.set_back(store, trial.trial_id, from_scratch=True)
    assert contents(store.dir(trial.trial_id)) == taken[0]


def test_two_imports_of_one_trial_do_not_take_it_from_each_other(tmp_path: Path, monkeypatch: Any) -> None:
    theirs, here = RunStore(tmp_path / "theirs"), RunStore(tmp_path / "here")
    trial = make_trial(1)
    finish(theirs, trial)
    record(theirs, trial, "finished", config={})
    monkeypatch.setattr(transfer, "checked", lambda trial_id, files: json.loads(files["result.json"]))
    again: list[dict[str, str]] = []
    real = transfer._put

    def put(*arguments: Any, **options: Any) -> None:
        again.append(transfer.import_records(here, theirs.root).refused)
        real(*arguments, **options)

    monkeypatch.setattr(transfer, "_put", put)
    assert transfer.import_records(here, theirs.root).taken == [trial.trial_id]
    assert again == [{trial.trial_id: "is running here"}]


def test_the_fence_goes_along_into_another_process(tmp_path: Path) -> None:
    import pickle

    store, trial = RunStore(tmp_path), make_trial(1)
    with store.claim(trial.trial_id) as held:
        same = pickle.loads(pickle.dumps(store.fenced(held.token)))
        run_fake(trial, same, report=silent)
        lose_lease(store, trial.trial_id)
        with pytest.raises(LeaseLost):
            same.heartbeat(trial.trial_id, {"step": 1})
