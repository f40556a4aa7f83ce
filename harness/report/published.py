"""The paper's own numbers of its analysis, as tables of the same form as ours.

The numbers of the paper's tables stand in the ablation files beside the rows they belong to; these are no row's.
Source: Co-DETR (arXiv 2211.12860 v6), Figures 8 and 9. Figure 6 is a plot without numbers: its distances at K = 2 and
K = 6 follow from the matrices by their definition, and those at other K are not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FIGURE_8 = (
    ("decoder", "atss", "faster_rcnn"),
    (
        (0, 0.0078, 0.0085),
        (0.0073, 0, 0.0062),
        (0.0079, 0.0059, 0),
    ),
)
FIGURE_9 = (
    ("decoder", "atss", "faster_rcnn", "paa", "gfl", "fcos", "retinanet"),
    (
        (0, 0.0062, 0.0090, 0.0129, 0.0079, 0.0069, 0.0083),
        (0.0066, 0, 0.0097, 0.0132, 0.0077, 0.0045, 0.0083),
        (0.0083, 0.0087, 0, 0.0091, 0.0055, 0.0095, 0.0063),
        (0.0116, 0.0116, 0.0083, 0, 0.0075, 0.0125, 0.0090),
        (0.0073, 0.0068, 0.0056, 0.0083, 0, 0.0081, 0.0054),
        (0.0075, 0.0048, 0.0107, 0.0143, 0.0092, 0, 0.0092),
        (0.0078, 0.0075, 0.0066, 0.0100, 0.0055, 0.0082, 0),
    ),
)


def _table(heads: tuple[str, ...], matrix: tuple[tuple[float, ...], ...]) -> dict[str, Any]:
    """A table of kind `conflict`: S_i = 1/(2(K-1)) Σ_j (S_ij + S_ji) over the K-1 other heads."""
    others = len(heads) - 1
    return {
        "kind": "conflict",
        "heads": list(heads),
        "matrix": [list(row) for row in matrix],
        "distance": {
            head: {"value": (sum(matrix[i]) + sum(row[i] for row in matrix)) / (2 * others)}
            for i, head in enumerate(heads)
        },
    }


PUBLISHED_CONFLICT = {"paper, Figure 8": _table(*FIGURE_8), "paper, Figure 9": _table(*FIGURE_9)}


def published_conflict(heads: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """The paper's matrix of these heads, whatever their order there, with its name; None where it has none.

    Rows and columns come in the order of `heads`.
    """
    for name, table in PUBLISHED_CONFLICT.items():
        if sorted(table["heads"]) == sorted(heads):
            order = [table["heads"].index(head) for head in heads]
            matrix = tuple(tuple(table["matrix"][i][j] for j in order) for i in order)
            return name, _table(tuple(heads), matrix)
    return None
