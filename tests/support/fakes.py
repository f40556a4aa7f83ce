"""Trials that train nothing: they write the records that a real trial would, in milliseconds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.config import DataConfig, DigitsConfig, RuntimeConfig, TrainConfig, TrialConfig
from harness.errors import RankLost
from harness.spec.grid import Grid, Row, Trial
from harness.spec.identity import named_parts
from harness.store.results import RunStore
from harness.store.source import provenance
from model.config import DetectorConfig

EPOCHS = 3
STEPS = 4  # per epoch


def make_trial(number: int, row: str = "plain", runtime: RuntimeConfig | None = None, epochs: int = EPOCHS) -> Trial:
    config = TrialConfig(
        model=DetectorConfig(),
        data=DataConfig(digits=DigitsConfig(num_train=2, num_val=2)),
        train=TrainConfig(epochs=epochs),
        seed=number,
    )
    factors = {"model.num_queries": 300, "model.two_stage": True, "seed": number}
    label = f"num_queries=300 seed={number}"
    return Trial(f"{number:012x}", config, runtime or RuntimeConfig(), label, row, factors, "fingerprint")


def make_grid(*trials: Trial, name: str = "fakes") -> Grid:
    row = Row("plain", {}, tuple(trial.trial_id for trial in trials), {})
    return Grid(name, "A grid of fakes", "", "digits_fast", trials, ("AP",), (row,))


def entry(trial: Trial, epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": epoch * STEPS,
        "loss": 10.0 / epoch,
        "AP": 10.0 * epoch + trial.config.seed,
        "APL": None,
        "atss/AP": 5.0 * epoch,
        "seconds": 0.5 * epoch,
        "losses": {"decoder.2/giou": 1.0 / epoch},
    }


def record(store: RunStore, trial: Trial, status: str, **fields: Any) -> dict[str, Any]:
    history = store.metrics(trial.trial_id)
    bookkeeping = ("epoch", "step", "loss", "losses", "seconds", "time")
    found = {
        "schema": 1,
        "trial_id": trial.trial_id,
        "label": trial.label,
        "status": status,
        "factors": dict(trial.factors),
        "fingerprint": trial.fingerprint,
        "metrics": {k: v for k, v in history[-1].items() if k not in bookkeeping} if history else {},
        "history": history,
        "per_class": {"0": 31.5},
        "cost": {"train_seconds": 1.5, "num_parameters": 7},
        "provenance": {**provenance(named_parts(trial.config.model)), "device": "cpu"},
        "error": None,
        "started": "2020-01-01T00:00:00+00:00",
        "finished": "2020-01-01T00:01:00+00:00" if status == "finished" else None,
        **fields,
    }
    store.write_result(trial.trial_id, found)
    return found


def finish(store: RunStore, trial: Trial, epochs: int = EPOCHS) -> dict[str, Any]:
    store.write_config(trial.trial_id, {"seed": trial.config.seed})
    for epoch in range(1, epochs + 1):
        store.append_metrics(trial.trial_id, entry(trial, epoch))
    return record(store, trial, "finished")


def run_fake(
    trial: Trial,
    store: RunStore,
    *,
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Behaves like `run_trial`: continues after its last epoch, counts its starts in `starts`.

    $FAKE_FAIL, $FAKE_KILL, $FAKE_LOSE and $FAKE_HANG name seeds that raise, kill their process once, lose a rank once,
    and wait until stopped.
    """
    folder = store.dir(trial.trial_id)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "starts", "a") as handle:
        handle.write(f"{os.getpid()}\n")

    def chosen(variable: str) -> bool:
        return str(trial.config.seed) in os.environ.get(variable, "").split(",")

    record(store, trial, "running")
    for epoch in range(len(store.metrics(trial.trial_id)) + 1, trial.config.train.epochs + 1):
        state = {"epoch": epoch, "epochs": trial.config.train.epochs, "step": epoch * STEPS - 1}
        state |= {"total_steps": trial.config.train.epochs * STEPS, "loss": 1.5, "seconds_per_step": 0.01}
        report({"kind": "step", "trial_id": trial.trial_id, "label": trial.label, "eta_seconds": 3.0, **state})
        if chosen("FAKE_FAIL") and epoch == 2:
            record(store, trial, "failed", error="ValueError: told to fail")
            raise ValueError("told to fail")
        if chosen("FAKE_KILL") and epoch == 3 and starts(store, trial) == 1:
            os.kill(os.getpid(), 9)
        if chosen("FAKE_LOSE") and epoch == 2 and starts(store, trial) == 1:
            raise RankLost("rank 1 of 2 was ended by SIGKILL")
        while chosen("FAKE_HANG") and epoch == 2:
            time.sleep(0.02)
            if should_stop is not None and should_stop():
                record(store, trial, "interrupted")
                raise InterruptedError("stopped")
        with open(folder / "epochs", "a") as handle:
            handle.write(f"{epoch}\n")
        store.append_metrics(trial.trial_id, entry(trial, epoch))
    return record(store, trial, "finished")


def run_slowly(trial: Trial, store: RunStore, **options: Any) -> dict[str, Any]:
    """`run_fake` after a pause in which others try to get hold of the trial."""
    time.sleep(0.3)
    return run_fake(trial, store, **options)


def starts(store: RunStore, trial: Trial) -> int:
    path: Path = store.dir(trial.trial_id) / "starts"
    return len(path.read_text().split()) if path.exists() else 0


def epochs_run(store: RunStore, trial: Trial) -> list[int]:
    path = store.dir(trial.trial_id) / "epochs"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
