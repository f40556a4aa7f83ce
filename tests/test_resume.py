"""A trial that was interrupted or killed anywhere ends with the very numbers of one that was not."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import Interrupted, StorageError
from harness.store.results import RunStore
from harness.trial.checkpoint import CHECKPOINT, PREVIOUS, WEIGHTS
from harness.trial.trial import run_trial
from tests.support.kill_points import small_trial

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "time")


def silent(event: dict[str, Any]) -> None: ...


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key not in TIMES} for entry in history]


def result(store: RunStore, trial_id: str) -> tuple[Any, ...]:
    """All of a finished trial that does not tell the time; fails where the records of its epochs disagree."""
    record, lines = store.read(trial_id) or {}, store.metrics(trial_id)
    folder = store.dir(trial_id)
    assert record["status"] == "finished"
    assert timeless(record["history"]) == timeless(lines)
    assert [line["epoch"] for line in lines] == [1, 2] and [line["step"] for line in lines] == [2, 4]
    assert [path.name for path in (folder / "checkpoint").iterdir()] == [WEIGHTS]
    files = [(folder / name).read_bytes() for name in ("detections.json", "per_class.json", f"checkpoint/{WEIGHTS}")]
    return record["metrics"], timeless(lines), *files


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Of an uninterrupted trial."""
    store, trial = RunStore(tmp_path_factory.mktemp("whole")), small_trial()
    run_trial(trial, store, report=silent)
    return result(store, trial.trial_id)


@pytest.mark.parametrize("which", ["new", pytest.param("all", marks=pytest.mark.slow)])
def test_a_trial_killed_before_any_change_to_the_storage_ends_the_same(tmp_path: Path, which: str) -> None:
    """Real kills: nothing is cleaned up, half-written files stay. The second epoch's repeat the first's: with "all"."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.kill_points", str(tmp_path), which]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    killed = done.stdout.splitlines()
    assert {f"replace {name}" for name in (CHECKPOINT, PREVIOUS, WEIGHTS, "metrics.jsonl", "result.json")} <= {*killed}
    assert {f"unlink {name}" for name in (CHECKPOINT, "lease.json")} <= {*killed}
    assert killed.count("replace result.json") == {"all": 4, "new": 3}[which]  # begun, two epochs, finished
    trial_id = small_trial().trial_id
    expected = result(RunStore(tmp_path / "whole"), trial_id)
    for number, name in enumerate(killed, 1):
        store = RunStore(tmp_path / str(number))
        if name.startswith("unlink"):  # it was finished before it was killed
            assert store.status(trial_id) == "finished"
        else:
            assert result(store, trial_id) == expected, f"killed before {name} ({number})"


def test_a_trial_asked_to_stop_at_any_moment_ends_the_same(tmp_path: Path, expected: tuple[Any, ...]) -> None:
    """After each step, while an epoch is evaluated, and between epochs."""
    trial, said = small_trial(), []
    for number in range(20):
        store, asked = RunStore(tmp_path / str(number)), iter(range(100))
        torch.manual_seed(number)  # a new process has any random state
        try:
            run_trial(trial, store, report=silent, should_stop=lambda n=number, a=asked: next(a) >= n)
            break  # there was no such moment: it is through
        except Interrupted as stopped:
            said.append(str(stopped))
        assert store.status(trial.trial_id) == "interrupted"
        torch.manual_seed(-number)
        run_trial(trial, store, report=silent)
        assert result(store, trial.trial_id) == expected, said[-1]
    assert {"stopped at step 1 of 4", "stopped at step 4 of 4", "stopped after epoch 1"} <= {*said}
    assert {f"stopped while epoch {epoch} was evaluated" for epoch in (1, 2)} <= {*said}


def test_a_trial_stopped_at_every_moment_ends_the_same(tmp_path: Path, expected: tuple[Any, ...]) -> None:
    """Each attempt gets one step or one evaluation further."""
    store, trial, attempts = RunStore(tmp_path), small_trial(), 0
    while store.status(trial.trial_id) != "finished":
        asked = iter(range(100))
        attempts += 1
        assert attempts < 10
        try:
            run_trial(trial, store, report=silent, should_stop=lambda a=asked: next(a) >= 1)
        except Interrupted:
            continue
    assert attempts > 3
    assert result(store, trial.trial_id) == expected


def interrupt_after(store: RunStore, questions: int) -> None:
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        run_trial(small_trial(), store, report=silent, should_stop=lambda: next(asked) >= questions)


@pytest.mark.parametrize("torn", [(CHECKPOINT,), (CHECKPOINT, PREVIOUS)], ids=["newest", "both"])
def test_torn_checkpoints_are_told_and_cost_only_time(
    tmp_path: Path, expected: tuple[Any, ...], torn: tuple[str, ...]
) -> None:
    store, trial, events = RunStore(tmp_path), small_trial(), []
    interrupt_after(store, 5)
    folder = store.dir(trial.trial_id) / "checkpoint"
    assert (folder / PREVIOUS).exists()
    for name in torn:
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    run_trial(trial, store, report=events.append)
    warnings = [event["message"] for event in events if event["kind"] == "warning"]
    assert len(warnings) == len(torn) and all("cannot be read" in warning for warning in warnings)
    assert ("starting from the beginning" in warnings[-1]) == (PREVIOUS in torn)
    assert result(store, trial.trial_id) == expected


# ---- storage that takes nothing more


def full_disk(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Files with one of these in their name cannot reach the disk."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if any(name in os.readlink(f"/proc/self/fd/{descriptor}") for name in names):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("names", [(CHECKPOINT,), ("metrics.jsonl",), (WEIGHTS,), ("",)], ids=lambda names: names[0])
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: tuple[Any, ...], names: tuple[str, ...]
) -> None:
    store, trial = RunStore(tmp_path), small_trial()
    interrupt_after(store, 1)
    folder = store.dir(trial.trial_id)
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.name in (CHECKPOINT, "result.json")}
    assert len(kept) == 2
    with monkeypatch.context() as full:
        full_disk(full, *names)
        with pytest.raises(StorageError) as caught:
            run_trial(trial, store, report=silent)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line and "No space left" in line and "make room" in line
    if names == ("",):  # not even the record could be written
        assert {path: path.read_bytes() for path in kept} == kept
    else:
        assert store.status(trial.trial_id) == "failed"
        assert line in store.read(trial.trial_id)["error"]
    assert not list((folder / "checkpoint").glob(".*.tmp"))
    run_trial(trial, store, report=silent)
    assert result(store, trial.trial_id) == expected


# ---- what is never done


TO_OWN_PROCESSES = {
    "system/launch.py",
    "system/forkserver.py",
    "schedule/on_ray.py",
    "schedule/workers.py",
}  # they talk to what they have started


def test_no_pickle_is_ever_loaded() -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    files = {path for package in ("harness", "model") for path in (ROOT / package).rglob("*.py")}
    for path in files - {ROOT / "harness" / name for name in TO_OWN_PROCESSES}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not unsafe & {getattr(node, "module", None), *(alias.name for alias in node.names)}, path
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                safe = options.get("weights_only") == "True" or options.get("allow_pickle") == "False"
                assert safe, f"{path}:{node.lineno}"
