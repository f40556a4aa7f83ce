"""DINO: every token of the encoder competes to be a query's reference by its best class, and the chosen ones learn."""

from __future__ import annotations

from torch import Tensor

from model.criterion import Objective
from model.gather import rows
from model.inquiry import Inquiry, asking
from model.proposals.configs import ClassesConfig
from model.proposals.tokens import TokenProposals
from model.types import Step


class ClassProposals(TokenProposals):
    """Each token has a probability of each class (DINO, Zhang et al. 2022)."""

    def __init__(self, config: ClassesConfig, *, num_proposals: int, objective: Objective):
        super().__init__(num_proposals, objective)

    def scores(self, logits: Tensor) -> Tensor:
        """[B, S, C] → [B, S], the largest logit of a class."""
        return logits.amax(-1)

    @asking
    def losses(self, step: Step) -> Inquiry[dict[str, Tensor]]:
        """`encoder/<term>`: the ranks of the original queries are matched with the objects and their classes.

        Ranks of other query groups learn nothing here, so that a group leaves the encoder's loss as it is.
        """
        proposals, targets, valid_hw = step.proposals, step.batch.targets, step.batch.valid_hw
        assert proposals.logits is not None and proposals.boxes_cxcywh is not None and proposals.chosen is not None
        chosen = proposals.chosen[:, : self.num_queries]

        def of_chosen(values: Tensor) -> Tensor:
            return rows(values, chosen)[None]

        logits, boxes = of_chosen(proposals.logits), of_chosen(proposals.boxes_cxcywh)
        excluded = None if proposals.excluded is None else proposals.excluded.gather(1, chosen)
        gt_index = yield from self.objective.inquire(logits, boxes, targets, valid_hw, excluded)
        losses = self.objective.losses(
            logits,
            boxes,
            gt_index,
            targets,
            valid_hw,
            weight=None if excluded is None else (~excluded).to(logits.dtype),
            num_objects=self.objective.num_objects(targets),
        )
        return {f"encoder/{term}": value[0] for term, value in losses.items()}
