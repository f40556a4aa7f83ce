"""TIDE's kinds of error: what a wrong detection would have needed to be right (arXiv 2008.08115, Section 2.2).

The order of the questions and which bound belongs to whom are those of the authors' code.
"""

from __future__ import annotations

import numpy as np

NONE = -1  # no object, no detection
BACKGROUND_IOU = 0.1
RIGHT, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH, IGNORED = range(7)  # of a detection


def kinds_of(
    own: np.ndarray, others: np.ndarray, match: np.ndarray, free: np.ndarray, iou: float, background: float
) -> tuple[np.ndarray, np.ndarray]:
    """What each detection is, and the object that it found or missed by its error.

    Args:
        own: [B, D, G] IoU with objects of the same class, -1 where there is none.
        others: [B, D, G] the same with objects of other classes.
        match: [B, D] place of the object that was found, or NONE.
        free: [B, G] whether an object was found by nobody.
        iou: of an object that is found.
        background: up to this IoU a detection is one of background.

    Returns:
        [B, D] RIGHT or the kind of error, and [B, D] a place or NONE; duplicates, background and both have none.
    """
    if not own.shape[2]:
        return np.full(match.shape, BACKGROUND), np.full(match.shape, NONE)
    near, nearest = own.max(2), own.argmax(2)
    far, farthest = others.max(2), others.argmax(2)
    taken = np.where(free[:, None, :], -1.0, own).max(2)
    questions = {  # the first that holds
        RIGHT: match != NONE,
        LOCALISATION: (background <= near) & (near <= iou),
        CLASSIFICATION: far >= iou,
        DUPLICATE: taken >= iou,
        BACKGROUND: np.maximum(near, far) <= background,
    }
    kind = np.select(list(questions.values()), list(questions), BOTH)
    causes = {RIGHT: match, LOCALISATION: nearest, CLASSIFICATION: farthest}
    cause = np.select([kind == code for code in causes], list(causes.values()), NONE)
    return kind, cause
