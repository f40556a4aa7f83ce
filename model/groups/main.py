"""The original queries: one for each object, found by the assigner."""

from __future__ import annotations

from torch import Tensor, nn

from model.criterion import Objective, by_layer, layer_weights
from model.groups.configs import MainConfig
from model.inquiry import Inquiry, asking
from model.types import DecoderOutput, QueryGroup, Step


class MainGroup(nn.Module):
    """`num_queries` ranks of the proposals; what each must predict is decided layer by layer."""

    def __init__(self, config: MainConfig, *, name: str, objective: Objective):
        super().__init__()
        self.name, self.objective, self.num_queries = name, objective, objective.config.num_queries

    def queries(self, step: Step) -> QueryGroup:
        """The best ranks."""
        return step.proposals.take(self.num_queries)

    @asking
    def losses(self, output: DecoderOutput, queries: QueryGroup, step: Step) -> Inquiry[dict[str, Tensor]]:
        """`<name>.<layer>/<term>`."""
        targets, valid_hw = step.batch.targets, step.batch.valid_hw
        gt_index = yield from self.objective.inquire(output.logits, output.boxes_cxcywh, targets, valid_hw)
        losses = self.objective.losses(
            output.logits,
            output.boxes_cxcywh,
            gt_index,
            targets,
            valid_hw,
            num_objects=self.objective.num_objects(targets),
            minimum=self.objective.config.main_weight,
        )
        return by_layer(self.name, losses)

    def loss_weights(self) -> dict[str, float]:
        """The detector's `loss_weights` times its `main_weight`, in each layer."""
        return layer_weights(self.name, self.objective.config, self.objective.config.main_weight)
