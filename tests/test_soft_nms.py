"""Soft-NMS after the decoder, against a slow form of it and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.boxes import iou_pairwise
from model.postprocess.configs import SoftNMSConfig, TopKConfig
from model.postprocess.soft_nms import SoftNMS
from model.postprocess.top_k import TopK
from model.types import Detections

VALID_HW = torch.tensor([[100, 200], [60, 80]])
LIMIT = 300


def crowded(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of 3 classes and boxes of 40 queries around 5 places."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(2, 5, 4, generator=generator) * 0.5 + 0.2
    boxes = places.repeat(1, 8, 1) + torch.randn(2, 40, 4, generator=generator) * 0.01
    return torch.randn(2, 40, 3, generator=generator) * 3, boxes


def slowly(candidates: Detections, threshold: float, min_score: float) -> list[tuple[int, float]]:
    """Which candidates are taken, and their scores then."""
    left = dict(enumerate(candidates.scores.tolist()))
    iou = iou_pairwise(candidates.boxes_xyxy, candidates.boxes_xyxy).tolist()
    taken = []
    while left:
        best = max(left, key=lambda i: left[i])
        if taken and left[best] < min_score:
            break
        taken.append((best, left.pop(best)))
        for other in left:
            if candidates.labels[other] == candidates.labels[best] and iou[best][other] >= threshold:
                left[other] *= 1 - iou[best][other]
    return taken


@pytest.mark.parametrize(
    "settings",
    [{}, {"iou_threshold": 0.3}, {"min_score": 0.2, "iou_threshold": 0.5}, {"candidates": 100}, {"candidates": 5}],
    ids=str,
)
def test_it_is_the_slow_form(settings: dict[str, Any]) -> None:
    config, predicted = SoftNMSConfig(**settings), crowded()
    entered = TopK(TopKConfig())(*predicted, VALID_HW, config.candidates or 40)
    for image, candidates in zip(SoftNMS(config)(*predicted, VALID_HW, LIMIT), entered, strict=True):
        expected = slowly(candidates, config.iou_threshold, config.min_score)
        numbers = [number for number, _ in expected]
        torch.testing.assert_close(image.scores, torch.tensor([score for _, score in expected]))
        assert torch.equal(image.labels, candidates.labels[numbers])
        assert torch.equal(image.boxes_xyxy, candidates.boxes_xyxy[numbers])


def test_overlapping_boxes_of_a_class_lose_score() -> None:
    """Three queries: two with an IoU of 0.9 and of one class, then one of another class in the same place."""
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.5, 0.48, 0.4, 0.36], [0.5, 0.5, 0.4, 0.4]]])
    logits = torch.tensor([[[0.9, 0.0], [0.8, 0.0], [0.0, 0.5]]]).logit(1e-6)
    (found,) = SoftNMS(SoftNMSConfig())(logits, boxes, torch.tensor([[100, 100]]), LIMIT)
    assert found.labels.tolist() == [0, 1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.8 * (1 - 0.9)], rel=1e-4)
    expected = torch.tensor([[30.0, 30, 70, 70], [30, 30, 70, 70], [30, 30, 70, 66]])
    torch.testing.assert_close(found.boxes_xyxy, expected)


def test_a_repeated_box_is_dropped_and_boxes_are_clipped_before_they_are_compared() -> None:
    """Inside the image the second box is the first, though it reaches further beyond the border."""
    boxes = torch.tensor([[[0.0, 0.5, 0.4, 0.4], [0.0, 0.5, 0.4, 0.4], [-0.2, 0.5, 0.8, 0.4]]])
    logits = torch.tensor([[[0.9], [0.8], [0.7]]]).logit()
    (found,) = SoftNMS(SoftNMSConfig())(logits, boxes, torch.tensor([[100, 100]]), LIMIT)
    assert found.scores.tolist() == pytest.approx([0.9])
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[0.0, 30, 20, 70]]))


def test_the_best_are_the_same_however_many_are_asked_for() -> None:
    predicted = crowded(1)
    for few, many in zip(*(SoftNMS(SoftNMSConfig())(*predicted, VALID_HW, limit) for limit in (7, 300)), strict=True):
        assert len(few.scores) == 7 < len(many.scores)
        assert torch.equal(few.scores, many.scores[:7]) and torch.equal(few.boxes_xyxy, many.boxes_xyxy[:7])
        assert torch.equal(few.labels, many.labels[:7])


def test_an_image_whose_scores_are_all_too_low_keeps_its_best_detection() -> None:
    """Official: the first one is taken before anything is compared with the least score."""
    logits, boxes = crowded()
    low = logits - torch.tensor([[[0.0]], [[50.0]]])
    (first, second) = SoftNMS(SoftNMSConfig())(low, boxes, VALID_HW, LIMIT)
    assert len(first.scores) > 1 and second.scores.tolist() == [low[1].sigmoid().max().item()]
    (best,) = TopK(TopKConfig())(low[1:], boxes[1:], VALID_HW[1:], 1)
    assert torch.equal(second.boxes_xyxy, best.boxes_xyxy) and torch.equal(second.labels, best.labels)
    (none, _) = SoftNMS(SoftNMSConfig())(low[:, :0], boxes[:, :0], VALID_HW, LIMIT)
    assert none.scores.shape == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iou_threshold": 0.0}, "iou_threshold must be in \\(0, 1\\], got 0.0"),
        ({"min_score": 1.0}, "min_score must be in \\[0, 1\\), got 1.0"),
        ({"candidates": 0}, "candidates must be at least 1, or null for as many as queries, got 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SoftNMSConfig(**settings)
