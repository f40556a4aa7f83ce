"""Anchor and point grids: places, order, validity, and the cache."""

from __future__ import annotations

import torch

from model.anchors import anchor_grid, point_grid, valid_flags

SIZES, STRIDES = ((2, 3), (1, 2)), (8, 16)


def test_square_anchors_are_centred_on_the_corner_of_their_cell() -> None:
    anchors = anchor_grid(SIZES, STRIDES, (8.0,))
    assert anchors.shape == (8, 4)
    assert anchors[0].tolist() == [-32, -32, 32, 32]
    assert anchors[1].tolist() == [-24, -32, 40, 32]  # row-major: x first
    assert anchors[3].tolist() == [-32, -24, 32, 40]
    assert anchors[7].tolist() == [-48, -64, 80, 64]  # second level: stride 16, side 128


def test_ratios_are_outer_scales_inner_and_keep_the_area() -> None:
    anchors = anchor_grid(((1, 1),), (8,), (1.0, 2.0), (0.25, 1.0))
    widths, heights = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    assert widths.tolist() == [16, 32, 8, 16]
    assert heights.tolist() == [4, 8, 8, 16]


def test_points_lie_in_the_middle_of_their_cell() -> None:
    assert point_grid(SIZES, STRIDES).tolist() == [
        [4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8],
    ]  # fmt: skip


def test_a_cell_is_valid_when_it_begins_inside_the_image() -> None:
    flags = valid_flags(SIZES, STRIDES, torch.tensor([[16, 24], [8, 17], [9, 8]]))
    assert flags.int().tolist() == [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 1, 1],
        [1, 0, 0, 1, 0, 0, 1, 0],
    ]
    twice = valid_flags(SIZES, STRIDES, torch.tensor([[9, 8]]), per_location=2)
    assert twice[0].int().tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]


def test_grids_are_cached_and_serve_training_after_evaluation() -> None:
    sizes = ((3, 5),)
    with torch.inference_mode():
        first = anchor_grid(sizes, (8,), (8.0,))
    assert anchor_grid(sizes, (8,), (8.0,)) is first
    factor = torch.ones(4, requires_grad=True)
    (first * factor).sum().backward()  # fails for a tensor made for inference only
    assert factor.grad is not None
