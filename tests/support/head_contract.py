"""The contract of `model/heads/base.py`, as tests of a head.

A test file subclasses `HeadContract` and says for which heads: `@pytest.mark.parametrize("name", …)`.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.heads import HEADS
from model.heads.roi import RoIConfig
from model.types import IGNORED, Positives, Pyramid, Targets
from tests.support.tiny_heads import CHANNELS, CLASSES, STRIDES, TINY, build, padded_pair, pyramid_of, targets_of, total

COUNTS = pytest.mark.parametrize("counts", [(0, 0), (0, 1), (1, 1), (50, 0), (50, 3)], ids=str)


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


def assert_finite_scalars_with_a_weight_each(losses: dict[str, Tensor], head: Any) -> None:
    assert losses.keys() == head.loss_weights().keys()
    for loss in losses.values():
        assert loss.shape == () and torch.isfinite(loss) and loss >= 0 and loss.requires_grad


def assert_gradient_everywhere(head: Any, pyramid: Pyramid) -> None:
    for level in pyramid.levels:
        assert level.grad is not None and torch.isfinite(level.grad).all() and level.grad.abs().sum() > 0
    for parameter in head.parameters():  # none is left out of the graph, even without an object
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


def assert_of_real_objects(positives: Positives, counts: tuple[int, ...], pyramid: Pyramid) -> None:
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


class HeadContract:
    """What every head keeps; it needs a tiny setting in `tests/support/tiny_heads.py`."""

    @COUNTS
    def test_a_step_has_whole_losses_gradients_and_positives(self, name: str, counts: tuple[int, ...]) -> None:
        head, pyramid = build(name), pyramid_of(2)
        losses, positives = head.train_step(pyramid, targets_of(*counts), with_losses=True)
        assert_finite_scalars_with_a_weight_each(losses, head)
        assert_of_real_objects(positives, counts, pyramid)
        total(losses).backward()
        assert_gradient_everywhere(head, pyramid)

    def test_positives_do_not_need_the_losses(self, name: str) -> None:
        head, pyramid, targets = build(name), pyramid_of(2), targets_of(5, 2)
        _, expected = head.train_step(pyramid, targets, with_losses=True)
        losses, positives = head.train_step(pyramid, targets, with_losses=False)
        assert losses == {}
        assert torch.equal(positives.gt_index, expected.gt_index)
        assert torch.equal(positives.boxes_xyxy, expected.boxes_xyxy)

    def test_batch_equals_one_by_one(self, name: str) -> None:
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
            torch.testing.assert_close(
                scores[image], head.score_positives(*alone)[0], rtol=1e-5, atol=1e-5, equal_nan=True
            )

    def test_losses_do_not_depend_on_order_or_number_of_copies(self, name: str) -> None:
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

    @pytest.mark.parametrize("counts", [(0, 0), (6, 2)], ids=str)
    def test_padding_changes_nothing(self, name: str, counts: tuple[int, ...]) -> None:
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

    def test_padding_changes_no_detection_and_no_score(self, name: str) -> None:
        head, pair, targets = build(name), padded_pair(), targets_of(6, 2, height=81, width=100)
        for actual, expected in zip(head.detect(pair.padded), head.detect(pair.alone), strict=True):
            torch.testing.assert_close(actual.boxes_xyxy, expected.boxes_xyxy, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-5, atol=1e-5)
            assert torch.equal(actual.labels, expected.labels)
        scores, expected_scores = (head.score_positives(pyramid, targets) for pyramid in (pair.padded, pair.alone))
        torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-5, equal_nan=True)

    def test_detections_lie_in_the_image_best_first(self, name: str) -> None:
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

    def test_positives_are_left_to_no_chance(self, name: str) -> None:
        """Twice the same, the random state untouched, and none fewer than a training step may draw."""
        regions = {key: replace(own, num_samples=4) for key, own in TINY[name].items() if isinstance(own, RoIConfig)}
        head = build(name, **regions)
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

    def test_score_of_positives(self, name: str) -> None:
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

    def test_repeats_get_names_of_their_own(self, name: str) -> None:
        part = name.partition(",")[0]
        config = HEADS[part].Config(**TINY.get(name, {}))
        assert HEADS.name_of(config) == part
        assert HEADS.instance_names((config, config, config)) == (part, f"{part}.2", f"{part}.3")

    def test_config_is_frozen_and_checks_its_weights(self, name: str) -> None:
        config_class = HEADS[name.partition(",")[0]].Config
        config = config_class()
        with pytest.raises(FrozenInstanceError):
            setattr(config, fields(config)[0].name, 0)
        weights = [field.name for field in fields(config_class) if field.name.endswith("_weight")]
        assert len(weights) == len(build(name).loss_weights())
        for weight in weights:
            with pytest.raises(ValueError, match=f"{weight} must not be negative, got -1"):
                config_class(**{weight: -1.0})
