"""Co-DINO with the official parameters and `compatibility: official`, with and without its auxiliary heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

from model.assign.configs import HungarianConfig
from model.backbones.configs import ResNetConfig
from model.classification.configs import QualityConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.decoders.configs import DeformableDecoderConfig
from model.detector import Detector
from model.encoders.configs import DeformableEncoderConfig
from model.groups.configs import DenoisingConfig
from model.heads.atss import ATSSHead
from model.postprocess.configs import SoftNMSConfig
from model.proposals.configs import ClassesConfig
from model.types import BACKGROUND, Batch, Pyramid, QueryGroup, Step, Targets
from tests.golden_topics.case import EXACT, FLOAT32, GRADIENT_NORM, PIXELS, Case, Comparison, leaf
from tests.golden_topics.denoising import denoising_queries, recorded_noise
from tests.golden_topics.end_to_end import (
    FEATURES,
    FROZEN,
    HEADS,
    NUM_CLASSES,
    RCNN,
    descending,
    features,
    official_detections,
    region_proposals,
    supervision,
)
from tests.golden_topics.hybrid import given_levels
from tests.golden_topics.official import of_co_detr

NUM_QUERIES = 20
NUM_DETECTIONS = {"decoder": 20, "faster_rcnn": 30, "atss": 30}
OFFICIAL = {"classification": "cls", "l1": "bbox", "giou": "iou"}
# Rescaled detections divide by a factor; decoder states and references are what logits and boxes are computed from;
# the accuracy is no loss; features are not used for queries.
UNREAD = ("*_rescaled_*", "scale_factor", "batch_hw", "decout_*", "loss.acc0", "aux?_feats")
# Without heads nobody makes, or sees, the level that the adapter adds.
UNREAD_5 = ("decout_*", "loss.acc0", "encoder_level5")


def e2e_dino(case: Case) -> Iterator[Comparison]:
    """Four levels, from the image on."""
    detector = detector_of(case, ResNetConfig(width=4), num_levels=4, number=10, finest_scale=28.0, heads=True)
    batch = Batch(case["img"], case["valid_hw"], _targets(case), (0, 1))
    with torch.no_grad():
        yield from features(case, detector, batch)
    yield from _compare(case, detector, batch)
    for branch in HEADS:  # the decoder's detections are among what follows from given levels too
        yield from _detected(case, detector, batch, branch)
    yield from _gradients(case, detector, {})


def e2e_dino5(case: Case) -> Iterator[Comparison]:
    """Five levels, from the neck's output on; no heads is plain DINO."""
    heads, number = "param.bbox_head.0.atss_cls.weight" in case, int(case["num_dn_queries"])
    strides = tuple(case["feature_strides"].tolist())
    backbone = ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=8, stages=(1, 2, 3, 4))
    detector = detector_of(case, backbone, num_levels=5, number=number, finest_scale=14.0, heads=heads)
    assert detector.strides == strides
    height, width = case["batch_hw"].tolist()
    # Without the mask an image is what it was padded to.
    valid_hw = case["valid_hw"].where(case["with_attn_mask"], case["batch_hw"])
    batch = Batch(torch.zeros(2, 3, height, width), valid_hw, _targets(case), (0, 1))
    levels = [leaf(level) for level in case.sequence("neck_level")]
    with given_levels(detector, levels):
        with torch.no_grad():
            memory, mask_at = detector.encode(batch)
            yield Comparison("valid_ratios_wh", memory.ratios, case["valid_ratios_wh"], FLOAT32)
            maps = detector.pyramid(memory, batch, mask_at).levels if heads else memory.maps()
            for index, own in enumerate(maps):
                yield Comparison(f"encoder_level{index}", own, case[f"encoder_level{index}"], FEATURES)
        yield from _compare(case, detector, batch)
    yield from _gradients(case, detector, {f"neck_level{index}": level for index, level in enumerate(levels)})


def _targets(case: Case) -> Targets:
    return Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))


def detector_of(
    case: Case, backbone: ResNetConfig, *, num_levels: int, number: int, finest_scale: float, heads: bool
) -> Detector:
    """Of the file's size, with its parameters."""
    rcnn = replace(RCNN, roi=replace(RCNN.roi, finest_scale=finest_scale))
    config = DetectorConfig(
        backbone,
        TransformerConfig(32, num_levels, num_encoder_layers=2, num_decoder_layers=2, feedforward_channels=64),
        num_queries=NUM_QUERIES,
        heads=(rcnn, ATSSHead.Config()) if heads else (),
        max_positive_queries=max(case[f"aux{head}_labels"].shape[1] for head in range(2)) if heads else 300,
        positive_features=False,
        loss_weights=LossWeights(classification=1.0),
        assign=HungarianConfig(classification=2.0),
        classification=QualityConfig(),
        encoder=DeformableEncoderConfig(position_offset=0.0, position_temperature=20.0),
        decoder=DeformableDecoderConfig(position="reference", final_norm=True, inverse_sigmoid_epsilon=1e-3),
        proposals=ClassesConfig(),
        groups=(DenoisingConfig(number=number),),
        postprocess=SoftNMSConfig(),
        compatibility="official",
    )
    detector = Detector(config, NUM_CLASSES).eval()
    left = detector.load_state_dict(_ours(case, "param.", heads), strict=False)
    given = () if "img" in case else ("backbone.", "neck.")
    assert not left.unexpected_keys and all(name.startswith(given) for name in left.missing_keys)
    return detector


def _ours(case: Case, prefix: str, heads: bool) -> dict[str, Tensor]:
    return of_co_detr(case.under(prefix), HEADS, num_roi_heads=1) if heads else of_co_detr(case.under(prefix))


@contextmanager
def official_draws(case: Case, detector: Detector, batch: Batch) -> Iterator[None]:
    """Noise as recorded; of the heads' candidates the first ones."""
    noise = recorded_noise(case, batch.targets)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(detector.groups["denoising"], "draw", lambda *shape: noise))
        stack.enter_context(mock.patch("torch.rand", descending))
        yield


def _compare(case: Case, detector: Detector, batch: Batch) -> Iterator[Comparison]:
    with torch.no_grad(), official_draws(case, detector, batch):
        yield from _decoded(case, detector, batch)
        yield from _detected(case, detector, batch, "decoder")
    with official_draws(case, detector, batch):
        total, losses = detector(batch)
    official_names = _loss_names(detector)
    assert official_names.keys() == losses.keys()
    for name, official in official_names.items():
        yield Comparison(name, losses[name] * detector.loss_weights[name], case[f"loss.{official}"].sum(), FLOAT32)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    total.backward()


def _decoded(case: Case, detector: Detector, batch: Batch) -> Iterator[Comparison]:
    memory, mask_at = detector.encode(batch)
    step = Step(batch, memory, detector.queries(memory, detector.num_proposals), mask_at)
    yield from _chosen(case, detector, step)
    aux = []
    if len(detector.heads):
        pyramid = detector.pyramid(memory, batch, mask_at)
        yield from region_proposals(case, detector, pyramid)
        for number, name in enumerate(HEADS):
            yield from _select(case, detector, step, pyramid, f"aux{number}", name)
            aux.append(f"aux{number}")
    groups = [group.queries(step) for group in detector.query_groups()]
    outputs = detector.decoder(groups, memory).split([group.content.shape[1] for group in groups])
    yield from _denoised(case, groups[-1], batch)
    order = {"main": (-1, 0), **{name: (1 + number,) for number, name in enumerate(aux)}}
    for name, indices in order.items():  # officially denoising queries come before the original ones
        prefix, own = "dec" if name == "main" else name, [groups[index] for index in indices]
        for what, actual, official in (
            ("content", [group.content for group in own], f"decin_{name}_query"),
            ("reference", [group.reference_cxcywh for group in own], f"decin_{name}_reference"),
            ("logits", [outputs[index].logits for index in indices], f"{prefix}_cls_scores"),
            ("boxes", [outputs[index].boxes_cxcywh for index in indices], f"{prefix}_bbox_preds"),
        ):
            yield Comparison(f"{name} {what}", torch.cat(actual, -2), case[official], FEATURES)
    if "match_enc_img0" in case:
        main = outputs[0]
        matched = detector.assign(main.logits, main.boxes_cxcywh, batch.targets, batch.valid_hw)
        for layer in range(2):
            yield Comparison(f"match_layer{layer}", matched[layer], _matches(case, f"layer{layer}"), EXACT)


def _chosen(case: Case, detector: Detector, step: Step) -> Iterator[Comparison]:
    """The encoder's best tokens, and what they are matched with."""
    proposals = step.proposals
    assert proposals.logits is not None and proposals.boxes_cxcywh is not None and proposals.chosen is not None
    chosen = proposals.chosen[..., None]
    logits, boxes = (
        values.gather(1, chosen.expand(-1, -1, values.shape[-1]))
        for values in (proposals.logits, proposals.boxes_cxcywh)
    )
    yield Comparison("enc_topk_scores", logits, case["enc_topk_scores"], FEATURES)
    yield Comparison("enc_topk_boxes", boxes, case["enc_topk_boxes"], FEATURES)
    if "enc_topk_inds" in case:
        yield Comparison("enc_topk_inds", proposals.chosen, case["enc_topk_inds"], EXACT)
        yield Comparison("enc_cls_max", proposals.logits.amax(-1), case["enc_cls_max"], FEATURES)
        matched = detector.assign(logits[None], boxes[None], step.batch.targets, step.batch.valid_hw)
        yield Comparison("match_enc", matched[0], _matches(case, "enc"), EXACT)


def _matches(case: Case, name: str) -> Tensor:
    return torch.stack([case[f"match_{name}_img{image}"] for image in range(2)])


def _select(case: Case, detector: Detector, step: Step, pyramid: Pyramid, aux: str, name: str) -> Iterator[Comparison]:
    """A head's customised queries: which candidates, and what they must predict."""
    head, group = cast(Any, detector.heads[name]), cast(Any, detector.positive_queries[name])
    positives = head.train_step(pyramid, step.batch.targets, with_losses=False)[1]
    step.positives[name] = selection = group.select(positives, pyramid)
    yield Comparison(f"{aux}_coords", selection.boxes_cxcywh, case[f"{aux}_coords"], FLOAT32)
    yield from supervision(case, step.batch, aux, selection.gt_index, selection.weight)


def _denoised(case: Case, queries: QueryGroup, batch: Batch) -> Iterator[Comparison]:
    """Denoising queries, and what they must predict."""
    yield from denoising_queries(case, queries, NUM_QUERIES)
    if "dn_target_labels_img0" not in case:
        return
    assert queries.gt_index is not None
    background, index = queries.gt_index == BACKGROUND, queries.gt_index.clamp(min=0)
    labels = batch.targets.labels.gather(1, index).masked_fill(background, NUM_CLASSES)
    boxes = batch.targets.boxes_cxcywh(batch.valid_hw).gather(1, index[..., None].expand(-1, -1, 4))
    for image in range(2):
        weights = case[f"dn_target_box_weights_img{image}"]
        yield Comparison(f"dn labels {image}", labels[image], case[f"dn_target_labels_img{image}"], EXACT)
        yield Comparison(f"dn weights {image}", (~background[image, :, None]).expand(-1, 4).float(), weights, EXACT)
        official = case[f"dn_target_boxes_img{image}"] * weights
        yield Comparison(f"dn boxes {image}", boxes[image] * weights, official, FLOAT32)


def _detected(case: Case, detector: Detector, batch: Batch, branch: str) -> Iterator[Comparison]:
    for image, found in enumerate(detector.detect_branches(batch, (branch,), NUM_DETECTIONS[branch])[branch]):
        boxes, scores, labels = official_detections(case, branch, image)
        yield Comparison(f"{branch} scores {image}", found.scores, scores, FLOAT32)
        yield Comparison(f"{branch} boxes {image}", found.boxes_xyxy, boxes, PIXELS)
        yield Comparison(f"{branch} labels {image}", found.labels, labels.long(), EXACT)


def _gradients(case: Case, detector: Detector, inputs: dict[str, Tensor]) -> Iterator[Comparison]:
    """The norm of every parameter's gradient, and of each given map's."""
    norms = _ours(case, "gradnorm.", bool(len(detector.heads)))
    for name, level in inputs.items():
        assert level.grad is not None
        yield Comparison(f"gradnorm {name}", level.grad.double().norm(), norms.pop(name), GRADIENT_NORM)
    given = ("backbone.", "neck.") if inputs else ()
    trained = {n: p for n, p in detector.named_parameters() if p.requires_grad and not n.startswith(given)}
    assert trained.keys() == {name for name, norm in norms.items() if (norm != FROZEN).all()}
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        gradient = parameter.grad.double()
        norm = gradient.abs() if name.endswith("level_scales") else gradient.norm()
        yield Comparison(f"gradnorm {name}", norm, norms[name], GRADIENT_NORM)


def _loss_names(detector: Detector) -> dict[str, str]:
    """Our name → the official key."""
    names = {}
    if len(detector.heads):
        names |= {
            "faster_rcnn/rpn_classification": "loss_rpn_cls",
            "faster_rcnn/rpn_boxes": "loss_rpn_bbox",
            "faster_rcnn/classification": "loss_cls0",
            "faster_rcnn/boxes": "loss_bbox0",
            "atss/classification": "loss_cls1",
            "atss/boxes": "loss_bbox1",
            "atss/centerness": "loss_centerness1",
        }
    for term, official in OFFICIAL.items():
        names[f"encoder/{term}"] = f"enc_loss_{official}"
        for layer, prefix in ((0, "d0."), (1, "")):
            names[f"decoder.{layer}/{term}"] = f"{prefix}loss_{official}"
            names[f"denoising.{layer}/{term}"] = f"{prefix}dn_loss_{official}"
            if len(detector.heads):
                for number, head in enumerate(HEADS):
                    names[f"queries.{head}.{layer}/{term}"] = f"{prefix}loss_{official}_aux{number}"
    return names
