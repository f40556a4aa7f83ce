"""Swin Transformers (Liu et al. 2021) out of the layers of the library transformers.

They are put together as the official detectors do it: windows are full ones also where a map is smaller, both branches
of a block are left out at random (the library leaves out attention alone), and each stage that is handed on has a norm
of its own. What the official code does not do is to keep padding out: here tokens behind an image are the zeros that
stand beyond its edge when it is alone, and where windows are shifted, tokens of an image's last windows see what they
would see there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.configs import SwinConfig
from model.backbones.from_transformers import library
from model.layers import zero_padding
from model.official import swin
from model.recompute import run
from model.share import rand
from model.weights import misfits, of_backbone, read_weights

HIDDEN = -100.0  # added to the scores of tokens that do not see each other (official)


class SwinBlock(nn.Module):
    """Attention in windows, which every second block shifts by half a window, and a feed-forward network.

    Args:
        layer: the library's, whose modules are used.
    """

    def __init__(self, layer: Any):
        super().__init__()
        self.layernorm_before = layer.layernorm_before
        self.attention = layer.attention
        self.layernorm_after = layer.layernorm_after
        self.mlp = layer.mlp
        self.window, self.shift = layer.window_size, layer.shift_size

    def forward(self, x: Tensor, padding: Tensor | None, unseen: Tensor | None, kept: Tensor | None) -> Tensor:
        """[B, h, w, C] → the same.

        Args:
            x: tokens.
            padding: [B, h, w] bool, or None.
            unseen: `unseen_in_windows` of the shifted blocks.
            kept: [B, 2], what the branches are multiplied by; None: they stay as they are.
        """
        size, scales = x.shape[1:3], (1, 1) if kept is None else kept[:, :, None, None, None].unbind(1)
        tokens = _blank(self.layernorm_before(x), padding)
        tokens = F.pad(tokens, (0, 0, 0, -size[1] % self.window, 0, -size[0] % self.window))
        tokens = torch.roll(tokens, (-self.shift, -self.shift), (1, 2))
        windows, _ = self.attention(_windows(tokens, self.window).flatten(1, 2), unseen if self.shift else None)
        tokens = _from_windows(windows, self.window, tokens.shape)
        tokens = torch.roll(tokens, (self.shift, self.shift), (1, 2))[:, : size[0], : size[1]]
        x = x + scales[0] * tokens
        return x + scales[1] * self.mlp(self.layernorm_after(x))


def _blank(tokens: Tensor, padding: Tensor | None) -> Tensor:
    """[B, h, w, C] with zeros where an image ends, as beyond the edge of a map."""
    return tokens if padding is None else tokens.masked_fill(padding[..., None], 0.0)


def _windows(tokens: Tensor, side: int) -> Tensor:
    """[B, h, w, …] → [B * windows, side, side, …]; h and w are multiples of `side`."""
    return tokens.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(0, 2)


def _from_windows(windows: Tensor, side: int, shape: torch.Size) -> Tensor:
    """[B * windows, side², C] → [B, h, w, C]."""
    batch, height, width, channels = shape
    parts = windows.reshape(batch, height // side, width // side, side, side, channels)
    return parts.transpose(2, 3).reshape(shape)


def unseen_in_windows(size: tuple[int, int], side: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Added to scores in shifted windows, [windows or B * windows, side², side²]: 0 where a token sees another.

    Tokens that come from the other end of the map are not seen from its last windows; nor are those behind the windows
    that an image alone would fill.

    Args:
        size: height and width of the map in tokens.
        side: of a window.
        padding: [B, h, w] bool, images in the upper left; None: the map is the image.
        device: of the result.
    """
    axes = []
    for axis, length in enumerate(size):
        whole = length + -length % side
        own = torch.tensor([whole], device=device)
        if padding is not None:
            valid = (~padding).any(2 - axis).sum(1)
            own = valid + -valid % side
        place = torch.arange(whole, device=device) + side // 2
        axes.append((place >= own[:, None]).long() + (place >= whole))  # [B or 1, length]: 0, 1 or 2
    part = axes[0][:, :, None] * 3 + axes[1][:, None]
    parts = _windows(part, side).flatten(1)
    return HIDDEN * (parts[:, None] != parts[:, :, None]).float()


class SwinStage(nn.Module):
    """Blocks of one size of map, and what merges each four of its tokens into one for the stage behind."""

    def __init__(self, stage: Any, window: int, merges: bool):
        super().__init__()
        self.blocks = nn.ModuleList(map(SwinBlock, stage.blocks))
        self.downsample = stage.downsample if merges else None
        self.window = window

    def forward(self, x: Tensor, padding: Tensor | None, kept: Tensor | None, again: bool) -> Tensor:
        """[B, h, w, C] → the same; `kept` [B, blocks, 2], `again`: blocks are computed again in the backward pass."""
        unseen = None
        if len(self.blocks) > 1:
            unseen = unseen_in_windows((x.shape[1], x.shape[2]), self.window, padding, x.device)
        for index, block in enumerate(self.blocks):
            x = run(block, x, padding, unseen, None if kept is None else kept[:, index], again=again)
        return x

    def merge(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """[B, h, w, C] → [B, ceil(h / 2), ceil(w / 2), 2 C]."""
        assert self.downsample is not None
        height, width = x.shape[1:3]
        merged: Tensor = self.downsample(_blank(x, padding).flatten(1, 2), (height, width))
        return merged.unflatten(1, (-(-height // 2), -(-width // 2)))


class Swin(nn.Module):
    """The backbone. `channels` and `strides` describe the stages it returns."""

    recomputes = False
    sees_padding = False

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.config, size, last = config, config.size, max(config.stages)
        settings = library().SwinConfig(
            embed_dim=size.channels,
            depths=size.depths[:last],
            num_heads=size.num_heads[:last],
            window_size=size.window,
            drop_path_rate=0.0,
        )
        model = library().SwinModel(settings, add_pooling_layer=False)
        self.embeddings = model.embeddings
        stages = enumerate(model.encoder.layers, 1)
        self.layers = nn.ModuleList(SwinStage(stage, size.window, number < last) for number, stage in stages)
        widths = {stage: size.channels * 2 ** (stage - 1) for stage in config.stages}
        self.norms = nn.ModuleDict({str(stage - 1): nn.LayerNorm(width) for stage, width in widths.items()})
        self.channels, self.strides = tuple(widths.values()), config.strides
        if config.weights is not None:
            self.load_state_dict(_swin_weights(self, Path(config.weights)), strict=False)
        frozen = [] if config.frozen_stages < 0 else [self.embeddings, *self.layers[: config.frozen_stages]]
        for module in frozen:
            module.requires_grad_(False)

    def lr_depth(self, name: str) -> int:
        """Blocks from the one that a parameter belongs to, with it; merging belongs to the block behind it."""
        parts, depths = name.split("."), self.config.size.depths[: len(self.layers)]
        if parts[0] != "layers":
            return 0 if parts[0] == "norms" else sum(depths) + 1
        stage = int(parts[1])
        block = int(parts[3]) if parts[2] == "blocks" else depths[stage]
        return sum(depths) - sum(depths[:stage]) - block

    def forward(self, images: Tensor, mask_at: Callable[[int], Tensor | None]) -> list[Tensor]:
        """Features of the configured stages; see the contract."""
        tokens, size = self.embeddings(images)
        x, outputs = tokens.unflatten(1, size), []
        kept = self._kept(x)
        for number, stage in enumerate(cast("Iterable[SwinStage]", self.layers), 1):
            padding = mask_at(2 ** (number + 1))
            x = stage(x, padding, None if kept is None else kept[number - 1], self.recomputes)
            if number in self.config.stages:
                normalised = self.norms[str(number - 1)](x).permute(0, 3, 1, 2)
                outputs.append(zero_padding(normalised, padding))
            if number < len(self.layers):
                x = stage.merge(x, padding)
        return outputs

    def _kept(self, x: Tensor) -> list[Tensor] | None:
        """[B, blocks, 2] factors of each image's branches, of each stage; None where none is left out.

        Frozen stages leave out none.
        """
        rate, depths = self.config.drop_path, self.config.size.depths
        if not self.training or rate == 0:
            return None
        rates = torch.linspace(0, rate, sum(depths), device=x.device)
        rates[: sum(depths[: max(self.config.frozen_stages, 0)])] = 0
        numbers = rand((len(x), sum(depths), 2), x.device)
        keep = 1 - rates[:, None]
        return list(((numbers < keep) / keep).split(depths, 1))


def check_weights(config: SwinConfig) -> None:
    """Raise `ValueError` with one line unless the backbone can be built, and its file fits. Builds no tensors."""
    with torch.device("meta"):
        backbone = Swin(replace(config, weights=None))
    if config.weights is not None:
        _swin_weights(backbone, Path(config.weights))


def _swin_weights(backbone: Swin, path: Path) -> dict[str, Tensor]:
    """Our tensors out of a file; norms of outputs, which files of classifiers do not have, may be missing."""
    config, expected = backbone.config, backbone.state_dict()
    with of_backbone():
        weights = swin.translate(read_weights(path), expected)
    asked_for = {name: value for name, value in expected.items() if name in weights or not name.startswith("norms.")}
    if trouble := misfits(asked_for, weights):
        raise ValueError(
            f"model.backbone.weights: {path} {trouble}; expected are the names of a Swin Transformer by Microsoft, "
            f"timm, mmdetection or transformers, with {config.size.channels} channels, depths "
            f"{list(config.size.depths)}, heads {list(config.size.num_heads)} (variant {config.variant}); null for none"
        )
    return weights
