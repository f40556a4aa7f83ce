"""Group-DETR's two stages (LW-DETR, Chen et al. 2024): each group of queries has an encoder head of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.branches import BoxBranch, class_branch
from model.constants import of_sizes
from model.criterion import Objective, term_weights
from model.gather import rows
from model.inquiry import Inquiry, asking, inquiry
from model.linear import Linear
from model.position import box_position_encoding
from model.proposals.configs import PerGroupConfig
from model.proposals.tokens import encoder_anchors, token_places
from model.types import Memory, Proposals, QueryGroup, Step


class GroupHead(nn.Module):
    """A class and a box for each of the encoder's tokens, as one group sees them."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.token_proj = Linear(channels, channels)
        self.token_norm = nn.LayerNorm(channels)
        self.class_branch = class_branch(channels, num_classes)
        self.box_branch = BoxBranch(channels)

    def forward(self, tokens: Tensor, anchors: Tensor, never: Tensor | None, number: int) -> tuple[Tensor, ...]:
        """The best tokens by their likeliest class: index [B, n], logits [B, n, C] and boxes [B, n, 4] in logits.

        Args:
            tokens: [B, S, D].
            anchors: [B, S, 4] logits of cxcywh.
            never: [B, S] bool, True for tokens that are worse than any other; None: there are none.
            number: n.
        """
        tokens = self.token_norm(self.token_proj(tokens))
        logits = self.class_branch(tokens).float()
        likeliest = logits.detach().amax(-1)
        if never is not None:
            likeliest = likeliest.masked_fill(never, -torch.inf)
        best = likeliest.topk(number, dim=1).indices
        boxes = self.box_branch(rows(tokens, best)).float() + rows(anchors, best)
        return best, rows(logits, best), boxes


class BoxPosition(nn.Module):
    """The position of a query from the box that it starts from, as in `binary`."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.box_proj = Linear(2 * channels, channels)
        self.box_norm = nn.LayerNorm(channels)

    def forward(self, boxes_cxcywh: Tensor) -> Tensor:
        """[B, Q, 4] → [B, Q, D]."""
        encoded: Tensor = self.box_norm(self.box_proj(box_position_encoding(boxes_cxcywh, self.channels // 2)))
        return encoded


class PerGroupProposals(nn.Module):
    """A `GroupHead` for each `num_queries` ranks; two groups may start from one place. Content is learned."""

    def __init__(self, config: PerGroupConfig, *, num_proposals: int, objective: Objective):
        super().__init__()
        model = objective.config
        self.objective, self.official, self.num_queries = objective, model.official, model.num_queries
        channels = model.transformer.channels
        number = num_proposals // self.num_queries
        self.heads = nn.ModuleList(GroupHead(channels, objective.num_classes) for _ in range(number))
        self.content = nn.Embedding(num_proposals, channels)
        self.anchors = nn.Embedding(num_proposals, 4)  # logits of cxcywh, added to those of the box that a rank gets
        nn.init.zeros_(self.anchors.weight)
        self.position = None if model.makes_position else BoxPosition(channels)
        # Of its losses, which are means over the heads: each head's weigh as those of the original queries.
        self.weight = number * model.main_weight

    def forward(self, memory: Memory, num_proposals: int) -> Proposals:
        """See the contract.

        Tokens in the padding, or whose centre lies within 1 % of the border, are chosen only where valid ones are too
        few; the official code ranks them as the others.
        """
        tokens, anchors, invalid = encoder_anchors(memory)
        if tokens.shape[1] < self.num_queries:
            raise ValueError(
                f"model.num_queries ({self.num_queries}) exceeds the {tokens.shape[1]} positions of the encoder at "
                f"this image size; use fewer queries or larger images"
            )
        never, number = None if self.official else invalid, num_proposals // self.num_queries
        found = [head(tokens, anchors, never, self.num_queries) for head in self.heads[:number]]
        best, logits, boxes = (torch.cat(values, 1) for values in zip(*found, strict=True))
        reference = (boxes.detach() + self.anchors.weight[:num_proposals]).sigmoid()
        content = self.content.weight[:num_proposals].expand(tokens.shape[0], -1, -1)
        position = None if self.position is None else self.position(reference)
        source = of_sizes(token_places, memory.sizes, best.device)[best]
        queries = QueryGroup(content, position, reference, has_size=True, source=source)
        excluded = None if never is None else never.gather(1, best)
        return Proposals(queries, logits, boxes.sigmoid(), excluded=excluded, chosen=best)

    @asking
    def losses(self, step: Step) -> Inquiry[dict[str, Tensor]]:
        """`encoder/<term>`: each head's chosen tokens are matched on their own, the mean over the heads."""
        proposals, targets, valid_hw = step.proposals, step.batch.targets, step.batch.valid_hw
        assert proposals.logits is not None and proposals.boxes_cxcywh is not None
        logits, boxes, excluded = proposals.logits[None], proposals.boxes_cxcywh[None], proposals.excluded
        number = logits.shape[2] // self.num_queries
        given = logits, boxes, targets, valid_hw, excluded
        gt_index = yield from inquiry(self.objective.assign_blocks, *given, blocks=number)
        losses = self.objective.losses(
            logits,
            boxes,
            gt_index,
            targets,
            valid_hw,
            weight=None if excluded is None else (~excluded).to(logits.dtype),
            num_objects=self.objective.num_objects(targets, number),
            minimum=self.weight,
        )
        return {f"encoder/{term}": value[0] for term, value in losses.items()}

    def loss_weights(self) -> dict[str, float]:
        """The detector's `loss_weights`, times the number of heads where the groups' losses are added."""
        terms = term_weights(self.objective.config.loss_weights)
        return {f"encoder/{term}": self.weight * weight for term, weight in terms.items()}
