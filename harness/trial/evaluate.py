"""Detections -> COCO metrics, for the decoder and for every auxiliary branch, in one pass over the images.

A branch that detects masks has COCO's segmentation metrics too, as `segm_AP`. `AP` is always that of the 100 best
detections of each image, and LVIS's own, of 300, where the data are LVIS's; `evaluate.max_detections: 1000` adds
`AP@1000`, that of 1,000.
Two implementations of COCO's protocol can be chosen: faster_coco_eval (the default) and pycocotools (the oracle);
every number is the same. Only their precision and recall arrays are used: the summary is made here, because the
area bounds may be the data set's own and because AP per class is wanted too. All metrics are percentages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.data.federated import is_federated
from harness.errors import UserError
from harness.mistakes.duplicates import kept_by_nms
from harness.mistakes.measured import CLASS_COLUMNS, measure
from harness.spec.detection_metrics import AT_LIMIT, STANDARD_LIMIT, STANDARD_LIMITS, evaluator_trouble, limit_asked
from harness.spec.error_metrics import ERROR_METRICS, PREFIX
from harness.trial.detections import DetectionTable, joined, to_results
from harness.trial.evaluators import EVALUATORS as EVALUATORS
from harness.trial.evaluators import Kind, Protocol, run_evaluator
from harness.trial.evaluators import evaluator_version as evaluator_version
from harness.trial.federated import by_frequency, parts_of

if TYPE_CHECKING:
    import torch

    from harness.config import EvaluateConfig
    from harness.data.coco import CocoDataset
    from harness.data.loader import Loader
    from harness.trial.ranks import Ranks
    from model.detector import Detector

DECODER = "decoder"  # the branch whose metrics have no prefix
MAX_DETECTIONS = (1, 10, STANDARD_LIMIT)  # per image and class

Results = DetectionTable | Iterable[Mapping[str, Any]]


class Evaluation(NamedTuple):
    """What one pass over the validation images gives."""

    metrics: dict[str, float | None]  # the decoder's under plain names; others as `atss/AP`, `mask_rcnn/segm_AP`
    per_class: dict[str, float | None]  # AP of the decoder, or of the first branch where it is not evaluated
    detections: DetectionTable  # of that branch
    matching: torch.Tensor  # [N, 2, Q] int32, ground truth and source of each query (see `Detector.detect_and_match`)
    # by branch and by `harness.mistakes.measured.CLASS_COLUMNS`, an entry for each class; empty unless asked for errors
    classes: dict[str, dict[str, list[Any]]]


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
    errors: bool = False,
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
        errors: add what AP does not say, of each branch's boxes (see `harness.spec.error_metrics`).

    Raises:
        UserError: the evaluator does not know the data set's protocol, or is not installed.
    """
    if trouble := evaluator_trouble(dataset.protocol, config.evaluator):
        raise UserError(trouble)
    results, matching = detect_all(
        detector,
        loader,
        dataset,
        config.branches,
        device,
        max_detections=limit_asked(dataset.protocol, config.max_detections),
        precision=precision,
        on_batch=on_batch,
    )
    if ranks is not None and ranks.size > 1:
        import torch

        parts = ranks.gather((results, matching))
        if not ranks.is_first:
            return Evaluation({}, {}, joined([]), matching, {})
        results = {name: joined([found[name] for found, _ in parts]) for name in results}
        matching = torch.cat([own for _, own in parts])
    main = main_branch(config)
    metrics: dict[str, float | None] = {}
    per_class: dict[str, float | None] = {}
    classes: dict[str, dict[str, list[Any]]] = {}
    for branch, detections in results.items():
        scores = _scores(dataset, detections, config, "bbox")
        costs: dict[str, float | None] = {}
        if errors:
            costs, classes[branch] = errors_of(dataset, detections, config.evaluator, scores)
        own = scores.pop("per_class")
        per_class = own if branch == main else per_class
        if dataset.has_masks and detections.masks is not None:
            masks = _scores(dataset, detections, config, "segm")
            scores |= {f"segm_{name}": score for name, score in masks.items() if name != "per_class"}
        metrics |= named(branch, scores | costs)
    return Evaluation(metrics, per_class, results[main], matching, classes)


def main_branch(config: EvaluateConfig) -> str:
    """The branch whose detections and AP by class are kept: the decoder, or the first one."""
    return DECODER if DECODER in config.branches else config.branches[0]


def named(branch: str, scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metrics of a branch by the names under which a trial has them."""
    return dict(scores) if branch == DECODER else {f"{branch}/{name}": score for name, score in scores.items()}


def errors_of(
    dataset: CocoDataset, detections: DetectionTable, evaluator: str, scores: Mapping[str, Any]
) -> tuple[dict[str, float | None], dict[str, list[Any]]]:
    """The error metrics of one branch's boxes, and its classes in columns (`harness.mistakes.measured.CLASS_COLUMNS`).

    Args:
        dataset: gives the ground truth.
        detections: of the branch.
        evaluator: of AP after NMS.
        scores: `evaluate_detections` of the same boxes.
    """
    counted = detections.best_of_images(STANDARD_LIMITS[dataset.protocol])
    measured = measure(dataset.ground_truth, counted)
    gap = None
    if scores["AP"] is not None:
        kept = counted.at(kept_by_nms(measured.sides))
        gap = evaluate_detections(dataset, kept, evaluator)["AP"] - scores["AP"]
    names = [str(row["name"]) for row in dataset.ground_truth["categories"]]
    average = [scores["per_class"].get(name) for name in names]
    columns = {"class": names, "AP": average} | measured.classes
    costs = measured.metrics | {f"{PREFIX}duplicate_gap": gap}
    return {name: costs[name] for name in ERROR_METRICS}, {name: columns[name] for name in CLASS_COLUMNS}


def _scores(dataset: CocoDataset, detections: DetectionTable, config: EvaluateConfig, kind: Kind) -> dict[str, Any]:
    """The standard metrics, of 100 or 300 detections of each image, and those of the limit that is asked for."""
    limit = STANDARD_LIMITS[dataset.protocol]
    scores = evaluate_detections(dataset, detections.best_of_images(limit), config.evaluator, kind)
    if config.max_detections == STANDARD_LIMIT:
        return scores
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
    """COCO's metrics of boxes, or of masks, in percent; LVIS's, of 300 detections per image, where the data are LVIS's.

    Args:
        dataset: `ground_truth`, `area_bounds`, categories.
        results: a table, or rows of COCO's results format; may be empty (then every defined metric is 0).
        evaluator: "faster_coco_eval" or "pycocotools".
        kind: "segm" compares masks, which both sides must have then.

    Returns:
        `COCO_METRICS` or `LVIS_METRICS`, and `per_class` (category name -> AP). What has no ground truth, as an area
        range without objects, is None.

    Raises:
        UserError: the evaluator is unknown or not installed, or does not know LVIS's protocol.
    """
    if not is_federated(dataset.ground_truth):
        precision, recall = _arrays(dataset, _table(results), evaluator, kind, MAX_DETECTIONS)
        recalls = {f"AR{number}": _mean(recall[..., 0, at]) for at, number in enumerate(MAX_DETECTIONS)}
        metrics: dict[str, Any] = _precisions(precision, dataset) | recalls
    else:
        limit = STANDARD_LIMITS["lvis"]
        precision, recall = _arrays(dataset, _table(results).best_of_images(limit), evaluator, kind, (limit,))
        metrics = _precisions(precision, dataset) | {f"AR{limit}": _mean(recall[..., 0, -1])}
    names = enumerate(dataset.category_names)
    return metrics | {"per_class": {name: _mean(precision[:, :, index, 0, -1]) for index, name in names}}


def evaluate_at_limit(
    dataset: CocoDataset, results: Results, evaluator: str, limit: int, kind: Kind = "bbox"
) -> dict[str, float | None]:
    """Metrics in percent where the `limit` best detections of each image count: `AP@300` and so on.

    See `evaluate_detections`; the names are those of `AT_LIMIT` that the data's protocol has.
    """
    precision, recall = _arrays(dataset, _table(results).best_of_images(limit), evaluator, kind, (limit,))
    scores = {**_precisions(precision, dataset), "AR": _mean(recall[..., 0, -1])}
    return {f"{name}@{limit}": scores[name] for name in AT_LIMIT if name in scores}


def _table(results: Results) -> DetectionTable:
    return results if isinstance(results, DetectionTable) else DetectionTable.of(results)


def _arrays(
    dataset: CocoDataset, table: DetectionTable, evaluator: str, kind: Kind, limits: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall (see `run_evaluator`) with these numbers of detections per image and class."""
    small, large = dataset.area_bounds
    ranges = {"all": [0.0, 1e10], "small": [0.0, small], "medium": [small, large], "large": [large, 1e10]}
    truth = dataset.ground_truth
    if not is_federated(truth):
        return run_evaluator(evaluator, truth, table, Protocol(ranges, limits, kind))
    if trouble := evaluator_trouble("lvis", evaluator):
        raise UserError(trouble)
    precisions, recalls = [], []
    for part in parts_of(truth, table):
        if isinstance(part, int):
            precision, recall = (
                np.full((*shape, part, len(ranges), len(limits)), -1.0) for shape in ((10, 101), (10,))
            )
        else:
            precision, recall = run_evaluator(evaluator, *part, Protocol(ranges, limits, kind, is_federated=True))
        precisions.append(precision)
        recalls.append(recall)
    return np.concatenate(precisions, 2), np.concatenate(recalls, 1)


def _precisions(precision: np.ndarray, dataset: CocoDataset) -> dict[str, float | None]:
    """Means of what is defined of precision at the highest detection limit.

    Over all IoU thresholds, at 0.5 and 0.75, by size, and over LVIS's rare, common and frequent classes.
    """
    means = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[0, ..., 0, -1]),
        "AP75": _mean(precision[5, ..., 0, -1]),
    }
    means |= {name: _mean(precision[..., area, -1]) for area, name in enumerate(("APS", "APM", "APL"), 1)}
    if is_federated(dataset.ground_truth):
        groups = by_frequency(precision, dataset.ground_truth)
        means |= {name: _mean(group[..., 0, -1]) for name, group in groups.items()}
    return means


def _mean(values: np.ndarray) -> float | None:
    """Percent; None where nothing is defined."""
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else None
