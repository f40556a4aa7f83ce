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
        dataset = local_dataset(config)
        truth = by_image(dataset, dataset.ground_truth["annotations"])
        models = [_model(label, key, dataset, truth, found[key], score) for label, key in trials]
        last = models[-1]
        worst_of = with_all(worst(truth, last), truth, models)
        groups = [("Worst images" if len(models) == 1 else f"Worst images of {last.label}", worst_of)]
        if len(models) > 1:
            groups.insert(0, ("Images that changed most", changed(truth, models)))
        gallery = to_gallery(dataset, truth, models, groups, anchor)
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if isinstance(error, UserError | OSError) else "they are damaged"
        return ShownImages(missing=f"no pictures of the detections of {trials[-1][1]}: {reason}")
    told = [f"{own.label}: trial {own.trial}, detections from a score of {own.score:g} on" for own in models]
    why = "the best F1 of the split" if score is None else "as asked"
    words = f"{'; '.join(told)} ({why}). Dashed: missed, or without an object; point at a box for its name."
    return ShownImages(gallery, words if gallery else "No image has a mistake.", "", objects(dataset))


def _detections(store: RunStore, key: str) -> list[Row]:
    data = read_bytes(store.dir(key) / "detections.json")
    if data is None:
        raise UserError(f"the detections of {key} are not in the store, only its record")
    return list(json.loads(data))


def _model(
    label: str, key: str, dataset: CocoDataset, truth: Mapping[int, Sequence[Row]], rows: list[Row], score: float | None
) -> Model:
    detections = by_image(dataset, judged(dataset, rows))
    best = best_threshold(truth, detections) if score is None else None
    chosen = score if score is not None else SCORE if best is None else best.score
    return Model(label, key, detections, chosen)


def judged(dataset: CocoDataset, rows: Sequence[Row]) -> Sequence[Row]:
    """Detections that can be right or wrong: on LVIS data not those of classes that an image is not annotated for."""
    if not is_federated(dataset.ground_truth):
        return rows
    pairs = np.array([(row["image_id"], row["category_id"]) for row in rows], np.int64).reshape(-1, 2).T
    counts = Judged(dataset.ground_truth).counts(*pairs)
    return [row for row, is_counted in zip(rows, counts.tolist(), strict=True) if is_counted]


def by_image(dataset: CocoDataset, rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Rows by image id, with an entry for every image of the split.

    Raises:
        KeyError: a row is on no image of the split.
    """
    found: dict[int, list[Row]] = {image_id: [] for image_id in dataset.image_ids}
    for row in rows:
        found[row["image_id"]].append(row)
    return found


def objects(dataset: CocoDataset) -> dict[str, int]:
    """Objects of each class, without crowd regions, in the order of the category ids."""
    names = dict(zip(dataset.category_ids, dataset.category_names, strict=True))
    counts = Counter(row["category_id"] for row in dataset.ground_truth["annotations"] if not row["iscrowd"])
    return {name: counts[category] for category, name in names.items()}


def local_dataset(config: DataConfig) -> CocoDataset:
    """The validation split, if it is here: nothing is generated for a picture.

    Raises:
        UserError: it is not here, or not sound.
    """
    from harness.data import open_dataset
    from harness.data.digits import digits_folder

    if config.path is None and not digits_folder(config.digits).is_dir():
        raise UserError("the digit scenes are not in the cache; a training writes them")
    return open_dataset(config, "val", progress=lambda line: None)
