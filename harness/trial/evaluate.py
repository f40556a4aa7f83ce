"""Detections -> COCO metrics, for the decoder and for every auxiliary branch, in one pass over the images.

A branch that detects masks has COCO's segmentation metrics too, as `segm_AP`. `AP` is always that of the 100 best
detections of each image; `evaluate.max_detections: 300` adds `AP@300`, that of 300.
Two implementations of COCO's protocol can be chosen: faster_coco_eval (the default) and pycocotools (the oracle);
every number is the same. Only their precision and recall arrays are used: the summary is made here, because the
area bounds may be the data set's own and because AP per class is wanted too. All metrics are percentages.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from harness.errors import UserError
from harness.spec.detection_metrics import AT_LIMIT, STANDARD_LIMIT
from harness.trial.detections import DetectionTable, joined, to_results

if TYPE_CHECKING:
    import torch

    from harness.config import EvaluateConfig
    from harness.data.coco import CocoDataset
    from harness.data.loader import Loader
    from harness.trial.ranks import Ranks
    from model.detector import Detector

DECODER = "decoder"  # the branch whose metrics have no prefix
MAX_DETECTIONS = (1, 10, STANDARD_LIMIT)  # per image and class
Kind = Literal["bbox", "segm"]
EVALUATORS = ("faster_coco_eval", "pycocotools")
_DISTRIBUTIONS = {"faster_coco_eval": "faster-coco-eval", "pycocotools": "pycocotools"}


Results = DetectionTable | Iterable[Mapping[str, Any]]


class Evaluation(NamedTuple):
    """What one pass over the validation images gives."""

    metrics: dict[str, float | None]  # the decoder's under plain names; others as `atss/AP`, `mask_rcnn/segm_AP`
    per_class: dict[str, float | None]  # AP of the decoder, or of the first branch where it is not evaluated
    detections: DetectionTable  # of that branch
    matching: torch.Tensor  # [N, 2, Q] int32, ground truth and source of each query (see `Detector.detect_and_match`)


class Protocol(NamedTuple):
    """What an evaluator compares, and how."""

    areas: dict[str, list[float]]  # ranges of objects' areas by name, in square pixels
    limits: tuple[int, ...]  # numbers of detections per image and class
    kind: Kind


def evaluator_version(name: str) -> str:
    """Name and version of an evaluator, for the record."""
    return f"{name} {metadata.version(_DISTRIBUTIONS[name])}"


def evaluate(
    detector: Detector,
    loader: Loader,
    dataset: CocoDataset,
    config: EvaluateConfig,
    device: torch.device | str,
    *,
    precision: str = "fp32",
    on_batch: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Detect on every image once and score each branch of `config.branches`.

    Args:
        detector: set to evaluation mode meanwhile.
        loader: of `dataset`, without augmentation.
        dataset: gives the ground truth.
        config: branches and evaluator.
        device: where the detector is.
        precision: to detect in (see `harness.system.precision`).
        on_batch: called with (batches done, batches in all).
        ranks: that share the images; `loader` gives this one its part. The first scores what all have found, the
            others return nothing.
    """
    results, matching = detect_all(
        detector,
        loader,
        dataset,
        config.branches,
        device,
        max_detections=config.max_detections,
        precision=precision,
        on_batch=on_batch,
    )
    if ranks is not None and ranks.size > 1:
        import torch

        parts = ranks.gather((results, matching))
        if not ranks.is_first:
            return Evaluation({}, {}, joined([]), matching)
        results = {name: joined([found[name] for found, _ in parts]) for name in results}
        matching = torch.cat([own for _, own in parts])
    main = DECODER if DECODER in results else config.branches[0]
    metrics: dict[str, float | None] = {}
    per_class: dict[str, float | None] = {}
    for branch, detections in results.items():
        scores = _scores(dataset, detections, config, "bbox")
        if branch == main:
            per_class = scores.pop("per_class")
        else:
            del scores["per_class"]
        if dataset.has_masks and detections.masks is not None:
            masks = _scores(dataset, detections, config, "segm")
            scores |= {f"segm_{name}": score for name, score in masks.items() if name != "per_class"}
        metrics.update(scores if branch == DECODER else {f"{branch}/{name}": score for name, score in scores.items()})
    return Evaluation(metrics, per_class, results[main], matching)


def _scores(dataset: CocoDataset, detections: DetectionTable, config: EvaluateConfig, kind: Kind) -> dict[str, Any]:
    """COCO's metrics of at most 100 detections of each image, and beside them those of all where more are wanted."""
    if config.max_detections == STANDARD_LIMIT:
        return evaluate_detections(dataset, detections, config.evaluator, kind)
    scores = evaluate_detections(dataset, detections.best_of_images(STANDARD_LIMIT), config.evaluator, kind)
    return scores | evaluate_at_limit(dataset, detections, config.evaluator, config.max_detections, kind)


def detect_all(
    detector: Detector,
    loader: Loader,
    dataset: CocoDataset,
    branches: Iterable[str],
    device: torch.device | str,
    *,
    max_detections: int = STANDARD_LIMIT,
    precision: str = "fp32",
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, DetectionTable], torch.Tensor]:
    """Each branch's detections on every image of `loader`; one forward per batch.

    Also what the decoder's queries were matched with, [N, 2, Q].
    """
    import torch

    from harness.system.precision import computing_in

    names = tuple(dict.fromkeys(branches))
    tables: dict[str, list[DetectionTable]] = {name: [] for name in names}
    matchings = []
    was_training = detector.training
    detector.eval()
    try:
        with torch.no_grad(), computing_in(precision, torch.device(device)):
            for done, batch in enumerate(loader.epoch(0), 1):
                found, matching = detector.detect_and_match(batch.to(device), names, max_detections)
                matchings.append(matching.cpu())
                for name in names:
                    tables[name].append(to_results(batch, found[name], dataset.category_ids))
                if on_batch:
                    on_batch(done, len(loader))
    finally:
        detector.train(was_training)
    if not matchings:  # a rank may have no image
        matchings.append(torch.empty(0, 2, detector.config.num_queries, dtype=torch.int32))
    return {name: joined(own) for name, own in tables.items()}, torch.cat(matchings)


def evaluate_detections(dataset: CocoDataset, results: Results, evaluator: str, kind: Kind = "bbox") -> dict[str, Any]:
    """COCO's metrics of boxes, or of masks, in percent.

    Args:
        dataset: `ground_truth`, `area_bounds`, categories.
        results: a table, or rows of COCO's results format; may be empty (then every defined metric is 0).
        evaluator: "faster_coco_eval" or "pycocotools".
        kind: "segm" compares masks, which both sides must have then.

    Returns:
        AP, AP50, AP75, APS, APM, APL, AR1, AR10, AR100 and `per_class` (category name -> AP). What has no ground
        truth, as an area range without objects, is None.

    Raises:
        UserError: the evaluator is unknown or not installed.
    """
    precision, recall = _arrays(dataset, results, evaluator, kind, MAX_DETECTIONS)
    return _summary(precision, recall, dataset.category_names)


def evaluate_at_limit(
    dataset: CocoDataset, results: Results, evaluator: str, limit: int, kind: Kind = "bbox"
) -> dict[str, float | None]:
    """COCO's metrics in percent where the `limit` best detections of each image count: `AP@300` and so on.

    See `evaluate_detections`; the names are those of `AT_LIMIT`.
    """
    precision, recall = _arrays(dataset, _table(results).best_of_images(limit), evaluator, kind, (limit,))
    scores = {**_precisions(precision), "AR": _mean(recall[..., 0, -1])}
    return {f"{name}@{limit}": scores[name] for name in AT_LIMIT}


def _table(results: Results) -> DetectionTable:
    return results if isinstance(results, DetectionTable) else DetectionTable.of(results)


def _arrays(
    dataset: CocoDataset, results: Results, evaluator: str, kind: Kind, limits: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of an evaluator (see `_summary`) with these numbers of detections per image and class."""
    small, large = dataset.area_bounds
    ranges = {"all": [0.0, 1e10], "small": [0.0, small], "medium": [small, large], "large": [large, 1e10]}
    runs = {"faster_coco_eval": _run_faster_coco_eval, "pycocotools": _run_pycocotools}
    if evaluator not in runs:
        raise UserError(f"evaluate.evaluator {evaluator!r} is unknown; choose one of {', '.join(runs)}")
    truth, table = _numbered(dataset.ground_truth, _table(results))
    annotations = table.annotations(with_masks=kind == "segm")
    try:
        arrays = runs[evaluator](truth, annotations, Protocol(ranges, limits, kind))
    except ImportError as error:
        other = next(name for name in EVALUATORS if name != evaluator)
        raise UserError(
            f"{evaluator} cannot be imported ({error}); install it or set evaluate.evaluator: {other}"
        ) from error
    precision, recall = (np.ascontiguousarray(arrays[name], np.float64) for name in ("precision", "recall"))
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
        "images": [{**row, "id": image_of[row["id"]]} for row in truth["images"]],
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
    run = COCOeval_faster(*sides, iouType=protocol.kind, print_function=silent)
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


def _summary(precision: np.ndarray, recall: np.ndarray, category_names: tuple[str, ...]) -> dict[str, Any]:
    """COCO's summary: means over what is defined.

    Args:
        precision: [10 IoU thresholds 0.5 to 0.95, 101 recalls, C, 4 areas, 3 detection limits]; -1: undefined.
        recall: [10, C, 4, 3].
        category_names: of the C classes.
    """

    metrics: dict[str, Any] = _precisions(precision)
    for limit, number in enumerate(MAX_DETECTIONS):
        metrics[f"AR{number}"] = _mean(recall[..., 0, limit])
    metrics["per_class"] = {name: _mean(precision[:, :, index, 0, -1]) for index, name in enumerate(category_names)}
    return metrics


def _precisions(precision: np.ndarray) -> dict[str, float | None]:
    """Means of precision at the highest detection limit: over all IoU thresholds, at 0.5 and 0.75, by size."""
    means = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[0, ..., 0, -1]),
        "AP75": _mean(precision[5, ..., 0, -1]),
    }
    sizes = {name: _mean(precision[..., area, -1]) for area, name in enumerate(("APS", "APM", "APL"), 1)}
    return means | sizes


def _mean(values: np.ndarray) -> float | None:
    """Percent; None where nothing is defined."""
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else None
