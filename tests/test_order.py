"""Trials start longest first: by measured seconds where there are any, else by what makes a step long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.schedule import schedule
from harness.schedule.order import longest_first
from harness.schedule.schedule import run_grid
from harness.spec.grid import Grid, Trial, open_grid
from harness.spec.identity import config_to_dict
from harness.store.results import RunStore
from harness.tracking import tracking
from tests.support.fakes import make_trial, record, run_fake

ABLATIONS = Path(__file__).parents[1] / "ablations"


def numbers(trials: list[Trial], grid: Grid) -> list[int]:
    """Places in the grid, from 1."""
    return [1 + grid.trials.index(trial) for trial in trials]


def measure(store: RunStore, trial: Trial, seconds_per_step: float) -> None:
    record(
        store,
        trial,
        "finished",
        config=config_to_dict(trial.config),
        cost={"seconds_per_step": seconds_per_step},
        history=[{"epoch": 2, "step": 8}],
        provenance={"device": "cpu", "threads": 1},
    )


def test_the_most_heads_first_and_of_those_with_positive_queries(tmp_path: Path) -> None:
    grid = open_grid(ABLATIONS / "quickstart.yaml", "digits_fast", seeds=[0, 1])
    assert numbers(longest_first(grid.trials, RunStore(tmp_path)), grid) == [5, 6, 3, 4, 1, 2]
    table = open_grid(ABLATIONS / "table07_heads.yaml", "digits_fast")
    counts = [len(trial.config.model.heads) for trial in longest_first(table.trials, RunStore(tmp_path))]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 3


def test_then_larger_images_and_longer_schedules(tmp_path: Path) -> None:
    plain = make_trial(1)
    data, train = plain.config.data, plain.config.train
    sides = {"train_short_sides": (2000,), "max_long_side": 3000}
    large = replace(plain, config=replace(plain.config, data=replace(data, **sides)))
    long = replace(plain, config=replace(plain.config, train=replace(train, epochs=9)))
    assert longest_first([plain, long, large], RunStore(tmp_path)) == [large, long, plain]


def test_measured_seconds_overrule_where_all_were_measured(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    grid = open_grid(ABLATIONS / "quickstart.yaml", "digits_fast", seeds=[0, 1])
    for trial, seconds in zip(grid.trials[::2], (3.0, 1.0, 2.0), strict=True):
        measure(store, trial, seconds)
    assert numbers(longest_first(grid.trials[1::2], store), grid) == [2, 6, 4]
    other = open_grid(ABLATIONS / "quickstart.yaml", "digits_fast", ["model.num_queries=5"]).trials[1]
    assert longest_first([grid.trials[1], other], store)[0] is other, "an estimate from other settings decides nothing"


def test_what_was_begun_counts_by_what_is_left(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    grid = open_grid(ABLATIONS / "quickstart.yaml", "digits_fast", seeds=[0, 1, 2])
    for trial in grid.trials[::3]:
        measure(store, trial, 1.0)
    record(store, grid.trials[1], "interrupted", history=[{"epoch": 1, "step": 7}])
    assert numbers(longest_first(grid.trials[1:3], store), grid) == [3, 2]


class Starting:
    """Instead of `run_trial`; notes the ids of trials in the order in which they start."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def __call__(self, trial: Trial, *arguments: Any, **options: Any) -> Any:
        self.ids.append(trial.trial_id)
        return run_fake(trial, *arguments, **options)

    def on_ray(self, trials: list[Trial], *_: object) -> None:
        self.ids += [trial.trial_id for trial in trials]


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> Starting:
    made = Starting()
    monkeypatch.setattr(tracking, "available", lambda: False)
    monkeypatch.setattr(schedule, "run_on_ray", made.on_ray)
    return made


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_both_executors_start_so_and_what_is_shown_keeps_the_order_of_the_file(
    executor: Any, tmp_path: Path, starting: Starting
) -> None:
    grid = open_grid(ABLATIONS / "quickstart.yaml", "digits_fast")
    lines: list[str] = []
    options = {"executor": executor, "check_data": lambda *_: None, "out": lines.append}
    summary = run_grid(grid, RunStore(tmp_path), run_trial=starting, **options)
    ids = [trial.trial_id for trial in grid.trials]
    assert starting.ids == ids[::-1]
    assert list(summary.finished or summary.interrupted) == ids
    if executor == "local":
        assert {line.split()[1]: line.split()[2] for line in lines if "  finished  AP" in line} == {
            f"{number}/3": label.split()[0] for number, label in enumerate((t.label for t in grid.trials), 1)
        }


def test_a_limit_still_takes_the_first_of_the_file(tmp_path: Path, starting: Starting) -> None:
    grid = open_grid(ABLATIONS / "quickstart.yaml", "digits_fast")
    run_grid(grid, RunStore(tmp_path), limit=2, check_data=lambda *_: None, out=lambda line: None)
    assert starting.ids == [grid.trials[1].trial_id, grid.trials[0].trial_id]


def test_a_search_keeps_its_order(tmp_path: Path, starting: Starting) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("search: {space: {model.num_queries: {integer: [5, 40]}}, num_trials: 6}")
    grid = open_grid(path, "digits_fast")
    run_grid(grid, RunStore(tmp_path / "store"), check_data=lambda *_: None, out=lambda line: None)
    assert starting.ids == [trial.trial_id for trial in grid.trials]
    queries = [trial.config.model.num_queries for trial in grid.trials]
    assert queries != sorted(queries, reverse=True)


def test_only_counts_what_it_chose(tmp_path: Path, starting: Starting) -> None:
    grid, store, lines = open_grid(ABLATIONS / "quickstart.yaml", "digits_fast"), RunStore(tmp_path), []
    only = {trial.trial_id for trial in grid.trials[1:]}
    options = {"only": only, "executor": "local", "check_data": lambda *_: None, "out": lines.append}
    summary = run_grid(grid, store, run_trial=starting, **options)
    assert "quickstart  2 of 2 trials to run" in lines and lines[-1] == "quickstart  2 finished"
    assert {line.split()[1] for line in lines if "  finished" in line} == {"1/2", "2/2"}
    assert set(summary.finished) == only and not summary.interrupted
    run_grid(grid, store, run_trial=starting, **options)
    assert lines[-1] == "quickstart  nothing is left to do: all 2 trials are finished"
