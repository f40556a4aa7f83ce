"""`compatibility: official`: the released code's ways, which the default leaves where they only do harm."""

from __future__ import annotations

import pytest
import torch

from model.detector import Detector
from tests.support.tiny import PLAIN, tiny_batch, tiny_config


def build(*heads: str, compatibility: str = "official", **changes) -> Detector:
    torch.manual_seed(0)
    return Detector(tiny_config(*heads, compatibility=compatibility, **changes), 5)


def losses_of(detector: Detector, canvas: tuple[int, int] = (96, 96)) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return detector(tiny_batch(counts=(3, 2), sizes=((96, 96), (96, 96)), canvas=canvas))[1]


def test_without_padding_both_are_the_same() -> None:
    default, official = (build("atss", compatibility=name, **PLAIN) for name in ("default", "official"))
    state = official.state_dict()
    embedding = "positive_queries.atss.head_embedding"
    assert state[embedding].shape == (1,)
    state[embedding] = torch.tensor([0.3])
    official.load_state_dict(state)
    default.load_state_dict({**state, embedding: torch.full((32,), 0.3)})
    ours, theirs = losses_of(default), losses_of(official)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["default", "official"])
def test_only_officially_padding_has_a_say(name: str) -> None:
    """All images have less than the canvas, which is twice as large the second time."""
    detector = build("atss", compatibility=name, positive_queries=False, **PLAIN)
    for module in detector.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.bias)
    narrow, wide = (losses_of(detector, canvas)["atss/classification"] for canvas in ((128, 128), (192, 192)))
    assert torch.isclose(narrow, wide, rtol=1e-4) == (name == "default")


@pytest.mark.parametrize("heads", [("faster_rcnn",), ("mask_rcnn",), ("faster_rcnn", "atss", "faster_rcnn")])
@pytest.mark.parametrize("name", ["default", "official"])
def test_any_number_of_heads_trains(name: str, heads: tuple[str, ...]) -> None:
    detector = build(*heads, compatibility=name)
    batch = tiny_batch(counts=(3, 0), sizes=((96, 96), (64, 90)))
    total, losses = detector(batch)
    total.backward()
    assert torch.isfinite(total) and losses.keys() == detector.loss_weights.keys()
    branches = ("decoder", *(name for name, _ in detector.named_heads()))
    for found in detector.detect_branches(batch, branches, 20).values():
        for image, (height, width) in zip(found, batch.valid_hw.tolist(), strict=True):
            assert 0 < len(image.scores) <= 20 and torch.isfinite(image.boxes_xyxy).all()
            limits = torch.tensor([width, height, width, height])
            assert (image.boxes_xyxy >= 0).all() and (image.boxes_xyxy <= limits).all()
