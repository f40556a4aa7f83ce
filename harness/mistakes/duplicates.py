"""What non-maximum suppression would take away of detections that should need none."""

from __future__ import annotations

import numpy as np

from harness.mistakes.batches import batches, overlaps
from harness.mistakes.sides import Sides

NMS_IOU = 0.7


def kept_by_nms(sides: Sides, iou: float = NMS_IOU) -> np.ndarray:
    """Rows of the table [N'], ascending, that class-wise NMS keeps: of each image those without a better one nearby.

    Args:
        sides: a split.
        iou: above it a detection goes, where one of its class with a better score has not gone itself.
    """
    detected = sides.detected
    kept = np.ones(len(detected), bool)
    for rows, _ in batches(detected.image, detected.image, sides.num_images):
        boxes, label = detected.boxes_xywh[rows], np.where(rows >= 0, detected.label[rows], -1)
        near = (overlaps(boxes, boxes) > iou) & (label[:, :, None] == label[:, None, :])
        near &= np.tri(rows.shape[1], k=-1, dtype=bool).T  # a better one takes a worse one away
        stays = rows >= 0
        for place in np.flatnonzero(near.any((0, 2))):
            stays &= ~(near[:, place] & stays[:, place, None])
        kept[rows[rows >= 0]] = stays[rows >= 0]
    return np.sort(detected.row[kept])
