"""The images on which models differ most, and those that come out worst: what is there beside what each model finds.

Images are inside the page, once each, as JPEG; boxes are drawn over them by the browser (SVG). Classes can be chosen
without a script and without a network: a radio button for each, and style rules that hide what has none of it.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.figures.matching import Matches, match
from harness.system.words import quantity

if TYPE_CHECKING:
    from harness.data.coco import CocoDataset

Row = Mapping[str, Any]
NUM_WORST = NUM_CHANGED = 12
LONGEST_SIDE = 360  # pixels of an image on the page
MOST_CLASSES = 60  # to choose from
MOST_NAMES = 14  # of the boxes of a panel; the others tell theirs when they are pointed at
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # Okabe and Ito's


@dataclass(frozen=True)
class Model:
    """What one trial detected on a split."""

    label: str
    trial: str
    detections: Mapping[int, Sequence[Row]]  # by image id
    score: float  # lowest of a detection that counts


@dataclass(frozen=True)
class Entry:
    """An image that is shown."""

    image_id: int
    matches: tuple[Matches, ...]  # of each model


def worst(truth: Mapping[int, Sequence[Row]], model: Model, count: int = NUM_WORST) -> list[Entry]:
    """Images with the lowest F1 of one model, the worst first; none that is all right."""
    entries = [Entry(image, (_match(rows, model, image),)) for image, rows in truth.items()]
    entries.sort(key=lambda own: (own.matches[0].f1, -own.matches[0].num_errors, own.image_id))
    return [own for own in entries[:count] if own.matches[0].num_errors]


def changed(truth: Mapping[int, Sequence[Row]], models: Sequence[Model], count: int = NUM_CHANGED) -> list[Entry]:
    """Images whose F1 differs most between the first model and the last, in either direction; none that is equal."""
    entries = [Entry(image, tuple(_match(rows, model, image) for model in models)) for image, rows in truth.items()]
    entries.sort(key=lambda own: (-abs(_change(own)), -abs(_fewer_errors(own)), own.image_id))
    return [own for own in entries[:count] if _change(own) or _fewer_errors(own)]


def with_all(entries: Sequence[Entry], truth: Mapping[int, Sequence[Row]], models: Sequence[Model]) -> list[Entry]:
    """The same images with the matches of every model."""
    return [
        Entry(own.image_id, tuple(_match(truth[own.image_id], model, own.image_id) for model in models))
        for own in entries
    ]


def _match(rows: Sequence[Row], model: Model, image: int) -> Matches:
    return match(rows, model.detections.get(image, ()), model.score)


def _change(entry: Entry) -> float:
    return entry.matches[-1].f1 - entry.matches[0].f1


def _fewer_errors(entry: Entry) -> int:
    return entry.matches[0].num_errors - entry.matches[-1].num_errors


# ---- for the page -------------------------------------------------------------------------------------------------


def to_gallery(
    dataset: CocoDataset,
    truth: Mapping[int, Sequence[Row]],
    models: Sequence[Model],
    groups: Sequence[tuple[str, Sequence[Entry]]],
    anchor: str,
) -> dict[str, Any] | None:
    """What the page's template needs; None where there is nothing to show.

    Args:
        dataset: the split that was evaluated.
        truth: its annotations by image id.
        models: panels beside the ground truth, in this order.
        groups: headings with their images.
        anchor: of the section, so that two galleries of a page do not share names.

    Raises:
        UserError: an image cannot be read.
    """
    groups = [(title, entries) for title, entries in groups if entries]
    if not groups:
        return None
    names = dict(zip(dataset.category_ids, dataset.category_names, strict=True))
    place = {category: number for number, category in enumerate(names)}
    index = {image_id: number for number, image_id in enumerate(dataset.image_ids)}
    shown = list(dict.fromkeys(own.image_id for _, entries in groups for own in entries))
    seen: Counter[int] = Counter()
    figures: dict[int, dict[str, Any]] = {}
    for image_id in shown:
        image = dataset.load_image(index[image_id])
        rows = {image_id: truth[image_id]}
        panels = [
            _truth_panel(rows[image_id], with_all([Entry(image_id, ())], rows, models)[0], names, place, len(models))
        ]
        panels += [_model_panel(truth[image_id], model, image_id, names, place) for model in models]
        classes = sorted({box["class"] for panel in panels for box in panel["boxes"]})
        seen.update(classes)
        figures[image_id] = {
            "id": f"{anchor}-{image_id}",
            "file": dataset.file_names[index[image_id]],
            "data": _jpeg(image),
            "width": image.shape[1],
            "height": image.shape[0],
            "size": round(max(image.shape[:2]) / 30, 1),  # of letters
            "panels": panels,
            "classes": classes,
        }
    chosen = sorted((number for number, _ in seen.most_common(MOST_CLASSES)))
    titles = list(names.values())
    return {
        "anchor": anchor,
        "classes": [{"number": number, "name": titles[number], "count": seen[number]} for number in chosen],
        "images": list(figures.values()),
        "groups": [{"title": title, "items": [figures[own.image_id] for own in entries]} for title, entries in groups],
    }


def _jpeg(image: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=78)
    return base64.b64encode(stream.getvalue()).decode()


def _truth_panel(
    rows: Sequence[Row], entry: Entry, names: Mapping[int, str], place: Mapping[int, int], num_models: int
) -> dict[str, Any]:
    """The objects; what no model finds is dashed."""
    missed = set.intersection(*(set(own.false_negatives) for own in entry.matches)) if entry.matches else set()
    boxes = [
        _box(row, names, place, "crowd" if row.get("iscrowd") else "wrong" if number in missed else "", "")
        for number, row in enumerate(rows)
    ]
    number = sum(not row.get("iscrowd") for row in rows)
    words = quantity(number, "object")
    if missed and num_models > 1:
        words += f", {len(missed)} found by none"
    return {"title": "what is there", "words": words, "boxes": _named(boxes)}


def _model_panel(
    rows: Sequence[Row], model: Model, image: int, names: Mapping[int, str], place: Mapping[int, int]
) -> dict[str, Any]:
    """The detections; one without an object is dashed."""
    found = model.detections.get(image, ())
    matches = match(rows, found, model.score)
    right = {own for _, own in matches.true_positives}
    boxes = [
        _box(found[number], names, place, "" if number in right else "wrong", f" {found[number]['score']:.2f}")
        for number in sorted(right | set(matches.false_positives))
    ]
    counts = (len(matches.true_positives), len(matches.false_negatives), len(matches.false_positives))
    return {"title": model.label, "words": "{} found, {} missed, {} false".format(*counts), "boxes": _named(boxes)}


def _box(row: Row, names: Mapping[int, str], place: Mapping[int, int], kind: str, more: str) -> dict[str, Any]:
    x, y, width, height = (round(float(value), 1) for value in row["bbox"])
    category = row["category_id"]
    number = place.get(category, 0)
    return {
        **{"x": x, "y": y, "width": width, "height": height, "kind": kind, "class": number},
        "colour": COLOURS[number % len(COLOURS)],
        "words": f"{names.get(category, category)}{more}",
        "named": False,
    }


def _named(boxes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is wrong above what is right; the first names of these are written, the largest boxes' first."""
    order = sorted(boxes, key=lambda box: (box["kind"] != "wrong", -box["width"] * box["height"]))
    for box in order[:MOST_NAMES]:
        box["named"] = True
    return sorted(boxes, key=lambda box: box["kind"] == "wrong")
