"""Instability of the matching: hand-made sequences, and where the detector's queries come from."""

from __future__ import annotations

import pytest
import torch

from harness.trial.instability import instabilities, instability, sources_by_object
from model.detector import Detector
from tests.support.tiny import NUM_CLASSES, PLAIN, single, tiny_batch, tiny_config


def test_a_hand_made_sequence():
    """Two images, four queries. Image 0: its two objects swap queries; image 1: its object moves to another query."""
    before = torch.tensor([[0, 1, -1, -1], [-1, 0, -1, -1]])
    after = torch.tensor([[1, 0, -1, -1], [0, -1, -1, -1]])
    assert instability(before, after) == (2 + 2) / 2
    assert instability(after, after) == 0


def test_keyed_by_ground_truth_the_slots_do_not_matter():
    """The same places win in another order: no object has changed. Then one object takes its query elsewhere."""
    places = torch.tensor([[70, 80, 90]])
    before = torch.stack([torch.tensor([[0, -1, 1]]), places], 1)
    reordered = torch.stack([torch.tensor([[1, 0, -1]]), places[:, [2, 0, 1]]], 1)
    assert instabilities(before, reordered) == {"instability": 3, "instability_gt": 0}
    moved = torch.stack([torch.tensor([[-1, 0, 1]]), places], 1)
    assert instabilities(before, moved) == {"instability": 2, "instability_gt": 1}
    assert sources_by_object(moved[:, 0], places, 3).tolist() == [[80, 90, -1]]


def test_more_objects_than_queries():
    """Three queries for five objects: which of them are matched changes, and none is mistaken for a lack of a match."""
    places = torch.tensor([[70, 80, 90]])
    before = torch.stack([torch.tensor([[0, 3, 1]]), places], 1)
    after = torch.stack([torch.tensor([[0, 3, 4]]), places], 1)
    assert instabilities(before, before) == {"instability": 0, "instability_gt": 0}
    assert instabilities(before, after) == {"instability": 1, "instability_gt": 2}
    assert sources_by_object(after[:, 0], places, 5).tolist() == [[70, -1, -1, 80, 90]]


def test_no_object_at_all():
    nothing = torch.stack([torch.full((2, 3), -1), torch.arange(6).reshape(2, 3)], 1)
    assert instabilities(nothing, nothing) == {"instability": 0, "instability_gt": 0}


def test_nothing_to_compare_with():
    matching = torch.zeros(2, 2, 5, dtype=torch.int32)
    nothing = {"instability": None, "instability_gt": None}
    assert instabilities(None, matching) == instabilities(matching[:1], matching) == nothing


@pytest.mark.parametrize("variant", [{}, PLAIN], ids=["two-stage", "one-stage"])
def test_matching_of_a_detector(variant):
    """Every object has one query; sources tell the queries of an image apart and do not depend on the padding."""
    torch.manual_seed(0)
    detector = Detector(tiny_config("atss", **variant), NUM_CLASSES).eval()
    batch = tiny_batch(counts=(3, 0), sizes=((96, 96), (64, 64)))
    _, matching = detector.detect_and_match(batch, ("decoder",))
    gt_index, source = matching.unbind(1)
    assert sorted(gt_index[0][gt_index[0] >= 0].tolist()) == [0, 1, 2]
    assert (gt_index[1] == -1).all()
    assert all(len(set(row)) == 12 for row in source.tolist())
    _, alone = detector.detect_and_match(single(batch, 1, (64, 64)), ("decoder",))
    assert sorted(alone[0, 1].tolist()) == sorted(source[1].tolist())
