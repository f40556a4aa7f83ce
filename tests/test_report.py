"""The way back: a table made from MLflow alone is the table made from the records themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.report import grid_text, write_report
from harness.store.results import RunStore
from harness.tracking.mirror import sync
from tests.support.fakes import finish, record
from tests.support.report_grid import make_grid


def test_the_tracking_store_alone_gives_the_same_table(tmp_path: Path, tracking_store: str) -> None:
    store = RunStore(tmp_path / "store")
    rows = {"a": {"published": {"AP": 37.1}}, "b": {"published": {"AP": 42.3}}, "c": {}}
    grid = make_grid(rows, seeds=(0, 1), metrics=("AP", "APL", "train_seconds"))
    for trial in grid.trials[:3]:
        finish(store, trial)
    record(store, grid.trials[3], "failed", error="ValueError: told to fail")
    sync(store, grid)
    report = write_report([grid], tmp_path / "out", uri=tracking_store)
    records = [found for trial in grid.trials if (found := store.read(trial.trial_id))]
    assert report.text == grid_text(grid, records)
    for part in ("30.5 ± 0.7", "1 of 2 [b]", "seed 1: failed: ValueError: told to fail", "+5.2", "not run yet"):
        assert part in report.text
    assert "[a] APL is undefined: the validation split has no large objects" in report.text
    assert {path.name for path in report.paths} == {
        *("report.html", "made.md", "made.tex", "made.csv", "made_ap.png", "made_ap.pdf"),
        *("made_trials.csv", "made_epochs.csv", "made_classes.csv"),
    }


def test_analysis_and_instability_come_back_from_the_tracking_store(
    tmp_path: Path, tracking_store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store = RunStore(tmp_path / "store")
    grid = make_grid({"a": {}, "b": {}}, seeds=(0,), figures=("instability", "conflict_matrix"))
    trial = grid.trials[0]
    for epoch, instability in ((1, None), (2, 3.5), (3, 2.5)):
        store.append_metrics(
            trial.trial_id, {"epoch": epoch, "step": epoch, "instability": instability, "instability_gt": instability}
        )
    matrix = {"heads": ["decoder", "atss"], "matrix": [[0, 0.01], [0.02, 0]], "distance": {}}
    record(store, trial, "finished", analysis={"conflict": matrix})
    record(store, grid.trials[1], "failed", error="ValueError: told to fail")
    sync(store, grid)
    capfd.readouterr()
    report = write_report([grid], tmp_path / "out", ["md", "png"], uri=tracking_store)
    assert capfd.readouterr() == ("", "")  # MLflow would draw a bar for each record
    names = ["made.md", "made_instability.png", "made_conflict_matrix_a.png"]
    assert [path.name for path in report.paths] == names
    assert all(f"]({name})" in (tmp_path / "out" / "made.md").read_text() for name in names[1:])


def test_no_tracking_store_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tracking store sqlite:////.*none.db") as caught:
        write_report([make_grid({"a": {}})], tmp_path / "out", uri=f"sqlite:///{tmp_path / 'none.db'}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
