"""The training objective (paper Eq. 5): the one place where a loss meets its weight.

    L = sum over decoder layers l of ( L_dec_l + lambda1 * sum over heads i of L_dec_i_l + lambda2 * L_enc )

Names: `decoder.<l>/<term>`, `encoder/<term>` (two-stage proposals), `queries.<head>.<l>/<term>` and `<head>/<term>`.
A loss without a weight, or a weight without a loss, is an error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.boxes import cxcywh_to_xyxy, size_whwh
from model.config import DetectorConfig, LossWeights
from model.decoder import DecoderOutput
from model.losses import AVERAGE_EPSILON, giou_loss, l1_loss, sigmoid_focal_loss
from model.share import total
from model.types import Targets

TERMS = ("classification", "l1", "giou")


def set_losses(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    gt_index: Tensor,
    targets: Targets,
    valid_hw: Tensor,
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Focal, L1 and GIoU losses of N layers of queries with an assigned ground truth each.

    Args:
        logits: [N, B, Q, C].
        boxes_cxcywh: [N, B, Q, 4] normalised.
        gt_index: [N, B, Q], 0-based ground truth or BACKGROUND.
        targets: ground truth of the batch.
        valid_hw: [B, 2] pixels.
        weight: [B, Q], 0 takes a query out; None: all 1.

    Returns:
        `classification`, `l1`, `giou`: [N] each, summed over queries and divided by the layer's number of positives
        in the whole batch (at least 1), unweighted.
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
    giou = giou_loss(predicted_pixels, torch.where(keep, target_pixels, predicted_pixels.detach())) * matched
    l1 = l1_loss(boxes_cxcywh, target_boxes).sum(-1) * matched
    focal = sigmoid_focal_loss(logits, labels).sum(-1)
    if weight is not None:
        focal, l1, giou = focal * weight, l1 * weight, giou * weight
    num_positives = total(matched.sum((1, 2)), minimum=1).to(logits.dtype)
    return {
        "classification": _layer_mean(focal, num_positives),
        "l1": _layer_mean(l1, num_positives),
        "giou": _layer_mean(giou, num_positives),
    }


def _layer_mean(loss: Tensor, num_positives: Tensor) -> Tensor:
    """[N, B, Q] summed over queries, over the official denominator: [N]."""
    return loss.flatten(1).sum(1) / (num_positives + AVERAGE_EPSILON)


def by_layer(prefix: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """`{"l1": [N]}` → `{"<prefix>.0/l1": scalar, …}`."""
    return {f"{prefix}.{layer}/{term}": value for term, values in losses.items() for layer, value in enumerate(values)}


def loss_weights(config: DetectorConfig, head_weights: dict[str, dict[str, float]]) -> dict[str, float]:
    """The weight of every loss that this configuration has.

    Args:
        config: of the detector.
        head_weights: a head's instance name → its own loss names and weights.
    """
    decoder = _terms(config.loss_weights)
    num_layers = config.transformer.num_decoder_layers
    weights = {f"decoder.{layer}/{term}": w for layer in range(num_layers) for term, w in decoder.items()}
    if config.two_stage:
        weights |= {f"encoder/{term}": w for term, w in decoder.items()}
    for head, own in head_weights.items():
        if config.positive_queries:
            weights |= {
                f"queries.{head}.{layer}/{term}": config.lambda1 * w
                for layer in range(num_layers)
                for term, w in decoder.items()
            }
        if config.auxiliary_loss:  # paper Eq. 5 counts L_enc once per decoder layer
            weights |= {f"{head}/{term}": config.lambda2 * num_layers * w for term, w in own.items()}
    return weights


def _terms(weights: LossWeights) -> dict[str, float]:
    return {term: getattr(weights, term) for term in TERMS}


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
    return (values * values.new_tensor([weights[name] for name in losses])).sum()


def query_losses(
    output: DecoderOutput, gt_index: Tensor, targets: Targets, valid_hw: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    """Losses of customised queries [B, P] that keep their assigned ground truth through all layers (no matching)."""
    expanded = gt_index.expand(len(output.logits), -1, -1)
    return set_losses(output.logits, output.boxes_cxcywh, expanded, targets, valid_hw, weight)
