"""Whether the best boxes have the best scores: recall of best-regressed detections (Align-DETR, arXiv 2304.07527)."""

from __future__ import annotations

import numpy as np

from harness.mistakes.kinds import NONE
from harness.mistakes.matching import Judgement
from harness.mistakes.sides import Sides


def best_regressed_recall(sides: Sides, judgement: Judgement) -> float | None:
    """Percent of the objects whose best-regressed detection is among the N best-scored ones of its image.

    N is the number of objects of the image. None: there is no object.
    """
    objects, detected = sides.objects, sides.detected
    image = objects.image[~objects.is_crowd]
    if not len(image):
        return None
    numbers = np.bincount(image, minlength=sides.num_images)
    counts = np.bincount(detected.image, minlength=sides.num_images)
    rank = np.arange(len(detected)) - (np.cumsum(counts) - counts)[detected.image]  # within its image, best first
    best = judgement.best[~objects.is_crowd]
    found = best != NONE
    recalled = rank[best[found]] < numbers[image[found]]
    return 100 * float(recalled.sum()) / len(image)
