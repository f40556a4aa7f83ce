"""The conflict metric in closed form: divergences by hand, the paper's own matrices, invariances."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.analyse import conflict
from harness.analyse.compare import conflict_scalars, fit
from harness.config import ConflictVariant

CAM = conflict.VARIANTS["cam-v1"]
FIGURE_9 = np.array(
    [
        [0, 0.0062, 0.0090, 0.0129, 0.0079, 0.0069, 0.0083],
        [0.0066, 0, 0.0097, 0.0132, 0.0077, 0.0045, 0.0083],
        [0.0083, 0.0087, 0, 0.0091, 0.0055, 0.0095, 0.0063],
        [0.0116, 0.0116, 0.0083, 0, 0.0075, 0.0125, 0.0090],
        [0.0073, 0.0068, 0.0056, 0.0083, 0, 0.0081, 0.0054],
        [0.0075, 0.0048, 0.0107, 0.0143, 0.0092, 0, 0.0092],
        [0.0078, 0.0075, 0.0066, 0.0100, 0.0055, 0.0082, 0],
    ]
)


def compared(maps: Tensor, variant: conflict.Variant = CAM) -> Tensor:
    """[B, H, H] of maps [B, H, h, w], all of whose positions are valid."""
    valid = torch.ones_like(maps, dtype=torch.bool)
    logs = conflict.log_distribution(maps, valid, variant)
    return conflict.divergences(logs, logs, valid[:, 0].flatten(1))


def smooth(height: int, width: int, *centre: float) -> Tensor:
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.exp(-12 * ((y[:, None] - centre[0]) ** 2 + (x - centre[1]) ** 2))


def test_identical_heads_have_no_distance() -> None:
    maps = torch.rand(3, 1, 5, 6).expand(-1, 4, -1, -1)
    assert compared(maps).max() < 1e-15


def test_divergence_of_two_known_maps_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])  # two positions; the second map is uniform
    p = math.e / (math.e + 1)
    matrix = compared(maps)[0]
    assert float(matrix[0, 1]) == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)), abs=1e-12)
    assert float(matrix[1, 0]) == pytest.approx(0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)), abs=1e-12)


def test_divergences_against_loops_with_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 3, 4, 5, generator=generator), torch.rand(2, 3, 4, 5, generator=generator)
    sizes = [(4, 5), (2, 3)]
    valid = torch.zeros(2, 4, 5, dtype=torch.bool)
    for mask, (height, width) in zip(valid, sizes, strict=True):
        mask[:height, :width] = True
    wide = valid[:, None].expand_as(first)
    for variant in (CAM, conflict.VARIANTS["cam-v1-l1"]):
        logs = [conflict.log_distribution(maps, wide, variant) for maps in (first, second)]
        found = conflict.divergences(*logs, valid.flatten(1))
        for image, i, j in np.ndindex(2, 3, 3):
            height, width = sizes[image]
            values = [m[image, h, :height, :width].double().flatten().tolist() for m, h in ((first, i), (second, j))]
            if variant.distribution == "softmax":
                weights = [[math.exp(v) for v in own] for own in values]
            else:
                weights = [[v + conflict.L1_EPSILON for v in own] for own in values]
            p, q = ([v / sum(own) for v in own] for own in weights)
            expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            assert float(found[image, i, j]) == pytest.approx(expected, abs=1e-12)


def test_distances_of_the_papers_figure_9_are_means_of_rows_and_columns() -> None:
    found = conflict.distances(FIGURE_9)
    for head in range(7):
        entries = [FIGURE_9[head, j] for j in range(7) if j != head] + [
            FIGURE_9[i, head] for i in range(7) if i != head
        ]
        assert found[head] == pytest.approx(sum(entries) / 12, abs=1e-15)
    assert found.argmax() == 3  # PAA


def test_with_one_auxiliary_head_the_distance_is_that_to_the_decoder() -> None:
    matrix = np.array([[0.0, 0.0078], [0.0073, 0.0]])
    assert conflict.distances(matrix) == pytest.approx([0.00755, 0.00755])


def test_permuting_heads_permutes_the_matrix() -> None:
    maps = torch.rand(2, 4, 6, 6)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(compared(maps[:, order]), compared(maps)[:, order][:, :, order], rtol=0, atol=1e-15)


def test_the_size_of_the_grid_hardly_matters() -> None:
    """The same two maps on the grid of a 160 x 160 and of a 320 x 240 image: within 2 %."""
    values = []
    for height, width in ((20, 20), (40, 30)):
        maps = torch.stack([smooth(height, width, 0.3, 0.4), smooth(height, width, 0.5, 0.7)])[None]
        values.append(compared(maps)[0])
    assert values[0][0, 1] > 0.01
    torch.testing.assert_close(values[1], values[0], rtol=0.02, atol=1e-9)


def test_softmax_puts_small_differences_on_the_papers_scale() -> None:
    """KL of two softmaxes of maps in [0, 1] is about half their variance of difference: RMS 0.09-0.17 ↔ 0.004-0.014."""
    generator = torch.Generator().manual_seed(0)
    for rms in (0.09, 0.17):
        first = torch.rand(1, 1, 40, 40, generator=generator) * 0.6 + 0.2
        second = first + torch.randn(1, 1, 40, 40, generator=generator) * rms
        both = torch.cat([first, second], 1)
        assert float(compared(both)[0, 0, 1]) == pytest.approx(rms**2 / 2, rel=0.1)
        valid = torch.ones(1, 40, 40, dtype=torch.bool)
        assert float(conflict.rms_differences(both, valid)[0, 0, 1]) == pytest.approx(rms, rel=0.1)


def test_grad_cam_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels, two positions
    gradient = torch.tensor([[[[1.0, 3.0]], [[-1.0, 0.0]]]])
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    pooled = conflict.grad_cam(features, gradient, valid, CAM)  # α = (2, -1/2)
    assert pooled.tolist() == [[[0.5, 4.5]]]
    signed = conflict.grad_cam(-features, gradient, valid, conflict.VARIANTS["cam-v1-signed"])
    assert signed.tolist() == [[[-0.5, -4.5]]]
    each = conflict.grad_cam(features, gradient, valid, conflict.VARIANTS["cam-v1-positions"])
    assert each.tolist() == [[[0.0, 6.0]]]  # 1 - 3 is negative
    valid[0, 0, 1] = False
    assert conflict.grad_cam(features, gradient, valid, CAM).tolist() == [[[0.0, 0.0]]]  # α = (1, -1)


def test_variants_differ_and_each_has_its_name() -> None:
    assert set(conflict.VARIANTS) == set(get_args(ConflictVariant))
    assert len(set(conflict.VARIANTS.values())) == len(conflict.VARIANTS)
    generator = torch.Generator().manual_seed(3)
    sizes = [(8, 8), (4, 4), (2, 2)]
    cells = [torch.tensor([size]) for size in sizes]
    features = tuple(torch.randn(1, 6, *size, generator=generator) + 0.3 for size in sizes)
    gradients = tuple(torch.randn(1, 6, *size, generator=generator) + 0.3 for size in sizes)
    found = {}
    for name, variant in conflict.VARIANTS.items():
        count = 3 if variant.added else 2
        maps = conflict.head_maps(features[:count], gradients[:count], cells[:count], variant)
        assert [len(own.shape) for own in maps] == [3] * (2 if variant.levels == "each" else 1)
        for own in maps:
            assert own.min() >= 0 and own.max() == pytest.approx(1.0)
        if variant.distribution == "softmax" and variant.levels != "each":
            found[name] = maps[0]
    for name, own in found.items():
        assert all(other == name or not torch.allclose(own, found[other]) for other in found), name


def test_an_all_zero_map_counts_as_uniform() -> None:
    log_p = conflict.log_distribution(torch.zeros(1, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool), CAM)
    torch.testing.assert_close(log_p, torch.full((1, 12), -math.log(12), dtype=torch.float64))


def test_gts_without_a_positive_in_some_head_are_left_out_for_all() -> None:
    nan = math.nan
    scores = [torch.tensor([[1.0, 2.0, nan]]), torch.tensor([[nan, 5.0, 6.0]])]
    usable = conflict.usable_gts(scores)
    assert usable.tolist() == [[False, True, False]]
    assert [float(conflict.scalar(own, usable)) for own in scores] == [2.0, 5.0]
    nothing = torch.zeros_like(usable)
    assert float(conflict.scalar(scores[0], nothing)) == 0.0


def test_the_scalar_is_a_mean_over_objects_and_its_gradient_ignores_the_rest() -> None:
    scores = torch.tensor([[1.0, 3.0, 8.0], [2.0, math.nan, math.nan]], requires_grad=True)
    usable = torch.tensor([[True, True, False], [True, False, False]])
    conflict.scalar(scores, usable).backward()
    assert scores.grad is not None and scores.grad.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]


def test_a_map_of_another_size_is_fitted() -> None:
    maps, like = torch.rand(2, 4, 6), torch.zeros(2, 5, 5)
    fitted = fit(maps, like)
    assert fitted.shape == like.shape and fitted.amax((1, 2)).tolist() == pytest.approx([1, 1])
    assert fit(maps, maps) is maps


def test_scalars_are_named_by_heads_and_other_variants_apart() -> None:
    table = {
        "variant": "cam-v1",
        "heads": ["decoder", "atss"],
        "matrix": [[0.0, 0.2], [0.4, 0.0]],
        "distance": {"decoder": {"value": 0.3}, "atss": {"value": 0.3}},
        "ceiling": {"value": 0.9},
        "floor": None,
        "left_out_share": 0.25,
    }
    assert conflict_scalars(table) == {
        "conflict/decoder": 0.3,
        "conflict/atss": 0.3,
        "conflict/decoder-atss": pytest.approx(0.3),
        "conflict/mean": pytest.approx(0.3),
        "conflict/ceiling": 0.9,
        "conflict/left_out_share": 0.25,
    }
    names = conflict_scalars({**table, "variant": "cam-v1-l1"})
    assert "conflict.cam-v1-l1/atss" in names and not any(name.startswith("conflict/") for name in names)
