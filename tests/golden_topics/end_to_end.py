"""The whole detector with the official parameters and `compatibility: official`."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from model.backbones.configs import ResNetConfig
from model.config import DetectorConfig, TransformerConfig
from model.detector import Detector
from model.heads.atss import ATSSHead
from model.heads.faster_rcnn import FasterRCNNHead
from model.heads.roi import RoIConfig
from model.heads.rpn import RPNConfig
from model.layers import downsample_mask
from model.position import valid_ratios
from model.types import Batch, Pyramid, Step, Targets
from tests.golden_topics.case import EXACT, FLOAT32, GRADIENT_NORM, PIXELS, Case, Comparison, Tolerance
from tests.golden_topics.official import of_co_detr

NUM_CLASSES, NUM_DETECTIONS = 5, 30
FEATURES = Tolerance(1e-4, 1e-4)
ONE_STAGE = {"two_stage": False, "box_refinement": False, "mixed_selection": False, "look_forward_twice": False}
HEADS = ("faster_rcnn", "atss")  # official numbers 0 and 1
EVERYTHING = 100_000  # samples per image: the files were made with nothing dropped
RCNN = FasterRCNNHead.Config(
    RPNConfig(num_samples=EVERYTHING, train_candidates=200, test_candidates=200, num_proposals=40),
    RoIConfig(num_samples=EVERYTHING, positive_fraction=0.5, finest_scale=28.0, fc_channels=16),
)
FROZEN = -1.0  # "gradient norm" of what the official model does not train
SCALARS = "query_head.transformer.head_pos_embed.weight"
# Rescaled detections divide by a factor; decoder states and references are what logits and boxes are computed from;
# the accuracy is no loss.
UNREAD = ("*_rescaled_*", "scale_factor", "batch_hw", "decout_*", "loss.acc0")


def detector_of(case: Case, **changes: bool) -> Detector:
    """The small ResNet-50 model of these files, with its parameters."""
    backbone = ResNetConfig(width=4)
    transformer = TransformerConfig(
        channels=32, num_encoder_layers=2, num_decoder_layers=2, feedforward_channels=64, num_attention_heads=8
    )
    config = DetectorConfig(
        backbone,
        transformer,
        num_queries=20,
        heads=(RCNN, ATSSHead.Config()),
        max_positive_queries=max(case[f"aux{head}_labels"].shape[1] for head in range(2)),  # one file has a cap
        compatibility="official",
        **changes,
    )
    detector = Detector(config, NUM_CLASSES)
    detector.load_state_dict(ours(case.under("param."), config))
    return detector


def ours(official: dict[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """The values under our names."""
    state = of_co_detr(official, HEADS, num_roi_heads=1)
    if not config.box_refinement:  # the official list names one shared branch twice
        state = {name: value for name, value in state.items() if "_branches.1" not in name}
    return state


def main(case: Case) -> Iterator[Comparison]:
    """Two-stage, box refinement, mixed selection, look-forward-twice."""
    yield from _compare(case, detector_of(case), two_stage=True)


def plain(case: Case) -> Iterator[Comparison]:
    """One-stage, without box refinement."""
    yield from _compare(case, detector_of(case, **ONE_STAGE), two_stage=False)


def _compare(case: Case, detector: Detector, two_stage: bool) -> Iterator[Comparison]:
    targets = Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))
    batch = Batch(case["img"], case["valid_hw"], targets, (0, 1))
    detector.eval()  # frozen norms, no dropout: training and evaluation are the same arithmetic
    with torch.no_grad():
        yield from features(case, detector, batch)
        yield from _decoded(case, detector, batch, two_stage)
        yield from _detected(case, detector, batch)
    with mock.patch("torch.rand", descending):
        total, losses = detector(batch)
    official_names = _loss_names(two_stage)
    assert official_names.keys() == losses.keys()
    for name, official in official_names.items():
        yield Comparison(name, losses[name] * detector.loss_weights[name], case[f"loss.{official}"].sum(), FLOAT32)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    total.backward()
    yield from _gradients(case, detector)


def _gradients(case: Case, detector: Detector) -> Iterator[Comparison]:
    """The norm of every parameter's gradient."""
    official = case.under("gradnorm.")
    embeddings = [detector.get_parameter(f"positive_queries.{head}.head_embedding").grad for head in HEADS]
    both = torch.cat([gradient for gradient in embeddings if gradient is not None])  # one table officially
    yield Comparison(SCALARS, both.double().norm(), official.pop(SCALARS), GRADIENT_NORM)
    norms = ours(official, detector.config)
    trained = {n: p for n, p in detector.named_parameters() if p.requires_grad and not n.endswith("head_embedding")}
    assert trained.keys() == {name for name, norm in norms.items() if (norm != FROZEN).all()}
    for name, parameter in trained.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        norm = gradient.double().abs() if name.endswith("level_scales") else gradient.double().norm()
        yield Comparison(f"gradnorm {name}", norm, norms[name], GRADIENT_NORM)


def _detected(case: Case, detector: Detector, batch: Batch) -> Iterator[Comparison]:
    for branch, found in detector.detect_branches(batch, ("decoder", *HEADS), NUM_DETECTIONS).items():
        for image, detections in enumerate(found):
            boxes, scores, labels = official_detections(case, branch, image)
            yield Comparison(f"{branch} scores {image}", detections.scores, scores, FLOAT32)
            yield Comparison(f"{branch} boxes {image}", detections.boxes_xyxy, boxes, PIXELS)
            yield Comparison(f"{branch} labels {image}", detections.labels, labels.long(), EXACT)


def descending(shape: torch.Size, device: torch.device) -> Tensor:
    """The official numbers were made with 'choose at random' meaning 'take the first'."""
    return torch.linspace(0.999, 0, shape[1], dtype=torch.float64, device=device).expand(shape)


def features(case: Case, detector: Detector, batch: Batch) -> Iterator[Comparison]:
    stages = detector.backbone(batch.images, lambda stride: None)
    for level, (ours, official) in enumerate(
        zip(detector.neck(stages, lambda stride: None), case.sequence("neck_level"), strict=True)
    ):
        yield Comparison(f"neck_level{level}", ours, official, FEATURES)
    memory, mask_at = detector.encode(batch)
    pyramid = detector.pyramid(memory, batch, mask_at)
    for level, (ours, official) in enumerate(zip(pyramid.levels, case.sequence("encoder_level"), strict=True)):
        yield Comparison(f"encoder_level{level}", ours, official, FEATURES)
    padding = [downsample_mask(batch.padding_mask, size) for size in memory.sizes]
    yield Comparison("valid_ratios_wh", valid_ratios(padding), case["valid_ratios_wh"], FLOAT32)


def _decoded(case: Case, detector: Detector, batch: Batch, two_stage: bool) -> Iterator[Comparison]:
    memory, mask_at = detector.encode(batch)
    proposals = detector.queries(memory, detector.config.num_queries)
    step = Step(batch, memory, proposals, mask_at)
    if two_stage:
        yield Comparison("enc_cls_class0", proposals.logits[..., 0], case["enc_cls_class0"], FEATURES)
        chosen = case["enc_topk_inds"][..., None].expand(-1, -1, 4)
        ours = proposals.boxes_cxcywh.gather(1, chosen)
        yield Comparison("enc_topk_boxes", ours, case["enc_topk_boxes"], FEATURES)
    pyramid = detector.pyramid(memory, batch, mask_at)
    yield from region_proposals(case, detector, pyramid)
    groups, names = [detector.main.queries(step)], ["main"]
    for number, (name, head) in enumerate(detector.named_heads()):
        positives = head.train_step(pyramid, batch.targets, with_losses=False)[1]
        group = detector.positive_queries[name]
        with mock.patch("torch.rand", descending):
            step.positives[name] = selection = group.select(positives, pyramid)
        aux = f"aux{number}"
        yield Comparison(f"{aux}_coords", selection.boxes_cxcywh, case[f"{aux}_coords"], FLOAT32)
        yield Comparison(f"{aux}_feats", selection.features, case[f"{aux}_feats"], FEATURES)
        yield from supervision(case, batch, aux, selection.gt_index, selection.weight)
        groups.append(group.queries(step))
        names.append(aux)
    outputs = detector.decoder(groups, memory).split([group.content.shape[1] for group in groups])
    for name, queries, output in zip(names, groups, outputs, strict=True):
        prefix = "dec" if name == "main" else name
        size = case[f"decin_{name}_reference"].shape[-1]
        yield Comparison(f"{name} content", queries.content, case[f"decin_{name}_query"], FEATURES)
        yield Comparison(f"{name} position", queries.position, case[f"decin_{name}_query_pos"], FEATURES)
        reference = queries.reference_cxcywh[..., :size]
        yield Comparison(f"{name} reference", reference, case[f"decin_{name}_reference"], FEATURES)
        yield Comparison(f"{name} logits", output.logits, case[f"{prefix}_cls_scores"], FEATURES)
        yield Comparison(f"{name} boxes", output.boxes_cxcywh, case[f"{prefix}_bbox_preds"], FEATURES)


def region_proposals(case: Case, detector: Detector, pyramid: Pyramid) -> Iterator[Comparison]:
    head = detector.heads["faster_rcnn"]
    assert isinstance(head, FasterRCNNHead)
    rpn = head.stages.proposals
    proposals = rpn.propose(rpn(pyramid), pyramid, training=True)
    for image, official in enumerate(case.sequence("rpn_proposals_img")):
        valid = proposals.valid[image]
        yield Comparison(f"proposals {image}", proposals.boxes_xyxy[image, valid], official[:, :4], PIXELS)
        yield Comparison(f"proposal scores {image}", proposals.scores[image, valid], official[:, 4], FLOAT32)


def supervision(case: Case, batch: Batch, aux: str, gt_index: Tensor, weight: Tensor) -> Iterator[Comparison]:
    """What the customised queries must predict."""
    background = gt_index < 0
    index = gt_index.clamp(min=0)
    labels = batch.targets.labels.gather(1, index).masked_fill(background, NUM_CLASSES)
    boxes = batch.targets.boxes_cxcywh(batch.valid_hw).gather(1, index[..., None].expand(-1, -1, 4))
    yield Comparison(f"{aux}_labels", labels, case[f"{aux}_labels"], EXACT)
    yield Comparison(f"{aux}_targets", boxes.masked_fill(background[..., None], 0), case[f"{aux}_targets"], FLOAT32)
    yield Comparison(f"{aux}_label_weights", weight, case[f"{aux}_label_weights"], EXACT)
    box_weights = (~background).float()[..., None].expand(-1, -1, 4)
    yield Comparison(f"{aux}_bbox_weights", box_weights, case[f"{aux}_bbox_weights"], EXACT)


def _loss_names(two_stage: bool) -> dict[str, str]:
    """Our name → the official key."""
    names = {
        "faster_rcnn/rpn_classification": "loss_rpn_cls",
        "faster_rcnn/rpn_boxes": "loss_rpn_bbox",
        "faster_rcnn/classification": "loss_cls0",
        "faster_rcnn/boxes": "loss_bbox0",
        "atss/classification": "loss_cls1",
        "atss/boxes": "loss_bbox1",
        "atss/centerness": "loss_centerness1",
    }
    for term, official in (("classification", "cls"), ("l1", "bbox"), ("giou", "iou")):
        for layer, prefix in ((0, "d0."), (1, "")):
            names[f"decoder.{layer}/{term}"] = f"{prefix}loss_{official}"
            for number, head in enumerate(HEADS):
                names[f"queries.{head}.{layer}/{term}"] = f"{prefix}loss_{official}_aux{number}"
        if two_stage:
            names[f"encoder/{term}"] = f"enc_loss_{official}"
    return names


def official_detections(case: Case, branch: str, image: int) -> tuple[Tensor, Tensor, Tensor]:
    if branch in HEADS:
        rows = case[f"det_{'rcnn' if branch == 'faster_rcnn' else branch}_img{image}"]
        return rows[:, :4], rows[:, 4], rows[:, 5]
    rows = case[f"det_bboxes_img{image}"]
    return rows[:, :4], rows[:, 4], case[f"det_labels_img{image}"]
