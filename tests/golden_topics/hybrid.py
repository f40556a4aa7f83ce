"""H-Deformable-DETR: matching and losses of one-to-one and one-to-many queries on given predictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch

from model.assign.configs import HungarianConfig
from model.assign.hungarian import Hungarian
from model.backbones.configs import ResNetConfig
from model.classification.configs import FocalConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.criterion import TERMS, Objective, set_losses
from model.detector import Detector
from model.groups.configs import HybridConfig
from model.groups.hybrid import HybridGroup
from model.losses import Focal
from model.types import Batch, DecoderOutput, Step, Targets
from tests.golden_topics.case import EXACT, FLOAT32, GRADIENT, Case, Comparison, leaf
from tests.golden_topics.from_levels import (
    OFFICIAL,
    batch_of,
    compare_deformable,
    compare_gradients,
    compare_inference,
    found_in,
    given_levels,
    load,
    targets_of,
)
from tests.golden_topics.official import of_co_detr

WEIGHTS = LossWeights()
NUM_CLASSES = 5  # of the whole models


def h_matching(case: Case) -> Iterator[Comparison]:
    """One-to-one losses count all objects, one-to-many ones all copies; each layer is matched by itself."""
    number = int(case["num_classes"])
    targets = targets_of(case)
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
            f"many {layer}", group.assign(many, step)[layer], found_in(case, f"one2many_layer{layer}"), EXACT
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
            yield Comparison(name, gt_index[layer], found_in(case, name), EXACT)
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


def e2e_h(case: Case) -> Iterator[Comparison]:
    """The whole model from the neck's output on: encoder, proposals, decoder, losses, gradients, inference."""
    detector, levels = detector_of(case), [leaf(level) for level in case.sequence("neck_level")]
    batch = batch_of(case)
    with given_levels(detector, levels):
        with torch.no_grad():
            step, _, (one, many) = yield from compare_deformable(case, detector, batch)
            yield from compare_inference(case, detector, batch, one)
        total, losses = detector(batch)
    found = detector.assign(one.logits, one.boxes_cxcywh, batch.targets, batch.valid_hw)
    copies = detector.groups["hybrid"].assign(many, step)
    for layer in range(2):
        for name, own in (("one2one", found), ("one2many", copies)):
            yield Comparison(name, own[layer], found_in(case, f"{name}_layer{layer}"), EXACT)
    for name, official in _loss_names(detector).items():
        factor = detector.config.groups[0].weight if name.startswith("hybrid") else 1.0
        yield Comparison(name, factor * losses[name], case[f"loss.{official}"], FLOAT32)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    total.backward()
    named = {f"neck_level{index}": level for index, level in enumerate(levels)}
    yield from compare_gradients(detector, named, of_co_detr(case.under("gradnorm.")))


def detector_of(case: Case) -> Detector:
    """Of the file's size, with its parameters."""
    first, second = (int(case[f"num_queries_{own}"]) for own in ("one2one", "one2many"))
    settings = {"repeats": int(case["k_one2many"]), "weight": float(case["lambda_one2many"])}
    return deformable_of(case, first, HybridConfig(number=second, **settings))


def deformable_of(case: Case, num_queries: int, *groups: Any) -> Detector:
    """A detector of H-DETR's repository with the file's parameters and these groups beside the original queries."""
    parameters = of_co_detr(case.under("param."))
    refined = "decoder.box_branches.1.0.weight" in parameters
    config = DetectorConfig(
        ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=8),
        TransformerConfig(32, num_encoder_layers=2, num_decoder_layers=2, feedforward_channels=64),
        num_queries=num_queries,
        two_stage="queries.token_proj.weight" in parameters,
        box_refinement=refined,
        mixed_selection="queries.content.weight" in parameters,
        look_forward_twice=refined and _looks_forward(case),
        compatibility="official",
        groups=groups,
        loss_normaliser="objects",
    )
    return load(Detector(config, NUM_CLASSES), parameters)


def _looks_forward(case: Case) -> bool:
    """The files do not say it; without, and without mixed selection, is one of the published forms."""
    return "param.query_head.query_embedding.weight" in case


def _loss_names(detector: Detector) -> dict[str, str]:
    """Our name → the official one."""
    names = {}
    for term, official in OFFICIAL.items():
        for layer, suffix in ((0, "_0"), (1, "")):
            names[f"decoder.{layer}/{term}"] = f"loss_{official}{suffix}"
            names[f"hybrid.{layer}/{term}"] = f"loss_{official}{suffix}_one2many"
        if detector.config.two_stage:
            names[f"encoder/{term}"] = f"loss_{official}_enc"
    return names
