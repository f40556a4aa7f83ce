"""Detections on a page: AP by class, thresholds, and the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.report.section import Picture, figure_of

if TYPE_CHECKING:
    from harness.report.detected import Detected, Sheet

MOST_CLASSES = 100  # lines of a page's table; the record has all


def detected_on(found: Detected, sheet: Picture | None) -> dict[str, Any]:
    """AP by class, the worst images and their sheet, or why they are not there."""
    lines = found.classes.lines
    if len(lines) > MOST_CLASSES and lines[0][1] is not None:
        lines = tuple(sorted(lines, key=lambda line: -(line[1] or 0)))
    shown = lines[:MOST_CLASSES]
    which = "" if len(lines) <= MOST_CLASSES else f": {len(shown)} of {len(lines)}, {_chosen_classes(shown)}"
    return {
        "data": found.data,
        "words": _sheet_words(found) if found.sheet else "",
        "missing": found.missing,
        "title": f"AP of each class{which}",
        "rows": found.classes.rows,
        "has_counts": bool(shown) and shown[0][1] is not None,
        "best_words": _best_words(found),
        "classes": [
            {
                "name": name,
                "count": "" if count is None else f"{count:,}",
                "best": _best_cells(found, name),
                "values": ["–" if value is None else f"{value:.1f}" for value in values],
            }
            for name, count, values in shown
        ],
        "worst": _worst(found.sheet) if found.sheet else [],
        "figure": figure_of(sheet) if sheet else None,
        "gallery": found.images.gallery if found.images else None,
        "gallery_words": found.images.words if found.images else "",
        "gallery_missing": found.images.missing if found.images else "",
    }


def _best_words(found: Detected) -> str:
    """What the columns of thresholds are; empty where there are none."""
    if found.best is None:
        return ""
    of = f"trial {found.best.trial} ({found.best.row}, seed {found.best.seed})"
    return f"Threshold, precision and recall: at the score with the best F1 of each class, at IoU 0.5, of {of}."


def _best_cells(found: Detected, name: str) -> list[str]:
    """Threshold, precision and recall of a class; dashes where nothing of it is right."""
    if found.best is None:
        return []
    if name not in found.best.classes:
        return ["–"] * 3
    score, precision, recall = found.best.classes[name]
    return [f"{score:g}", f"{precision:.1f}", f"{recall:.1f}"]


def _chosen_classes(shown: Sequence[tuple[str, int | None, Any]]) -> str:
    return "those with most objects" if shown[0][1] is not None else "the first"


def _sheet_words(found: Detected) -> str:
    assert found.sheet is not None
    text = f"Images of trial {found.trial} ({found.row}, seed {found.seed}), of the best row that left its detections. "
    return text + f"A detection counts from a score of {found.sheet.score:g} on ({found.sheet.why})."


def _worst(sheet: Sheet) -> list[dict[str, Any]]:
    return [
        {
            "file": own.file_name,
            "objects": own.num_objects,
            "found": len(own.matches.true_positives),
            "missed": len(own.matches.false_negatives),
            "false": len(own.matches.false_positives),
            "f1": f"{own.matches.f1:.2f}",
        }
        for own in sheet.worst
        if own.matches.num_errors
    ]
