"""Detections beside ground truth, the worst images first: what is found, what is missed, what is false.

What is right has solid lines, what is wrong dashed ones, so that no colour is needed to tell; the colour is the
category's. Rows are COCO's: `bbox` is (x, y, width, height) in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.images import box_outline, draw_image
from harness.figures.style import PAGE, colour_of, legend_below, new_figure, plain, styled

Row = Mapping[str, Any]
SCORE, IOU = 0.5, 0.5  # what counts as a detection, and as found
WRONG = (0, (2.2, 1.4))  # dashes
CROWD = (0, (0.8, 1.2))
LABEL_SIZE = 5.5  # points
NUM_COLOURS = 6  # of the palette without its black and grey, which would vanish on the dark rim
PAIRS = 2  # image pairs side by side


@dataclass(frozen=True)
class Matches:
    """Who is right on one image: indices into its annotations and detections."""

    true_positives: tuple[tuple[int, int], ...]  # (annotation, detection)
    false_negatives: tuple[int, ...]  # annotations
    false_positives: tuple[int, ...]  # detections without an object
    ignored: tuple[int, ...]  # detections below the score or within a crowd region

    @property
    def num_errors(self) -> int:
        """Missed objects and detections without an object."""
        return len(self.false_negatives) + len(self.false_positives)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where there is neither object nor detection."""
        total = 2 * len(self.true_positives) + self.num_errors
        return 2 * len(self.true_positives) / total if total else 1.0


def match(annotations: Sequence[Row], detections: Sequence[Row], score: float = SCORE, iou: float = IOU) -> Matches:
    """Match detections of at least `score` to objects of their category as COCO does, at one IoU threshold.

    From the highest score down each detection takes the free object of its category with the highest IoU, if that is
    at least `iou`. One that has none, but lies within a crowd region of its category by at least that share of itself,
    is neither right nor wrong.
    """
    objects = [index for index, row in enumerate(annotations) if not row.get("iscrowd")]
    crowds = [row for row in annotations if row.get("iscrowd")]
    order = sorted(range(len(detections)), key=lambda index: -detections[index]["score"])
    free = set(objects)
    found, false, ignored = [], [], []
    for index in order:
        row = detections[index]
        if row["score"] < score:
            ignored.append(index)
            continue
        same = [other for other in sorted(free) if annotations[other]["category_id"] == row["category_id"]]
        overlaps = [_overlap(row["bbox"], annotations[other]["bbox"]) for other in same]
        if same and max(overlaps) >= iou:
            best = same[int(np.argmax(overlaps))]
            free.remove(best)
            found.append((best, index))
        elif any(
            crowd["category_id"] == row["category_id"] and _overlap(row["bbox"], crowd["bbox"], of_first=True) >= iou
            for crowd in crowds
        ):
            ignored.append(index)
        else:
            false.append(index)
    return Matches(tuple(found), tuple(sorted(free)), tuple(false), tuple(ignored))


def _overlap(first: Sequence[float], second: Sequence[float], of_first: bool = False) -> float:
    """IoU of two boxes x y w h; with `of_first` the share of the first that lies within the second."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = first, second
    common = max(0.0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0.0, min(ay + ah, by + bh) - max(ay, by))
    whole = aw * ah if of_first else aw * ah + bw * bh - common
    return common / whole if whole > 0 else 0.0


def worst_images(
    annotations: Mapping[int, Sequence[Row]], detections: Mapping[int, Sequence[Row]], count: int, score: float = SCORE
) -> list[int]:
    """Ids of the `count` images with the most errors, worst first.

    Errors are missed objects and detections of at least `score` without an object, at IoU 0.5 (see `match`). Of images
    with equally many, the one with the lower F1 is worse, then the one with the lower id.

    Args:
        annotations: rows by image id; every image that takes part has an entry.
        detections: rows by image id; may lack images.
        count: of images wanted.
        score: lowest score that counts as a detection.
    """
    matches = {image: match(rows, detections.get(image, ()), score) for image, rows in annotations.items()}
    return sorted(matches, key=lambda image: (-matches[image].num_errors, matches[image].f1, image))[:count]


@dataclass(frozen=True)
class Scene:
    """One image with its annotations and detections; `title` stands above it."""

    title: str
    image: np.ndarray  # [H, W, 3] uint8
    annotations: Sequence[Row]
    detections: Sequence[Row]


@styled()
def draw_detections(scenes: Sequence[Scene], categories: Mapping[int, str], score: float = SCORE) -> Figure:
    """A sheet of images: ground truth on the left of each pair, detections of at least `score` on the right.

    A found object and the detection that found it have solid outlines, a missed object and a detection without an
    object dashed ones and a mark before their names; crowd regions are dotted.

    Args:
        scenes: in reading order.
        categories: name by category id; the colour follows the order of the ids.
        score: lowest score that is drawn.

    Raises:
        ValueError: there is no scene.
    """
    if not scenes:
        raise ValueError("draw_detections needs at least one image")
    pairs = min(PAIRS, len(scenes))
    side = PAGE / (2 * PAIRS)
    rows = [scenes[start : start + pairs] for start in range(0, len(scenes), pairs)]
    heights = [max(side * scene.image.shape[0] / scene.image.shape[1] for scene in row) + 0.2 for row in rows]
    figure = new_figure(2 * side * pairs, sum(heights))
    grid = figure.subplots(len(rows), 2 * pairs, squeeze=False, gridspec_kw={"height_ratios": heights})
    colours = {category: colour_of(1 + index % NUM_COLOURS) for index, category in enumerate(sorted(categories))}
    for line, row in zip(grid, rows, strict=True):
        for number in range(pairs):
            left, right = line[2 * number], line[2 * number + 1]
            if number >= len(row):
                left.set_visible(False)
                right.set_visible(False)
                continue
            matches = match(row[number].annotations, row[number].detections, score)
            _draw_pair(left, right, row[number], matches, categories, colours)
    lines: dict[str, Any] = {
        "found object | detection that found it": "solid",
        "missed object (?) | detection without an object (×)": WRONG,
        "crowd region": CROWD,
    }
    if not any(row.get("iscrowd") for scene in scenes for row in scene.annotations):
        del lines["crowd region"]
    handles = [Line2D([], [], color="black", linewidth=1.2, linestyle=style) for style in lines.values()]
    legend_below(figure, handles, list(lines), f"detections of score ≥ {score:g}, found at IoU ≥ {IOU:g}")
    return figure


def _draw_pair(
    left: Axes, right: Axes, scene: Scene, matches: Matches, categories: Mapping[int, str], colours: Mapping[int, str]
) -> None:
    for axes in (left, right):
        draw_image(axes, scene.image)
    counts = {"found": matches.true_positives, "missed": matches.false_negatives, "false": matches.false_positives}
    left.set_title(plain(scene.title), fontsize=7)
    right.set_title(", ".join(f"{len(rows)} {word}" for word, rows in counts.items()), fontsize=7)
    found = {annotation for annotation, _ in matches.true_positives}
    for index, row in enumerate(scene.annotations):
        name = categories.get(row["category_id"], str(row["category_id"]))
        colour = colours.get(row["category_id"], "white")
        if row.get("iscrowd"):
            _draw_box(left, row["bbox"], f"{name} (crowd)", colour, CROWD)
        else:
            wrong = index not in found
            _draw_box(left, row["bbox"], f"? {name}" if wrong else name, colour, WRONG if wrong else "solid")
    right_ones = {detection for _, detection in matches.true_positives}
    for index in (*sorted(right_ones), *matches.false_positives):
        row = scene.detections[index]
        wrong = index not in right_ones
        name = f"{categories.get(row['category_id'], row['category_id'])} {row['score']:.2f}"
        colour = colours.get(row["category_id"], "white")
        _draw_box(right, row["bbox"], f"× {name}" if wrong else name, colour, WRONG if wrong else "solid", below=wrong)


def _draw_box(axes: Axes, bbox: Sequence[float], name: str, colour: str, dashes: Any, *, below: bool = False) -> None:
    """A box with its name above it, or below it so that it stays readable where boxes coincide."""
    x, y, width, height = bbox
    box_outline(axes, (x, y, x + width, y + height), colour, 1.1, dashes)
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    place, outside = (y + height, y + height < 0.93 * bottom) if below else (y, y > 0.07 * bottom)
    near_right = x > 0.72 * right
    axes.text(
        *(min(x + width, right) if near_right else max(x, 0.0), min(max(place, 0.01 * bottom), 0.99 * bottom)),
        plain(name),
        ha="right" if near_right else "left",
        va="bottom" if outside != below else "top",
        fontsize=LABEL_SIZE,
        clip_on=True,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": colour, "linewidth": 0.5, "alpha": 0.8},
    )
