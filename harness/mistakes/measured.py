"""The errors of one branch's detections by the names under which they are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from harness.mistakes.average_precision import error_costs
from harness.mistakes.matching import Judgement, judge
from harness.mistakes.regressed import best_regressed_recall
from harness.mistakes.sides import Columns, Sides, sides_of
from harness.mistakes.thresholds import Threshold, threshold_of
from harness.spec.error_metrics import BEST, PREFIX

CLASS_COLUMNS = ("class", "objects", "AP", "f1", "threshold", "precision", "recall")


class Measured(NamedTuple):
    """What is found out about one branch."""

    metrics: dict[str, float | None]  # `errors/duplicate` and so on; None: undefined
    classes: dict[str, list[Any]]  # by `CLASS_COLUMNS` but for `class` and `AP`: an entry for each class of the file
    sides: Sides


def measure(truth: Mapping[str, Any], table: Columns) -> Measured:
    """All of docs/metrics.md, Errors, but the duplicate gap, which needs an evaluator.

    Args:
        truth: COCO's JSON, perhaps with LVIS's keys.
        table: the detections that count, at most 100 of an image, and 300 on LVIS's data.
    """
    sides = sides_of(truth, table)
    judgement = judge(sides)
    metrics = {PREFIX + name: cost for name, cost in error_costs(sides, judgement).items()}
    metrics[f"{PREFIX}best_regressed_recall"] = best_regressed_recall(sides, judgement)
    return Measured(metrics | _best(_threshold(sides, judgement)), _classes(sides, judgement), sides)


def _best(threshold: Threshold | None) -> dict[str, float | None]:
    """Percentages, and the score as it is; None where nothing is right."""
    if threshold is None:
        return dict.fromkeys((BEST, *(f"{BEST}_{name}" for name in ("threshold", "precision", "recall"))))
    return {
        BEST: 100 * threshold.f1,
        f"{BEST}_threshold": threshold.score,
        f"{BEST}_precision": 100 * threshold.precision,
        f"{BEST}_recall": 100 * threshold.recall,
    }


def _classes(sides: Sides, judgement: Judgement) -> dict[str, list[Any]]:
    objects = sides.num_objects.tolist()
    best = [_best(_threshold(sides, judgement, place)) for place in range(len(objects))]
    names = {"f1": BEST} | {name: f"{BEST}_{name}" for name in ("threshold", "precision", "recall")}
    return {"objects": objects} | {name: [own[key] for own in best] for name, key in names.items()}


def _threshold(sides: Sides, judgement: Judgement, label: int | None = None) -> Threshold | None:
    """Of all classes together, or of one."""
    own = np.ones(len(sides.detected), bool) if label is None else sides.detected.label == label
    scores, numbers = sides.detected.scores, sides.num_objects
    right, wrong = (scores[own & column] for column in (judgement.is_right, judgement.is_wrong))
    return threshold_of(right, wrong, int(numbers.sum() if label is None else numbers[label]))
