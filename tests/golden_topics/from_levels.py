"""Whole models from the neck's output on: what the topics of query groups share."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from model.attention import Visibility
from model.detector import Detector
from model.types import Batch, DecoderOutput, QueryGroup, Step, Targets
from tests.golden_topics.case import EXACT, FLOAT32, GRADIENT_NORM, PIXELS, Case, Comparison, Tolerance
from tests.support.visibility import seen_by

FEATURES = Tolerance(1e-4, 1e-4)
OFFICIAL = {"classification": "ce", "l1": "bbox", "giou": "giou"}
# Measures of how many queries are right, which nobody learns by; sizes that other arrays hold; states
# that logits and boxes are computed from.
UNREAD = ("loss.class_error*", "loss.cardinality_error*", "gt_cxcywh_img*", "decout_*")
WITHOUT = ("backbone.", "neck.")  # parts that the files stand in for


def targets_of(case: Case) -> Targets:
    """The ground truths of the file."""
    return Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))


def batch_of(case: Case) -> Batch:
    """The file's images, of which nobody sees a pixel."""
    height, width = case["batch_hw"].tolist()
    return Batch(torch.zeros(2, 3, height, width), case["valid_hw"], targets_of(case), (0, 1))


def found_in(case: Case, name: str) -> Tensor:
    """[B, Q] of the official matches `match_<name>_img<i>`."""
    return torch.stack([case[f"match_{name}_img{image}"] for image in range(2)])


@contextmanager
def given_levels(detector: Detector, levels: list[Tensor]) -> Iterator[None]:
    """The file's maps in place of the backbone's and the neck's."""
    with (
        mock.patch.object(detector.backbone, "forward", lambda images, mask_at: []),
        mock.patch.object(detector.neck, "forward", lambda stages, mask_at: levels),
    ):
        yield


def load(detector: Detector, parameters: dict[str, Tensor]) -> Detector:
    """The detector with these parameters, all of them and no other but those of `WITHOUT`."""
    left = detector.load_state_dict(parameters, strict=False)
    assert not left.unexpected_keys and all(name.startswith(WITHOUT) for name in left.missing_keys), left
    return detector.eval()


class Decoded(NamedTuple):
    """One pass of all query groups."""

    step: Step
    groups: list[QueryGroup]
    outputs: list[DecoderOutput]


def decode(detector: Detector, batch: Batch) -> Decoded:
    """As in training."""
    memory, mask_at = detector.encode(batch)
    step = Step(batch, memory, detector.queries(memory, detector.num_proposals), mask_at)
    groups = [group.queries(step) for group in detector.query_groups()]
    output = detector.decoder(groups, memory)
    return Decoded(step, groups, output.split([group.content.shape[1] for group in groups]))


def together(outputs: list[DecoderOutput]) -> DecoderOutput:
    """Of all groups, side by side."""
    return DecoderOutput(
        torch.cat([output.logits for output in outputs], 2), torch.cat([output.boxes_cxcywh for output in outputs], 2)
    )


def compare_deformable(case: Case, detector: Detector, batch: Batch) -> Generator[Comparison, None, Decoded]:
    """Encoder, proposals, queries, what they see, and what the decoder says; returns the pass."""
    decoded = decode(detector, batch)
    memory, proposals = decoded.step.memory, decoded.step.proposals
    for index, (own, official) in enumerate(zip(memory.maps(), case.sequence("encoder_level"), strict=True)):
        yield Comparison(f"encoder_level{index}", own, official, FEATURES)
    yield Comparison("valid_ratios_wh", memory.ratios, case["valid_ratios_wh"], FLOAT32)
    if proposals.logits is not None:
        assert proposals.chosen is not None and proposals.boxes_cxcywh is not None
        yield Comparison("enc_cls_class0", proposals.logits[..., 0], case["enc_cls_class0"], FEATURES)
        yield Comparison("enc_topk_inds", proposals.chosen, case["enc_topk_inds"], EXACT)
        chosen = proposals.boxes_cxcywh.gather(1, proposals.chosen[..., None].expand(-1, -1, 4))
        yield Comparison("enc_topk_boxes", chosen, case["enc_topk_boxes"], FEATURES)
        binary = Targets(batch.targets.boxes_xyxy, batch.targets.labels.clamp(max=0))
        gt_index = detector.assign(proposals.logits[None], proposals.boxes_cxcywh[None], binary, batch.valid_hw)
        yield Comparison("match_enc", gt_index[0], found_in(case, "enc"), EXACT)
    size = case["decin_reference"].shape[-1]
    for name, values in (
        ("decin_query", [group.content for group in decoded.groups]),
        ("decin_query_pos", [group.position for group in decoded.groups]),
        ("decin_reference", [group.reference_cxcywh[..., :size] for group in decoded.groups]),
    ):
        yield Comparison(name, torch.cat(values, 1), case[name], FEATURES)
    seen = seen_by(Visibility.of(decoded.groups), 1, detector.num_proposals)[0]
    yield Comparison("self_attn_mask", ~seen, case["self_attn_mask"], EXACT)
    output = together(decoded.outputs)
    yield Comparison("dec_cls_scores", output.logits, case["dec_cls_scores"], FEATURES)
    yield Comparison("dec_bbox_preds", output.boxes_cxcywh, case["dec_bbox_preds"], FEATURES)
    return decoded


def compare_inference(
    case: Case, detector: Detector, batch: Batch, first: DecoderOutput | None = None
) -> Iterator[Comparison]:
    """Inference has the original queries alone, and says of them what training said; official boxes are not clipped."""
    if first is not None:
        memory, _ = detector.encode(batch)
        alone = detector.decoder([detector.initial_queries(memory)], memory)
        same = Tolerance(0, 2e-5)
        yield Comparison("logits at inference", alone.logits, first.logits, same)
        yield Comparison("boxes at inference", alone.boxes_cxcywh, first.boxes_cxcywh, same)
    for image, found in enumerate(detector.detect(batch, 20)):
        rows, (height, width) = case[f"det_bboxes_img{image}"], case["valid_hw"][image].tolist()
        clipped = rows[:, :4].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        yield Comparison(f"scores {image}", found.scores, rows[:, 4], FLOAT32)
        yield Comparison(f"boxes {image}", found.boxes_xyxy, clipped, PIXELS)
        yield Comparison(f"labels {image}", found.labels, case[f"det_labels_img{image}"], EXACT)


def compare_gradients(
    detector: Detector, levels: Mapping[str, Tensor], norms: dict[str, Tensor]
) -> Iterator[Comparison]:
    """The norms of all gradients, those of the parameters by our names."""
    trained = {name: own for name, own in detector.named_parameters() if not name.startswith(WITHOUT)}
    assert {*trained, *levels} == norms.keys()
    for name, values in {**levels, **trained}.items():
        gradient = torch.zeros_like(values) if values.grad is None else values.grad
        yield Comparison(f"gradnorm {name}", gradient.double().norm(), norms[name], GRADIENT_NORM)
