"""One image with what was detected on it, at the size of the image, or larger where its names could not be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from harness.figures.boxes import LONGEST_NAME, NUM_COLOURS, Box, Lettering, draw_boxes, shortened
from harness.figures.images import draw_image
from harness.figures.matching import Row
from harness.figures.style import PAGE, colour_of, new_figure, plain, styled

LETTERS = 9.0  # points
MOST_NAMES = 60
SMALLEST = 1000  # pixels of the longer side


@styled()
def draw_picture(image: np.ndarray, detections: Sequence[Row], categories: Mapping[int, str]) -> tuple[Figure, float]:
    """An image [H, W, 3] uint8 with the outline, name and score of each detection, and the dots per inch for its size.

    Args:
        image: in whose pixels the boxes are.
        detections: rows of COCO's results format; those of high scores lie above the others and are named first.
        categories: name by category id; the colour follows the order of the ids.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    across, down = PAGE * width / longest, PAGE * height / longest
    figure = new_figure(across, down)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_image(axes, image)
    colours = {category: colour_of(1 + index % NUM_COLOURS) for index, category in enumerate(sorted(categories))}
    boxes = []
    for row in sorted(detections, key=lambda row: row["score"]):
        category = row["category_id"]
        name = shortened(" ".join(str(categories.get(category, category)).split()), LONGEST_NAME)
        boxes.append(Box(row["bbox"], f"{plain(name)} {row['score']:.2f}", colours.get(category, "white")))
    draw_boxes(axes, boxes, Lettering(across, LETTERS, MOST_NAMES))
    return figure, math.ceil(max(longest, SMALLEST)) / PAGE
