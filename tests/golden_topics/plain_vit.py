"""The ViT backbone and its simple feature pyramid: outputs, gradients of the input, and norms of all gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.backbones import BACKBONES
from model.backbones.configs import ViTConfig
from model.backbones.vit import PATCH
from model.necks import NECKS
from model.necks.configs import SimpleFpnConfig
from tests.golden_topics.case import FLOAT32, GRADIENT_NORM, Case, Comparison, Tolerance, leaf
from tests.support.rooms import unmasked

ROTATION = Tolerance(0, 2e-6)
INPUT_GRADIENT = Tolerance(1e-4, 2e-5)


def vit(case: Case) -> Iterator[Comparison]:
    """Official code drops what is left of an image beyond its last whole patch; here it is cut off before."""
    depth, windowed, size = int(case["depth"]), case["window_block_indexes"].tolist(), int(case["img"])
    config = ViTConfig(
        channels=int(case["embed"]),
        depth=depth,
        num_heads=int(case["heads"]),
        window=int(case["win"]),
        global_blocks=tuple(index for index in range(depth) if index not in windowed),
        image_size=size if case["lsj"] else None,
        pretrained_size=int(case["pre"]),
        class_token=bool(case["cls"]),
    )
    backbone = BACKBONES.build(config).eval()
    _load(backbone, case)
    yield Comparison("mlp_hidden", torch.tensor(backbone.blocks[0].mlp.w1.out_features), case["mlp_hidden"], FLOAT32)
    image = leaf(case["image"].float())
    height, width = (side // PATCH * PATCH for side in image.shape[-2:])
    yield from _rotations(case, backbone, (height // PATCH, width // PATCH))
    (stage,) = backbone(image[..., :height, :width], unmasked)
    yield Comparison("out", stage, case["out"], FLOAT32)
    (stage * case["grad_out"].float()).sum().backward()
    assert image.grad is not None
    yield Comparison("grad_image_top8", image.grad[:, :, :8], case["grad_image_top8"], INPUT_GRADIENT)
    yield from _norms(case, {**dict(backbone.named_parameters()), "image": image})


def _rotations(case: Case, backbone: nn.Module, hw: tuple[int, int]) -> Iterator[Comparison]:
    tables = backbone.rotations(hw, torch.device("cpu"))
    for place, window in (("rope_win", backbone.config.window), ("rope_glb", 0)):
        for kind, table in zip(("cos", "sin"), tables[window], strict=True):
            if (name := f"buffer.{place}.freqs_{kind}") in case:
                yield Comparison(name, table, case[name], ROTATION)


def sfp(case: Case) -> Iterator[Comparison]:
    """Levels are numbered by the logarithm of their stride."""
    feature, numbers = leaf(case["feature"].float()), range(2 if case["use_p2"] else 3, 7)
    channels = case[f"out.{numbers[0]}"].shape[1]
    stages = {"in_channels": (feature.shape[1],), "in_strides": (16,)}
    neck = NECKS.build(SimpleFpnConfig(), **stages, channels=channels, num_levels=len(numbers))
    assert neck.strides == tuple(2**number for number in numbers)
    _load(neck, case)
    levels = neck([feature], unmasked)
    for number, level in zip(numbers, levels, strict=True):
        yield Comparison(f"out.{number}", level, case[f"out.{number}"], FLOAT32)
    scalars = [
        (level * case[f"grad_out.{number}"].float()).sum() for number, level in zip(numbers, levels, strict=True)
    ]
    torch.stack(scalars).sum().backward()
    assert feature.grad is not None
    yield Comparison("grad_feature", feature.grad, case["grad_feature"], INPUT_GRADIENT)
    yield from _norms(case, {**dict(neck.named_parameters()), "feature": feature})


def _load(module: nn.Module, case: Case) -> None:
    """Official parameters, whose names are ours."""
    module.load_state_dict({name: value.float() for name, value in case.under("param.").items()})


def _norms(case: Case, tensors: dict[str, Tensor]) -> Iterator[Comparison]:
    for name, expected in case.under("gradnorm.").items():
        gradient = tensors[name].grad
        assert gradient is not None, name
        yield Comparison(f"gradnorm.{name}", gradient.double().norm(), expected, GRADIENT_NORM)
