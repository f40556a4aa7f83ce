"""Grids with axes: gains at the same other settings, the pivot, the figure, and rows that share a trial."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.errors import UserError
from harness.figures.against import draw_against
from harness.figures.series import AxisPoint
from harness.report import grid_text, write_report
from harness.report.figures import analysis_figures
from harness.report.pivot import make_pivot, pivot_frame
from harness.report.statistics import mean_interval
from harness.report.tables import make_table
from harness.spec.grid import Grid, open_grid
from tests.support.report_grid import make_record

CROSSED = """
title: Heads and weights
rows:
  - {label: no head, set: {model.heads: []}}
  - {label: ATSS, set: {model.heads: [atss]}}
axes: {model.lambda1: [0.5, 1.0], model.num_queries: [20, 30]}
seeds: [0, 1]
"""
FREE = """
title: Weights and passes
axes: {model.lambda1: [0.1, 0.5, 4], model.look_forward_twice: [true, false]}
base: {model.heads: [atss]}
seeds: [0, 1]
"""


@pytest.fixture
def grid_of(tmp_path):
    def make(text: str, baseline: str = "", **options: Any) -> Grid:
        path = tmp_path / "mine.yaml"
        path.write_text(text + (f"baseline: {baseline}\n" if baseline else ""))
        return open_grid(path, "digits_fast", require_data=False, **options)

    return make


def ap_of(trial: Any) -> float:
    """An AP that says which trial it is of."""
    model = trial.config.model
    return 10 * len(model.heads) + 2 * model.lambda1 + model.num_queries / 10 + model.look_forward_twice


def records_of(grid: Grid) -> list[dict[str, Any]]:
    return [make_record(t.trial_id, ap_of(t) + t.config.seed) for t in grid.trials]


@pytest.mark.parametrize(
    ("baseline", "row", "expected", "words"),
    [
        ("no head", "ATSS, lambda1=0.5 num_queries=30", "no head, lambda1=0.5 num_queries=30", "'no head' at the same"),
        ("{row: no head}", "ATSS, lambda1=1 num_queries=20", "no head, lambda1=1 num_queries=20", "'no head' at the"),
        ("{model.lambda1: 1}", "ATSS, lambda1=0.5 num_queries=30", "ATSS, lambda1=1 num_queries=30", "'lambda1=1' at"),
        (
            "{model: {lambda1: 1.0}}",
            "no head, lambda1=0.5 num_queries=20",
            "no head, lambda1=1 num_queries=20",
            "'lamb",
        ),
        (
            "lambda1=1",
            "ATSS, lambda1=0.5 num_queries=30",
            "ATSS, lambda1=1 num_queries=30",
            "at the same row and num_q",
        ),
        ("no head, lambda1=1", "ATSS, lambda1=0.5 num_queries=30", "no head, lambda1=1 num_queries=30", "same num_q"),
        (
            "no head, lambda1=1 num_queries=20",
            "ATSS, lambda1=0.5 num_queries=30",
            "no head, lambda1=1 num_queries=20",
            "over the row 'no head, lambda1=1 num_queries=20', paired",
        ),
    ],
)
def test_a_gain_is_over_the_baseline_at_the_same_other_settings(grid_of, baseline, row, expected, words):
    grid = grid_of(CROSSED, f'"{baseline}"' if baseline[0] != "{" else baseline)
    rows = {each.label: each for each in grid.rows}
    assert rows[row].baseline == expected and grid.baseline_of(rows[row]) is rows[expected]
    table = make_table(grid, records_of(grid))
    (found,) = [each for each in table.rows if each.label == row]
    aps = {t.trial_id: ap_of(t) for t in grid.trials}
    by_hand = aps[rows[row].trial_ids[0]] - aps[rows[expected].trial_ids[0]]
    assert found.cells["AP"].gain.mean == pytest.approx(by_hand) if found.cells["AP"].gain else by_hand == 0
    assert words in " ".join(table.notes)


@pytest.mark.parametrize(
    ("baseline", "told"),
    [
        ("lambda1=3", "baseline: '3' is not on the axis model.lambda1; known: 0.5, 1"),
        ("{lambda: 1}", "baseline.lambda: is no axis of this file; did you mean 'model.lambda1'?"),
        ("{row: heads}", "baseline: 'heads' is not the label of a row; did you mean 'no head'?"),
        ("nohead", "baseline: 'nohead' is not the label of a row; did you mean 'no head'?"),
        ("[no head]", 'baseline: must be the label of a row, or values on axes such as {lambda1: 1}, got ["no head"]'),
    ],
)
def test_a_mistaken_baseline_names_what_is_known(grid_of, baseline, told):
    with pytest.raises(UserError) as caught:
        grid_of(CROSSED, baseline)
    (line,) = str(caught.value).splitlines()
    assert line.endswith(told)


def test_rows_that_share_a_trial_are_marked_and_gain_nothing(grid_of):
    """Without a head λ1 has no effect: rows of other values are the same trials."""
    grid = grid_of(CROSSED, "{model.lambda1: 0.5}")
    shared = {row.label: row.same_as for row in grid.rows if row.same_as}
    assert shared == {
        "no head, lambda1=1 num_queries=20": "no head, lambda1=0.5 num_queries=20",
        "no head, lambda1=1 num_queries=30": "no head, lambda1=0.5 num_queries=30",
    }
    table = make_table(grid, records_of(grid))
    reasons = dict(table.footnotes)
    marked = {row.label: reasons[row.label_marks] for row in table.rows if row.label_marks}
    assert marked == {label: f"same trials as '{other}'" for label, other in shared.items()}
    (row,) = [row for row in table.rows if row.label == "no head, lambda1=1 num_queries=20"]
    assert row.is_baselines and row.cells["AP"].gain is None and row.cells["AP"].summary.n == 2
    (line,) = [line for line in grid_text(grid, records_of(grid)).splitlines() if line.startswith(row.label)]
    assert "same trial" in line.split("  ", 1)[1]


def test_a_pivot_has_mean_deviation_and_gain(grid_of):
    grid = grid_of(FREE, "lambda1=0.1")
    pivot = make_pivot(grid, make_table(grid, records_of(grid)))
    assert (pivot.corner, pivot.across, pivot.columns) == ("look_forward_twice", "lambda1", ("0.1", "0.5", "4"))
    text = grid_text(grid, records_of(grid)).split("against lambda1")[1]
    lines = [line.split() for line in text.splitlines()]
    queries = grid.trials[0].config.model.num_queries / 10
    assert [f"{10 + 0.2 + queries + 1 + 0.5:.1f}", "±", "0.7"] == lines[4][1:4]  # seeds add 0 and 1
    assert lines[4][0] == "true" and lines[5][0] == "false"
    assert lines[4][-1] == "(+7.8)" and lines[4].count("(+0.8)") == 1
    frame = pivot_frame(pivot)
    assert frame["lambda1=4 gain"].tolist() == pytest.approx([7.8, 7.8]) and "lambda1=0.1 gain" not in frame


def test_the_rows_of_a_file_stand_against_its_axis_in_every_format(grid_of, tmp_path):
    text = CROSSED.replace(", model.num_queries: [20, 30]", "")
    grid = grid_of(text, "no head")
    report = write_report([grid], tmp_path / "out", ("html", "md", "tex", "csv", "png"), records=records_of(grid))
    names = {path.name for path in report.paths}
    assert {"mine_pivot.csv", "mine_axis_lambda1.png"} <= names
    with (tmp_path / "out" / "mine_pivot.csv").open() as file:
        none, atss = csv.DictReader(file)
    assert none["variant"] == "no head" and none["lambda1=1 gain"] == ""
    assert float(atss["lambda1=1"]) - float(none["lambda1=1"]) == pytest.approx(float(atss["lambda1=1 gain"]), abs=1e-3)
    made = [(tmp_path / "out" / name).read_text() for name in ("mine.md", "mine.tex", "report.html")]
    markdown, latex, page = made
    assert "| variant | lambda1 = 0.5 | lambda1 = 1 |" in markdown and "(+10" in markdown.split("lambda1 = 0.5")[1]
    assert latex.count(r"\begin{tabular}") == 2 and "lambda1 = 0.5 & lambda1 = 1" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 2
    assert "Heads and weights: AP against lambda1" in page and "lambda1 = 0.5" in page and "pivot (CSV)" in page


@pytest.mark.parametrize(
    "text",
    [
        "rows: [{label: a}, {label: b, set: {model.heads: [atss]}}]\n",
        "axes: {model.num_queries: [20]}\n",
        "axes: {model.num_queries: [20, 30], model.heads: [[], [atss]], train.epochs: [1, 2]}\n",
    ],
)
def test_a_grid_without_axes_of_one_value_or_of_three_has_neither(grid_of, text):
    grid = grid_of(text)
    assert make_pivot(grid, make_table(grid, records_of(grid))) is None
    assert list(analysis_figures(grid, records_of(grid))) == ["ap"]


def test_a_file_that_wants_no_figures_gets_none(grid_of):
    grid = grid_of(FREE + "figures: []\n")
    assert analysis_figures(grid, records_of(grid)) == {}


def test_numbers_stand_to_scale_and_words_side_by_side(grid_of):
    grid = grid_of(FREE)
    (axes,) = analysis_figures(grid, records_of(grid))["axis_lambda1"].axes
    assert axes.get_xscale() == "log"  # 0.1 to 4
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.1", "0.5", "4"]
    assert axes.get_xlabel() == "lambda1 (logarithmic)" and axes.get_ylabel() == "AP (%)"
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [line.get_label() for line in lines] == ["look_forward_twice=true", "look_forward_twice=false"]
    xs, ys = lines[0].get_data()
    assert xs == pytest.approx([0.1, 0.5, 4], rel=0.1)
    assert ys[2] - ys[0] == pytest.approx(7.8)

    words = grid_of("axes: {model.heads: [[], [atss], [atss, gfl]]}\nseeds: [0]\n")
    (axes,) = analysis_figures(words, records_of(words))["axis_heads"].axes
    assert axes.get_xscale() == "linear"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["none", "atss", "atss+gfl"]
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2] and len(axes.lines) == 1  # one seed has no interval


def test_near_numbers_stand_on_a_linear_axis_and_intervals_are_drawn():
    points = [AxisPoint(value, 30.0 + value, (29.0, 33.0), 3) for value in (2, 4, 10)]
    (axes,) = draw_against({"": points}, [2, 4, 10], True, "top_k", "AP").axes
    assert axes.get_xscale() == "linear" and axes.get_xlabel() == "top_k"
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [list(bar.get_ydata()) for bar in bars] == [[29.0, 33.0]] * 3
    assert [bar.get_xdata()[0] for bar in bars] == [2, 4, 10]


@pytest.mark.parametrize(
    ("interval", "below"),
    [(None, False), ((0.0, 0.0), False), ((-2.0, 2.0), True)],
    ids=["one seed", "at zero", "below zero"],
)
def test_the_scale_goes_below_zero_only_for_what_is_there(interval: tuple[float, float] | None, below: bool):
    points = [AxisPoint(value, 0.0, interval, 3 if interval else 1) for value in (6, 12)]
    (axes,) = draw_against({"": points}, [6, 12], True, "num_queries", "AP").axes
    assert (axes.get_ylim()[0] < 0) == below and axes.get_ylim()[1] > 0


def test_the_interval_of_a_mean_against_hand_calculation():
    low, high = mean_interval([30.0, 31.0, 29.0])
    assert high - low == pytest.approx(2 * 4.302653 / math.sqrt(3), abs=1e-5) and (low + high) / 2 == 30.0
    assert mean_interval([30.0]) is None


# ---- plan


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    def plan(text: str, *options: str) -> list[str]:
        monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        assert main(["plan", str(path), "--preset", "digits_fast", *options]) == 0
        return capsys.readouterr().out.splitlines()

    return plan


def test_plan_lists_every_row_also_those_that_share_a_trial(planned, tmp_path):
    lines = [line for line in planned(CROSSED) if "num_queries=" in line]
    assert len(lines) == 16  # 8 rows of 2 seeds
    again = [line for line in lines if "same trial as" in line]
    assert len(again) == 4 and all(line.split()[0] in {other.split()[0] for other in lines[:4]} for line in again)
    assert "same trial as above" in again[0]  # with the row's name it would not fit
    short = planned(CROSSED.replace(", model.num_queries: [20, 30]", ""))
    assert sum("same trial as 'no head, lambda1=0.5'" in line for line in short) == 2
    assert "12 trials: 12 pending (16 cells share them)" in planned(CROSSED)


def test_plan_tells_costs_once_a_trial(planned):
    lines = [line for line in planned(CROSSED, "--cost") if "num_queries=" in line]
    assert sum("unknown" in line for line in lines) == 12
    assert not any("unknown" in line for line in lines if "same trial as" in line)


def test_plan_of_some_shows_both_rows_of_a_shared_trial(planned):
    lines = planned(CROSSED, "--only", "row=no head, lambda1=1 num_queries=20", "--only", "seed=1")
    assert sum("num_queries=20" in line for line in lines) == 2 and "1 trial: 1 pending" in lines


def test_a_label_that_says_what_the_row_says_is_left_out(planned):
    lines = planned("axes: {model.num_queries: [20, 30]}\nseeds: [0, 1]\n")
    (head,) = [line.split() for line in lines if "trial" in line and "status" in line]
    assert head == ["trial", "row", "seed", "status"]


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "ablations").glob("*.yaml")), ids=lambda f: f.stem)
def test_plans_fit_120_columns(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path))
    assert main(["plan", str(file), "--seeds", "0", "--cost"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert "…" not in out
