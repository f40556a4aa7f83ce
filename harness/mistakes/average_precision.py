"""AP at one IoU threshold, and how much of it each kind of error costs: TIDE's dAP.

An error is mended for all detections at once, with everything else as it was, and what AP gains by it is its dAP. The
mean is over the classes that have objects, before and after: a class that is detected and never there has no AP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harness.mistakes.kinds import BACKGROUND, BOTH, CLASSIFICATION, DUPLICATE, LOCALISATION, NONE, RIGHT
from harness.mistakes.matching import Judgement
from harness.mistakes.sides import Sides
from harness.spec.error_metrics import COSTS, SPECIAL_COSTS

RECALLS = np.arange(101) / 100  # quotients, as recalls are: a recall that is reached exactly counts as reached
MENDED = {"classification": CLASSIFICATION, "localisation": LOCALISATION}  # by being right, one for each object
REMOVED = {"both": BOTH, "duplicate": DUPLICATE, "background": BACKGROUND}


@dataclass(frozen=True)
class State:
    """Detections that count, best first, and objects: of the split as it is, or with some error mended."""

    label: np.ndarray  # [N]
    right: np.ndarray  # [N] bool
    objects: np.ndarray  # [C] that are to be found

    def class_ap(self, counted: np.ndarray) -> np.ndarray:
        """[C'] AP in percent of the classes `counted`; 0 where nothing is to be found any more."""
        numbers = np.bincount(self.label, minlength=len(self.objects))
        ends, order = np.cumsum(numbers), np.argsort(self.label, kind="stable")
        right = self.right[order]
        return np.array(
            [_ap(right[ends[place] - numbers[place] : ends[place]], self.objects[place]) for place in counted]
        )


def _ap(right: np.ndarray, objects: int) -> float:
    """Percent; precision is the best of this or any higher recall, its mean is over `RECALLS`."""
    if not objects or not right.any():
        return 0.0
    hits = np.cumsum(right)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(hits / objects, RECALLS, side="left")
    return 100 * float(np.append(precision, 0.0)[places].mean())  # a recall never reached counts as 0


def states(sides: Sides, judgement: Judgement) -> Iterator[tuple[str, State]]:
    """The split as it is, named "", and with each of `COSTS` and `SPECIAL_COSTS` mended."""
    order = np.argsort(-sides.detected.scores, kind="stable")
    kind, label, cause = judgement.kind[order], sides.detected.label[order], judgement.object[order]
    objects, is_right = sides.num_objects, kind == RIGHT
    counts = judgement.is_right[order] | judgement.is_wrong[order]
    yield "", State(label[counts], is_right[counts], objects)
    mended, reached = _mended(kind, cause, judgement.is_found)
    for name, code in MENDED.items():
        own = mended & (kind == code)
        kept = counts & ((kind != code) | own)
        moved = np.where(own, sides.objects.label[cause], label) if own.any() else label
        yield name, State(moved[kept], (is_right | own)[kept], objects)
    for name, code in REMOVED.items():
        kept = counts & (kind != code)
        yield name, State(label[kept], is_right[kept], objects)
    lost = ~judgement.is_found & ~sides.objects.is_crowd
    for name, gone in {"miss": lost & ~reached, "false_negatives": lost}.items():
        left = objects - np.bincount(sides.objects.label[gone], minlength=len(objects))
        yield name, State(label[counts], is_right[counts], left)
    first = np.argsort(~is_right[counts], kind="stable")  # what is wrong comes after all that is right
    yield "false_positives", State(label[counts][first], is_right[counts][first], objects)


def _mended(kind: np.ndarray, cause: np.ndarray, is_found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N] the detections that are right once their class or their box is, and [G] the objects that they find then.

    Of several with the same object, of both kinds, the best score is right; what has an object that is found is not.
    """
    own = np.flatnonzero(np.isin(kind, list(MENDED.values())) & (cause != NONE))
    own = own[~is_found[cause[own]]]
    found, first = np.unique(cause[own], return_index=True)  # best first
    mended, reached = np.zeros(len(kind), bool), np.zeros(len(is_found), bool)
    mended[own[first]], reached[found] = True, True
    return mended, reached


def error_costs(sides: Sides, judgement: Judgement) -> dict[str, float | None]:
    """dAP in points of AP of each of `COSTS` and `SPECIAL_COSTS`; all None where there is no object.

    A main error that would cost less than nothing, by the steps of recall, costs nothing, as in the authors' code.
    """
    counted = np.flatnonzero(sides.num_objects)
    if not len(counted):
        return dict.fromkeys((*COSTS, *SPECIAL_COSTS))
    means = {name: float(state.class_ap(counted).mean()) for name, state in states(sides, judgement)}
    costs = {name: means[name] - means[""] for name in (*COSTS, *SPECIAL_COSTS)}
    return {name: max(cost, 0.0) if name in COSTS else cost for name, cost in costs.items()}
