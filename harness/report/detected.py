"""What a detector finds: AP of each class, the threshold that suits it, its worst images, and a sheet of them.

Numbers by class are in the records. All else needs the detections that a trial left in its folder, and its images; what
is not here is said in a line.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.figures.matching import SCORE, Matches, best_threshold, worst_images
from harness.mistakes.thresholds import Threshold
from harness.report.by_class import class_columns, object_counts, per_class_of
from harness.report.shown_images import (
    FAILURES,
    ShownImages,
    left_by,
    no_pictures,
    objects,
    rows_by_image,
    shown_images,
    validation_split,
)
from harness.report.shown_trials import Chosen, OnData, best_first, by_data_set, chosen_trial, plain
from harness.store.results import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.data.coco import CocoDataset
    from harness.figures.detections import Scene
    from harness.spec.grid import Grid

Record = Mapping[str, Any]
NUM_SHOWN = 6  # images on the sheet
NUM_LISTED = 20  # images in the list


@dataclass(frozen=True)
class Classes:
    """AP by class: a line for each, a number for each row of the grid that has finished trials (mean over seeds)."""

    rows: tuple[str, ...]  # of the grid
    lines: tuple[tuple[str, int | None, tuple[float | None, ...]], ...]  # class, objects of the split, AP in percent


@dataclass(frozen=True)
class WorstImage:
    """An image and how it came out."""

    image_id: int
    file_name: str
    matches: Matches

    @property
    def num_objects(self) -> int:
        """Objects that are no crowd regions."""
        return len(self.matches.true_positives) + len(self.matches.false_negatives)


@dataclass(frozen=True)
class Sheet:
    """The worst images of one trial, at one score."""

    score: float
    why: str  # this score
    worst: tuple[WorstImage, ...]
    scenes: tuple[Scene, ...]  # of the first of them
    categories: Mapping[int, str]

    def draw(self) -> Figure:
        """The sheet as a figure."""
        from harness.figures.detections import draw_detections

        return draw_detections(self.scenes, self.categories, self.score, self.why)


@dataclass(frozen=True)
class BestScores:
    """By class the score with the best F1 in one trial, with its precision and recall in percent."""

    trial: str  # its id
    row: str
    seed: int
    classes: Mapping[str, tuple[float, float, float]]  # those of which anything is right at any score


@dataclass(frozen=True)
class Detected:
    """What a page says of one grid's detections on one data set."""

    classes: Classes
    data: str = ""  # the name of the data set, where the grid has several
    trial: str = ""  # id of the trial whose images are shown
    row: str = ""
    seed: int | None = None
    sheet: Sheet | None = None
    missing: str = ""  # why there is no sheet
    images: ShownImages | None = None  # the gallery, beside the baseline's detections where there are any
    best: BestScores | None = None


def detected(
    grid: Grid, records: Sequence[Record], store: RunStore, score: float | None = None
) -> tuple[Detected, ...]:
    """What the finished trials of `grid` find on each of its data sets; none of one whose records tell of no classes.

    The sheet is that of the best trial there (see `chosen_trial`).

    Args:
        grid: its trials' configurations name the data.
        records: shaped like result.json.
        store: where detections are.
        score: lowest score of a detection on the sheet; None takes that with the best F1 of the split.
    """
    found = (_on_data(grid, here, store, score) for here in by_data_set(grid, records))
    return tuple(one for one in found if one is not None)


def _on_data(grid: Grid, here: OnData, store: RunStore, score: float | None) -> Detected | None:
    classes = _classes({label: [record for _, record in own] for label, own in here.rows.items()}, store)
    if classes is None:
        return None
    ordered = [(label, seed, record) for label, own in best_first(grid, here.rows) for seed, record in own]
    found = Detected(classes, here.name, best=_best_scores(ordered, store))
    chosen = chosen_trial(grid, here, store)
    if chosen is None:
        missing = "no pictures: the detections of these trials are not in the store, only their records"
        return replace(found, missing=missing)
    found = replace(found, trial=chosen.trial, row=chosen.label, seed=chosen.seed)
    return _with_images(found, chosen, grid, store, score)


def _with_images(found: Detected, chosen: Chosen, grid: Grid, store: RunStore, score: float | None) -> Detected:
    """With the sheet, the gallery, and the classes in the order of the data set; or with why they are not there."""
    try:
        own = left_by(chosen.label, chosen.trial, store)
        dataset = validation_split(grid.trial(chosen.trial).config.data, own.fingerprint)
        sheet = sheet_of(dataset, own.rows, score, own.best)
    except FAILURES as error:
        return replace(found, missing=no_pictures(chosen.trial, error))
    counts = objects(dataset)
    known = {name: values for name, _, values in found.classes.lines}
    order = [name for name in counts if name in known] + [name for name in known if name not in counts]
    lines = tuple((name, counts.get(name), known[name]) for name in order)
    anchor = plain("-".join(filter(None, (grid.name, found.data))))
    images = shown_images(own, dataset, store, score, anchor, chosen.baseline)
    images = replace(images, missing=images.missing or chosen.why_alone)
    return replace(found, classes=replace(found.classes, lines=lines), sheet=sheet, images=images)


def _classes(rows: Mapping[str, Sequence[Record]], store: RunStore) -> Classes | None:
    own = {label: [per_class_of(record, store) for record in records] for label, records in rows.items()}
    names = list(dict.fromkeys(name for seeds in own.values() for seed in seeds for name in seed))
    if not names:
        return None
    counts = next((found for records in rows.values() for one in records if (found := object_counts(one, store))), {})
    lines = []
    for name in names:
        values: list[float | None] = []
        for seeds in own.values():
            there = [value for seed in seeds if (value := seed.get(name)) is not None]
            values.append(statistics.fmean(there) if there else None)
        lines.append((name, counts.get(name), tuple(values)))
    return Classes(tuple(own), tuple(lines))


def _best_scores(ordered: Sequence[tuple[str, int, Record]], store: RunStore) -> BestScores | None:
    """Those of the first trial that has them."""
    for label, seed, record in ordered:
        if columns := class_columns(record, store):
            lines = zip(*(columns[name] for name in ("class", "threshold", "precision", "recall")), strict=True)
            found = {name: (score, precision, recall) for name, score, precision, recall in lines if score is not None}
            return BestScores(str(record["trial_id"]), label, seed, found)
    return None


def sheet_of(
    dataset: CocoDataset, detections: Sequence[Record], score: float | None = None, best: Threshold | None = None
) -> Sheet:
    """The worst images of a split and what was detected on them.

    Args:
        dataset: the split that was evaluated.
        detections: in COCO's results format.
        score: lowest score of a detection; None takes that with the best F1 over the split.
        best: that score, where a record has it; None finds it.

    Raises:
        UserError: an image cannot be read.
        KeyError: a detection is on no image of the split.
    """
    from harness.figures.detections import Scene

    truth, found = rows_by_image(dataset, detections)
    chosen, why = _chosen_score(best or best_threshold(truth, found), score)
    index = {image_id: number for number, image_id in enumerate(dataset.image_ids)}
    names = dataset.file_names
    worst = tuple(
        WorstImage(image_id, names[index[image_id]], matches)
        for image_id, matches in worst_images(truth, found, NUM_LISTED, chosen).items()
    )
    scenes = [
        Scene(
            f"image {own.image_id}",
            dataset.load_image(index[own.image_id]),
            truth[own.image_id],
            found[own.image_id],
            own.file_name,
        )
        for own in worst[:NUM_SHOWN]
    ]
    categories = dict(zip(dataset.category_ids, dataset.category_names, strict=True))
    return Sheet(chosen, why, worst, tuple(scenes), categories)


def _chosen_score(best: Threshold | None, score: float | None) -> tuple[float, str]:
    """The score of the sheet, and why it is that."""
    if best is None:
        return SCORE if score is None else score, "no detection of the split is right at any score"
    words = f"F1 {best.f1:.2f}: precision {best.precision:.2f}, recall {best.recall:.2f}"
    if score is None:
        return best.score, f"best of the split, {words}"
    return score, f"as asked; best of the split is {best.score:g}, {words}"
