"""Trials of a search whose outcome is known beforehand: AP rises towards a height that the settings decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.spec.grid import Trial
from harness.store.results import RunStore
from tests.support.fakes import entry, record

EPOCHS = 9


def height(trial: Trial) -> float:
    """The AP that a trial comes near: best for a learning rate of 0.003."""
    return 40.0 - 1e4 * abs(trial.config.train.learning_rate - 0.003)


def ap_after(trial: Trial, epoch: int) -> float:
    return height(trial) * (1 - 0.5**epoch)


def run_curve(
    trial: Trial,
    store: RunStore,
    *,
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Behaves like `run_trial`: continues after its last epoch, and stops between epochs when asked to."""
    for epoch in range(len(store.metrics(trial.trial_id)) + 1, EPOCHS + 1):
        told = {**entry(trial, epoch), "AP": ap_after(trial, epoch)}
        store.append_metrics(trial.trial_id, told)
        record(store, trial, "running")
        report({"kind": "epoch", "trial_id": trial.trial_id, "label": trial.label, **told})
        if epoch < EPOCHS and should_stop is not None and should_stop():
            record(store, trial, "interrupted")
            raise InterruptedError("stopped")
    return record(store, trial, "finished")
