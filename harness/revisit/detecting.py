"""`codetr detect`: a trained detector looks at image files; what it finds is drawn on them and written as JSON."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from harness.data import has_changed
from harness.data.categories import Categories
from harness.data.disk import shown
from harness.data.photographs import Named, Photograph, Photographs, image_files
from harness.data.ticker import Ticker
from harness.errors import UserError
from harness.figures.matching import SCORE, best_threshold
from harness.files import exists, is_folder, to_json, write_atomic
from harness.mistakes.thresholds import Threshold
from harness.revisit.asked import DECODER, branches_of, detector
from harness.revisit.classes import classes_by_id, named_classes
from harness.revisit.opened import predicting
from harness.revisit.trained import Found, build
from harness.spec.error_metrics import BEST, THRESHOLD
from harness.store.results import RunStore
from harness.system.precision import computing_in
from harness.trial.build import choose_device
from harness.trial.detections import DetectionTable, to_results
from harness.trial.evaluate import main_branch, named
from model.detector import Detector

RESULTS = "detections.json"
LONGEST_STEM = 240  # bytes of a picture's name, a number and its ending to come; disks take 255
Say = Callable[[str], None]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """What a command line asks for."""

    found: Found
    files: list[Named]
    pictures: list[str]  # names of the files that are drawn
    branch: str
    out: Path
    threshold: float | None  # None: as `chosen_threshold` says
    data: str | None
    device: str


@dataclass
class Done:
    """What became of the images, as rows of COCO's data sets."""

    images: Rows = field(default_factory=list)
    annotations: Rows = field(default_factory=list)
    broken: int = 0


def wanted(args: argparse.Namespace, store: RunStore) -> Wanted:
    """What is asked for; mistakes are told before anything is computed.

    Raises:
        UserError: an option or a name is mistaken.
    """
    found = detector(args, store)
    files = image_files(args.images)
    [branch] = branches_of([args.branch], (DECODER, *found.config.model.head_names), "--branch")
    out = Path(args.out) if args.out else Path("detections") / found.name
    if exists(out) and not is_folder(out):
        raise UserError(f"--out {out}: is a file, and no folder")
    pictures = _picture_names(files)
    inputs = {file.path.resolve() for file in files}
    if over := next((name for name in pictures if (out / name).resolve() in inputs), None):
        raise UserError(f"--out {out}: {over} there is an image that is to be read; name another folder")
    return Wanted(found, files, pictures, branch, out, args.threshold, args.data, args.device)


def _picture_names(files: list[Named]) -> list[str]:
    """A PNG for each file, named after it; the second of a name has a number, and a long name is cut."""
    names: dict[str, None] = {}
    for file in files:
        folder, _, last = file.stem.rpartition("/")
        short = os.fsencode(last)[:LONGEST_STEM].decode("utf-8", "ignore")
        stem = file.stem if len(os.fsencode(last)) <= LONGEST_STEM else os.path.join(folder, short)
        tries = chain([stem], (f"{stem}-{number}" for number in count(2)))
        names[next(own for one in tries if (own := f"{one}.png") not in names)] = None
    return list(names)


def chosen_threshold(asked: Wanted, store: RunStore) -> tuple[float, str]:
    """The lowest score that is shown, and why it is that.

    Of a trial it is that with the best F1 on its own validation split: its record has it of every branch that was
    evaluated; an older one's follows from the detections that it left, if they are of this branch and the split is
    here.
    """
    if asked.threshold is not None:
        return asked.threshold, "as asked"
    found, metrics = asked.found, asked.found.record.get("metrics") or {}
    score, f1 = named(asked.branch, dict.fromkeys((THRESHOLD, BEST)))
    if score in metrics:
        return _best_of(metrics[score], (metrics.get(f1) or 0.0) / 100)
    if found.reading is not None or asked.branch != main_branch(found.config.evaluate):
        return SCORE, "no threshold is known of it; --threshold gives one"
    try:
        if has_changed(found.config.data, found.record.get("fingerprint")):
            return SCORE, "its validation split is another one now; --threshold gives one"
        best = _best(found, store)
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return SCORE, "its detections or its validation split are not here; --threshold gives one"
    return _best_of(None, 0.0) if best is None else _best_of(best.score, best.f1)


def _best_of(score: float | None, f1: float) -> tuple[float, str]:
    """A threshold, or what stands in for one that is undefined, and its F1 in words."""
    if score is None:
        return SCORE, "no detection of its validation split is right at any score"
    return score, f"the best F1 of its validation split, {f1:.2f}"


def _best(found: Found, store: RunStore) -> Threshold | None:
    """That of the detections that the trial left."""
    from harness.report.shown_images import left_by, rows_by_image, validation_split

    left = left_by(found.name, found.name, store)
    return best_threshold(*rows_by_image(validation_split(found.config.data, left.fingerprint), left.rows))


def detect_files(asked: Wanted, store: RunStore, say: Say) -> tuple[Done, str]:
    """Look at every image, draw what is found, and write it; returns what was done, and the threshold in words.

    A picture is written as soon as its image is done, `detections.json` at the end; each whole or not at all.

    Raises:
        UserError: the weights do not fit, or no image could be read.
        StorageError: a file could not be written.
    """
    device = choose_device(asked.device)
    found, of_ids = asked.found, classes_by_id(asked.found, asked.data)
    made = build(found, device, category_ids=of_ids.ids if of_ids else (), say=say)
    classes = of_ids or named_classes(found, made.detector.num_classes, asked.data, say)
    threshold, why = chosen_threshold(asked, store)
    photographs = Photographs(asked.files, found.config.data, made.detector.size_divisor)
    precision = found.config.evaluate.computes_in(found.config.train)
    ticker, done = Ticker(say, f"{found.name}: images", len(asked.files)), Done()
    look = _Look(made.detector, device, asked.branch, found.max_detections, classes, threshold)
    with predicting(found), computing_in(precision, device):
        for number, (file, image) in enumerate(photographs.each(), 1):
            if isinstance(image, str):
                say(f"error: {shown(file.name)} {image}")
                done.broken += 1
            else:
                if image.is_turned:
                    say(f"note: {shown(file.name)} has an EXIF orientation: boxes are of its pixels as stored")
                _keep(asked, done, number, file, image, look)
            ticker.at(number)
    if not done.images:
        raise UserError(f"none of the {len(asked.files)} images could be read; nothing was written")
    content = {
        "schema": 2,
        "detector": {"name": found.name, "weights": str(found.weights), "branch": asked.branch},
        "threshold": {"score": threshold, "why": why},
        "categories": classes.rows(),
        "images": done.images,
        "annotations": done.annotations,
    }
    write_atomic(asked.out / RESULTS, to_json(content) + "\n")
    return done, f"score ≥ {threshold:g} ({why})"


@dataclass(frozen=True)
class _Look:
    """A detector and what of its detections counts."""

    detector: Detector
    device: Any
    branch: str
    limit: int
    classes: Categories
    threshold: float

    @property
    def names(self) -> dict[int, str]:
        """By category id."""
        return dict(zip(*self.classes, strict=True))

    def __call__(self, image: Photograph) -> Rows:
        """Rows of COCO's annotations with scores and the names of classes, best first; their ids count from 1."""
        batch = image.batch.to(self.device)
        found = self.detector.detect_branches(batch, (self.branch,), self.limit)[self.branch]
        names = self.names
        rows = [row for row in to_results(batch, found, self.classes.ids) if row["score"] >= self.threshold]
        table = DetectionTable.of(rows)
        annotations = table.annotations(with_masks=table.masks is not None)
        return [{**row, "category_name": names[row["category_id"]]} for row in annotations]


def _keep(asked: Wanted, done: Done, number: int, file: Named, image: Photograph, look: _Look) -> None:
    """Draw what is found on an image, and take it down."""
    from harness.figures.pictures import draw_picture
    from harness.figures.style import save_figure

    (height, width), rows = image.pixels.shape[:2], look(image)
    picture = asked.pictures[number - 1]
    figure, dots = draw_picture(image.pixels, rows, look.names)
    save_figure(figure, asked.out / picture.removesuffix(".png"), ("png",), dots)
    facts = {"id": number, "file_name": file.name, "width": width, "height": height, "picture": picture}
    done.images.append(facts)
    before = len(done.annotations)
    done.annotations += [{**row, "id": before + row["id"], "image_id": number, "file_name": file.name} for row in rows]
