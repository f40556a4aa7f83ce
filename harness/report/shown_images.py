"""From trials in a store to the gallery of a page: their detections, the images of their split, and what was chosen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.federated import Judged, is_federated
from harness.errors import UserError
from harness.figures.matching import SCORE, best_threshold
from harness.files import read_bytes
from harness.report.gallery import Model, changed, to_gallery, with_all, worst
from harness.store.results import RunStore

if TYPE_CHECKING:
    from harness.config import DataConfig
    from harness.data.coco import CocoDataset

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ShownImages:
    """A gallery, or why there is none."""

    gallery: dict[str, Any] | None = None
    words: str = ""  # which trials, at which scores
    missing: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)  # objects by class, in the order of the category ids


def shown_images(
    trials: Sequence[tuple[str, str]],
    config: DataConfig,
    store: RunStore,
    score: float | None = None,
    anchor: str = "trial",
) -> ShownImages:
    """The gallery of one trial, or of two of which the first is the baseline.

    Args:
        trials: label and id.
        config: of their data.
        store: where their detections are.
        score: lowest score of a detection; None takes, for each, that with the best F1 of the split.
        anchor: of the section.
    """
    try:
        found = {key: _detections(store, key) for _, key in trials}
        dataset = validation_split(config)
        truth = rows_by_image(dataset, ())[0]
        models, reasons = zip(*(_model(label, key, dataset, found[key], score) for label, key in trials), strict=True)
        last = models[-1]
        worst_of = with_all(worst(truth, last), truth, models)
        groups = [("Worst images" if len(models) == 1 else f"Worst images of {last.label}", worst_of)]
        if len(models) > 1:
            groups.insert(0, ("Images that changed most", changed(truth, models)))
        gallery = to_gallery(dataset, truth, models, groups, anchor)
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if isinstance(error, UserError | OSError) else "they are damaged"
        return ShownImages(missing=f"no pictures of the detections of {trials[-1][1]}: {reason}")
    told = [
        f"{own.label}: trial {own.trial}, detections from a score of {own.score:g} on ({why})"
        for own, why in zip(models, reasons, strict=True)
    ]
    words = f"{'; '.join(told)}. Dashed: missed, or without an object; point at a box for its name."
    return ShownImages(gallery, words if gallery else "No image has a mistake.", "", objects(dataset))


def _detections(store: RunStore, key: str) -> list[Row]:
    data = read_bytes(store.dir(key) / "detections.json")
    if data is None:
        raise UserError(f"the detections of {key} are not in the store, only its record")
    return list(json.loads(data))


def _model(label: str, key: str, dataset: CocoDataset, rows: list[Row], score: float | None) -> tuple[Model, str]:
    """A trial's detections from a score on, and why from that one."""
    truth, detections = rows_by_image(dataset, rows)
    if score is not None:
        return Model(label, key, detections, score), "as asked"
    best = best_threshold(truth, detections)
    if best is None:
        return Model(label, key, detections, SCORE), "nothing is right at any score"
    return Model(label, key, detections, best.score), "the best F1 of the split"


def rows_by_image(dataset: CocoDataset, detections: Sequence[Row]) -> tuple[dict[int, list[Row]], dict[int, list[Row]]]:
    """Annotations and detections by the ids of all images; of detections those that can be right or wrong.

    On LVIS data those of classes that an image is not annotated for cannot. One of a class of which only some objects
    are annotated there has a true `in_part`: it can be right, and is never wrong.

    Raises:
        KeyError: a detection is on no image of the split.
    """
    if is_federated(dataset.ground_truth):
        pairs = np.array([(row["image_id"], row["category_id"]) for row in detections], np.int64).reshape(-1, 2).T
        judged = Judged(dataset.ground_truth)
        marks = zip(detections, judged.counts(*pairs).tolist(), judged.is_partly(*pairs).tolist(), strict=True)
        detections = [{**row, "in_part": in_part} for row, is_counted, in_part in marks if is_counted]
    truth: dict[int, list[Row]] = {image_id: [] for image_id in dataset.image_ids}
    found: dict[int, list[Row]] = {image_id: [] for image_id in dataset.image_ids}
    for rows, by_image in ((dataset.ground_truth["annotations"], truth), (detections, found)):
        for row in rows:
            by_image[row["image_id"]].append(row)
    return truth, found


def objects(dataset: CocoDataset) -> dict[str, int]:
    """Objects of each class, without crowd regions, in the order of the category ids."""
    names = dict(zip(dataset.category_ids, dataset.category_names, strict=True))
    counts = Counter(row["category_id"] for row in dataset.ground_truth["annotations"] if not row["iscrowd"])
    return {name: counts[category] for category, name in names.items()}


def validation_split(config: DataConfig) -> CocoDataset:
    """The validation split, if it is here: nothing is generated for a picture.

    Raises:
        UserError: it is not here, or not sound.
    """
    from harness.data import open_dataset
    from harness.data.digits import digits_folder

    if config.path is None and not digits_folder(config.digits).is_dir():
        raise UserError("the digit scenes are not in the cache; a training writes them")
    return open_dataset(config, "val", progress=lambda line: None)
