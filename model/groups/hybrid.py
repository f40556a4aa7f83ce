"""Hybrid matching (H-Deformable-DETR, Jia et al. 2022): in training, more queries learn each object several times."""

from __future__ import annotations

from torch import Tensor, nn

from model.criterion import Objective, by_layer, layer_weights
from model.groups.configs import HybridConfig
from model.inquiry import Inquiry, asking, inquiry
from model.types import BACKGROUND, DecoderOutput, QueryGroup, Step, Targets


class HybridGroup(nn.Module):
    """`number` ranks after the original queries'; neither of the two sees the other."""

    def __init__(self, config: HybridConfig, *, name: str, objective: Objective):
        super().__init__()
        self.config, self.name, self.objective = config, name, objective

    def queries(self, step: Step) -> QueryGroup:
        """The next ranks."""
        return step.proposals.take(self.config.number)

    @asking
    def assign(self, output: DecoderOutput, step: Step) -> Inquiry[Tensor]:
        """[N, B, Q] ground truth of each query or BACKGROUND: as if every object were there `repeats` times."""
        targets, repeats = step.batch.targets, self.config.repeats
        # The copies of an object stand side by side, so that padding rows stay behind all of them.
        boxes, labels = (values.repeat_interleave(repeats, 1) for values in (targets.boxes_xyxy, targets.labels))
        copies = Targets(boxes, labels, counts=tuple(repeats * count for count in targets.host_counts()))
        chosen = yield from self.objective.inquire(output.logits, output.boxes_cxcywh, copies, step.batch.valid_hw)
        return (chosen // repeats).where(chosen >= 0, BACKGROUND)

    @asking
    def losses(self, output: DecoderOutput, queries: QueryGroup, step: Step) -> Inquiry[dict[str, Tensor]]:
        """`<name>.<layer>/<term>`; the sums are divided by all copies of the objects, also those that no query has."""
        targets = step.batch.targets
        losses = self.objective.losses(
            output.logits,
            output.boxes_cxcywh,
            (yield from inquiry(self.assign, output, step)),
            targets,
            step.batch.valid_hw,
            num_objects=self.config.repeats * targets.valid.sum(),
        )
        return by_layer(self.name, losses)

    def loss_weights(self) -> dict[str, float]:
        """`weight` times the detector's `loss_weights`, in each layer."""
        return layer_weights(self.name, self.objective.config, self.config.weight)
