"""The record store: whole files, true statuses, one holder per trial."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import files
from harness.errors import UserError
from harness.files import write_atomic
from harness.store import lease
from harness.store.results import RunStore

HOLD = """
import sys, time
from harness.store.results import RunStore
held = RunStore(sys.argv[1]).claim("t", owner=sys.argv[2])
print("held" if held else "refused", flush=True)
time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def hold_elsewhere(store: RunStore, owner: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root), owner],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(files.__file__).parents[1],
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def pretend_other_machine(store: RunStore, file: str = "lease.json") -> Path:
    path = store.dir("t") / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "another node"}))
    return path


def test_places_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "a"))
    monkeypatch.setenv("CODETR_CACHE", "~/b")
    assert RunStore().root == files.store_dir() == tmp_path / "a"
    assert files.cache_dir() == Path.home() / "b"
    monkeypatch.delenv("CODETR_STORE")
    assert files.store_dir() == Path.home() / "codetr"


def test_write_atomic_keeps_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_record_round_trip_has_null_for_undefined(store: RunStore) -> None:
    assert store.read("t") is None and store.status("t") == "pending" and store.trials() == []
    store.write_result("t", {"status": "finished", "metrics": {"AP": 41.5, "APL": math.nan}, "history": [math.inf]})
    record = store.read("t")
    assert record == {"status": "finished", "metrics": {"AP": 41.5, "APL": None}, "history": [None]}
    assert store.status("t") == "finished" and store.trials() == ["t"]


def test_broken_record_is_a_failed_trial_that_says_where(store: RunStore) -> None:
    path = store.dir("t") / "result.json"
    write_atomic(path, '{"status": "fini')
    assert store.status("t") == "failed"
    assert str(path) in (store.read("t") or {})["error"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("metrics", "table"), ("error", "text"), ("fingerprint", "text"), ("weights_hash", "text"), ("history", "list")],
)
def test_a_record_with_a_wrong_part_says_of_what_kind_it_should_be(store: RunStore, name: str, kind: str) -> None:
    path = store.dir("t") / "result.json"
    write_atomic(path, json.dumps({"status": "finished", name: 5}))
    assert (store.read("t") or {})["error"] == f"{path} cannot be read: {name} is no {kind}"


def test_metrics_after_a_resume_replace_what_came_later(store: RunStore) -> None:
    for epoch in (1, 2, 3):
        store.append_metrics("t", {"epoch": epoch, "AP": float(epoch)})
    with open(store.dir("t") / "metrics.jsonl", "a") as handle:
        handle.write('{"epoch": 4, "A')  # torn by another tool
    store.append_metrics("t", {"epoch": 2, "AP": 20.0})
    assert [(e["epoch"], e["AP"]) for e in store.metrics("t")] == [(1, 1.0), (2, 20.0)]
    assert all("time" in entry for entry in store.metrics("t"))


def test_mark_keeps_what_the_record_knows(store: RunStore) -> None:
    store.mark("t", "running", label="heads=atss")
    store.append_metrics("t", {"epoch": 1})
    record = store.mark("t", "failed", "ValueError: no", label="another")
    assert (record["status"], record["error"], record["label"]) == ("failed", "ValueError: no", "heads=atss")


def test_running_needs_a_living_process(store: RunStore) -> None:
    store.write_result("t", {"status": "running"})
    assert store.status("t") == "interrupted"
    store.heartbeat("t", {"step": 3, "total_steps": 9})
    assert store.status("t") == "running"
    beat = store.read_heartbeat("t")
    assert beat is not None and (beat["step"], beat["total_steps"]) == (3, 9)
    with store.claim("t") as held:  # type: ignore[union-attr]
        assert store.status("t") == "running" and not held.lost
    path = pretend_other_machine(store, "heartbeat.json")
    assert store.status("t") == "running"
    old = time.time() - lease.STALE_AFTER - 5
    os.utime(path, (old, old))
    assert store.status("t") == "interrupted"


def test_one_holder_at_a_time_and_a_dead_one_is_replaced(store: RunStore) -> None:
    process = hold_elsewhere(store)
    try:
        assert store.status("t") == "running"
        assert store.claim("t") is None
        process.kill()
        process.wait()
        assert store.status("t") == "interrupted"
        held = store.claim("t")
        assert held is not None and store.status("t") == "running"
        held.release()
        assert store.status("t") == "pending"
    finally:
        process.kill()
        process.wait()


def test_the_same_launch_supersedes_its_lost_attempt(store: RunStore) -> None:
    process = hold_elsewhere(store, owner="launch-1")
    try:
        assert store.claim("t", owner="launch-2") is None
        held = store.claim("t", owner="launch-1")
        assert held is not None
        held.release()
    finally:
        process.kill()
        process.wait()


def test_a_holder_on_another_machine_dies_of_silence(store: RunStore) -> None:
    process = hold_elsewhere(store)
    process.kill()
    process.wait()
    path = pretend_other_machine(store)
    assert store.claim("t") is None
    old = time.time() - lease.STALE_AFTER - 5
    os.utime(path, (old, old))
    held = store.claim("t")
    assert held is not None
    held.release()


def test_a_lost_lease_is_noticed_and_not_released(store: RunStore) -> None:
    path = store.dir("t") / "lease.json"
    first = lease.claim(path, owner="launch", beat_every=0.02)
    second = lease.claim(path, owner="launch")
    assert first is not None and second is not None
    deadline = time.time() + 5
    while not first.lost and time.time() < deadline:
        time.sleep(0.01)
    assert first.lost
    first.release()
    assert json.loads(path.read_text())["token"] == second.token
    second.release()
    assert not path.exists()


def test_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="CODETR_STORE") as caught:
        RunStore(tmp_path / "file" / "store").prepare()
    assert "\n" not in str(caught.value)
