"""Group-DETR (Chen et al. 2023): in training, more groups like the original queries, each matched one-to-one."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from model.criterion import Objective, by_layer, layer_weights
from model.groups.configs import ReplicasConfig
from model.inquiry import Inquiry, asking, inquiry
from model.types import DecoderOutput, QueryGroup, Step


class ReplicasGroup(nn.Module):
    """`number` blocks of `num_queries` ranks after the original queries'; none of them sees another."""

    def __init__(self, config: ReplicasConfig, *, name: str, objective: Objective):
        super().__init__()
        self.config, self.name, self.objective = config, name, objective
        each = 1.0 if config.reduction == "sum" else objective.config.main_weight
        self.weight = config.number * each  # of the mean over these groups

    def queries(self, step: Step) -> QueryGroup:
        """The next ranks."""
        number, num_queries = self.config.number, self.objective.config.num_queries
        return replace(step.proposals.take(number * num_queries), blocks=(num_queries,) * number)

    @asking
    def assign(self, output: DecoderOutput, step: Step) -> Inquiry[Tensor]:
        """[N, B, Q] ground truth of each query or BACKGROUND: each block is matched as if it were alone."""
        targets, valid_hw = step.batch.targets, step.batch.valid_hw
        queries = output.logits, output.boxes_cxcywh
        return inquiry(self.objective.assign_blocks, *queries, targets, valid_hw, blocks=self.config.number)

    @asking
    def losses(self, output: DecoderOutput, queries: QueryGroup, step: Step) -> Inquiry[dict[str, Tensor]]:
        """`<name>.<layer>/<term>`, the mean over the groups."""
        targets = step.batch.targets
        losses = self.objective.losses(
            output.logits,
            output.boxes_cxcywh,
            (yield from inquiry(self.assign, output, step)),
            targets,
            step.batch.valid_hw,
            num_objects=self.objective.num_objects(targets, self.config.number),
            minimum=self.weight,
        )
        return by_layer(self.name, losses)

    def loss_weights(self) -> dict[str, float]:
        """The detector's `loss_weights` times those of all these groups, in each layer."""
        return layer_weights(self.name, self.objective.config, self.weight)
