"""Outlines with names on an image: a name stands where it covers no other, and stays away where it has no room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from harness.figures.images import box_outline

WRONG = (0, (2.2, 1.4))  # dashes
LETTER = 0.62  # width of a letter as a share of its height, about
LONGEST_NAME = 20  # letters of a category in a label
CROWDED = 12  # boxes of one picture; more have thinner lines
NUM_COLOURS = 6  # of the palette without its black and grey, which would vanish on the dark rim


@dataclass(frozen=True)
class Lettering:
    """How names are written on a picture."""

    inches: float  # width of the picture
    size: float  # points
    most: int  # names of one picture


@dataclass(frozen=True)
class Box:
    """An outline and its name: a solid line, dashes where it is wrong, dots around a crowd."""

    bbox: Sequence[float]
    name: str
    colour: str
    dashes: Any = "solid"

    @property
    def is_wrong(self) -> bool:
        """Whether it is a missed object or a detection without an object."""
        return self.dashes == WRONG


def shortened(text: str, longest: int) -> str:
    """A text of at most so many letters; the end of a longer one is left out."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def draw_boxes(axes: Axes, boxes: Sequence[Box], lettering: Lettering) -> None:
    """Outlines, what is wrong above what is right, and as many names as have room, what is wrong and last first."""
    width = 1.1 if len(boxes) <= CROWDED else 0.7
    ordered = sorted(boxes, key=lambda one: one.is_wrong)
    for one in ordered:
        x, y, w, h = one.bbox
        box_outline(axes, (x, y, x + w, y + h), one.colour, width, one.dashes)
    taken: list[tuple[float, float, float, float]] = []
    for one in ordered[::-1]:
        place = _free_place(axes, one, taken, lettering)
        if place is not None and len(taken) < lettering.most:
            taken.append(place)
            _write_name(axes, one, place, lettering.size)


def _free_place(
    axes: Axes, box: Box, taken: Sequence[tuple[float, float, float, float]], lettering: Lettering
) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of a place for the name at the box that covers no other name; None: there is none."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    point = width / (lettering.inches * 72)  # pixels of a point
    across, high = (len(box.name) * LETTER * lettering.size + 2.0) * point, 1.45 * lettering.size * point
    x, y, w, h = box.bbox
    left = min(max(x, 0.0), max(width - across, 0.0))
    for top in (y - high, y + h, y, y + h - high):  # above, below, within at the top and at the bottom
        place = (left, top, left + across, top + high)
        within = top >= 0 and top + high <= height
        if within and not any(_cover(place, other) for other in taken):
            return place
    return None


def _cover(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _write_name(axes: Axes, box: Box, place: tuple[float, float, float, float], size: float) -> None:
    frame = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": box.colour, "linewidth": 0.5}
    axes.text(
        *(place[0], (place[1] + place[3]) / 2),
        box.name,
        ha="left",
        va="center",
        fontsize=size,
        clip_on=True,
        bbox={**frame, "alpha": 0.8},
    )
