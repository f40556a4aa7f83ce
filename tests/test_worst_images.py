"""Which detections are right, which images are the worst, and how the sheet tells it without colour."""

from __future__ import annotations

from analysis_tables import annotation, detection, image

from harness.figures.detections import Scene, draw_detections, match, worst_images


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


def test_worst_first_by_errors_then_f1_then_id():
    one, other = annotation(1, 0, 0, 10, 10), annotation(1, 50, 50, 10, 10)
    truth = {7: [one], 3: [one, other], 5: [one, other], 9: [one], 1: []}
    found = {3: [detection(1, 0.9, 0, 0, 10, 10)], 9: [detection(1, 0.8, 0, 0, 10, 10)]}
    # 5 misses two; 7 and 3 miss one each, but 3 finds another; 9 and 1 are right
    assert worst_images(truth, found, 4) == [5, 7, 3, 1]
    assert worst_images(truth, found, 99) == [5, 7, 3, 1, 9]


def test_the_sheet_marks_right_and_wrong_without_colour():
    truth = [annotation(1, 5, 5, 20, 20), annotation(2, 30, 10, 20, 20), annotation(2, 0, 30, 9, 9, iscrowd=1)]
    found = [detection(1, 0.9, 6, 5, 20, 20), detection(2, 0.8, 31, 1, 5, 5), detection(1, 0.3, 0, 0, 9, 9)]
    figure = draw_detections([Scene("image 4", image(), truth, found)], {1: "cat", 2: "红"})
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["cat", "? ?", "? (crowd)"]
    assert [text.get_text() for text in right.texts] == ["cat 0.90", "× ? 0.80"]
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("image 4", "1 found, 1 missed, 1 false")
    outlines = [patch.get_linestyle() for patch in right.patches]
    assert len(outlines) == 4 and outlines[1] != outlines[3]  # each with its dark rim; the wrong one dashed
    assert len(figure.legends[0].get_texts()) == 3
