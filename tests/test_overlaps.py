"""The largest overlaps of candidates and ground truths: one answer, however they are found and however many at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model import kernels, overlaps
from model.anchor_assignment import assign_atss, assign_by_loss, assign_max_iou, assign_points
from model.anchors import anchor_grid, point_grid, valid_flags
from model.types import Targets

STRIDES, SIZES = (8, 16, 32), ((14, 20), (7, 10), (4, 5))
LEVELS = tuple(h * w for h, w in SIZES)
VALID_HW = torch.tensor([[112, 160], [70, 100], [33, 17], [112, 160], [8, 8]])

compiled = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler: only torch runs here")


def objects(seed: int, *counts: int) -> Targets:
    """Boxes on whole and half pixels, so that many overlaps are equal."""
    make = torch.Generator().manual_seed(seed)
    corners = [(torch.rand(count, 2, generator=make) * 120).round() / 2 for count in counts]
    sides = [(torch.rand(count, 2, generator=make) ** 3 * 160).round() / 2 for count in counts]  # some are empty
    boxes = [torch.cat([a, a + b], 1) for a, b in zip(corners, sides, strict=True)]
    return Targets.stack(boxes, [torch.zeros(count, dtype=torch.long) for count in counts])


def equal(one: tuple[Tensor | None, ...], other: tuple[Tensor | None, ...]) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("min_best_iou", [None, 0.0, 0.3])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_the_kernel_equals_torch(dtype: torch.dtype, min_best_iou: float | None, own: bool) -> None:
    make = torch.Generator().manual_seed(1)
    targets = objects(0, 40, 1, 0, 7, 3)
    candidates = anchor_grid(SIZES, STRIDES, (2.0, 3.17, 8.0), (0.5, 1.0, 2.0)).to(dtype)  # 3,330: several blocks
    if own:
        moved = candidates + torch.randn(5, *candidates.shape, generator=make, dtype=dtype) * 3  # some are turned over
        candidates = moved
    valid = torch.rand(5, candidates.shape[-2], generator=make) > 0.2
    valid[3, 1024:] = False
    given = targets.boxes_xyxy.to(dtype), targets.valid, candidates, valid, min_best_iou
    found, expected = overlaps.best_overlaps(*given), overlaps.by_torch(*given)
    assert equal(found, expected)
    assert (expected.iou > 0).any() and (expected.iou == -1).any()


@compiled
@pytest.mark.parametrize("strange", [torch.nan, torch.inf, 1e30])
def test_what_is_no_finite_box_is_left_to_torch(strange: float) -> None:
    targets, candidates = objects(0, 3), anchor_grid(SIZES, STRIDES, (4.0,))
    candidates[5, 2] = strange
    given = targets.boxes_xyxy, targets.valid, candidates, torch.ones(1, len(candidates), dtype=torch.bool), 0.0
    found, expected = overlaps.best_overlaps(*given), overlaps.by_torch(*given)
    assert torch.equal(found.iou.nan_to_num(9), expected.iou.nan_to_num(9)) and equal(found[1:], expected[1:])


@compiled
def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, candidates = objects(2, 30, 9, 4, 0, 1), anchor_grid(SIZES, STRIDES, (2.0, 3.17, 8.0), (0.5, 1.0, 2.0))
    given = targets.boxes_xyxy, targets.valid, candidates, torch.ones(5, len(candidates), dtype=torch.bool), 0.0
    found = []
    for count in (1, 3):
        monkeypatch.setattr(overlaps, "threads", lambda work, count=count: count)
        found.append(overlaps.best_overlaps(*given))
    assert equal(*found)


def assigned(own_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What every assigner gives for one batch."""
    if not own_kernel:
        monkeypatch.setattr(overlaps, "_kernel_takes", lambda *given: False)
    targets = objects(3, 12, 0, 2, 30, 1)
    anchors, points = anchor_grid(SIZES, STRIDES, (4.0,)), point_grid(SIZES, STRIDES)
    valid = valid_flags(SIZES, STRIDES, VALID_HW)
    losses = torch.rand(valid.shape, generator=torch.Generator().manual_seed(4))
    thresholds = {"positive_iou": 0.5, "negative_iou": 0.4, "min_best_iou": 0.0}
    by_iou, iou = assign_max_iou(anchors, targets, valid=valid, **thresholds)
    candidate_gt, _ = assign_max_iou(anchors, targets, valid=valid, positive_iou=0.1, negative_iou=0.1)
    return [
        *(by_iou, iou),
        *assign_atss(anchors, LEVELS, targets, valid=valid),
        assign_points(points, LEVELS, STRIDES, targets, valid=valid),
        assign_by_loss(candidate_gt, losses, LEVELS, 30)[0],
    ]


@pytest.mark.parametrize("own_kernel", [False, pytest.param(True, marks=compiled)], ids=["torch", "kernel"])
def test_images_are_assigned_alike_however_many_at_once(own_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    together = assigned(own_kernel, monkeypatch)
    assert all((index >= 0).any() for index in (together[0], together[2], together[4], together[5]))
    for pairs in (1, 2 * 30 * sum(LEVELS)):  # one image at a time, two
        monkeypatch.setattr(overlaps, "PAIRS_AT_ONCE", pairs)
        assert equal(tuple(assigned(own_kernel, monkeypatch)), tuple(together))


def test_no_intermediate_result_is_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchFunctionMode):
        numbers = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple) else [result]:
                if isinstance(value, Tensor):
                    self.numbers = max(self.numbers, value.numel())
            return result

    monkeypatch.setattr(overlaps, "PAIRS_AT_ONCE", 1)
    with Largest() as largest:
        assigned(False, monkeypatch)
    assert largest.numbers <= 4 * 30 * sum(LEVELS)  # of one image: a distance to each side of each object
