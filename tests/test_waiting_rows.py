"""Rows that cannot run yet (`needs`), and rows with a baseline of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.errors import UserError
from harness.report import grid_text, write_report
from harness.report.frames import trials_frame
from harness.report.images import over_images
from harness.report.tables import make_table
from harness.report.verdicts import REPRODUCED, UNDECIDED
from harness.spec.grid import Grid, open_grid
from harness.store.results import RunStore
from tests.support.report_grid import make_record

TEXT = """
rows:
  - {label: "A, K = 0", set: {model.heads: []}, published: {AP: 40.0}}
  - {label: "B, K = 0", set: {model.heads: []}, published: {AP: 50.0}, needs: the Swin backbone}
  - {label: "A, K = 1", set: {model.heads: [atss]}, published: {AP: 42.5}, baseline: "A, K = 0"}
  - {label: "B, K = 1", set: {model.heads: [atss]}, published: {AP: 51.0}, needs: the Swin backbone,
     baseline: "B, K = 0"}
  - {label: "C, K = 0", set: {model.heads: [], model.num_queries: 9}, published: {AP: 20.0}, note: "smaller"}
  - {label: "C, K = 1", set: {model.heads: [atss], model.num_queries: 9}, baseline: "C, K = 0"}
claims:
  - {text: a head helps A, better: "A, K = 1", than: "A, K = 0"}
  - {text: a head helps B, better: "B, K = 1", than: "B, K = 0"}
seeds: [0, 1]
"""

GridOf = Callable[..., Grid]


@pytest.fixture
def grid_of(tmp_path: Path) -> GridOf:
    def make(text: str = TEXT, *overrides: str) -> Grid:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return open_grid(path, "digits_fast", overrides)

    return make


def mistakes(grid_of: GridOf, text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        grid_of(text)
    return [line.partition(".yaml:")[2] for line in str(caught.value).splitlines()]


def records_of(grid: Grid) -> list[dict[str, Any]]:
    return [
        make_record(t.trial_id, 10 * len(t.config.model.heads) + t.config.model.num_queries + t.config.seed)
        for t in grid.trials
    ]


# ---- rows that wait


def test_a_row_that_needs_something_has_no_trials_and_one_line_tells_why(grid_of: GridOf) -> None:
    grid = grid_of()
    assert [row.label for row in grid.rows] == ["A, K = 0", "A, K = 1", "C, K = 0", "C, K = 1"]
    assert len(grid.trials) == 8
    assert [row.label for row in grid.listed] == [
        *("A, K = 0", "B, K = 0", "A, K = 1", "B, K = 1", "C, K = 0", "C, K = 1"),
    ]
    assert grid.notes == ("rows left out, 2 of 6: they need the Swin backbone, which is not here yet",)


def test_plan_and_run_leave_it_out(grid_of: GridOf, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    grid_of()
    assert main(["plan", str(tmp_path / "mine.yaml"), "--preset", "digits_fast"]) == 0
    told = capsys.readouterr()
    assert "B, K" not in told.out and "8 trials: 8 pending" in told.out
    assert "note: rows left out, 2 of 6: they need the Swin backbone" in told.err


def test_its_published_numbers_stand_in_the_table(grid_of: GridOf) -> None:
    grid = grid_of()
    table = make_table(grid, records_of(grid))
    assert [row.label for row in table.rows] == [row.label for row in grid.listed]
    waiting = table.rows[3]
    assert (waiting.cells["AP"].published, waiting.cells["AP"].published_gain) == (51.0, 1.0)
    assert waiting.cells["AP"].summary is None and waiting.num_trials == 0
    assert dict(table.footnotes)[waiting.cells["AP"].marks] == "needs the Swin backbone, which is not here yet"
    assert [verdict.verdict for verdict in table.verdicts] == [REPRODUCED, UNDECIDED]
    (line,) = [line for line in grid_text(grid, records_of(grid)).splitlines() if line.startswith("B, K = 1")]
    assert "51.0" in line.split() and "+1.0" in line.split()
    assert "B, K" not in "".join(trials_frame(grid, records_of(grid))["row"])


def test_before_any_trial_and_in_every_format(grid_of: GridOf, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    grid = grid_of()
    assert "B, K = 1" in grid_text(grid, [])
    made = write_report([grid], tmp_path / "out", source="records")
    page = next(path for path in made.paths if path.suffix == ".html").read_text()
    assert "needs the Swin backbone" in page and "B, K = 1" in page
    assert over_images(make_table(grid, records_of(grid)), grid, RunStore()).rows


def test_its_settings_are_checked_all_the_same(grid_of: GridOf) -> None:
    assert mistakes(grid_of, TEXT.replace("[atss]}, published: {AP: 51.0}", "[ats]}")) == [
        "rows.3.set.model.heads.0: unknown head 'ats'; did you mean 'atss'? known: "
        "atss, faster_rcnn, fcos, gfl, mask_rcnn, paa, retinanet"
    ]


def test_a_file_of_waiting_rows_alone_is_refused(grid_of: GridOf) -> None:
    text = "rows: [{label: a, needs: the Swin backbone}, {label: b, needs: masks}]"
    assert mistakes(grid_of, text) == ["rows: every row needs what is not here yet (the Swin backbone, masks)"]


# ---- baselines of rows


def test_a_gain_is_over_the_row_that_a_row_names(grid_of: GridOf) -> None:
    grid = grid_of()
    assert {row.label: row.baseline for row in grid.listed} == {
        f"{name}, K = {k}": f"{name}, K = 0" for name in "ABC" for k in (0, 1)
    }
    table = make_table(grid, records_of(grid))
    assert [row.is_baseline for row in table.rows] == [True, True, False, False, True, False]
    gains = [row.cells["AP"].gain for row in table.rows]
    assert [gain and gain.mean for gain in gains] == [None, None, 10.0, None, None, 10.0]
    assert "gain: over each row's own baseline, paired by seed" in "".join(table.notes)


def test_rows_that_name_none_have_the_files(grid_of: GridOf) -> None:
    grid = grid_of(TEXT.replace('baseline: "C, K = 0"', "note: x") + 'baseline: "A, K = 1"\n')
    baselines = {row.label: row.baseline for row in grid.listed}
    assert baselines["C, K = 0"] == baselines["C, K = 1"] == "A, K = 1" and baselines["A, K = 1"] == "A, K = 0"


def test_a_baseline_at_the_same_values_of_axes(grid_of: GridOf) -> None:
    text = "rows: [{label: a}, {label: b, set: {model.num_queries: 9}, baseline: a}]\naxes: {train.epochs: [1, 2]}"
    found = {row.label: row.baseline for row in grid_of(text).rows}
    assert found == {f"{name}, epochs={number}": f"a, epochs={number}" for name in "ab" for number in (1, 2)}


def test_a_baseline_that_is_no_row_is_told(grid_of: GridOf) -> None:
    assert mistakes(grid_of, "rows: [{label: plain}, {label: b, baseline: plan}]") == [
        "rows.1.baseline: 'plan' is not the label of a row; did you mean 'plain'?"
    ]
