"""ATSS on hand-made boxes with known answers, and against a slow, obvious reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.anchors import anchor_grid, valid_flags
from model.assign import assign_atss
from model.boxes import iou_pairwise, xyxy_to_cxcywh
from model.types import BACKGROUND, IGNORED, Targets

FOUR = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])


def targets_of(*images: list[list[float]]) -> Targets:
    return Targets.stack(
        [torch.tensor(boxes).reshape(-1, 4) for boxes in images],
        [torch.zeros(len(boxes), dtype=torch.long) for boxes in images],
    )


def test_four_boxes_and_two_objects() -> None:
    # Object 0 is anchor 0: IoUs 1, 0, 0, 0 give mean 0.25 + deviation 0.5. Object 1 has IoUs 1/7, 0.6, 0, 0.
    gt_index, iou = assign_atss(FOUR, (4,), targets_of([[0, 0, 8, 8], [6, 0, 14, 8]]), top_k=4)
    assert gt_index.tolist() == [[0, 1, BACKGROUND, BACKGROUND]]
    assert iou[0].tolist() == pytest.approx([1, 0.6, 0, 0])


def test_the_deviation_is_the_unbiased_one() -> None:
    # Candidates of IoU 1 and 0: the threshold 0.5 + 0.707 is out of reach; the biased one would be 1.
    gt_index, _ = assign_atss(FOUR[:2], (2,), targets_of([[0, 0, 8, 8]]))
    assert gt_index.tolist() == [[BACKGROUND, BACKGROUND]]


def test_a_single_candidate_has_no_deviation() -> None:
    gt_index, _ = assign_atss(FOUR[:1], (1,), targets_of([[1, 1, 7, 8]]))
    assert gt_index.tolist() == [[0]]


def test_the_centre_must_lie_inside_the_object() -> None:
    anchors = torch.tensor([[0.0, 0, 8, 8]])
    inside, outside = [[3.98, 0, 12, 8]], [[3.995, 0, 12, 8]]  # the centre is at x = 4
    gt_index, _ = assign_atss(anchors, (1,), targets_of(inside, outside))
    assert gt_index.tolist() == [[0], [BACKGROUND]]


def test_a_contested_anchor_goes_to_the_larger_overlap() -> None:
    gt_index, iou = assign_atss(FOUR[:1], (1,), targets_of([[0, 0, 8, 6], [0, 0, 8, 7], [0, 0, 8, 5]]))
    assert gt_index.tolist() == [[1]]
    assert iou.item() == pytest.approx(7 / 8)


def test_equally_near_anchors_are_taken_row_by_row() -> None:
    # The object's centre (8, 8) is equally far from all four; its IoU with each is the same.
    gt_index, _ = assign_atss(FOUR, (4,), targets_of([[2, 2, 14, 14]]), top_k=1)
    assert gt_index.tolist() == [[0, BACKGROUND, BACKGROUND, BACKGROUND]]


def test_invalid_anchors_take_no_part() -> None:
    valid = torch.tensor([[False, True, True, True]])
    gt_index, _ = assign_atss(FOUR, (4,), targets_of([[0, 0, 8, 8]]), top_k=1, valid=valid)
    assert gt_index.tolist() == [[IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]]


def test_nothing_to_assign() -> None:
    gt_index, iou = assign_atss(FOUR, (4,), targets_of([], []))
    assert gt_index.tolist() == [[BACKGROUND] * 4] * 2
    assert iou.tolist() == [[0] * 4] * 2
    gt_index, iou = assign_atss(FOUR[:0], (0,), targets_of([[0, 0, 8, 8]]))
    assert gt_index.shape == iou.shape == (1, 0)


def slow_atss(anchors: Tensor, level_sizes: tuple[int, ...], boxes: Tensor, valid: Tensor, top_k: int) -> Tensor:
    """One image, one ground truth and one level at a time, as the paper's Algorithm 1 reads."""
    result = torch.where(valid, BACKGROUND, IGNORED)
    best = torch.zeros(len(anchors))
    overlaps = iou_pairwise(boxes, anchors)
    centres = xyxy_to_cxcywh(anchors)[:, :2]
    for gt, box in enumerate(boxes):
        candidates: list[int] = []
        start = 0
        for size in level_sizes:
            usable = [i for i in range(start, start + size) if valid[i]]
            distance = (centres - xyxy_to_cxcywh(box)[:2]).norm(dim=1)
            candidates += sorted(usable, key=lambda i: float(distance[i]))[:top_k]  # noqa: B023
            start += size
        ious = overlaps[gt, candidates]
        threshold = ious.mean() + (ious.std() if len(candidates) > 1 else 0)
        for i in candidates:
            x, y = centres[i]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlaps[gt, i] >= threshold and inside and overlaps[gt, i] > best[i]:
                best[i], result[i] = overlaps[gt, i], gt
    return result


@pytest.mark.parametrize("seed", range(4))
def test_batch_equals_the_slow_reference_image_by_image(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    strides, sizes = (8, 16, 32), ((12, 16), (6, 8), (3, 4))
    level_sizes = tuple(h * w for h, w in sizes)
    anchors = anchor_grid(sizes, strides, (8.0,))
    valid_hw = torch.tensor([[96, 128], [70, 100], [33, 17]])
    valid = valid_flags(sizes, strides, valid_hw)
    images = []
    for (height, width), count in zip(valid_hw.tolist(), (6, 1, 3), strict=True):
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.7
        side = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.6 + 4
        images.append(torch.cat([corner, corner + side], 1))
    targets = Targets.stack(images, [torch.zeros(len(boxes), dtype=torch.long) for boxes in images])
    gt_index, iou = assign_atss(anchors, level_sizes, targets, top_k=5, valid=valid)
    assert (gt_index >= 0).any()
    for image, boxes in enumerate(images):
        assert torch.equal(gt_index[image], slow_atss(anchors, level_sizes, boxes, valid[image], 5))
        positive = gt_index[image] >= 0
        overlaps = iou_pairwise(anchors, boxes)[positive, gt_index[image, positive]]
        assert torch.equal(iou[image, positive], overlaps)
        assert (iou[image, ~positive] == 0).all()
