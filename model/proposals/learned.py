"""One-stage detectors: queries are learned, and the encoder has no head of its own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from model.branches import MLP, xavier_matrices
from model.criterion import Objective
from model.linear import Linear
from model.proposals.configs import LearnedConfig
from model.types import Memory, Proposals, QueryGroup, Step


class LearnedQueries(nn.Module):
    """Learned position, and content if wanted; the reference is a point computed from the position.

    Deformable-DETR has content and a linear layer, Conditional-DETR neither and an MLP. Where the decoder makes
    positions, the point is all that the learned one is for.
    """

    roles: ClassVar[dict[str, str]] = {"reference_points": "sampling"}

    def __init__(self, config: LearnedConfig, *, num_proposals: int, objective: Objective):
        super().__init__()
        channels, self.makes_position = objective.config.transformer.channels, objective.config.makes_position
        self.learns_content = config.content == "learned"
        self.embedding = nn.Embedding(num_proposals, (2 if self.learns_content else 1) * channels)
        self.has_point_head = config.points == "mlp"
        if self.has_point_head:
            self.point_head = MLP(channels, channels, 2)
            xavier_matrices(self.point_head)
        else:
            self.reference_points = Linear(channels, 2)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Memory, num_proposals: int) -> Proposals:
        """See the contract; all images have the same ranks."""
        position = self.embedding.weight
        content = torch.zeros_like(position)
        if self.learns_content:
            position, content = position.chunk(2, 1)
        point_of = self.point_head if self.has_point_head else self.reference_points
        points = point_of(position).float().sigmoid()
        reference = torch.cat([points, torch.full_like(points, 0.5)], -1)
        expand = (memory.tokens.shape[0], -1, -1)
        source = torch.arange(len(content), dtype=torch.int32, device=content.device)[None].expand(expand[:2])
        queries = QueryGroup(
            content.expand(expand),
            None if self.makes_position else position.expand(expand),
            reference.expand(expand),
            has_size=False,
            source=source,
        )
        return Proposals(queries.between(0, num_proposals))

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Empty: the encoder predicts nothing."""
        return {}

    def loss_weights(self) -> dict[str, float]:
        """Empty, as `losses`."""
        return {}
