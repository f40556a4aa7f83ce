"""Which detections are right, which images are the worst, and how the sheet tells it without colour."""

from __future__ import annotations

import itertools

import pytest

from harness.figures.detections import MOST_LABELS, Scene, draw_detections
from harness.figures.matching import best_threshold, match, worst_images
from tests.support.analysis_tables import annotation, detection, image


def test_the_best_score_takes_the_object_and_the_next_one_is_false():
    truth = [annotation(1, 0, 0, 10, 10)]
    found = match(truth, [detection(1, 0.6, 0, 0, 10, 10), detection(1, 0.9, 0, 0, 10, 8)])
    assert found.true_positives == ((0, 1),) and found.false_positives == (0,) and found.false_negatives == ()
    assert (found.num_errors, found.f1) == (1, 2 / 3)


def test_a_detection_takes_the_object_it_fits_best():
    truth = [annotation(1, 0, 0, 10, 10), annotation(1, 2, 0, 10, 10)]
    assert match(truth, [detection(1, 0.9, 2, 0, 10, 10)]).true_positives == ((1, 0),)


def test_category_iou_and_score_decide():
    truth = [annotation(1, 0, 0, 10, 10)]
    assert match(truth, [detection(2, 0.9, 0, 0, 10, 10)]).f1 == 0.0
    assert match(truth, [detection(1, 0.9, 0, 0, 10, 5)]).num_errors == 0  # IoU 0.5 is enough
    assert match(truth, [detection(1, 0.9, 0, 0, 10, 4.9)]).num_errors == 2
    low = match(truth, [detection(1, 0.49, 0, 0, 10, 10)])
    assert (low.num_errors, low.ignored) == (1, (0,))
    assert match(truth, [detection(1, 0.49, 0, 0, 10, 10)], score=0.4).num_errors == 0


def test_crowd_regions_are_neither_missed_nor_make_errors():
    truth = [annotation(1, 0, 0, 100, 100, iscrowd=1)]
    found = match(truth, [detection(1, 0.9, 10, 10, 5, 5), detection(2, 0.9, 10, 10, 5, 5)])
    assert (found.false_negatives, found.ignored, found.false_positives) == ((), (0,), (1,))


def test_an_image_without_anything_is_right():
    assert (match([], []).f1, match([], []).num_errors) == (1.0, 0)


def test_worst_first_by_f1_then_errors_then_id():
    one, other = annotation(1, 0, 0, 10, 10), annotation(1, 50, 50, 10, 10)
    truth = {7: [one], 3: [one, other], 5: [one, other], 9: [one], 1: [], 2: [one]}
    found = {3: [detection(1, 0.9, 0, 0, 10, 10)], 9: [detection(1, 0.8, 0, 0, 10, 10)]}
    # 5 misses two, 2 and 7 all of one; 3 finds one of two; 1 and 9 are right
    assert list(worst_images(truth, found, 4)) == [5, 2, 7, 3]
    assert list(worst_images(truth, found, 99)) == [5, 2, 7, 3, 1, 9]
    assert worst_images(truth, found, 1)[5].false_negatives == (0, 1)


def test_a_single_missed_object_comes_before_a_crowd_that_is_mostly_found():
    crowd = [annotation(1, 20 * place, 0, 10, 10) for place in range(30)]
    right = [detection(1, 0.9, 20 * place, 0, 10, 10) for place in range(24)]
    truth, found = {1: crowd, 2: [annotation(1, 0, 0, 10, 10)]}, {1: right}
    assert worst_images(truth, found, 2)[1].num_errors == 6
    assert list(worst_images(truth, found, 2)) == [2, 1]


def test_the_threshold_is_where_f1_is_best():
    truth = {1: [annotation(1, 0, 0, 10, 10), annotation(1, 50, 0, 10, 10)], 2: [annotation(2, 0, 0, 10, 10)]}
    found = {
        1: [detection(1, 0.30, 0, 0, 10, 10), detection(1, 0.22, 50, 0, 10, 10), detection(1, 0.21, 80, 0, 10, 10)],
        2: [detection(1, 0.25, 0, 0, 10, 10), detection(2, 0.05, 80, 0, 10, 10)],
    }
    best = best_threshold(truth, found)
    # from 0.22 on two are right, one is wrong and one is missed; from 0.26 on one is right and two are missed
    assert best.score == 0.22
    assert (best.precision, best.recall, best.f1) == (2 / 3, 2 / 3, pytest.approx(2 / 3))
    low = {image: [{**row, "score": row["score"] / 100} for row in rows] for image, rows in found.items()}
    assert best_threshold(truth, low).score == 0.002  # a detector that hardly learnt has its threshold, too


def test_without_a_right_detection_no_threshold_is_better():
    assert best_threshold({1: [annotation(1, 0, 0, 9, 9)]}, {1: [detection(2, 0.9, 0, 0, 9, 9)]}) is None
    assert best_threshold({1: []}, {}) is None


def crowded(count: int) -> Scene:
    """Objects side by side in rows of ten, of which every second is found."""
    places = [(12 * (place % 10), 12 * (place // 10)) for place in range(count)]
    truth = [annotation(1, x, y, 10, 10) for x, y in places]
    found = [detection(1, 0.9, x, y, 10, 10) for x, y in places[::2]]
    return Scene("image 1", image(120, 120), truth, found, "folder/a picture.jpg")


def test_a_crowd_has_few_names_that_cover_no_other():
    figure = draw_detections([crowded(100)], {1: "a class with quite a long name"})
    figure.draw_without_rendering()  # lays out
    left, right = figure.axes
    renderer = figure.canvas.get_renderer()
    for axes in (left, right):
        assert 0 < len(axes.texts) <= MOST_LABELS
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(axes.bbox.x0 - 1 <= box.x0 and box.x1 <= axes.bbox.x1 + 1 for box in boxes)
    assert len(left.patches) == 200  # every object has its outline and the rim of it
    assert left.texts[0].get_text() == "? a class with quite …"  # what is missed comes first


def test_a_tall_image_does_not_make_a_tall_sheet():
    truth = [annotation(1, 2, y, 16, 15) for y in range(5, 180, 40)]
    scenes = [Scene("tall", image(200, 20), truth, []), Scene("wide", image(20, 200), [], [])]
    figure = draw_detections(scenes, {1: "cat"})
    width, height = figure.get_size_inches()
    assert height < width
    figure.draw_without_rendering()
    left = figure.axes[0]
    assert left.bbox.height == pytest.approx(10 * left.bbox.width)  # the image is whole
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in left.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(left.bbox.y0 - 1 <= box.y0 and box.y1 <= left.bbox.y1 + 1 for box in boxes)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.jpg", "a.jpg"),
        ("x" * 40, "x" * 36 + "\n" + "x" * 4),
        ("folder/" + "y" * 90 + ".png", "…" + "y" * 35 + "\n" + "y" * 32 + ".png"),
        ("红.jpg", "?.jpg"),
    ],
)
def test_the_file_stands_below_its_picture(name, shown):
    scene = Scene("image 1", image(), [annotation(1, 5, 5, 9, 9)], [], name)
    assert draw_detections([scene], {1: "cat"}).axes[0].get_xlabel() == shown


def test_the_sheet_marks_right_and_wrong_without_colour():
    truth = [annotation(1, 5, 5, 20, 20), annotation(2, 30, 10, 20, 20), annotation(2, 0, 30, 9, 9, iscrowd=1)]
    found = [detection(1, 0.9, 6, 5, 20, 20), detection(2, 0.8, 31, 1, 5, 5), detection(1, 0.3, 0, 0, 9, 9)]
    figure = draw_detections([Scene("image 4", image(), truth, found)], {1: "cat", 2: "红"})
    left, right = figure.axes
    assert {text.get_text() for text in left.texts} == {"cat", "? ?", "? (crowd)"}
    assert [text.get_text() for text in right.texts] == ["× ? 0.80", "cat 0.90"]
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("image 4", "1 found, 1 missed, 1 false")
    outlines = [patch.get_linestyle() for patch in right.patches]
    assert len(outlines) == 4 and outlines[1] != outlines[3]  # each with its dark rim; the wrong one dashed
    assert len(figure.legends[0].get_texts()) == 3
