"""Geometry and colour of images on their way to the network: resize, horizontal flip, normalise.

Images are uint8 RGB arrays [H, W, 3]; boxes are `boxes_xyxy` [G, 4] float32 in pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, RGB in [0, 1]
STD = np.array([0.229, 0.224, 0.225], np.float32)


def resized_hw(height: int, width: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """The size with the given short side, or a smaller one whose long side is `max_long_side`; ratio kept."""
    scale = min(short_side / min(height, width), max_long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width, 3], bilinear with antialiasing; the very same array when nothing changes."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def scale_boxes(boxes_xyxy: np.ndarray, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> np.ndarray:
    """Boxes of an image of size `from_hw` after it was resized to `to_hw`."""
    y, x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return boxes_xyxy * np.array([x, y, x, y], np.float32)


def flip(image: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror left and right."""
    flipped = boxes_xyxy.copy()
    flipped[:, 0] = image.shape[1] - boxes_xyxy[:, 2]
    flipped[:, 2] = image.shape[1] - boxes_xyxy[:, 0]
    return image[:, ::-1], flipped


def normalise(image: np.ndarray) -> np.ndarray:
    """[3, H, W] float32, ImageNet mean and standard deviation."""
    pixels = image.astype(np.float32) * (1 / (255 * STD)) - MEAN / STD
    return pixels.transpose(2, 0, 1)
