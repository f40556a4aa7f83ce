"""The score from which on detections are right most often: the best F1, with its precision and recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCORES = np.array([*(number / 1000 for number in range(1, 10)), *(number / 100 for number in range(1, 100))])


@dataclass(frozen=True)
class Threshold:
    """A score, and how right the detections of at least this score are over a split."""

    score: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def threshold_of(right: np.ndarray, wrong: np.ndarray, objects: int) -> Threshold | None:
    """The score with the best F1, of `SCORES` and the lower ones that tell; of equal ones the highest.

    None: nothing is right.

    Args:
        right: [N] scores of detections that found an object.
        wrong: [M] scores of those that found none.
        objects: that were to be found.
    """
    right, wrong = np.asarray(right, float), np.asarray(wrong, float)
    scores = np.concatenate([_below(right), SCORES])
    hits, misses = (len(own) - np.searchsorted(np.sort(own), scores, side="left") for own in (right, wrong))
    f1 = 2 * hits / np.maximum(hits + misses + objects, 1)
    best = len(f1) - 1 - int(f1[::-1].argmax())
    if not hits[best]:
        return None
    found, false = int(hits[best]), int(misses[best])
    return Threshold(float(scores[best]), found / (found + false), found / objects)


def _below(right: np.ndarray) -> list[float]:
    """Scores of one digit below `SCORES`, ascending, down to the lowest positive one of `right`: 0.0001 to 0.0009, ...

    A detector that hardly learnt has no detection above them.
    """
    lowest, places = right[right > 0].min(initial=1.0), 3
    while 1 / 10**places > lowest:
        places += 1
    return [digit / 10**place for place in range(places, 3, -1) for digit in range(1, 10)]
