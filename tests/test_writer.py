"""Checkpoints by a thread: training goes on meanwhile, how often follows from what they take, errors are told."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import StorageError
from harness.store.lease import LeaseLost
from harness.store.results import RunStore
from harness.trial import record as trial_record
from harness.trial import trial as trial_room
from harness.trial import writer as writer_room
from harness.trial.build import build_trial
from harness.trial.checkpoint import CHECKPOINT, Progress, drop_checkpoints, load_checkpoint, snapshot, write_checkpoint
from harness.trial.record import save, settle
from harness.trial.trial import run_trial
from harness.trial.writer import CHECKPOINT_SECONDS, CheckpointWriter
from tests.support.kill_points import small_trial


def silent(event: dict[str, Any]) -> None: ...


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def test_what_killed_writers_left_goes_with_the_checkpoints(tmp_path):
    """Ours, and the file that safetensors itself writes to first."""
    for name in (f".{CHECKPOINT}.17.tmp", ".tmpOKs7Z2", CHECKPOINT, "model.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    drop_checkpoints(tmp_path)
    assert contents(tmp_path).keys() == {"model.safetensors"}


def test_the_interval_follows_from_what_the_last_one_took():
    """Copying and writing together; what failed says nothing."""
    writer = CheckpointWriter()
    assert writer.interval == CHECKPOINT_SECONDS == 60
    writer.start(lambda: None, time.monotonic() - 6)
    writer.wait()
    assert writer.seconds == pytest.approx(6, abs=1) and writer.interval == pytest.approx(writer.seconds / 0.03)

    def fail() -> None:
        raise StorageError(Path("x"), OSError(28, "no space"))

    writer.start(fail, time.monotonic() - 99)
    with pytest.raises(StorageError):
        writer.wait()
    assert writer.seconds == pytest.approx(6, abs=1)
    writer.wait()  # told once


def test_one_at_a_time_and_nothing_is_written_after_the_end():
    writer, go, written = CheckpointWriter(), threading.Event(), []

    def slowly() -> None:
        assert go.wait(60)
        written.append(len(written))

    writer.start(slowly, time.monotonic())
    writer.check()
    assert writer.is_busy and not written
    threading.Timer(0.05, go.set).start()
    writer.start(lambda: written.append("second"), time.monotonic())
    writer.close()
    assert written == [0, "second"] and not writer.is_busy


def test_a_snapshot_is_of_its_moment(tmp_path):
    """What is trained while it is written does not reach it."""
    state = build_trial(small_trial(), RunStore(tmp_path), silent, lambda: False)
    trained = [parameter for parameter in state.detector.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    state.progress.loss_sums["total"] = 1.0
    taken = snapshot(state.detector, state.optimizer, state.progress)
    with torch.no_grad():
        torch._foreach_add_(trained, 1.0)
    state.progress.loss_sums["total"] = 2.0
    write_checkpoint(tmp_path / "c", taken)
    progress, warnings = load_checkpoint(tmp_path / "c", state.detector, state.optimizer)
    assert not warnings and progress == Progress(loss_sums={"total": 1.0})
    assert all(map(torch.equal, before, trained))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is due after each step."""
    monkeypatch.setattr(writer_room, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(writer_room, "CHECKPOINT_SHARE", float("inf"))


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch, often):
    """The first one inside an epoch is not whole before the epoch's last step is done."""
    steps: list[int] = []
    seen: list[int] = []
    last_step = threading.Event()
    real_step, real_write = trial_room.train_step, trial_record.write_checkpoint

    def step(*arguments: Any, **options: Any) -> dict[str, float]:
        losses = real_step(*arguments, **options)
        steps.append(options["step"])
        if options["step"] == 1:
            last_step.set()
        return losses

    def write(*arguments: Any) -> None:
        if not seen:
            assert last_step.wait(60), "training waits for the checkpoint"
        seen.append(steps[-1])
        real_write(*arguments)

    monkeypatch.setattr(trial_room, "train_step", step)
    monkeypatch.setattr(trial_record, "write_checkpoint", write)
    trial = small_trial()
    found = run_trial(trial, RunStore(tmp_path), report=silent)
    assert found["status"] == "finished" and seen[0] == 1 and steps == [0, 1, 2, 3]
    assert not any(thread.name == "checkpoint" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [StorageError(Path("x"), OSError(28, "no space left")), LeaseLost("taken over")])
def test_an_error_of_the_thread_ends_the_training(tmp_path, monkeypatch, often, error):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(trial_record, "write_checkpoint", fail)
    store, trial = RunStore(tmp_path), small_trial()
    with pytest.raises(type(error)):
        run_trial(trial, store, report=silent)
    status = (store.read(trial.trial_id) or {})["status"]
    assert status == ("failed" if isinstance(error, StorageError) else "running")
    assert store.metrics(trial.trial_id) == []


def test_the_lease_is_looked_at_when_the_thread_has_written(tmp_path, monkeypatch):
    """It goes while a checkpoint is written: the one before stays, and the training hears of it."""
    state = build_trial(small_trial(), RunStore(tmp_path), silent, lambda: False)
    save(state)
    folder = state.folder / "checkpoint"
    before = contents(folder)
    assert before.keys() == {CHECKPOINT}
    asked: list[bool] = []

    def check(_: str) -> None:
        asked.append(True)
        if len(asked) > 1:
            assert list(folder.glob(".*.tmp"))
            raise LeaseLost("taken over")

    monkeypatch.setattr(state.store, "check_lease", check)
    state.progress.step = 1
    save(state, wait=False)
    with pytest.raises(LeaseLost):
        settle(state)
    assert contents(folder) == before and not list(folder.glob(".*"))
