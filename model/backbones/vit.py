"""ViT of EVA-02's kind (Fang et al. 2023) as a detector's backbone: most blocks attend within windows (Li et al. 2022).

One stage of stride 16. Positions are both added to the patches and rotated into queries and keys; feed-forwards are
SwiGLU with a norm inside. Names are those of the released files. Padding takes part, as there: windows reach beyond the
map, where keys are zero tokens' and are seen, and global blocks see the padding of smaller images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.configs import ViTConfig
from model.layers import zero_padding
from model.linear import Conv2d, Linear, linear
from model.recompute import run
from model.share import rand
from model.weights import misfits, of_backbone, read_weights

PATCH = 16  # pixels
GRID = 16  # rows and columns that rotary positions are stretched to, whatever the map's size: those of pretraining
BASE = 10_000.0  # of the rotations' wavelengths
Rotation = tuple[Tensor, Tensor]  # cosines and sines [tokens, channels of a head]


def rotation(hw: tuple[int, int], lengths: tuple[int, int], channels: int, device: torch.device) -> Rotation:
    """Of the tokens of a map, row by row: the first half of a head's channels turns with the row, the second with the
    column.

    Args:
        hw: rows and columns.
        lengths: rows and columns that count as `GRID`.
        channels: of a head, a multiple of 4; two neighbours turn together.
        device: of the result.
    """
    half = channels // 2
    frequencies = 1 / BASE ** (torch.arange(0, half, 2, device=device) / half)
    rows, columns = (
        (torch.arange(size, device=device) / length * GRID)[:, None] * frequencies
        for size, length in zip(hw, lengths, strict=True)
    )
    height, width = hw
    angles = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], -1)
    angles = angles.flatten(0, 1).repeat_interleave(2, -1)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, by: Rotation) -> Tensor:
    """[..., tokens, channels of a head] with each pair of neighbouring channels turned."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * by[0] + torch.stack([-second, first], -1).flatten(-2) * by[1]


class Attention(nn.Module):
    """Self-attention with rotated queries and keys; keys have no bias."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = Linear(channels, channels, bias=False)
        self.k_proj = Linear(channels, channels, bias=False)
        self.v_proj = Linear(channels, channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, by: Rotation) -> Tensor:
        """[N, tokens, C] → the same shape; the tokens of a row see each other."""
        query, key, value = (
            linear(x, own.weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for own, bias in ((self.q_proj, self.q_bias), (self.k_proj, None), (self.v_proj, self.v_bias))
        )
        query, key = (rotated(own, by).to(value.dtype) for own in (query, key))
        seen = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return result


class SwiGLU(nn.Module):
    """Feed-forward with a gate, and a norm before its last layer."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = int(channels * 8 / 3)
        self.w1 = Linear(channels, hidden)
        self.w2 = Linear(channels, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=1e-6)
        self.w3 = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C]."""
        result: Tensor = self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))
        return result


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a shortcut.

    Args:
        config: of the backbone.
        window: tokens along the side of the squares that attend within themselves; 0: all tokens see each other.
    """

    def __init__(self, config: ViTConfig, window: int):
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.channels, eps=1e-6)
        self.attn = Attention(config.channels, config.num_heads)
        self.norm2 = nn.LayerNorm(config.channels, eps=1e-6)
        self.mlp = SwiGLU(config.channels)

    def forward(self, x: Tensor, by: Rotation, share: Tensor | None = None) -> Tensor:
        """[B, h, w, C] → the same shape; `share` [B, 2]: times what each image takes of the two branches."""
        first, second = (1, 1) if share is None else share[:, :, None, None, None].unbind(1)
        x = x + first * self._attend(self.norm1(x), by)
        return x + second * self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, by: Rotation) -> Tensor:
        batch, height, width, channels = x.shape
        if not self.window:
            whole: Tensor = self.attn(x.flatten(1, 2), by)
            return whole.view(x.shape)
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        windows = x.view(batch, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side * side, channels)
        windows = self.attn(windows, by).view(batch, rows, columns, side, side, channels)
        return windows.transpose(2, 3).reshape(x.shape)[:, :height, :width]


class PatchEmbed(nn.Module):
    """A linear layer over each patch."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = Conv2d(3, channels, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, h, w, C]; the last patches may reach beyond the image, where it is zero."""
        height, width = images.shape[-2:]
        result: Tensor = self.proj(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))
        return result.permute(0, 2, 3, 1)


class ViT(nn.Module):
    """The backbone. `channels` and `strides` describe the one stage that it returns."""

    recomputes = False
    sees_padding = True

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.channels, self.strides = (config.channels,), config.strides
        side = config.pretrained_size // PATCH
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + config.class_token, config.channels))
        self.patch_embed = PatchEmbed(config.channels)
        self.blocks = nn.ModuleList(
            Block(config, 0 if index in config.global_blocks else config.window) for index in range(config.depth)
        )
        self.out_norm = nn.LayerNorm(config.channels, eps=1e-5)
        self.reset_parameters()
        if config.weights is not None:
            self.load_state_dict(_weights(self, Path(config.weights)), strict=False)

    def reset_parameters(self) -> None:
        """Truncated normals of deviation 0.02, biases zero."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def lr_depth(self, name: str) -> int:
        """Blocks from a parameter's own on, that one included; patches and positions lie before the first."""
        part, _, rest = name.partition(".")
        if part == "blocks":
            return self.config.depth - int(rest.partition(".")[0])
        return 0 if part == "out_norm" else self.config.depth + 1

    def forward(self, images: Tensor, mask_at: Callable[[int], Tensor | None]) -> list[Tensor]:
        """See the contract."""
        x = self.patch_embed(images)
        hw = (x.shape[1], x.shape[2])
        x = x + self.positions(hw)
        by = self.rotations(hw, images.device)
        shares = self._shares(len(images), images.device)
        for index, block in enumerate(self.blocks):
            share = None if shares is None else shares[:, index]
            x = run(block, x, by[cast(Block, block).window], share, again=self.recomputes)
        return [zero_padding(self.out_norm(x).permute(0, 3, 1, 2), mask_at(PATCH))]

    def positions(self, hw: tuple[int, int]) -> Tensor:
        """[1, h, w, D] position embeddings, added to the patches of a map of this size."""
        positions = self.pos_embed[:, self.config.class_token :]
        return _resized_positions(positions, hw).unflatten(1, hw)

    def rotations(self, hw: tuple[int, int], device: torch.device) -> dict[int, Rotation]:
        """By a block's window; 0: the whole map of this size."""
        channels, side = self.config.channels // self.config.num_heads, self.config.window
        lengths = hw if self.config.image_size is None else (self.config.image_size // PATCH,) * 2
        return {
            0: rotation(hw, lengths, channels, device),
            side: rotation((side, side), (side, side), channels, device),
        }

    def _shares(self, batch: int, device: torch.device) -> Tensor | None:
        """[B, depth, 2], times what each image takes of each block's two branches: 0, or what makes up for the zeros.

        Drawn before the blocks, so that one that is computed again has the same.
        """
        if not self.training or self.config.drop_path == 0:
            return None
        dropped = torch.linspace(0, self.config.drop_path, self.config.depth, device=device)[:, None]
        return (rand((batch, self.config.depth, 2), device) >= dropped) / (1 - dropped)


# ---- files of weights ---------------------------------------------------------------------------------------------

BACKBONE = "backbone."  # before the names of a detector's file
# What classifiers and masked image models have besides; rotations follow from the configuration.
BESIDES = ("cls_token", "mask_token", "norm.", "fc_norm.", "head.", "lm_head.")


def check_weights(config: ViTConfig) -> None:
    """Raise `ValueError` with one line unless the file of `config.weights` fits this backbone. Builds no model."""
    assert config.weights is not None
    with torch.device("meta"):
        backbone = ViT(replace(config, weights=None))
    _weights(backbone, Path(config.weights))


def _weights(backbone: ViT, path: Path) -> dict[str, Tensor]:
    """Tensors of a file of EVA-02's names, with kernel and positions resized; a norm behind the blocks may be missing.

    Raises:
        ValueError: the file cannot be read, or a name or shape does not fit; one line.
    """
    config, expected = backbone.config, backbone.state_dict()
    with of_backbone():
        found = read_weights(path)
    weights = _resized(_of_backbone(found), config)
    # Files from before a detector have none: it starts as the identity, as the official code has it.
    if not any(name.startswith("out_norm.") for name in weights):
        expected = {name: value for name, value in expected.items() if not name.startswith("out_norm.")}
    if trouble := misfits(expected, weights):
        raise ValueError(
            f"model.backbone.weights: {path} {trouble}; expected are the names of EVA-02 with {config.depth} blocks of "
            f"{config.channels} channels and class_token: {str(config.class_token).lower()}; null for none"
        )
    return weights


def _of_backbone(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A detector's backbone alone, or a pretrained model without what only its pretraining needs."""
    if any(name.startswith(BACKBONE) for name in found):
        found = {n.removeprefix(BACKBONE): value for n, value in found.items() if n.startswith(BACKBONE)}
    return {name: value for name, value in found.items() if "rope" not in name and not name.startswith(BESIDES)}


def _resized(weights: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """With kernel and positions of the configuration's sizes, as far as they are of other square ones."""
    kernel, positions = weights.get("patch_embed.proj.weight"), weights.get("pos_embed")
    if kernel is not None and kernel.dim() == 4 and kernel.shape[2:] != (PATCH, PATCH):
        kernel = F.interpolate(kernel.float(), size=(PATCH, PATCH), mode="bicubic", align_corners=False)
        weights = weights | {"patch_embed.proj.weight": kernel}
    if positions is not None and positions.dim() == 3 and len(positions) == 1:
        first, patches = positions.float().split([int(config.class_token), positions.shape[1] - config.class_token], 1)
        if int(patches.shape[1] ** 0.5) ** 2 == patches.shape[1] > 0:
            side = config.pretrained_size // PATCH
            weights = weights | {"pos_embed": torch.cat([first, _resized_positions(patches, (side, side))], 1)}
    return weights


def _resized_positions(positions: Tensor, hw: tuple[int, int]) -> Tensor:
    """Position embeddings [1, n * n, C] of a square as [1, h * w, C], bicubic."""
    side = int(positions.shape[1] ** 0.5)
    if hw == (side, side):
        return positions
    grid = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=hw, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
