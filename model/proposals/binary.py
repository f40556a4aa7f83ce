"""Two-stage Deformable-DETR: every token of the encoder competes to be a query's reference, all classes as one."""

from __future__ import annotations

from torch import Tensor

from model.criterion import Objective
from model.inquiry import Inquiry, asking
from model.proposals.configs import BinaryConfig
from model.proposals.tokens import TokenProposals
from model.types import Step, Targets


class BinaryProposals(TokenProposals):
    """Objects against the rest (Deformable-DETR). Channel 0 is the objectness (official)."""

    def __init__(self, config: BinaryConfig, *, num_proposals: int, objective: Objective):
        super().__init__(num_proposals, objective)

    def scores(self, logits: Tensor) -> Tensor:
        """[B, S, C] → [B, S], the objectness."""
        return logits[..., 0]

    @asking
    def losses(self, step: Step) -> Inquiry[dict[str, Tensor]]:
        """`encoder/<term>`: every token competes; all classes count as one (official)."""
        proposals, targets = step.proposals, step.batch.targets
        assert proposals.logits is not None and proposals.boxes_cxcywh is not None
        binary = Targets(targets.boxes_xyxy, targets.labels.clamp(max=0), counts=targets.host_counts())
        logits, boxes = proposals.logits[None], proposals.boxes_cxcywh[None]
        excluded, valid_hw = proposals.excluded, step.batch.valid_hw
        gt_index = yield from self.objective.inquire(logits, boxes, binary, valid_hw, excluded)
        weight = None if excluded is None else (~excluded).to(logits.dtype)
        losses = self.objective.losses(
            logits,
            boxes,
            gt_index,
            binary,
            valid_hw,
            weight=weight,
            num_objects=self.objective.num_objects(targets),
        )
        return {f"encoder/{term}": value[0] for term, value in losses.items()}
