"""Each assigner on hand-made boxes with known answers; ATSS also against a slow, obvious reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.anchor_assignment import assign_atss, assign_by_loss, assign_max_iou, assign_points
from model.anchors import anchor_grid, point_grid, valid_flags
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


def test_iou_decides_between_positive_ignored_and_background() -> None:
    # IoU with the four anchors: 1, 0, 0, 0; then 1/7, 0.6, 0, 0; then 0, 0, 0.5, 0.5.
    targets = targets_of([[0, 0, 8, 8], [6, 0, 14, 8]], [[0, 8, 16, 16]])
    gt_index, iou = assign_max_iou(FOUR, targets, positive_iou=0.55, negative_iou=0.4)
    assert gt_index.tolist() == [[0, 1, BACKGROUND, BACKGROUND], [BACKGROUND, BACKGROUND, IGNORED, IGNORED]]
    assert iou.flatten().tolist() == pytest.approx([1, 0.6, 0, 0, 0, 0, 0.5, 0.5])
    gt_index, _ = assign_max_iou(FOUR, targets, positive_iou=0.5, negative_iou=0.5)  # 0.5 itself is positive
    assert gt_index[1].tolist() == [BACKGROUND, BACKGROUND, 0, 0]


def test_an_object_claims_all_its_best_anchors() -> None:
    targets = targets_of([[0, 8, 16, 16]])
    for min_best_iou, expected in ((0.0, 0), (0.5, 0), (0.51, IGNORED), (None, IGNORED)):
        gt_index, _ = assign_max_iou(FOUR, targets, positive_iou=0.6, negative_iou=0.4, min_best_iou=min_best_iou)
        assert gt_index.tolist() == [[BACKGROUND, BACKGROUND, expected, expected]]


def test_the_last_claim_wins_over_a_larger_overlap() -> None:
    targets = targets_of([[0, 0, 8, 8], [0, 0, 8, 7]])
    claimed, iou = assign_max_iou(FOUR[:1], targets, positive_iou=0.5, negative_iou=0.4, min_best_iou=0.0)
    unclaimed, _ = assign_max_iou(FOUR[:1], targets, positive_iou=0.5, negative_iou=0.4)
    assert (claimed.item(), unclaimed.item(), iou.item()) == (1, 0, 1.0)


def test_an_object_far_from_every_anchor_claims_none() -> None:
    targets = targets_of([[100, 100, 110, 110]])
    gt_index, _ = assign_max_iou(FOUR, targets, positive_iou=0.5, negative_iou=0.4, min_best_iou=0.0)
    assert gt_index.tolist() == [[BACKGROUND] * 4]


def test_an_invalid_anchor_is_neither_positive_nor_the_best() -> None:
    valid = torch.tensor([[False, True, True, True]])
    targets = targets_of([[1, 0, 9, 8]])  # IoU 7/9, 1/15, 0, 0
    gt_index, iou = assign_max_iou(FOUR, targets, positive_iou=0.5, negative_iou=0.4, min_best_iou=0.0, valid=valid)
    assert gt_index.tolist() == [[IGNORED, 0, BACKGROUND, BACKGROUND]]
    assert iou[0].tolist() == pytest.approx([0, 1 / 15, 0, 0])


def test_each_image_may_have_candidates_of_its_own() -> None:
    candidates = torch.stack([FOUR, FOUR.flip(0)])
    targets = targets_of([[0, 0, 8, 8]], [[0, 0, 8, 8]])
    gt_index, _ = assign_max_iou(candidates, targets, positive_iou=0.5, negative_iou=0.5)
    assert gt_index.tolist() == [[0] + [BACKGROUND] * 3, [BACKGROUND] * 3 + [0]]
    for images in ([[]], [[], []]):
        gt_index, iou = assign_max_iou(FOUR, targets_of(*images), positive_iou=0.5, negative_iou=0.5)
        assert (gt_index == BACKGROUND).all() and (iou == 0).all()


def points_assigned(*boxes: list[float], range_scale: float = 1.0, center_radius: float | None = 1.5) -> set[tuple]:
    """(x, y, object) of the positive points of two levels with strides 8 and 16 on 32 x 32 pixels."""
    sizes, strides = ((4, 4), (2, 2)), (8, 16)
    points = point_grid(sizes, strides)
    gt_index = assign_points(
        points, (16, 4), strides, targets_of(list(boxes)), range_scale=range_scale, center_radius=center_radius
    )[0]
    assert ((gt_index >= 0) | (gt_index == BACKGROUND)).all()
    return {(*points[i].tolist(), gt) for i, gt in enumerate(gt_index.tolist()) if gt >= 0}


def test_points_inside_an_object_are_positive() -> None:
    assert points_assigned([0, 0, 16, 16]) == {(4, 4, 0), (12, 4, 0), (4, 12, 0), (12, 12, 0)}
    assert points_assigned([4, 0, 13, 8]) == {(12, 4, 0)}  # a point on the side is not inside
    assert points_assigned([5, 5, 11, 11]) == set()
    assert points_assigned() == set()


def test_points_must_be_near_the_centre() -> None:
    inner = {(x, y, 0) for x in (12, 20) for y in (12, 20)}  # the next are 12 away, which is 1.5 strides
    assert points_assigned([0, 0, 32, 32]) == inner
    assert points_assigned([0, 0, 32, 32], center_radius=1.6) == {
        (x, y, 0) for x in range(4, 32, 8) for y in range(4, 32, 8)
    }
    assert len(points_assigned([0, 0, 32, 32], center_radius=None)) == 16


def test_each_level_has_its_range_of_sizes() -> None:
    # With a scale of 1/8 the first level ends, and the second begins, at 8 pixels.
    assert points_assigned([0, 0, 16, 16], range_scale=1 / 8) == {(8, 8, 0)}  # 12 to a side from (4, 4), 8 from (8, 8)
    assert points_assigned([-4, 0, 12, 8], range_scale=1 / 8) == {(4, 4, 0)}
    assert len(points_assigned([0, 0, 32, 32], range_scale=1 / 8)) == 4  # the coarsest level has no end


def test_a_contested_point_goes_to_the_smallest_object() -> None:
    assert points_assigned([0, 0, 9, 9], [0, 0, 8, 8], [1, 0, 9, 8]) == {(4, 4, 1)}


def test_invalid_points_are_ignored() -> None:
    valid = torch.tensor([[False, True]])
    gt_index = assign_points(torch.tensor([[4.0, 4], [12, 4]]), (2,), (8,), targets_of([[0, 0, 16, 8]]), valid=valid)
    assert gt_index.tolist() == [[IGNORED, 0]]


NEGATIVE = [BACKGROUND]


@pytest.mark.parametrize(
    ("losses", "positives"),
    [
        ([0.1, 0.2, 0.3, 1.8, 1.9, 2.0], [0, 1]),  # the likeliest good one is that of 0.2
        ([2.0, 0.3, 1.9, 0.1, 1.8, 0.2], [3, 5]),
        ([0.1, 0.2, 1.9, 2.0], [0]),  # two are equally likely: the better one only
        ([0.1], []),  # nothing to compare with
        ([], []),
    ],
    ids=str,
)
def test_losses_up_to_the_likeliest_good_one_are_positive(losses: list[float], positives: list[int]) -> None:
    candidate_gt = torch.tensor([[0] * len(losses) + [BACKGROUND, IGNORED]])
    values = torch.tensor([losses + [0.0, 0.0]])
    gt_index, _ = assign_by_loss(candidate_gt, values, (len(losses) + 2,), 1)
    expected = [0 if i in positives else BACKGROUND for i in range(len(losses))]
    assert gt_index.tolist() == [[*expected, BACKGROUND, IGNORED]]


def test_objects_and_images_are_fitted_apart() -> None:
    losses = [0.1, 0.2, 0.3, 1.8, 1.9, 2.0]
    mixed = torch.tensor([[gt for _ in losses for gt in (0, 1)], [1] * 6 + [BACKGROUND] * 6])
    values = torch.tensor([[value for loss in losses for value in (loss, 50 - loss)], losses + [0.0] * 6])
    gt_index, _ = assign_by_loss(mixed, values, (12,), 2)
    assert (gt_index == 0).nonzero().tolist() == [[0, 0], [0, 2]]
    assert (gt_index == 1).nonzero().tolist() == [[0, 9], [0, 11], [1, 0], [1, 1]]  # of 48, 48.1, 48.2: the best two


def test_only_the_best_of_every_level_compete() -> None:
    first, second = [0.1, 0.2, 0.3, 1.8], [1.9, 2.0, 2.1]
    losses = torch.tensor([first + second])
    gt_index, _ = assign_by_loss(torch.zeros(1, 7, dtype=torch.long), losses, (4, 3), 1, top_k=1)
    assert gt_index.tolist() == [[0, *NEGATIVE * 6]]  # 0.1 and 1.9 are left
