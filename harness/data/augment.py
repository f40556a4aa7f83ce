"""The view of an image that a training sample shows: what is drawn for it, and what that does to pixels, boxes, masks.

Every image is mirrored or not, and resized. DETR's recipe shows of some only a window: the image is resized to a middle
size, a window of random size and place is cut out, and that is resized like any other image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.config import DataConfig
from harness.data.transforms import RESIZE, flip, flip_boxes, resized_hw, scale_boxes

MIDDLE_LONG_SIDE = 4200  # limit of the long side before a window is cut out (official: next to none)


@dataclass(frozen=True)
class Window:
    """What is cut out of an image that was resized to `from_hw`."""

    from_hw: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    @property
    def hw(self) -> tuple[int, int]:
        """Its size."""
        return self.height, self.width

    def image(self, image: np.ndarray) -> np.ndarray:
        """The part [h, w, 3] of the resized image."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def boxes(self, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of boxes [G, 4] in the resized image those [G', 4] that show, cut to the window, and [G] which do.

        Any sliver stays: neither its area nor its share of the object counts (official).
        """
        shift = np.array([self.left, self.top] * 2, np.float32)
        inside = clip_boxes(boxes_xyxy - shift, self.hw)
        shows = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
        return inside[shows], shows


@dataclass(frozen=True)
class View:
    """How an image of size `from_hw` becomes a sample of size `hw`.

    Officially an image is mirrored, then perhaps cut, then resized. Without a window, `resize: antialiased` mirrors
    last: the same picture, but boxes may differ in their last bit.
    """

    from_hw: tuple[int, int]
    hw: tuple[int, int]
    mirrored: bool
    window: Window | None
    resize: str  # `DataConfig.resize`

    @property
    def mirrors_last(self) -> bool:
        """Boxes are resized and then mirrored, and nothing is cut."""
        return self.resize == "antialiased" and self.window is None

    def image(self, image: np.ndarray) -> np.ndarray:
        """[h, w, 3] uint8 of [H, W, 3], or of one that is resized already, if nothing is cut."""
        resized = RESIZE[self.resize]
        if self.mirrors_last:
            image = resized(image, *self.hw)
            return flip(image) if self.mirrored else image
        if self.mirrored:
            image = flip(image)
        if self.window is not None:
            image = self.window.image(resized(image, *self.window.from_hw))
        return resized(image, *self.hw)

    def boxes(self, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [G', 4] of those of the image [G, 4] that the view shows, and [G] which these are."""
        hw, shows = self.from_hw, np.ones(len(boxes_xyxy), bool)
        if self.mirrors_last:
            boxes_xyxy = scale_boxes(boxes_xyxy, hw, self.hw)
            return flip_boxes(boxes_xyxy, self.hw[1]) if self.mirrored else boxes_xyxy, shows
        if self.mirrored:
            boxes_xyxy = flip_boxes(boxes_xyxy, hw[1])
        if self.window is not None:
            boxes_xyxy = clip_boxes(scale_boxes(boxes_xyxy, hw, self.window.from_hw), self.window.from_hw)
            boxes_xyxy, shows = self.window.boxes(boxes_xyxy)
            hw = self.window.hw
        return clip_boxes(scale_boxes(boxes_xyxy, hw, self.hw), self.hw), shows

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """[h] row and [w] column of the image whose pixel stands for one of the view where masks are resized."""
        (height, width), part = self.from_hw, self.window
        if part is None:
            rows, columns = nearest(height, self.hw[0]), nearest(width, self.hw[1])
        else:
            rows = nearest(height, part.from_hw[0])[part.top :][nearest(part.height, self.hw[0])]
            columns = nearest(width, part.from_hw[1])[part.left :][nearest(part.width, self.hw[1])]
        return rows, width - 1 - columns if self.mirrored else columns


def nearest(size: int, new_size: int) -> np.ndarray:
    """[new_size] the pixel of `size` that stands for each one of `new_size`: OpenCV's, with its own rounding."""
    return np.minimum(np.arange(new_size) * (1 / (new_size / size)), size - 1).astype(np.int64)


def clip_boxes(boxes_xyxy: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Boxes [G, 4] cut to an image's size."""
    return np.clip(boxes_xyxy, 0, np.array([hw[1], hw[0]] * 2, np.float32))


def draw_view(rng: np.random.Generator, hw: tuple[int, int], config: DataConfig) -> View:
    """A view of an image of size `hw` for training.

    Size and mirroring are drawn first, so that those of views without a window do not depend on `crop_probability`.
    """
    short_side = config.train_short_sides[int(rng.integers(len(config.train_short_sides)))]
    mirrored = rng.random() < config.flip_probability
    if config.square:
        return View(hw, resized_hw(*hw, config.square, config.square), mirrored, None, config.resize)
    window = draw_window(rng, hw, config) if rng.random() < config.crop_probability else None
    new_hw = resized_hw(*(hw if window is None else window.hw), short_side, config.max_long_side)
    return View(hw, new_hw, mirrored, window, config.resize)


def draw_window(rng: np.random.Generator, hw: tuple[int, int], config: DataConfig) -> Window:
    """A window of an image of size `hw`: heights and widths are drawn apart, at most as large as the resized image."""
    short_side = config.crop_short_sides[int(rng.integers(len(config.crop_short_sides)))]
    from_hw = resized_hw(*hw, short_side, MIDDLE_LONG_SIDE)
    smallest, largest = config.crop_sides
    height, width = (int(rng.integers(min(side, smallest), min(side, largest) + 1)) for side in from_hw)
    top, left = (int(rng.integers(side - part + 1)) for side, part in zip(from_hw, (height, width), strict=True))
    return Window(from_hw, top, left, height, width)
