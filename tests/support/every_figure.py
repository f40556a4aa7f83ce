"""Every figure once, with long names, many and few of everything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

import tests.support.analysis_tables as made
from harness.figures.conflict import draw_conflict_distances
from harness.figures.detections import Scene, draw_detections
from harness.figures.discriminability import draw_discriminability
from harness.figures.epochs import draw_curves, draw_instability
from harness.figures.errors import draw_error_changes, draw_error_costs
from harness.figures.influence import draw_influence
from harness.figures.maps import draw_maps
from harness.figures.matrices import draw_conflict_matrices
from harness.figures.queries import draw_query_distances, draw_query_positions
from harness.figures.series import Change, ErrorChanges
from harness.report.published import PUBLISHED_CONFLICT
from harness.spec.error_metrics import COSTS

LONG = "Co-Deformable-DETR++ with ATSS, Faster R-CNN and whatever else a person wants to tell (K = 6) for $5"
UNBROKEN = "learning_rate=0.0002,weight_decay=0.0001,drop_epochs=[11,20],warmup_fraction=0.1,clip_grad_norm=0.1"
SEEDS = range(3)


def changes(label: str) -> ErrorChanges:
    kinds = {kind: Change(place - 2.5, (place - 4.0, place - 2.0), 3) for place, kind in enumerate(COSTS)}
    return ErrorChanges(label, kinds, Change(0.0, None, 1))


def scenes(count: int) -> list[Scene]:
    truth = [made.annotation(1, 5, 5, 20, 20), made.annotation(2, 30, 10, 20, 20)]
    found = [made.detection(1, 0.9, 6, 5, 20, 20), made.detection(2, 0.8, 1, 25, 20, 12)]
    return [Scene(f"image {number}", made.image(), truth, found) for number in range(count)]


FIGURES: dict[str, Callable[[], Figure]] = {
    "ap": lambda: draw_curves([(label, made.history(9)) for label in ("one", LONG) for _ in SEEDS], "AP", LONG),
    "ap of twelve": lambda: draw_curves([(f"row {n}", made.history(n)) for n in range(12) for _ in SEEDS]),
    "ap of one epoch": lambda: draw_curves([("one", made.history(9)[:1])]),
    "instability": lambda: draw_instability([(label, made.history(9 + s)) for label in ("a", LONG) for s in SEEDS]),
    "instability of one": lambda: draw_instability([("one", made.history(9))]),
    "discriminability": lambda: draw_discriminability(
        [(label, made.discriminability(2 + s)) for label in ("a", LONG) for s in SEEDS]
    ),
    "discriminability of one": lambda: draw_discriminability([("one", made.discriminability(2, attention=False))]),
    "distances": lambda: draw_conflict_distances(
        [(f"K = {k}", made.conflict(k, 0.01 + k / 1000)) for k in (0, 1, 2, 3, 6) for _ in SEEDS],
        [("paper", table) for table in PUBLISHED_CONFLICT.values()],
    ),
    "distances of pairs": lambda: draw_conflict_distances(
        [("ATSS + Faster R-CNN", made.conflict(2)), ("two ATSS", made.conflict(2, heads=("decoder", "atss", "atss.2")))]
    ),
    "ap of an unbroken title": lambda: draw_curves([(UNBROKEN, made.history(9)) for _ in SEEDS], "AP", UNBROKEN),
    "discriminability of twenty": lambda: draw_discriminability(
        [(f"row {n}", made.discriminability(1 + n / 4 + s)) for n in range(20) for s in SEEDS]
    ),
    "distances of twenty": lambda: draw_conflict_distances([(f"row {n}: {LONG}", made.conflict(2)) for n in range(20)]),
    "distances of long names": lambda: draw_conflict_distances([(f"{LONG} {n}", made.conflict(2)) for n in range(4)]),
    "query distances of long names": lambda: draw_query_distances(
        [(UNBROKEN, made.queries("atss", "a_head_with_a_very_long_name_indeed"))]
    ),
    "matrix of long names": lambda: draw_conflict_matrices(
        [(UNBROKEN, made.conflict(2, heads=("decoder", "a_head_with_a_very_long_name_indeed.2", "another_one")))]
    ),
    "distances of one": lambda: draw_conflict_distances([("one", made.conflict(1))]),
    "matrices": lambda: draw_conflict_matrices(
        [*((LONG, made.conflict(6)) for _ in SEEDS), ("paper", made.conflict(6))]
    ),
    "matrix of one": lambda: draw_conflict_matrices([(LONG, made.conflict(1))]),
    "matrix of K = 0": lambda: draw_conflict_matrices([("K = 0", made.conflict(0))]),
    "positions": lambda: draw_query_positions(made.image(), made.queries("atss", "fcos")["examples"][0]),
    "query distances": lambda: draw_query_distances([(LONG, made.queries("atss", "fcos", near=n)) for n in (0.1, 0.2)]),
    "query distances of models": lambda: draw_query_distances(
        [("a", made.queries("atss")), (LONG, made.queries("fcos"))]
    ),
    "influence": lambda: draw_influence(
        [(label, made.gradient("atss", "faster_rcnn", level=s / 9)) for label in ("K = 2", LONG) for s in SEEDS],
        [(label, made.transfer("atss", "faster_rcnn", level=s / 900)) for label in ("K = 2", LONG) for s in SEEDS],
    ),
    "influence of one": lambda: draw_influence(
        [("one", made.gradient("atss", "fcos"))], [("one", made.transfer("atss"))]
    ),
    "influence of gradients": lambda: draw_influence([("one", made.gradient("a_head_with_a_very_long_name_indeed"))]),
    "maps": lambda: draw_maps(
        [(made.image(), np.array([[1, 1, 20, 30]])), (made.image(60, 40), np.zeros((0, 4)))],
        [(LONG, [np.eye(4), np.ones((8, 6)) / 2]), ("two", [None, np.eye(3, dtype=np.float16)])],
    ),
    "detections": lambda: draw_detections(scenes(3), {1: "a thing", 2: "another thing"}),
    "detections of a crowd": lambda: draw_detections(
        [
            Scene(
                LONG,
                made.image(90, 60),
                [made.annotation(1, 5 * (n % 12), 8 * (n // 12), 4, 7) for n in range(100)],
                [made.detection(2, 0.9, 5 * (n % 12), 8 * (n // 12), 4, 7) for n in range(90)],
                f"{LONG}/{LONG}.jpg",
            )
        ],
        {1: LONG, 2: "红"},
        0.002,
        LONG,
    ),
    "errors": lambda: draw_error_costs([(name, dict.fromkeys(COSTS, 1.5)) for name in ("decoder", "atss", UNBROKEN)]),
    "errors of rows": lambda: draw_error_changes([changes(label) for label in ("a", LONG, UNBROKEN)], LONG, LONG),
    "detections of one": lambda: draw_detections(scenes(1), {1: "a", 2: "b"}),
}
