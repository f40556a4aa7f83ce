"""Pieces of transformer layers: self-attention within query groups, deformable attention, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.activation import PReLU
from model.config import TransformerConfig
from model.constants import constant
from model.linear import Linear, linear
from model.ops import ms_deform_attn
from model.types import QueryGroup


class Visibility(NamedTuple):
    """Which queries see which: consecutive blocks, each of which sees itself and perhaps the first group."""

    blocks: tuple[tuple[int, int, int], ...]  # start, stop, and how many of the first queries it sees besides itself
    hidden: Tensor | None  # [B, Q] bool, True for queries that nobody attends to; None: all are seen
    parts: Mapping[int, Tensor] = MappingProxyType({})  # by its start, the `QueryGroup.part` of a block

    @classmethod
    def of(cls, groups: Sequence[QueryGroup]) -> Visibility:
        """Of groups that stand one after the other; blocks without a query are left out."""
        blocks, start, main, parts = [], 0, groups[0].content.shape[1], {}
        for group in groups:
            if group.part is not None:
                parts[start] = group.part
            for length in group.block_lengths:
                if length:
                    blocks.append((start, start + length, main if group.sees == "main" else 0))
                start += length
        if all(group.hidden is None for group in groups):
            return cls(tuple(blocks), None, parts)
        shown = [group.content.new_zeros(group.content.shape[:2], dtype=torch.bool) for group in groups]
        hidden = [own if group.hidden is None else group.hidden for own, group in zip(shown, groups, strict=True)]
        return cls(tuple(blocks), torch.cat(hidden, 1), parts)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
        """Attention within each block, and to what else it sees: three times [B, Q, heads, D / heads] to [B, Q, D].

        Cutting the sequence instead of masking one large attention makes the isolation of the customised query groups
        (paper 3.3) exact, and costs nothing for what would be masked away. Blocks that see the first group are cut out
        together, and masked from each other: one by one, each would read all of its keys again.
        """
        attended = [self._attend(query, key, value, run, dropout) for run in self._runs()]
        return torch.cat(attended, 1).flatten(2)

    def _runs(self) -> list[tuple[int, int, int, int]]:
        """Start, stop, how many of the first queries are seen, and the length of each block between the two."""
        runs: list[tuple[int, int, int, int]] = []
        for start, stop, main in self.blocks:
            alone = start in self.parts or (runs and runs[-1][0] in self.parts)
            if main and runs and runs[-1][2:] == (main, stop - start) and not alone:
                runs[-1] = (runs[-1][0], stop, main, stop - start)
            else:
                runs.append((start, stop, main, stop - start))
        return runs

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, run: tuple[int, int, int, int], dropout: float
    ) -> Tensor:
        """[B, Q', heads, D / heads] of a run of blocks, from those of all queries."""
        start, stop, main, _ = run
        own_query, own_key, own_value = (values[:, start:stop].transpose(1, 2) for values in (query, key, value))
        if main:
            own_key, own_value = (
                torch.cat([values[:, :main].transpose(1, 2), own], 2)
                for values, own in ((key, own_key), (value, own_value))
            )
        seen = self._seen(run, query.device)
        return F.scaled_dot_product_attention(own_query, own_key, own_value, seen, dropout).transpose(1, 2)

    def _seen(self, run: tuple[int, int, int, int], device: torch.device) -> Tensor | None:
        """[B or 1, 1, Q' or 1, K] bool, which of its K keys a run of blocks sees; None: each sees all."""
        start, stop, main, length = run
        seen = None
        if stop - start > length or start in self.parts:
            block = torch.arange(stop - start, device=device)[None] // length
            block = self.parts.get(start, block)
            seen = F.pad(block[:, :, None] == block[:, None], (main, 0), value=True)
        if self.hidden is not None:
            shown = ~torch.cat([self.hidden[:, :main], self.hidden[:, start:stop]], 1)[:, None]
            seen = shown if seen is None else seen & shown
            seen = seen | ~seen.any(-1, keepdim=True)  # all is hidden from it: nobody else sees it anyway
        return None if seen is None else seen[:, None]


class GroupedSelfAttention(nn.Module):
    """Multi-head self-attention among the queries of each block; others are seen only where a group says so."""

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = Linear(channels, 3 * channels)
        self.out_proj = Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, visibility: Visibility) -> Tensor:
        """[B, Q, D] → [B, Q, D]."""
        parts = [2 * x.shape[2], x.shape[2]]
        weights, biases = self.in_proj.weight.split(parts), self.in_proj.bias.split(parts)
        query, key = linear(x + position, weights[0], biases[0]).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        value = linear(x, weights[1], biases[1]).unflatten(2, (self.num_heads, -1))
        return self.out_proj(visibility.attend(query, key, value, self.dropout if self.training else 0.0))


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable-DETR Eq. 3), without residual."""

    roles: ClassVar[dict[str, str]] = {"sampling_offsets": "sampling"}

    def __init__(self, channels: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(channels, samples * 2)
        self.attention_weights = Linear(channels, samples)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head looks in its own direction, each point one step further; all weights equal (official)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * steps[:, None]  # [heads, 1, points, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        has_size: Tensor | None,
        value: Tensor,
        sizes: tuple[tuple[int, int], ...],
        padding: Tensor | None,
    ) -> Tensor:
        """Sample `value` around each query's reference.

        Args:
            query: [B, Q, D], position added.
            reference: [B, Q, L, 2] points, or [B, Q, L, 4] (x, y, w, h), normalised to each whole map.
            has_size: [Q] bool for 4-d references: True where offsets are in units of half the box over the number
                of points, False where they are in pixels of the level, as for points. None: all True.
            value: [B, S, D] tokens of all levels.
            sizes: (h, w) of the L levels.
            padding: [B, S] bool, True where `value` counts as zero; None: nowhere.
        """
        projected = self.value_proj(value)
        if padding is not None:
            projected = projected.masked_fill(padding[..., None], 0.0)
        locations, weights = self.sampling(query, reference, has_size, sizes)
        value_heads = projected.view(query.shape[0], -1, self.num_heads, projected.shape[-1] // self.num_heads)
        attended = ms_deform_attn(value_heads, sizes, locations, weights)
        return self.output_proj(attended.to(query.dtype))

    def sampling(
        self, query: Tensor, reference: Tensor, has_size: Tensor | None, sizes: tuple[tuple[int, int], ...]
    ) -> tuple[Tensor, Tensor]:
        """Where each query looks, and how much that counts; see `forward` for the arguments.

        Returns:
            locations [B, Q, K, L, P, 2] (x, y) normalised to each whole map, and weights [B, Q, K, L, P] that sum to 1
            over levels and points; K attention heads, P points.
        """
        batch, num_queries, _ = query.shape
        shape = (batch, num_queries, self.num_heads, self.num_levels, self.num_points)
        weights = self.attention_weights(query).view(*shape[:3], -1).softmax(-1).view(shape)
        pixel = constant([(1 / w, 1 / h) for h, w in sizes], query, reference.dtype)  # [L, 2]
        unit = pixel.expand(batch, num_queries, -1, -1)
        if reference.shape[-1] == 4:
            box_unit = reference[..., 2:] * (0.5 / self.num_points)
            unit = box_unit if has_size is None else torch.where(has_size[:, None, None], box_unit, unit)
        offsets = self.sampling_offsets(query).view(*shape[:3], -1)
        locations = torch.addcmul(self._per_point(reference[..., :2]), offsets, self._per_point(unit))
        return locations.view(*shape, 2), weights

    def _per_point(self, values: Tensor) -> Tensor:
        """[B, Q, L, 2] → [B, Q, 1, L * P * 2], side by side for each head as the offsets are: a long inner loop."""
        return values[..., None, :].expand(-1, -1, -1, self.num_points, -1).flatten(2)[:, :, None]


class FeedForward(nn.Sequential):
    """Two linear layers with ReLU, or PReLU with one learned slope; dropout after each."""

    def __init__(self, config: TransformerConfig, activation: Literal["relu", "prelu"] = "relu"):
        dropout = nn.Dropout(config.dropout)
        super().__init__(
            Linear(config.channels, config.feedforward_channels, relu=activation == "relu"),
            dropout if activation == "relu" else nn.Sequential(PReLU(), dropout),
            Linear(config.feedforward_channels, config.channels),
            nn.Dropout(config.dropout),
        )
