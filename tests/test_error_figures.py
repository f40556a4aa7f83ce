"""What the figures of errors show: each branch's costs, and what rows remove of their baseline's."""

from __future__ import annotations

from typing import Any

import pytest

from harness.figures.errors import draw_error_changes, draw_error_costs
from harness.report.figures import analysis_figures
from harness.report.trial_figures import trial_figures
from harness.spec.error_metrics import COSTS
from tests.support.report_grid import make_grid, make_record


def record(trial_id: str, *costs: float) -> dict[str, Any]:
    """A finished record with these costs of the six kinds; without any, one from before they were measured."""
    found = make_record(trial_id, 30.0)
    found["metrics"] |= {f"errors/{kind}": cost for kind, cost in zip(COSTS, costs, strict=False)}
    return found


GRID = make_grid({"no head": {}, "ATSS": {}, "old": {}}, figures=("errors",), baseline="no head")
RECORDS = [
    *(record(f"0-{seed}", 5, 4, 3, 2, 1, 6) for seed in range(3)),
    *(record(f"1-{seed}", 5 - 2 - step, 4, 3, 2 - 1, 1 + 0.5, 6) for seed, step in enumerate((0, 1, 2))),
    *(record(f"2-{seed}") for seed in range(3)),
]


def test_a_row_stands_beside_its_baseline_seed_by_seed():
    figures = analysis_figures(GRID, RECORDS)
    assert list(figures) == ["errors"]
    left, right = figures["errors"].axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "ATSS"
    ]  # the baseline itself and old rows are not
    bars = [(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in left.patches]
    # classification -3 in the mean, duplicates -1 behind it, background +0.5 on the other side
    assert bars == [(0, -3), (0, 0), (0, 0), (-3, -1), (0, 0.5), (0.5, 0)]
    interval, total = left.lines[0], left.lines[1]
    half = 4.302653 / 3**0.5  # Student's t of three differences with deviation 1
    assert total.get_xdata()[0] == pytest.approx(-3.5)
    assert list(interval.get_xdata()) == pytest.approx([-3.5 - half, -3.5 + half], abs=1e-5)
    marks = [line.get_xdata()[0] for line in right.lines if line.get_marker() not in ("None", "")]
    assert marks == pytest.approx([-3, 0, 0, -1, 0.5, 0])
    words = [text.get_text() for text in figures["errors"].legends[0].get_texts()]
    assert words == [*COSTS, "all six together"]
    assert "baseline: no head" in figures["errors"].legends[0].get_title().get_text().replace("\n", " ")


def test_one_seed_has_no_interval_and_says_so():
    alone = [one for one in RECORDS if one["trial_id"].endswith("-0")]
    figure = analysis_figures(GRID, alone)["errors"]
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]) == 1  # the line at zero
    assert "one seed: no interval can be given" in figure.legends[0].get_title().get_text().replace("\n", " ")


def test_without_numbers_there_is_no_figure():
    assert analysis_figures(GRID, [record(f"{row}-{seed}") for row in range(3) for seed in range(3)]) == {}
    missing = [record("0-0", 1, 2, 3), record("1-0", 1, 2, 3)]  # not all six
    assert analysis_figures(GRID, missing) == {}
    for draw in (draw_error_costs, lambda rows: draw_error_changes(rows, "")):
        with pytest.raises(ValueError, match="at least one"):
            draw([])


def test_a_trial_has_one_bar_for_each_branch():
    last = {f"{branch}errors/{kind}": 1.0 + place for branch in ("", "atss/") for place, kind in enumerate(COSTS)}
    figures = trial_figures("one", {}, history=[{"epoch": 1}, {"epoch": 2, **last}])
    (axes,) = figures["errors"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["DETR", "ATSS"]
    assert [bar.get_width() for bar in axes.patches] == [1, 2, 3, 4, 5, 6] * 2
    assert axes.patches[5].get_x() == 15
    assert trial_figures("old", {}, history=[{"epoch": 1}]) == {}
