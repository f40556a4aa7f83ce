"""Auxiliary heads with the official weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.heads.atss import ATSSHead
from model.heads.base import AuxiliaryHead
from model.heads.fcos import FCOSHead
from model.heads.gfl import GFLHead
from model.heads.paa import PAAHead
from model.heads.retinanet import RetinaNetHead
from model.types import Positives, Pyramid, Targets
from tests.golden_topics.case import EXACT, FLOAT32, GRADIENT, GRADIENT_NORM, PIXELS, Case, Comparison, leaf

STRIDES, NUM_CLASSES = (8, 16, 32, 64, 128), 5
TOWERS = {
    "cls_convs.0.conv": "class_tower.0.conv",
    "cls_convs.0.gn": "class_tower.0.norm",
    "reg_convs.0.conv": "box_tower.0.conv",
    "reg_convs.0.gn": "box_tower.0.norm",
}


@dataclass(frozen=True)
class HeadMap:
    """How one official head translates."""

    head_class: type[AuxiliaryHead]
    modules: Mapping[str, str]  # official name → ours, beside the towers'
    losses: Mapping[str, str]  # official name → ours
    outputs: Mapping[str, str]  # official name → field of our predictions
    settings: Mapping[str, object] = field(default_factory=lambda: {"num_groups": 4})
    weight_factor: float = 1.0  # contained in the official loss weights


ATSS = HeadMap(
    ATSSHead,
    {"atss_cls": "classification", "atss_reg": "box", "atss_centerness": "centerness"},
    {"loss_cls": "classification", "loss_bbox": "boxes", "loss_centerness": "centerness"},
    {"out_cls": "logits", "out_reg": "deltas", "out_extra": "centerness"},
    weight_factor=12,  # 6 layers x lambda 2
)
RETINANET = HeadMap(
    RetinaNetHead,
    {"retina_cls": "classification", "retina_reg": "box"},
    {"loss_cls": "classification", "loss_bbox": "boxes"},
    {"out_cls": "logits", "out_reg": "deltas"},
    {"norm": "none", "box_loss": "l1", "box_weight": 1.0},
)
FCOS = HeadMap(
    FCOSHead,
    {"conv_cls": "classification", "conv_reg": "box", "conv_centerness": "centerness"},
    {"loss_cls": "classification", "loss_bbox": "boxes", "loss_centerness": "centerness"},
    {"out_cls": "logits", "out_reg": "distances", "out_extra": "centerness"},
    {"num_groups": 4, "center_radius": None, "distance": "exp", "centerness_from": "class", "box_loss": "iou"},
)
FCOS_CENTER = HeadMap(FCOSHead, FCOS.modules, FCOS.losses, FCOS.outputs)
PAA = HeadMap(
    PAAHead,
    {"atss_cls": "classification", "atss_reg": "box", "atss_centerness": "iou"},
    {"loss_cls": "classification", "loss_bbox": "boxes", "loss_iou": "iou"},
    {"out_cls": "logits", "out_reg": "deltas", "out_extra": "iou"},
)
GFL = HeadMap(
    GFLHead,
    {"gfl_cls": "classification", "gfl_reg": "box"},
    {"loss_cls": "classification", "loss_bbox": "boxes", "loss_dfl": "distribution"},
    {"out_cls": "logits", "out_reg": "bins"},
)


def renamed(official: dict[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    """One value per parameter under our names; the scales of the levels are one vector here."""
    names = TOWERS | dict(modules)
    values = {
        f"{names[module]}.{kind}": value
        for (module, kind), value in ((name.rsplit(".", 1), value) for name, value in official.items())
        if not module.startswith("scales.")
    }
    if "scales.0.scale" in official:
        values["level_scales"] = torch.stack([official[f"scales.{level}.scale"] for level in range(len(STRIDES))])
    return values


def retinanet(case: Case) -> Iterator[Comparison]:
    """Towers without norm and L1 on deltas."""
    yield from _compare(case, RETINANET)


def fcos(case: Case) -> Iterator[Comparison]:
    """The first FCOS."""
    yield from _compare(case, FCOS)


def fcos_center(case: Case) -> Iterator[Comparison]:
    """The improved FCOS, our defaults; its distances are in strides, and its normed convolutions have a bias."""
    yield from _compare(case, FCOS_CENTER)


def paa(case: Case) -> Iterator[Comparison]:
    """With the mixture in the loop."""
    yield from _compare(case, PAA)


def gfl(case: Case) -> Iterator[Comparison]:
    """Its state dict holds the numbers of the bins."""
    yield Comparison("bins", torch.arange(17.0), case["param.integral.project"], EXACT)
    yield from _compare(case, GFL)


def co_atss(case: Case) -> Iterator[Comparison]:
    """`CoATSSHead`, the only one that also gives positives."""
    yield from _compare(case, ATSS)
    head, pyramid, targets = _load(case, ATSS)
    positives = head.train_step(pyramid, targets, with_losses=False)[1]
    for image in range(2):
        yield from _positives(case, positives, targets, image)


def _load(case: Case, mapped: HeadMap) -> tuple[AuxiliaryHead, Pyramid, Targets]:
    config = mapped.head_class.Config(**mapped.settings)
    head = mapped.head_class(config, channels=16, num_classes=NUM_CLASSES, strides=STRIDES)
    official = {name: value for name, value in case.under("param.").items() if name != "integral.project"}
    state = renamed(official, mapped.modules)
    for tower in ("class_tower.0", "box_tower.0"):
        conv = head.get_submodule(f"{tower}.conv")
        if f"{tower}.conv.bias" in state and conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(16))
    head.load_state_dict(state)
    levels = tuple(leaf(level) for level in case.sequence("feat_level"))
    pyramid = Pyramid(levels, STRIDES, case["valid_hw"], (None,) * len(STRIDES))
    targets = Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))
    return head, pyramid, targets


def _compare(case: Case, mapped: HeadMap) -> Iterator[Comparison]:
    head, pyramid, targets = _load(case, mapped)
    losses, _ = head.train_step(pyramid, targets, with_losses=True)
    weights = head.loss_weights()
    weighted = {name: mapped.weight_factor * weights[name] * value for name, value in losses.items()}
    total = torch.stack(list(weighted.values())).sum()
    total.backward()

    yield from _outputs(case, mapped, head, pyramid)
    for official, name in mapped.losses.items():
        yield Comparison(official, weighted[name], case[f"loss.{official}"].sum(), FLOAT32)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    for index, level in enumerate(pyramid.levels):
        assert level.grad is not None
        yield Comparison(f"grad_feat_level{index}", level.grad, case[f"grad_feat_level{index}"], GRADIENT)
    norms = renamed(case.under("gradnorm."), mapped.modules)
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad.double()
        norm = gradient.abs() if name == "level_scales" else gradient.norm()
        yield Comparison(f"gradnorm {name}", norm, norms[name], GRADIENT_NORM)
    for image, detections in enumerate(head.detect(pyramid)):
        official_boxes = case[f"det_bboxes_img{image}"]
        yield Comparison(f"det_bboxes_img{image}", detections.boxes_xyxy, official_boxes[:, :4], PIXELS)
        yield Comparison(f"det scores {image}", detections.scores, official_boxes[:, 4], FLOAT32)
        yield Comparison(f"det_labels_img{image}", detections.labels, case[f"det_labels_img{image}"], EXACT)


def _outputs(case: Case, mapped: HeadMap, head: AuxiliaryHead, pyramid: Pyramid) -> Iterator[Comparison]:
    positions = [height * width for height, width in pyramid.sizes]
    predictions = head(pyramid)
    for official, name in mapped.outputs.items():
        values = getattr(predictions, name)
        per_location = values.shape[1] // sum(positions)
        for level, value in enumerate(values.split([count * per_location for count in positions], 1)):
            if f"{official}_level{level}" in case:  # the finest two are not stored
                expected = case[f"{official}_level{level}"].flatten(2).transpose(1, 2)
                if mapped is FCOS_CENTER and name == "distances":
                    expected = expected * STRIDES[level]
                yield Comparison(f"{official}_level{level}", value, expected, FLOAT32)


def _positives(case: Case, positives: Positives, targets: Targets, image: int) -> Iterator[Comparison]:
    gt_index = positives.gt_index[image]
    positive = gt_index >= 0
    labels = targets.labels[image][gt_index.clamp(min=0)].where(positive, NUM_CLASSES)
    boxes = targets.boxes_xyxy[image][gt_index.clamp(min=0)].where(positive[:, None], 0.0)
    yield Comparison(f"pos_inds_img{image}", positive.nonzero().squeeze(1), case[f"pos_inds_img{image}"], EXACT)
    yield Comparison(f"pos_labels_img{image}", labels, case[f"pos_labels_img{image}"], EXACT)
    yield Comparison(f"pos_targets_img{image}", boxes, case[f"pos_targets_img{image}"], EXACT)
    yield Comparison(f"pos_anchors_img{image}", positives.boxes_xyxy[image], case[f"pos_anchors_img{image}"], PIXELS)
