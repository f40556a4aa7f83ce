"""Objects with their masks in a picture, and how those of a second picture are pasted over them (copy-paste)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.data.masks import MASK_CELLS, grid_of, rectangle

MOST_MOVED = 10  # pixels: an object survives where no side of its box moves further (official)
LARGE_REST = 300  # pixels: it survives, too, where more than so many are left of it (official)
SMALLEST_SIDE = 0.01  # pixels: a box with a shorter side is dropped (official)


@dataclass(frozen=True)
class Cutout:
    """Where an object shows in a picture: the smallest rectangle of its mask that holds all of it."""

    top: int
    left: int
    pixels: np.ndarray  # [h, w] bool; [0, 0] where nothing shows

    @classmethod
    def of(cls, mask: np.ndarray, top: int = 0, left: int = 0) -> Cutout:
        """Of a mask [h, w] whose first pixel lies at (top, left)."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return cls(0, 0, np.zeros((0, 0), bool))
        (first, last), (start, end) = ((int(own[0]), int(own[-1]) + 1) for own in (rows, columns))
        return cls(top + first, left + start, mask[first:last, start:end])

    @classmethod
    def seen(cls, run_lengths: dict[str, Any], sources: tuple[np.ndarray, np.ndarray]) -> Cutout:
        """Of packed run lengths of an image, in a view with these `sources` (see `View.sources`)."""
        top, left, mask = rectangle(run_lengths)
        rows, columns = (
            np.flatnonzero((source >= start) & (source < start + size))
            for source, start, size in zip(sources, (top, left), mask.shape, strict=True)
        )
        if not len(rows) or not len(columns):
            return cls.of(np.zeros((0, 0), bool))
        shown = mask[sources[0][rows] - top][:, sources[1][columns] - left]
        return cls.of(shown, int(rows[0]), int(columns[0]))

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rectangle in the picture."""
        height, width = self.pixels.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Around it, x0, y0, x1, y1; zeros where nothing shows."""
        height, width = self.pixels.shape
        return self.left, self.top, self.left + width, self.top + height

    @property
    def area(self) -> int:
        """Its pixels."""
        return int(self.pixels.sum())

    def below(self, covered: np.ndarray) -> Cutout:
        """What is left of it where a mask [H, W] of the picture covers it."""
        rest = self.pixels & ~covered[self.place]
        return Cutout.of(rest, self.top, self.left)

    def grid(self, box_xyxy: np.ndarray) -> np.ndarray:
        """[MASK_CELLS, MASK_CELLS] uint8: the covered share of each cell of a box [4] in the picture, in 255ths."""
        x0, y0, x1, y1 = box_xyxy.astype(np.float64)
        top, left = int(y0), int(x0)
        inside = np.zeros((int(np.ceil(y1)) - top, int(np.ceil(x1)) - left), bool)
        rows, columns = self.place
        down = slice(max(rows.start, top), min(rows.stop, top + inside.shape[0]))
        right = slice(max(columns.start, left), min(columns.stop, left + inside.shape[1]))
        if down.start < down.stop and right.start < right.stop:
            own = self.pixels[_moved(down, self.top), _moved(right, self.left)]
            inside[_moved(down, top), _moved(right, left)] = own
        return grid_of(inside, box_xyxy)


def _moved(part: slice, start: int) -> slice:
    return slice(part.start - start, part.stop - start)


@dataclass(frozen=True)
class Objects:
    """What there is to learn from in a picture."""

    boxes_xyxy: np.ndarray  # [G, 4] float32
    labels: np.ndarray  # [G] int64
    cutouts: tuple[Cutout, ...] | None  # [G]; None: masks are not read

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, chosen: np.ndarray) -> Objects:
        """Those at indices, in their order."""
        cutouts = None if self.cutouts is None else tuple(self.cutouts[row] for row in chosen.tolist())
        return Objects(self.boxes_xyxy[chosen], self.labels[chosen], cutouts)

    def with_area(self) -> Objects:
        """Those whose boxes have sides of more than `SMALLEST_SIDE`."""
        sides = self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        return self.at(np.flatnonzero((sides > SMALLEST_SIDE).all(1)))

    def grids(self) -> np.ndarray:
        """[G, MASK_CELLS, MASK_CELLS] uint8: the masks over their boxes."""
        assert self.cutouts is not None
        pairs = zip(self.cutouts, self.boxes_xyxy, strict=True)
        return np.stack([own.grid(box) for own, box in pairs] or [np.zeros((0, 0))]).reshape(-1, *(MASK_CELLS,) * 2)


def boxes_of(cutouts: Sequence[Cutout]) -> np.ndarray:
    """[G, 4] float32 around what shows of objects."""
    return np.array([own.box for own in cutouts], np.float32).reshape(-1, 4)


def most_pasted(number: int, limit: int) -> int:
    """How many of a picture's objects may be pasted at most."""
    return min(number, limit)


def draw_pasted(rng: np.random.Generator, number: int, limit: int) -> np.ndarray:
    """[P] which of a picture's objects are pasted, in that order; any number from 0 to the most is as likely."""
    count = int(rng.integers(most_pasted(number, limit) + 1))
    return rng.permutation(number)[:count]


def paste(image: np.ndarray, target: Objects, other: np.ndarray, pasted: Objects) -> tuple[np.ndarray, Objects]:
    """A picture with objects of another pasted over its own, as they are, without blending.

    Args:
        image: [H, W, 3] uint8.
        target: its objects, with cutouts.
        other: [H, W, 3] uint8.
        pasted: those of its objects that are pasted, with cutouts.

    Returns:
        The picture, and the objects that survive with boxes around what is left of them, then the pasted ones. One of
        which no pixel is left survives where its box was small and in the upper left corner (official).
    """
    if not len(pasted):
        return image, target
    assert target.cutouts is not None and pasted.cutouts is not None
    covered = np.zeros(image.shape[:2], bool)
    for own in pasted.cutouts:
        covered[own.place] |= own.pixels
    left = tuple(own.below(covered) for own in target.cutouts)
    boxes = boxes_of(left)
    unmoved = (np.abs(boxes - target.boxes_xyxy) <= MOST_MOVED).all(1)
    large = np.array([own.area > LARGE_REST for own in left], bool)
    rest = Objects(boxes, target.labels, left).at(np.flatnonzero(unmoved | large))
    assert rest.cutouts is not None
    return np.where(covered[..., None], other, image), Objects(
        np.concatenate([rest.boxes_xyxy, pasted.boxes_xyxy]),
        np.concatenate([rest.labels, pasted.labels]),
        rest.cutouts + pasted.cutouts,
    )
