"""Every head in `HEADS` keeps the contract of `model/heads/base.py`, and what is asked of some of them.

A new head is checked by its line in `HEADS`; without a line in `TINY` of tests/support/tiny_heads.py the suite fails.
"""

from __future__ import annotations

import pytest
import torch

from model.heads import HEADS
from model.heads.dense import best_after_nms
from model.ops import nms
from tests.support.head_contract import HeadContract
from tests.support.tiny_heads import TINY, build, pyramid_of, targets_of, total


@pytest.mark.parametrize("name", sorted({*HEADS, *TINY}))
class TestEveryHead(HeadContract):
    pass


def test_an_unknown_head_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown head 'ats'; did you mean 'atss'\\? known: atss"):
        HEADS.choose("ats")
    with pytest.raises(ValueError, match="object is not the Config of a head; known: atss"):
        HEADS.name_of(object())


@pytest.mark.parametrize("num_convs", [0, 1, 3])
def test_atss_stacks_convolutions(num_convs: int) -> None:
    """Paper Table 12."""
    head = build("atss", num_convs=num_convs)
    losses, _ = head.train_step(pyramid_of(1), targets_of(3), with_losses=True)
    assert torch.isfinite(total(losses))
    assert sum(isinstance(module, torch.nn.Conv2d) for module in head.modules()) == 3 + 2 * num_convs


def test_atss_needs_groups_that_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="num_groups \\(5\\) must divide the number of channels \\(16\\)"):
        build("atss", num_groups=5)


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_nms_with_a_limit_is_the_beginning_of_nms(limit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(150, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 30], 1)  # nearly everything overlaps: few are kept
    scores = torch.rand(150, generator=generator)
    labels = torch.randint(0, 4, (150,), generator=generator)
    everything = nms(boxes, scores, labels, 0.5)
    assert 5 < len(everything) < 100
    assert torch.equal(best_after_nms(boxes, scores, labels, 0.5, limit), everything[:limit])
