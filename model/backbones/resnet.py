"""ResNets in torchvision's layout: state-dict names match, so its weight files load.

`norm` chooses frozen batch norm (official), trainable batch norm, or group norm (for training from scratch
on small batches; its statistics leave padding out).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.configs import ResNetConfig
from model.backbones.resnet_names import torchvision_names
from model.layers import MaskedGroupNorm, num_norm_groups, zero_padding
from model.linear import Conv2d
from model.recompute import run
from model.weights import below_prefix, misfits, of_backbone, read_weights

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics and affine parameters."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """[D] each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] normalised; zero outside the mask."""
        scale, shift = self.scale_and_shift()
        return zero_padding(x * scale[:, None, None] + shift[:, None, None], mask)


class BatchNorm(nn.BatchNorm2d):
    """Trainable batch normalisation. Its training statistics include padding; group norm's do not."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] normalised; zero outside the mask."""
        return zero_padding(super().forward(x), mask)


def _group_norm(channels: int) -> nn.Module:
    return MaskedGroupNorm(num_norm_groups(channels), channels)


CLASSIFIERS = ("fc.", "classifier.")  # beginnings of names of torchvision and timm, and of transformers
NORMS: dict[str, Norm] = {"frozen_batch": FrozenBatchNorm, "batch": BatchNorm, "group": _group_norm}


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def _normalised(conv: Conv2d, norm: nn.Module, x: Tensor, mask: Tensor | None, relu: bool = False) -> Tensor:
    """Convolution, norm and perhaps ReLU; zero outside the mask. A fixed norm becomes part of the kernel."""
    if not isinstance(norm, FrozenBatchNorm):
        result = norm(conv(x), mask)
        return F.relu(result) if relu else result
    scale, shift = norm.scale_and_shift()
    return zero_padding(conv.apply_kernel(x, conv.weight * scale[:, None, None, None], shift, relu=relu), mask)


class Downsample(nn.Sequential):
    """1x1 convolution and norm on the shortcut (torchvision names `downsample.0`, `downsample.1`)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w']; zero outside the mask."""
        return _normalised(cast(Conv2d, self[0]), self[1], x, mask)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18, 34)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.bn1 = norm(channels)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w']; `mask` at the output's size."""
        out = _normalised(self.conv1, self.bn1, x, mask, relu=True)
        out = _normalised(self.conv2, self.bn2, out, mask)
        return F.relu(out + (x if self.downsample is None else self.downsample(x, mask)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions (ResNet-50 and up)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 1)
        self.bn1 = norm(channels)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = norm(channels)
        self.conv3 = _conv(channels, channels * self.expansion, 1)
        self.bn3 = norm(channels * self.expansion)
        self.downsample = _shortcut(in_channels, channels * self.expansion, stride, norm)
        self.stride = stride

    def forward(self, x: Tensor, mask: Tensor | None, input_mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w']; `mask` at the output's size, `input_mask` at the input's."""
        out = _normalised(self.conv1, self.bn1, x, mask if self.stride == 1 else input_mask, relu=True)
        out = _normalised(self.conv2, self.bn2, out, mask, relu=True)
        out = _normalised(self.conv3, self.bn3, out, mask)
        return F.relu(out + (x if self.downsample is None else self.downsample(x, mask)))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> Downsample | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return Downsample(_conv(in_channels, out_channels, 1, stride), norm(out_channels))


class Stage(nn.ModuleList):
    """Blocks, of which the first perhaps has a stride."""

    def forward(self, x: Tensor, mask: Tensor | None, input_mask: Tensor | None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w']; `mask` at the output's size, `input_mask` at the input's."""
        for i, block in enumerate(self):
            more = (input_mask if i == 0 else None,) if isinstance(block, Bottleneck) else ()
            x = block(x, mask, *more)
        return x


class ResNet(nn.Module):
    """The backbone. `channels` and `strides` describe the stages it returns."""

    recomputes = False

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config = config
        norm = NORMS[config.norm]
        block: type[BasicBlock | Bottleneck] = BasicBlock if config.block == "basic" else Bottleneck
        self.conv1 = _conv(3, config.width, 7 if config.stem == "conv7" else 3, 2)
        self.bn1 = norm(config.width)
        channels = config.width
        stage_channels = []
        for stage, depth in enumerate(config.depths, 1):
            width = config.width * 2 ** (stage - 1)
            blocks = Stage()
            for i in range(depth):
                blocks.append(block(channels, width, 2 if stage > 1 and i == 0 else 1, norm))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", blocks)
            stage_channels.append(channels)
        self.channels = tuple(stage_channels[stage - 1] for stage in config.stages)
        self.strides = config.strides
        self.reset_parameters()
        if config.weights is not None:
            self.load_state_dict(_weights(self, Path(config.weights)), strict=False)
        self._freeze()

    def reset_parameters(self) -> None:
        """Kaiming initialisation, as torchvision."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _freeze(self) -> None:
        frozen: list[nn.Module] = [] if self.config.frozen_stages < 0 else [self.conv1, self.bn1]
        frozen += [getattr(self, f"layer{stage}") for stage in range(1, self.config.frozen_stages + 1)]
        for module in frozen:
            module.requires_grad_(False)

    def lr_depth(self, name: str) -> int:
        """Stages after the one that a parameter belongs to; the stem lies before the first."""
        stage = int(name[len("layer")]) if name.startswith("layer") else 0
        return max(self.config.stages) - stage

    def forward(self, images: Tensor, mask_at: Callable[[int], Tensor | None]) -> list[Tensor]:
        """Features of the configured stages; see the contract."""
        # Channels last: convolutions and pooling are a quarter faster on a CPU, and tokens come out without a copy.
        x = images.contiguous(memory_format=torch.channels_last)
        x = _normalised(self.conv1, self.bn1, x, mask_at(2), relu=True)
        x = F.max_pool2d(x, 3, 2, 1)  # inputs are not negative, so zeros at padding act as the border does
        x = zero_padding(x, mask_at(4))
        outputs = []
        for stage in range(1, max(self.config.stages) + 1):
            stride = 2 ** (stage + 1)
            blocks = getattr(self, f"layer{stage}")
            x = run(blocks, x, mask_at(stride), mask_at(stride // 2), again=self.recomputes)
            if stage in self.config.stages:
                outputs.append(x)
        return outputs


def check_weights(config: ResNetConfig) -> None:
    """Raise `ValueError` with one line unless the file of `config.weights` fits this backbone. Builds no tensors."""
    assert config.weights is not None
    with torch.device("meta"):
        backbone = ResNet(replace(config, weights=None))
    _weights(backbone, Path(config.weights))


def _weights(backbone: ResNet, path: Path) -> dict[str, Tensor]:
    """A file's tensors under our names; what stands beside the backbone, its classifier among it, is left out.

    The file is a ResNet's state dict of torchvision, timm or transformers, alone or within a detector's.

    Raises:
        ValueError: the file cannot be read, or a name or shape does not fit; one line.
    """
    config, expected = backbone.config, backbone.state_dict()
    with of_backbone():
        read = read_weights(path)
        weights = below_prefix(expected, torchvision_names(read, path))
    weights = {name: value for name, value in weights.items() if not name.startswith(CLASSIFIERS)}
    if trouble := misfits(expected, weights):
        group = "; norm: group has no running statistics, files of torchvision suit frozen_batch and batch"
        raise ValueError(
            f"model.backbone.weights: {path} {trouble}; expected are the names and shapes of torchvision's ResNet "
            f"with {config.block} blocks, depths {list(config.depths)}, width {config.width}, stem {config.stem}, "
            f"norm {config.norm}{group if config.norm == 'group' and 'bn1.running_mean' in weights else ''}; "
            "null for none"
        )
    return weights
