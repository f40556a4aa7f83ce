"""Box coders, losses, matching and NMS: pure functions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model import losses as loss
from model.assign.hungarian import match, matching_costs
from model.boxes import (
    clip_boxes,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
    giou_aligned,
    giou_pairwise,
    iou_aligned,
    iou_pairwise,
)
from model.config import LossWeights
from model.ops import nms, roi_align, soft_nms
from model.types import Targets
from tests.golden_topics.case import EXACT, FLOAT32, FLOAT64, PIXELS, Case, Comparison, Tolerance, leaf


def box_coders(case: Case) -> Iterator[Comparison]:
    """`DeltaXYWHBBoxCoder` with two sets of deviations, `DistancePointBBoxCoder`."""
    size, source, gt = case["img_hw"], case["src_boxes"], case["gt_boxes"]
    for prefix, stds in (("std1", (1.0, 1.0, 1.0, 1.0)), ("std01", (0.1, 0.1, 0.2, 0.2))):
        yield Comparison(f"{prefix}_encode", encode_deltas(source, gt, stds), case[f"{prefix}_encode"], FLOAT32)
        decoded = decode_deltas(source, case["deltas"], stds)
        # Side lengths reach thousands of pixels here, where float32 itself resolves less than 1e-3.
        near = Tolerance(1e-6, PIXELS.atol)
        yield Comparison(f"{prefix}_decode", decoded, case[f"{prefix}_decode"], near)
        yield Comparison(
            f"{prefix}_decode_clipped", clip_boxes(decoded, size), case[f"{prefix}_decode_clipped"], PIXELS
        )
        per_class = decode_deltas(source[:, None], case["deltas_3class"].view(len(source), 3, 4), stds)
        yield Comparison(f"{prefix}_decode_3class", per_class, case[f"{prefix}_decode_3class"], near)
    points = case["points"]
    yield Comparison("dist_encode", encode_distances(points, gt), case["dist_encode"], PIXELS)
    clamped = encode_distances(points / 8, gt / 8, max_distance=16)
    yield Comparison("dist_encode_max16", clamped, case["dist_encode_max16"], PIXELS)
    decoded = decode_distances(points, case["distances"])
    yield Comparison("dist_decode", decoded, case["dist_decode"], PIXELS)
    yield Comparison("dist_decode_clipped", clip_boxes(decoded, size), case["dist_decode_clipped"], PIXELS)


def losses(case: Case) -> Iterator[Comparison]:
    """Values and gradients; the official label of the background is the number of classes."""
    yield from _class_losses(case)
    yield from _box_losses(case)
    yield from _centerness_losses(case)


def _with_gradient(
    case: Case, name: str, value: Tensor, prediction: Tensor, tolerance: Tolerance
) -> Iterator[Comparison]:
    (gradient,) = torch.autograd.grad(value, prediction)
    yield Comparison(name, value, case[name], tolerance)
    yield Comparison(f"{name}_grad", gradient, case[f"{name}_grad"], tolerance)


def _class_losses(case: Case) -> Iterator[Comparison]:
    labels, weight, avg_factor = case["labels"], case["weight"], case["avg_factor"]
    logits = leaf(case["logits"])
    focal = loss.sigmoid_focal_loss(logits, labels)
    yield Comparison("focal_elementwise", focal, case["focal_elementwise"], FLOAT64)
    mean = loss.weighted_mean(focal, weight[:, None], avg_factor)
    yield Comparison(
        "focal_w2_noweight", 2 * loss.weighted_mean(focal, None, avg_factor), case["focal_w2_noweight"], FLOAT64
    )
    yield from _with_gradient(case, "focal", mean, logits, FLOAT64)
    quality = loss.quality_focal_loss(logits, labels, case["quality"]).sum(-1)
    yield Comparison("qfl_per_sample", quality, case["qfl_per_sample"], FLOAT64)
    yield from _with_gradient(case, "qfl", loss.weighted_mean(quality, weight, avg_factor), logits, FLOAT64)
    distribution_logits = leaf(case["dfl_logits"])
    distribution = 0.25 * loss.distribution_focal_loss(distribution_logits, case["dfl_target"])
    yield Comparison("dfl_per_sample", distribution, case["dfl_per_sample"], FLOAT64)
    mean = loss.weighted_mean(distribution, case["dfl_weight"], 4.0)
    yield from _with_gradient(case, "dfl", mean, distribution_logits, FLOAT64)
    softmax_logits = leaf(case["softmax_logits"])
    counted = weight > 0
    mean = loss.weighted_mean(loss.softmax_cross_entropy(softmax_logits, labels), counted, max(int(counted.sum()), 1))
    yield from _with_gradient(case, "softmax_ce", 12 * mean, softmax_logits, FLOAT32)


def _box_losses(case: Case) -> Iterator[Comparison]:
    target, weight, avg_factor = case["boxes_target"], case["boxes_weight"], case["avg_factor"]
    boxes = leaf(case["boxes_pred"])
    for name, overlap in (
        ("iou_aligned", iou_aligned),
        ("giou_aligned", giou_aligned),
        ("iou_pairwise", iou_pairwise),
        ("giou_pairwise", giou_pairwise),
    ):
        yield Comparison(name, overlap(boxes, target), case[name], FLOAT64)
    giou = 2 * loss.weighted_mean(loss.giou_loss(boxes, target), weight, avg_factor)
    yield Comparison("giou_loss_w4", giou, case["giou_loss_w4"], FLOAT64)
    yield from _with_gradient(case, "giou_loss", giou, boxes, FLOAT64)
    log_iou = loss.weighted_mean(loss.iou_log_loss(boxes, target), weight, avg_factor)
    yield from _with_gradient(case, "iou_loss_log", log_iou, boxes, FLOAT64)
    scaled = leaf(case["boxes_pred"] / 300)
    l1 = 5 * loss.weighted_mean(loss.l1_loss(scaled, target / 300), weight[:, None], avg_factor)
    yield from _with_gradient(case, "l1_loss", l1, scaled, FLOAT64)


def _centerness_losses(case: Case) -> Iterator[Comparison]:
    logits = leaf(case["ctr_logits"])
    # The official loss casts its target to float32.
    cross_entropy = loss.binary_cross_entropy(logits, case["ctr_target"].float())
    yield from _with_gradient(case, "bce", loss.weighted_mean(cross_entropy, None, case["avg_factor"]), logits, FLOAT32)
    atss = loss.centerness_of_anchors(case["ctr_anchors"], case["boxes_target"])
    yield Comparison("ctr_atss", atss, case["ctr_atss"], FLOAT64)
    yield Comparison("ctr_fcos", loss.centerness_of_distances(case["ctr_ltrb"]), case["ctr_fcos"], FLOAT64)


def hungarian(case: Case) -> Iterator[Comparison]:
    """One layer and one image; each cost alone, then their sum and the matching."""
    targets = Targets.stack([case["gt_bboxes"]], [case["gt_labels"]])
    num_gts = len(case["gt_labels"])
    problem = (case["cls_logits"][None, None], case["pred_cxcywh"][None, None], targets, case["img_hw"][None])
    for name, weights in (
        ("cost_cls", LossWeights(2, 0, 0)),
        ("cost_l1", LossWeights(0, 5, 0)),
        ("cost_giou", LossWeights(0, 0, 2)),
        ("cost_total", LossWeights(2, 5, 2)),
    ):
        yield Comparison(name, matching_costs(*problem, weights)[0, 0, :, :num_gts], case[name], FLOAT32)
    gt_index = match(*problem, LossWeights(2, 5, 2))[0, 0]
    yield Comparison("assigned_gt_inds", gt_index + 1, case["assigned_gt_inds"], EXACT)
    labels = targets.labels[0][gt_index.clamp(min=0)].where(gt_index >= 0, -1)
    yield Comparison("assigned_labels", labels, case["assigned_labels"], EXACT)


def suppression(case: Case) -> Iterator[Comparison]:
    """Per label; the detections come by descending score."""
    boxes, scores, labels = case["boxes"], case["scores"], case["labels"]
    for name, threshold in (("nms50", 0.5), ("nms70", 0.7)):
        keep = nms(boxes, scores, labels, threshold)
        yield Comparison(f"{name}_keep", keep, case[f"{name}_keep"], EXACT)
        detections = torch.cat([boxes[keep], scores[keep, None]], 1)
        yield Comparison(f"{name}_dets", detections, case[f"{name}_dets"], PIXELS)
    keep, decayed = soft_nms(boxes, scores, labels, 0.8, 1e-3)
    yield Comparison("softnms80_keep", keep, case["softnms80_keep"], EXACT)
    detections = torch.cat([boxes[keep], decayed[:, None]], 1)
    yield Comparison("softnms80_dets", detections, case["softnms80_dets"], PIXELS)


def roi_align_adaptive(case: Case) -> Iterator[Comparison]:
    """Pooled to 7 x 7 bins, aligned, with as many samples as a bin needs; and the gradient of the feature."""
    feature = leaf(case["feature"])
    output = roi_align(feature, case["rois"], 7, 1 / case["stride"].item())
    output.backward(case["grad_output"])
    assert feature.grad is not None
    yield Comparison("output", output, case["output"], FLOAT32)
    yield Comparison("grad_feature", feature.grad, case["grad_feature"], FLOAT32)
