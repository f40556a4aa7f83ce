"""Anchors, points and their assignment."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.anchor_assignment import assign_atss as assign
from model.anchor_assignment import assign_by_loss, assign_points
from model.anchor_assignment import assign_max_iou as assign_by_iou
from model.anchors import anchor_grid, point_grid, valid_flags
from model.boxes import encode_distances, iou_aligned, xyxy_to_cxcywh
from model.heads.dense import num_positives
from model.heads.gfl import GFLHead, Predictions
from model.losses import centerness_of_distances
from model.mixture import fit_mixtures
from model.types import IGNORED, Pyramid, Targets
from tests.golden_topics.case import EXACT, FLOAT32, PIXELS, Case, Comparison

STRIDES = (8, 16, 32, 64, 128)


def assign_atss(case: Case) -> Iterator[Comparison]:
    """Official numbering: 0 is background, k is ground truth k - 1."""
    stable = case["stable"]
    targets = Targets.stack([case["gt_bboxes"]], [case["gt_labels"]])
    level_sizes = tuple(case["num_level_anchors"].tolist())
    gt_index, iou = (result[0] for result in assign(case["anchors"], level_sizes, targets))
    yield Comparison("assigned_gt_inds", (gt_index + 1)[stable], case["assigned_gt_inds"][stable], EXACT)
    labels = targets.labels[0][gt_index.clamp(min=0)].where(gt_index >= 0, -1)
    yield Comparison("assigned_labels", labels[stable], case["assigned_labels"][stable], EXACT)
    yield Comparison("max_overlaps", iou[stable], case["max_overlaps"][stable].clamp(min=0), FLOAT32)


def anchors(case: Case) -> Iterator[Comparison]:
    """Four settings of the anchor generator, and FCOS points."""
    nine = tuple(4 * 2 ** (i / 3) for i in range(3)), (0.5, 1.0, 2.0)
    one = (8.0,), (1.0,)
    for prefix, (scales, ratios), finest in (
        ("rpn", nine, 8),
        ("atss", one, 8),
        ("rpn_dino", nine, 4),
        ("atss_dino", one, 4),
    ):
        sizes = tuple((h, w) for h, w in case[f"{prefix}_featmap_hw"].tolist())
        strides = tuple(finest * 2**level for level in range(len(sizes)))
        ceiled = [[-(-side // stride) for side in case["input_hw"].tolist()] for stride in strides]
        yield Comparison(f"{prefix}_featmap_hw", torch.tensor(ceiled), case[f"{prefix}_featmap_hw"], EXACT)
        grid = anchor_grid(sizes, strides, scales, ratios)
        yield Comparison(f"{prefix}_anchors", grid, case[f"{prefix}_anchors"], PIXELS)
        base = anchor_grid(((1, 1),) * len(strides), strides, scales, ratios)
        yield Comparison(f"{prefix}_base_anchors", base, case[f"{prefix}_base_anchors"], PIXELS)
        valid = valid_flags(sizes, strides, case["pad_hw"][None], len(scales) * len(ratios))
        yield Comparison(f"{prefix}_valid", valid, case[f"{prefix}_valid"], EXACT)
        if prefix == "atss":
            yield Comparison("fcos_points", point_grid(sizes, strides), case["fcos_points"], EXACT)


def assign_max_iou_retinanet(case: Case) -> Iterator[Comparison]:
    """Positive from 0.5, background below 0.4, every object claims its best anchors."""
    yield from _max_iou(case, positive_iou=0.5, negative_iou=0.4, min_best_iou=0.0)


def assign_max_iou_paa(case: Case) -> Iterator[Comparison]:
    """The candidates of PAA."""
    yield from _max_iou(case, positive_iou=0.1, negative_iou=0.1, min_best_iou=0.0)


def _max_iou(case: Case, **settings: float) -> Iterator[Comparison]:
    """Official numbering: 0 is background, -1 is ignored, k is ground truth k - 1."""
    stable = case["stable"]
    targets = Targets.stack([case["gt_bboxes"]], [case["gt_labels"]])
    gt_index, iou = (result[0] for result in assign_by_iou(case["anchors"], targets, **settings))
    numbers = torch.where(gt_index == IGNORED, -1, gt_index + 1)
    yield Comparison("assigned_gt_inds", numbers[stable], case["assigned_gt_inds"][stable], EXACT)
    yield Comparison("max_overlaps", iou, case["max_overlaps"], FLOAT32)


def fcos_plain(case: Case) -> Iterator[Comparison]:
    """Anywhere in the object, distances in pixels."""
    yield from _fcos(case, center_radius=None, in_strides=False)


def fcos_center(case: Case) -> Iterator[Comparison]:
    """Near the centre, distances in pixels."""
    yield from _fcos(case, center_radius=1.5, in_strides=False)


def fcos_center_norm(case: Case) -> Iterator[Comparison]:
    """Near the centre, distances in strides."""
    yield from _fcos(case, center_radius=1.5, in_strides=True)


def _fcos(case: Case, center_radius: float | None, in_strides: bool) -> Iterator[Comparison]:
    sizes = tuple((h, w) for h, w in case["featmap_hw"].tolist())
    points = point_grid(sizes, STRIDES)
    yield Comparison("points", points, case["points"], EXACT)
    level_sizes = tuple(case["num_level_points"].tolist())
    targets = Targets.stack([case["gt_bboxes"]], [case["gt_labels"]])
    gt_index = assign_points(points, level_sizes, STRIDES, targets, center_radius=center_radius)[0]
    stable, positive = case["stable"], gt_index >= 0
    assert stable.all()  # so that the lists of positives below can be compared
    yield Comparison("assigned_gt", gt_index, case["assigned_gt"], EXACT)
    labels = targets.labels[0][gt_index.clamp(min=0)].where(positive, 80)
    yield Comparison("labels", labels, case["labels"], EXACT)
    yield Comparison("pos_inds", positive.nonzero().squeeze(1), case["pos_inds"], EXACT)
    distances = encode_distances(points[positive], targets.boxes_xyxy[0][gt_index[positive]])
    yield Comparison("pos_centerness", centerness_of_distances(distances), case["pos_centerness"], FLOAT32)
    unit = torch.tensor(STRIDES).repeat_interleave(torch.tensor(level_sizes))[positive, None] if in_strides else 1
    yield Comparison("pos_bbox_targets", distances / unit, case["pos_bbox_targets"], FLOAT32)


def paa_reassign(case: Case) -> Iterator[Comparison]:
    """Candidates, their given losses, the fitted mixtures and what is left."""
    level_sizes = tuple(case["num_level_anchors"].tolist())
    targets = Targets.stack([case["gt_bboxes"]], [case["gt_labels"]])
    num_gts = targets.labels.shape[1]
    before, _ = assign_by_iou(case["anchors"], targets, positive_iou=0.1, negative_iou=0.1, min_best_iou=0.0)
    candidates = (before[0] >= 0).nonzero().squeeze(1)
    yield Comparison("pos_inds_before", candidates, case["pos_inds_before"], EXACT)
    yield Comparison("pos_gt_inds_before", before[0, candidates], case["pos_gt_inds_before"], EXACT)
    yield Comparison("labels_before", _labels(before[0], targets), case["labels_before"], EXACT)
    losses = torch.zeros(before.shape)
    losses[0, candidates] = case["pos_losses"]
    after = assign_by_loss(before, losses, level_sizes, num_gts)[0][0]
    stable = case["stable"]
    yield Comparison("labels_after", _labels(after, targets)[stable], case["labels_after"][stable], EXACT)
    official = torch.zeros(len(stable), dtype=torch.bool)
    official[case["pos_inds_after"]] = True
    assert int(official.sum()) == int(case["num_pos_after"])
    for name, actual, expected in (
        ("pos_inds_after", after >= 0, official),
        ("bbox_weights_after", after >= 0, case["bbox_weights_after"]),
        ("label_weights_before", before[0] != IGNORED, case["label_weights_before"]),
        ("label_weights_after", after != IGNORED, case["label_weights_after"]),
    ):
        yield Comparison(name, actual[stable], expected[stable].bool(), EXACT)
    yield from _mixtures(case)


def _labels(gt_index: Tensor, targets: Targets) -> Tensor:
    return targets.labels[0][gt_index.clamp(min=0)].where(gt_index >= 0, 80)


def _mixtures(case: Case) -> Iterator[Comparison]:
    counts = case["gmm_count"].tolist()
    losses = list(case["gmm_losses"].split(counts)) or [torch.ones(1)]
    samples = pad_sequence(losses, batch_first=True, padding_value=torch.inf).double().numpy()[: len(counts)]
    present = np.isfinite(samples)
    mixture = fit_mixtures(np.where(present, samples, 0), present)
    for name, values in (
        ("weights", mixture.weights),
        ("means", mixture.means),
        ("variances", mixture.variances),
        ("n_iter", mixture.num_iterations),
    ):
        yield Comparison(f"gmm_{name}", torch.from_numpy(values), case[f"gmm_{name}"], FLOAT32)


def gfl_targets(case: Case) -> Iterator[Comparison]:
    """One image, the official logits in place of a network; only positives have logits for their boxes."""
    sizes = tuple((h, w) for h, w in case["featmap_hw"].tolist())
    head = GFLHead(GFLHead.Config(), channels=4, num_classes=6, strides=STRIDES)
    targets = Targets.stack([case["gt_bboxes"]], [case["gt_labels"]])
    pyramid = Pyramid(tuple(torch.zeros(1, 4, h, w) for h, w in sizes), STRIDES, case["img_hw"][None], (None,) * 5)
    anchors, gt_index = head.anchors(pyramid), head.assign(pyramid, targets)
    yield Comparison("anchors", anchors, case["anchors"], PIXELS)
    positive = (gt_index[0] >= 0).nonzero().squeeze(1)
    yield Comparison("pos_inds", positive, case["pos_inds"], EXACT)
    labels = targets.labels[0][gt_index[0].clamp(min=0)].where(gt_index[0] >= 0, 6)
    yield Comparison("labels", labels, case["labels"], EXACT)
    yield Comparison("label_weights", gt_index[0] != IGNORED, case["label_weights"].bool(), EXACT)
    gt_boxes = targets.boxes_xyxy[0][gt_index[0, positive]]
    yield Comparison("pos_bbox_targets", gt_boxes, case["pos_bbox_targets"], EXACT)
    yield Comparison("num_total_samples", num_positives(gt_index), case["num_total_samples"], EXACT)

    centred = xyxy_to_cxcywh(anchors[positive])
    stride = centred[:, 2:3] / 8
    corners = encode_distances(centred[:, :2] / stride, gt_boxes / stride, 16)
    yield Comparison("pos_target_corners", corners, case["pos_target_corners"], FLOAT32)
    decoded = head.decode(case["pos_reg_logits"], anchors[positive])
    yield Comparison("pos_decoded_stride_units", decoded / stride, case["pos_decoded_stride_units"], FLOAT32)
    yield Comparison("pos_quality", iou_aligned(decoded, gt_boxes), case["pos_quality"], FLOAT32)
    confidence = case["cls_logits"][positive].sigmoid().amax(-1)
    yield Comparison("pos_weight_targets", confidence, case["pos_weight_targets"], FLOAT32)

    bins = torch.zeros(1, len(anchors), 4, 17)
    bins[0, positive] = case["pos_reg_logits"]
    with mock.patch.object(head, "forward", lambda _: Predictions(case["cls_logits"][None], bins)):
        losses, _ = head.train_step(pyramid, targets, with_losses=True)
    weights = head.loss_weights()
    for official, name in (("cls", "classification"), ("bbox", "boxes"), ("dfl", "distribution")):
        expected = case[f"loss_{official}_per_level"].sum()
        yield Comparison(f"loss_{official}", weights[name] * losses[name], expected, FLOAT32)
