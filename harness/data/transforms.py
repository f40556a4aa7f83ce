"""Geometry of images on their way to the network: resize, horizontal flip (`model.pixels` normalises).

Images are uint8 RGB arrays [H, W, 3]; boxes are `boxes_xyxy` [G, 4] float32 in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


def resized_hw(height: int, width: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """The size with the given short side, or a smaller one whose long side is `max_long_side`; ratio kept."""
    scale = min(short_side / min(height, width), max_long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width, 3], bilinear with antialiasing; the very same array when nothing changes."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_official(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `resize`, without antialiasing: each pixel is made of four (OpenCV's, to one grey level)."""
    if image.shape[:2] == (height, width):
        return image
    # A mirrored image one pixel wide counts as contiguous, and torch does not take it
    own = image.copy() if min(image.strides) < 0 else np.require(image, requirements=["C", "W"])
    pixels = torch.from_numpy(own).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=False)
    return resized[0].permute(1, 2, 0).numpy()


RESIZE = {"antialiased": resize, "official": resize_official}  # `DataConfig.resize`


def scale_boxes(boxes_xyxy: np.ndarray, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> np.ndarray:
    """Boxes of an image of size `from_hw` after it was resized to `to_hw`."""
    y, x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return boxes_xyxy * np.array([x, y, x, y], np.float32)


def flip(image: np.ndarray) -> np.ndarray:
    """[H, W, 3], left and right exchanged."""
    return image[:, ::-1]


def flip_boxes(boxes_xyxy: np.ndarray, width: int) -> np.ndarray:
    """Boxes [G, 4] after `flip` of an image of that width."""
    flipped = boxes_xyxy.copy()
    flipped[:, 0] = width - boxes_xyxy[:, 2]
    flipped[:, 2] = width - boxes_xyxy[:, 0]
    return flipped
