"""Errors of a finished trial whose record has none: from the detections that it left, or by detecting once more.

A trial leaves the detections of one branch. Where it evaluated only that one, no weights are needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.data import open_dataset
from harness.errors import UserError
from harness.files import read_bytes
from harness.revisit.asked import Request
from harness.revisit.kept import Numbers, Say, keep_errors, left_detections
from harness.revisit.opened import evaluate_found, open_found
from harness.revisit.trained import Found
from harness.spec.detection_metrics import STANDARD_LIMITS
from harness.spec.error_metrics import is_error_metric
from harness.store.results import RunStore
from harness.trial.detections import DetectionTable
from harness.trial.evaluate import errors_of, evaluate_detections, main_branch, named


def add_errors(found: Found, request: Request, store: RunStore, say: Say) -> tuple[Numbers, list[Path]]:
    """Measure them, put them into the record, and return them with the files.

    Raises:
        UserError: the data set or the weights are not here or do not fit, or the detections are damaged.
    """
    path = left_detections(found, store)
    if path is None:
        evaluation = evaluate_found(found, open_found(found, request, say), say)
        metrics: Numbers = {name: value for name, value in evaluation.metrics.items() if is_error_metric(name)}
        return metrics, keep_errors(found, metrics, evaluation.classes, store)
    say(f"{found.name}  from the detections that it left")
    metrics, classes = _of_table(found, _stored(path), say)
    return metrics, keep_errors(found, metrics, classes, store)


def _stored(path: Path) -> DetectionTable:
    """The detections that a trial left."""
    try:
        return DetectionTable.of(json.loads(read_bytes(path) or b""))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): move it away, and the trial's weights detect again") from error


def _of_table(found: Found, table: DetectionTable, say: Say) -> tuple[Numbers, dict[str, Any]]:
    dataset = open_dataset(found.config.data, "val", progress=say)
    settings = found.config.evaluate
    counted = table.best_of_images(STANDARD_LIMITS[dataset.protocol])
    scores = evaluate_detections(dataset, counted, settings.evaluator)
    metrics, classes = errors_of(dataset, counted, settings.evaluator, scores)
    branch = main_branch(settings)
    return named(branch, metrics), {branch: classes}
