"""AP on resampled validation images: how far a number depends on which images happened to be in the split.

Each image's detections are matched with its ground truth once; every resample then only counts each image as often as
it was drawn. The same draws for two trials make their difference a paired one. It says nothing about another seed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.federated import Judged, is_federated
from harness.spec.detection_metrics import STANDARD_LIMIT, is_detection_metric

if TYPE_CHECKING:
    from harness.data.coco import CocoDataset

NUM_RESAMPLES = 500
RECALLS = np.linspace(0.0, 1.0, 101)
METRICS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # which of the 10 IoU thresholds


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class on all images, best score first."""

    image: np.ndarray  # [N] index of the image
    hit: np.ndarray  # [10, N] true positive at each IoU threshold
    miss: np.ndarray  # [10, N] false positive; neither: a crowd covers it
    num_objects: np.ndarray  # [I] ground truths of each image, without crowds


def thresholds(metric: str) -> slice | None:
    """Which of the 10 IoU thresholds a metric is the mean over, such as `AP50@300`; None: it is not resampled."""
    return METRICS.get(metric.partition("@")[0]) if is_detection_metric(metric) else None


def match_images(
    dataset: CocoDataset, results: Sequence[dict[str, Any]], limit: int = STANDARD_LIMIT
) -> list[ClassMatches]:
    """Match detections (COCO results format) with the ground truth, by COCO's rules for boxes of any size.

    On LVIS data what is detected of classes that an image is not annotated for is left out, and what has no counterpart
    among those that are annotated in part is neither right nor wrong.

    Args:
        dataset: the validation split.
        results: of one trial.
        limit: how many detections count of each image and class.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = dataset.ground_truth
    judged = Judged(truth) if is_federated(truth) else None
    if judged is not None:
        pairs = np.array([(row["image_id"], row["category_id"]) for row in results], np.int64).reshape(-1, 2).T
        results = [results[row] for row in np.flatnonzero(judged.counts(*pairs)).tolist()]
    found = [
        {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for number, result in enumerate(results, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for annotations in ([dict(row) for row in truth["annotations"]], found):
            side = COCO()
            side.dataset = {**truth, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        run = COCOeval(*sides, iouType="bbox")
        run.params.areaRng, run.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        run.params.maxDets = [limit]
        run.evaluate()
    image_ids, categories = np.array(run.params.imgIds), run.params.catIds
    images = len(image_ids)
    classes = [_of_class(run.evalImgs[start : start + images], images) for start in range(0, len(run.evalImgs), images)]
    if judged is None:
        return classes
    return [
        replace(own, miss=own.miss & ~judged.is_partly(image_ids[own.image], np.full(len(own.image), category)))
        for own, category in zip(classes, categories, strict=True)
    ]


def _of_class(found: Sequence[dict[str, Any] | None], images: int) -> ClassMatches:
    there = [(index, own) for index, own in enumerate(found) if own is not None]
    objects = np.zeros(images, np.int64)
    for index, own in there:
        objects[index] = np.count_nonzero(np.asarray(own["gtIgnore"]) == 0)
    scores = np.concatenate([np.asarray(own["dtScores"], np.float64) for _, own in there] or [np.zeros(0)])
    order = np.argsort(-scores, kind="mergesort")  # of equal scores the earlier image first, as the evaluators do
    image = np.concatenate([np.full(len(own["dtScores"]), index) for index, own in there] or [np.zeros(0, int)])
    matched = np.concatenate([own["dtMatches"] for _, own in there] or [np.zeros((10, 0))], 1)[:, order] > 0
    counted = np.concatenate([own["dtIgnore"] for _, own in there] or [np.zeros((10, 0))], 1)[:, order] == 0
    return ClassMatches(image[order].astype(np.int64), matched & counted, ~matched & counted, objects)


def average_precision(classes: Sequence[ClassMatches], counts: np.ndarray) -> np.ndarray:
    """AP in percent at each of the 10 IoU thresholds, image i counted `counts[i]` times; [10], nan without objects.

    Args:
        classes: of one trial.
        counts: [I] whole numbers.
    """
    of_classes = []
    for own in classes:
        objects = int(counts @ own.num_objects)
        if objects == 0:
            continue
        weight = counts[own.image]
        hits = np.cumsum(own.hit * weight, 1)
        misses = np.cumsum(own.miss * weight, 1)
        precision = hits / np.maximum(hits + misses, np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        padded = np.concatenate([precision, np.zeros((len(precision), 1))], 1)  # a recall never reached counts as 0
        sampled = [
            padded[row, np.searchsorted(hits[row] / objects, RECALLS, side="left")].mean() for row in range(len(hits))
        ]
        of_classes.append(sampled)
    return 100 * np.mean(of_classes, 0) if of_classes else np.full(10, np.nan)


def resampled_ap(classes: Sequence[ClassMatches], num_images: int, resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """AP at each IoU threshold on images drawn with replacement; the draws depend on the number of images alone.

    Returns:
        [resamples, 10] in percent.
    """
    draws = np.random.default_rng(0).multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)
    return np.stack([average_precision(classes, counts) for counts in draws])


def interval(values: np.ndarray, baseline: np.ndarray, metric: str, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of `values - baseline`, in points of AP.

    Args:
        values: [resamples, 10] in percent, `resampled_ap` of one trial.
        baseline: the same of the trial that it is compared with.
        metric: one that has `thresholds`.
        confidence: the share of resamples inside.
    """
    chosen = thresholds(metric)
    assert chosen is not None, metric
    difference = values[:, chosen].mean(1) - baseline[:, chosen].mean(1)
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(difference, [tail, 100 - tail])
    return float(low), float(high)
