"""What a grid costs on top of its trials: through Ray, against a bare loop over the same trials in this process.

Starting and stopping Ray, workers, leases, records and MLflow are all in the time. `$BENCH_TRIAL_SECONDS` is how long
the sleeping trials last (default 20; 120 takes eight minutes).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.table import Row
from harness.data import open_splits
from harness.schedule.schedule import run_grid
from harness.spec.grid import Grid, Trial, open_grid
from harness.store.results import RunStore
from harness.tracking import tracking
from harness.trial.trial import run_trial

QUICKSTART = Path(__file__).parents[1] / "ablations" / "quickstart.yaml"
SMALL = ("data.digits.num_train=8", "data.digits.num_val=4", "train.epochs=1", "model.heads=[]")
TRIAL_SECONDS = float(os.environ.get("BENCH_TRIAL_SECONDS", "20"))


def trivial(trial: Trial, store: RunStore, **_: Any) -> None:
    """A record, and nothing else."""
    store.write_result(trial.trial_id, {"trial_id": trial.trial_id, "status": "finished", "metrics": {"AP": 1.0}})


def sleeping(trial: Trial, store: RunStore, **_: Any) -> None:
    """A trial that computes nothing and lasts."""
    time.sleep(TRIAL_SECONDS)
    trivial(trial, store)


def tiny(trial: Trial, store: RunStore, report: Callable[..., None], **options: Any) -> None:
    """A real trial of one step, in the way the local executor runs it."""
    run_trial(trial, store, report=report, **options)


def grid_of(number: int) -> Grid:
    """As many trials that differ by their seed."""
    grid = open_grid(QUICKSTART, "digits_fast", SMALL, seeds=list(range(number)))
    return replace(grid, trials=grid.trials[:number])


def seconds(grid: Grid, template: Path, work: Callable[..., None] | None, concurrent: int | None) -> float:
    """Of a whole `run_grid` in a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(template, Path(folder) / "mlflow.db")
        begun = time.perf_counter()
        options: dict[str, Any] = {"concurrent": concurrent, "run_trial": work, "out": lambda line: None}
        done = run_grid(grid, RunStore(folder), executor="ray", check_data=lambda *_: None, **options)
        passed = time.perf_counter() - begun
    assert len(done.finished) == len(grid.trials), done
    return passed


def bare_loop(trials: Sequence[Trial], work: Callable[..., None]) -> float:
    """Seconds of the same trials, one after the other, with nothing around them."""
    with tempfile.TemporaryDirectory() as folder:
        store, begun = RunStore(folder), time.perf_counter()
        for trial in trials:
            work(trial, store, report=lambda event: None)
        return time.perf_counter() - begun


def row(name: str, ours: float, reference_name: str, reference: float, number: int) -> Row:
    """Seconds of the whole, as milliseconds per trial."""
    per_trial = 1000 * ours / number, 1000 * reference / number
    share = f", {ours / reference - 1:+.1%}" if reference_name == "ideal" else ""
    note = f"{(ours - reference) / number:+.2f} s a trial{share}"
    return Row(name, per_trial[0], reference_name, per_trial[1], reference / ours, note)


def rows() -> Iterator[Row]:
    """The suite."""
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "mlflow.db"
        tracking.ensure_store(f"sqlite:///{template}")  # takes seconds, once in the life of a store
        kept = os.environ.pop("MLFLOW_TRACKING_URI", None)
        try:
            yield from _rows(template)
        finally:
            os.environ.update({"MLFLOW_TRACKING_URI": kept} if kept else {})


def _rows(template: Path) -> Iterator[Row]:
    grid = grid_of(30)
    ours = seconds(grid, template, trivial, None)
    yield row("30 trials that only leave a record", ours, "bare loop", bare_loop(grid.trials, trivial), 30)

    grid = grid_of(20)
    open_splits(grid.trials[0].config.data)
    bare_loop(grid.trials[:1], tiny)  # kernels, caches
    ours = seconds(grid, template, None, 1)
    yield row("20 real trials of one step, one at a time", ours, "bare loop", bare_loop(grid.trials, tiny), 20)

    grid = grid_of(8)
    ours = seconds(grid, template, sleeping, 2)
    yield row(f"8 trials of {TRIAL_SECONDS:g} s, two at a time", ours, "ideal", 4 * TRIAL_SECONDS, 8)
