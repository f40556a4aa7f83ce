"""Detectors whose encoder has one level: the pyramid of strides 8 to 128 and what reads it, on images of any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.adapters.configs import SingleScaleConfig
from model.adapters.single_scale import SingleScale
from model.checks import Conflict
from model.detector import Detector
from model.heads import HEADS
from model.types import Batch
from tests.support.rooms import assert_reached, memory_of, unmasked
from tests.support.scattered_detector import build_detector
from tests.support.tiny import ON_ONE_LEVEL, ONE_LEVEL, single, tiny_batch, tiny_config

CHANNELS = 32
SIZES = ((20, 33), (97, 130), (96, 64))  # (height, width); one or two cells of stride 128
CANVAS = (128, 160)
EVERY_DETECTOR = pytest.mark.parametrize("name", ON_ONE_LEVEL)
EVERY_HEAD = pytest.mark.parametrize("head", sorted(HEADS))


def test_levels_by_hand() -> None:
    torch.manual_seed(0)
    adapter, memory = SingleScale(SingleScaleConfig(), channels=CHANNELS, strides=(32,)), memory_of((96, 160), 0, (32,))

    def normed(module: torch.nn.Module, level: Tensor, stride: int) -> Tensor:
        made = F.conv2d(level, module.conv.weight, module.conv.bias, stride, 1)
        return F.group_norm(made, 8, module.norm.weight, module.norm.bias)

    def twice(level: Tensor) -> Tensor:
        return F.interpolate(level, scale_factor=2, mode="bilinear", align_corners=False)

    (own,) = memory.maps()
    at_16 = normed(adapter.up[0], twice(own), 1)
    at_64 = normed(adapter.down[0], own, 2)
    expected = (normed(adapter.up[1], twice(at_16), 1), at_16, own, at_64, normed(adapter.down[1], at_64, 2))
    pyramid = adapter(memory, torch.tensor([[96, 160]]), unmasked, (96, 160))
    assert pyramid.strides == (8, 16, 32, 64, 128)
    assert pyramid.sizes == ((12, 20), (6, 10), (3, 5), (2, 3), (1, 2))
    for level, own in zip(pyramid.levels, expected, strict=True):
        torch.testing.assert_close(level, own)


def test_several_levels_are_refused_and_so_is_a_stride_between() -> None:
    told = "^the adapter single_scale needs transformer.num_levels: 1: transformer.num_levels is 3, adapter is "
    with pytest.raises(Conflict, match=f'{told}"single_scale"$'):
        tiny_config(adapter=SingleScaleConfig())
    config = tiny_config("atss", **{**ONE_LEVEL, "adapter": SingleScaleConfig(strides=(8, 16))})
    with pytest.raises(ValueError, match=r"^model.adapter.strides \[8, 16\] must name the encoder's stride 32$"):
        Detector(config, 3)


@EVERY_HEAD
@EVERY_DETECTOR
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0)], ids=str)
def test_every_head_trains_a_step(head: str, name: str, counts: tuple[int, ...]) -> None:
    detector = build_detector(head, **ON_ONE_LEVEL[name]).train()
    total, losses = detector(tiny_batch(counts, SIZES, CANVAS))
    total.backward()
    assert losses.keys() == detector.loss_weights.keys() and all(loss.isfinite() for loss in losses.values())
    assert sum(name.startswith((f"{head}/", f"queries.{head}.")) for name in losses) > 6
    for own, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), own
    if any(counts):
        parts = (detector.coarser, detector.positive_queries, detector.encoder, detector.backbone)
        assert_reached(pair for part in parts for pair in part.named_parameters())


@EVERY_DETECTOR
def test_a_padded_image_has_the_detections_that_it_has_alone(name: str) -> None:
    """Also one that is smaller than any stride of the coarse levels, and of no multiple of any; of every head."""
    heads = sorted(HEADS)
    detector, batch = build_detector(*heads, **ON_ONE_LEVEL[name]), tiny_batch((3, 1, 2), SIZES, CANVAS)
    branches = ("decoder", *heads)
    together = detector.detect_branches(batch, branches, 20)
    for image, hw in enumerate(SIZES):
        for canvas in (hw, (160, 256)):
            alone = detector.detect_branches(single(batch, image, canvas), branches, 20)
            for branch, found in together.items():
                assert len(found[image].scores) > 0
                torch.testing.assert_close(alone[branch][0].scores, found[image].scores, rtol=1e-4, atol=1e-5)


@EVERY_DETECTOR
def test_queries_are_told_apart_from_one_epoch_to_the_next(name: str) -> None:
    """By their slots: those of these detectors are learned."""
    detector, batch = build_detector(**ON_ONE_LEVEL[name]), tiny_batch((3, 1, 2), SIZES, CANVAS)
    matching = detector.detect_and_match(batch, ("decoder",))[1]
    assert matching.shape == (3, 2, 12) and (matching[:, 1] == torch.arange(12)).all()
    assert (matching[:, 0] >= 0).sum(1).tolist() == [3, 1, 2]


def losses_of(detector: Detector, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return detector(batch)[1]


@EVERY_HEAD
def test_padding_changes_no_loss(head: str) -> None:
    detector = build_detector(head, **ONE_LEVEL, positive_queries=False)  # which draw among all anchors
    sizes = SIZES[1:]
    expected = losses_of(detector, tiny_batch((3, 2), sizes, (128, 160)))
    for name, loss in losses_of(detector, tiny_batch((3, 2), sizes, (160, 288))).items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_detector_of_the_defaults_has_the_released_regions() -> None:
    """RoIs are read on strides 8 to 64, the finest up to 224 pixels, as in the released configuration."""
    detector = Detector(tiny_config("faster_rcnn", **ONE_LEVEL), 3)
    pooling = dict(detector.named_heads())["faster_rcnn"].stages.pooling
    assert pooling.strides == (8, 16, 32, 64) and pooling.finest_scale == 112
