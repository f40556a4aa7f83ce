"""Anchors, points and their assignment."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from golden_topics.case import EXACT, FLOAT32, PIXELS, Case, Comparison
from model.anchors import anchor_grid, point_grid, valid_flags
from model.assign import assign_atss as assign
from model.types import Targets


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
