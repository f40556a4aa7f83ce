"""Batches: sizes, padding, boxes that follow the image, and order that depends on nothing but (seed, epoch)."""

from __future__ import annotations

import gc
import multiprocessing
import time

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config import DataConfig
from harness.data import CocoDataset
from harness.data.loader import Loader
from harness.data.transforms import flip, flip_boxes, resized_hw
from harness.errors import UserError
from harness.trial.detections import to_results
from model.pixels import MEAN, STD
from model.share import Share
from model.types import Batch, Detections, Targets
from tests.support.folders import tables, write_folder, write_split

CONFIG = DataConfig(train_short_sides=(32, 48, 64), eval_short_side=48, max_long_side=100)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return CocoDataset(write_folder(tmp_path_factory.mktemp("set")), "train")


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    root = tmp_path_factory.mktemp("larger")
    write_split(root, "train", tables(3, sizes=[(40 + 3 * k, 70 - 2 * k) for k in range(11)]))
    return CocoDataset(root, "train")


def loader(dataset, config=CONFIG, **changes) -> Loader:
    given = {"batch_size": 3, "training": True, "seed": 1, "size_divisor": 32, **changes}
    return Loader(dataset, config, **given)


def same(first: Batch, second: Batch) -> bool:
    tensors = [
        (batch.images, batch.valid_hw, batch.targets.boxes_xyxy, batch.targets.labels, batch.original_hw)
        for batch in (first, second)
    ]
    return first.image_ids == second.image_ids and all(map(torch.equal, *tensors))


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


# ---- sizes and padding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hw", "short", "long", "expected"),
    [
        ((480, 640), 160, 240, (160, 213)),
        ((640, 480), 160, 240, (213, 160)),
        ((100, 400), 160, 240, (60, 240)),
        ((160, 160), 160, 240, (160, 160)),
        ((800, 1333), 800, 1333, (800, 1333)),
        ((3, 2000), 32, 100, (1, 100)),
    ],
)
def test_resized_hw(hw, short, long, expected):
    assert resized_hw(*hw, short, long) == expected


def test_mixed_sizes_are_padded_with_zeros_and_masked(dataset):
    (batch,) = loader(dataset, batch_size=4, training=False).epoch(0)
    assert batch.image_ids == dataset.image_ids
    assert batch.valid_hw.tolist() == [[48, 72], [72, 48], [48, 48], [42, 100]]
    assert batch.images.shape == (4, 3, 96, 128) and batch.images.dtype == torch.uint8  # on its way to the device
    batch = batch.to("cpu")
    assert batch.images.shape == (4, 3, 96, 128) and batch.images.dtype == torch.float32
    outside = batch.padding_mask
    for index, (height, width) in enumerate(batch.valid_hw.tolist()):
        expected = torch.ones(96, 128, dtype=torch.bool)
        expected[:height, :width] = False
        assert torch.equal(outside[index], expected)
        assert (batch.images[index][:, expected] == 0).all()
        assert (batch.images[index, :, :height, :width] != 0).float().mean() > 0.9
    assert batch.original_hw.tolist() == [list(hw) for hw in dataset.image_hw]
    assert batch.targets.num_boxes.tolist() == [2, 2, 0, 1]


def test_pixels_are_those_of_the_file_normalised(dataset):
    config = DataConfig(eval_short_side=64, max_long_side=96)
    batch = next(loader(dataset, config, batch_size=1, training=False).epoch(0)).to("cpu")
    with Image.open(dataset.image_folder / "10.jpg") as image:
        pixels = np.asarray(image.convert("RGB"), np.float64)
    expected = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)
    assert batch.images.shape == (1, 3, 64, 96)
    assert np.abs(batch.images[0].numpy() - expected).max() < 1e-5


def test_numbers_are_those_of_numpy_to_the_last_bit():
    """All bytes in all channels, with padding on both sides; a batch that is normalised stays as it is."""
    pixels = np.stack([np.arange(256, dtype=np.uint8)] * 3, 1).reshape(16, 16, 3)
    images = torch.full((2, 3, 32, 64), 9, dtype=torch.uint8)
    images[0, :, :16, :16] = torch.from_numpy(pixels).permute(2, 0, 1)
    targets = Targets.stack([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    batch = Batch(images, torch.tensor([[16, 16], [32, 64]]), targets).to("cpu")
    expected = pixels.astype(np.float32) * (1 / (255 * STD)) - MEAN / STD
    assert np.array_equal(batch.images[0, :, :16, :16].numpy().view(np.int32), _bits(expected.transpose(2, 0, 1)))
    assert (
        not batch.images[0, :, 16:].view(torch.int32).any() and not batch.images[0, :, :, 16:].view(torch.int32).any()
    )
    assert torch.equal(batch.to("cpu").images, batch.images) and batch.to("cpu").images.is_contiguous()


def _bits(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers, np.float32).view(np.int32)


def test_a_batch_without_any_object(tmp_path):
    content = tables(sizes=[(40, 40)] * 3)
    content["annotations"] = []
    write_split(tmp_path, "train", content)
    (batch,) = loader(CocoDataset(tmp_path, "train")).epoch(0)
    assert batch.targets.num_boxes.tolist() == [0, 0, 0] and not batch.targets.valid.any()


# ---- boxes follow the image ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """One image, black but for a white rectangle which its only box encloses."""
    root = tmp_path_factory.mktemp("marked")
    box = [10, 12, 30, 16]
    content = {
        "images": [{"id": 5, "file_name": "5.png", "height": 64, "width": 96}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 2, "bbox": box, "area": 480, "iscrowd": 0}],
        "categories": [{"id": 2, "name": "white"}],
    }
    write_split(root, "train", content)
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[12:28, 10:40] = 255
    Image.fromarray(pixels).save(root / "train" / "5.png")
    return CocoDataset(root, "train")


@pytest.mark.parametrize("mirrored", [0.0, 1.0])
@pytest.mark.parametrize("short_side", [64, 128])
def test_the_box_still_encloses_the_object(marked, mirrored, short_side):
    config = DataConfig(train_short_sides=(short_side,), max_long_side=400, flip_probability=mirrored)
    (batch,) = loader(marked, config, batch_size=1).epoch(0)
    white = batch.to("cpu").images[0, 0] > 1
    ys, xs = torch.nonzero(white, as_tuple=True)
    found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
    scale = short_side / 64
    left, right = (56, 86) if mirrored else (10, 40)
    assert batch.targets.boxes_xyxy[0, 0].tolist() == [left * scale, 12 * scale, right * scale, 28 * scale]
    assert (found - batch.targets.boxes_xyxy[0, 0]).abs().max() <= 1


def test_flip_twice_changes_nothing(dataset):
    image, boxes, _, _ = dataset.load(0)
    once, width = flip(image), image.shape[1]
    assert not np.array_equal(once, image) and not np.array_equal(flip_boxes(boxes, width), boxes)
    assert np.array_equal(flip(once), image) and np.allclose(flip_boxes(flip_boxes(boxes, width), width), boxes)


def test_augmentation_uses_every_size_and_both_directions(larger):
    sides, pixels = set(), {}
    config = DataConfig(train_short_sides=(32, 48, 64), max_long_side=400)
    for epoch in range(12):
        for batch in loader(larger, config).epoch(epoch):
            sides |= set(batch.valid_hw.amin(1).tolist())
            for image_id, image, hw in zip(batch.image_ids, batch.images, batch.valid_hw.tolist(), strict=True):
                pixels.setdefault((image_id, tuple(hw)), set()).add(round(float(image[:, :, 0].sum()), 3))
    assert sides == {32, 48, 64}
    assert {len(sums) for sums in pixels.values()} == {1, 2}


def test_detections_come_back_in_pixels_of_the_data_set(dataset):
    (batch,) = loader(dataset, batch_size=4, training=False).epoch(0)
    perfect = [
        Detections(boxes[:count], torch.ones(count), labels[:count])
        for boxes, labels, count in zip(
            batch.targets.boxes_xyxy, batch.targets.labels, batch.targets.num_boxes, strict=True
        )
    ]
    results = to_results(batch, perfect, dataset.category_ids)
    truth = [row for row in dataset.ground_truth["annotations"] if not row["iscrowd"]]
    assert [(row["image_id"], row["category_id"]) for row in results] == [
        (row["image_id"], row["category_id"]) for row in truth
    ]
    for found, row in zip(results, truth, strict=True):
        assert np.abs(np.array(found["bbox"]) - row["bbox"]).max() < 1e-3


# ---- order and resuming -------------------------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_that_the_seed_and_the_epoch_decide(larger):
    def ids(seed: int, epoch: int) -> list[int]:
        return [image_id for batch in loader(larger, seed=seed).epoch(epoch) for image_id in batch.image_ids]

    orders = [ids(0, 0), ids(0, 1), ids(1, 0)]
    assert all(sorted(order) == list(larger.image_ids) for order in orders)
    assert len(set(map(tuple, orders))) == 3 and ids(0, 1) == orders[1]


def test_evaluation_goes_through_all_images_in_order_every_time(larger):
    batches = loader(larger, training=False, batch_size=4)
    for epoch in (0, 3):
        found = [image_id for batch in batches.epoch(epoch) for image_id in batch.image_ids]
        assert found == sorted(larger.image_ids)


def test_length(larger):
    batches = loader(larger)
    assert [len(batch.image_ids) for batch in batches.epoch(0)] == [3, 3, 3, 2] and len(batches) == 4


def test_any_batch_of_any_epoch_continues_exactly(larger):
    whole = list(loader(larger).epoch(2))
    for start in range(len(whole) + 1):
        fresh = loader(larger)
        next(fresh.epoch(0))
        assert all_same(list(fresh.epoch(2, start)), whole[start:])


def test_what_an_image_looks_like_does_not_depend_on_its_batch(larger):
    def looks(batch_size: int) -> dict[int, torch.Tensor]:
        return {
            image_id: image[:, :height, :width]
            for batch in loader(larger, batch_size=batch_size).epoch(4)
            for image_id, image, (height, width) in zip(
                batch.image_ids, batch.images, batch.valid_hw.tolist(), strict=True
            )
        }

    alone, together = looks(1), looks(5)
    assert all(torch.equal(alone[key], together[key]) for key in alone) and len(alone) == 11


def test_workers_give_the_same_batches_also_after_a_stop_in_the_middle(larger):
    plain = loader(larger)
    workers = loader(larger, num_workers=2)
    assert all_same(list(workers.epoch(0)), list(plain.epoch(0)))
    interrupted = workers.epoch(1)
    next(interrupted)
    assert all_same(list(workers.epoch(1, 1)), list(plain.epoch(1, 1)))
    assert all_same(list(workers.epoch(7)), list(plain.epoch(7)))


@pytest.mark.parametrize("batches", [1, 4], ids=["in the middle", "at the end"])
def test_workers_end_with_their_loader(larger, batches):
    """Each that is not told to end is waited for, 5 seconds long."""
    own = loader(larger, num_workers=2)
    epoch = own.epoch(0)
    assert len([next(epoch) for _ in range(batches)]) == batches
    start = time.monotonic()
    del epoch, own
    gc.collect()
    assert time.monotonic() - start < 4 and not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_breaks_while_training_is_one_clear_line(tmp_path, num_workers):
    data = CocoDataset(write_folder(tmp_path), "train")
    (data.image_folder / "20.jpg").write_bytes(b"hello")
    with pytest.raises(UserError) as caught:
        list(loader(data, num_workers=num_workers).epoch(0))
    assert "20.jpg: image 20 cannot be read" in str(caught.value) and "\n" not in str(caught.value)


def test_memory_of_images_changes_nothing(larger, monkeypatch):
    remembered = loader(larger)
    first = [list(remembered.epoch(epoch)) for epoch in (0, 0, 1)]
    monkeypatch.setattr("harness.data.loader.CACHE_BYTES", 0)
    read_again = loader(larger)
    assert all_same(first[0], first[1])
    assert all_same(list(read_again.epoch(0)), first[0]) and all_same(list(read_again.epoch(1)), first[2])
    monkeypatch.setattr(CocoDataset, "load_image", lambda *_: pytest.fail("read a second time"))
    assert all_same(list(remembered.epoch(1)), first[2])


# ---- several ranks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_shares_of_a_training_batch_are_the_batch(larger, num_ranks, num_workers):
    """Images, padding and boxes as in the whole batch; 11 images by 4 leave a last batch of 3."""
    whole = list(loader(larger, batch_size=4).epoch(2))
    parts = [
        list(loader(larger, batch_size=4, rank=rank, num_ranks=num_ranks, num_workers=num_workers).epoch(2))
        for rank in range(num_ranks)
    ]
    for number, expected in enumerate(whole):
        own = [part[number] for part in parts]
        assert [batch.share for batch in own] == [
            Share(sum(len(batch.images) for batch in own[:rank]), len(expected.images)) for rank in range(num_ranks)
        ]
        assert sum((batch.image_ids for batch in own), ()) == expected.image_ids
        assert torch.equal(torch.cat([batch.images for batch in own]), expected.images)
        assert torch.equal(torch.cat([batch.valid_hw for batch in own]), expected.valid_hw)
        assert torch.equal(torch.cat([batch.targets.boxes_xyxy for batch in own]), expected.targets.boxes_xyxy)
        assert torch.equal(torch.cat([batch.targets.labels for batch in own]), expected.targets.labels)
    assert whole[0].share is None


def test_a_rank_without_images_borrows_the_first(larger):
    """11 images by 10 leave one for two ranks."""
    first, second = (list(loader(larger, batch_size=10, rank=rank, num_ranks=2).epoch(0))[-1] for rank in (0, 1))
    assert first.share == Share(0, 1, borrowed=True) and second.share == Share(0, 1)
    assert first.image_ids == second.image_ids and torch.equal(first.images, second.images)


def test_ranks_continue_at_any_batch(larger):
    given = {"batch_size": 2, "rank": 1, "num_ranks": 2}
    assert all_same(list(loader(larger, **given).epoch(1, start_batch=3)), list(loader(larger, **given).epoch(1))[3:])


def test_ranks_divide_the_batches_of_an_evaluation(larger):
    parts = [loader(larger, batch_size=2, training=False, rank=rank, num_ranks=4) for rank in range(4)]
    assert [len(part) for part in parts] == [1, 2, 1, 2]
    whole = list(loader(larger, batch_size=2, training=False).epoch(0))
    assert all_same([batch for part in parts for batch in part.epoch(0)], whole)
    assert list(loader(larger, batch_size=20, training=False, rank=0, num_ranks=2).epoch(0)) == []
