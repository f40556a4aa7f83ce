"""The contract of `model/proposals`, as tests of one kind; see `tests.support.rooms.every`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import LossWeights
from model.groups.configs import ReplicasConfig
from model.types import Batch, Memory, Proposals, QueryGroup, Step
from tests.support.rooms import (
    CHANNELS,
    SIZES,
    around,
    assert_reached,
    config_of,
    losses_by_share,
    make,
    masks_of,
    memory_of,
    objective,
    padded_batch,
    padded_memory,
)
from tests.support.tiny import OF_REFERENCES, tiny_config

NUM_QUERIES, RANKS = 4, 12  # of the main group, and with two replicas of it
VARIANTS = {
    "mixed selection": {},
    "no mixed selection": {"mixed_selection": False},
    "positions of references": OF_REFERENCES,
    "positions of references, no mixed selection": {**OF_REFERENCES, "mixed_selection": False},
}
EACH_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
COUNTS = pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0), (30, 1, 1)], ids=str)


def build(case: str, **changes: Any) -> Any:
    settings = {"num_queries": NUM_QUERIES, "groups": (ReplicasConfig(number=2),), **changes}
    return make("proposals", case, num_proposals=RANKS, objective=objective(**around("proposals", case, **settings)))


def assert_same_queries(own: QueryGroup, other: QueryGroup, tolerance: float = 0.0) -> None:
    for field in fields(QueryGroup):
        one, two = getattr(own, field.name), getattr(other, field.name)
        if isinstance(one, Tensor):
            torch.testing.assert_close(
                one, two, rtol=tolerance, atol=tolerance, msg=lambda m, f=field: f"{f.name}: {m}"
            )
        else:
            assert one == two, field.name


def step_of(part: Any, memory: Memory, batch: Batch) -> Step:
    proposals: Proposals = part(memory, RANKS)
    return Step(batch, memory, proposals, masks_of(batch))


class ProposalsContract:
    """What every part of `model/proposals` keeps."""

    @EACH_VARIANT
    def test_ranks_have_their_shapes(self, case: str, variant: str) -> None:
        queries = build(case, **VARIANTS[variant])(padded_memory(), RANKS).queries
        assert queries.content.shape == (3, RANKS, CHANNELS)
        if tiny_config(**around("proposals", case, **VARIANTS[variant])).makes_position:
            assert queries.position is None
        else:
            assert queries.position is not None and queries.position.shape == queries.content.shape
        assert queries.reference_cxcywh.shape == (3, RANKS, 4) and queries.reference_cxcywh.dtype == torch.float32
        assert ((queries.reference_cxcywh >= 0) & (queries.reference_cxcywh <= 1)).all()
        assert queries.source is not None and queries.source.dtype == torch.int32 and queries.source.shape == (3, RANKS)
        for group in queries.source.split(NUM_QUERIES, 1):
            assert all(len(set(row)) == NUM_QUERIES for row in group.tolist()), "no place twice in a group"

    def test_groups_take_ranks_in_order_and_none_twice(self, case: str) -> None:
        proposals = build(case)(padded_memory(), RANKS)
        taken = [proposals.take(count) for count in (5, 0, 4, 3)]
        assert [group.content.shape[1] for group in taken] == [5, 0, 4, 3]
        for field in ("content", "position", "reference_cxcywh", "source"):
            if (values := getattr(proposals.queries, field)) is not None:
                assert torch.equal(torch.cat([getattr(group, field) for group in taken], 1), values)
        with pytest.raises(ValueError, match=r"^[^\n]*num_proposals[^\n]*$"):
            proposals.take(1)

    @EACH_VARIANT
    def test_inference_has_the_first_ranks_of_training(self, case: str, variant: str) -> None:
        part, memory = build(case, **VARIANTS[variant]), padded_memory()
        first, of_training = part(memory, NUM_QUERIES), part(memory, RANKS).take(NUM_QUERIES)
        assert first.queries.content.shape[1] == NUM_QUERIES
        assert_same_queries(first.take(NUM_QUERIES), of_training, tolerance=1e-6)  # vectors of other lengths

    def test_more_ranks_than_there_are_is_told_in_one_line(self, case: str) -> None:
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            build(case)(memory_of((67, 93)), 10_000).take(10_000)

    def test_so_many_tokens_as_it_says_are_enough_and_fewer_are_not(self, case: str) -> None:
        part, config = build(case), config_of("proposals", case)
        needed = config.num_tokens(NUM_QUERIES, RANKS) if hasattr(config, "num_tokens") else 1

        def memory(number: int) -> Memory:
            return memory_of((32, 32 * number), 0, (32,))

        assert part(memory(needed), RANKS).queries.content.shape[1] == RANKS
        if needed > 1:
            with pytest.raises(ValueError, match=rf"^[^\n]*exceeds the {needed - 1} positions[^\n]*$"):
                part(memory(needed - 1), RANKS)

    def test_no_proposal_depends_on_padding(self, case: str) -> None:
        part = build(case)
        padded = part(padded_memory(), RANKS).queries
        for image, hw in enumerate(SIZES):
            alone = part(memory_of(hw, image), RANKS).queries
            own = QueryGroup(
                padded.content[image : image + 1],
                None if padded.position is None else padded.position[image : image + 1],
                padded.reference_cxcywh[image : image + 1],
                padded.has_size,
                source=None if padded.source is None else padded.source[image : image + 1],
            )
            assert_same_queries(own, alone, tolerance=1e-5)

    @EACH_VARIANT
    @COUNTS
    def test_finite_losses_reach_all_of_the_proposals(self, case: str, variant: str, counts: tuple[int, ...]) -> None:
        part, memory = build(case, **VARIANTS[variant]), padded_memory()
        step = step_of(part, memory, padded_batch(counts))
        queries = step.proposals.queries
        outputs = [queries.content, queries.reference_cxcywh, *([] if queries.position is None else [queries.position])]
        terms = [(value * torch.randn_like(value)).mean() for value in outputs if value.requires_grad]
        losses = part.losses(step)
        assert losses.keys() == part.loss_weights().keys()
        for loss in losses.values():
            assert loss.shape == () and torch.isfinite(loss) and loss.requires_grad
        torch.stack([*terms, *losses.values()]).sum().backward()
        for name, parameter in part.named_parameters():  # without objects a box may have no loss
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if sum(counts):
            assert_reached(part.named_parameters())

    def test_the_area_that_giou_adds_is_the_detectors(self, case: str) -> None:
        memory, batch = padded_memory(), padded_batch()
        parts = [build(case, loss_weights=LossWeights(giou_epsilon=epsilon)) for epsilon in (0.0, 1.0)]
        without, losses = (part.losses(step_of(part, memory, batch)) for part in parts)
        assert all(losses[name] != loss for name, loss in without.items() if name.endswith("/giou"))

    def test_losses_of_the_shares_of_a_batch_add_up(self, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        part, batch, memory = build(case), padded_batch(), padded_memory()

        def losses(own: Batch) -> dict[str, Tensor]:
            first = batch.image_ids.index(own.image_ids[0])
            index = slice(first, first + len(own.images))
            assert memory.padding is not None
            mine = Memory(memory.tokens[index], memory.sizes, memory.padding[index], memory.ratios[index])
            return part.losses(step_of(part, mine, own))

        whole, sums = losses_by_share(losses, batch, monkeypatch)
        assert whole.keys() == sums.keys()
        for name, loss in whole.items():
            torch.testing.assert_close(sums[name], loss.detach(), rtol=1e-5, atol=1e-5)
