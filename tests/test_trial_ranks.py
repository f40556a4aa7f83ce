"""A trial of two ranks: the record of one process, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import Interrupted, RankLost, UserError
from harness.spec.grid import Trial
from harness.store.results import RunStore
from harness.trial.trial import run_trial
from tests.support.quickstart import silent, timeless, trial_of

# 20 images by 3: three ranks' worth of accumulated, uneven and (1 image for 2 ranks) empty shares
OPTIONS = (
    *("data.digits.num_train=19", "data.digits.num_val=7", "train.batch_size=6", "train.accumulate_steps=2"),
    "train.ema_decay=0.5",
)


def trial_by(num_ranks: int) -> Trial:
    return trial_of(2, *OPTIONS, f"runtime.ranks={num_ranks}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Record and detections of one process."""
    store = RunStore(tmp_path_factory.mktemp("alone"))
    return run_trial(trial_by(1), store, report=silent), detections(store)


def detections(store: RunStore) -> list[dict[str, Any]]:
    return json.loads((store.dir(trial_by(1).trial_id) / "detections.json").read_text())


def assert_same(record: dict[str, Any], store: RunStore, alone: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    expected, expected_detections = alone
    assert record["trial_id"] == expected["trial_id"] and record["status"] == "finished"
    for own, other in zip(timeless(record["history"]), timeless(expected["history"]), strict=True):
        assert own.pop("losses") == pytest.approx(other.pop("losses"), rel=1e-3)
        assert {name for name, value in own.items() if value is None} == {n for n, v in other.items() if v is None}
        numbers = [{name: value for name, value in entry.items() if value is not None} for entry in (own, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-3)
    found = detections(store)
    assert [row["image_id"] for row in found] == [row["image_id"] for row in expected_detections]
    scores = [[row["score"] for row in rows] for rows in (found, expected_detections)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_two_ranks_leave_the_record_of_one_process(tmp_path, alone):
    store, events = RunStore(tmp_path), []
    record = run_trial(trial_by(2), store, report=events.append)
    assert_same(record, store, alone)
    assert record == store.read(record["trial_id"]) and record["provenance"]["ranks"] == 2
    assert [event["kind"] for event in events].count("done") == 1
    assert len(store.metrics(record["trial_id"])) == 2


def rank_processes() -> list[int]:
    """Ids of the ranks that this process has started, the first rank first."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"run_rank" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except (OSError, IndexError):
                continue
    return sorted(found)


def at_first_step(do: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    """A report that does something once, when the first step is reported."""
    done: list[Any] = []

    def report(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and not done:
            done.append(True)
            do()

    return report


def test_stopped_with_two_ranks_killed_with_two_and_finished_by_one(tmp_path, alone):
    store, trial, asked = RunStore(tmp_path), trial_by(2), []
    with pytest.raises(Interrupted, match="stopped at step"):
        run_trial(trial, store, report=at_first_step(lambda: asked.append(True)), should_stop=lambda: bool(asked))
    assert store.status(trial.trial_id) == "interrupted"

    times: list[float] = []

    def kill() -> None:
        times.append(time.monotonic())
        os.kill(rank_processes()[1], signal.SIGKILL)

    with pytest.raises(RankLost, match="rank 1 of 2 was ended by SIGKILL"):
        run_trial(trial, store, report=at_first_step(kill))
    assert time.monotonic() - times[0] < 10 and rank_processes() == []
    record = store.read(trial.trial_id) or {}
    assert (record["status"], record["error"][:6]) == ("interrupted", "rank 1")

    assert_same(run_trial(trial_by(1), store, report=silent), store, alone)


def test_what_a_rank_raises_is_the_trials_reason(tmp_path):
    bad = trial_of(0, "train.learning_rate=1e30", "train.schedule=step", "train.warmup_fraction=0", "runtime.ranks=2")
    store = RunStore(tmp_path)
    with pytest.raises(RuntimeError, match="not finite"):
        run_trial(bad, store, report=silent)
    record = store.read(bad.trial_id) or {}
    assert record["status"] == "failed" and record["error"].startswith("NonFiniteLoss: ")
    log = (store.dir(bad.trial_id) / "log.txt").read_text()
    assert "In a rank:" in log and "train_step" in log


def test_a_detector_that_ranks_would_change_is_refused(tmp_path):
    trial = trial_of(0, "model.backbone.norm=batch")
    trial = replace(trial, runtime=replace(trial.runtime, ranks=2))  # the command line refuses them together
    with pytest.raises(UserError, match="model.backbone.norm: batch"):
        run_trial(trial, RunStore(tmp_path), report=silent)


@pytest.mark.parametrize("option", ["ranks=0", "min_free_gpu_gb=-1", "accelerator_type=H100"])
def test_runtime_settings_that_make_no_sense_are_refused(option):
    with pytest.raises(UserError, match=option.partition("=")[0]):
        trial_of(0, f"runtime.{option}")


@pytest.mark.slow
def test_two_ranks_with_jitter_and_pasted_objects_leave_the_record_of_one_process(tmp_path):
    """No rank knows beforehand how many objects the images of the other show; region heads draw numbers for each."""
    head = (
        "{name: faster_rcnn, rpn: {num_proposals: 16, train_candidates: 32}, roi: {num_samples: 16, fc_channels: 16}}"
    )
    options = (
        *OPTIONS,
        *("data.square=96", "data.jitter_scales=[0.5,2.0]", "data.copy_paste=99", f"model.heads=[{head}]"),
    )
    alone, both = (trial_of(2, *options, f"runtime.ranks={number}") for number in (1, 2))
    stores = RunStore(tmp_path / "alone"), RunStore(tmp_path / "both")
    first, second = (run_trial(own, store, report=silent) for own, store in zip((alone, both), stores, strict=True))
    for own, other in zip(timeless(second["history"]), timeless(first["history"]), strict=True):
        assert own["losses"] == pytest.approx(other["losses"], rel=1e-3)
