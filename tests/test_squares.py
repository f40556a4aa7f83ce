"""Images on squares: large-scale jitter, copy-paste, and detections that find their way back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config import DataConfig
from harness.data import open_splits
from harness.data.coco import CocoDataset
from harness.data.jitter import GREY, draw_jitter
from harness.data.loader import Loader
from harness.data.masks import decoded, grid_over_box
from harness.data.paste import Cutout, Objects, boxes_of, draw_pasted, paste
from harness.data.squares import Squares
from harness.errors import UserError
from harness.trial.detections import to_results
from harness.trial.footprint import largest_of
from model.types import Batch, Detections
from tests.support.folders import tables, write_split

JITTER = DataConfig(square=64, jitter_scales=(0.1, 2.0), resize="official")
PASTE = replace(JITTER, copy_paste=99)
SQUARE = DataConfig(square=64)


def loader(dataset: CocoDataset, config: DataConfig, **changes: object) -> Loader:
    given = {"batch_size": 4, "training": True, "seed": 1, "size_divisor": 32, **changes}
    return Loader(dataset, config, **given)  # type: ignore[arg-type]


def opened(root: Path, *, with_masks: bool = True) -> CocoDataset:
    return CocoDataset(root, "train", progress=lambda line: None, with_masks=with_masks)


def write(root: Path, objects: list[list[list[int]]], sizes: list[tuple[int, int]]) -> Path:
    """Black images whose objects are rectangles x, y, w, h, the k-th of an image of grey level 40 k + 100."""
    images, annotations = [], []
    for index, ((height, width), own) in enumerate(zip(sizes, objects, strict=True)):
        images.append({"id": index + 1, "file_name": f"{index + 1}.png", "height": height, "width": width})
        for x, y, w, h in own:
            corners = [float(n) for n in (x, y, x + w, y, x + w, y + h, x, y + h)]
            row = {"image_id": index + 1, "category_id": 1 + len(annotations) % 3, "bbox": [x, y, w, h], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "area": w * h, "segmentation": [corners], **row})
    categories = [{"id": number, "name": f"kind {number}"} for number in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        write_split(root, split, content)
        for row, own in zip(images, objects, strict=True):
            pixels = np.zeros((row["height"], row["width"], 3), np.uint8)
            for number, (x, y, w, h) in enumerate(own):
                pixels[y : y + h, x : x + w] = 40 * number + 100
            Image.fromarray(pixels).save(root / split / str(row["file_name"]))
    return root


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Nine images, wide and high, of one to three objects, one of them without any."""
    sizes = [*[(60 + 4 * k, 100) for k in range(5)], *[(110, 70 + 3 * k) for k in range(4)]]
    objects = [[[5 + 9 * (k % 5), 10, 30, 35 + k], [50, 20, 15, 30], [2, 3, 9, 8]][: 1 + k % 3] for k in range(9)]
    objects[6] = []
    return opened(write(tmp_path_factory.mktemp("mixed"), objects, sizes))


def batches(dataset: CocoDataset, config: DataConfig, epochs: int = 3, **changes: object) -> list[Batch]:
    own = loader(dataset, config, **changes)
    return [batch for epoch in range(epochs) for batch in own.epoch(epoch)]


def same(first: Batch, second: Batch) -> bool:
    tensors = [
        (own.images, own.valid_hw, own.targets.boxes_xyxy, own.targets.labels, own.targets.masks, own.original_hw)
        for own in (first, second)
    ]
    return first.image_ids == second.image_ids and all(torch.equal(*pair) for pair in zip(*tensors, strict=True))


# ---- large-scale jitter ---------------------------------------------------------------------------------------------


def test_boxes_enclose_what_is_left_of_their_objects(mixed: CocoDataset) -> None:
    lone = replace(JITTER, min_box_side=1.0)
    seen = 0
    for batch in batches(mixed, lone, 12, batch_size=1):
        assert batch.images.shape == (1, 3, 64, 64) and batch.valid_hw.tolist() == [[64, 64]]
        boxes = batch.targets.boxes_xyxy[0][batch.targets.valid[0]]
        if len(boxes) == 1:  # no other lies on it
            x0, y0, x1, y1 = boxes[0].long().tolist()
            assert boxes[0].tolist() == [x0, y0, x1, y1]  # around whole pixels
            bright = (batch.images[0, 0] > 50) & (batch.images[0, 0] != GREY)
            ys, xs = torch.nonzero(bright, as_tuple=True)
            if len(ys):
                found = torch.tensor([int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1])
                assert (found - boxes[0]).abs().max() <= 1  # masks are not resized as pixels are
                seen += 1
            assert batch.targets.masks is not None and batch.targets.masks[0, 0].float().mean() > 240
    assert seen > 15


def test_what_no_image_covers_is_grey_and_counts_as_image(mixed: CocoDataset) -> None:
    small = replace(JITTER, jitter_scales=(0.5, 0.5))
    (batch,) = batches(mixed, small, 1, batch_size=9)
    assert (batch.images[:, :, 33:, 33:] == GREY).all() and not (batch.images[:, :, :18, :18] == GREY).all()
    assert not batch.is_padded() and (batch.to("cpu").images[:, :, 40:, 40:].abs() < 0.5).all()


def test_draws_are_spread_as_officially(mixed: CocoDataset) -> None:
    config = replace(JITTER, square=1000)
    rng = np.random.default_rng(0)
    views = [draw_jitter(rng, (480, 640), config) for _ in range(4000)]
    longest = np.array([view.window.from_hw[1] for view in views])
    assert longest.min() >= 100 and longest.max() < 2000
    assert longest.mean() == pytest.approx(1050, abs=30) and longest.std() == pytest.approx(1900 / 12**0.5, rel=0.03)
    assert all(abs(view.window.from_hw[0] - 0.75 * view.window.from_hw[1]) <= 1 for view in views)
    cut = [view for view in views if view.window.from_hw[1] > 1000]
    shares = np.array([view.window.left / max(view.window.from_hw[1] - 1000, 1) for view in cut])
    assert shares.mean() == pytest.approx(0.5, abs=0.03) and shares.min() < 0.02 and shares.max() > 0.98
    assert all(view.hw == (min(view.window.from_hw[0], 1000), min(view.window.from_hw[1], 1000)) for view in views)
    assert np.mean([view.mirrored for view in views]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("config", [JITTER, PASTE, SQUARE], ids=["jitter", "paste", "square"])
def test_a_sample_depends_on_seed_epoch_and_image_alone(mixed: CocoDataset, config: DataConfig) -> None:
    first = batches(mixed, config)
    assert all(map(same, first, batches(mixed, config, num_workers=2)))
    assert all(map(same, first[-2:], loader(mixed, config).epoch(2, start_batch=1)))  # a training that was resumed
    others = batches(mixed, config, seed=2)
    assert not all(map(same, first, others))


@pytest.mark.parametrize("config", [JITTER, PASTE, SQUARE], ids=["jitter", "paste", "square"])
def test_the_shares_of_ranks_are_the_batch(mixed: CocoDataset, config: DataConfig) -> None:
    whole = batches(mixed, config)
    shares = [batches(mixed, config, rank=rank, num_ranks=2) for rank in (0, 1)]
    for number, expected in enumerate(whole):
        parts = [share[number] for share in shares if not share[number].share.borrowed]  # type: ignore[union-attr]
        most = max(part.targets.labels.shape[1] for part in parts)
        assert most == expected.targets.labels.shape[1]  # to which they are padded in training
        targets = [part.targets.padded_to(most) for part in parts]
        assert torch.equal(torch.cat([part.images for part in parts]), expected.images)
        for name in ("boxes_xyxy", "labels", "masks"):
            assert torch.equal(torch.cat([getattr(own, name) for own in targets]), getattr(expected.targets, name))


def test_an_image_that_loses_its_objects_gives_way_to_one_of_its_shape(tmp_path: Path) -> None:
    """The first wide image has a speck that no small size shows, the others something large, the last one nothing."""
    sizes = [(60, 100), (60, 100), (100, 60), (60, 100)]
    dataset = opened(write(tmp_path, [[[41, 31, 1, 1]], [[10, 10, 50, 40]], [[10, 10, 40, 60]], []], sizes))
    config = replace(JITTER, jitter_scales=(0.1, 0.2), aspect_group_size=1)
    counts: Counter[int] = Counter()
    for epoch in range(30):
        shown = [batch.image_ids[0] for batch in loader(dataset, config, batch_size=1).epoch(epoch)]
        assert shown.count(3) == 1 and shown.count(4) >= 1  # alone in its shape; without objects from the start
        counts.update(shown)
    assert counts[1] < 15 and counts[2] > 35 and counts[4] > 32  # the speck's place is taken by either


def test_images_none_of_which_keeps_an_object_are_told(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, [[[41, 31, 1, 1]]], [(60, 100)]))
    config = replace(JITTER, square=32, jitter_scales=(0.1, 0.1))
    with pytest.raises(UserError, match=r"1000 images in a row keep no pixel of an object; raise data.jitter_scales"):
        list(loader(dataset, config).epoch(0))


def test_masks_of_a_view_are_the_cutouts_as_grids(mixed: CocoDataset) -> None:
    config = replace(JITTER, boxes_from_masks=False)
    squares, rng = Squares(mixed, config, mixed.load_image, True), np.random.default_rng(3)
    compared = 0
    for index in range(len(mixed)):
        view = draw_jitter(rng, mixed.image_hw[index], config)
        found = squares.objects(index, view)
        shows = view.boxes(mixed.boxes(index)[0])[1]
        masks = (decoded(mixed._segmentations.at(int(row), mixed.image_hw[index]), *mixed.image_hw[index])
                 for row in mixed._objects(index)[shows])  # fmt: skip
        for mask, box, grid in zip(masks, found.boxes_xyxy, found.grids(), strict=True):
            assert np.array_equal(grid, grid_over_box(mask, box, view.sources()))
            compared += 1
    assert compared > 8


# ---- data without masks ---------------------------------------------------------------------------------------------


def without_masks(root: Path) -> Path:
    for split in ("train", "val"):
        write_split(root, split, tables(0, [(64, 96), (96, 64), (80, 80), (50, 90)]))
    return root


def test_boxes_alone_are_cut_where_that_is_said(tmp_path: Path) -> None:
    config = replace(JITTER, path=str(without_masks(tmp_path)), boxes_from_masks=False)
    train, _ = open_splits(config, progress=lambda line: None)
    assert not train.has_masks
    for batch in batches(train, config, 10):
        boxes = batch.targets.boxes_xyxy[batch.targets.valid]
        assert batch.targets.masks is None and (boxes >= 0).all() and (boxes <= 64).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 0.01).all()


@pytest.mark.parametrize("changes", [{}, {"copy_paste": 99}], ids=["jitter", "paste"])
def test_data_without_masks_are_refused_in_one_line(tmp_path: Path, changes: dict[str, int]) -> None:
    config = replace(JITTER, path=str(without_masks(tmp_path)), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError) as refused:
        open_splits(config, progress=lambda line: None)
    told = str(refused.value)
    assert "\n" not in told and told.startswith(str(tmp_path / "annotations" / "instances_train.json"))
    assert "none of its 6 annotations has a segmentation" in told
    assert "data.copy_paste: 0, data.boxes_from_masks: false" in told


def test_only_training_reads_the_masks(mixed: CocoDataset) -> None:
    config = replace(PASTE, path=str(mixed.image_folder.parent))
    train, val = open_splits(config, progress=lambda line: None)
    assert train.has_masks and not val.has_masks
    (batch, *_) = batches(train, config, 1, with_masks=False)
    assert batch.targets.masks is None
    with pytest.raises(AssertionError, match="with masks"):
        loader(val, config)


# ---- copy-paste -----------------------------------------------------------------------------------------------------


def rectangles(*boxes: tuple[int, int, int, int]) -> Objects:
    """Objects on a picture of 40 x 60 that fill their boxes."""
    canvas = np.zeros((len(boxes), 40, 60), bool)
    for mask, (x0, y0, x1, y1) in zip(canvas, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    cutouts = tuple(map(Cutout.of, canvas))
    return Objects(boxes_of(cutouts), np.arange(len(boxes)), cutouts)


def test_an_object_survives_that_hardly_moves_or_stays_large() -> None:
    image, other = np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 9, np.uint8)
    target = rectangles((0, 0, 30, 20), (25, 0, 42, 20), (32, 25, 41, 30), (50, 30, 60, 40))
    pasted = rectangles((30, 0, 60, 31), (0, 0, 11, 20))
    found, objects = paste(image, target, other, pasted)
    assert not image.any() and (found[:31, 30:] == 9).all() and not found[31:, :].any()
    # The first one's left side moves by 11, yet 19 x 20 pixels are left; the second keeps 5 x 20 and moves by 12;
    # nothing is left of the third, and the last one loses a row.
    assert objects.boxes_xyxy.tolist() == [[11, 0, 30, 20], [50, 31, 60, 40], [30, 0, 60, 31], [0, 0, 11, 20]]
    assert objects.labels.tolist() == [0, 3, 0, 1]
    assert [own.area for own in objects.cutouts or ()] == [380, 90, 930, 220]
    assert paste(image, target, other, pasted.at(np.arange(0))) == (image, target)


def test_pasted_numbers_are_as_likely_as_each_other() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_pasted(rng, 4, 99) for _ in range(3000)]
    counts = Counter(map(len, draws))
    assert set(counts) == {0, 1, 2, 3, 4} and all(abs(number - 600) < 90 for number in counts.values())
    chosen = Counter(row for draw in draws for row in draw.tolist())
    assert all(len(set(draw.tolist())) == len(draw) for draw in draws)
    assert all(abs(chosen[row] - 1500) < 120 for row in range(4))
    assert max(len(draw_pasted(rng, 300, 99)) for _ in range(500)) == 99
    assert len(draw_pasted(rng, 0, 99)) == 0


def test_objects_of_all_images_are_pasted_into_each(mixed: CocoDataset) -> None:
    plain, config = JITTER, PASTE
    more, changed = 0, 0
    for without, pasted in zip(batches(mixed, plain, 10), batches(mixed, config, 10), strict=True):
        assert without.image_ids == pasted.image_ids
        more += int(pasted.targets.num_boxes.sum() - without.targets.num_boxes.sum())
        changed += sum(not torch.equal(*pair) for pair in zip(without.images, pasted.images, strict=True))
        boxes = pasted.targets.boxes_xyxy[pasted.targets.valid]
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all() and (boxes <= 64).all()
    assert more > 20 and changed > 30


def test_an_object_of_which_no_pixel_is_left_teaches_nothing(tmp_path: Path) -> None:
    """Officially it keeps a box without area, where it was small and in the corner."""
    corner = rectangles((0, 0, 5, 5))
    _, found = paste(np.zeros((40, 60, 3), np.uint8), corner, np.zeros((40, 60, 3), np.uint8), rectangles((0, 0, 9, 9)))
    assert found.boxes_xyxy.tolist() == [[0, 0, 0, 0], [0, 0, 9, 9]]
    assert found.with_area().boxes_xyxy.tolist() == [[0, 0, 9, 9]]
    dataset = opened(write(tmp_path, [[[0, 0, 5, 5]], [[0, 0, 50, 50]]], [(64, 64)] * 2))
    config = replace(PASTE, jitter_scales=(1.0, 1.0), flip_probability=0.0)
    numbers = Counter()
    for batch in batches(dataset, config, 20):
        boxes = batch.targets.boxes_xyxy[batch.targets.valid]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        numbers.update(batch.targets.num_boxes.tolist())
    assert set(numbers) == {1, 2}


# ---- evaluation, and what else knows of squares ------------------------------------------------------------------


def test_detections_find_back_from_a_square(mixed: CocoDataset) -> None:
    (batch,) = batches(mixed, PASTE, 1, batch_size=9, training=False)
    assert batch.images.shape == (9, 3, 64, 64) and batch.valid_hw.tolist() == [[64, 64]] * 9
    assert batch.content_hw is not None and batch.content_hw.amax(1).tolist() == [64] * 9
    assert batch.content_hw[0].tolist() == [38, 64] and (batch.images[0, :, 38:] == GREY).all()
    found = [
        Detections(own[valid], torch.ones(int(valid.sum())), labels[valid])
        for own, labels, valid in zip(batch.targets.boxes_xyxy, batch.targets.labels, batch.targets.valid, strict=True)
    ]
    below = Detections(torch.tensor([[10.0, 30.0, 20.0, 60.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    table = to_results(batch, [below, *found[1:]], mixed.category_ids)
    height, width = mixed.image_hw[0]
    x, y, w, h = table.boxes_xywh[0]
    assert (x, w) == (pytest.approx(10 * width / 64), pytest.approx(10 * width / 64)) and y + h == height
    expected = np.concatenate([mixed.boxes(index)[0] for index in range(1, len(mixed))])
    reached = table.boxes_xywh[1:]
    assert np.abs(np.concatenate([reached[:, :2], reached[:, :2] + reached[:, 2:]], 1) - expected).max() < 1e-3


def test_masks_over_boxes_that_leave_the_image_are_cut_and_not_squeezed(mixed: CocoDataset) -> None:
    (batch,) = batches(mixed, SQUARE, 1, batch_size=1, training=False, limit=1)
    grid = torch.zeros(1, 28, 28)
    grid[:, :14] = 1  # the upper half of the box
    boxes, one = torch.tensor([[0.0, 20.0, 64.0, 60.0]]), torch.ones(1)
    table = to_results(batch, [Detections(boxes, one, torch.zeros(1, dtype=torch.int64), grid)], mixed.category_ids)
    assert table.masks is not None
    mask = decoded({"size": list(mixed.image_hw[0]), "counts": table.masks[0]}, *mixed.image_hw[0])
    rows = np.flatnonzero(mask.any(1))
    scale = mixed.image_hw[0][0] / 38
    assert rows[0] == pytest.approx(20 * scale, abs=1) and rows[-1] == mixed.image_hw[0][0] - 1
    beside = torch.tensor([[0.0, 45.0, 64.0, 60.0]])  # wholly in the grey
    table = to_results(batch, [Detections(beside, one, torch.zeros(1, dtype=torch.int64), grid)], mixed.category_ids)
    assert table.masks is not None and not decoded({"size": [60, 100], "counts": table.masks[0]}, 60, 100).any()


def test_evaluation_may_have_another_long_side(mixed: CocoDataset) -> None:
    config = DataConfig(train_short_sides=(48,), eval_short_side=64, max_long_side=200, eval_long_side=72)
    (evaluated,) = batches(mixed, config, 1, batch_size=9, training=False)
    (trained,) = batches(mixed, config, 1, batch_size=9)
    assert int(evaluated.valid_hw.max()) == 72 < int(trained.valid_hw.max())


def test_memory_is_that_of_a_square() -> None:
    data = DataConfig(path="own", square=1024, max_long_side=1333)
    assert largest_of([(480, 640), (640, 480)], data) == (1024, 1024)


def test_real_images_and_their_masks_go_together() -> None:
    from tests.support.folders import real_data

    config = replace(PASTE, path=str(real_data("coco_mini")), square=256)
    train, _ = open_splits(config, progress=lambda line: None)
    seen = 0
    for batch in loader(train, config, batch_size=8).epoch(0):
        assert batch.targets.masks is not None
        boxes, masks = batch.targets.boxes_xyxy[batch.targets.valid], batch.targets.masks[batch.targets.valid]
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all() and (masks.flatten(1).amax(1) > 0).all()
        assert all(masks[:, 0].amax(1) > 0) and all(masks[:, :, -1].amax(1) > 0)  # boxes are tight
        seen += len(boxes)
    assert seen > 1000
