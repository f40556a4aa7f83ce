"""The R-CNN head and its parts: assignment and sampling of boxes, and the whole head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.anchor_assignment import assign_max_iou
from model.groups.positives import cut_to_shortest
from model.heads.faster_rcnn import FasterRCNNHead
from model.heads.roi import RoIConfig, RoIs, candidates, sample_rois
from model.heads.rpn import Outputs, Proposals, RPNConfig
from model.types import IGNORED, Detections, Positives, Pyramid, Targets
from tests.golden_topics.case import EXACT, FLOAT32, GRADIENT, GRADIENT_NORM, PIXELS, Case, Comparison, leaf
from tests.golden_topics.official import of_co_detr

STRIDES, NUM_CLASSES, LAYERS = (8, 16, 32, 64, 128), 5, 12
EVERYTHING = 100_000  # samples per image in these files: nothing is dropped
PROPOSALS = RPNConfig(num_samples=EVERYTHING, train_candidates=300, test_candidates=300, num_proposals=60)


def targets_of(case: Case) -> Targets:
    """Of topics with one image."""
    return Targets.stack([case["gt_bboxes"]], [case["gt_labels"]])


def assign_maxiou_rpn(case: Case) -> Iterator[Comparison]:
    """Official numbering: 0 is background, -1 ignored, k is ground truth k - 1."""
    stable = case["stable"]
    gt_index, iou = assign_max_iou(
        case["anchors"], targets_of(case), positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3
    )
    official = torch.where(gt_index[0] == IGNORED, -1, gt_index[0] + 1)
    yield Comparison("assigned_gt_inds", official[stable], case["assigned_gt_inds"][stable].long(), EXACT)
    yield Comparison("max_overlaps", iou[0][stable], case["max_overlaps"][stable], FLOAT32)


def as_proposals(*images: Tensor) -> Proposals:
    """Boxes of each image, [N, 4] or [N, 5] with scores, as the first stage would give them."""
    most = max(map(len, images))
    boxes, scores = torch.zeros(len(images), most, 4), torch.zeros(len(images), most)
    valid = torch.zeros(len(images), most, dtype=torch.bool)
    for image, rows in enumerate(images):
        boxes[image, : len(rows)], valid[image, : len(rows)] = rows[:, :4], True
        scores[image, : len(rows)] = rows[:, 4] if rows.shape[1] > 4 else 1.0
    return Proposals(boxes, scores, valid)


def assign_maxiou_rcnn(case: Case) -> Iterator[Comparison]:
    """Assignment of proposals, then everything sampled with the ground truths in front."""
    stable, num_gts = case["stable"], len(case["gt_labels"])
    targets, proposals = targets_of(case), as_proposals(case["proposals"])
    padded = targets.labels.shape[1]  # one row without an object where there is none
    gt_index = candidates(proposals, targets, 0.5).gt_index[0, padded:]
    yield Comparison("assigned_gt_inds", (gt_index + 1)[stable], case["assigned_gt_inds"][stable], EXACT)
    labels = targets.labels[0][gt_index.clamp(min=0)].where(gt_index >= 0, -1)
    yield Comparison("assigned_labels", labels[stable], case["assigned_labels"][stable], EXACT)
    _, iou = assign_max_iou(proposals.boxes_xyxy, targets, positive_iou=0.5, negative_iou=0.5)
    yield Comparison("max_overlaps", iou[0][stable], case["max_overlaps"][stable], FLOAT32)

    rois = sample_rois(proposals, targets, RoIConfig(num_samples=EVERYTHING, positive_fraction=0.5))
    positive, there = rois.gt_index[0] >= 0, rois.gt_index[0] >= -1
    sampled = rois.boxes_xyxy[0][there]
    everything = torch.cat([case["gt_bboxes"], case["proposals"]])
    chosen = torch.cat([case["sampled_pos_inds"], case["sampled_neg_inds"]])
    yield Comparison("sampled_inds", sampled, everything[chosen], EXACT)
    yield Comparison("sampled_bboxes", sampled, case["sampled_bboxes"], EXACT)
    owner = rois.gt_index[0][positive]
    yield Comparison("pos_assigned_gt_inds", owner, case["pos_assigned_gt_inds"], EXACT)
    yield Comparison("pos_gt_labels", targets.labels[0][owner], case["pos_gt_labels"], EXACT)
    yield Comparison("pos_is_gt", torch.arange(len(owner)) < num_gts, case["pos_is_gt"], EXACT)


def build_rcnn(case: Case) -> FasterRCNNHead:
    """The head of the files, with its parameters."""
    roi = RoIConfig(
        num_samples=EVERYTHING, positive_fraction=0.5, finest_scale=float(case["finest_scale"]), fc_channels=32
    )
    config = FasterRCNNHead.Config(PROPOSALS, roi)
    head = FasterRCNNHead(config, channels=16, num_classes=NUM_CLASSES, strides=STRIDES)
    head.load_state_dict(renamed(case.under("param.")))
    return head


def renamed(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the files, through those of a whole detector, to the head's own."""
    whole = {name.replace("rpn.", "rpn_head.", 1): value for name, value in official.items() if name.startswith("rpn.")}
    whole |= {name.replace("roi.", "roi_head.0.", 1): v for name, v in official.items() if name.startswith("roi.")}
    return {name.removeprefix("heads.x."): value for name, value in of_co_detr(whole, ("x",), num_roi_heads=1).items()}


def head_rcnn(case: Case) -> Iterator[Comparison]:
    """RPN and RoI head; the official loss weights contain the factor 12 = 6 layers x lambda 2."""
    head = build_rcnn(case)
    levels = tuple(leaf(level) for level in case.sequence("feat_level"))
    pyramid = Pyramid(levels, STRIDES, case["valid_hw"], (None,) * len(STRIDES))
    targets = Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))
    outputs = head.stages.proposals(pyramid)
    yield from _first_stage(case, head, outputs, pyramid)

    # The second stage of the files gets more proposals than the first one makes.
    proposals = as_proposals(*case.sequence("proposals_img"))
    step = head.stages.step_on(proposals, pyramid, targets, with_losses=True)
    losses = head.stages.proposals.losses(outputs, pyramid, targets) | step.losses
    yield from _second_stage(case, head, step.rois, targets, step.levels)
    yield from _positives(case, step.positives, targets)
    total = torch.zeros(())
    for ours, official in (
        ("rpn_classification", "loss_rpn_cls"),
        ("rpn_boxes", "loss_rpn_bbox"),
        ("classification", "loss_cls"),
        ("boxes", "loss_bbox"),
    ):
        weighted = losses[ours] * head.loss_weights()[ours] * LAYERS
        yield Comparison(official, weighted, case[f"loss.{official}"].sum(), FLOAT32)
        total = total + weighted
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    total.backward()
    for index, level in enumerate(levels):
        assert level.grad is not None
        yield Comparison(f"grad_feat_level{index}", level.grad, case[f"grad_feat_level{index}"], GRADIENT)
    norms = renamed(case.under("gradnorm."))
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None
        yield Comparison(f"gradnorm {name}", parameter.grad.double().norm(), norms[name], GRADIENT_NORM)
    found, _ = head.stages.detect_on(proposals, pyramid, 100)
    yield from detections(case, found, "det_bboxes_img", "det_labels_img")


def _first_stage(case: Case, head: FasterRCNNHead, outputs: Outputs, pyramid: Pyramid) -> Iterator[Comparison]:
    sizes = [height * width * 9 for height, width in pyramid.sizes]
    for name, values, per_anchor in (("cls", outputs.objectness[..., None], 1), ("reg", outputs.deltas, 4)):
        for level, value in enumerate(values.split(sizes, 1)):
            if f"rpn_{name}_level{level}" in case:  # the finest two are not stored
                official = case[f"rpn_{name}_level{level}"].flatten(2).transpose(1, 2)  # [B, h * w, 9 * per_anchor]
                yield Comparison(f"rpn_{name}_level{level}", value, official, FLOAT32)
                assert official.shape[2] == 9 * per_anchor
    proposals = head.stages.proposals.propose(outputs, pyramid, training=True)
    for image, official in enumerate(case.sequence("rpn_proposals_img")):
        valid = proposals.valid[image]
        yield Comparison(f"proposals {image}", proposals.boxes_xyxy[image, valid], official[:, :4], PIXELS)
        yield Comparison(f"proposal scores {image}", proposals.scores[image, valid], official[:, 4], FLOAT32)


def _second_stage(
    case: Case, head: FasterRCNNHead, rois: RoIs, targets: Targets, levels: list[Tensor]
) -> Iterator[Comparison]:
    image, row = rois.rows()
    owner, boxes = rois.gt_index[image, row], rois.boxes_xyxy[image, row]
    yield Comparison("rois", torch.cat([image[:, None].float(), boxes], 1), case["rois"], PIXELS)
    positive = owner >= 0
    labels = targets.labels[image, owner.clamp(min=0)].where(positive, NUM_CLASSES)
    yield Comparison("roi_labels", labels, case["roi_labels"], EXACT)
    goal = targets.boxes_xyxy[image, owner.clamp(min=0)].where(positive[:, None], 0.0)
    yield Comparison("roi_bbox_targets", goal, case["roi_bbox_targets"], EXACT)
    pooled = head.stages.pooling(levels, image, boxes, 7)
    yield Comparison("roi_feat_first3", pooled[:3], case["roi_feat_first3"], FLOAT32)
    logits, deltas = head.stages.boxes(pooled)
    yield Comparison("roi_cls_score", logits, case["roi_cls_score"], FLOAT32)
    yield Comparison("roi_bbox_pred", deltas, case["roi_bbox_pred"], FLOAT32)
    counts = [(image == number).sum() for number in range(2)]
    yield Comparison("num_sampled", torch.stack(counts), case["num_sampled"], EXACT)
    counts = [((image == number) & positive).sum() for number in range(2)]
    yield Comparison("num_sampled_pos", torch.stack(counts), case["num_sampled_pos"], EXACT)


def _positives(case: Case, positives: Positives, targets: Targets) -> Iterator[Comparison]:
    """Each image is cut to the smallest number of samples in the batch."""
    positives = cut_to_shortest(positives)
    owner = positives.gt_index.clamp(min=0)
    positive = positives.gt_index >= 0
    yield Comparison("pos_coords_boxes", positives.boxes_xyxy, case["pos_coords_boxes"], PIXELS)
    labels = targets.labels.gather(1, owner).where(positive, NUM_CLASSES)
    yield Comparison("pos_coords_labels", labels, case["pos_coords_labels"], EXACT)
    boxes = targets.boxes_xyxy.gather(1, owner[..., None].expand(-1, -1, 4)).where(positive[..., None], 0.0)
    yield Comparison("pos_coords_targets", boxes, case["pos_coords_targets"], EXACT)
    assert positives.features is not None
    yield Comparison("pos_coords_feats", positives.features, case["pos_coords_feats"], FLOAT32)


def detections(case: Case, found: list[Detections], boxes: str, labels: str) -> Iterator[Comparison]:
    """Of each image, best first."""
    for image, ours in enumerate(found):
        official = case[f"{boxes}{image}"]
        yield Comparison(f"{boxes}{image}", ours.boxes_xyxy, official[:, :4], PIXELS)
        yield Comparison(f"scores {image}", ours.scores, official[:, 4], FLOAT32)
        yield Comparison(f"{labels}{image}", ours.labels, case[f"{labels}{image}"], EXACT)
