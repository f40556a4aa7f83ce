"""H-Deformable-DETR: matching and losses of one-to-one and one-to-many queries on given predictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from model.assign.configs import HungarianConfig
from model.assign.hungarian import Hungarian
from model.classification.configs import FocalConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.criterion import TERMS, Objective, set_losses
from model.groups.configs import HybridConfig
from model.groups.hybrid import HybridGroup
from model.losses import Focal
from model.types import Batch, DecoderOutput, Step, Targets
from tests.golden_topics.case import EXACT, FLOAT32, GRADIENT, Case, Comparison, leaf

OFFICIAL = {"classification": "ce", "l1": "bbox", "giou": "giou"}
WEIGHTS = LossWeights()
# Measures of how many queries are right, which nobody learns by; sizes that other arrays hold.
UNREAD = ("loss.class_error*", "loss.cardinality_error*", "gt_cxcywh_img*")


def _found(case: Case, name: str) -> Tensor:
    """[B, Q] of the official matches `match_<name>_img<i>`."""
    return torch.stack([case[f"match_{name}_img{image}"] for image in range(2)])


def h_matching(case: Case) -> Iterator[Comparison]:
    """One-to-one losses count all objects, one-to-many ones all copies; each layer is matched by itself."""
    number = int(case["num_classes"])
    targets = Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))
    batch = Batch(torch.zeros(2, 3, 1, 1), case["img_hw"], targets)
    step = Step(batch, cast(Any, None), cast(Any, None), lambda stride: None)
    inputs = {f"{own}_{what}": leaf(case[f"{own}_{what}"]) for own in _kinds(case) for what in ("logits", "boxes")}
    config = DetectorConfig(transformer=TransformerConfig(num_decoder_layers=2))
    objective = Objective(config, number, Focal(FocalConfig()), Hungarian(HungarianConfig(), weights=WEIGHTS))
    settings = {"repeats": int(case["k_one2many"]), "weight": float(case["lambda_one2many"])}
    group = HybridGroup(
        HybridConfig(number=inputs["one2many_logits"].shape[2], **settings), name="h", objective=objective
    )
    many = DecoderOutput(inputs["one2many_logits"], inputs["one2many_boxes"])
    total = torch.zeros(())
    losses, weights = group.losses(many, cast(Any, None), step), group.loss_weights()
    for layer, suffix in ((0, "_0_one2many"), (1, "_one2many")):
        yield Comparison(
            f"many {layer}", group.assign(many, step)[layer], _found(case, f"one2many_layer{layer}"), EXACT
        )
        for term in TERMS:
            loss = losses[f"h.{layer}/{term}"]
            official = group.config.weight * loss  # their one-to-many losses hold lambda
            yield Comparison(f"{term}{suffix}", official, case[f"loss.loss_{OFFICIAL[term]}{suffix}"], FLOAT32)
            total = total + weights[f"h.{layer}/{term}"] * loss
    for own in (own for own in _kinds(case) if own != "one2many"):
        logits, boxes = inputs[f"{own}_logits"], inputs[f"{own}_boxes"]
        wanted = targets if own == "one2one" else Targets(targets.boxes_xyxy, targets.labels.clamp(max=0))
        gt_index = objective.assign(logits, boxes, wanted, batch.valid_hw)
        found = set_losses(
            logits,
            boxes,
            gt_index,
            wanted,
            batch.valid_hw,
            classification=objective.classification,
            num_objects=targets.valid.sum(),
        )
        names = ("one2one_layer0", "one2one_layer1") if own == "one2one" else ("enc",)
        for layer, (name, suffix) in enumerate(zip(names, ("_0", "") if own == "one2one" else ("_enc",), strict=True)):
            yield Comparison(name, gt_index[layer], _found(case, name), EXACT)
            for term in TERMS:
                loss = found[term][layer]
                yield Comparison(f"{term}{suffix}", loss, case[f"loss.loss_{OFFICIAL[term]}{suffix}"], FLOAT32)
                total = total + getattr(WEIGHTS, term) * loss
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    for name, gradient in zip(inputs, torch.autograd.grad(total, list(inputs.values())), strict=True):
        yield Comparison(f"grad_{name}", gradient, case[f"grad_{name}"], GRADIENT)


def _kinds(case: Case) -> tuple[str, ...]:
    """What the file has predictions of."""
    return ("one2one", "one2many", *(("enc",) if "enc_logits" in case else ()))
