"""What a trial took: training, evaluations and checkpoints apart, exactly, also over interruptions."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.__main__ import main
from harness.errors import Interrupted
from harness.report.tables import metric_of
from harness.spec.grid import Trial, open_grid
from harness.spec.identity import config_to_dict
from harness.spec.spec import COST_METRICS
from harness.store.cost import Costs
from harness.store.results import RunStore
from harness.trial import record as trial_record
from harness.trial import trial as trial_room
from harness.trial import writer
from harness.trial.build import take_costs
from harness.trial.checkpoint import Progress, load_checkpoint, save_checkpoint
from harness.trial.train import build_optimizer
from harness.trial.trial import run_trial
from model.detector import Detector
from tests.support.fakes import record as write_record
from tests.support.kill_points import small_trial
from tests.support.tiny import NUM_CLASSES, tiny_config

QUICKSTART = Path(__file__).parents[1] / "ablations" / "quickstart.yaml"
SLOW = 0.2  # seconds that each checkpoint takes here


def silent(event: dict[str, Any]) -> None: ...


@pytest.fixture
def pause() -> list[Callable[[float], None]]:
    """How a slow checkpoint passes its time; other threads of the process keep their own `time.sleep`."""
    return [time.sleep]


@pytest.fixture
def slow_checkpoints(monkeypatch: pytest.MonkeyPatch, pause: list[Callable[[float], None]]) -> list[str]:
    """A checkpoint after each step, and its copy takes a while; a list of those that were made."""
    written: list[str] = []

    def slowly(name: str) -> Any:
        real = getattr(trial_record, name)

        def work(*arguments: Any, **named: Any) -> Any:
            pause[0](SLOW)
            made = real(*arguments, **named)
            written.append(name)
            return made

        return work

    for name in ("snapshot", "save_weights"):
        monkeypatch.setattr(trial_record, name, slowly(name))
    monkeypatch.setattr(writer, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(writer, "CHECKPOINT_SHARE", math.inf)
    monkeypatch.setattr(writer.CheckpointWriter, "is_busy", False)
    return written


@pytest.fixture
def trial() -> Trial:
    """Two epochs of two steps."""
    return small_trial()


def test_checkpoints_are_no_training(tmp_path, trial, slow_checkpoints):
    """Four checkpoints (one inside each epoch, one after it) and the weights at the end."""
    events: list[dict[str, Any]] = []
    cost = run_trial(trial, RunStore(tmp_path), report=events.append)["cost"]
    assert slow_checkpoints == ["snapshot"] * 4 + ["save_weights"]
    assert cost["checkpoint_seconds"] >= 5 * SLOW
    parts = [cost[f"{name}_seconds"] for name in ("train", "eval", "checkpoint")]
    assert sum(parts) <= cost["wall_seconds"]
    assert cost["seconds_per_step"] == pytest.approx(cost["train_seconds"] / 4)
    steps = [event["seconds_per_step"] for event in events if event["kind"] == "step"]
    # what was told while it trained knows nothing of checkpoints either: two steps of an epoch, none with a pause
    assert cost["train_seconds"] + cost["eval_seconds"] <= cost["wall_seconds"] - 5 * SLOW
    assert steps


def test_the_time_of_a_step_holds_no_checkpoint(tmp_path, trial, slow_checkpoints, pause, monkeypatch):
    """On a clock that only checkpoints and steps move."""
    now = [0.0]

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    real = trial_room.train_step

    def step(*arguments: Any, **options: Any) -> dict[str, float]:
        pass_by(1.0)
        return real(*arguments, **options)

    monkeypatch.setattr(trial_room, "train_step", step)
    monkeypatch.setattr(trial_room, "REPORT_SECONDS", 0.0)
    for room in (trial_room, trial_record):
        monkeypatch.setattr(room, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    pause[0] = lambda _: pass_by(100.0)
    events: list[dict[str, Any]] = []
    cost = run_trial(trial, RunStore(tmp_path), report=events.append)["cost"]
    assert (cost["train_seconds"], cost["checkpoint_seconds"], cost["seconds_per_step"]) == (4.0, 500.0, 1.0)
    assert {event["seconds_per_step"] for event in events if event["kind"] in ("step", "epoch")} == {1.0}
    assert [entry["seconds"] for entry in RunStore(tmp_path).metrics(trial.trial_id)] == [2.0, 4.0]


def test_costs_add_up_over_interruptions(tmp_path, trial, slow_checkpoints):
    store = RunStore(tmp_path)
    for _ in range(2):
        asked = iter(range(100))
        with pytest.raises(Interrupted):
            run_trial(trial, store, report=silent, should_stop=lambda asked=asked: next(asked) >= 1)
        kept = (store.read(trial.trial_id) or {})["cost"]
        assert kept["checkpoint_seconds"] >= len(slow_checkpoints) * SLOW  # the last one too
    cost = run_trial(trial, store, report=silent)["cost"]
    assert cost["checkpoint_seconds"] >= len(slow_checkpoints) * SLOW > kept["checkpoint_seconds"] - SLOW
    assert cost["wall_seconds"] >= cost["train_seconds"] + cost["eval_seconds"] + cost["checkpoint_seconds"]


def test_the_costs_of_another_checkpoint_are_not_taken():
    progress = Progress(history=[{"epoch": 1}], wall_seconds=5.0, checkpoint_seconds=1.0)
    take_costs(progress, {"history": [], "cost": {"checkpoint_seconds": 9.0, "wall_seconds": 9.0}})
    take_costs(progress, {"history": [{}], "cost": {"checkpoint_seconds": "many"}})
    take_costs(progress, {"history": [{}]})
    assert (progress.checkpoint_seconds, progress.wall_seconds) == (1.0, 5.0)
    take_costs(progress, {"history": [{}], "cost": {"checkpoint_seconds": 2.0, "wall_seconds": 4.0}})
    assert (progress.checkpoint_seconds, progress.wall_seconds) == (2.0, 5.0)


def test_a_checkpoint_of_before_that_number_loads(tmp_path):
    from harness.config import TrainConfig

    detector = Detector(tiny_config(), NUM_CLASSES)
    optimizer = build_optimizer(detector, TrainConfig())
    torch.stack([p.sum() for p in detector.parameters() if p.requires_grad]).sum().backward()
    optimizer.step()
    progress = Progress(step=3, train_seconds=7.0)
    del progress.checkpoint_seconds
    save_checkpoint(tmp_path, detector, optimizer, progress)
    loaded, warnings = load_checkpoint(tmp_path, detector, optimizer)
    assert not warnings and loaded == Progress(step=3, train_seconds=7.0)


def measured(store: RunStore, trial: Trial, **cost: float) -> None:
    history = [{"epoch": 1, "step": 4, "AP": 1.0}, {"epoch": 2, "step": 8, "AP": 1.0}]
    config = config_to_dict(trial.config)
    provenance = {"device": "cpu", "threads": 1}
    write_record(store, trial, "finished", config=config, history=history, cost=cost, provenance=provenance)


def test_what_is_left_holds_the_checkpoints_once(tmp_path):
    store = RunStore(tmp_path)
    first, *_ = open_grid(QUICKSTART, "digits_fast").trials
    same = replace(first, trial_id="0" * 12)
    measured(store, first, seconds_per_step=2.0, eval_seconds=10.0, checkpoint_seconds=16.0)
    estimate = Costs(store).left(same)
    assert estimate is not None and estimate.seconds == 8 * (2.0 + 2.0) + 2 * 5.0
    measured(store, first, seconds_per_step=4.0, eval_seconds=10.0)  # of before: the steps' time holds them
    estimate = Costs(store).left(same)
    assert estimate is not None and estimate.seconds == 8 * 4.0 + 2 * 5.0


def test_a_record_of_before_a_setting_is_alike_and_weights_cost_no_time(tmp_path):
    store = RunStore(tmp_path)
    first, *_ = open_grid(QUICKSTART, "digits_fast").trials
    measured(store, first, seconds_per_step=2.0)
    record = json.loads((store.dir(first.trial_id) / "result.json").read_text())
    del record["config"]["model"]["backbone"]["random_frozen"]
    store.write_result(first.trial_id, record)
    (tmp_path / "resnet.pth").write_bytes(b"any")
    other, *_ = open_grid(
        QUICKSTART,
        "digits_fast",
        [f"model.backbone.weights={tmp_path}/resnet.pth", "model.backbone.random_frozen=true"],
    ).trials
    estimate = Costs(store).left(other)
    assert estimate is not None and estimate.how == "alike"


def test_it_is_a_column(tmp_path, capsys):
    assert "checkpoint_seconds" in COST_METRICS and metric_of("checkpoint_seconds").better == "lower"
    file = tmp_path / "table.yaml"
    file.write_text("rows: [{label: a, set: {model.heads: []}}]\nmetrics: [AP, train_seconds, checkpoint_seconds]\n")
    assert main(["plan", str(file), "--preset", "digits_fast"]) == 0 and not capsys.readouterr().err
