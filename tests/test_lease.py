"""Leases: one holder at a time however they die, doubts are waited out, and who has lost his lease writes no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.errors import ReadError
from harness.schedule.execute import execute
from harness.spec.grid import Trial
from harness.store import lease, results
from harness.store.results import RunStore
from tests.support.fakes import finish, make_trial, record, run_fake, starts

ROOT = Path(results.__file__).parents[2]

# Each child takes the lease, makes sure that it is alone, and gives it back or dies with it.
CONTEND = """
import os, sys, time
from pathlib import Path
from harness.store import lease
folder, me, rounds, other_nodes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "nodes"
if other_nodes:
    lease.STALE_AFTER = 1.0
for number in range(rounds):
    if os.fork() == 0:
        if other_nodes:
            lease.machine_id = lambda: f"node {me} {number}"
        while (held := lease.claim(folder / "lease.json", beat_every=0.05)) is None:
            time.sleep(0.001)
        try:
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            (folder / f"violated-{me}-{number}").touch()
        (folder / f"held-{me}-{number}").touch()
        time.sleep(0.002)
        (folder / "inside").unlink(missing_ok=True)
        if number % 2 == 0:
            held.release()
        os._exit(0)
    os.wait()
"""

HOLD = """
import sys, time
from harness.store.results import RunStore
held = RunStore(sys.argv[1]).claim(sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("where", "processes", "rounds"), [("machine", 6, 12), ("nodes", 3, 2)])
def test_many_takers_of_a_dead_lease_hold_it_one_after_the_other(
    tmp_path: Path, where: str, processes: int, rounds: int
) -> None:
    running = [python(CONTEND, str(tmp_path), str(me), str(rounds), where) for me in range(processes)]
    assert [process.wait(60) for process in running] == [0] * processes
    assert len(list(tmp_path.glob("held-*"))) == processes * rounds
    assert not list(tmp_path.glob("violated-*"))
    assert not list(tmp_path.glob(".lease.json.*"))


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def hold_in_a_process(store: RunStore, trial_id: str) -> subprocess.Popen[str]:
    process = python(HOLD, str(store.root), trial_id)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_reboot_or_a_reused_process_id_is_no_sign_of_life(store: RunStore) -> None:
    held = store.claim("t")
    assert held is not None
    path = store.dir("t") / "lease.json"
    rewrite(path, process_start="1")  # the same id, another process
    assert store.status("t") == "interrupted"
    rewrite(path, process_start=lease.identity()["process_start"], machine="this host, an earlier boot")
    assert store.status("t") == "running"  # a process of that name may live elsewhere: its silence decides
    long_ago = time.time() - lease.STALE_AFTER - 1
    os.utime(path, (long_ago, long_ago))
    assert store.status("t") == "interrupted"
    held.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"machine": 3, "pid": "x"}', b"\xff", b"[" * 100_000])
def test_a_damaged_lease_is_nobodys(store: RunStore, content: bytes) -> None:
    held = store.claim("t")
    assert held is not None
    (store.dir("t") / "lease.json").write_bytes(content)
    if b"machine" in content:
        os.utime(store.dir("t") / "lease.json", (0, 0))
    again = store.claim("t")
    assert again is not None
    held.release()
    assert store.status("t") == "running"
    again.release()


def test_storage_that_does_not_answer_lets_nobody_take_over(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease.claim(store.dir("t") / "lease.json", beat_every=0.02) as held:

        def away(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as outage:
            outage.setattr(Path, "read_bytes", away)
            for ask in (store.status, store.claim):
                with pytest.raises(ReadError, match=r"cannot be read \(Input/output error\)"):
                    ask("t")
            time.sleep(0.1)
        assert not held.lost
        assert store.claim("t") is None


def test_clocks_of_two_nodes_need_not_agree(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages are differences of the storage's own times: a node whose clock is hours off neither steals nor waits."""
    with store.claim("t") as held:
        rewrite(held.path, machine="another node")
        for error in (-36000.0, 36000.0):
            now = time.time
            monkeypatch.setattr(time, "time", lambda error=error, now=now: now() + error)
            assert store.status("t") == "running" and store.claim("t") is None
            monkeypatch.undo()


def test_a_worker_whose_driver_is_dead_is_waited_for(store: RunStore) -> None:
    """It ends within seconds; a run that comes in between must not leave its trial undone."""
    orphan, busy = hold_in_a_process(store, "orphan"), hold_in_a_process(store, "busy")
    try:
        rewrite(store.dir("orphan") / "lease.json", driver={**lease.identity(), "process_start": "1"})
        threading.Timer(0.5, orphan.kill).start()
        waiter = threading.Thread(target=orphan.wait)  # so that it does not stay a zombie
        waiter.start()
        begun = time.monotonic()
        assert store.released(["orphan", "busy", "free"]) == ["free", "orphan"]
        assert time.monotonic() - begun >= 0.4
        waiter.join()
    finally:
        for process in (orphan, busy):
            process.kill()
            process.wait()


def test_a_holder_on_another_node_is_watched_until_it_beats_or_is_silent_too_long(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE_AFTER", 0.6)
    with (
        lease.claim(store.dir("alive") / "lease.json", beat_every=0.1) as alive,
        store.claim("dead") as dead,
    ):
        for held in (alive, dead):
            rewrite(held.path, machine="another node")
        assert store.released(["alive", "dead"]) == ["dead"]


def test_who_has_lost_the_lease_cannot_spoil_the_record(store: RunStore) -> None:
    """A holder was suspended, another one took the trial over: nothing of the first may be written."""
    trial = make_trial(1)
    refused: list[str] = []

    def suspended(trial: Trial, own: RunStore, **_: object) -> None:
        with store.claim(trial.trial_id, owner="launch"):
            record(store, trial, "running", history=["of the second"])
            for name, arguments in (
                ("mark", ("interrupted",)),
                ("write_result", ({"status": "running"},)),
                ("append_metrics", ({"epoch": 1},)),
                ("restore_metrics", ([{"epoch": 1}],)),
            ):
                with pytest.raises(lease.LeaseLost):
                    getattr(own, name)(trial.trial_id, *arguments)
                refused.append(name)
            finish(store, trial)
        raise ValueError("and now it fails")

    assert execute(trial, store, "launch", suspended, lambda: False) == "finished"
    assert len(refused) == 4
    assert store.status(trial.trial_id) == "finished" and len(store.metrics(trial.trial_id)) == 3
    assert not (store.dir(trial.trial_id) / "log.txt").exists()


def test_finished_stays_finished(store: RunStore) -> None:
    trial = make_trial(1)
    record(store, trial, "finished")
    assert store.mark(trial.trial_id, "failed", error="too late")["status"] == "finished"
    assert execute(trial, store, "launch", run_fake, lambda: False) == "finished" and starts(store, trial) == 0


def test_a_trial_folder_may_be_moved_away_while_somebody_waits_for_it(store: RunStore) -> None:
    folder = store.dir("t")
    got: list[object] = []
    with lease.file_lock(folder / ".lock"):
        taker = threading.Thread(target=lambda: got.append(store.claim("t")))
        taker.start()
        time.sleep(0.1)
        os.replace(folder, store.root / "removed")
    taker.join(10)
    assert got and got[0] is not None and store.status("t") == "running"
    got[0].release()
