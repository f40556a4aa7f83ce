"""What the contract suite cannot know: options, coordinates and scales of the dense heads, and all heads together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.anchors import anchor_grid, point_grid
from model.boxes import xyxy_to_cxcywh
from model.detector import Detector
from model.heads import HEADS
from tests.support.tiny import NUM_CLASSES, tiny_batch, tiny_config
from tests.support.tiny_heads import CHANNELS, CLASSES, STRIDES, TINY, build, padded_pair, pyramid_of, targets_of, total

DENSE = ("atss", "retinanet", "fcos", "paa", "gfl")
FIRST_FCOS = {"center_radius": None, "distance": "exp", "centerness_from": "class", "box_loss": "iou"}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"num_convs": 0}) for name in DENSE),
    ("retinanet", {"norm": "none", "box_loss": "l1", "num_convs": 2}),
    ("fcos", FIRST_FCOS),
]


@pytest.mark.parametrize(("name", "settings"), OPTIONS, ids=str)
@pytest.mark.parametrize("counts", [(0, 0), (6, 2)], ids=str)
def test_no_option_lets_padding_in(name: str, settings: dict[str, Any], counts: tuple[int, ...]) -> None:
    head, pair = build(name, **settings), padded_pair()
    targets = targets_of(*counts, height=81, width=100)
    losses, _ = head.train_step(pair.padded, targets, with_losses=True)
    expected, _ = head.train_step(pair.alone, targets, with_losses=True)
    for key, loss in losses.items():
        assert torch.isfinite(loss) and loss.requires_grad
        torch.testing.assert_close(loss, expected[key], rtol=1e-5, atol=1e-5)
    for actual, alone in zip(head.detect(pair.padded), head.detect(pair.alone), strict=True):
        torch.testing.assert_close(actual.scores, alone.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DENSE)
def test_autocast_keeps_the_losses_exact_enough(name: str) -> None:
    head, pyramid, targets = build(name), pyramid_of(2), targets_of(5, 2)
    expected = total(head.train_step(pyramid, targets, with_losses=True)[0])
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = head.train_step(pyramid, targets, with_losses=True)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert total(losses).item() == pytest.approx(expected.item(), rel=0.1)


def positives_of(name: str, anchor_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [A, 4] as cxcywh and token indices [A]."""
    config = HEADS[name].Config(**TINY[name])
    head = HEADS[name](config, channels=CHANNELS, num_classes=CLASSES, strides=STRIDES, anchor_scale=anchor_scale)
    positives = head.train_step(pyramid_of(1), targets_of(3), with_losses=False)[1]
    assert positives.token_index is not None
    return xyxy_to_cxcywh(positives.boxes_xyxy[0]), positives.token_index


@pytest.mark.parametrize("name", DENSE)
def test_coordinates_of_positives(name: str) -> None:
    """Paper Table 1: anchors of 8 strides (RetinaNet: nine around 4 to 6.3), for FCOS squares around points."""
    boxes, tokens = positives_of(name, 1.0)
    sizes = pyramid_of(1).sizes
    strides = torch.tensor(STRIDES).repeat_interleave(torch.tensor([h * w for h, w in sizes]))[tokens]
    if name == "fcos":
        centres = point_grid(sizes, STRIDES)
    else:
        centres = xyxy_to_cxcywh(anchor_grid(sizes, STRIDES, (1.0,)))[:, :2]
    torch.testing.assert_close(boxes[:, :2], centres[tokens])
    area = (boxes[:, 2] * boxes[:, 3]).sqrt() / strides
    if name == "retinanet":
        torch.testing.assert_close(area[:9], torch.tensor([4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)] * 3))
        torch.testing.assert_close((boxes[:, 3] / boxes[:, 2])[:9:3], torch.tensor([0.5, 1.0, 2.0]))
        assert tokens.tolist() == [i // 9 for i in range(len(tokens))]
    else:
        torch.testing.assert_close(area, torch.full_like(area, 8.0))
        assert tokens.tolist() == list(range(len(tokens)))


@pytest.mark.parametrize("name", DENSE)
def test_anchor_scale_multiplies_sides_and_moves_nothing(name: str) -> None:
    whole, half = positives_of(name, 1.0)[0], positives_of(name, 0.5)[0]
    torch.testing.assert_close(half, whole * torch.tensor([1, 1, 0.5, 0.5]))


@pytest.mark.parametrize("name", ["fcos", "gfl"])
def test_anchor_scale_is_also_the_unit_of_distances(name: str) -> None:
    config = HEADS[name].Config(**TINY[name])
    boxes = []
    for scale in (1.0, 0.5):
        torch.manual_seed(0)
        head = HEADS[name](config, channels=CHANNELS, num_classes=CLASSES, strides=STRIDES, anchor_scale=scale)
        predictions, pyramid = head(pyramid_of(1)), pyramid_of(1)
        if name == "fcos":
            boxes.append(predictions.distances)
        else:
            anchors = head.anchors(pyramid)
            boxes.append(xyxy_to_cxcywh(head.decode(predictions.bins, anchors))[..., 2:])
    torch.testing.assert_close(boxes[1], boxes[0] / 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("retinanet", {"negative_iou": 0.6}, "negative_iou must not exceed positive_iou: negative_iou is 0.6"),
        ("retinanet", {"num_groups": 5}, "num_groups \\(5\\) must divide the number of channels \\(16\\)"),
        ("fcos", {"center_radius": 0.0}, "center_radius must be positive, got 0.0"),
        ("fcos", {"num_convs": -1}, "num_convs must not be negative, got -1"),
        ("paa", {"candidate_iou": 0.0}, "candidate_iou must be in \\(0, 1\\], got 0.0"),
        ("paa", {"nms_threshold": 1.5}, "nms_threshold must be in \\(0, 1\\], got 1.5"),
        ("gfl", {"max_distance": 0}, "max_distance must be at least 1, got 0"),
        ("gfl", {"top_k": 0}, "top_k must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **settings)


@pytest.mark.parametrize(
    "order", [sorted(HEADS), sorted(HEADS, reverse=True), [*sorted(HEADS), *sorted(HEADS)]], ids=len
)
def test_all_heads_together_in_any_order_and_twice(order: list[str]) -> None:
    torch.manual_seed(0)
    detector = Detector(tiny_config(*order), NUM_CLASSES)
    batch = tiny_batch(counts=(3, 0), sizes=((96, 96), (64, 80)))
    loss, losses = detector(batch)
    loss.backward()
    heads = dict(detector.named_heads())
    assert len(heads) == len(order)
    for name, head in heads.items():
        assert {f"queries.{name}.1/giou", *(f"{name}/{term}" for term in head.loss_weights())} <= losses.keys()
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in detector.parameters())
