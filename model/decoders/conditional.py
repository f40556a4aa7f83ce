"""The decoder of Conditional-DETR (Meng et al. 2021): queries look around a point that stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Visibility
from model.boxes import inverse_sigmoid
from model.branches import MLP, BoxBranch, class_branch, xavier_matrices
from model.conditional_attention import ConditionalLayer
from model.config import DetectorConfig
from model.decoders.configs import ConditionalDecoderConfig, DabDecoderConfig
from model.linear import Linear
from model.position import box_position_encoding
from model.types import DecoderOutput, Memory, QueryGroup


class ConditionalStack(nn.Module):
    """N layers, and behind each of them the same norm, class branch and box branch."""

    official_from_the_start = True  # its first weights

    def __init__(self, config: ConditionalDecoderConfig | DabDecoderConfig, *, model: DetectorConfig, num_classes: int):
        super().__init__()
        transformer, channels = model.transformer, model.transformer.channels
        self.channels, self.epsilon = channels, config.inverse_sigmoid_epsilon
        self.layers = nn.ModuleList(
            ConditionalLayer(transformer, config.activation, first=layer == 0)
            for layer in range(transformer.num_decoder_layers)
        )
        self.query_scale = MLP(channels, channels, channels)
        self.norm = nn.LayerNorm(channels)
        xavier_matrices(self)
        if config.local_start:
            self._look_around(config.local_start)
        self.class_branch = class_branch(channels, num_classes)
        self.box_branch = BoxBranch(channels)

    @torch.no_grad()
    def _look_around(self, factor: float) -> None:
        """Let attention begin at the tokens near each query's point (`ConditionalDecoderConfig.local_start`)."""
        for layer in self.layers:
            cast("ConditionalLayer", layer).cross_attention.share_positions(factor)
        last = cast("Linear", self.query_scale[-1])
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)

    def scaled(self, sine: Tensor, states: Tensor, layer: int) -> Tensor:
        """The encoding of the queries' places [B, Q, D] in the space of their contents; as it is in the first layer."""
        return sine if layer == 0 else sine * self.query_scale(states)

    def predict(self, states: Tensor, references: Tensor, looked_at: list[tuple[Tensor, Tensor]]) -> DecoderOutput:
        """Predictions of N layers.

        Args:
            states: [N, B, Q, D].
            references: [N or 1, B, Q, 4] boxes or [N or 1, B, Q, 2] points, normalised, that box offsets are added to;
                sizes have none where it is a point.
            looked_at: of the last layer, if anybody asked.
        """
        normed = self.norm(states)
        base = inverse_sigmoid(references, self.epsilon)
        boxes = (self.box_branch(normed).float() + F.pad(base, (0, 4 - base.shape[-1]))).sigmoid()
        return DecoderOutput(self.class_branch(normed).float(), boxes, looked_at[0] if looked_at else None)


class ConditionalDecoder(ConditionalStack):
    """References are points: of a group's boxes the centres count, its positions alone may know of their sizes."""

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, *, look: bool = False) -> DecoderOutput:
        """See the contract."""
        check_memory(memory, "conditional")
        states = torch.cat([group.content for group in groups], 1)
        position = torch.cat([_position_of(group) for group in groups], 1)
        points = torch.cat([group.reference_cxcywh[..., :2] for group in groups], 1)
        sine = box_position_encoding(points.flip(-1), self.channels // 2).to(memory.tokens.dtype)  # official: y, x
        visibility = Visibility.of(groups)
        looked_at: list[tuple[Tensor, Tensor]] = []
        found = []
        for i, layer in enumerate(self.layers):
            states = layer(
                states,
                position,
                self.scaled(sine, states, i),
                visibility=visibility,
                memory=memory,
                looked_at=looked_at if look and i == len(self.layers) - 1 else None,
            )
            found.append(states)
        return self.predict(torch.stack(found), points[None], looked_at)


def check_memory(memory: Memory, name: str) -> None:
    """Raise `ValueError` where the encoder did not say where its tokens are."""
    if memory.position is None:
        raise ValueError(f"model.decoder: {name} needs an encoder that gives the positions of its tokens")


def _position_of(group: QueryGroup) -> Tensor:
    if group.position is None:
        raise ValueError("model.decoder: conditional needs query groups with positions, and one has none")
    return group.position
