"""Box formats, overlaps and coders on values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from model.boxes import (
    clip_boxes,
    cxcywh_to_xyxy,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
    giou_aligned,
    giou_pairwise,
    inverse_sigmoid,
    iou_aligned,
    iou_pairwise,
    size_whwh,
    xyxy_to_cxcywh,
)


def random_boxes(*shape: int, size: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    corners = torch.rand(*shape, 2, 2, dtype=torch.float64, generator=generator) * size
    return torch.cat([corners.amin(-2), corners.amax(-2) + 1], -1)


def test_formats_are_each_others_inverse() -> None:
    boxes = torch.tensor([[2.0, 4.0, 10.0, 8.0]])
    assert torch.equal(xyxy_to_cxcywh(boxes), torch.tensor([[6.0, 6.0, 8.0, 4.0]]))
    assert torch.equal(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_size_turns_normalised_boxes_into_pixels() -> None:
    hw = torch.tensor([[10, 20], [30, 40]])
    assert size_whwh(hw).tolist() == [[20, 10, 20, 10], [40, 30, 40, 30]]
    assert size_whwh(hw[0]).tolist() == [20, 10, 20, 10]


def test_overlaps_of_known_boxes() -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 10.0])
    others = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [30, 0, 40, 10]])
    assert iou_aligned(box, others).tolist() == pytest.approx([1, 1 / 3, 0, 0])
    # Enclosing areas 100, 150, 200, 400; unions 100, 150, 200, 200.
    assert giou_aligned(box, others).tolist() == pytest.approx([1, 1 / 3, 0, -0.5])


def test_a_box_without_area_overlaps_nothing() -> None:
    point = torch.tensor([3.0, 3.0, 3.0, 3.0])
    assert iou_aligned(point, point) == 0
    assert torch.isfinite(giou_aligned(point, point))


@pytest.mark.parametrize("pairwise, aligned", [(iou_pairwise, iou_aligned), (giou_pairwise, giou_aligned)])
def test_pairwise_is_aligned_of_every_pair(pairwise, aligned) -> None:
    boxes1, boxes2 = random_boxes(3, 4), random_boxes(3, 5)
    result = pairwise(boxes1, boxes2)
    assert result.shape == (3, 4, 5)
    for image in range(3):
        for i in range(4):
            for j in range(5):
                assert result[image, i, j] == aligned(boxes1[image, i], boxes2[image, j])


def test_pairwise_of_no_boxes() -> None:
    assert iou_pairwise(torch.zeros(2, 0, 4), torch.zeros(2, 3, 4)).shape == (2, 0, 3)


def test_clipping_uses_each_images_own_size() -> None:
    boxes = torch.tensor([[[-5.0, -5.0, 50.0, 50.0]], [[-5.0, 2.0, 50.0, 50.0]]])
    clipped = clip_boxes(boxes, torch.tensor([[20, 30], [60, 40]])[:, None])
    assert clipped.tolist() == [[[0, 0, 30, 20]], [[0, 2, 40, 50]]]


def test_deltas_of_known_boxes() -> None:
    anchor, box = torch.tensor([0.0, 0.0, 10.0, 20.0]), torch.tensor([5.0, 0.0, 25.0, 20.0])
    expected = torch.tensor([1.0, 0.0, math.log(2), 0.0])  # the centre moves by one width; twice as wide
    torch.testing.assert_close(encode_deltas(anchor, box), expected)
    torch.testing.assert_close(
        encode_deltas(anchor, box, (0.1, 0.1, 0.2, 0.2)), expected / torch.tensor([0.1, 0.1, 0.2, 0.2])
    )


def test_deltas_round_trip_and_limit() -> None:
    anchors, boxes = random_boxes(50), random_boxes(1, 50)[0]
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode_deltas(anchors, encode_deltas(anchors, boxes, stds), stds), boxes)
    huge = decode_deltas(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 99.0, -99.0]))
    torch.testing.assert_close(xyxy_to_cxcywh(huge), torch.tensor([1.0, 1.0, 125.0, 2 / 62.5]))


def test_distances_round_trip_and_limit() -> None:
    box, point = torch.tensor([0.0, 0.0, 10.0, 20.0]), torch.tensor([4.0, 5.0])
    assert encode_distances(point, box).tolist() == [4, 5, 6, 15]
    assert encode_distances(point, box, 6).tolist() == pytest.approx([4, 5, 5.9, 5.9])
    assert torch.equal(decode_distances(point, encode_distances(point, box)), box)


def test_inverse_sigmoid_is_finite_at_the_ends() -> None:
    values = torch.tensor([0.2, 0.5, 0.9])
    torch.testing.assert_close(inverse_sigmoid(values).sigmoid(), values)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    assert ends.tolist() == pytest.approx([math.log(1e-5)] * 2 + [-math.log(1e-5)] * 2, rel=1e-5)
