"""Two runs of the same grid, and a third of one that overlaps, at the same time: each trial is trained once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.store.results import RunStore
from harness.tracking.mirror import sync
from tests.support.fakes import EPOCHS, Trial, epochs_run, make_grid, make_trial, starts
from tests.support.tracked import runs_of_trials

ROOT = Path(__file__).parents[1]

DRIVE = """
import sys
from harness.config import RuntimeConfig
from harness.tracking.mirror import sync
from harness.store.results import RunStore
from harness.schedule.schedule import run_grid
from tests.support.fakes import make_grid, make_trial, run_slowly

name, executor, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
runtime = RuntimeConfig(cpus_per_trial=0.5)
grid = make_grid(*[make_trial(number, runtime=runtime) for number in range(first, last)], name=name)
print(run_grid(grid, RunStore(), executor=executor, run_trial=run_slowly, check_data=lambda *_: None))
"""


def trials(first: int, last: int) -> list[Trial]:
    return [make_trial(number) for number in range(first, last)]


@pytest.mark.ray
@pytest.mark.parametrize("second", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_drivers_at_the_same_trials_train_each_once(
    tmp_path: Path, tracking_store: str, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers
    store = RunStore()
    plan = [("same", "ray", 1, 7), ("same", second, 1, 7), ("other", "local", 4, 10)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVE, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for arguments in plan
    ]
    told = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(told)
    assert all("failed=()" in text for text in told)
    for trial in trials(1, 10):
        assert store.status(trial.trial_id) == "finished"
        assert starts(store, trial) == 1, f"{trial.trial_id} was begun more than once"
        assert epochs_run(store, trial) == list(range(1, EPOCHS + 1))
    runs = runs_of_trials(tracking_store)
    assert len(runs) == 9
    for name, first, last in (("same", 1, 7), ("other", 4, 10)):
        sync(store, make_grid(*trials(first, last), name=name))
        mine = {run.data.tags["trial_id"] for run in runs if f"grid.{name}" in run.data.tags}
        assert mine == {trial.trial_id for trial in trials(first, last)}
    assert {run.info.status for run in runs_of_trials(tracking_store)} == {"FINISHED"}
