"""Detectors whose encoder has one level: the pyramid of strides 8 to 128 and what reads it, on images of any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.adapters.configs import SingleScaleConfig
from model.adapters.single_scale import SingleScale
from model.checks import Conflict
from model.config import DetectorConfig
from model.detector import Detector
from model.heads import HEADS
from model.types import Batch
from tests.support.rooms import assert_reached, memory_of, unmasked
from tests.support.scattered_detector import build_detector
from tests.support.tiny import ONE_LEVEL, single, tiny_batch, tiny_config

CHANNELS = 32
SIZES = ((20, 33), (97, 130), (96, 64))  # (height, width); one or two cells of stride 128
CANVAS = (128, 160)
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
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0)], ids=str)
def test_every_head_trains_a_step(head: str, counts: tuple[int, ...]) -> None:
    detector = build_detector(head, **ONE_LEVEL).train()
    total, losses = detector(tiny_batch(counts, SIZES, CANVAS))
    total.backward()
    assert losses.keys() == detector.loss_weights.keys() and all(loss.isfinite() for loss in losses.values())
    assert sum(name.startswith((f"{head}/", f"queries.{head}.")) for name in losses) > 6
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    if any(counts):
        parts = (detector.coarser, detector.positive_queries, detector.encoder, detector.backbone)
        assert_reached(pair for part in parts for pair in part.named_parameters())


@EVERY_HEAD
def test_a_padded_image_has_the_detections_that_it_has_alone(head: str) -> None:
    """Also one that is smaller than any stride of the coarse levels, and of no multiple of any."""
    detector, batch = build_detector(head, **ONE_LEVEL), tiny_batch((3, 1, 2), SIZES, CANVAS)
    together = detector.detect_branches(batch, ("decoder", head), 20)
    for image, hw in enumerate(SIZES):
        for canvas in (hw, (160, 256)):
            alone = detector.detect_branches(single(batch, image, canvas), ("decoder", head), 20)
            for branch, found in together.items():
                assert len(found[image].scores) > 0
                torch.testing.assert_close(alone[branch][0].scores, found[image].scores, rtol=1e-4, atol=1e-5)


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
    config = tiny_config("faster_rcnn", **ONE_LEVEL)
    assert isinstance(config, DetectorConfig)
    pooling = dict(Detector(config, 3).named_heads())["faster_rcnn"].stages.pooling
    assert pooling.strides == (8, 16, 32, 64) and pooling.finest_scale == 112
