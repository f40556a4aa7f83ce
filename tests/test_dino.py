"""What is particular to DINO's proposals and decoder; the whole is compared with official numbers (test_golden.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.decoders.configs import DeformableDecoderConfig
from model.detector import Detector
from model.groups.configs import HybridConfig
from model.types import Step
from tests.support.rooms import make, masks_of, objective, padded_batch, padded_memory, shake
from tests.support.tiny import DINO, NUM_CLASSES, OF_REFERENCES, REFINED, tiny_batch, tiny_config


def detector_of(*heads: str, **changes: Any) -> Detector:
    torch.manual_seed(0)
    return Detector(tiny_config(*heads, **{**DINO, **changes}), NUM_CLASSES)


def test_the_encoder_learns_from_the_ranks_of_the_original_queries_alone() -> None:
    """And from all classes: other groups' ranks, and other tokens, get no gradient of its loss."""
    proposals = make("proposals", "classes", num_proposals=30, objective=objective(**OF_REFERENCES))  # 12 are main's
    memory, batch = padded_memory(), padded_batch()
    found = proposals(memory, 30)
    found.logits.retain_grad()
    losses = proposals.losses(Step(batch, memory, found, masks_of(batch)))
    fewer = proposals.losses(Step(batch, memory, proposals(memory, 12), masks_of(batch)))
    assert all(torch.equal(losses[name], fewer[name]) for name in losses)
    losses["encoder/classification"].backward()
    moved = (found.logits.grad != 0).any(-1)
    assert torch.equal(moved, torch.zeros_like(moved).scatter(1, found.chosen[:, :12], True))


def test_tokens_rank_by_their_likeliest_class_and_references_carry_no_gradient() -> None:
    proposals = make("proposals", "classes", num_proposals=12, objective=objective(**OF_REFERENCES))
    found = proposals(padded_memory(), 12)
    scores = found.logits.amax(-1).masked_fill(found.excluded, -torch.inf)
    assert torch.equal(scores.topk(12).indices, found.chosen)
    assert found.boxes_cxcywh.requires_grad and not found.queries.reference_cxcywh.requires_grad


def test_hybrid_queries_start_where_the_original_ones_end() -> None:
    groups = (HybridConfig(number=9, repeats=3), *DINO["groups"])
    detector = detector_of("atss", groups=groups)
    total, losses = detector(tiny_batch())
    total.backward()
    assert torch.isfinite(total) and {"hybrid.1/l1", "denoising.1/l1", "queries.atss.1/l1"} <= losses.keys()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


@pytest.mark.parametrize("features", [True, False])
def test_customised_queries_hold_features_or_not(features: bool) -> None:
    names = {name.split(".")[2] for name in group_names(detector_of("atss", positive_features=features))}
    assert names == {"box_proj", "box_norm", *(("feature_proj", "feature_norm") if features else ())}


def test_an_embedding_of_the_head_belongs_to_positions_beside_features() -> None:
    assert any("head_embedding" in name for name in group_names(Detector(tiny_config("atss"), NUM_CLASSES)))
    bare = Detector(tiny_config("atss", positive_features=False), NUM_CLASSES)
    assert not any("head_embedding" in name for name in group_names(bare))
    bare(tiny_batch())[0].backward()
    assert all(p.grad is not None for p in bare.positive_queries.parameters())


def group_names(detector: Detector) -> list[str]:
    return [name for name, _ in detector.named_parameters() if name.startswith("positive_queries.")]


def decode(config: DeformableDecoderConfig, **changes: Any) -> Tensor:
    """Boxes [N, B, Q, 4] of a fresh one-stage detector."""
    torch.manual_seed(0)
    detector = Detector(tiny_config(decoder=config, **{**REFINED, **changes}), NUM_CLASSES)
    with torch.no_grad():
        memory, _ = detector.encode(tiny_batch())
        boxes: Tensor = detector.decoder([detector.initial_queries(memory)], memory).boxes_cxcywh
    return boxes


def test_a_branch_for_all_layers_does_not_shrink_points_layer_by_layer() -> None:
    own, shared = (decode(DeformableDecoderConfig(position="reference", shared_branches=s))[..., 2:] for s in (0, 1))
    torch.testing.assert_close(own, torch.full_like(own, 0.1192), atol=1e-4, rtol=0)
    torch.testing.assert_close(shared, torch.full_like(shared, 0.5))


def test_points_get_positions_from_where_they_are() -> None:
    """Two points with one content differ by their place alone."""
    detector = Detector(tiny_config(**REFINED, **OF_REFERENCES), NUM_CLASSES)
    shake(detector.decoder)
    assert detector.decoder.position is not None
    near, far = torch.tensor([[[0.2, 0.3, 0.5, 0.5]]]), torch.tensor([[[0.8, 0.3, 0.5, 0.5]]])
    moved = (detector.decoder.position(near) - detector.decoder.position(far)).abs().sum()
    assert moved > 0.01


@pytest.mark.parametrize("epsilon", [0.0, 0.5, -1.0])
def test_an_epsilon_outside_its_range_is_told(epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"^inverse_sigmoid_epsilon must be in \(0, 0\.5\)"):
        DeformableDecoderConfig(inverse_sigmoid_epsilon=epsilon)
