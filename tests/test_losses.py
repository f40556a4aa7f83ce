"""Loss functions: gradients in float64, values worked out by hand, and the reduction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.assign import ASSIGNERS
from model.classification.configs import QualityConfig
from model.criterion import Objective, set_losses
from model.losses import (
    AVERAGE_EPSILON,
    Quality,
    binary_cross_entropy,
    centerness_of_anchors,
    centerness_of_distances,
    distribution_focal_loss,
    giou_loss,
    iou_log_loss,
    l1_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    weighted_mean,
)
from model.types import BACKGROUND, Targets
from tests.support.tiny import tiny_config


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).requires_grad_()


LABELS = torch.tensor([0, 2, BACKGROUND, 1])
QUALITY = torch.tensor([0.3, 0.9, 0.0, 0.5], dtype=torch.float64)
BOXES = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 30], [50, 50, 60, 60]], dtype=torch.float64)
NEAR = (BOXES + torch.tensor([1.0, -2, 3, 4], dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize(
    "loss, prediction",
    [
        (lambda x: sigmoid_focal_loss(x, LABELS), normal(4, 3)),
        (lambda x: quality_focal_loss(x, LABELS, QUALITY), normal(4, 3)),
        (lambda x: distribution_focal_loss(x, torch.tensor([0.0, 1.25, 3.0, 2.5], dtype=torch.float64)), normal(4, 5)),
        (lambda x: softmax_cross_entropy(x, LABELS), normal(4, 4)),
        (lambda x: binary_cross_entropy(x, QUALITY), normal(4)),
        (lambda x: giou_loss(x, BOXES), NEAR),
        (lambda x: iou_log_loss(x, BOXES), NEAR),
        (lambda x: l1_loss(x, BOXES), NEAR),
    ],
    ids=["focal", "quality", "distribution", "softmax", "binary", "giou", "iou_log", "l1"],
)
def test_gradients(loss, prediction: Tensor) -> None:
    assert torch.autograd.gradcheck(loss, prediction)


def test_focal_at_even_odds() -> None:
    loss = sigmoid_focal_loss(torch.zeros(2, 2), torch.tensor([1, BACKGROUND]))
    target, other = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    assert loss.flatten().tolist() == pytest.approx([other, target, other, other])


def test_labels_outside_the_classes_are_background() -> None:
    logits = normal(3, 2)
    background = sigmoid_focal_loss(logits, torch.full((3,), BACKGROUND))
    assert torch.equal(sigmoid_focal_loss(logits, torch.tensor([2, -2, 99])), background)


def test_quality_focal_vanishes_at_the_target() -> None:
    quality = torch.tensor([0.2, 0.8])
    logits = torch.stack([quality.logit(), torch.full((2,), -50.0)], 1)
    loss = quality_focal_loss(logits, torch.zeros(2, dtype=torch.long), quality)
    assert loss.flatten().tolist() == pytest.approx([0] * 4, abs=1e-6)


def test_distribution_focal_weighs_the_two_neighbouring_bins() -> None:
    log_probability = torch.tensor([[0.5, 0.25, 0.25]]).log()
    expected = -(0.75 * math.log(0.5) + 0.25 * math.log(0.25))
    assert distribution_focal_loss(log_probability, torch.tensor([0.25])).item() == pytest.approx(expected)


def test_softmax_counts_background_as_the_last_class() -> None:
    loss = softmax_cross_entropy(torch.tensor([[0.0, 0.0, 2.0], [2.0, 0.0, 0.0]]), torch.tensor([BACKGROUND, 0]))
    assert loss.tolist() == pytest.approx([math.log(1 + 2 * math.exp(-2))] * 2)


def test_box_losses_of_known_boxes() -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 10.0])
    targets = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [30, 0, 40, 10]])
    assert giou_loss(box, targets).tolist() == pytest.approx([0, 2 / 3, 1.5])
    assert iou_log_loss(box, targets).tolist() == pytest.approx([0, math.log(3), -math.log(1e-6)])
    assert l1_loss(box, targets[1]).tolist() == [5, 0, 5, 0]


def test_weighted_mean_divides_by_what_it_is_told() -> None:
    loss, weight = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0])
    assert weighted_mean(loss, weight, 4.0).item() == pytest.approx(7 / 4)
    assert weighted_mean(loss, None, 4.0).item() == pytest.approx(6 / 4)
    assert weighted_mean(loss, None, 0.0).item() == pytest.approx(6 / AVERAGE_EPSILON)


def test_centerness() -> None:
    distances = torch.tensor([[5.0, 5, 5, 5], [1, 5, 4, 5], [1, 2, 4, 8], [0, 5, 9, 5]])
    assert centerness_of_distances(distances).tolist() == pytest.approx([1, 0.5, 0.25, 0])
    anchors = torch.tensor([[-5.0, -5, 7, 7]])  # centre (1, 1)
    boxes = torch.tensor([[0.0, 0, 5, 2]])  # distances 1, 1, 4, 1
    assert centerness_of_anchors(anchors, boxes).tolist() == pytest.approx([0.5])


def test_quality_focal_on_queries_has_the_iou_as_target_and_moves_no_box() -> None:
    """One object, two queries: the matched one covers half of it; the sums are divided by the one that is matched."""
    targets = Targets.stack([torch.tensor([[10.0, 20, 30, 40]])], [torch.tensor([1])])
    boxes = torch.tensor([[[[0.15, 0.3, 0.1, 0.2], [0.5, 0.5, 0.2, 0.2]]]], requires_grad=True)
    logits = torch.zeros(1, 1, 2, 3, requires_grad=True)
    losses = set_losses(
        logits,
        boxes,
        torch.tensor([[[0, BACKGROUND]]]),
        targets,
        torch.tensor([[100, 100]]),
        classification=Quality(QualityConfig()),
    )
    # |0.5 - 0.5|^2 for the object's class, 0.5^2 for the five others
    assert losses["classification"].item() == pytest.approx(5 * 0.25 * math.log(2), rel=1e-5)
    assert torch.autograd.grad(losses["classification"].sum(), boxes, allow_unused=True) == (None,)


@pytest.mark.parametrize(("compatibility", "quality"), [("default", 1.0), ("official", 0.5)])
def test_officially_a_tiny_box_is_never_quite_right(compatibility: str, quality: float) -> None:
    """Half a millionth of the image: the official IoU of normalised boxes has a union of at least a millionth."""
    config = tiny_config(classification=QualityConfig(), compatibility=compatibility)
    objective = Objective(
        config, 3, Quality(QualityConfig()), ASSIGNERS.build(config.assign, weights=config.loss_weights)
    )
    targets = Targets.stack([torch.tensor([[500.0, 500, 501, 500.5]])], [torch.tensor([1])])
    boxes = torch.tensor([[[[0.5005, 0.50025, 0.001, 0.0005]]]], dtype=torch.float64)
    losses = objective.losses(
        torch.zeros(1, 1, 1, 3, dtype=torch.float64),
        boxes,
        torch.tensor([[[0]]]),
        targets,
        torch.tensor([[1000, 1000]]),
    )
    own = (0.5 - quality) ** 2 * math.log(2)
    assert losses["classification"].item() == pytest.approx(own + 2 * 0.25 * math.log(2), rel=1e-3)


def test_the_power_of_quality_focal_is_a_setting() -> None:
    logits, labels, iou = normal(2, 3, 4).detach(), torch.tensor([[0, 1, BACKGROUND]] * 2), torch.rand(2, 3)
    for beta in (1.0, 3.0):
        expected = quality_focal_loss(logits, labels, iou, beta)
        assert torch.equal(Quality(QualityConfig(beta=beta))(logits, labels, iou), expected)
    with pytest.raises(ValueError, match="^beta must be at least 1, got 0.5$"):
        QualityConfig(beta=0.5)
