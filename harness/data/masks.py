"""COCO's masks and grids over boxes, in both directions.

A data set stores polygons or run lengths at the image's size; the network learns from and answers with small grids
over boxes (`model.types.MASK_CELLS`), which no resizing changes. pycocotools draws polygons and packs run lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from model.types import MASK_CELLS

Segmentation = dict[str, Any] | Sequence[Iterable[float]]  # run lengths, or polygons x0, y0, x1, y1, …


def packed(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """COCO's packed run lengths, {"size", "counts"} with counts as text."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], str):
            return segmentation
        found = coco_mask.frPyObjects({**segmentation, "counts": list(segmentation["counts"])}, height, width)
    else:
        found = coco_mask.merge(
            coco_mask.frPyObjects([[*map(float, polygon)] for polygon in segmentation], height, width)
        )
    return {"size": [height, width], "counts": found["counts"].decode()}


def decoded(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """[height, width] uint8, 1 on the object."""
    mask: np.ndarray = coco_mask.decode(packed(segmentation, height, width))
    return mask


def rectangle(run_lengths: dict[str, Any]) -> tuple[int, int, np.ndarray]:
    """First row and column of the smallest rectangle that holds packed run lengths, and [h, w] bool within it."""
    x, y, width, height = map(int, coco_mask.toBbox(run_lengths))
    mask = coco_mask.decode(run_lengths)[y : y + height, x : x + width]
    return y, x, np.ascontiguousarray(mask).view(bool)


def grid_over_box(
    mask: np.ndarray, box_xyxy: np.ndarray, sources: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """[MASK_CELLS, MASK_CELLS] uint8: what share of each cell of the box [4] the mask [H, W] covers, in 255ths.

    With `sources` the box lies in a view of the image, and these are `View.sources` of it.
    """
    x0, y0, x1, y1 = box_xyxy.astype(np.float64)
    down, right = slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1)))
    inside = mask[down, right] if sources is None else mask[sources[0][down, None], sources[1][right]]
    return grid_of(inside, box_xyxy)


def grid_of(inside: np.ndarray, box_xyxy: np.ndarray) -> np.ndarray:
    """`grid_over_box`, of the pixels [h, w] that the box [4] touches."""
    x0, y0, x1, y1 = box_xyxy.astype(np.float64)
    top, left = int(y0), int(x0)
    rows = _shares(y0 - top, y1 - top, inside.shape[0])
    columns = _shares(x0 - left, x1 - left, inside.shape[1])
    return np.rint(255 * (rows @ inside @ columns.T)).astype(np.uint8)


def _shares(start: float, end: float, length: int) -> np.ndarray:
    """[MASK_CELLS, length]: share of each cell, spread from `start` to `end`, that lies in each pixel."""
    edges = np.linspace(start, end, MASK_CELLS + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(min=0) * (MASK_CELLS / (end - start))


def from_grids(grids: np.ndarray, boxes_xyxy: np.ndarray, height: int, width: int) -> list[dict[str, Any]]:
    """Packed run lengths at the image's size of masks given as grids over boxes.

    Args:
        grids: [N, m, m] float32 probability of the object.
        boxes_xyxy: [N, 4] pixels.
        height: of the image.
        width: of the image.

    Returns:
        One {"size", "counts"} each, counts as text; a pixel belongs to the object where the bilinear interpolation of
        the grid at its middle, with 0 beyond the box, reaches one half.
    """
    found = []
    for grid, (x0, y0, x1, y1) in zip(grids, boxes_xyxy.astype(np.float64), strict=True):
        canvas = np.zeros((height, width), np.uint8, order="F")
        top, bottom = max(0, int(y0) - 1), min(height, int(np.ceil(y1)) + 1)
        left, right = max(0, int(x0) - 1), min(width, int(np.ceil(x1)) + 1)
        rows = _interpolation(y0, y1, top, bottom, len(grid))
        columns = _interpolation(x0, x1, left, right, len(grid))
        canvas[top:bottom, left:right] = rows @ grid @ columns.T >= 0.5
        run_lengths = coco_mask.encode(canvas)
        found.append({"size": [height, width], "counts": run_lengths["counts"].decode()})
    return found


def area(run_lengths: dict[str, Any]) -> float:
    """Pixels of a mask."""
    return float(coco_mask.area(run_lengths))


def _interpolation(start: float, end: float, first: int, last: int, cells: int) -> np.ndarray:
    """[last - first, cells]: weight of each cell, spread from `start` to `end`, at the middle of each pixel."""
    position = (np.arange(first, last) + 0.5 - start) / max(end - start, 1e-6) * cells - 0.5
    return (1 - np.abs(position[:, None] - np.arange(cells))).clip(min=0).astype(np.float32)
