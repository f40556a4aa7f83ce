"""The costs of errors against TIDE's own code (tidecv-light): equal to the last digits, but for its mean over classes.

It divides by the classes that have an object or a detection, counted anew after an error is mended; so classes without
objects lower AP, and leave it when their detections go. Here each side is compared under the other's denominator.
Scores are made distinct, because of equal ones it takes another order after a mending than before. It takes no crowd
regions (those fail in it).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tidecv import TIDE, Data

from harness.mistakes.average_precision import error_costs, states
from harness.mistakes.matching import judge
from harness.mistakes.sides import sides_of
from harness.spec.error_metrics import COSTS, SPECIAL_COSTS
from harness.trial.detections import DetectionTable
from tests.support.folders import real_data
from tests.support.scored import drawn, found, truth

NAMES = dict(
    zip(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FalsePos", "FalseNeg"), (*COSTS, *SPECIAL_COSTS), strict=True)
)
A, FAR = (0, 0, 10, 10), (0, 90, 10, 10)


def theirs(data: dict[str, Any], table: DetectionTable) -> dict[str, float]:
    """AP, named "", and what each kind costs, by their code. It takes corners."""
    sides = Data("objects"), Data("detections")
    for row in data["annotations"]:
        sides[0].add_ground_truth(row["image_id"], row["category_id"], corners(row["bbox"]))
    for row in table:
        sides[1].add_detection(row["image_id"], row["category_id"], row["score"], corners(row["bbox"]))
    tide = TIDE()
    run = tide.evaluate(*sides, name="run")
    costs = tide.get_main_errors()["run"] | tide.get_special_errors()["run"]
    return {"": float(run.ap)} | {NAMES[name]: float(cost) for name, cost in costs.items()}


def corners(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def by_their_denominator(data: dict[str, Any], table: DetectionTable) -> dict[str, float]:
    sides = sides_of(data, table)
    means = {}
    for name, state in states(sides, judge(sides)):
        detections = np.bincount(state.label, minlength=len(state.objects))
        means[name] = float(state.class_ap(np.flatnonzero(detections + state.objects)).mean())
    costs = {name: means[name] - means[""] for name in (*COSTS, *SPECIAL_COSTS)}
    return {"": means[""]} | {name: max(cost, 0) if name in COSTS else cost for name, cost in costs.items()}


def distinct(rows: list[dict[str, Any]]) -> DetectionTable:
    """The same order without equal scores."""
    order = np.argsort([-row["score"] for row in rows], kind="stable").tolist()
    return DetectionTable.of({**rows[row], "score": 1 - rank / len(rows)} for rank, row in enumerate(order))


@pytest.mark.parametrize("seed", range(4))
def test_equal_on_drawn_splits(seed):
    data, table = drawn(seed, crowds=0)
    expected = theirs(data, table)
    assert by_their_denominator(data, table) == pytest.approx(expected, abs=1e-6)
    assert min(expected.values()) > 0  # every kind is there


def test_equal_on_coco_detections():
    folder = real_data("cocoeval")
    data = json.loads((folder / "instances_val2014_100.json").read_text())
    data["annotations"] = [row for row in data["annotations"] if not row["iscrowd"]]
    table = distinct(json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text()))
    expected = theirs(data, table)
    assert by_their_denominator(data, table) == pytest.approx(expected, abs=1e-6)
    assert (expected["classification"], expected["miss"]) == pytest.approx((22.2497619, 8.5259522))
    with_objects = {row["category_id"] for row in data["annotations"]}
    own = DetectionTable.of(row for row in table if row["category_id"] in with_objects)
    assert len(own) < len(table)  # of six classes there are detections and no object


def test_equal_by_our_denominator_where_both_are_one():
    """Every class with objects is detected somewhere, and no other: then both means are over the same classes."""
    data, table = drawn(7, crowds=0)
    classes = {row["category_id"] for row in data["annotations"]} & set(table.category_ids.tolist())
    data["annotations"] = [row for row in data["annotations"] if row["category_id"] in classes]
    table = DetectionTable.of(row for row in table if row["category_id"] in classes)
    sides = sides_of(data, table)
    expected = theirs(data, table)
    assert error_costs(sides, judge(sides)) == pytest.approx(
        {n: expected[n] for n in (*COSTS, *SPECIAL_COSTS)}, abs=1e-6
    )


def test_their_mean_is_over_other_classes_after_a_mending_than_before():
    """One class is found wholly; another has no object, and one detection of background: nothing is to gain."""
    data, table = truth([(1, 1, A)]), found((1, 1, 0.9, A), (1, 2, 0.8, FAR))
    expected = theirs(data, table)
    assert (expected[""], expected["background"]) == (50, 50)  # (100 + 0) / 2, and 100 / 1 without the detection
    sides = sides_of(data, table)
    assert error_costs(sides, judge(sides))["background"] == 0
