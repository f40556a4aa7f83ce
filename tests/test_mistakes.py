"""Errors of detections by hand: what each kind costs, the best threshold, best-regressed detections, duplicates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.figures.matching import best_threshold, match
from harness.mistakes.average_precision import error_costs
from harness.mistakes.duplicates import kept_by_nms
from harness.mistakes.kinds import IGNORED
from harness.mistakes.matching import judge
from harness.mistakes.measured import measure
from harness.mistakes.regressed import best_regressed_recall
from harness.mistakes.sides import sides_of
from harness.mistakes.thresholds import threshold_of
from harness.revisit.beside import error_rows
from harness.spec.error_metrics import COSTS, ERROR_METRICS, SPECIAL_COSTS
from model import ops_reference
from tests.support.scored import drawn, found, truth

A, B, FAR = (0, 0, 10, 10), (50, 0, 10, 10), (0, 90, 10, 10)
THIRD = (55, 0, 10, 10)  # IoU 1/3 with B
HALF = 100 * 50 / 101  # of the 101 recalls 50 lie above 1/2


def costs(objects, *rows, crowds=(), **options):
    sides = sides_of(truth(objects, crowds, **options), found(*rows))
    return error_costs(sides, judge(sides))


# ---- what each kind costs -----------------------------------------------------------------------------------------

CASES = {
    "duplicate": ([(1, 1, A), (1, 1, B)], [(1, 1, 0.9, A), (1, 1, 0.8, A), (1, 1, 0.7, B)], HALF / 3),
    "background": ([(1, 1, A), (1, 1, B)], [(1, 1, 0.9, A), (1, 1, 0.8, FAR), (1, 1, 0.7, B)], HALF / 3),
    # of another class's object, at IoU 1/3; that class is found
    "both": (
        [(1, 1, A), (1, 1, FAR), (1, 2, B)],
        [(1, 1, 0.9, A), (1, 1, 0.8, THIRD), (1, 1, 0.7, FAR), (1, 2, 0.6, B)],
        HALF / 3 / 2,
    ),
    "localisation": ([(1, 1, A), (1, 1, B)], [(1, 1, 0.9, A), (1, 1, 0.8, THIRD)], HALF),
    "classification": ([(1, 1, A), (1, 2, B)], [(1, 1, 0.9, A), (1, 1, 0.8, B)], 50.0),
    "miss": ([(1, 1, A), (1, 1, B)], [(1, 1, 0.9, A)], HALF),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_costs_what_it_takes_from_ap(kind):
    objects, rows, expected = CASES[kind]
    # Only localisation and classification find their object once mended; what nobody finds otherwise is a miss.
    assert {name: costs(objects, *rows)[name] for name in COSTS} == pytest.approx(
        dict.fromkeys(COSTS, 0) | {kind: expected}
    )


def test_of_two_errors_with_one_object_the_better_one_is_right_and_the_other_gone():
    objects = [(1, 1, A), (1, 1, B), (1, 2, FAR)]
    rows = [(1, 1, 0.9, THIRD), (1, 1, 0.8, (56, 0, 10, 10)), (1, 1, 0.7, A), (1, 2, 0.6, FAR)]
    # as it is: wrong, wrong, right of two objects: 1/3 up to a recall of 1/2; mended: both right
    assert costs(objects, *rows)["localisation"] == pytest.approx((100 - 100 * 51 / 101 / 3) / 2)
    rows.insert(0, (1, 2, 0.95, B))  # a wrong class on B comes before both
    mended = costs(objects, *rows)
    # with it mended B is found by class 1 and, behind it, two wrong boxes and one right are 1, 1/2, 1/3, 2/4
    assert mended["classification"] == pytest.approx((100 * (51 + 50 / 2) / 101 - 100 * 51 / 101 / 3 + 50) / 2)
    # both wrong boxes go, A is right: precision 1 up to a recall of 1/2
    assert mended["localisation"] == pytest.approx((100 * 51 / 101 - 100 * 51 / 101 / 3) / 2)


def test_an_object_that_is_found_is_found_by_nothing_else():
    objects = [(1, 1, A), (1, 1, B)]
    rows = [(1, 1, 0.9, B), (1, 1, 0.8, THIRD), (1, 1, 0.7, A)]
    # the second one is badly placed on an object that is found: mended it goes
    assert costs(objects, *rows)["localisation"] == pytest.approx(HALF / 3)


def test_false_positives_and_negatives():
    objects = [(1, 1, A), (1, 1, B)]
    rows = [(1, 1, 0.9, FAR), (1, 1, 0.8, A)]  # wrong, right: 1/2 up to a recall of 1/2
    found = costs(objects, *rows)
    assert found["false_positives"] == pytest.approx(100 * 51 / 101 / 2)  # 1 instead
    assert found["false_negatives"] == pytest.approx(50 - 100 * 51 / 101 / 2)  # 1/2 everywhere


@pytest.mark.parametrize(("iou", "kind"), [(0.5, "localisation"), (0.1, "localisation"), (0.09, "background")])
def test_bounds_belong_to_localisation(iou, kind):
    """A found object leaves a second detection of it; at an IoU of 1/2 it is badly placed, above it a duplicate."""
    box = (0, 0, 10, 10 * iou)
    objects, rows = [(1, 1, A), (1, 1, B)], [(1, 1, 0.9, A), (1, 1, 0.8, box), (1, 1, 0.7, B)]
    found = costs(objects, *rows)
    assert [name for name in COSTS if found[name] > 1e-9] == [kind]


# ---- what takes no part -------------------------------------------------------------------------------------------


def test_a_class_without_objects_has_no_ap_and_costs_nothing():
    objects = [(1, 1, A)]
    assert set(costs(objects, (1, 1, 0.9, A), (1, 2, 0.95, FAR)).values()) == {0.0}


def test_a_class_of_which_nothing_is_found_gains_nothing_by_forgetting_its_objects():
    found = costs([(1, 1, A), (1, 2, B)], (1, 1, 0.9, A))
    assert found["miss"] == 0 and found["false_negatives"] == 0


@pytest.mark.parametrize("crowd", [[], [(1, 1, A)]])
def test_without_objects_nothing_is_defined(crowd):
    measured = measure(truth([], crowd), found((1, 1, 0.9, FAR)))
    assert set(measured.metrics.values()) == {None}
    assert measured.classes["objects"] == [0, 0] and measured.classes["f1"] == [None, None]


def test_without_detections_all_is_missed_and_nothing_gained():
    measured = measure(truth([(1, 1, A)]), found())
    assert {measured.metrics[f"errors/{name}"] for name in (*COSTS, *SPECIAL_COSTS)} == {0.0}
    assert measured.metrics["errors/best_regressed_recall"] == 0 and measured.metrics["best_f1"] is None


def test_an_image_without_objects_has_background_only():
    with_it = costs([(1, 1, A)], (1, 1, 0.5, A), (2, 1, 0.9, A))
    assert with_it["background"] == pytest.approx(50) and with_it["miss"] == 0


def test_what_a_crowd_covers_is_no_mistake_and_mends_none():
    objects, crowd = [(1, 1, A), (1, 1, B)], [(1, 1, (40, 0, 60, 60))]
    rows = [(1, 1, 0.9, A), (1, 1, 0.8, THIRD), (1, 1, 0.7, (70, 20, 10, 10))]
    found = costs(objects, *rows, crowds=crowd)
    assert found["miss"] == pytest.approx(HALF) and found["localisation"] == found["background"] == 0
    other = costs(objects, (1, 1, 0.9, A), (1, 2, 0.8, (70, 20, 10, 10)), (1, 1, 0.7, B), crowds=crowd)
    assert other["background"] == 0  # of a class without objects


def test_of_federated_data_only_what_was_looked_for_is_a_mistake():
    objects = [(1, 1, A), (1, 1, B), (2, 2, A)]
    rows = [(1, 1, 0.9, A), (1, 2, 0.85, FAR), (2, 1, 0.8, FAR), (1, 1, 0.7, B), (2, 2, 0.6, A)]
    data = truth(objects, neg_category_ids=[], not_exhaustive_category_ids=[])
    assert measure(data, found(*rows)).metrics["errors/background"] == 0  # neither was looked for
    data["images"][1]["neg_category_ids"] = [1]
    assert measure(data, found(*rows)).metrics["errors/background"] == pytest.approx(HALF / 3 / 2)
    rows[1] = (1, 1, 0.85, FAR)  # of a class that is in the image, of which only some objects are annotated
    data["images"][1]["neg_category_ids"] = []
    assert measure(data, found(*rows)).metrics["errors/background"] == pytest.approx(HALF / 3 / 2)
    data["images"][0]["not_exhaustive_category_ids"] = [1]
    assert measure(data, found(*rows)).metrics["errors/background"] == 0


# ---- matching, thresholds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_who_is_right_is_as_image_by_image(seed):
    data, table = drawn(seed)
    sides, rows = sides_of(data, table), list(table)
    judgement = judge(sides)
    by_image = {
        row["id"]: [own for own in data["annotations"] if own["image_id"] == row["id"]] for row in data["images"]
    }
    right, ignored = set(), set()
    for image, objects in by_image.items():
        own = [number for number, row in enumerate(rows) if row["image_id"] == image]
        matches = match(objects, [rows[number] for number in own], score=-np.inf)
        right |= {(own[index], objects[place]["id"]) for place, index in matches.true_positives}
        ignored |= {own[index] for index in matches.ignored}
    ids = [row["id"] for row in sorted(data["annotations"], key=lambda row: row["image_id"])]
    at = np.flatnonzero(judgement.is_right)
    assert {(int(sides.detected.row[n]), ids[judgement.object[n]]) for n in at} == right
    assert set(sides.detected.row[judgement.kind == IGNORED].tolist()) == ignored and ignored
    best = best_threshold(by_image, {image: [row for row in rows if row["image_id"] == image] for image in by_image})
    assert measure(data, table).metrics["best_f1"] == pytest.approx(100 * best.f1)


def test_the_best_threshold_of_all_and_of_each_class():
    objects = [(1, 1, A), (1, 1, B), (2, 1, A), (1, 2, FAR)]
    rows = [(1, 1, 0.9, A), (1, 1, 0.455, B), (1, 1, 0.4, FAR), (2, 2, 0.6, A), (1, 2, 0.3, FAR)]
    measured = measure(truth(objects), found(*rows))
    # right, wrong, objects: of class 1 from 0.45 on 2, 0, 3, of class 2 from 0.3 on 1, 1, 1, of all from 0.3 on 3, 2, 4
    assert measured.classes["f1"] == pytest.approx([80, 200 / 3])
    assert measured.classes["threshold"] == [0.45, 0.3] and measured.classes["objects"] == [3, 1]
    assert measured.classes["precision"] == pytest.approx([100, 50])
    assert measured.classes["recall"] == pytest.approx([200 / 3, 100])
    assert {name: measured.metrics[f"best_f1{name}"] for name in ("", "_threshold", "_precision", "_recall")} == (
        pytest.approx({"": 200 / 3, "_threshold": 0.3, "_precision": 60, "_recall": 75})
    )
    assert list(measured.metrics) == [name for name in ERROR_METRICS if name != "errors/duplicate_gap"]


@pytest.mark.parametrize(
    ("right", "wrong", "objects", "score", "f1"),
    [
        ([0.0005, 0.0004], [], 2, 0.0004, 1),
        ([0.0005, 0.0004], [0.00041] * 9, 2, 0.0005, 2 / 3),
        ([0.9, *[3.5e-7] * 3], [2e-8], 4, 3e-7, 1),  # better than the one from 0.9 on
        ([1e-12], [], 1, 1e-12, 1),
        ([0.5, 1e-9], [1e-4] * 3, 2, 0.5, 2 / 3),
        ([1.4e-45, 0.0], [], 2, 1e-45, 2 / 3),  # the least that is above zero in float32
    ],
)
def test_scores_as_low_as_they_come_have_a_threshold(right, wrong, objects, score, f1):
    """Scores are positive, however little was learnt."""
    best = threshold_of(np.array(right), np.array(wrong), objects)
    assert best.score == pytest.approx(score, rel=1e-3, abs=0) and best.f1 == pytest.approx(f1)
    (cells,) = error_rows({"best_f1_threshold": best.score}, ("decoder",))
    assert float(cells[-1]) == pytest.approx(score, rel=1e-3, abs=0)


def test_without_anything_right_there_is_no_threshold():
    assert threshold_of(np.array([]), np.array([0.9]), 3) is None
    assert threshold_of(np.array([]), np.array([]), 0) is None


# ---- best-regressed, duplicates -----------------------------------------------------------------------------------


def regressed(objects, *rows):
    sides = sides_of(truth(objects), found(*rows))
    return best_regressed_recall(sides, judge(sides))


def test_the_best_box_is_recalled_where_its_score_is_among_as_many_as_there_are_objects():
    near = (0, 0, 10, 8)
    assert regressed([(1, 1, A)], (1, 1, 0.9, A), (1, 1, 0.8, near)) == 100
    assert regressed([(1, 1, A)], (1, 1, 0.9, near), (1, 1, 0.8, A)) == 0
    assert regressed([(1, 1, A), (1, 1, B)], (1, 1, 0.9, near), (1, 1, 0.8, A)) == 50  # B has none
    assert regressed([(1, 1, A)], (1, 1, 0.9, (0, 0, 10, 4))) == 0  # IoU 0.4
    assert regressed([(1, 1, A)], (1, 2, 0.9, A), (1, 1, 0.8, A)) == 0  # another class comes first
    assert regressed([(1, 1, A)], (1, 1, 0.9, A), (1, 1, 0.8, A)) == 100  # of equal boxes the better score


@pytest.mark.parametrize("iou", [0.3, 0.7])
def test_nms_keeps_what_the_reference_keeps(iou):
    data, table = drawn(3)
    boxes, expected = torch.from_numpy(table.boxes_xywh), []
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    for image in np.unique(table.image_ids):
        own = np.flatnonzero(table.image_ids == image)
        own = own[np.argsort(-table.scores[own])]
        keep = ops_reference.nms(corners[own], torch.from_numpy(table.category_ids[own]), iou)
        expected += own[keep.numpy()].tolist()
    kept = kept_by_nms(sides_of(data, table), iou)
    assert kept.tolist() == sorted(expected) and 0 < len(kept) < len(table)
