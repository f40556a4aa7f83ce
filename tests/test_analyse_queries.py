"""Query statistics on positions made by hand."""

from __future__ import annotations

import pytest
import torch

from harness.analyse.queries import positives_per_gt, query_distances

POINTS = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]], [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
GT_INDEX = torch.tensor([[0, 1, -1], [-1, -2, -1]])  # two positives, then an image without any
QUERIES = torch.tensor([[[0.0, 5.0], [3.0, 0.0], [0.0, 0.0], [30.0, 40.0]], [[0.0, 0.0]] * 4])
MATCHED = torch.tensor([[0, 1, -1, -1], [-1, -1, -1, -1]])


def test_positives_per_ground_truth() -> None:
    valid = torch.tensor([[True, True, True], [False, False, False]])
    assert positives_per_gt(GT_INDEX, valid) == (2, 3)


def test_distances_go_to_the_same_objects_query_and_to_all_unmatched_ones() -> None:
    to_positives, to_negatives = query_distances(POINTS, GT_INDEX, QUERIES, MATCHED, torch.tensor([10.0, 10.0]))
    # (0, 0) to (0, 5) of its object: 5; (3, 4) to (3, 0): 4
    assert float(to_positives[0]) == pytest.approx((5 + 4) / 2 / 10)
    # unmatched (0, 0) and (30, 40): from (0, 0) 0 and 50, from (3, 4) 5 and 45
    assert float(to_negatives[0]) == pytest.approx((0 + 50 + 5 + 45) / 4 / 10)
    assert to_positives[1].isnan() and to_negatives[1].isnan()
