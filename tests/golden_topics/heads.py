"""Auxiliary heads with the official weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from golden_topics.case import EXACT, FLOAT32, GRADIENT, GRADIENT_NORM, PIXELS, Case, Comparison, leaf
from model.heads.atss import ATSSHead
from model.types import Pyramid, Targets

STRIDES, NUM_CLASSES = (8, 16, 32, 64, 128), 5
ATSS_NAMES = {
    "cls_convs.0.conv": "class_tower.0.conv",
    "cls_convs.0.gn": "class_tower.0.norm",
    "reg_convs.0.conv": "box_tower.0.conv",
    "reg_convs.0.gn": "box_tower.0.norm",
    "atss_cls": "classification",
    "atss_reg": "box",
    "atss_centerness": "centerness",
}


def renamed(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """One value per parameter under our names; the scales of the levels are one vector here."""
    values = {
        f"{ATSS_NAMES[module]}.{kind}": value
        for (module, kind), value in ((name.rsplit(".", 1), value) for name, value in official.items())
        if not module.startswith("scales.")
    }
    scales = [official[f"scales.{level}.scale"] for level in range(len(STRIDES))]
    return values | {"level_scales": torch.stack(scales)}


def co_atss(case: Case) -> Iterator[Comparison]:
    """`CoATSSHead`; the official loss weights contain the factor 12 = 6 layers x lambda 2."""
    head = ATSSHead(ATSSHead.Config(num_groups=4), channels=16, num_classes=NUM_CLASSES, strides=STRIDES)
    head.load_state_dict(renamed(case.under("param.")))
    levels = tuple(leaf(level) for level in case.sequence("feat_level"))
    pyramid = Pyramid(levels, STRIDES, case["valid_hw"], (None,) * len(STRIDES))
    targets = Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))
    losses, positives = head.train_step(pyramid, targets, with_losses=True)
    weighted = {name: 12 * head.loss_weights()[name] * value for name, value in losses.items()}
    total = torch.stack(list(weighted.values())).sum()
    total.backward()

    yield from _outputs(case, head, pyramid)
    for official, name in (("loss_cls", "classification"), ("loss_bbox", "boxes"), ("loss_centerness", "centerness")):
        yield Comparison(official, weighted[name], case[f"loss.{official}"].sum(), FLOAT32)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    for index, level in enumerate(levels):
        assert level.grad is not None
        yield Comparison(f"grad_feat_level{index}", level.grad, case[f"grad_feat_level{index}"], GRADIENT)
    norms = renamed(case.under("gradnorm."))
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
        gt_index = positives.gt_index[image]
        positive = gt_index >= 0
        labels = targets.labels[image][gt_index.clamp(min=0)].where(positive, NUM_CLASSES)
        boxes = targets.boxes_xyxy[image][gt_index.clamp(min=0)].where(positive[:, None], 0.0)
        yield Comparison(f"pos_inds_img{image}", positive.nonzero().squeeze(1), case[f"pos_inds_img{image}"], EXACT)
        yield Comparison(f"pos_labels_img{image}", labels, case[f"pos_labels_img{image}"], EXACT)
        yield Comparison(f"pos_targets_img{image}", boxes, case[f"pos_targets_img{image}"], EXACT)
        anchors = positives.boxes_xyxy[image]
        yield Comparison(f"pos_anchors_img{image}", anchors, case[f"pos_anchors_img{image}"], PIXELS)


def _outputs(case: Case, head: ATSSHead, pyramid: Pyramid) -> Iterator[Comparison]:
    level_sizes = [height * width for height, width in pyramid.sizes]
    predictions = head(pyramid)
    raw = (
        ("out_cls", predictions.logits),
        ("out_reg", predictions.deltas),
        ("out_extra", predictions.centerness[..., None]),
    )
    for name, values in raw:
        for level, value in enumerate(values.split(level_sizes, 1)):
            if f"{name}_level{level}" in case:  # the finest two are not stored
                expected = case[f"{name}_level{level}"].flatten(2).transpose(1, 2)
                yield Comparison(f"{name}_level{level}", value, expected, FLOAT32)
