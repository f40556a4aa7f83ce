"""Two-stage detectors: the encoder's best boxes become the queries' references."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.branches import BoxBranch, class_branch
from model.constants import constant, of_sizes
from model.criterion import Objective, term_weights
from model.linear import Linear
from model.position import box_position_encoding
from model.types import Memory, Proposals, QueryGroup


class TokenProposals(nn.Module):
    """A class and a box for each of the encoder's tokens; kinds differ in how these are ranked and what they learn.

    With mixed selection queries have learned content (DINO); otherwise it follows from the box, as positions do.
    """

    def __init__(self, num_proposals: int, objective: Objective):
        super().__init__()
        model = objective.config
        self.objective, self.official = objective, model.official
        self.num_queries, self.makes_position = model.num_queries, model.makes_position
        self.channels = channels = model.transformer.channels
        branches = class_branch(channels, objective.num_classes), BoxBranch(channels)
        self.token_proj = Linear(channels, channels)
        self.token_norm = nn.LayerNorm(channels)
        self.class_branch, self.box_branch = branches
        if not (model.makes_position and model.mixed_selection):
            width = channels if model.makes_position else 2 * channels  # official: with the content, needed or not
            self.box_proj = Linear(2 * channels, width)
            self.box_norm = nn.LayerNorm(width)
        self.content = nn.Embedding(num_proposals, channels) if model.mixed_selection else None

    def scores(self, logits: Tensor) -> Tensor:
        """[B, S, C] → [B, S]: tokens are ranked by this, highest first."""
        raise NotImplementedError

    def loss_weights(self) -> dict[str, float]:
        """The detector's `loss_weights`."""
        return {f"encoder/{term}": weight for term, weight in term_weights(self.objective.config.loss_weights).items()}

    def forward(self, memory: Memory, num_proposals: int) -> Proposals:
        """See the contract.

        Tokens in the padding, or whose centre lies within 1 % of the border, cannot carry a proposal. They are never
        chosen while valid ones are left; the official code ranks them too.
        """
        tokens, anchors, invalid = encoder_anchors(memory)
        if tokens.shape[1] < num_proposals:
            asking = "model.num_queries" if num_proposals == self.num_queries else "model.num_queries with model.groups"
            raise ValueError(
                f"{asking} ({num_proposals}) exceeds the {tokens.shape[1]} positions of the encoder at this image "
                f"size; use fewer queries or larger images"
            )
        tokens = self.token_norm(self.token_proj(tokens))
        logits = self.class_branch(tokens).float()
        boxes = (self.box_branch(tokens).float() + anchors).sigmoid()
        scores = self.scores(logits.detach())
        if not self.official:
            scores = scores.masked_fill(invalid, -torch.inf)
        best = scores.topk(num_proposals, dim=1).indices
        reference = boxes.detach().gather(1, best[..., None].expand(-1, -1, 4))
        position, content = self._start(reference, tokens.dtype)
        source = of_sizes(token_places, memory.sizes, best.device)[best]
        queries = QueryGroup(content, position, reference, has_size=True, source=source)
        return Proposals(queries, logits, boxes, excluded=None if self.official else invalid, chosen=best)

    def _start(self, reference: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """Position, unless the decoder makes it, and content [B, Q, D] of queries at `reference` [B, Q, 4]."""
        position, content = None, None
        if not (self.makes_position and self.content is not None):
            encoded = self.box_norm(self.box_proj(box_position_encoding(reference, self.channels // 2).to(dtype)))
            position, content = (None, encoded) if self.makes_position else encoded.chunk(2, -1)
        if self.content is not None:
            content = self.content.weight[: reference.shape[1]].expand(reference.shape[0], -1, -1)
        assert content is not None
        return position, content


def token_places(sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """[S] int32: level, row and column of each token in one number, which does not depend on a batch's padding."""
    grids = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in sizes]
    return torch.cat([(level << 26) + (grid[:, 0] << 13) + grid[:, 1] for level, grid in enumerate(grids)]).int()


def encoder_anchors(memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """One anchor per token: its centre, 5 % of the image wide on the finest level and doubling per level.

    Returns:
        tokens [B, S, D], zero where invalid; anchors [B, S, 4] logits of cxcywh, +inf where invalid;
        invalid [B, S] bool.
    """
    anchors = []
    for level, (h, w) in enumerate(memory.sizes):
        device = memory.ratios.device
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        cells = (memory.ratios[:, level] * constant((w, h), memory.ratios, torch.int64)).round()  # [B, 2] valid cells
        centre = (torch.stack([x.flatten(), y.flatten()], -1)[None] + 0.5) / cells[:, None]
        anchors.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2**level)], -1))
    boxes = torch.cat(anchors, 1)
    invalid = ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.padding is not None:
        invalid |= memory.padding
    logits = torch.log(boxes / (1 - boxes)).masked_fill(invalid[..., None], torch.inf)
    return memory.tokens.masked_fill(invalid[..., None], 0.0), logits, invalid
