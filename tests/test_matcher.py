"""Matching: brute force on small problems, scipy one by one on larger ones, and the awkward inputs."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import model.assign.hungarian
from model.assign.hungarian import match, matching_costs
from model.boxes import cxcywh_to_xyxy, giou_aligned, size_whwh
from model.config import LossWeights
from model.losses import sigmoid_focal_loss
from model.types import BACKGROUND, Targets

WEIGHTS = LossWeights()
HW = torch.tensor([[96, 128], [80, 100], [64, 64]])


def problem(
    counts: tuple[int, ...], queries: int, layers: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Targets, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, 4, generator=generator)
    boxes = torch.rand(layers, len(counts), queries, 4, generator=generator) * 0.5 + 0.1
    hw = HW[: len(counts)]
    gts = [
        cxcywh_to_xyxy(torch.rand(count, 4, generator=generator) * 0.5 + 0.1) * size_whwh(size)
        for count, size in zip(counts, hw, strict=True)
    ]
    labels = [torch.randint(0, 4, (count,), generator=generator) for count in counts]
    return logits, boxes, Targets.stack(gts, labels), hw


def test_costs_are_the_losses_a_match_would_add() -> None:
    logits, boxes, targets, hw = problem((2, 3), 5)
    costs = matching_costs(logits, boxes, targets, hw, WEIGHTS)
    assert costs.shape == (2, 2, 5, 3)
    layer, image, query, gt = 1, 1, 4, 2
    label = targets.labels[image, gt]
    logit, box = logits[layer, image, query], boxes[layer, image, query]
    focal = sigmoid_focal_loss(logit, label) - sigmoid_focal_loss(logit, torch.tensor(BACKGROUND))
    l1 = (box - targets.boxes_cxcywh(hw)[image, gt]).abs().sum()
    giou = giou_aligned(cxcywh_to_xyxy(box) * size_whwh(hw[image]), targets.boxes_xyxy[image, gt])
    expected = WEIGHTS.classification * focal.sum() + WEIGHTS.l1 * l1 - WEIGHTS.giou * giou
    torch.testing.assert_close(costs[layer, image, query, gt], expected)


def test_no_other_choice_is_cheaper() -> None:
    logits, boxes, targets, hw = problem((3, 2), 5)
    costs = matching_costs(logits, boxes, targets, hw, WEIGHTS)
    gt_index = match(logits, boxes, targets, hw, WEIGHTS)
    for layer in range(2):
        for image, count in enumerate((3, 2)):
            chosen = gt_index[layer, image]
            cost = sum(costs[layer, image, q, g] for q, g in enumerate(chosen.tolist()) if g >= 0)
            choices = permutations(range(5), count)
            best = min(sum(costs[layer, image, q, g] for g, q in enumerate(choice)) for choice in choices)
            assert cost == pytest.approx(float(best), abs=1e-5)
            assert sorted(chosen[chosen >= 0].tolist()) == list(range(count))


@pytest.mark.parametrize("threshold", [0, 10**9], ids=["threads", "serial"])
def test_batch_equals_scipy_one_by_one(threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.assign.hungarian, "PARALLEL_COST_SIZE", threshold)
    counts = (7, 0, 12)
    logits, boxes, targets, hw = problem(counts, 20, layers=3)
    gt_index = match(logits, boxes, targets, hw, WEIGHTS)
    for layer in range(3):
        for image, count in enumerate(counts):
            alone = Targets(targets.boxes_xyxy[image, None, :count], targets.labels[image, None, :count])
            part = (slice(layer, layer + 1), slice(image, image + 1))
            cost = matching_costs(logits[part], boxes[part], alone, hw[image, None], WEIGHTS)[0, 0]
            expected = torch.full((20,), BACKGROUND)
            rows, columns = linear_sum_assignment(cost.numpy())
            expected[rows] = torch.from_numpy(columns)
            assert torch.equal(gt_index[layer, image], expected)


def test_more_objects_than_queries() -> None:
    logits, boxes, targets, hw = problem((6,), 4)
    gt_index = match(logits, boxes, targets, hw, WEIGHTS)
    assert all(len(set(layer.tolist())) == 4 and layer.min() >= 0 for layer in gt_index[:, 0])


def test_nothing_to_match() -> None:
    logits, boxes, targets, hw = problem((0, 0), 4)
    assert (match(logits, boxes, targets, hw, WEIGHTS) == BACKGROUND).all()
    logits, boxes, targets, hw = problem((2,), 0)
    assert match(logits, boxes, targets, hw, WEIGHTS).shape == (2, 1, 0)


def test_excluded_queries_are_never_matched() -> None:
    logits, boxes, targets, hw = problem((3, 3), 8)
    free = match(logits, boxes, targets, hw, WEIGHTS)
    excluded = torch.zeros(2, 8, dtype=torch.bool)
    excluded[0] = free[0, 0] >= 0  # take the first layer's favourites away from image 0
    gt_index = match(logits, boxes, targets, hw, WEIGHTS, excluded=excluded)
    assert (gt_index[:, excluded] == BACKGROUND).all()
    assert ((gt_index[:, 0] >= 0).sum(1) == 3).all()
    assert torch.equal(gt_index[:, 1], free[:, 1])
    gone = match(logits, boxes, targets, hw, WEIGHTS, excluded=torch.ones_like(excluded))
    assert (gone == BACKGROUND).all()


def test_costs_stay_in_fp32_under_autocast() -> None:
    logits, boxes, targets, hw = problem((5, 3), 10)
    expected = matching_costs(logits, boxes, targets, hw, WEIGHTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(matching_costs(logits, boxes, targets, hw, WEIGHTS), expected)
        half = matching_costs(logits.bfloat16(), boxes, targets, hw, WEIGHTS)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_named(value: float) -> None:
    logits, boxes, targets, hw = problem((2, 2, 2), 4, layers=3)
    boxes[1, 2, 0] = value
    with pytest.raises(FloatingPointError, match=r"layers \[1\], images \[2\]"):
        match(logits, boxes, targets, hw, WEIGHTS)


def test_matching_costs_no_gradient() -> None:
    logits, boxes, targets, hw = problem((2,), 4)
    assert not match(logits.requires_grad_(), boxes, targets, hw, WEIGHTS).requires_grad
