"""Any backbone of the library transformers: ConvNeXt, DINOv2, Swin v2, ResNet and more, by the library's own name.

Strides and widths are measured: a model of the same settings is run without numbers (on torch's meta device). These
models know no masks, so that an image of a batch sees what lies behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.configs import AutoBackboneConfig
from model.backbones.from_transformers import auto_model, auto_settings
from model.checks import require
from model.layers import zero_padding
from model.weights import misfits, of_backbone, read_weights

PROBE = (256, 384)  # height and width of the image that is measured with: no square
FINEST = 8  # of the strides that are handed to the neck where no stages are named
# In files of whole models: what classifies behind the last stage, or was there for pretraining
BESIDES = re.compile(r"(classifier|head|pooler|layernorm|norm)\..+|.*mask_token")
LAYER = re.compile(r"(?:.*?\.\d+(?=\.)){1,2}|model\.\w+")  # what names of one layer's parameters begin with


class Stage(NamedTuple):
    """Width, stride and size of one of a model's outputs."""

    channels: int
    stride: int  # 0: none that is a power of two
    size: tuple[int, int]  # of the map of an image of `PROBE`


class AutoBackbone(nn.Module):
    """The backbone. `channels` and `strides` describe the stages it returns."""

    sees_padding = True

    def __init__(self, config: AutoBackboneConfig):
        super().__init__()
        settings = auto_settings(config)
        stages = _measured(settings)
        names = _chosen(config.stages, stages, settings.model_type)
        settings.out_features = names
        self.channels = tuple(stages[name].channels for name in names)
        self.strides = tuple(stages[name].stride for name in names)
        self.multiple = max(stage.stride for stage in stages.values())  # of the sides that every stage divides
        self.model = auto_model(settings)
        unused = _without_gradient(settings)
        if config.weights is not None:
            self.model.load_state_dict(_weights(self.model, unused, Path(config.weights)), strict=False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in unused)  # ranks would wait for their gradients in vain
        self._depths = _depths([name for name, _ in self.named_parameters()])

    def lr_depth(self, name: str) -> int:
        """Layers of the library's model behind the one that a parameter belongs to."""
        return self._depths[name]

    def forward(self, images: Tensor, mask_at: Callable[[int], Tensor | None]) -> list[Tensor]:
        """Features of the configured stages; see the contract."""
        height, width = images.shape[2:]
        filled = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        return [
            zero_padding(own[:, :, : -(-height // stride), : -(-width // stride)], mask_at(stride))
            for own, stride in zip(self.model(filled).feature_maps, self.strides, strict=True)
        ]


def check_weights(config: AutoBackboneConfig) -> None:
    """Raise `ValueError` with one line unless the backbone can be built, and its file fits. Builds no tensors."""
    with torch.device("meta"):
        backbone = AutoBackbone(replace(config, weights=None))
    if config.weights is not None:
        unused = {name for name, parameter in backbone.model.named_parameters() if not parameter.requires_grad}
        _weights(backbone.model, unused, Path(config.weights))


# ---- measuring ----------------------------------------------------------------------------------------------------


def _run(settings: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of these settings without numbers, and its maps of images of `PROBE`."""
    with torch.device("meta"):
        model = auto_model(settings)
        try:
            maps = model(torch.zeros(2, 3, *PROBE)).feature_maps
        except Exception as error:  # noqa: BLE001 - models for one size of image fail in many ways
            first = next(iter(str(error).splitlines()), type(error).__name__)[:150]
            size = f"{PROBE[0]} x {PROBE[1]} pixels"
            raise ValueError(f"model: {settings.model_type} does not take images of {size} ({first})") from error
    return model, maps


def _measured(settings: Any) -> dict[str, Stage]:
    """Each stage by name."""
    with torch.no_grad():
        _, maps = _run(settings)
    stages = {}
    for name, own in zip(settings.out_features, maps, strict=True):
        height, width = own.shape[2:]
        stride = PROBE[0] // height
        fits = (height * stride, width * stride) == PROBE and stride & (stride - 1) == 0
        stages[name] = Stage(own.shape[1], stride if fits else 0, (height, width))
    return stages


def _chosen(wanted: tuple[str | int, ...], stages: dict[str, Stage], model: str) -> list[str]:
    """Names of the stages to return: those that are wanted, or the last one of each stride from `FINEST` on."""
    names = [f"stage{own}" if isinstance(own, int) else own for own in wanted]
    if not wanted:
        last = {stage.stride: name for name, stage in stages.items()}
        names = [name for name in last.values() if stages[name].stride >= FINEST] or [list(stages)[-1]]
    for name in names:
        require(name in stages, f"stages: {model} has no {name}; known: {', '.join(stages)}")
        (height, width), (rows, columns) = PROBE, stages[name].size
        require(
            stages[name].stride > 0,
            f"stages: {name} of {model} gives {rows} x {columns} positions for {height} x {width} pixels, and a stride "
            "must be a power of two; choose another model, or settings such as patch_size",
        )
    strides = [stages[name].stride for name in names]
    require(
        strides == sorted(set(strides)),
        f"stages: {', '.join(names)} of {model} have the strides {strides}; each must be larger than the one before",
    )
    return names


def _without_gradient(settings: Any) -> set[str]:
    """Names of the model's parameters that its outputs do not depend on."""
    with torch.enable_grad(), torch.device("meta"):
        model, maps = _run(settings)
        torch.stack([own.sum() for own in maps]).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


def _depths(names: list[str]) -> dict[str, int]:
    """How many layers follow that of each name; a layer has the same numbers, two at most, in its names."""
    layers = [match[0] if (match := LAYER.match(name)) else name for name in names]
    depths, depth = {}, 0
    for index in reversed(range(len(names))):
        depth += index + 1 < len(names) and layers[index] != layers[index + 1]
        depths[names[index]] = depth
    return depths


# ---- weights ------------------------------------------------------------------------------------------------------


def _weights(model: Any, unused: Collection[str], path: Path) -> dict[str, Tensor]:
    """The model's tensors out of a file; norms of outputs, and what no output depends on, may be missing."""
    expected = model.state_dict()
    with of_backbone():
        weights = read_weights(path)
    whole = {f"{model.base_model_prefix}.", f"{model.config.model_type}."}  # before names of a file of a whole model
    if not any(name in expected for name in weights):
        for prefix in whole:
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if name in expected or not BESIDES.fullmatch(name)}
    optional = {name for name in expected if name in unused or name.startswith("hidden_states_norms.")}
    asked_for = {name: value for name, value in expected.items() if name in weights or name not in optional}
    if trouble := misfits(asked_for, weights):
        kind = type(model).__name__
        raise ValueError(
            f"model.backbone.weights: {path} {trouble}; expected are the names and shapes of transformers' {kind} with "
            "these settings; null for none"
        )
    return weights
