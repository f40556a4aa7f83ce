"""The contract of `model/heads/base.py`, checked on every head in `HEADS`.

A new head gets all of this by its line in `HEADS`; it must name a tiny setting in `TINY` or the suite fails.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from model.heads import HEADS
from model.heads.base import AuxiliaryHead
from model.heads.dense import best_after_nms
from model.heads.masks import MaskConfig
from model.heads.roi import RoIConfig
from model.heads.rpn import RPNConfig
from model.layers import stride_mask
from model.ops import nms
from model.types import IGNORED, MASK_CELLS, Positives, Pyramid, Targets

TINY_RPN = RPNConfig(num_samples=10_000, num_proposals=30)  # more samples than candidates: nothing is left to chance
TINY: dict[str, dict[str, Any]] = {
    "atss": {"num_convs": 1, "top_k": 4},
    "faster_rcnn": {"rpn": TINY_RPN, "roi": RoIConfig(fc_channels=16)},
    "mask_rcnn": {"rpn": TINY_RPN, "roi": RoIConfig(fc_channels=16), "mask": MaskConfig(num_convs=1, pooled_size=4)},
    "retinanet": {"num_convs": 1},
    "fcos": {"num_convs": 1},
    "paa": {"num_convs": 1, "top_k": 4},
    "gfl": {"num_convs": 1, "top_k": 4, "max_distance": 6},
}

STRIDES, CHANNELS, CLASSES = (8, 16, 32, 64), 16, 3
HEIGHT, WIDTH = 96, 128
EVERY_HEAD = pytest.mark.parametrize("name", sorted(HEADS))


def build(name: str, **settings: Any) -> AuxiliaryHead:
    if name not in TINY:
        pytest.fail(f"head {name!r} has no tiny setting: add one to TINY in {__file__}")
    torch.manual_seed(0)
    config = HEADS[name].Config(**(TINY[name] | settings))
    head = HEADS[name](config, channels=CHANNELS, num_classes=CLASSES, strides=STRIDES)
    for parameter in head.parameters():  # away from the initial values, where every prediction is nearly the same
        torch.nn.init.normal_(parameter, std=0.05 if parameter.dim() == 2 else 0.3)
    return head.eval()


def sizes_of(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def pyramid_of(num_images: int, seed: int = 0) -> Pyramid:
    """Unpadded images, nothing masked."""
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(torch.randn(num_images, CHANNELS, h, w, generator=generator) for h, w in sizes_of(HEIGHT, WIDTH))
    hw = torch.tensor([[HEIGHT, WIDTH]]).repeat(num_images, 1)
    return Pyramid(tuple(level.requires_grad_() for level in levels), STRIDES, hw, (None,) * len(STRIDES))


def targets_of(*counts: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height, width, height])
    boxes, labels, masks = [], [], []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 0.6
        side = torch.rand(count, 2, generator=generator) * 0.35 + 0.05
        boxes.append(torch.cat([corner, corner + side], 1) * size)
        labels.append(torch.randint(0, CLASSES, (count,), generator=generator))
        masks.append(torch.full((count, MASK_CELLS, MASK_CELLS), 255, dtype=torch.uint8).triu())
    return Targets.stack(boxes, labels, masks)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


COUNTS = pytest.mark.parametrize("counts", [(0, 0), (0, 1), (1, 1), (50, 0), (50, 3)], ids=str)


@EVERY_HEAD
@COUNTS
def test_losses_are_finite_scalars_with_a_weight_each(name: str, counts: tuple[int, ...]) -> None:
    head = build(name)
    losses, _ = head.train_step(pyramid_of(2), targets_of(*counts), with_losses=True)
    assert losses.keys() == head.loss_weights().keys()
    for loss in losses.values():
        assert loss.shape == () and torch.isfinite(loss) and loss >= 0 and loss.requires_grad


@EVERY_HEAD
@COUNTS
def test_gradient_reaches_every_level_and_every_parameter(name: str, counts: tuple[int, ...]) -> None:
    head, pyramid = build(name), pyramid_of(2)
    losses, _ = head.train_step(pyramid, targets_of(*counts), with_losses=True)
    total(losses).backward()
    for level in pyramid.levels:
        assert level.grad is not None and torch.isfinite(level.grad).all() and level.grad.abs().sum() > 0
    for parameter in head.parameters():  # none is left out of the graph, even without an object
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


@EVERY_HEAD
@COUNTS
def test_positives_belong_to_real_objects(name: str, counts: tuple[int, ...]) -> None:
    head, pyramid = build(name), pyramid_of(2)
    _, positives = head.train_step(pyramid, targets_of(*counts), with_losses=True)
    gt_index = positives.gt_index
    assert gt_index.dtype == torch.int64 and positives.boxes_xyxy.shape == (*gt_index.shape, 4)
    for image, count in enumerate(counts):
        assert gt_index[image].min() >= IGNORED and gt_index[image].max() < count
        assert (gt_index[image] >= 0).any() or count == 0
    assert (positives.token_index is None) != (positives.features is None)
    if positives.token_index is not None:
        assert positives.token_index.shape == gt_index.shape[1:]
        assert positives.token_index.min() >= 0 and positives.token_index.max() < pyramid.tokens().shape[1]
    if positives.features is not None:
        assert positives.features.shape == (*gt_index.shape, CHANNELS)


@EVERY_HEAD
def test_positives_do_not_need_the_losses(name: str) -> None:
    head, pyramid, targets = build(name), pyramid_of(2), targets_of(5, 2)
    _, expected = head.train_step(pyramid, targets, with_losses=True)
    losses, positives = head.train_step(pyramid, targets, with_losses=False)
    assert losses == {}
    assert torch.equal(positives.gt_index, expected.gt_index)
    assert torch.equal(positives.boxes_xyxy, expected.boxes_xyxy)


def one_image(pyramid: Pyramid, targets: Targets, image: int) -> tuple[Pyramid, Targets]:
    part = slice(image, image + 1)
    levels = tuple(level[part] for level in pyramid.levels)
    masks = tuple(mask if mask is None else mask[part] for mask in pyramid.masks)
    alone = Pyramid(levels, pyramid.strides, pyramid.valid_hw[part], masks)
    return alone, targets.of_images(part)


def own_rows(positives: Positives, image: int) -> Tensor:
    """Which rows hold a candidate of the image; regions are padded to the largest number of the batch."""
    there = positives.gt_index[image] != IGNORED
    return there if positives.features is not None else torch.ones_like(there)


@EVERY_HEAD
def test_batch_equals_one_by_one(name: str) -> None:
    head, pyramid, targets = build(name), pyramid_of(3), targets_of(7, 0, 3)
    _, positives = head.train_step(pyramid, targets, with_losses=True)
    detections = head.detect(pyramid)
    scores = head.score_positives(pyramid, targets)
    for image in range(3):
        alone = one_image(pyramid, targets, image)
        _, expected = head.train_step(*alone, with_losses=True)
        rows, alone_rows = own_rows(positives, image), own_rows(expected, 0)
        assert torch.equal(positives.gt_index[image, rows], expected.gt_index[0, alone_rows])
        torch.testing.assert_close(
            positives.boxes_xyxy[image, rows], expected.boxes_xyxy[0, alone_rows], rtol=0, atol=1e-3
        )
        expected_detections = head.detect(alone[0])[0]
        for field in fields(expected_detections):
            actual, wanted = getattr(detections[image], field.name), getattr(expected_detections, field.name)
            tolerance = {"boxes_xyxy": 2e-3, "masks": 1e-3}.get(field.name, 1e-5)
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=tolerance)
        torch.testing.assert_close(scores[image], head.score_positives(*alone)[0], rtol=1e-5, atol=1e-5, equal_nan=True)


@EVERY_HEAD
def test_losses_do_not_depend_on_order_or_number_of_copies(name: str) -> None:
    """The normalisers are sums over the batch, so this is what one-by-one means for losses."""
    head, pyramid, targets = build(name), pyramid_of(2), targets_of(7, 3)
    losses, _ = head.train_step(pyramid, targets, with_losses=True)
    for order in ([1, 0], [0, 1, 0, 1]):
        levels = tuple(level[order] for level in pyramid.levels)
        again = Pyramid(levels, STRIDES, pyramid.valid_hw[order], pyramid.masks)
        reordered = targets.of_images(order)
        expected, _ = head.train_step(again, reordered, with_losses=True)
        for key, loss in losses.items():
            torch.testing.assert_close(loss, expected[key], rtol=1e-5, atol=1e-5)


@dataclass
class Padded:
    """The same images alone, and in the corners of larger maps."""

    alone: Pyramid
    padded: Pyramid
    inside: list[Tensor]  # [h, w] bool of each level: the image's own positions in the larger maps


def padded_pair() -> Padded:
    height, width = 81, 100  # not multiples of any stride
    alone_sizes, padded_sizes = sizes_of(height, width), sizes_of(HEIGHT + 32, WIDTH)
    hw = torch.tensor([[height, width], [height, width]])
    masks = tuple(stride_mask(hw, size, stride) for size, stride in zip(padded_sizes, STRIDES, strict=True))
    generator = torch.Generator().manual_seed(3)
    alone, padded, inside = [], [], []
    for (h, w), (padded_h, padded_w) in zip(alone_sizes, padded_sizes, strict=True):
        image = torch.randn(1, CHANNELS, h, w, generator=generator)
        both = torch.full((2, CHANNELS, padded_h, padded_w), 1e4)  # what lies in the padding must not matter
        both[:, :, :h, :w] = image
        here = torch.zeros(padded_h, padded_w, dtype=torch.bool)
        here[:h, :w] = True
        alone.append(image.repeat(2, 1, 1, 1).requires_grad_())
        padded.append(both.requires_grad_())
        inside.append(here)
    return Padded(
        Pyramid(tuple(alone), STRIDES, hw, (None,) * len(STRIDES)), Pyramid(tuple(padded), STRIDES, hw, masks), inside
    )


@EVERY_HEAD
@pytest.mark.parametrize("counts", [(0, 0), (6, 2)], ids=str)
def test_padding_changes_nothing(name: str, counts: tuple[int, ...]) -> None:
    head, pair = build(name), padded_pair()
    targets = targets_of(*counts, height=81, width=100)
    losses, positives = head.train_step(pair.padded, targets, with_losses=True)
    expected, expected_positives = head.train_step(pair.alone, targets, with_losses=True)
    for key, loss in losses.items():
        torch.testing.assert_close(loss, expected[key], rtol=1e-5, atol=1e-5)
    inside = torch.cat([level.flatten() for level in pair.inside])
    for image in range(2):
        taking_part = positives.gt_index[image] != IGNORED
        if positives.token_index is not None:  # a head may ignore candidates inside, and must those outside
            assert not taking_part[~inside[positives.token_index]].any()
            taking_part = inside[positives.token_index]
        alone = own_rows(expected_positives, image)
        assert torch.equal(positives.gt_index[image, taking_part], expected_positives.gt_index[image, alone])
        torch.testing.assert_close(
            positives.boxes_xyxy[image, taking_part], expected_positives.boxes_xyxy[image, alone], rtol=0, atol=1e-3
        )
    total(losses).backward()
    total(expected).backward()
    for level, alone, inside in zip(pair.padded.levels, pair.alone.levels, pair.inside, strict=True):
        assert level.grad is not None and alone.grad is not None
        torch.testing.assert_close(level.grad[:, :, inside], alone.grad.flatten(2), rtol=1e-4, atol=1e-5)
        assert (level.grad[:, :, ~inside] == 0).all()


@EVERY_HEAD
def test_padding_changes_no_detection_and_no_score(name: str) -> None:
    head, pair, targets = build(name), padded_pair(), targets_of(6, 2, height=81, width=100)
    for actual, expected in zip(head.detect(pair.padded), head.detect(pair.alone), strict=True):
        torch.testing.assert_close(actual.boxes_xyxy, expected.boxes_xyxy, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-5, atol=1e-5)
        assert torch.equal(actual.labels, expected.labels)
    scores, expected_scores = (head.score_positives(pyramid, targets) for pyramid in (pair.padded, pair.alone))
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-5, equal_nan=True)


@EVERY_HEAD
def test_detections_lie_in_the_image_best_first(name: str) -> None:
    head, pair = build(name), padded_pair()
    for pyramid in (pyramid_of(2), pair.padded):
        detections = head.detect(pyramid, max_detections=7)
        assert len(detections) == 2
        for image, (height, width) in zip(detections, pyramid.valid_hw.tolist(), strict=True):
            assert 0 < len(image.scores) <= 7
            assert image.boxes_xyxy.shape == (len(image.scores), 4) and image.labels.shape == image.scores.shape
            assert (image.scores.diff() <= 0).all() and image.scores.min() > 0 and image.scores.max() <= 1
            assert image.labels.min() >= 0 and image.labels.max() < CLASSES
            x0, y0, x1, y1 = image.boxes_xyxy.unbind(1)
            assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
            assert (x1 >= x0).all() and (y1 >= y0).all()
            assert not image.scores.requires_grad


@EVERY_HEAD
def test_positives_are_left_to_no_chance(name: str) -> None:
    """Twice the same, the random state untouched, and none fewer than a training step may draw."""
    few = RoIConfig(fc_channels=16, num_samples=4)
    head = build(name, **({"roi": few} if "roi" in TINY[name] else {}))
    pyramid, targets = pyramid_of(2), targets_of(5, 2)
    state = torch.get_rng_state()
    positives, again = (head.positives(pyramid, targets) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(positives.gt_index, again.gt_index) and torch.equal(positives.boxes_xyxy, again.boxes_xyxy)
    assert positives.boxes_xyxy.shape == (*positives.gt_index.shape, 4)
    _, drawn = head.train_step(pyramid, targets, with_losses=False)
    for image in range(2):
        for gt in range(5):
            assert (positives.gt_index[image] == gt).sum() >= (drawn.gt_index[image] == gt).sum()


@EVERY_HEAD
def test_score_of_positives(name: str) -> None:
    head, pyramid, targets = build(name), pyramid_of(2), targets_of(5, 2)
    positives = head.positives(pyramid, targets)
    scores = head.score_positives(pyramid, targets)
    assert scores.shape == targets.labels.shape
    for image in range(2):
        for gt in range(scores.shape[1]):
            has_positive = bool((positives.gt_index[image] == gt).any())
            assert bool(scores[image, gt].isnan()) != has_positive
    scores[~scores.isnan()].sum().backward()
    assert sum(float(level.grad.abs().sum()) for level in pyramid.levels if level.grad is not None) > 0


@EVERY_HEAD
def test_repeats_get_names_of_their_own(name: str) -> None:
    config = HEADS[name].Config(**TINY.get(name, {}))
    assert HEADS.name_of(config) == name
    assert HEADS.instance_names((config, config, config)) == (name, f"{name}.2", f"{name}.3")


@EVERY_HEAD
def test_config_is_frozen_and_checks_its_weights(name: str) -> None:
    config_class = HEADS[name].Config
    config = config_class()
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, 0)
    weights = [field.name for field in fields(config_class) if field.name.endswith("_weight")]
    assert len(weights) == len(build(name).loss_weights())
    for weight in weights:
        with pytest.raises(ValueError, match=f"{weight} must not be negative, got -1"):
            config_class(**{weight: -1.0})


def test_an_unknown_head_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown head 'ats'; did you mean 'atss'\\? known: atss"):
        HEADS.choose("ats")
    with pytest.raises(ValueError, match="object is not the Config of a head; known: atss"):
        HEADS.name_of(object())


@pytest.mark.parametrize("num_convs", [0, 1, 3])
def test_atss_stacks_convolutions(num_convs: int) -> None:
    """Paper Table 12."""
    head = build("atss", num_convs=num_convs)
    losses, _ = head.train_step(pyramid_of(1), targets_of(3), with_losses=True)
    assert torch.isfinite(total(losses))
    assert sum(isinstance(module, torch.nn.Conv2d) for module in head.modules()) == 3 + 2 * num_convs


def test_atss_needs_groups_that_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="num_groups \\(5\\) must divide the number of channels \\(16\\)"):
        build("atss", num_groups=5)


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_nms_with_a_limit_is_the_beginning_of_nms(limit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(150, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 30], 1)  # nearly everything overlaps: few are kept
    scores = torch.rand(150, generator=generator)
    labels = torch.randint(0, 4, (150,), generator=generator)
    everything = nms(boxes, scores, labels, 0.5)
    assert 5 < len(everything) < 100
    assert torch.equal(best_after_nms(boxes, scores, labels, 0.5, limit), everything[:limit])
