"""The training objective (paper Eq. 5): the one place where a loss meets its weight.

    L = sum over decoder layers l of ( L_dec_l + lambda1 * sum over heads i of L_dec_i_l + lambda2 * L_enc )
      + what the proposals learn at the encoder + what extra query groups learn

Names: `decoder.<l>/<term>` (L_dec), `queries.<head>.<l>/<term>` (L_dec_i), `<head>/<term>` (L_enc, the heads' at the
encoder), `encoder/<term>` (proposals) and `<group>.<l>/<term>`.
A loss without a weight, or a weight without a loss, is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.boxes import added_area, cxcywh_to_xyxy, iou_aligned, size_whwh
from model.config import DetectorConfig, LossWeights
from model.constants import constant
from model.inquiry import Inquiry, asking, inquiry
from model.losses import AVERAGE_EPSILON, giou_loss, l1_loss
from model.share import total
from model.types import Targets

TERMS = ("classification", "l1", "giou")
LEAST_UNION = 1e-6  # of the image, in the IoU that is a target of the official quality focal loss


class Classification(Protocol):
    """The contract of `model/classification`."""

    needs_iou: bool

    def __call__(self, logits: Tensor, labels: Tensor, iou: Tensor | None) -> Tensor:
        """[N, B, Q, C]."""
        ...


class Assigner(Protocol):
    """The contract of `model/assign`."""

    def __call__(
        self, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets, valid_hw: Tensor, excluded: Tensor | None = None
    ) -> Tensor:
        """[N, B, Q]."""
        ...


@dataclass(frozen=True)
class Objective:
    """The rules that query groups and proposals learn by."""

    config: DetectorConfig
    num_classes: int
    classification: Classification
    assign: Assigner

    def losses(
        self,
        logits: Tensor,
        boxes_cxcywh: Tensor,
        gt_index: Tensor,
        targets: Targets,
        valid_hw: Tensor,
        *,
        weight: Tensor | None = None,
        num_objects: Tensor | None = None,
        minimum: float = 1.0,
    ) -> dict[str, Tensor]:
        """`set_losses` with this detector's classification loss and epsilons."""
        return set_losses(
            logits,
            boxes_cxcywh,
            gt_index,
            targets,
            valid_hw,
            classification=self.classification,
            weight=weight,
            num_objects=num_objects,
            minimum=minimum,
            giou_epsilon=self.config.loss_weights.giou_epsilon,
            iou_epsilon=LEAST_UNION if self.config.official else 0.0,
        )

    def num_objects(self, targets: Targets, blocks: int = 1) -> Tensor | None:
        """The divisor of the losses of queries that are matched one-to-one in each block; see `set_losses`."""
        return blocks * targets.valid.sum() if self.config.loss_normaliser == "objects" else None

    def inquire(
        self, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets, valid_hw: Tensor, excluded: Tensor | None = None
    ) -> Inquiry[Tensor]:
        """Ask the host as `assign` does."""
        return inquiry(self.assign.__call__, logits, boxes_cxcywh, targets, valid_hw, excluded)

    @asking
    def assign_blocks(
        self,
        logits: Tensor,
        boxes_cxcywh: Tensor,
        targets: Targets,
        valid_hw: Tensor,
        excluded: Tensor | None = None,
        *,
        blocks: int,
    ) -> Inquiry[Tensor]:
        """As `assign`, of queries in so many equally long blocks: each is assigned as if it were alone, all at once."""
        layers, images, number, _ = logits.shape
        apart = (images * blocks, number // blocks)  # each block is an image of its own
        boxes, labels = (values.repeat_interleave(blocks, 0) for values in (targets.boxes_xyxy, targets.labels))
        counts = tuple(count for count in targets.host_counts() for _ in range(blocks))
        gt_index = yield from self.inquire(
            logits.reshape(layers, *apart, logits.shape[-1]),
            boxes_cxcywh.reshape(layers, *apart, 4),
            Targets(boxes, labels, counts=counts),
            valid_hw.repeat_interleave(blocks, 0),
            None if excluded is None else excluded.reshape(apart),
        )
        return gt_index.view(layers, images, number)


class HasLosses(Protocol):
    """A query group, or proposals."""

    def loss_weights(self) -> dict[str, float]:
        """The weight of each of its losses."""
        ...


def set_losses(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    gt_index: Tensor,
    targets: Targets,
    valid_hw: Tensor,
    *,
    classification: Classification,
    weight: Tensor | None = None,
    num_objects: Tensor | None = None,
    minimum: float = 1.0,
    giou_epsilon: float = 0.0,
    iou_epsilon: float = 0.0,
) -> dict[str, Tensor]:
    """Classification, L1 and GIoU losses of N layers of queries with an assigned ground truth each.

    Args:
        logits: [N, B, Q, C].
        boxes_cxcywh: [N, B, Q, 4] normalised.
        gt_index: [N, B, Q], 0-based ground truth or BACKGROUND.
        targets: ground truth of the batch.
        valid_hw: [B, 2] pixels.
        classification: the loss of this name.
        weight: [B, Q], 0 takes a query out; None: all 1.
        num_objects: what the sums are divided by, of the images at hand; None: the queries with a ground truth, of
            each layer.
        minimum: of what they are divided by, in the whole batch.
        giou_epsilon: area, as a share of the image, that GIoU adds to union and enclosing area.
        iou_epsilon: area, as a share of the image, below which a union counts as it in the IoU of `classification`.

    Returns:
        `classification`, `l1`, `giou`: [N] each, summed over queries and divided by the number of positives or
        objects in the whole batch (at least `minimum`), unweighted.
    """
    matched = gt_index >= 0
    index = gt_index.clamp(min=0)
    labels = targets.labels.expand(len(logits), -1, -1).gather(2, index)
    labels = labels.masked_fill(~matched, -1)
    whwh = size_whwh(valid_hw).to(boxes_cxcywh)[:, None]  # [B, 1, 4]
    target_pixels = targets.boxes_xyxy.expand(len(logits), -1, -1, -1).gather(2, index[..., None].expand(-1, -1, -1, 4))
    target_boxes = targets.boxes_cxcywh(valid_hw).expand(len(logits), -1, -1, -1)
    target_boxes = target_boxes.gather(2, index[..., None].expand(-1, -1, -1, 4))
    # A query without a ground truth predicts itself: its box losses and their gradients are exactly zero.
    predicted_pixels = cxcywh_to_xyxy(boxes_cxcywh) * whwh
    keep = matched[..., None]
    nearest = torch.where(keep, target_pixels, predicted_pixels.detach())
    more = added_area(giou_epsilon, valid_hw[:, None].to(boxes_cxcywh))  # [B, 1]
    giou = giou_loss(predicted_pixels, nearest, more) * matched
    l1 = l1_loss(boxes_cxcywh, target_boxes).sum(-1) * matched
    least = added_area(iou_epsilon, valid_hw[:, None].to(boxes_cxcywh))  # [B, 1]
    iou = iou_aligned(predicted_pixels.detach(), target_pixels, least) if classification.needs_iou else None
    classified = classification(logits, labels, iou).sum(-1)
    if weight is not None:
        classified, l1, giou = classified * weight, l1 * weight, giou * weight
    own = matched.sum((1, 2)) if num_objects is None else num_objects.expand(len(logits))
    num_positives = total(own, minimum=minimum).to(logits.dtype)
    return {
        "classification": _layer_mean(classified, num_positives),
        "l1": _layer_mean(l1, num_positives),
        "giou": _layer_mean(giou, num_positives),
    }


def _layer_mean(loss: Tensor, num_positives: Tensor) -> Tensor:
    """[N, B, Q] summed over queries, over the official denominator: [N]."""
    return loss.flatten(1).sum(1) / (num_positives + AVERAGE_EPSILON)


def by_layer(prefix: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """`{"l1": [N]}` → `{"<prefix>.0/l1": scalar, …}`."""
    return {f"{prefix}.{layer}/{term}": value for term, values in losses.items() for layer, value in enumerate(values)}


def term_weights(weights: LossWeights) -> dict[str, float]:
    """The weight of each of `TERMS`."""
    return {term: getattr(weights, term) for term in TERMS}


def layer_weights(prefix: str, config: DetectorConfig, factor: float = 1.0) -> dict[str, float]:
    """`factor` times the detector's `loss_weights` for each decoder layer, by the names of `by_layer`."""
    layers = range(config.transformer.num_decoder_layers)
    terms = term_weights(config.loss_weights)
    return {f"{prefix}.{layer}/{term}": factor * weight for layer in layers for term, weight in terms.items()}


def loss_weights(
    config: DetectorConfig, parts: Iterable[HasLosses], head_weights: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The weight of every loss that this configuration has.

    Args:
        config: of the detector.
        parts: its query groups and its proposals.
        head_weights: a head's instance name → its own loss names and weights.

    Raises:
        ValueError: two losses have one name.
    """
    found = [pair for part in parts for pair in part.loss_weights().items()]
    if config.auxiliary_loss:  # paper Eq. 5 counts L_enc once per decoder layer
        factor = config.lambda2 * config.transformer.num_decoder_layers
        found += [(f"{head}/{term}", factor * w) for head, own in head_weights.items() for term, w in own.items()]
    if twice := [name for name, number in Counter(name for name, _ in found).items() if number > 1]:
        raise ValueError(f"criterion: two losses are called {twice[0]}; each needs a name of its own")
    return dict(found)


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Weighted sum of all losses.

    Raises:
        ValueError: a loss has no weight, or a weight has no loss; names both sides.
    """
    if losses.keys() != weights.keys():
        raise ValueError(
            f"criterion: losses without a weight {sorted(losses.keys() - weights.keys())}, "
            f"weights without a loss {sorted(weights.keys() - losses.keys())}"
        )
    values = torch.stack([losses[name].float() for name in losses])
    return (values * constant([weights[name] for name in losses], values, values.dtype)).sum()
