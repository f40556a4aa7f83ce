"""The contract of `model/assign`, as tests of an assigner. What each finds on its own is tested elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import LossWeights
from model.types import BACKGROUND, Targets
from tests.support.rooms import make
from tests.support.tiny import NUM_CLASSES, tiny_targets

VALID_HW = torch.tensor([[64, 96], [50, 41], [96, 30]])
LAYERS, QUERIES = 2, 9


def build(case: str) -> Any:
    return make("assign", case, weights=LossWeights())


def predictions(queries: int = QUERIES, layers: int = LAYERS, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, 3, queries, NUM_CLASSES, generator=generator)
    centres = torch.rand(layers, 3, queries, 2, generator=generator) * 0.6 + 0.2
    sides = torch.rand(layers, 3, queries, 2, generator=generator) * 0.4 + 0.05
    return logits, torch.cat([centres, sides], -1)


def targets_of(*counts: int) -> Targets:
    return tiny_targets(counts, VALID_HW)


def assert_valid(gt_index: Tensor, targets: Targets) -> None:
    assert gt_index.dtype == torch.int64 and not gt_index.requires_grad
    for image, count in enumerate(targets.num_boxes.tolist()):
        assert gt_index[:, image].min() >= BACKGROUND
        assert gt_index[:, image].max() < count, "rows of padding are nobody's"


class AssignerContract:
    """What every part of `model/assign` keeps."""

    @pytest.mark.parametrize("counts", [(3, 0, 5), (0, 0, 0), (1, 1, 1), (20, 0, 2)], ids=str)
    def test_queries_get_ground_truths_of_their_image(self, case: str, counts: tuple[int, ...]) -> None:
        logits, boxes = predictions()
        gt_index = build(case)(logits, boxes, targets_of(*counts), VALID_HW)
        assert gt_index.shape == (LAYERS, 3, QUERIES)
        assert_valid(gt_index, targets_of(*counts))

    def test_a_query_that_predicts_an_object_gets_it(self, case: str) -> None:
        targets = targets_of(3, 0, 2)
        logits, boxes = predictions()
        for image, count in enumerate(targets.num_boxes.tolist()):
            boxes[:, image, 2 : 2 + count] = targets.boxes_cxcywh(VALID_HW)[image, :count]
            logits[:, image] = -6
            for gt in range(count):
                logits[:, image, 2 + gt, targets.labels[image, gt]] = 6
        gt_index = build(case)(logits, boxes, targets, VALID_HW)
        for image, count in enumerate(targets.num_boxes.tolist()):
            assert (gt_index[:, image, 2 : 2 + count] == torch.arange(count)).all()

    def test_more_objects_than_queries_are_fine(self, case: str) -> None:
        targets = targets_of(7, 0, 12)
        for queries in (0, 1, 4):
            gt_index = build(case)(*predictions(queries), targets, VALID_HW)
            assert gt_index.shape == (LAYERS, 3, queries)
            if queries:
                assert_valid(gt_index, targets)

    def test_excluded_queries_get_none_and_are_as_good_as_absent(self, case: str) -> None:
        targets, (logits, boxes) = targets_of(3, 2, 5), predictions()
        excluded = torch.zeros(3, QUERIES, dtype=torch.bool)
        excluded[:, ::3], excluded[2] = True, True
        gt_index = build(case)(logits, boxes, targets, VALID_HW, excluded)
        assert_valid(gt_index, targets)
        assert (gt_index.masked_select(excluded) == BACKGROUND).all()
        assert (gt_index[:, :2] >= 0).any()
        rest = ~excluded[0]
        without = build(case)(logits[:, :2, rest], boxes[:, :2, rest], targets.of_images(slice(0, 2)), VALID_HW[:2])
        assert torch.equal(gt_index[:, :2, rest], without)

    def test_layers_and_images_are_assigned_each_on_its_own(self, case: str) -> None:
        targets, (logits, boxes) = targets_of(3, 0, 5), predictions()
        gt_index = build(case)(logits, boxes, targets, VALID_HW)
        for layer in range(LAYERS):
            for image in range(3):
                own = slice(image, image + 1)
                one = slice(layer, layer + 1)
                alone = build(case)(logits[one, own], boxes[one, own], targets.of_images(own), VALID_HW[own])
                assert torch.equal(alone[0, 0], gt_index[layer, image])

    def test_twice_the_same_and_nothing_drawn(self, case: str) -> None:
        assign, targets, (logits, boxes) = build(case), targets_of(3, 0, 5), predictions()
        state = torch.get_rng_state()
        first = assign(logits.requires_grad_(), boxes.requires_grad_(), targets, VALID_HW)
        assign(*predictions(seed=1), targets, VALID_HW)  # keeps no state
        assert torch.equal(assign(logits, boxes, targets, VALID_HW), first)
        assert torch.equal(torch.get_rng_state(), state)

    def test_double_and_half_precision_are_fine(self, case: str) -> None:
        targets, (logits, boxes) = targets_of(3, 0, 5), predictions()
        expected = build(case)(logits, boxes, targets, VALID_HW)
        assert torch.equal(build(case)(logits.double(), boxes.double(), targets, VALID_HW), expected)
        assert_valid(build(case)(logits.bfloat16(), boxes, targets, VALID_HW), targets)
