"""Discriminability: resizing, attention, IoF-IoB curves in closed form and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.analyse import discriminability as d
from harness.analyse.grids import divide_by_max, inside, resize, valid_cells


def boxes_of(*boxes: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor([boxes]), torch.ones(1, len(boxes), dtype=torch.bool)


def shares(maps: Tensor, foreground: Tensor, ignored: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    ignored = torch.zeros_like(foreground) if ignored is None else ignored
    iof, iob = d.iof_iob(maps, foreground, ignored, torch.ones_like(foreground))
    return iof.numpy(), iob.numpy()


@pytest.mark.parametrize(
    ("old", "new"), [((5, 7), (40, 56)), ((3, 3), (160, 160)), ((6, 11), (6, 11)), ((1, 1), (4, 9))]
)
def test_resizing_is_that_of_the_image_cut_out(old: tuple[int, int], new: tuple[int, int]) -> None:
    maps = torch.rand(2, old[0] + 3, old[1] + 2) + 1e3  # what lies in the padding must not matter
    own = torch.rand(2, *old)
    maps[:, : old[0], : old[1]] = own
    size = (new[0] + 5, new[1])
    resized = resize(maps, torch.tensor([old, old]), size, torch.tensor([new, new]))
    expected = F.interpolate(own[:, None], new, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(resized[:, : new[0]], expected, rtol=1e-5, atol=1e-6)
    assert (resized[:, new[0] :] == 0).all()


def test_a_map_of_zeros_stays_one() -> None:
    maps = torch.stack([torch.zeros(3, 4), torch.arange(12.0).view(3, 4)])
    divided = divide_by_max(maps)
    assert divided[0].abs().sum() == 0 and divided[1].max() == 1


def test_cells_count_what_is_begun() -> None:
    assert valid_cells(torch.tensor([[81, 96]]), 16).tolist() == [[6, 6]]
    assert inside(torch.tensor([[1, 2]]), (2, 3)).int().tolist() == [[[1, 1, 0], [0, 0, 0]]]


def test_foreground_is_the_union_of_boxes_by_pixel_centres() -> None:
    boxes, valid = boxes_of((1.0, 0.0, 3.0, 2.0), (2.4, 1.0, 4.6, 2.0), (0.0, 0.0, 9.0, 9.0))
    valid[0, 2] = False  # a padding row
    assert d.inside_boxes(boxes, valid, (3, 6))[0].int().tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_shares_against_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, 7, 9, generator=generator)
    maps[0, 0] = 0.25  # exactly a threshold
    maps[1, 0, 0], maps[1, 6, 8] = 0.0, 1.0
    foreground = torch.rand(2, 7, 9, generator=generator) < 0.3
    iof, iob = shares(maps, foreground)
    for image in range(2):
        for index, threshold in enumerate(np.linspace(0, 1, 101, dtype=np.float32)):
            above = maps[image].numpy() > threshold
            for share, region in ((iof, foreground[image].numpy()), (iob, ~foreground[image].numpy())):
                expected = 1.0 if index == 0 else above[region].sum() / region.sum()
                assert share[image, index] == pytest.approx(expected, abs=1e-12)
    assert (iof[:, 0] == 1).all() and (iob[:, 0] == 1).all() and (iof[:, -1] == 0).all() and (iob[:, -1] == 0).all()
    assert (np.diff(iof) <= 0).all() and (np.diff(iob) <= 0).all()


def test_a_perfect_map_has_area_1_and_its_opposite_0() -> None:
    boxes, valid = boxes_of((8.0, 8.0, 30.0, 24.0))
    foreground = d.inside_boxes(boxes, valid, (48, 64))
    for maps, expected in ((foreground.float(), 1.0), ((~foreground).float(), 0.0)):
        iof, iob = shares(maps, foreground)
        assert d.area(iof, iob)[0] == pytest.approx(expected, abs=1e-12)


def test_a_random_map_has_area_one_half() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(8, 160, 160, generator=generator)
    foreground = torch.zeros(8, 160, 160, dtype=torch.bool)
    foreground[:, 40:100, 20:90] = True
    iof, iob = shares(maps, foreground)
    assert d.area(iof.mean(0), iob.mean(0)) == pytest.approx(0.5, abs=0.01)
    constant = torch.full((1, 160, 160), 0.7)  # knows nothing either
    iof, iob = shares(constant, foreground[:1])
    assert d.area(iof, iob)[0] == pytest.approx(0.5, abs=1e-12)


def test_crowd_regions_are_ignored() -> None:
    maps = torch.zeros(1, 4, 8)
    maps[0, :, :4] = 1.0  # on the object (left quarter) and on the crowd beside it
    boxes, valid = boxes_of((0.0, 0.0, 2.0, 4.0))
    crowd, some = boxes_of((1.0, 0.0, 4.0, 4.0))  # overlaps the object, whose pixels stay foreground
    foreground = d.inside_boxes(boxes, valid, (4, 8))
    iof, iob = shares(maps, foreground, d.inside_boxes(crowd, some, (4, 8)))
    assert d.area(iof, iob)[0] == 1.0
    iof, iob = shares(maps, foreground)
    assert d.area(iof, iob)[0] < 0.9


def test_a_region_without_pixels_is_undefined() -> None:
    everything = torch.ones(1, 4, 4, dtype=torch.bool)
    iof, iob = shares(torch.rand(1, 4, 4), everything)
    assert np.isfinite(iof).all() and np.isnan(iob).all()


def stretched(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[D, h, w] to [D, h', w']."""
    return F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]


def plain_map(levels: list[Tensor], size: tuple[int, int], reading: str) -> Tensor:
    """D(F) of one image alone, in float64."""
    if reading == "discriminability.concatenated":
        finest = (levels[0].shape[1], levels[0].shape[2])
        norm = torch.cat([stretched(level.double(), finest) for level in levels]).norm(dim=0, keepdim=True)
        return stretched(norm / norm.max(), size)[0]
    total = torch.zeros(size, dtype=torch.float64)
    for level in levels:
        norm = level.double().square().sum(0, keepdim=True).sqrt()
        if reading == "discriminability":
            total += stretched(norm / norm.max(), size)[0]
        else:
            total += stretched(norm, size)[0] / stretched(norm, size).max()
    return total / len(levels)


@pytest.mark.parametrize("reading", d.READINGS)
def test_maps_of_a_batch_are_those_of_each_image_alone(reading: str) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes, canvas, strides = [(96, 96), (81, 70), (40, 90)], (96, 96), (8, 16, 32)
    valid_hw = torch.tensor(sizes)
    levels = [torch.randn(3, 5, canvas[0] // s, canvas[1] // s, generator=generator) * 9 for s in strides]
    cells = [valid_cells(valid_hw, stride) for stride in strides]
    for level, own in zip(levels, cells, strict=True):  # what the padding holds takes no part, however large it is
        level.masked_fill_(~inside(own, (level.shape[2], level.shape[3]))[:, None], 1e3)
    maps = d.READINGS[reading](tuple(levels), cells, canvas, valid_hw)
    for image, (height, width) in enumerate(sizes):
        own = [level[image, :, : -(-height // s), : -(-width // s)] for level, s in zip(levels, strides, strict=True)]
        expected = plain_map(own, (height, width), reading)
        torch.testing.assert_close(maps[image, :height, :width].double(), expected, rtol=1e-5, atol=1e-5)
        assert maps[image, height:].abs().sum() == 0 and maps[image, :, width:].abs().sum() == 0


def test_the_maximum_is_that_of_the_cells_before_they_are_resized() -> None:
    """Three cells over two pixels, each of which sees a quarter of the peak between them."""
    levels, cells, valid_hw = (torch.tensor([[[[0.0, 4.0, 0.0]]]]),), [torch.tensor([[1, 3]])], torch.tensor([[1, 2]])
    for reading, expected in (("discriminability", 0.25), ("discriminability.v1", 1.0)):
        found = d.READINGS[reading](levels, cells, (1, 2), valid_hw)
        torch.testing.assert_close(found, torch.full((1, 1, 2), expected))


def smooth_levels(cells: tuple[int, ...]) -> list[Tensor]:
    """Levels of a bump on the object and another one beside it, sampled at the cells' middles."""
    levels = []
    for count in cells:
        at = (torch.arange(count) + 0.5) / count
        first = torch.exp(-20 * ((at[:, None] - 0.3) ** 2 + (at - 0.4) ** 2))
        second = 0.7 * torch.exp(-30 * ((at[:, None] - 0.7) ** 2 + (at - 0.6) ** 2))
        levels.append((first + second + 0.05)[None])
    return levels


def test_the_image_size_hardly_matters() -> None:
    """The same scene at 160 and at 250 pixels, encoded on grids that fit: areas within 2 %."""
    areas = []
    for side in (160, 250):
        levels = tuple(level[None] for level in smooth_levels(tuple(-(-side // stride) for stride in (8, 16, 32))))
        valid_hw = torch.tensor([[side, side]])
        maps = d.discriminability_map(
            levels, [torch.tensor([level.shape[2:]]) for level in levels], (side,) * 2, valid_hw
        )
        boxes = torch.tensor([[[0.2, 0.15, 0.6, 0.45]]]) * side
        foreground = d.inside_boxes(boxes, torch.ones(1, 1, dtype=torch.bool), (side, side))
        iof, iob = shares(maps, foreground)
        areas.append(float(d.area(iof, iob)[0]))
    assert 0.6 < areas[0] < 0.99
    assert areas[1] == pytest.approx(areas[0], rel=0.02)


def test_attention_is_scattered_as_it_was_read() -> None:
    """Against a loop over every sample that gives its weight to the four positions around."""
    generator = torch.Generator().manual_seed(2)
    sizes = ((4, 6), (2, 3))
    locations = torch.rand(2, 3, 2, 2, 2, 2, generator=generator) * 1.4 - 0.2  # some beside the map
    weights = torch.rand(2, 3, 2, 2, 2, generator=generator)
    queries = torch.tensor([[True, False, True], [False, True, False]])
    with torch.no_grad():
        maps = d.attention_strength(locations, weights, sizes, queries)
    for level, (height, width) in enumerate(sizes):
        expected = torch.zeros(2, height, width, dtype=torch.float64)
        for image, query, head, point in np.ndindex(2, 3, 2, 2):
            if not queries[image, query]:
                continue
            x, y = (locations[image, query, head, level, point].double() * torch.tensor([width, height]) - 0.5).tolist()
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        expected[image, row, column] += share * float(weights[image, query, head, level, point])
        torch.testing.assert_close(maps[level].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_curve_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    iof = np.sort(rng.random((40, 101)), 1)[:, ::-1]
    iob = iof**3
    iof[:, 0] = iob[:, 0] = 1.0
    iof[:, -1] = iob[:, -1] = 0.0
    found = d.curve(iof, iob)
    low, high = found["interval"]
    assert low < found["auc"] < high and high - low < 0.1
    assert found["auc"] == pytest.approx(d.area(iof.mean(0), iob.mean(0)))
    assert d.curve(iof[:0], iob[:0])["auc"] is None
