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
from harness.mistakes.thresholds import Threshold
from harness.report.gallery import Model, changed, to_gallery, with_all, worst
from harness.report.shown_trials import alone
from harness.spec.detection_metrics import STANDARD_LIMITS, best_of_images
from harness.spec.error_metrics import BEST_OTHERS
from harness.store.results import DETECTIONS, RunStore

if TYPE_CHECKING:
    from harness.config import DataConfig
    from harness.data.coco import CocoDataset

Row = Mapping[str, Any]
DECODER = "decoder"  # whose detections a trial leaves where it evaluates several branches
FAILURES = (UserError, OSError, ValueError, KeyError, TypeError, RecursionError)  # of reading detections and images


@dataclass(frozen=True)
class ShownImages:
    """A gallery, or why there is none."""

    gallery: dict[str, Any] | None = None
    words: str = ""  # which trials, at which scores
    missing: str = ""  # why there is none, or none beside the baseline's detections
    counts: Mapping[str, int] = field(default_factory=dict)  # objects by class, in the order of the category ids


@dataclass(frozen=True)
class Left:
    """What a finished trial left, and what its record says of it."""

    label: str
    trial: str
    rows: list[Row]  # detections in COCO's results format
    best: Threshold | None  # see `recorded_threshold`
    fingerprint: str  # of the data that it was evaluated on; "" where its record has none


def left_by(label: str, key: str, store: RunStore) -> Left:
    """The detections that a trial left.

    Raises:
        UserError: there are none.
        ValueError, KeyError, TypeError, RecursionError: they are damaged.
    """
    data = read_bytes(store.dir(key) / DETECTIONS)
    if data is None:
        raise UserError(f"the detections of {key} are not in the store, only its record")
    rows = list(json.loads(data))
    numbers = [(row["image_id"], row["category_id"], *row["bbox"], row["score"]) for row in rows]
    np.array(numbers, float).reshape(-1, 7)  # what is no such table is told of here, and not while it is drawn
    record = store.read(key) or {}
    return Left(label, key, rows, recorded_threshold(record), str(record.get("fingerprint") or ""))


def recorded_threshold(record: Row) -> Threshold | None:
    """The score with the best F1 of the branch whose detections a trial left; None where no error was measured."""
    branches = ((record.get("config") or {}).get("evaluate") or {}).get("branches") or [DECODER]
    prefix = "" if DECODER in branches else f"{branches[0]}/"
    metrics = record.get("metrics") or {}
    found = [float(number) for name in BEST_OTHERS if (number := metrics.get(prefix + name)) is not None]
    if len(found) < len(BEST_OTHERS):
        return None
    score, precision, recall = found
    return Threshold(score, precision / 100, recall / 100)


def images_of_trial(label: str, key: str, config: DataConfig, store: RunStore, score: float | None) -> ShownImages:
    """The gallery of one trial alone; see `shown_images`."""
    try:
        own = left_by(label, key, store)
        dataset = validation_split(config, own.fingerprint)
    except FAILURES as error:
        return ShownImages(missing=no_pictures(key, error))
    return shown_images(own, dataset, store, score)


def shown_images(
    own: Left,
    dataset: CocoDataset,
    store: RunStore,
    score: float | None = None,
    anchor: str = "trial",
    baseline: tuple[str, str] | None = None,
) -> ShownImages:
    """The gallery of a trial, beside what its baseline detected where that can be read.

    Args:
        own: the trial.
        dataset: its validation split.
        store: where the baseline's detections are.
        score: lowest score of a detection; None takes, for each, that with the best F1 of the split.
        anchor: of the section.
        baseline: label and id of the other trial.
    """
    beside, missing = [], ""
    try:
        beside = [_model(left_by(*baseline, store), dataset, score)] if baseline else []
    except FAILURES as error:
        assert baseline is not None
        missing = alone(baseline[0], told(error, f"the detections of {baseline[1]}"))
    try:
        models, reasons = zip(*beside, _model(own, dataset, score), strict=True)
        truth, last = rows_by_image(dataset, ())[0], models[-1]
        worst_of = with_all(worst(truth, last), truth, models)
        groups = [("Worst images" if len(models) == 1 else f"Worst images of {last.label}", worst_of)]
        if len(models) > 1:
            groups.insert(0, ("Images that changed most", changed(truth, models)))
        gallery = to_gallery(dataset, truth, models, groups, anchor)
    except FAILURES as error:
        return ShownImages(missing=no_pictures(own.trial, error))
    from_where = [
        f"{model.label}: trial {model.trial}, detections from a score of {model.score:g} on ({why})"
        for model, why in zip(models, reasons, strict=True)
    ]
    words = f"{'; '.join(from_where)}. Dashed: missed, or without an object; point at a box for its name."
    return ShownImages(gallery, words if gallery else "No image has a mistake.", missing, objects(dataset))


def no_pictures(key: str, error: BaseException) -> str:
    """Why a trial's detections are not shown, in a line; `error` is one of `FAILURES`."""
    return f"no pictures of the detections of {key}: {told(error, 'they')}"


def told(error: BaseException, detections: str) -> str:
    """The first line of what a person is told of; otherwise that these detections are damaged."""
    is_told = isinstance(error, UserError | OSError)
    return str(error).strip().splitlines()[0] if is_told else f"{detections} are damaged"


def _model(left: Left, dataset: CocoDataset, score: float | None) -> tuple[Model, str]:
    """A trial's detections from a score on, and why from that one."""
    truth, detections = rows_by_image(dataset, left.rows)
    if score is not None:
        return Model(left.label, left.trial, detections, score), "as asked"
    best = left.best or best_threshold(truth, detections)
    if best is None:
        return Model(left.label, left.trial, detections, SCORE), "nothing is right at any score"
    return Model(left.label, left.trial, detections, best.score), "the best F1 of the split"


def rows_by_image(dataset: CocoDataset, detections: Sequence[Row]) -> tuple[dict[int, list[Row]], dict[int, list[Row]]]:
    """Annotations and detections by the ids of all images; of detections those that count, as for AP and its errors.

    These are the 100 best of an image, and 300 on LVIS data. There those of classes that an image is not annotated for
    cannot. One of a class of which only some objects are annotated there has a true `in_part`: it can be right, and is
    never wrong.

    Raises:
        KeyError: a detection is on no image of the split.
    """
    detections = best_of_images(detections, STANDARD_LIMITS[dataset.protocol])
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


def validation_split(config: DataConfig, evaluated: str) -> CocoDataset:
    """The validation split, if it is here as it was evaluated: nothing is generated for a picture.

    Args:
        config: of a trial's data.
        evaluated: see `check_content`.

    Raises:
        UserError: it is not here, not sound, or another one by now.
    """
    from harness.data import open_dataset
    from harness.data.digits import digits_folder

    check_content(config, evaluated)
    if config.path is None and not digits_folder(config.digits).is_dir():
        raise UserError("the digit scenes are not in the cache; a training writes them")
    return open_dataset(config, "val", progress=lambda line: None)


def check_content(config: DataConfig, evaluated: str) -> None:
    """Refuse data that are others by now: detections on them would be told of images that nobody looked at.

    Args:
        config: of a trial's data.
        evaluated: the fingerprint in its record; "" lets any data pass.

    Raises:
        UserError: in one line; or the data set is not here.
    """
    from harness.data import fingerprint, has_changed

    if has_changed(config, evaluated):
        where = "the generator of digit scenes makes" if config.path is None else f"{config.path} holds"
        raise UserError(
            f"{where} other data than the trial was evaluated on (fingerprint {fingerprint(config)} instead of "
            f"{evaluated})"
        )
