"""Every figure: what it says, that nothing is cut off, no warning, and that its files are the same bytes each time."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import warnings
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, Bbox
from PIL import Image

import tests.support.analysis_tables as made
from harness.figures.conflict import draw_conflict_distances
from harness.figures.detections import draw_detections
from harness.figures.discriminability import draw_discriminability
from harness.figures.epochs import draw_curves, draw_instability
from harness.figures.influence import draw_influence
from harness.figures.maps import draw_maps
from harness.figures.matrices import decimals_for, draw_conflict_matrices
from harness.figures.queries import draw_query_distances, draw_query_positions
from harness.figures.series import epoch_curves
from harness.figures.style import figure_bytes, head_name, head_style, line_style, plain, save_figure, wrapped
from harness.report import write_report
from harness.report.detected import Sheet
from harness.report.figures import analysis_figures
from harness.report.published import PUBLISHED_CONFLICT, published_conflict
from harness.report.trial_figures import trial_figures
from tests.support.every_figure import FIGURES, scenes
from tests.support.report_grid import full_grid, full_records, make_grid, make_record

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # a child imports what this process imports


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in figure.legends[0].get_texts()]


def written(figure: Figure) -> list[Text]:
    """All texts that the figure shows."""
    ticks = [label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()]
    hidden = {label for label in ticks if not (label.axes and label.axes.get_visible())}
    seen = {
        tick.label1
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis._update_ticks()  # those within view
    }
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden and (text not in ticks or text in seen)
    ]


@cache
def first(name: str) -> tuple[Figure, bytes]:
    """A figure and its PNG, drawn once for the tests that look at them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[name]()
        return figure, figure_bytes(figure, "png")


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_or_too_small_to_read(name):
    figure, png = first(name)
    image = Image.open(BytesIO(png))
    assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert image.width <= 1401  # a page
    pixels = np.asarray(image.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all(), "something reaches over the edge"
    for text in written(figure):
        box = Text.get_window_extent(text)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{text.get_text()!r} is cut off"
        assert text.get_fontsize() >= 5.5


def box_along(label: Text) -> Bbox:
    """Where a name stands, in coordinates along its letters: slanted ones lie beside each other there, too."""
    angle = label.get_rotation()
    if label.get_rotation_mode() != "anchor":
        assert angle in (0, 90)
        return label.get_tightbbox()
    anchor = label.get_transform().transform(label.get_position())
    label.set_rotation(0)
    box = Text.get_window_extent(label)
    label.set_rotation(angle)
    return box.translated(*(Affine2D().rotate_deg(-angle).transform(anchor) - anchor))


@pytest.mark.parametrize("name", ["distances of twenty", "distances of long names", "distances of pairs", "matrices"])
def test_names_below_an_axis_cover_no_other(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [box_along(label) for label in axes.get_xticklabels() if label.get_text()]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_slanted_names_too_near_are_noticed():
    figure = FIGURES["matrices"]()
    for label in figure.axes[0].get_xticklabels():
        label.set_rotation(2)
    figure.draw_without_rendering()
    boxes = map(box_along, figure.axes[0].get_xticklabels())
    assert any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("name", [name for name in FIGURES if " of " not in name])
def test_files_are_whole_and_the_same_every_time(name, tmp_path):
    figure, before = first(name)
    png, pdf = (path.read_bytes() for path in save_figure(FIGURES[name](), tmp_path / "second"))
    assert png == before and pdf == figure_bytes(figure, "pdf")
    assert set(Image.open(BytesIO(png)).info) == {"dpi"}  # neither date nor version
    assert pdf.startswith(b"%PDF") and pdf.rstrip().endswith(b"%%EOF")
    assert b"/FontFile2" in pdf and b"CreationDate" not in pdf  # letters are embedded


def test_another_process_without_display_writes_the_same_bytes(tmp_path):
    """Neither the time, nor hash seeds, nor a person's own settings, nor what was drawn before may show."""
    code = (
        "from pathlib import Path\n"
        "from harness.figures.style import save_figure\n"
        "from tests.support.every_figure import FIGURES\n"
        f"save_figure(FIGURES['distances'](), Path({str(tmp_path / 'there')!r}))\n"
    )
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\nlines.linewidth: 9\n")
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "DISPLAY"}
    environment |= {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "MPLBACKEND": "TkAgg"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    FIGURES["instability"]()
    for path in save_figure(FIGURES["distances"](), tmp_path / "here"):
        assert path.read_bytes() == (tmp_path / f"there{path.suffix}").read_bytes()


def test_drawing_leaves_the_callers_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    FIGURES["ap"]()
    assert dict(matplotlib.rcParams) == before


# ---- style


def test_lines_differ_without_colour():
    styles = [line_style(index) for index in range(8)]
    assert len({(str(style["linestyle"]), style["marker"]) for style in styles}) == 8
    assert len({style["color"] for style in styles}) == 8
    assert line_style(8)["color"] == styles[0]["color"] and line_style(8)["linestyle"] != styles[0]["linestyle"]


def test_a_head_looks_the_same_wherever_it_occurs():
    assert head_style("gfl", 0) == head_style("gfl", 5)
    assert head_style("atss.2")["color"] == head_style("atss")["color"]
    assert head_style("atss.2")["marker"] != head_style("atss")["marker"]
    assert [head_name(name) for name in ("decoder", "faster_rcnn", "atss.2", "mine")] == [
        "DETR",
        "Faster R-CNN",
        "ATSS 2",
        "mine",
    ]


def test_letters_that_the_font_lacks_become_question_marks():
    assert plain("λ₁ ≥ ½ 红细胞") == "λ₁ ≥ ½ ???"
    assert wrapped("drop_epochs=[11,20] a", 13) == "drop_epochs=\n[11,20] a"  # after a sign
    assert wrapped("x" * 30, 13) == "x" * 13 + "\n" + "x" * 13 + "\n" + "x" * 4
    assert wrapped("the heads (K = 2)", 13).split("\n") == ["the heads", "(K\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}2)"]


# ---- over epochs


def test_curves_are_means_over_the_epochs_that_all_seeds_have():
    short = [{"epoch": 2, "AP": 8.0}, {"epoch": 3, "AP": None}, {"epoch": 4, "AP": 20.0}]
    (found,) = epoch_curves([("a", made.history(9)), ("a", short), ("b", [{"epoch": 1, "AP": None}])], "AP")
    assert (found.label, found.epochs, found.means, found.num_seeds) == ("a", (2, 4), [14.0, 30.0], 2)


def at(*epochs: int, key: str = "AP") -> list[dict]:
    return [{"epoch": epoch, key: float(epoch)} for epoch in epochs]


@pytest.mark.parametrize(
    ("seeds", "epochs", "count"),
    [
        ([(4,), ()], (4,), 1),  # the second was not analysed
        ([(1, 3), (2, 4)], (2, 4), 1),
        ([(1, 2), (2, 3), (4,)], (2,), 2),
        ([(), ()], None, 0),
    ],
)
def test_seeds_that_were_analysed_at_other_epochs_stop_no_curve(seeds, epochs, count):
    found = epoch_curves([("a", at(*own)) for own in seeds], "AP")
    assert [(line.epochs, line.num_seeds) for line in found] == ([(epochs, count)] if epochs else [])


def test_what_is_not_drawn_over_the_epochs_is_named():
    def note(figure: Figure) -> str:
        return figure.legends[0].get_title().get_text()

    key = "conflict/decoder"
    runs = [("a", at(4, key=key)), ("a", at()), ("b", at(4)), ("c", at(2, 4, key=key)), ("c", at(2, 4, key=key))]
    names = f"without a number of {key} at these epochs: a (1 of 2 seeds drawn); b"
    assert note(draw_curves(runs, key)).split("\n", 1)[1].replace("\n", " ") == names
    grid = make_grid({"a": {}, "b": {}}, seeds=(0, 1), figures=(key, "instability"))
    records = [make_record(f"0-{seed}", 1.0, history=own) for seed, (_, own) in enumerate(runs[:2])]
    assert list(analysis_figures(grid, records)) == ["conflict_decoder"]
    slots = draw_instability([("a", at(2, key="instability")), ("a", at(3, key="instability")), ("b", at(2))])
    assert note(slots).replace("\n", " ") == "without a number by query slot at these epochs: a (1 of 2 seeds drawn); b"


def test_a_line_a_band_and_a_legend_entry_for_each_row():
    rows = [("one", made.history(9)), ("two $x_1$", made.history(9)), ("two $x_1$", made.history(9))]
    figure = draw_curves(rows, "AP", "Title")
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[10.0, 20.0, 30.0, 40.0]] * 2
    assert len(axes.collections) == 1  # only the row with two seeds has a band
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("epoch", "AP (%)", "Title")
    assert legend_texts(figure) == ["one", "two $x_1$"]
    assert figure.legends[0].get_title().get_text() == "line: mean of 1 to 2 seeds; band: lowest to highest"


def test_no_room_below_zero_for_what_cannot_be_negative():
    def limits(*values: float) -> tuple[float, float]:
        return (
            draw_curves([("one", [{"epoch": e, "loss": v} for e, v in enumerate(values)])], "loss").axes[0].get_ylim()
        )

    assert limits(0.0, 0.0) == (0.0, 0.5)
    assert limits(-1.0, 1.0) == pytest.approx((-1.1, 1.1))


def test_instability_has_a_panel_for_each_way_to_count():
    both = draw_instability([("a", made.history(9)), ("a", made.history(11)), ("b", made.history(5))])
    assert [axes.get_title(loc="left") for axes in both.axes] == ["by query slot", "by ground truth"]
    assert both.axes[0].lines[0].get_xdata().tolist() == [2, 3, 4]  # undefined at the first epoch
    assert both.axes[0].lines[0].get_ydata().tolist() == [10.0, 9.0, 8.0]
    assert both.axes[1].lines[1].get_ydata().tolist() == [2.5, 2.0, 1.5]
    assert "changed matches per image" in both.axes[0].get_ylabel()
    assert legend_texts(both) == ["a", "b"]
    slots = draw_instability([("a", [{**entry, "instability_gt": None} for entry in made.history(9)])])
    assert len(slots.axes) == 1


# ---- discriminability


def test_iof_iob_curves_and_their_areas():
    figure = draw_discriminability(
        [("a", made.discriminability(1)), ("a", made.discriminability(4)), ("b", made.discriminability(3))]
    )
    encoder, attention = figure.axes
    assert (
        encoder.get_title(loc="left") == "encoder features"
        and attention.get_title(loc="left") == "decoder cross-attention"
    )
    assert encoder.get_xlabel().startswith("IoB") and encoder.get_ylabel().startswith("IoF")
    diagonal, mean, single = encoder.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    at_half = np.interp(0.5, mean.get_xdata(), mean.get_ydata())
    assert at_half == pytest.approx((0.5 + 0.5**0.25) / 2, abs=2e-3)  # seeds are averaged at equal IoB
    assert len(single.get_xdata()) == 101 and len(encoder.collections) == 1
    assert legend_texts(figure) == [
        "a:\n0.650 ± 0.212 | 0.650 ± 0.212".replace("\n", " "),
        "b: 0.750 [0.740, 0.770] | 0.750 [0.740, 0.770]",
    ]


def test_a_model_without_a_curve_gets_no_line():
    empty = {"encoder": {"iof": [None] * 101, "iob": [None] * 101, "auc": None, "interval": None}, "attention": None}
    figure = draw_discriminability([("none", empty), ("one", made.discriminability(1, attention=False))])
    assert len(figure.axes) == 1 and legend_texts(figure) == ["one: 0.500 [0.490, 0.520]"]


def test_maps_share_one_scale():
    figure = FIGURES["maps"]()
    images, bar = [image for axes in figure.axes for image in axes.images], figure.axes[-1]
    assert {image.get_clim() for image in images if image.get_array().ndim == 2} == {(0.0, 1.0)}
    assert bar.get_ylabel() == "D(F)"
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["no map"]
    with pytest.raises(ValueError, match="one map"):
        draw_maps([(made.image(), np.zeros((0, 4)))], [("a", [])])
    tall = draw_maps([(made.image(200, 20), np.zeros((0, 4)))], [("a", [np.eye(4)])])
    assert tall.get_size_inches()[1] < 2 * tall.get_size_inches()[0]


# ---- conflict


def test_matrix_prints_its_numbers():
    table = made.conflict(2)
    table["matrix"][1][2] = None
    figure = draw_conflict_matrices([("ours", table), ("paper, Figure 8", PUBLISHED_CONFLICT["paper, Figure 8"])])
    ours, paper, _ = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert ours == ["0", "0.0110", "0.0120", "0.0120", "0", "–", "0.0140", "0.0150", "0"]
    assert paper == ["0", "0.0078", "0.0085", "0.0073", "0", "0.0062", "0.0079", "0.0059", "0"]
    (axes, _, _) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head j", "head i")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["DETR", "ATSS", "Faster R-CNN"]


def test_matrix_of_seeds_prints_mean_and_deviation():
    axes, _ = draw_conflict_matrices([("a", made.conflict(2, level)) for level in (0.01, 0.02, 0.03)]).axes
    assert [text.get_text() for text in axes.texts][:3] == ["0", "0.0220\n±0.0110", "0.0240\n±0.0120"]
    with pytest.raises(ValueError, match="different heads"):
        draw_conflict_matrices([("a", made.conflict(1)), ("a", made.conflict(2))])


def test_two_heads_alone_have_one_number():
    """S at K = 1 is the mean of both directions, whichever head is asked; it stands there once."""
    figure = draw_conflict_matrices([("K = 1", made.conflict(1, level)) for level in (0.01, 0.03)])
    assert [text.get_text() for text in figure.findobj(Text) if re.search(r"0\.\d", text.get_text())] == [
        "0.0230\n±0.0163"
    ]
    (axes,) = figure.axes
    names = [[label.get_text() for label in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels())]
    assert names == [["DETR"], ["ATSS"]]
    (axes,) = draw_conflict_distances([("K = 1", made.conflict(1))]).axes
    marks = [line for line in axes.lines if line.get_marker() not in ("None", "") and line.get_markevery() != []]
    assert [line.get_xydata().tolist() for line in marks] == [[[0.0, pytest.approx(0.0115)]]]
    one = made.conflict(1)
    one["matrix"][0][1] = None
    assert [text.get_text() for text in draw_conflict_matrices([("a", one)]).axes[0].texts] == ["–"]


def test_matrices_share_one_scale_with_a_bar():
    tables = [("ours", made.conflict(2, 0.04)), ("paper", made.conflict(2, 0.01))]
    ours, paper, bar = draw_conflict_matrices(tables).axes
    colours = [
        [patch.get_facecolor() for patch in axes.patches if patch.get_facecolor()[2] > 0] for axes in (ours, paper)
    ]
    blue = [1 - sum(face[:2]) / 2 for face in (colours[0][5], colours[1][5])]  # of the same cell, 0.044 and 0.011
    assert blue[0] > 2 * blue[1]
    assert [label.get_text() for label in bar.get_xticklabels()] == ["0", "0.0600"]
    assert bar.get_ylabel() == "S (nats)" and bar.get_xlim() == (0.0, pytest.approx(0.06))


@pytest.mark.parametrize(
    ("largest", "decimals"), [(5.71, 2), (0.0143, 4), (0.5, 3), (0.00021, 5), (0.0, 2), (123.0, 2)]
)
def test_decimals_keep_what_matters(largest, decimals):
    assert decimals_for(largest) == decimals


def test_distances_stand_over_k_with_anchors_and_the_papers_numbers():
    runs = [(f"K = {k}", made.conflict(k, level)) for k in (6, 0, 1) for level in (0.01, 0.03)]
    figure = draw_conflict_distances(runs, [("paper", table) for table in PUBLISHED_CONFLICT.values()])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "6"]  # without heads there is no distance
    assert axes.get_xlabel() == "number K of auxiliary heads" and "nats" in axes.get_ylabel()
    names = [head_name(head) for head in made.HEADS]
    assert legend_texts(figure) == [
        *(*names, "ceiling: images shuffled", "floor: same head, another seed", "both heads (K = 1)", "paper")
    ]
    decoder = figure.legends[0].legend_handles[0].get_color()
    lines = [
        line
        for line in axes.lines
        if line.get_color() == decoder and len(line.get_xdata()) == 2 and line.get_marker() == "o"
    ]
    expected = [
        np.mean([made.conflict(k, level)["distance"]["decoder"]["value"] for level in (0.01, 0.03)]) for k in (1, 6)
    ]
    assert lines[0].get_ydata() == pytest.approx(expected)
    paper = [line for line in axes.lines if line.get_fillstyle() == "none"]
    assert len(paper) == 7  # K = 2 of the paper has no place here
    assert paper[0].get_ydata() == pytest.approx([np.mean([62, 90, 129, 79, 69, 83, 66, 83, 116, 73, 75, 78]) / 1e4])


def test_models_of_one_k_stand_under_their_names():
    (axes,) = FIGURES["distances of pairs"]().axes
    assert [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()] == [
        "ATSS + Faster R-CNN",
        "two ATSS",
    ]
    with pytest.raises(ValueError, match="no table has a distance"):
        draw_conflict_distances([("K = 0", made.conflict(0))])


def open_marks(axes):
    return [line for line in axes.lines if line.get_fillstyle() == "none"]


def test_the_papers_marks_stand_at_the_model_of_the_same_heads():
    models = {
        "ATSS + PAA": ("decoder", "atss", "paa"),
        "both": ("decoder", "faster_rcnn", "atss"),
        "ATSS, six times": ("decoder", "atss", *(f"atss.{number}" for number in range(2, 7))),
    }
    tables = [(label, made.conflict(len(heads) - 1, heads=heads)) for label, heads in models.items()]
    published = [("paper", table) for table in PUBLISHED_CONFLICT.values()]
    marks = open_marks(draw_conflict_distances(tables, published).axes[0])
    assert [(*line.get_xdata(), line.get_ydata()[0]) for line in marks] == [
        (pytest.approx(1 + shift), pytest.approx(value))
        for shift, value in ((-0.12, 0.007875), (0.12, 0.0068), (0.0, 0.007125))
    ]
    alone = draw_conflict_distances(tables[:1], published)
    assert open_marks(alone.axes[0]) == [] and "paper" not in legend_texts(alone)


def without_images(count: int) -> dict:
    """A conflict of which no image was usable."""
    table = made.conflict(count)
    nothing = {"value": None, "low": None, "high": None}
    return table | {"distance": dict.fromkeys(table["heads"], nothing), "matrix": [[None] * (count + 1)] * (count + 1)}


def test_models_without_any_usable_image_are_named():
    runs = [("a", made.conflict(2)), ("a", without_images(2)), ("b", without_images(1)), ("K = 0", made.conflict(0))]
    figure = draw_conflict_distances(runs)
    note = figure.legends[0].get_title().get_text().replace("\N{NO-BREAK SPACE}", " ")
    assert note == "bar: 95 % interval over images\nwithout distance: a (1 of 2 seeds drawn); b"
    figures = trial_figures("mine", {"conflict": without_images(2), "discriminability": made.discriminability(2)})
    assert list(figures) == ["discriminability", "conflict_matrix"]


def test_published_matrix_follows_the_order_of_our_heads():
    name, table = published_conflict(["decoder", "faster_rcnn", "atss"])
    assert name == "paper, Figure 8"
    assert table["matrix"] == [[0, 0.0085, 0.0078], [0.0079, 0, 0.0059], [0.0073, 0.0062, 0]]
    assert table["distance"]["decoder"]["value"] == pytest.approx((78 + 85 + 73 + 79) / 4 / 1e4)
    assert published_conflict(["decoder", "atss"]) is None
    assert published_conflict(["decoder", "atss", "atss.2"]) is None


# ---- influence


def test_a_bar_of_one_seed_is_called_what_it_is():
    def note(*labels: str) -> str:
        title = draw_influence([(label, made.gradient("atss")) for label in labels]).legends[0].get_title()
        return " ".join(title.get_text().replace("\N{NO-BREAK SPACE}", " ").split())

    both = "point: mean of 1 to 2 seeds; bar: lowest to highest (of one seed: 95 % interval over images)"
    assert note("a", "a", "b") == both
    assert note("a", "a") == "point: mean of 2 seeds; bar: lowest to highest"
    assert note("a") == "bar: 95 % interval over images"


# ---- queries


def test_query_positions_are_in_pixels():
    figure = draw_query_positions(made.image(40, 60), made.queries("atss")["examples"][0])
    (axes,) = figure.axes
    assert legend_texts(figure) == ["DETR, matched", "ATSS, customised"]
    points = {line.get_marker(): line.get_xydata() for line in axes.lines}
    assert points["*"] == pytest.approx(np.array([[18, 16], [42, 24]]))
    assert axes.get_xlim() == (0, 60) and axes.get_ylim() == (40, 0)


def test_query_distances_are_bars_with_numbers():
    table = made.queries("atss", "fcos")
    table["distances"]["fcos"]["to_negatives"] = None
    (axes,) = draw_query_distances([("a", table), ("K = 0", {"distances": {}})]).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.1, 0.1, 0.4])
    assert [text.get_text() for text in axes.texts] == ["0.100", "0.100", "0.400", "–"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ATSS", "FCOS"]
    assert "diagonal" in axes.get_xlabel()


# ---- which figures a grid has


def test_analysis_figures_group_the_seeds_of_a_row():
    names = ("ap", "instability", "discriminability", "conflict", "conflict_matrix", "queries")
    grid = make_grid({"K = 0": {}, "K = 2: a/b": {}}, seeds=(0, 1), figures=names)
    records = []
    for trial_id, count in (("0-0", 0), ("0-1", 0), ("1-0", 2), ("1-1", 2)):
        tables = {"conflict": made.conflict(count), "discriminability": made.discriminability(2)}
        tables["queries"] = made.queries(*made.HEADS[1 : count + 1])
        records.append(make_record(trial_id, 10.0, history=made.history(9), analysis=tables))
    figures = analysis_figures(grid, records)
    assert list(figures) == [*names[:4], "conflict_matrix_K_2_a_b", "queries"]
    assert legend_texts(figures["discriminability"])[0] == "K = 0: 0.667 ± 0.000 | 0.667 ± 0.000"
    assert legend_texts(figures["ap"]) == ["K = 0", "K = 2: a/b"]
    assert len(figures["conflict_matrix_K_2_a_b"].axes) == 3  # the paper has these heads, too, and there is a bar
    records[3]["status"] = "running"
    assert "± " not in legend_texts(analysis_figures(grid, records)["discriminability"])[1]


def test_rows_of_another_definition_or_without_analysis_are_named():
    table = made.discriminability(2)
    grid = make_grid({"A": {}, "B": {}, "C": {}}, seeds=(0, 1), figures=("discriminability",))
    analyses = {"0-0": {"discriminability": table}, "0-1": {"discriminability": table}}
    analyses |= {"1-0": {"discriminability.v1": table}, "1-1": {"discriminability.v1": table}}
    analyses |= {"2-0": {"discriminability": table}, "2-1": {}}
    records = [make_record(key, 10.0, analysis=own) for key, own in analyses.items()]
    notes: list[str] = []
    assert [
        text.split(":")[0] for text in legend_texts(analysis_figures(grid, records, notes)["discriminability"])
    ] == [
        "A",
        "C",
    ]
    lacking = "B (has discriminability.v1 instead); C (1 of 2 seeds, not analysed)"
    assert notes == [
        f"made: figure discriminability is of discriminability, which some lack: {lacking}; `codetr analyse` adds it"
    ]


def test_matrices_of_labels_alike_have_names_of_their_own():
    labels = ("ATSS + PAA", "ATSS, PAA", "ATSS_PAA_2", "+ ATSS", "ATSS")
    grid = make_grid({label: {} for label in labels}, seeds=(0,), figures=("conflict_matrix",))
    records = [make_record(f"{number}-0", 10.0, analysis={"conflict": made.conflict(1)}) for number in range(5)]
    assert [name.removeprefix("conflict_matrix_") for name in analysis_figures(grid, records)] == [
        *("ATSS_PAA", "ATSS_PAA_3", "ATSS_PAA_2", "ATSS", "ATSS_2")
    ]


def test_a_figure_that_cannot_be_drawn_loses_no_other(tmp_path, monkeypatch):
    def broken(*args):
        raise ValueError("no table")

    monkeypatch.setattr("harness.figures.conflict.draw_conflict_distances", broken)
    tables = {"conflict": made.conflict(2), "discriminability": made.discriminability(2)}
    said: list[str] = []
    assert list(trial_figures("mine", tables, say=said.append)) == ["discriminability", "conflict_matrix"]
    assert said == ["figure conflict could not be drawn: ValueError: no table"]
    grid = make_grid({"a": {}}, seeds=(0,), figures=("conflict", "discriminability"))
    report = write_report([grid], tmp_path, ("html", "png"), records=[make_record("0-0", 1.0, analysis=tables)])
    assert [path.name for path in report.paths if path.suffix == ".png"] == ["made_discriminability.png"]
    assert report.notes == (f"made: {said[0]}",)


def test_a_figure_that_fails_when_it_is_laid_out_loses_no_other(tmp_path, monkeypatch):
    def broken(*args):
        figure = Figure()
        figure.text(0.5, 0.5, r"$\\nothing$")  # such mistakes show only when a figure becomes a file
        return figure

    monkeypatch.setattr("harness.figures.conflict.draw_conflict_distances", broken)
    tables = {"conflict": made.conflict(2), "discriminability": made.discriminability(2)}
    grid = make_grid({"a": {}}, seeds=(0,), figures=("conflict", "discriminability"))
    report = write_report([grid], tmp_path, ("html", "png", "pdf"), records=[make_record("0-0", 1.0, analysis=tables)])
    pictures = [path.name for path in report.paths if path.suffix in (".png", ".pdf")]
    assert pictures == ["made_discriminability.png", "made_discriminability.pdf"]
    (note,) = report.notes
    assert re.match(r"made: figure conflict could not be drawn: ValueError: .+", note) and "\n" not in note
    assert "How well features tell" in report.paths[0].read_text()


def test_a_figure_without_data_is_left_out(tmp_path):
    names = ("ap", "instability", "discriminability", "conflict", "conflict_matrix", "queries")
    grid = make_grid({"a": {}}, seeds=(0,), figures=names)
    assert analysis_figures(grid, []) == {}
    assert list(analysis_figures(grid, [make_record("0-0", 10.0)])) == ["ap"]
    write_report([full_grid()], tmp_path, records=[])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("claims.csv", "report.html", "table_09.csv", "table_09.md", "table_09.tex"),
        *("table_09_epochs.csv", "table_09_trials.csv"),
    ]
    assert "![" not in (tmp_path / "table_09.md").read_text()


def test_write_report_shows_the_figure_in_the_markdown(tmp_path):
    report = write_report([full_grid()], tmp_path, records=full_records())
    assert [path.suffix for path in report.paths] == [
        *(".html", ".md", ".tex", ".csv"),
        *(".csv", ".csv", ".png", ".pdf", ".csv"),  # trials and epochs, the figure, all claims
    ]
    assert all(path.stat().st_size > 200 for path in report.paths)
    assert "![Components & more_of it](table_09_ap.png)" in (tmp_path / "table_09.md").read_text()


def test_a_table_needs_no_matplotlib():
    heavy = "{'matplotlib', 'mlflow', 'torch', 'pandas'}"
    code = f"import sys, harness.report, harness.report.figures; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


def test_one_trial_has_all_figures_of_its_analysis():
    tables = {
        "conflict": made.conflict(2),
        "discriminability": made.discriminability(2),
        "queries": made.queries("atss"),
    }
    names = [f"{kind}_{image}" for kind in ("image", "attention", "cam_decoder", "cam_atss") for image in (1, 7)]
    figures = trial_figures(
        "mine",
        tables,
        history=made.history(9),
        maps={name: np.eye(4, dtype=np.float16) for name in names},
        examples={1: (made.image(), np.zeros((0, 4))), 7: (made.image(), np.ones((1, 4)))},
        sheet=Sheet(0.5, "", (), tuple(scenes(1)), {1: "a", 2: "b"}),
    )
    assert list(figures) == [
        *(
            "instability",
            "discriminability",
            "conflict",
            "conflict_matrix",
            "queries",
            "queries_1",
        ),
        *("maps_encoder", "maps_attention", "maps_cam", "detections"),
    ]
    assert [axes.get_title() for axes in figures["maps_cam"].axes[:3]] == ["image", "DETR", "ATSS"]
    assert len(figures["conflict_matrix"].axes) == 3
    without_heads = {"conflict": made.conflict(0), "queries": {"distances": {}, "examples": []}}
    assert trial_figures("K = 0", without_heads, history=made.history(9)[:1]) == {}


@pytest.mark.parametrize(
    "draw",
    [
        draw_curves,
        draw_instability,
        draw_discriminability,
        draw_conflict_distances,
        draw_conflict_matrices,
        draw_query_distances,
    ],
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ValueError, match=f"^{draw.__name__}"):
        draw([])
    with pytest.raises(ValueError, match="at least one image"):
        draw_detections([], {})
