"""H-Deformable-DETR: matching and losses of one-to-one and one-to-many queries on given predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

from model.assign.configs import HungarianConfig
from model.assign.hungarian import Hungarian
from model.attention import Visibility
from model.backbones.configs import ResNetConfig
from model.classification.configs import FocalConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.criterion import TERMS, Objective, set_losses
from model.detector import Detector
from model.groups.configs import HybridConfig
from model.groups.hybrid import HybridGroup
from model.losses import Focal
from model.official import convert
from model.types import Batch, DecoderOutput, Step, Targets
from tests.golden_topics.case import EXACT, FLOAT32, GRADIENT, GRADIENT_NORM, PIXELS, Case, Comparison, Tolerance, leaf
from tests.support.visibility import seen_by

OFFICIAL = {"classification": "ce", "l1": "bbox", "giou": "giou"}
WEIGHTS = LossWeights()
NUM_CLASSES, FEATURES = 5, Tolerance(1e-4, 1e-4)  # of the whole models
# Measures of how many queries are right, which nobody learns by; sizes that other arrays hold; states
# that logits and boxes are computed from.
UNREAD = ("loss.class_error*", "loss.cardinality_error*", "gt_cxcywh_img*", "decout_*")


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


def e2e_h(case: Case) -> Iterator[Comparison]:
    """The whole model from the neck's output on: encoder, proposals, decoder, losses, gradients, inference."""
    detector, levels = detector_of(case), [leaf(level) for level in case.sequence("neck_level")]
    targets = Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))
    height, width = case["batch_hw"].tolist()
    batch = Batch(torch.zeros(2, 3, height, width), case["valid_hw"], targets, (0, 1))
    with given_levels(detector, levels):
        with torch.no_grad():
            yield from _decoded(case, detector, batch)
            yield from _detected(case, detector, batch)
        total, losses = detector(batch)
    for name, official in _loss_names(detector).items():
        factor = detector.config.groups[0].weight if name.startswith("hybrid") else 1.0
        yield Comparison(name, factor * losses[name], case[f"loss.{official}"], FLOAT32)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    total.backward()
    official = case.under("gradnorm.")
    for index, level in enumerate(levels):
        assert level.grad is not None
        norm = official.pop(f"neck_level{index}")
        yield Comparison(f"gradnorm neck_level{index}", level.grad.double().norm(), norm, GRADIENT_NORM)
    norms = convert(official, ())
    trained = {n: p for n, p in detector.named_parameters() if not n.startswith(("backbone.", "neck."))}
    assert trained.keys() == norms.keys()
    for name, parameter in trained.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        yield Comparison(f"gradnorm {name}", gradient.double().norm(), norms[name], GRADIENT_NORM)


def detector_of(case: Case) -> Detector:
    """Of the file's size, with its parameters."""
    first, second = (int(case[f"num_queries_{own}"]) for own in ("one2one", "one2many"))
    settings = {"repeats": int(case["k_one2many"]), "weight": float(case["lambda_one2many"])}
    parameters = convert(case.under("param."), ())
    refined = "decoder.box_branches.1.0.weight" in parameters
    config = DetectorConfig(
        ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=8),
        TransformerConfig(32, num_encoder_layers=2, num_decoder_layers=2, feedforward_channels=64),
        num_queries=first,
        two_stage="queries.token_proj.weight" in parameters,
        box_refinement=refined,
        mixed_selection="queries.content.weight" in parameters,
        look_forward_twice=refined and _looks_forward(case),
        compatibility="official",
        groups=(HybridConfig(number=second, **settings),),
    )
    detector = Detector(config, NUM_CLASSES).eval()
    left = detector.load_state_dict(parameters, strict=False)
    assert not left.unexpected_keys and all(name.startswith(("backbone.", "neck.")) for name in left.missing_keys)
    return detector


def _looks_forward(case: Case) -> bool:
    """The files do not say it; without, and without mixed selection, is one of the published forms."""
    return "param.query_head.query_embedding.weight" in case


@contextmanager
def given_levels(detector: Detector, levels: list[Tensor]) -> Iterator[None]:
    """The file's maps in place of the backbone's and the neck's."""
    with (
        mock.patch.object(detector.backbone, "forward", lambda images, mask_at: []),
        mock.patch.object(detector.neck, "forward", lambda stages, mask_at: levels),
    ):
        yield


def _decoded(case: Case, detector: Detector, batch: Batch) -> Iterator[Comparison]:
    memory, mask_at = detector.encode(batch)
    for index, (own, official) in enumerate(zip(memory.maps(), case.sequence("encoder_level"), strict=True)):
        yield Comparison(f"encoder_level{index}", own, official, FEATURES)
    yield Comparison("valid_ratios_wh", memory.ratios, case["valid_ratios_wh"], FLOAT32)
    proposals = detector.queries(memory, detector.num_proposals)
    step = Step(batch, memory, proposals, mask_at)
    if proposals.logits is not None:
        yield Comparison("enc_cls_class0", proposals.logits[..., 0], case["enc_cls_class0"], FEATURES)
        yield Comparison("enc_topk_inds", proposals.chosen, case["enc_topk_inds"], EXACT)
        chosen = proposals.boxes_cxcywh.gather(1, proposals.chosen[..., None].expand(-1, -1, 4))
        yield Comparison("enc_topk_boxes", chosen, case["enc_topk_boxes"], FEATURES)
    groups = [group.queries(step) for group in detector.query_groups()]
    size = case["decin_reference"].shape[-1]
    for name, values in (
        ("decin_query", [group.content for group in groups]),
        ("decin_query_pos", [group.position for group in groups]),
        ("decin_reference", [group.reference_cxcywh[..., :size] for group in groups]),
    ):
        yield Comparison(name, torch.cat(values, 1), case[name], FEATURES)
    seen = seen_by(Visibility.of(groups), 1, detector.num_proposals)[0]
    yield Comparison("self_attn_mask", ~seen, case["self_attn_mask"], EXACT)
    output = detector.decoder(groups, memory)
    yield Comparison("dec_cls_scores", output.logits, case["dec_cls_scores"], FEATURES)
    yield Comparison("dec_bbox_preds", output.boxes_cxcywh, case["dec_bbox_preds"], FEATURES)
    one, many = output.split([group.content.shape[1] for group in groups])
    found = detector.assign(one.logits, one.boxes_cxcywh, batch.targets, batch.valid_hw)
    copies = detector.groups["hybrid"].assign(many, step)
    for layer in range(2):
        for name, own in (("one2one", found), ("one2many", copies)):
            yield Comparison(name, own[layer], _found(case, f"{name}_layer{layer}"), EXACT)
    if proposals.logits is not None:
        binary = Targets(batch.targets.boxes_xyxy, batch.targets.labels.clamp(max=0))
        own = detector.assign(proposals.logits[None], proposals.boxes_cxcywh[None], binary, batch.valid_hw)
        yield Comparison("match_enc", own[0], _found(case, "enc"), EXACT)


def _detected(case: Case, detector: Detector, batch: Batch) -> Iterator[Comparison]:
    """Inference has the original queries alone; the official boxes are not clipped."""
    for image, found in enumerate(detector.detect(batch, 20)):
        rows, (height, width) = case[f"det_bboxes_img{image}"], case["valid_hw"][image].tolist()
        clipped = rows[:, :4].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        yield Comparison(f"scores {image}", found.scores, rows[:, 4], FLOAT32)
        yield Comparison(f"boxes {image}", found.boxes_xyxy, clipped, PIXELS)
        yield Comparison(f"labels {image}", found.labels, case[f"det_labels_img{image}"], EXACT)


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
