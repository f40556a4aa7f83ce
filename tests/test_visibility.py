"""Which queries see which: what groups say, against a slow form of it and against the masks of official detectors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.attention import Visibility
from model.types import QueryGroup
from tests.support.visibility import seen_by

FILES = sorted(Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden")).glob("*.npz"))


def group_of(*blocks: int, **settings: object) -> QueryGroup:
    number = sum(blocks)
    content = torch.zeros(2, number, 4)
    return QueryGroup(content, None, torch.zeros(2, number, 4), True, blocks=blocks, **settings)  # type: ignore[arg-type]


def seen(*groups: QueryGroup) -> Tensor:
    """[Q, Q] bool of a batch whose images hide nothing."""
    matrix = seen_by(Visibility.of(groups), 2, sum(group.content.shape[1] for group in groups))
    assert torch.equal(matrix[0], matrix[1])
    return matrix[0]


def denoising_mask(num_queries: int, pad_size: int, num_groups: int) -> Tensor:
    """[Q, Q] bool, True = may not attend, denoising queries first, as DINO's `prepare_for_cdn` builds it."""
    mask = torch.zeros(pad_size + num_queries, pad_size + num_queries, dtype=torch.bool)
    mask[pad_size:, :pad_size] = True  # the matched queries cannot see the noised ground truth
    single = pad_size // num_groups
    for group in range(num_groups):
        rows = slice(single * group, single * (group + 1))
        mask[rows, : single * group] = True
        mask[rows, single * (group + 1) : pad_size] = True
    return mask


def hybrid_mask(one_to_one: int, one_to_many: int) -> Tensor:
    """[Q, Q] bool, True = may not attend, as H-DETR builds it."""
    number = one_to_one + one_to_many
    mask = torch.zeros(number, number, dtype=torch.bool)
    mask[one_to_one:, :one_to_one] = mask[:one_to_one, one_to_one:] = True
    return mask


def denoising_seen(num_queries: int, pad_size: int, num_groups: int) -> Tensor:
    """What ours says, in the official order: the denoising queries before the main ones."""
    blocks = (pad_size // num_groups,) * num_groups
    matrix = seen(group_of(num_queries), group_of(*blocks, sees="main"))
    order = [*range(num_queries, num_queries + pad_size), *range(num_queries)]
    return matrix[order][:, order]


@pytest.mark.parametrize(("num_queries", "pad_size", "num_groups"), [(6, 18, 3), (5, 4, 1), (3, 16, 8), (4, 0, 1)])
def test_denoising_groups_are_dinos_mask(num_queries: int, pad_size: int, num_groups: int) -> None:
    sizes = num_queries, pad_size, num_groups
    assert torch.equal(denoising_seen(*sizes), ~denoising_mask(*sizes))


def test_hybrid_and_replica_groups_see_themselves_alone() -> None:
    assert torch.equal(seen(group_of(5), group_of(7)), ~hybrid_mask(5, 7))
    assert torch.equal(seen(group_of(3), group_of(3, 3)), torch.block_diag(*[torch.ones(3, 3)] * 3).bool())


def test_all_groups_together_see_what_each_sees_alone() -> None:
    """Main, denoising, hybrid and positives in one pass, entry by entry."""
    groups = [group_of(2), group_of(2, 3, sees="main"), group_of(3), group_of(1)]
    block = [0] * 2 + [1] * 2 + [2] * 3 + [3] * 3 + [4]
    expected = [
        [block[i] == block[j] or (block[i] in (1, 2) and block[j] == 0) for j in range(len(block))]
        for i in range(len(block))
    ]
    assert seen(*groups).tolist() == expected


def test_nobody_sees_a_hidden_query_of_its_image() -> None:
    hidden = torch.tensor([[False, True, False], [False, False, False]])
    groups = [group_of(2), group_of(1, 2, sees="main", hidden=hidden)]
    matrix = seen_by(Visibility.of(groups), 2, 5)
    assert not matrix[0, :, 3].any()
    shown = torch.tensor([0, 1, 2, 4])
    without = seen_by(Visibility.of([group_of(2), group_of(1, 2, sees="main")]), 2, 5)
    assert torch.equal(matrix[0][:, shown], without[0][:, shown]) and torch.equal(matrix[1], without[1])


def test_groups_and_blocks_without_a_query_are_left_out() -> None:
    groups = [group_of(2), group_of(0, 2, 0, sees="main"), group_of(0), group_of(3)]
    assert Visibility.of(groups).blocks == ((0, 2, 0), (2, 4, 2), (4, 7, 0))


# ---- the official masks -------------------------------------------------------------------------------------------

OFFICIAL = ("dn_attn_mask", "self_attn_mask")


def official_cases() -> list[tuple[Path, str]]:
    found = []
    for path in FILES:
        if path.name.startswith(("dn_queries", "e2e_")):
            with np.load(path) as arrays:
                found += [(path, name) for name in OFFICIAL if name in arrays.files]
    return found


@pytest.mark.skipif(not official_cases(), reason="GOLDEN_DIR holds no file with a mask of self-attention")
def test_every_official_mask_is_understood() -> None:
    for path, name in official_cases():
        with np.load(path) as arrays:
            mask = torch.from_numpy(arrays[name])
            if name == "dn_attn_mask":
                pad_size, num_groups = int(arrays["dn_pad_size"]), int(arrays["dn_num_groups"])
                actual = denoising_seen(len(mask) - pad_size, pad_size, num_groups)
            elif "num_queries_one2many" in arrays.files:
                actual = seen(*(group_of(int(arrays[f"num_queries_{kind}"])) for kind in ("one2one", "one2many")))
            else:
                number, each = int(arrays["num_groups"]), int(arrays["queries_per_group"])
                actual = seen(group_of(each), group_of(*[each] * (number - 1)))
        assert torch.equal(actual, ~mask), path.name
