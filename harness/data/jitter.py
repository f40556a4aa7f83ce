"""Large-scale jitter: an image at a random size, or a random part of it, in the upper left corner of a square.

Officially the square counts as image, also where it is grey: the network sees no padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.config import DataConfig
from harness.data.augment import Window, clip_boxes, nearest
from harness.data.transforms import RESIZE, flip, flip_boxes, resized_hw, scale_boxes

GREY = 114  # of all channels where no image lies, before they are normalised (official)


@dataclass(frozen=True)
class Jitter:
    """How an image of size `from_hw` becomes what a square shows of it: resized, cut, and mirrored last.

    Has the face of `harness.data.augment.View`.
    """

    from_hw: tuple[int, int]
    window: Window  # of the resized image
    mirrored: bool
    resize: str  # `DataConfig.resize`

    @property
    def hw(self) -> tuple[int, int]:
        """Size of what is shown."""
        return self.window.hw

    def image(self, image: np.ndarray) -> np.ndarray:
        """[h, w, 3] uint8 of [H, W, 3]."""
        shown = self.window.image(RESIZE[self.resize](image, *self.window.from_hw))
        return flip(shown) if self.mirrored else shown

    def boxes(self, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [G', 4] of those of the image [G, 4] that show, cut to what is shown, and [G] which these are."""
        resized = clip_boxes(scale_boxes(boxes_xyxy, self.from_hw, self.window.from_hw), self.window.from_hw)
        inside, shows = self.window.boxes(resized)
        return flip_boxes(inside, self.hw[1]) if self.mirrored else inside, shows

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """[h] row and [w] column of the image whose pixel stands for one that is shown where masks are resized."""
        part = self.window
        rows, columns = (nearest(size, new) for size, new in zip(self.from_hw, part.from_hw, strict=True))
        columns = columns[part.left :][: part.width]
        return rows[part.top :][: part.height], columns[::-1] if self.mirrored else columns


def jittered_hw(hw: tuple[int, int], config: DataConfig, uniform: float) -> tuple[int, int]:
    """The size that an image of size `hw` is resized to, by a number from 0 to 1 that was drawn."""
    low, high = config.jitter_scales
    side = int(config.square * (uniform * (high - low) + low))
    return resized_hw(*hw, side, side)


def largest_offsets(hw: tuple[int, int], square: int) -> tuple[int, int]:
    """How far down and how far right what a square shows of an image of size `hw` may begin."""
    return max(hw[0] - square, 0), max(hw[1] - square, 0)


def jitter_of(
    hw: tuple[int, int], resized: tuple[int, int], offsets: tuple[int, int], mirrored: bool, config: DataConfig
) -> Jitter:
    """What was drawn, as what it does to an image of size `hw`."""
    height, width = (min(side, config.square) for side in resized)
    return Jitter(hw, Window(resized, *offsets, height, width), mirrored, config.resize)


def draw_jitter(rng: np.random.Generator, hw: tuple[int, int], config: DataConfig) -> Jitter:
    """Size, place and mirroring of an image of size `hw` for training."""
    resized = jittered_hw(hw, config, rng.random())
    top, left = (int(rng.integers(most + 1)) for most in largest_offsets(resized, config.square))
    return jitter_of(hw, resized, (top, left), bool(rng.random() < config.flip_probability), config)


def on_square(image: np.ndarray, side: int) -> np.ndarray:
    """[side, side, 3] with the image [h, w, 3] in its upper left corner."""
    canvas = np.full((side, side, 3), GREY, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas
