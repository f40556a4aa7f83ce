"""The whole detector with the official parameters. The R-CNN head's part waits for that head."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from golden_topics.case import FLOAT32, PIXELS, Case, Comparison, Tolerance
from model.config import BackboneConfig, DetectorConfig, TransformerConfig
from model.detector import Detector
from model.heads.atss import ATSSHead
from model.neck import downsample_mask
from model.official import convert
from model.position import valid_ratios
from model.queries import select_positives
from model.types import Batch, Targets

NUM_CLASSES, NUM_DETECTIONS = 5, 30
FEATURES = Tolerance(1e-4, 1e-4)
ONE_STAGE = {"two_stage": False, "box_refinement": False, "mixed_selection": False, "look_forward_twice": False}
RCNN_PARTS = ("rpn_*", "*rpn*", "aux0_*", "*_aux0*", "det_rcnn_*", "acc*", "loss.acc0", "loss.loss_*0")
# The sum and the gradients of it contain the R-CNN head's losses; rescaled detections divide by a factor; decoder
# states and references are what logits and boxes are computed from.
UNREAD = (*RCNN_PARTS, "loss_total", "gradnorm.*", "*_rescaled_*", "scale_factor", "batch_hw", "decout_*")


def detector_of(case: Case, max_positive_queries: int, **changes: bool) -> Detector:
    """The small ResNet-50 model of these files, with its parameters."""
    backbone = BackboneConfig(width=4)
    transformer = TransformerConfig(
        channels=32, num_encoder_layers=2, num_decoder_layers=2, feedforward_channels=64, num_attention_heads=8
    )
    config = DetectorConfig(
        backbone,
        transformer,
        num_queries=20,
        heads=(ATSSHead.Config(),),
        max_positive_queries=max_positive_queries,
        mask_padding=False,
        **changes,
    )
    detector = Detector(config, NUM_CLASSES)
    state = convert(case.under("param."), ("rcnn", "atss"), num_roi_heads=1)
    if not config.box_refinement:  # the official list names one shared branch twice
        state = {name: value for name, value in state.items() if "_branches.1" not in name}
    result = detector.load_state_dict(state, strict=False)
    assert not result.missing_keys
    assert all("rcnn" in name or name.startswith(("rpn_head", "roi_head")) for name in result.unexpected_keys)
    return detector


def main(case: Case) -> Iterator[Comparison]:
    """Two-stage, box refinement, mixed selection, look-forward-twice."""
    count = case["aux1_labels"].shape[1]
    yield from _compare(case, detector_of(case, max_positive_queries=min(300, max(count, 9))), two_stage=True)


def plain(case: Case) -> Iterator[Comparison]:
    """One-stage, without box refinement."""
    yield from _compare(case, detector_of(case, max_positive_queries=300, **ONE_STAGE), two_stage=False)


def _compare(case: Case, detector: Detector, two_stage: bool) -> Iterator[Comparison]:
    targets = Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))
    batch = Batch(case["img"], case["valid_hw"], targets, (0, 1))
    detector.eval()  # frozen norms, no dropout: training and evaluation are the same arithmetic
    with torch.no_grad():
        yield from _features(case, detector, batch)
        yield from _decoded(case, detector, batch, two_stage)
        with mock.patch("model.queries.torch.rand", _descending):
            losses = detector(batch)[1]
        for name, official in _loss_names(two_stage).items():
            yield Comparison(name, losses[name] * detector.loss_weights[name], case[f"loss.{official}"].sum(), FLOAT32)
        for branch, found in detector.detect_branches(batch, ("decoder", "atss"), NUM_DETECTIONS).items():
            for image, detections in enumerate(found):
                boxes, scores, labels = _detections(case, branch, image)
                yield Comparison(f"{branch} scores {image}", detections.scores, scores, FLOAT32)
                yield Comparison(f"{branch} boxes {image}", detections.boxes_xyxy, boxes, PIXELS)
                yield Comparison(f"{branch} labels {image}", detections.labels, labels.long(), Tolerance(0, 0))


def _descending(shape: torch.Size, device: torch.device) -> Tensor:
    """The official numbers were made with 'choose at random' meaning 'take the first'."""
    return torch.linspace(0.999, 0, shape[1], dtype=torch.float64, device=device).expand(shape)


def _features(case: Case, detector: Detector, batch: Batch) -> Iterator[Comparison]:
    stages = detector.backbone(batch.images, lambda stride: None)
    for level, (ours, official) in enumerate(
        zip(detector.neck(stages, (None,) * 4), case.sequence("neck_level"), strict=True)
    ):
        yield Comparison(f"neck_level{level}", ours, official, FEATURES)
    memory, masks = detector.encode(batch)
    pyramid = detector.pyramid(memory, batch.valid_hw, masks)
    for level, (ours, official) in enumerate(zip(pyramid.levels, case.sequence("encoder_level"), strict=True)):
        yield Comparison(f"encoder_level{level}", ours, official, FEATURES)
    padding = [downsample_mask(batch.padding_mask, size) for size in memory.sizes]
    yield Comparison("valid_ratios_wh", valid_ratios(padding), case["valid_ratios_wh"], FLOAT32)


def _decoded(case: Case, detector: Detector, batch: Batch, two_stage: bool) -> Iterator[Comparison]:
    memory, masks = detector.encode(batch)
    group, proposals = detector.initial_queries(memory)
    if proposals is not None:
        yield Comparison("enc_cls_class0", proposals.logits[..., 0], case["enc_cls_class0"], FEATURES)
        chosen = case["enc_topk_inds"][..., None].expand(-1, -1, 4)
        ours = proposals.boxes_cxcywh.gather(1, chosen)
        yield Comparison("enc_topk_boxes", ours, case["enc_topk_boxes"], FEATURES)
    pyramid = detector.pyramid(memory, batch.valid_hw, masks)
    (_, head), (_, to_queries) = detector.named_heads()[0], next(iter(detector.positive_queries.items()))
    positives = head.train_step(pyramid, batch.targets, with_losses=False)[1]
    priority = _descending(positives.gt_index.shape, positives.gt_index.device)
    config = detector.config
    selection = select_positives(positives, pyramid, config.min_positive_queries, config.max_positive_queries, priority)
    yield Comparison("aux1_coords", selection.boxes_cxcywh, case["aux1_coords"], FLOAT32)
    yield Comparison("aux1_feats", selection.features, case["aux1_feats"], FEATURES)
    yield from _supervision(case, batch, selection.gt_index, selection.weight)
    auxiliary = to_queries(selection)
    outputs = detector.decoder([group, auxiliary], memory).split([20, auxiliary.content.shape[1]])
    for name, queries, output, prefix in (
        ("main", group, outputs[0], "dec_"),
        ("aux1", auxiliary, outputs[1], "aux1_"),
    ):
        size = case[f"decin_{name}_reference"].shape[-1]
        yield Comparison(f"{name} content", queries.content, case[f"decin_{name}_query"], FEATURES)
        yield Comparison(f"{name} position", queries.position, case[f"decin_{name}_query_pos"], FEATURES)
        reference = queries.reference_cxcywh[..., :size]
        yield Comparison(f"{name} reference", reference, case[f"decin_{name}_reference"], FEATURES)
        yield Comparison(f"{name} logits", output.logits, case[f"{prefix}cls_scores"], FEATURES)
        yield Comparison(f"{name} boxes", output.boxes_cxcywh, case[f"{prefix}bbox_preds"], FEATURES)


def _supervision(case: Case, batch: Batch, gt_index: Tensor, weight: Tensor) -> Iterator[Comparison]:
    """What the customised queries must predict."""
    background = gt_index < 0
    index = gt_index.clamp(min=0)
    labels = batch.targets.labels.gather(1, index).masked_fill(background, NUM_CLASSES)
    boxes = batch.targets.boxes_cxcywh(batch.valid_hw).gather(1, index[..., None].expand(-1, -1, 4))
    yield Comparison("aux1_labels", labels, case["aux1_labels"], Tolerance(0, 0))
    yield Comparison("aux1_targets", boxes.masked_fill(background[..., None], 0), case["aux1_targets"], FLOAT32)
    yield Comparison("aux1_label_weights", weight, case["aux1_label_weights"], Tolerance(0, 0))
    box_weights = (~background).float()[..., None].expand(-1, -1, 4)
    yield Comparison("aux1_bbox_weights", box_weights, case["aux1_bbox_weights"], Tolerance(0, 0))


def _loss_names(two_stage: bool) -> dict[str, str]:
    """Our name → the official key."""
    names = {"atss/classification": "loss_cls1", "atss/boxes": "loss_bbox1", "atss/centerness": "loss_centerness1"}
    for ours, official in (("classification", "cls"), ("l1", "bbox"), ("giou", "iou")):
        for layer, prefix in ((0, "d0."), (1, "")):
            names[f"decoder.{layer}/{ours}"] = f"{prefix}loss_{official}"
            names[f"queries.atss.{layer}/{ours}"] = f"{prefix}loss_{official}_aux1"
        if two_stage:
            names[f"encoder/{ours}"] = f"enc_loss_{official}"
    return names


def _detections(case: Case, branch: str, image: int) -> tuple[Tensor, Tensor, Tensor]:
    if branch == "atss":
        rows = case[f"det_atss_img{image}"]
        return rows[:, :4], rows[:, 4], rows[:, 5]
    rows = case[f"det_bboxes_img{image}"]
    return rows[:, :4], rows[:, 4], case[f"det_labels_img{image}"]
