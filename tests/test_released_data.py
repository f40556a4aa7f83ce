"""The released recipe's data as batches: windows, official resizing, images of one shape, what is too small."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config import DataConfig
from harness.data.coco import CocoDataset
from harness.data.loader import Loader
from harness.data.transforms import flip, resize_official
from harness.errors import UserError
from tests.support.folders import tables, write_split

WINDOWS = DataConfig(
    train_short_sides=(64, 80, 96),
    max_long_side=160,
    crop_probability=1.0,
    crop_short_sides=(60, 90),
    crop_sides=(40, 80),
    resize="official",
)


def loader(dataset, config, **changes) -> Loader:
    return Loader(dataset, config, **{"batch_size": 4, "training": True, "seed": 1, "size_divisor": 32, **changes})


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """One image, black but for a white triangle: its upper right half of a box."""
    root = tmp_path_factory.mktemp("marked")
    polygon = [20.0, 10.0, 70.0, 10.0, 70.0, 50.0]
    content = {
        "images": [{"id": 5, "file_name": "5.png", "height": 64, "width": 96}],
        "annotations": [
            {
                **{"id": 1, "image_id": 5, "category_id": 2, "bbox": [20, 10, 50, 40], "area": 1000, "iscrowd": 0},
                "segmentation": [polygon],
            }
        ],
        "categories": [{"id": 2, "name": "white"}],
    }
    write_split(root, "train", content)
    y, x = np.mgrid[:64, :96] + 0.5
    inside = (x > 20) & (x < 70) & (y > 10) & ((y - 10) / 40 < (x - 20) / 50)
    Image.fromarray(np.repeat(inside[..., None] * np.uint8(255), 3, 2)).save(root / "train" / "5.png")
    return CocoDataset(root, "train", with_masks=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Nine wide images, four high ones and a square one; one is narrow, and one has a thin box."""
    root = tmp_path_factory.mktemp("mixed")
    sizes = [*[(64, 96 + 3 * k) for k in range(9)], *[(90 + k, 60) for k in range(3)], (80, 80), (100, 30)]
    content = tables(0, sizes)
    content["annotations"][0]["bbox"][2] = 0.5
    write_split(root, "train", content)
    return CocoDataset(root, "train")


@pytest.mark.parametrize("resize", ["official", "antialiased"])
def test_box_and_mask_show_what_the_window_shows(marked, resize):
    config, shown = replace(WINDOWS, resize=resize), 0
    for epoch in range(40):
        (batch,) = (own.to("cpu") for own in loader(marked, config, batch_size=1).epoch(epoch))
        height, width = batch.valid_hw[0].tolist()
        white = batch.images[0, 0, :height, :width] > 0.06  # half white
        if not batch.targets.num_boxes[0]:
            assert white.sum() <= 0.02 * white.numel()  # a sliver that is cut exactly at its border
            continue
        shown += 1
        box = batch.targets.boxes_xyxy[0, 0]
        assert (box >= 0).all() and box[2] <= width and box[3] <= height
        x0, y0, x1, y1 = box.round().long().tolist()
        outside = white.clone()
        outside[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
        assert not outside.any()
        assert batch.targets.masks is not None
        share = batch.targets.masks[0, 0].float().mean() / 255
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert share * area == pytest.approx(float(white.sum()), abs=3 * (x1 - x0 + y1 - y0))
    assert shown >= 20


def test_an_image_whose_objects_are_all_cut_away_stays(marked):
    config = replace(WINDOWS, crop_sides=(8, 8))
    counts = Counter(int(next(loader(marked, config, batch_size=1).epoch(e)).targets.num_boxes[0]) for e in range(30))
    assert counts[0] > 0 and counts[1] > 0


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_shares_of_a_batch_with_windows_are_the_batch(mixed, num_ranks):
    whole = list(loader(mixed, WINDOWS).epoch(2))
    shares = [list(loader(mixed, WINDOWS, rank=rank, num_ranks=num_ranks).epoch(2)) for rank in range(num_ranks)]
    for number, expected in enumerate(whole):
        parts = [share[number] for share in shares if not share[number].share.borrowed]
        for name in ("images", "valid_hw"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(expected, name))
        assert torch.equal(torch.cat([part.targets.boxes_xyxy for part in parts]), expected.targets.boxes_xyxy)


def test_slices_stay_with_one_rank(mixed):
    parts = [list(loader(mixed, WINDOWS, batch_size=6, rank=r, num_ranks=2, slice_size=2).epoch(0)) for r in (0, 1)]
    assert [[len(batch.images) for batch in part] for part in parts] == [[2, 2, 1], [4, 4, 2]]  # the 1 is borrowed
    assert all(len(batch.images) % 2 == 0 or batch.share.borrowed for part in parts for batch in part)


# ---- images of one shape --------------------------------------------------------------------------------------------


def test_images_of_a_group_are_all_wide_or_none_is(mixed):
    config = DataConfig(train_short_sides=(64,), max_long_side=160, aspect_group_size=2)
    wide = {image_id: width > height for image_id, (height, width) in zip(mixed.image_ids, mixed.image_hw, strict=True)}
    batches = loader(mixed, config)
    orders = []
    for epoch in (0, 1):
        ids = [image_id for batch in batches.epoch(epoch) for image_id in batch.image_ids]
        orders.append(ids)
        assert all(wide[first] == wide[second] for first, second in zip(ids[::2], ids[1::2], strict=True))
        seen = Counter(ids)  # 9 wide images fill 12 places, 5 others 8
        assert set(seen) == set(mixed.image_ids) and len(ids) == 20 and max(seen.values()) <= 2
        assert sum(count for image_id, count in seen.items() if wide[image_id]) == 12
    assert orders[0] != orders[1] and len(batches) == 5 and batches.num_images == 20


def test_an_optimiser_step_of_several_batches_is_filled_whole(mixed):
    config = DataConfig(train_short_sides=(64,), max_long_side=160, aspect_group_size=2)
    assert len(loader(mixed, config, batch_size=2, step_size=8)) == (16 + 8) // 2
    same = [[b.image_ids for b in loader(mixed, config, batch_size=size, step_size=8).epoch(3)] for size in (8, 2)]
    assert [i for ids in same[0] for i in ids] == [i for ids in same[1] for i in ids]


# ---- what is too small ---------------------------------------------------------------------------------------------


def objects(dataset, config) -> dict[int, int]:
    """How many of each image an epoch shows."""
    batches = loader(dataset, config).epoch(0)
    return {i: int(n) for batch in batches for i, n in zip(batch.image_ids, batch.targets.num_boxes, strict=True)}


def test_narrow_images_and_thin_boxes_teach_nothing(mixed):
    config = DataConfig(train_short_sides=(64,), max_long_side=160, min_image_side=32, min_box_side=1.0)
    plain = replace(config, min_image_side=0, min_box_side=0.0)
    with_all, without = objects(mixed, plain), objects(mixed, config)
    assert with_all.keys() - without.keys() == {mixed.image_ids[-1]}
    assert {image_id for image_id in without if without[image_id] != with_all[image_id]} == {mixed.image_ids[0]}
    evaluated = [i for batch in loader(mixed, config, training=False).epoch(0) for i in batch.image_ids]
    assert evaluated == list(mixed.image_ids)


def test_a_set_of_narrow_images_is_told(mixed):
    with pytest.raises(UserError, match=r"no image has sides as long as data.min_image_side=500 asks; lower it"):
        loader(mixed, DataConfig(min_image_side=500))
    with pytest.raises(UserError, match=r"no object has sides as long as data.min_box_side=500 asks; lower it"):
        loader(mixed, DataConfig(min_box_side=500))


def test_a_mirrored_image_one_pixel_wide_is_resized():
    image = np.arange(70 * 3, dtype=np.uint8).reshape(70, 1, 3)
    assert np.array_equal(resize_official(flip(image), 140, 2), resize_official(image, 140, 2))
