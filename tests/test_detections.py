"""Detections in columns are the rows they were made of, in every number."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from harness.spec.detection_metrics import best_of_images
from harness.trial import detections as room
from harness.trial.detections import DetectionTable, joined


def rows(count: int, *, masks: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """On five images, with ties in score."""
    rng = np.random.default_rng(seed)
    return [
        {
            "image_id": int(rng.integers(0, 5)) * 2**40,
            "category_id": int(rng.integers(0, 90)),
            "bbox": rng.uniform(0, 500, 4).tolist(),
            "score": round(float(rng.random()), 1),
        }
        | ({"segmentation": {"size": [4, 6], "counts": f"text{number}"}} if masks else {})
        for number in range(count)
    ]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_rows_come_back_as_they_were(count, masks, monkeypatch):
    monkeypatch.setattr(room, "ROWS_AT_ONCE", 3)
    given = rows(count, masks=masks)
    table = DetectionTable.of(given)
    assert list(table) == given and len(table) == count
    assert table.to_json() == json.dumps(given).encode()
    assert list(map(list, table)) == [list(row) for row in given]  # the order of names too


def test_tables_are_joined_in_their_order():
    parts = [rows(3, masks=True), [], rows(2, masks=True, seed=1)]
    assert list(joined([DetectionTable.of(part) for part in parts])) == parts[0] + parts[2]
    assert list(joined([])) == [] and joined([]).masks is None
    assert joined([DetectionTable.of(rows(1)), DetectionTable.of(rows(1, masks=True))]).masks is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [1, 4, 60])
def test_the_best_of_images_are_those_of_the_rows(limit, seed):
    given = rows(100, masks=True, seed=seed)
    assert list(DetectionTable.of(given).best_of_images(limit)) == best_of_images(given, limit)


def test_annotations_are_numbered_and_measured():
    given = rows(4)
    found = DetectionTable.of(given).annotations(with_masks=False)
    assert found == [
        {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(given, 1)
    ]
    assert DetectionTable.of([]).annotations(with_masks=True) == []
