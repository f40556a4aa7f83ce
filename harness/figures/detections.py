"""Detections beside ground truth, the worst images first: what is found, what is missed, what is false.

What is right has solid lines, what is wrong dashed ones, so that no colour is needed to tell; the colour is the
category's. A name stands where it covers no other: of crowded images some boxes have none, those that are right first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.boxes import LONGEST_NAME, NUM_COLOURS, WRONG, Box, Lettering, draw_boxes, shortened
from harness.figures.images import TALLEST, draw_image, panel_ratio
from harness.figures.matching import IOU, SCORE, Matches, Row, match
from harness.figures.style import PAGE, colour_of, legend_below, new_figure, plain, styled

CROWD = (0, (0.8, 1.2))
PAIRS = 2  # image pairs side by side
SIDE = PAGE / (2 * PAIRS)  # inches: width of a picture with what lies around it
MOST_LABELS = 12  # of one picture
SHEET = Lettering(0.97 * SIDE, 5.5, MOST_LABELS)


@dataclass(frozen=True)
class Scene:
    """One image with its annotations and detections; `title` stands above it, `file_name` below."""

    title: str
    image: np.ndarray  # [H, W, 3] uint8
    annotations: Sequence[Row]
    detections: Sequence[Row]
    file_name: str = ""


@styled()
def draw_detections(
    scenes: Sequence[Scene], categories: Mapping[int, str], score: float = SCORE, why: str = ""
) -> Figure:
    """A sheet of images: ground truth on the left of each pair, detections of at least `score` on the right.

    A found object and the detection that found it have solid outlines, a missed object and a detection without an
    object dashed ones and a mark before their names; crowd regions are dotted.

    Args:
        scenes: in reading order.
        categories: name by category id; the colour follows the order of the ids.
        score: lowest score that is drawn.
        why: this score, in the legend.

    Raises:
        ValueError: there is no scene.
    """
    if not scenes:
        raise ValueError("draw_detections needs at least one image")
    pairs = min(PAIRS, len(scenes))
    rows = [scenes[start : start + pairs] for start in range(0, len(scenes), pairs)]
    heights = [max(SIDE * panel_ratio(scene.image) for scene in row) + 0.32 for row in rows]
    figure = new_figure(2 * SIDE * pairs, sum(heights))
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
    reason = f" ({why})" if why else ""
    note = f"detections of score ≥ {score:g}{reason}, found at IoU ≥ {IOU:g}; names where there is room"
    legend_below(figure, handles, list(lines), note)
    return figure


def _draw_pair(
    left: Axes, right: Axes, scene: Scene, matches: Matches, categories: Mapping[int, str], colours: Mapping[int, str]
) -> None:
    for axes in (left, right):
        draw_image(axes, scene.image)
    counts = {"found": matches.true_positives, "missed": matches.false_negatives, "false": matches.false_positives}
    left.set_title(shortened(plain(scene.title), 40), fontsize=7)
    right.set_title(", ".join(f"{len(rows)} {word}" for word, rows in counts.items()), fontsize=7)
    left.set_xlabel(_file_lines(scene.file_name), loc="left", fontsize=SHEET.size)

    def box(row: Row, dashes: Any, words: str = "{}") -> Box:
        category = row["category_id"]
        name = shortened(" ".join(str(categories.get(category, category)).split()), LONGEST_NAME)
        return Box(row["bbox"], words.format(plain(name)), colours.get(category, "white"), dashes)

    missed = set(matches.false_negatives)
    objects = []
    for index, row in enumerate(scene.annotations):
        if row.get("iscrowd"):
            objects.append(box(row, CROWD, "{} (crowd)"))
        else:
            objects.append(box(row, WRONG, "? {}") if index in missed else box(row, "solid"))
    found = []
    for index in sorted((*(own for _, own in matches.true_positives), *matches.false_positives)):
        row = scene.detections[index]
        wrong = index in matches.false_positives
        found.append(box(row, WRONG if wrong else "solid", ("× {} " if wrong else "{} ") + f"{row['score']:.2f}"))
    height, width = scene.image.shape[:2]
    lettering = replace(SHEET, inches=SHEET.inches * min(1.0, TALLEST * width / height))
    draw_boxes(left, objects, lettering)
    draw_boxes(right, found, lettering)


def _file_lines(name: str, letters: int = 36) -> str:
    """A file's name in one line or two; of a longer one its end."""
    text = plain(name)
    text = text if len(text) <= 2 * letters else f"…{text[1 - 2 * letters :]}"
    return "\n".join(text[start : start + letters] for start in range(0, len(text), letters))
