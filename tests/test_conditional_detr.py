"""DAB-DETR and Conditional-DETR beyond the contracts of their parts and the official numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from harness.analyse.discriminability import attention_strength
from model.boxes import added_area, giou_aligned
from model.checks import Conflict
from model.decoders.configs import ConditionalDecoderConfig, DabDecoderConfig
from model.detector import Detector
from model.encoders.configs import DenseEncoderConfig
from model.groups.configs import HybridConfig
from model.proposals.anchors import AnchorQueries
from model.proposals.configs import AnchorsConfig
from model.types import QueryGroup, Step
from tests.golden_topics.single_scale import CONDITIONAL, DAB
from tests.support.decoder_contract import build, group_of
from tests.support.rooms import memory_of, objective, padded_memory, shake
from tests.support.tiny import NUM_CLASSES, OF_REFERENCES, PLAIN, tiny_batch, tiny_config

DETECTORS = {"dab": DAB, "conditional": CONDITIONAL}
EACH_DETECTOR = pytest.mark.parametrize("name", DETECTORS)


def detector_of(name: str, *heads: str, **changes: Any) -> Detector:
    torch.manual_seed(0)
    return Detector(tiny_config(*heads, **{**PLAIN, **DETECTORS[name], **changes}), NUM_CLASSES)


def boxes_of(*sides: float) -> QueryGroup:
    """Squares in the middle of the image."""
    reference = torch.tensor([[[0.5, 0.5, side, side] for side in sides]]).expand(3, -1, -1)
    return replace(group_of(len(sides)), reference_cxcywh=reference.clone())


# ---- what goes together


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"decoder": DabDecoderConfig(), **PLAIN}, "the decoder dab needs box_refinement: true"),
        ({"decoder": ConditionalDecoderConfig()}, "the decoder conditional needs box_refinement: false"),
        ({"proposals": AnchorsConfig()}, "the proposals anchors need two_stage: false"),
        (
            {"proposals": AnchorsConfig(), **PLAIN},
            "the proposals anchors have no positions, and the decoder deformable",
        ),
    ],
)
def test_settings_that_contradict_a_part_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Conflict, match=rf"^{told}[^\n]*$"):
        tiny_config(**changes)


def test_boxes_of_the_encoder_go_with_dab_as_well() -> None:
    config = tiny_config("atss", decoder=DabDecoderConfig(), groups=(HybridConfig(number=5),))
    total, losses = Detector(config, NUM_CLASSES)(tiny_batch())
    total.backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


# ---- how they begin


@EACH_DETECTOR
def test_every_matrix_of_the_transformer_is_xavier_and_boxes_begin_at_their_references(name: str) -> None:
    detector = detector_of(name)
    branches = [detector.decoder.box_branch, detector.decoder.class_branch]
    apart = {id(parameter) for branch in branches for parameter in branch.parameters()}
    for module in (detector.encoder, detector.decoder):
        for own, parameter in module.named_parameters():
            if parameter.dim() > 1 and id(parameter) not in apart:
                limit = math.sqrt(6 / sum(parameter.shape))
                assert 0.8 * limit < parameter.abs().max() <= limit, own
            elif own.endswith(("out_proj.bias", "in_proj.bias")):
                assert (parameter == 0).all(), own
    torch.testing.assert_close(branches[1].bias.sigmoid(), torch.full((NUM_CLASSES,), 0.01))
    group = detector.queries(memory_of((67, 93)), 12).queries
    boxes = detector.decoder([group], memory_of((67, 93))).boxes_cxcywh
    assert (group.content == 0).all()
    torch.testing.assert_close(boxes, group.reference_cxcywh.expand_as(boxes), rtol=0, atol=1e-3)
    slopes = [module.weight.item() for module in detector.modules() if isinstance(module, nn.PReLU)]
    assert slopes == ([0.25] * 3 if name == "dab" else [])


def distance_looked_at(name: str, **settings: Any) -> float:
    """How far from their points the queries of a new detector's last layer look, as a share of the image."""
    decoder = replace(DETECTORS[name]["decoder"], **settings)
    detector = detector_of(name, decoder=decoder, encoder=DenseEncoderConfig())
    memory, _ = detector.encode(tiny_batch())
    points = torch.cartesian_prod(*[torch.tensor([0.1, 0.3, 0.5])] * 2).expand(len(memory.tokens), -1, -1)
    group = group_of(points.shape[1], images=len(points))
    boxes = torch.cat([points, torch.full_like(points, 0.5)], -1)
    group = replace(group, content=torch.zeros_like(group.content), reference_cxcywh=boxes)
    looked_at = detector.decoder([group], memory, look=True).looked_at
    assert looked_at is not None
    places, weights = looked_at
    distances = (places - points[:, :, None, None, None]).norm(dim=-1)
    return float((weights * distances).sum((2, 3, 4)).mean())


@EACH_DETECTOR
def test_with_a_local_start_queries_look_around_their_points(name: str) -> None:
    assert distance_looked_at(name, local_start=4.0) < 0.9 * distance_looked_at(name)


def anchors_of(centres: Any, number: int = 2000) -> AnchorQueries:
    torch.manual_seed(0)
    return AnchorQueries(AnchorsConfig(centres), num_proposals=number, objective=objective(**OF_REFERENCES))


def test_anchors_gather_in_the_middle_or_lie_all_over_the_image() -> None:
    memory = memory_of((67, 93))
    normal, uniform, fixed = (anchors_of(kind)(memory, 2000).queries for kind in ("normal", "uniform", "fixed"))
    logits = normal.reference_cxcywh.detach().logit()
    assert abs(float(logits.mean())) < 0.05 and abs(float(logits.std()) - 1) < 0.05
    for group in (uniform, fixed):
        centres = group.reference_cxcywh[..., :2]
        share, _ = torch.histogram(centres.detach().flatten(), 4, range=(0.0, 1.0))
        assert (abs(share / share.sum() - 0.25) < 0.03).all()
    assert normal.position is None and (normal.content == 0).all()


def test_fixed_centres_stay_and_are_saved() -> None:
    anchors, memory = anchors_of("fixed", 6), memory_of((67, 93))
    before = anchors(memory, 6).queries.reference_cxcywh.detach().clone()
    optimizer = torch.optim.AdamW(anchors.parameters(), 0.1, weight_decay=0.5)
    anchors(memory, 6).queries.reference_cxcywh.square().sum().backward()
    optimizer.step()
    after = anchors(memory, 6).queries.reference_cxcywh
    assert torch.equal(after[..., :2], before[..., :2]) and (after[..., 2:] != before[..., 2:]).all()
    torch.manual_seed(5)
    other = AnchorQueries(AnchorsConfig("fixed"), num_proposals=6, objective=objective(**OF_REFERENCES))
    other.load_state_dict(anchors.state_dict())
    assert torch.equal(other(memory, 6).queries.reference_cxcywh, after)


# ---- how references count


def test_conditional_reads_the_centres_of_boxes_alone() -> None:
    decoder, memory, group = build("conditional"), padded_memory(), group_of(5)
    boxes = group.reference_cxcywh.clone()
    boxes[..., 2:] = torch.rand(3, 5, 2)
    same = decoder([replace(group, reference_cxcywh=boxes, has_size=False)], memory)
    moved = decoder([replace(group, reference_cxcywh=boxes + 0.1)], memory)
    output = decoder([group], memory)
    assert torch.equal(output.logits, same.logits) and torch.equal(output.boxes_cxcywh, same.boxes_cxcywh)
    assert not torch.allclose(output.logits, moved.logits, atol=1e-3)


def test_boxes_without_area_are_finite_and_so_are_their_gradients() -> None:
    decoder, memory = build("dab"), padded_memory()
    group = boxes_of(0.0, 1e-12, 1.0)
    group.reference_cxcywh.requires_grad_()
    output = decoder([group], memory)
    (output.logits.sum() + output.boxes_cxcywh.sum()).backward()
    found = [output.logits, output.boxes_cxcywh, group.reference_cxcywh.grad]
    assert all(torch.isfinite(value).all() for value in [*found, *(p.grad for p in decoder.parameters())])


def test_customised_queries_of_dab_keep_away_from_boxes_without_area() -> None:
    detector, batch = detector_of("dab", "atss"), tiny_batch((3, 1))
    memory, mask_at = detector.encode(batch)
    step = Step(batch, memory, detector.queries(memory, 12), mask_at)
    detector._train_heads(step)
    selection = step.positives["atss"]
    boxes = selection.boxes_cxcywh.clone()
    boxes[:, 0] = torch.tensor([-0.5, 1.5, 0.0, 1e-9])
    step.positives["atss"] = replace(selection, boxes_cxcywh=boxes)
    group = detector.query_groups()[-1].queries(step)
    limits = group.reference_cxcywh.min(), group.reference_cxcywh.max()
    torch.testing.assert_close(torch.stack(limits), torch.tensor([1e-3, 1 - 1e-3]))
    torch.testing.assert_close(group.reference_cxcywh[:, 1:], boxes[:, 1:].clamp(1e-3, 1 - 1e-3), rtol=0, atol=1e-4)
    assert group.position is None and group.gt_index is not None


@EACH_DETECTOR
def test_customised_queries_train_what_zero_contents_cannot(name: str) -> None:
    """The first self-attention's queries, keys and value matrix have no gradient from equal contents."""
    weights = ("query_content", "key_content", "query_position", "key_position", "value")
    found = []
    for heads in ((), ("atss",)):
        detector = detector_of(name, *heads)
        shake(detector.decoder)
        total, _ = detector(tiny_batch((3, 1)))
        total.backward()
        first = detector.decoder.layers[0].self_attention
        found.append([float(getattr(first, weight).weight.grad.abs().max()) for weight in weights])
    assert max(found[0]) < 1e-6 < min(found[1])


def test_gradients_reach_the_layer_before_only_if_boxes_look_forward_twice() -> None:
    reached = []
    for forward in (True, False):
        decoder = build("dab", look_forward_twice=forward)
        group = group_of(4)
        group.reference_cxcywh.requires_grad_()
        decoder([group], padded_memory()).boxes_cxcywh[1].sum().backward()
        reached.append(group.reference_cxcywh.grad is not None and float(group.reference_cxcywh.grad.abs().sum()))
    assert reached[0] > reached[1] > 0  # through the first layer's attention in any case


# ---- where dense attention looks


@pytest.mark.parametrize("name", DETECTORS)
def test_attention_lies_on_the_tokens_of_every_level(name: str) -> None:
    decoder, memory = build(name), padded_memory()
    output = decoder([group_of(5)], memory, look=True)
    assert output.looked_at is not None and memory.padding is not None
    counted = torch.tensor([[True, False, True, True, False]]).expand(3, -1)
    maps = attention_strength(*output.looked_at, memory.sizes, counted)
    assert [tuple(own.shape[1:]) for own in maps] == list(memory.sizes)
    strength = torch.cat([own.flatten(1) for own in maps], 1)
    torch.testing.assert_close(strength.sum(1), torch.full((3,), 3.0))
    assert (strength[memory.padding] < 1e-5).all() and (strength[~memory.padding] > 0).all()
    weights = output.looked_at[1]
    expected = torch.cat([weights[:, :, 0, level, : h * w] for level, (h, w) in enumerate(memory.sizes)], 2)
    torch.testing.assert_close(strength, (expected * counted[..., None]).sum(1), rtol=1e-3, atol=1e-5)


@EACH_DETECTOR
def test_an_encoder_that_does_not_tell_places_is_told_of(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.decoder: {name} needs an encoder that [^\n]*$"):
        build(name)([group_of(5)], replace(padded_memory(), position=None))


# ---- GIoU


def test_the_added_area_makes_small_boxes_overlap_less() -> None:
    hw = torch.tensor([512.0, 2048.0])
    for side, expected in ((1 / 1024, 0.488), (1 / 256, 0.9385), (0.5, 1.0)):
        box = torch.tensor([100.0, 100.0, 100 + 2048 * side, 100 + 512 * side])
        assert giou_aligned(box, box, added_area(1e-6, hw)) == pytest.approx(expected, abs=1e-3)
        assert giou_aligned(box, box, added_area(0.0, hw)) == pytest.approx(1)
