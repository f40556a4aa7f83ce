"""Figures: what is drawn, that files are whole and the same bytes each time, and that names do not overlap."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from report_grid import full_grid, full_records, make_grid, make_record

from harness.report import write_report
from harness.report.figures import Curve, curves, draw_curves, spread, write_figure

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # a child imports what this process imports


def test_curves_are_means_over_the_epochs_that_all_seeds_have():
    grid = make_grid({"a": {}, "b": {}}, seeds=(0, 1))
    short = make_record("0-1", 20.0)
    short["history"] = [{"epoch": 2, "AP": 8.0}, {"epoch": 3, "AP": None}, {"epoch": 4, "AP": 20.0}]
    found = curves(grid, [make_record("0-0", 10.0), short, make_record("1-0", 9.0, status="running")])
    assert [curve.label for curve in found] == ["a"]  # nothing of b has finished
    assert found[0].epochs == (2, 4)
    assert found[0].means == pytest.approx([(10.0 * 2 / 3 * 1.25 + 8.0) / 2, 15.0])
    assert found[0].num_seeds == 2


def test_a_line_a_band_and_a_name_for_each_row():
    lines = [Curve("one", (1, 2), ((1.0,), (2.0,))), Curve("two $x_1", (1, 2), ((1.0, 3.0), (2.0, 6.0)))]
    (axes,) = draw_curves("Title", lines).axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1.0, 2.0], [2.0, 4.0]]
    assert len(axes.collections) == 1  # only the row with two seeds has a band
    texts = [text.get_text() for text in axes.texts]
    assert {"one", "two $x_1", "line: mean of 1 to 2 seeds; band: lowest to highest"} == set(texts)
    assert axes.get_title(loc="left") == "Title"


def test_no_room_below_zero_for_what_cannot_be_negative():
    (axes,) = draw_curves("All zero", [Curve("one", (1, 2), ((0.0,), (0.0,)))]).axes
    assert axes.get_ylim() == (0.0, 0.5)
    (axes,) = draw_curves("Negative", [Curve("one", (1, 2), ((-1.0,), (1.0,)))]).axes
    assert axes.get_ylim() == pytest.approx((-1.1, 1.1))


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="at least one curve"):
        draw_curves("Title", [])


def test_files_are_whole_not_blank_and_the_same_every_time(tmp_path):
    lines = curves(full_grid(), full_records())
    files = {}
    for attempt in ("first", "second"):
        paths = write_figure(draw_curves("Made", lines), tmp_path / attempt)
        files[attempt] = [path.read_bytes() for path in paths]
    assert [path.name for path in paths] == ["second.png", "second.pdf"]
    assert files["first"] == files["second"]
    assert files["first"][1].startswith(b"%PDF") and files["first"][1].rstrip().endswith(b"%%EOF")
    image = np.asarray(Image.open(tmp_path / "first.png").convert("RGB")).reshape(-1, 3)
    assert {(0, 0, 0), (0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= set(map(tuple, np.unique(image, axis=0).tolist()))
    assert 0.8 < (image == 255).all(axis=1).mean() < 0.99


def test_another_process_writes_the_same_bytes(tmp_path):
    """Neither the time, nor hash seeds, nor what was drawn before may show."""
    code = (
        "from pathlib import Path\n"
        "from harness.report.figures import curves, draw_curves, write_figure\n"
        "from report_grid import full_grid, full_records\n"
        f"write_figure(draw_curves('Made', curves(full_grid(), full_records())), Path({str(tmp_path / 'there')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
    draw_curves("Something else", curves(full_grid(), full_records())[:1])
    here = write_figure(draw_curves("Made", curves(full_grid(), full_records())), tmp_path / "here")
    for path in here:
        assert path.read_bytes() == (tmp_path / f"there{path.suffix}").read_bytes()


@pytest.mark.parametrize("count", [1, 5, 14])
def test_names_stay_apart_and_inside(count):
    """Ends of lines that nearly coincide; names of one, two and three lines."""
    rng = np.random.default_rng(count)
    names = ["name " * (1 + 6 * (k % 3)) for k in range(count)]
    lines = [
        Curve(name, (1, 2), ((0.0,), (40 + float(end),))) for name, end in zip(names, rng.random(count), strict=True)
    ]
    figure = draw_curves("Title", lines)
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_text().startswith("name")]
    boxes = [Text.get_window_extent(text) for text in texts]  # without the stroke that leads to it
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == count
    assert all(below.y1 <= above.y0 for below, above in zip(boxes, boxes[1:], strict=False))
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height and box.x1 <= figure.bbox.width + 1 for box in boxes)


def test_spread_moves_no_more_than_needed():
    assert spread([1.0, 5.0], [1.0, 1.0], 0.0, 10.0) == [1.0, 5.0]
    assert spread([5.0, 5.0], [2.0, 2.0], 0.0, 10.0) == [6.0, 4.0]
    assert spread([9.9, 9.8], [2.0, 2.0], 0.0, 10.0) == [9.0, 7.0]
    assert spread([0.0], [2.0], 0.0, 10.0) == [1.0]
    assert spread([], [], 0.0, 1.0) == []


def test_write_report_shows_the_figure_in_the_markdown(tmp_path):
    report = write_report([full_grid()], tmp_path, records=full_records())
    assert [path.suffix for path in report.paths] == [".html", ".md", ".tex", ".csv", ".png", ".pdf"]
    assert all(path.stat().st_size > 200 for path in report.paths)
    assert "![Components & more_of it](table_09_AP.png)" in (tmp_path / "table_09.md").read_text()


def test_no_figure_before_a_trial_has_finished(tmp_path):
    report = write_report([full_grid()], tmp_path, records=[])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "table_09.csv",
        "table_09.md",
        "table_09.tex",
    ]
    assert "no trial has finished" in report.text
    assert "![" not in (tmp_path / "table_09.md").read_text()


def test_a_table_needs_no_matplotlib():
    heavy = "{'matplotlib', 'mlflow', 'torch', 'pandas'}"
    code = f"import sys, harness.report; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0
