"""Images with rare classes are shown more often: as official code does, or drawn anew in every epoch."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config import DataConfig
from harness.data import CocoDataset
from harness.data.loader import Loader
from harness.data.order import aspect_groups, repeat_factors, repeated, samples_of_epoch
from harness.spec.training_length import num_training_images
from model.types import Batch
from tests.support.folders import tables, write_split

IMAGES = 60
CONFIG = DataConfig(train_short_sides=(32,), eval_short_side=32, max_long_side=64, repeat_threshold=0.3)


def draw_factors(seed: int, config: DataConfig = CONFIG) -> np.ndarray:
    """Of 60 images of classes whose frequency falls by half from one to the next."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, IMAGES, 90)
    factors = repeat_factors(images, rng.geometric(0.5, 90), [(40, 50)] * IMAGES, config)
    assert factors is not None
    return factors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """30 images of two shapes; class 90 is in two of them, one too narrow to learn from with `min_image_side=40`."""
    root = tmp_path_factory.mktemp("set")
    content = tables(sizes=[(60, 80), (70, 50)] * 14 + [(30, 90), (64, 90)])
    for number, row in enumerate(content["annotations"]):
        row |= {"category_id": (0, 7)[number % 2], "iscrowd": 0}
    for row in content["annotations"]:
        if row["image_id"] in (290, 300):
            row["category_id"] = 90
    write_split(root, "train", content)
    return CocoDataset(root, "train")


def loader(data: CocoDataset, config: DataConfig = CONFIG, **options: int) -> Loader:
    given = {"batch_size": 4, "seed": 1, "size_divisor": 8, **options}
    return Loader(data, config, training=True, **given)


def test_factors_by_hand() -> None:
    """Class 1 is in 1 of 5 images, class 2 in 4 of them; the objects of a class in one image count once."""
    images, classes = np.array([0, 0, 0, 1, 2, 3, 3]), np.array([1, 1, 2, 2, 2, 2, 2])
    factors = repeat_factors(images, classes, [(9, 9)] * 5, DataConfig(repeat_threshold=0.9))
    assert factors is not None
    often = np.sqrt(0.9 / 0.8)
    assert factors.tolist() == pytest.approx([np.sqrt(0.9 / 0.2), often, often, often, 1])
    empty = repeat_factors(images, classes, [(9, 9)] * 5, DataConfig(repeat_threshold=0.9, repeat_empty=True))
    assert empty is not None and empty[4] == pytest.approx(np.sqrt(0.9 / 0.2))
    assert repeat_factors(images, classes, [(9, 9)] * 5, DataConfig()) is None


def test_images_that_nothing_is_learnt_from_count_neither_as_images_nor_for_their_classes(data: CocoDataset) -> None:
    def factor(config: DataConfig) -> float:
        factors = repeat_factors(*data.classes_of_images(), data.image_hw, config)
        assert factors is not None
        return float(factors[-1])

    assert factor(CONFIG) == pytest.approx(np.sqrt(0.3 / (2 / 30)))
    assert factor(replace(CONFIG, min_image_side=40)) == pytest.approx(np.sqrt(0.3 / (1 / 29)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, aspect_group_size=2)], ids=["all", "groups"])
def test_drawn_is_the_factor_in_the_mean_and_always_as_many(seed: int, config: DataConfig) -> None:
    config = replace(config, repeat="drawn")
    factors = draw_factors(seed)
    sizes = [(40, 50), (50, 40), (40, 40)] * (IMAGES // 3)
    groups = aspect_groups(sizes, config)
    epochs = 2000
    total = np.zeros(IMAGES)
    for epoch in range(epochs):
        shown = repeated(groups, factors, config, np.random.default_rng([seed, epoch]))
        counts = np.bincount(np.concatenate(shown), minlength=IMAGES)
        assert ((counts == np.floor(factors)) | (counts == np.ceil(factors))).all()
        assert [len(own) for own in shown] == [round(factors[group].sum()) for group in groups]
        total += counts
    for group in groups:  # only so far from the factors as a whole number of samples is
        off = abs(round(factors[group].sum()) - factors[group].sum())
        assert total[group].sum() / epochs - factors[group].sum() == pytest.approx(0, abs=off + 1e-9)
        assert np.abs(total[group] / epochs - factors[group]).max() < off + 0.05
    assert samples_of_epoch(sizes, replace(config, aspect_group_size=0), 1, factors) == round(factors.sum())


def test_ceil_is_the_same_in_every_epoch(data: CocoDataset) -> None:
    made = loader(data)
    counts = [Counter(made.order(epoch)) for epoch in range(3)]
    assert counts[0] == counts[1] == counts[2] and made.order(0) != made.order(1)
    assert (counts[0][29], counts[0][28], counts[0][0]) == (3, 3, 1)
    assert len(made) == -(-(28 + 6) // 4)


def test_an_epoch_is_the_same_whenever_it_is_asked_for_and_ends_where_it_was_told(data: CocoDataset) -> None:
    config = replace(CONFIG, repeat="drawn", aspect_group_size=2)
    made = loader(data, config)
    orders = [made.order(epoch) for epoch in range(40)]
    assert [loader(data, config).order(epoch) for epoch in (7, 3)] == [orders[7], orders[3]]
    assert {len(order) for order in orders} == {made.num_images} == {len(made) * 4}
    assert len({order.count(29) for order in orders}) > 1
    whole = [batch.image_ids for batch in made.epoch(5)]
    assert [batch.image_ids for batch in made.epoch(5, start_batch=3)] == whole[3:]
    wide = {number for number, (height, width) in zip(data.image_ids, data.image_hw, strict=True) if width > height}
    for batch in whole:
        for pair in (batch[:2], batch[2:]):  # of one shape
            assert len({number in wide for number in pair}) == 1
    halves = [loader(data, config, rank=rank, num_ranks=2) for rank in (0, 1)]
    shared = [[*a.image_ids, *b.image_ids] for a, b in zip(*(half.epoch(5) for half in halves), strict=True)]
    assert shared == [list(ids) for ids in whole]


def test_an_image_that_is_shown_again_is_not_the_same_picture(data: CocoDataset) -> None:
    """Its first showing is that of a training that repeats nothing; others are drawn anew, for all ranks alike."""
    config = replace(CONFIG, train_short_sides=(32, 36, 40, 44, 48), flip_probability=0.5)
    made, plain = loader(data, config), loader(data, replace(config, repeat_threshold=0.0))
    again = 0
    for epoch in range(3):
        whole, shown = list(made.epoch(epoch)), defaultdict[int, list[bytes]](list)
        for batch in whole:
            for place, number in enumerate(batch.image_ids):
                shown[number].append(picture(batch, place))
        for batch in plain.epoch(epoch):
            for place, number in enumerate(batch.image_ids):
                assert shown[number][0] == picture(batch, place)
        again += sum(len(set(own)) - 1 for own in shown.values())
        halves = [loader(data, config, rank=rank, num_ranks=2).epoch(epoch) for rank in (0, 1)]
        for batch, first, second in zip(whole, *halves, strict=True):
            assert torch.equal(batch.images, torch.cat([first.images, second.images])[: len(batch.images)])
    assert again >= 5  # of four repetitions in an epoch; two are of one size, mirrored or not


def picture(batch: Batch, place: int) -> bytes:
    height, width = batch.valid_hw[place].tolist()
    return bytes([height, width]) + batch.images[place, :, :height, :width].numpy().tobytes()


def test_without_a_threshold_nothing_changes(data: CocoDataset) -> None:
    plain = replace(CONFIG, repeat_threshold=0.0)
    assert sorted(loader(data, plain).order(0)) == list(range(30))
    assert loader(data, plain).order(2) == loader(data, replace(plain, repeat="drawn")).order(2)


@pytest.mark.parametrize("how", ["ceil", "drawn"])
@pytest.mark.parametrize("group", [0, 2])
def test_the_length_of_a_training_is_known_before(data: CocoDataset, how: str, group: int) -> None:
    root = data.annotation_file.parent.parent
    config = replace(CONFIG, path=str(root), repeat=how, aspect_group_size=group, min_image_side=40)
    assert num_training_images(config, 4) == loader(data, config).num_images
    assert num_training_images(replace(config, path=None), 4) is None  # digits would have to be drawn


def test_length_of_a_file_with_crowds(tmp_path: Path) -> None:
    content = tables(sizes=[(40, 50)] * 8)
    write_split(tmp_path, "train", content)
    assert json.loads((tmp_path / "annotations" / "instances_train.json").read_text())["annotations"][-1]["iscrowd"]
    config = replace(CONFIG, path=str(tmp_path), repeat_threshold=0.9)
    assert num_training_images(config, 4) == loader(CocoDataset(tmp_path, "train"), config).num_images
