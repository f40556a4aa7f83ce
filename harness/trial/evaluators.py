"""Two implementations of COCO's protocol, of which the first knows LVIS's federated one too.

Only their arrays of precision and recall are used.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from importlib import metadata
from typing import Any, Literal, NamedTuple

import numpy as np

from harness.data.federated import KEYS
from harness.errors import UserError
from harness.trial.detections import DetectionTable

Kind = Literal["bbox", "segm"]
EVALUATORS = ("faster_coco_eval", "pycocotools")
_DISTRIBUTIONS = {"faster_coco_eval": "faster-coco-eval", "pycocotools": "pycocotools"}


class Protocol(NamedTuple):
    """What an evaluator compares, and how."""

    areas: dict[str, list[float]]  # ranges of objects' areas by name, in square pixels
    limits: tuple[int, ...]  # numbers of detections per image and class
    kind: Kind
    is_federated: bool = False


def evaluator_version(name: str) -> str:
    """Name and version of an evaluator, for the record."""
    return f"{name} {metadata.version(_DISTRIBUTIONS[name])}"


def run_evaluator(
    name: str, truth: dict[str, Any], table: DetectionTable, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [10 IoU thresholds, 101 recalls, C, areas, limits] and recall [10, C, areas, limits]; -1: undefined.

    Raises:
        UserError: the evaluator is unknown or not installed.
    """
    runs = {"faster_coco_eval": _run_faster_coco_eval, "pycocotools": _run_pycocotools}
    if name not in runs:
        raise UserError(f"evaluate.evaluator {name!r} is unknown; choose one of {', '.join(runs)}")
    truth, table = _numbered(truth, table)
    annotations = table.annotations(with_masks=protocol.kind == "segm")
    try:
        arrays = runs[name](truth, annotations, protocol)
    except ImportError as error:
        other = next(other for other in EVALUATORS if other != name)
        raise UserError(
            f"{name} cannot be imported ({error}); install it or set evaluate.evaluator: {other}"
        ) from error
    precision, recall = (np.ascontiguousarray(arrays[key], np.float64) for key in ("precision", "recall"))
    return precision, recall


def _numbered(truth: dict[str, Any], table: DetectionTable) -> tuple[dict[str, Any], DetectionTable]:
    """Both sides in rows of their own, with images and categories numbered from 1 in the order of their ids.

    Evaluators take only some ids for what they are: faster-coco-eval merges those beyond 2^53 and refuses negative ones
    beside masks. Detections of what is not in the truth have number 0, which nothing has.
    """
    images, categories = (np.sort([int(row["id"]) for row in truth[name]]) for name in ("images", "categories"))

    def numbers(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if not len(known):
            return np.zeros(len(ids), np.int64)
        at = np.searchsorted(known, ids)
        return np.where(known[np.minimum(at, len(known) - 1)] == ids, at + 1, 0)

    image_of, category_of = (
        {known: number for number, known in enumerate(own.tolist(), 1)} for own in (images, categories)
    )
    renamed = {
        **truth,
        "images": [
            {
                **row,
                "id": image_of[row["id"]],
                **{key: [category_of[n] for n in row[key]] for key in KEYS if key in row},
            }
            for row in truth["images"]
        ],
        "categories": [{**row, "id": category_of[row["id"]]} for row in truth["categories"]],
        "annotations": [
            {**row, "image_id": image_of[row["image_id"]], "category_id": category_of[row["category_id"]]}
            for row in truth["annotations"]
        ],
    }
    table = replace(
        table, image_ids=numbers(images, table.image_ids), category_ids=numbers(categories, table.category_ids)
    )
    return renamed, table


def _run_faster_coco_eval(
    truth: dict[str, Any], detections: list[dict[str, Any]], protocol: Protocol
) -> dict[str, Any]:
    from faster_coco_eval import COCO, COCOeval_faster

    def silent(*_: Any) -> None: ...

    sides = [COCO(tables, print_function=silent) for tables in _tables(truth, detections)]
    run = COCOeval_faster(*sides, iouType=protocol.kind, print_function=silent, lvis_style=protocol.is_federated)
    _set_protocol(run.params, protocol)
    run.evaluate()
    run.accumulate()
    return run.eval


def _run_pycocotools(truth: dict[str, Any], detections: list[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for tables in _tables(truth, detections):
            side = COCO()
            side.dataset = tables
            side.createIndex()
            sides.append(side)
        run = COCOeval(*sides, iouType=protocol.kind)
        _set_protocol(run.params, protocol)
        run.evaluate()
        run.accumulate()
    return run.eval


def _tables(truth: dict[str, Any], detections: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides for an evaluator, which writes into their rows."""
    return truth, {**truth, "annotations": detections}


def _set_protocol(params: Any, protocol: Protocol) -> None:
    params.maxDets = list(protocol.limits)
    params.areaRngLbl, params.areaRng = list(protocol.areas), list(protocol.areas.values())
