"""DAB-DETR and Conditional-DETR: the whole models, from the map of the last backbone stage on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from model.assign.configs import HungarianConfig
from model.backbones.configs import ResNetConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.decoders.configs import ConditionalDecoderConfig, DabDecoderConfig
from model.detector import Detector
from model.encoders.configs import DenseEncoderConfig
from model.layers import Padding
from model.necks import NECKS
from model.necks.configs import ProjectionConfig
from model.official.conditional_detr import rename
from model.proposals.configs import AnchorsConfig, LearnedConfig
from model.types import Batch, Targets
from tests.golden_topics.case import EXACT, Case, Comparison, Tolerance, leaf
from tests.golden_topics.official import of_detr

NUM_CLASSES, HEADS, STRIDE = 5, 4, 32
TERMS = {"classification": "ce", "l1": "bbox", "giou": "giou"}
ENCODING, STATES = Tolerance(0, 2e-6), Tolerance(1e-4, 5e-5)
BOXES, LOSSES = Tolerance(0, 1e-5), Tolerance(1e-4, 1e-7)
SCORES, PIXELS = Tolerance(0, 1e-5), Tolerance(0, 2e-3)
GRADIENTS, NOTHING, NORMS = Tolerance(1e-3, 5e-4), Tolerance(0, 1e-4), Tolerance(1e-3, 1e-6)

DAB: dict[str, Any] = {
    "encoder": DenseEncoderConfig(position_temperature=20, scaled_position=True, activation="prelu"),
    "proposals": AnchorsConfig(),
    "decoder": DabDecoderConfig(),
    "box_refinement": True,
    "look_forward_twice": True,
}
CONDITIONAL: dict[str, Any] = {
    "encoder": DenseEncoderConfig(),
    "proposals": LearnedConfig(content="zero", points="mlp"),
    "decoder": ConditionalDecoderConfig(),
    "box_refinement": False,
    "look_forward_twice": False,
}


def detector_config(transformer: TransformerConfig, weights: LossWeights, model: dict[str, Any]) -> DetectorConfig:
    """One of the two models in this size; the box losses of DAB-DETR alone have an epsilon."""
    return DetectorConfig(
        ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=4, stages=(4,)),
        transformer,
        neck=ProjectionConfig(norm="none"),
        two_stage=False,
        mixed_selection=False,
        loss_weights=weights,
        assign=HungarianConfig(classification=2.0, log_epsilon=1e-8),
        loss_normaliser="objects",
        compatibility="official",
        **model,
    )


def norms(named: Iterator[tuple[str, Tensor]], official: dict[str, Tensor]) -> Iterator[Comparison]:
    """Gradient norms by our names; where the official one is 0, that is what mathematics say."""
    for name, parameter in named:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        tolerance = NORMS if official[name] else NOTHING
        yield Comparison(f"gradnorm {name}", gradient.double().norm(), official[name], tolerance)


def e2e_dab(case: Case) -> Iterator[Comparison]:
    """Boxes that are refined."""
    yield from _compare(case, DAB)


def e2e_conditional(case: Case) -> Iterator[Comparison]:
    """Points that stay."""
    yield from _compare(case, CONDITIONAL)


def _compare(case: Case, model: dict[str, Any]) -> Iterator[Comparison]:
    detector, feature = _detector(case, model), leaf(case["feature"])
    boxes, labels = (list(case.sequence(f"gt_{what}_img")) for what in ("bboxes", "labels"))
    valid_hw, (height, width) = case["valid_hw"], case["batch_hw"].tolist()
    batch = Batch(torch.zeros(len(boxes), 3, height, width), valid_hw, Targets.stack(boxes, labels))
    (mask,) = Padding(batch, official=True).of_levels([feature], (STRIDE,))
    yield Comparison("mask", mask, case["mask"], EXACT)
    with mock.patch.object(detector.backbone, "forward", lambda images, mask_at: [feature]):
        with torch.no_grad():
            yield from _decoded(case, detector, batch, ~mask.flatten(1))
            yield from _detected(case, detector, batch)
        total, losses = detector(batch)
    for layer, suffix in enumerate(("_0", "_1", "")):
        for term, official in TERMS.items():
            expected = case[f"loss.loss_{official}{suffix}"]
            yield Comparison(f"{term} {layer}", losses[f"decoder.{layer}/{term}"], expected, LOSSES)
    yield Comparison("loss_total", total, case["loss_total"], LOSSES)
    total.backward()
    assert feature.grad is not None
    yield Comparison("gradnorm_feature", feature.grad.double().norm(), case["gradnorm_feature"], NORMS)
    trained = ((n, p) for n, p in detector.named_parameters() if not n.startswith("backbone."))
    yield from norms(trained, of_detr(case.under("gradnorm."), rename))


def _detector(case: Case, model: dict[str, Any]) -> Detector:
    """Of the file's size, with its parameters."""
    state = of_detr(case.under("param."), rename)
    channels, feedforward = state["encoder.layers.0.feed_forward.2.weight"].shape
    layers = {part: sum(f"{part}.layers.{layer}.feed_forward.0.bias" in state for layer in range(9)) for part in PARTS}
    transformer = TransformerConfig(
        channels,
        num_levels=1,
        num_attention_heads=HEADS,
        num_encoder_layers=layers["encoder"],
        num_decoder_layers=layers["decoder"],
        feedforward_channels=feedforward,
    )
    weights = LossWeights(
        **{term: float(case[f"weight.loss_{official}"]) for term, official in TERMS.items()},
        giou_epsilon=1e-6 if model is DAB else 0.0,
    )
    queries = state["queries.anchors.weight" if model is DAB else "queries.embedding.weight"]
    config = detector_config(transformer, weights, {**model, "num_queries": len(queries)})
    detector = Detector(config, NUM_CLASSES).eval()
    # The files' map is narrower than any of our backbones'.
    widths = {"in_channels": (case["feature"].shape[1],), "in_strides": (STRIDE,)}
    detector.neck = NECKS.build(config.neck, **widths, channels=channels, num_levels=1)
    left = detector.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and all(name.startswith("backbone.") for name in left.missing_keys)
    return detector


PARTS = ("encoder", "decoder")


@contextmanager
def watched(decoder: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within: takes the normalised states and the references that the decoder predicts from."""
    found: dict[str, Tensor] = {}
    predict = decoder.predict

    def watch(states: Tensor, references: Tensor, looked_at: list[tuple[Tensor, Tensor]]) -> Any:
        found.update(states=decoder.norm(states), references=references)
        return predict(states, references, looked_at)

    with mock.patch.object(decoder, "predict", watch):
        yield found


def _decoded(case: Case, detector: Detector, batch: Batch, valid: Tensor) -> Iterator[Comparison]:
    memory, _ = detector.encode(batch)
    encoding = case["pos_embed"].flatten(2).transpose(1, 2)
    assert memory.position is not None
    yield Comparison("pos_embed", memory.position[valid], encoding[valid], ENCODING)
    yield Comparison("memory", memory.tokens[valid], case["memory"][valid], STATES)
    with watched(detector.decoder) as found:
        output = detector.decoder([detector.initial_queries(memory)], memory)
    yield Comparison("decoder_states", found["states"], case["decoder_states"], STATES)
    yield Comparison("references", found["references"], case["references"], BOXES)
    yield Comparison("cls_scores", output.logits, case["cls_scores"], STATES)
    yield Comparison("bbox_preds", output.boxes_cxcywh, case["bbox_preds"], BOXES)
    assigned = detector.assign(output.logits, output.boxes_cxcywh, batch.targets, batch.valid_hw)
    expected = torch.stack(case.sequence("assigned_img"), 1)
    yield Comparison("assigned", assigned, expected, EXACT)


def _detected(case: Case, detector: Detector, batch: Batch) -> Iterator[Comparison]:
    """The official boxes are not clipped."""
    for image, found in enumerate(detector.detect(batch, 100)):
        rows, (height, width) = case[f"det_bboxes_img{image}"], case["valid_hw"][image].tolist()
        clipped = rows[:, :4].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        yield Comparison(f"scores {image}", found.scores, rows[:, 4], SCORES)
        yield Comparison(f"boxes {image}", found.boxes_xyxy, clipped, PIXELS)
        yield Comparison(f"labels {image}", found.labels, case[f"det_labels_img{image}"], EXACT)
