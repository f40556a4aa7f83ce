"""One-stage detectors whose queries start from learned boxes (DAB-DETR, Liu et al. 2022; one-stage LW-DETR)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.criterion import Objective
from model.proposals.configs import LearnedBoxesConfig
from model.types import Memory, Proposals, QueryGroup, Step


class LearnedBoxes(nn.Module):
    """Learned content and reference boxes, and learned positions unless the decoder makes them of the boxes."""

    def __init__(self, config: LearnedBoxesConfig, *, num_proposals: int, objective: Objective):
        super().__init__()
        model, channels = objective.config, objective.config.transformer.channels
        self.content = nn.Embedding(num_proposals, channels)
        self.reference = nn.Embedding(num_proposals, 4)  # cxcywh in logits
        self.position = None if model.makes_position else nn.Embedding(num_proposals, channels)

    def forward(self, memory: Memory, num_proposals: int) -> Proposals:
        """See the contract; all images have the same ranks."""

        def of_each_image(values: Tensor) -> Tensor:
            return values.expand(len(memory.tokens), *(-1 for _ in values.shape))

        source = torch.arange(len(self.content.weight), dtype=torch.int32, device=memory.tokens.device)
        queries = QueryGroup(
            of_each_image(self.content.weight),
            None if self.position is None else of_each_image(self.position.weight),
            of_each_image(self.reference.weight.float().sigmoid()),
            has_size=True,
            source=of_each_image(source),
        )
        return Proposals(queries.between(0, num_proposals))

    def losses(self, step: Step) -> dict[str, Tensor]:
        """None."""
        return {}

    def loss_weights(self) -> dict[str, float]:
        """None."""
        return {}
