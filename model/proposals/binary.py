"""Two-stage Deformable-DETR: every token of the encoder competes to be a query's reference, all classes as one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.branches import BoxBranch, class_branch
from model.criterion import Objective, set_losses, term_weights
from model.linear import Linear
from model.position import box_position_encoding
from model.proposals.configs import BinaryConfig
from model.types import Memory, Proposals, QueryGroup, Step, Targets


class BinaryProposals(nn.Module):
    """The encoder's best boxes become the references (Deformable-DETR; DINO's mixed selection)."""

    def __init__(self, config: BinaryConfig, *, num_proposals: int, objective: Objective):
        super().__init__()
        model = objective.config
        self.objective, self.official = objective, model.official
        self.num_queries = model.num_queries
        channels = model.transformer.channels
        branches = class_branch(channels, objective.num_classes), BoxBranch(channels)
        self.token_proj = Linear(channels, channels)
        self.token_norm = nn.LayerNorm(channels)
        self.class_branch, self.box_branch = branches
        self.box_proj = Linear(2 * channels, 2 * channels)
        self.box_norm = nn.LayerNorm(2 * channels)
        self.content = nn.Embedding(num_proposals, channels) if model.mixed_selection else None

    def forward(self, memory: Memory, num_proposals: int) -> Proposals:
        """See the contract.

        Tokens in the padding, or whose centre lies within 1 % of the border, cannot carry a proposal. They are never
        chosen while valid ones are left; the official code ranks them too. Channel 0 is the objectness (official).
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
        objectness = logits[..., 0].detach()
        if not self.official:
            objectness = objectness.masked_fill(invalid, -torch.inf)
        best = objectness.topk(num_proposals, dim=1).indices
        reference = boxes.detach().gather(1, best[..., None].expand(-1, -1, 4))
        channels = self.token_proj.out_features
        encoded = box_position_encoding(reference, channels // 2).to(tokens.dtype)
        position, content = self.box_norm(self.box_proj(encoded)).chunk(2, -1)
        if self.content is not None:
            content = self.content.weight[:num_proposals].expand(len(tokens), -1, -1)
        source = _places(memory).to(best.device)[best]
        queries = QueryGroup(content, position, reference, has_size=True, source=source)
        return Proposals(queries, logits, boxes, excluded=None if self.official else invalid, chosen=best)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """`encoder/<term>`: every token competes; all classes count as one (official)."""
        proposals, targets = step.proposals, step.batch.targets
        assert proposals.logits is not None and proposals.boxes_cxcywh is not None
        binary = Targets(targets.boxes_xyxy, targets.labels.clamp(max=0))
        logits, boxes = proposals.logits[None], proposals.boxes_cxcywh[None]
        excluded, valid_hw = proposals.excluded, step.batch.valid_hw
        gt_index = self.objective.assign(logits, boxes, binary, valid_hw, excluded)
        weight = None if excluded is None else (~excluded).to(logits.dtype)
        losses = set_losses(
            logits,
            boxes,
            gt_index,
            binary,
            valid_hw,
            classification=self.objective.classification,
            giou_epsilon=self.objective.giou_epsilon,
            weight=weight,
            num_objects=self.objective.num_objects(targets),
        )
        return {f"encoder/{term}": value[0] for term, value in losses.items()}

    def loss_weights(self) -> dict[str, float]:
        """The detector's `loss_weights`."""
        return {f"encoder/{term}": weight for term, weight in term_weights(self.objective.config.loss_weights).items()}


def _places(memory: Memory) -> Tensor:
    """[S] int32: level, row and column of each token in one number, which does not depend on a batch's padding."""
    grids = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in memory.sizes]
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
        cells = (memory.ratios[:, level] * torch.tensor([w, h], device=device)).round()  # [B, 2] valid cells
        centre = (torch.stack([x.flatten(), y.flatten()], -1)[None] + 0.5) / cells[:, None]
        anchors.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2**level)], -1))
    boxes = torch.cat(anchors, 1)
    invalid = ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.padding is not None:
        invalid |= memory.padding
    logits = torch.log(boxes / (1 - boxes)).masked_fill(invalid[..., None], torch.inf)
    return memory.tokens.masked_fill(invalid[..., None], 0.0), logits, invalid
