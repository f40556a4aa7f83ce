"""The queries of DAB-DETR (Liu et al. 2022) and of one-stage LW-DETR: learned boxes, perhaps with learned content."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.boxes import inverse_sigmoid
from model.criterion import Objective
from model.proposals.configs import AnchorsConfig
from model.types import Memory, Proposals, QueryGroup, Step


class AnchorQueries(nn.Module):
    """Content is zero or learned, and the decoder makes positions of the boxes."""

    centres: Tensor  # [Q, 2] logits, where they are fixed

    def __init__(self, config: AnchorsConfig, *, num_proposals: int, objective: Objective):
        super().__init__()
        self.channels = objective.config.transformer.channels
        self.fixed = config.centres == "fixed"
        self.anchors = nn.Embedding(num_proposals, 2 if self.fixed else 4)  # logits of cxcywh, or of w and h alone
        if config.centres != "normal":
            uniform = inverse_sigmoid(torch.rand(num_proposals, 2))
            if self.fixed:
                self.register_buffer("centres", uniform)
            else:
                self.anchors.weight.data[:, :2] = uniform
        self.content = nn.Embedding(num_proposals, self.channels) if config.content == "learned" else None

    def forward(self, memory: Memory, num_proposals: int) -> Proposals:
        """See the contract; all images have the same ranks."""
        logits = torch.cat([self.centres, self.anchors.weight], 1) if self.fixed else self.anchors.weight
        images, reference = memory.tokens.shape[0], logits.float().sigmoid()
        if self.content is None:
            content = memory.tokens.new_zeros(images, len(reference), self.channels)
        else:
            content = self.content.weight.expand(images, -1, -1)
        source = torch.arange(len(reference), dtype=torch.int32, device=reference.device)[None].expand(images, -1)
        queries = QueryGroup(content, None, reference.expand(images, -1, -1), has_size=True, source=source)
        return Proposals(queries.between(0, num_proposals))

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Empty: the encoder predicts nothing."""
        return {}

    def loss_weights(self) -> dict[str, float]:
        """Empty, as `losses`."""
        return {}
