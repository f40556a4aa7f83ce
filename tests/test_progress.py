"""Progress lines: the right words from records and heartbeats, never silent for long, nothing told twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from harness.schedule.progress import Progress, describe, duration
from harness.spec.grid import Grid
from harness.store import lease
from harness.store.results import RunStore
from tests.support.fakes import entry, finish, make_grid, make_trial, record


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


@pytest.fixture
def lines() -> list[str]:
    return []


def beat(store: RunStore, number: int, **state: Any) -> None:
    known = {"kind": "step", "epoch": 2, "epochs": 3, "step": 6, "total_steps": 12, "loss": 8.414, "eta_seconds": 126.0}
    store.heartbeat(f"{number:012x}", {**known, "seconds_per_step": 0.1138, **state})


def make(grid: Grid, store: RunStore, lines: list[str], **options: Any) -> Progress:
    progress = Progress(grid, store, lines.append, poll_seconds=0.01, **options)
    progress.watch(grid.trials)
    return progress


def wait_for(lines: list[str], count: int) -> None:
    deadline = time.monotonic() + 10
    while len(lines) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(lines) == count, lines


def test_a_trial_from_its_first_step_to_its_end(store: RunStore, lines: list[str]) -> None:
    trial = make_trial(1)
    head = "fakes 1/1  num_queries=300 seed=1  000000000001  "
    with make(make_grid(trial), store, lines):
        beat(store, 1)
        wait_for(lines, 1)
        assert lines[0] == head + "epoch 2/3  step 6/12  loss 8.41  0.11 s/step  eta 2.1 min"
        store.append_metrics(trial.trial_id, entry(trial, 2))
        wait_for(lines, 2)
        assert lines[1] == head + "epoch 2/3  step 8/12  loss 5.00  AP 21.0  0.11 s/step  eta 2.1 min"
        beat(store, 1, step=9, warnings=["the newest checkpoint is torn"])
        wait_for(lines, 3)
        assert lines[2] == head + "warning: the newest checkpoint is torn"
        record(store, trial, "finished", cost={"wall_seconds": 192.0})
        wait_for(lines, 4)
        assert lines[3] == head + "finished  AP 21.0  in 3.2 min"


def test_old_records_are_no_news(store: RunStore, lines: list[str]) -> None:
    trial = make_trial(1)
    beat(store, 1)
    store.append_metrics(trial.trial_id, entry(trial, 1))
    record(store, trial, "failed", error="long ago")
    with make(make_grid(trial), store, lines):
        time.sleep(0.1)
        assert lines == []
        store.append_metrics(trial.trial_id, entry(trial, 2))
        wait_for(lines, 1)
        assert "epoch 2/3" in lines[0]


def test_an_analysis_added_to_a_finished_trial_is_no_second_end(store: RunStore, lines: list[str]) -> None:
    trial = make_trial(1)
    with make(make_grid(trial), store, lines):
        record(store, trial, "finished", cost={"wall_seconds": 192.0})
        wait_for(lines, 1)
        record(store, trial, "finished", cost={"wall_seconds": 192.0}, analysis={"epoch": 3})
        time.sleep(0.1)
        assert len(lines) == 1


def test_what_ends_between_the_last_look_and_closing_is_told(store: RunStore, lines: list[str]) -> None:
    trial = make_trial(1)
    progress = Progress(make_grid(trial), store, lines.append, poll_seconds=60.0)
    progress.watch([trial])
    with progress:
        finish(store, trial)
    assert [line.partition(trial.trial_id)[2].split()[:2] for line in lines] == [
        ["epoch", "1/3"],
        ["epoch", "2/3"],
        ["epoch", "3/3"],
        ["finished", "AP"],
    ]


def heads(lines: list[str]) -> list[str]:
    """The two words after the trial's id, of each line."""
    return [" ".join(line.partition("00000001  ")[2].split()[:2]) for line in lines]


def test_no_line_of_a_trial_comes_after_its_end(store: RunStore, lines: list[str]) -> None:
    """What was written before the end may be seen after it, and so may the last sign of life, which comes after it."""
    trials = [make_trial(1), make_trial(2)]
    progress = Progress(make_grid(*trials), store, lines.append, beat_seconds=0.0)
    progress.watch(trials)
    beat(store, 1, kind="evaluate", evaluated=0.5)
    progress._look()
    finish(store, trials[0])
    progress._look()
    assert heads(lines[-4:]) == ["epoch 1/3", "epoch 2/3", "epoch 3/3", "finished AP"]
    assert "evaluated 50%" in lines[0] and "evaluated" not in "".join(lines[-4:])
    lines.clear()
    for kind in ("step", "epoch", "evaluate", "analyse", "done"):
        beat(store, 1, kind=kind, step=12, evaluated=1.0, analysed=1.0)
        progress._look()
    assert lines == []


@pytest.mark.parametrize("status", ["failed", "interrupted", "pruned"])
def test_a_trial_comes_back_only_with_another_process_or_a_running_record(
    status: str, store: RunStore, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(1)
    progress = Progress(make_grid(trial), store, lines.append)
    progress.watch([trial])
    beat(store, 1)
    progress._look()
    record(store, trial, status, error="no")
    beat(store, 1, step=7)
    progress._look()
    beat(store, 1, step=8)
    progress._look()
    assert [status in line for line in lines] == [False, True]
    for again in ("process", "record"):
        if again == "record":
            record(store, trial, status, error="no")
            progress._look()
            record(store, trial, "running")
            progress._look()
        else:
            monkeypatch.setattr(lease, "identity", lambda: {"machine": "m", "pid": 7, "process_start": "1"})
        lines.clear()
        beat(store, 1, step=9)
        progress._look()
        assert len(lines) == (again == "process") and progress._watched[0].status == "running"


def test_an_end_that_could_not_be_read_is_told_with_the_next_look(
    store: RunStore, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(1)
    progress = Progress(make_grid(trial), store, lines.append)
    progress.watch([trial])
    finish(store, trial)
    for name in ("read", "metrics"):
        with monkeypatch.context() as outage:
            outage.setattr(RunStore, name, lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            progress._look()
    progress._look()
    assert heads(lines) == ["epoch 1/3", "epoch 2/3", "epoch 3/3", "finished AP"]


def test_chosen_trials_are_numbered_among_themselves(store: RunStore, lines: list[str]) -> None:
    trials = [make_trial(number) for number in (1, 2, 3, 4)]
    progress = Progress(make_grid(*trials), store, lines.append, chosen=[trials[1], trials[3]])
    progress.watch([trials[3]])
    beat(store, 4)
    progress._look()
    assert lines[0].startswith("fakes 2/2  ")


def test_never_silent(store: RunStore, lines: list[str]) -> None:
    trials = [make_trial(1), make_trial(2)]
    with make(make_grid(*trials), store, lines, beat_seconds=0.05) as progress:
        progress.phase("starting Ray")
        time.sleep(0.5)
        assert lines[:3] == ["fakes  starting Ray", "fakes  starting Ray, 0 s", "fakes  starting Ray, 0 s"]
        beat(store, 1)
        beat(store, 2)
        time.sleep(0.5)
        told = [line.split()[1] for line in lines if "step 6/12" in line]
        assert told.count("1/2") >= 2 and told.count("2/2") >= 2  # they take turns
        assert any("(no news for 0 s)" in line for line in lines)


def test_time_left_of_the_grid_counts_trials_that_have_not_begun(store: RunStore, lines: list[str]) -> None:
    trials = [make_trial(number) for number in (1, 2, 3)]
    with make(make_grid(*trials), store, lines):
        beat(store, 1, eta_seconds=96.0)  # half done: 192 s in all, and as much for each of the two others
        wait_for(lines, 1)
        assert lines[0].endswith("eta 1.6 min  (grid 8.0 min)")
        beat(store, 2, eta_seconds=96.0)
        wait_for(lines, 2)
        store.append_metrics(trials[1].trial_id, entry(trials[1], 1))
        wait_for(lines, 3)
        assert "(grid 3.2 min)" in lines[2]  # two at a time: 96 + 96 + 192 over 2


def test_duration_and_words() -> None:
    assert [duration(s) for s in (-3, 45.4, 192, 5400)] == ["0 s", "45 s", "3.2 min", "1.5 h"]
    assert describe({"epoch": 1, "step": 3, "loss": None, "AP": None}) == "epoch 1  step 3"
    assert describe({"epoch": 1, "loss": 2.0, "atss/AP": 15.04}) == "epoch 1  loss 2.00  atss/AP 15.0"
