"""The contract of `model/groups`, as tests of a query group inside a detector that has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import LossWeights
from model.detector import Detector
from model.groups import GROUPS
from model.types import Batch, QueryGroup, Step
from tests.support.rooms import (
    CHANNELS,
    TINY,
    around,
    assert_reached,
    config_of,
    losses_by_share,
    padded_batch,
    shake,
)
from tests.support.tiny import NUM_CLASSES, OF_REFERENCES, PLAIN, tiny_config

VARIANTS = {"plus plus": {}, "plain": PLAIN, "positions of references": OF_REFERENCES}
EACH_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
COUNTS = pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0), (30, 1, 1)], ids=str)


def build(case: str, copies: int = 1, **changes: Any) -> Detector:
    """A detector with this group beside the main one, as often as is asked for an extra one."""
    config = config_of("groups", case)
    torch.manual_seed(0)
    heads = ("atss",) * copies if case == "positives" else ()
    groups = () if GROUPS.follows_from(case) else (config,) * copies
    detector = Detector(tiny_config(*heads, groups=groups, **changes), NUM_CLASSES)
    shake(detector.decoder)
    return detector


def group_in(detector: Detector, case: str) -> Any:
    """The last of the groups is the one in question: main alone, a head's or an extra one."""
    assert case == "main" or len(detector.query_groups()) > 1
    return detector.query_groups()[-1]


@dataclass
class Seen:
    """What a group made of one batch."""

    queries: QueryGroup
    losses: dict[str, Tensor]
    ranks: int  # taken


def watch(group: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Seen]:
    """Gives what the group did in the forward pass that comes next."""
    seen = Seen(None, {}, 0)  # type: ignore[arg-type]
    queries, losses = group.queries, group.losses

    def watched_queries(step: Step) -> QueryGroup:
        before = step.proposals.taken
        seen.queries = queries(step)
        seen.ranks = step.proposals.taken - before
        return seen.queries

    def watched_losses(*arguments: Any) -> dict[str, Tensor]:
        seen.losses = losses(*arguments)
        return seen.losses

    monkeypatch.setattr(group, "queries", watched_queries)
    monkeypatch.setattr(group, "losses", watched_losses)
    return lambda: seen


def assert_of_their_shapes(queries: QueryGroup, variant: str, counts: tuple[int, ...]) -> None:
    images, number, channels = queries.content.shape
    assert (images, channels) == (3, CHANNELS)
    if variant == "positions of references":
        assert queries.position is None
    else:
        assert queries.position is not None and queries.position.shape == queries.content.shape
    assert queries.reference_cxcywh.shape == (3, number, 4) and queries.reference_cxcywh.dtype == torch.float32
    assert sum(queries.block_lengths) == number and queries.sees in ("own", "main")
    assert queries.hidden is None or (queries.hidden.shape == (3, number) and queries.hidden.dtype == torch.bool)
    assert queries.weight is None or queries.weight.shape == (3, number)
    if queries.gt_index is not None:
        assert queries.gt_index.dtype == torch.int64 and queries.gt_index.shape == (3, number)
        limits = torch.tensor(counts)[:, None]
        assert ((queries.gt_index >= -1) & (queries.gt_index < limits)).all()


class GroupContract:
    """What every part of `model/groups` keeps."""

    @EACH_VARIANT
    @COUNTS
    def test_queries_have_their_shapes_and_losses_a_weight_each(
        self, case: str, variant: str, counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        detector = build(case, **VARIANTS[variant])
        group = group_in(detector, case)
        seen = watch(group, monkeypatch)
        total, losses = detector(padded_batch(counts))
        assert_of_their_shapes(seen().queries, variant, counts)
        assert seen().losses.keys() == group.loss_weights().keys() and seen().losses.keys() <= losses.keys()
        for name, loss in seen().losses.items():
            assert loss.shape == () and torch.isfinite(loss) and loss.requires_grad, name
        total.backward()
        for name, parameter in group.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name

    def test_a_group_takes_the_ranks_that_it_says(self, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        detector = build(case)
        seen = watch(group_in(detector, case), monkeypatch)
        detector(padded_batch())
        expected = 12 if case == "main" else detector.config.num_proposals_of(config_of("groups", case))
        assert seen().ranks == expected

    @EACH_VARIANT
    def test_the_gradient_reaches_all_of_a_group(self, case: str, variant: str) -> None:
        detector = build(case, **VARIANTS[variant])
        group = group_in(detector, case)
        total, _ = detector(padded_batch((3, 1, 2)))
        total.backward()
        assert_reached(group.named_parameters())

    @EACH_VARIANT
    def test_losses_of_the_shares_of_a_batch_add_up(
        self, case: str, variant: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Random numbers too are those of the whole batch."""
        detector = build(case, **VARIANTS[variant])
        seen = watch(group_in(detector, case), monkeypatch)

        def losses(batch: Batch) -> dict[str, Tensor]:
            torch.manual_seed(int(batch.image_ids[0]))  # another state on each rank
            detector(batch)
            return seen().losses

        whole, sums = losses_by_share(losses, padded_batch(), monkeypatch)
        assert whole.keys() == sums.keys()
        for name, loss in whole.items():
            torch.testing.assert_close(
                sums[name], loss.detach(), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )

    @pytest.mark.parametrize("decoder", TINY["decoders"])
    def test_every_decoder_reads_the_group(self, case: str, decoder: str) -> None:
        """Those whose references are points, too, and those that make positions."""
        detector = build(case, **around("decoders", decoder), decoder=config_of("decoders", decoder))
        group = group_in(detector, case)
        total, losses = detector(padded_batch((3, 0, 2)))
        assert all(torch.isfinite(loss) for loss in losses.values())
        total.backward()
        assert_reached(group.named_parameters())

    def test_the_area_that_giou_adds_is_the_detectors(self, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        found = []
        for epsilon in (0.0, 1.0):
            detector = build(case, loss_weights=LossWeights(giou_epsilon=epsilon))
            seen = watch(group_in(detector, case), monkeypatch)
            torch.manual_seed(0)
            detector(padded_batch())
            found.append({name: loss for name, loss in seen().losses.items() if name.endswith("/giou")})
        assert found[0].keys() == found[1].keys()
        assert all(loss != found[1][name] for name, loss in found[0].items())

    def test_main_alone_runs_at_inference(self, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        detector, batch = build(case).eval(), padded_batch()
        before = detector.detect(batch)
        for group in detector.query_groups():
            for parameter in group.parameters():
                parameter.data.fill_(torch.nan)
            monkeypatch.setattr(group, "queries", None)
            monkeypatch.setattr(group, "losses", None)
        for first, second in zip(before, detector.detect(batch), strict=True):
            assert torch.equal(first.boxes_xyxy, second.boxes_xyxy) and torch.equal(first.scores, second.scores)

    def test_several_of_a_group_have_losses_of_their_own(self, case: str) -> None:
        if case == "main":
            pytest.skip("there is one")
        detector = build(case, copies=2)
        _, losses = detector(padded_batch())
        first, second = (set(group.loss_weights()) for group in detector.query_groups()[-2:])
        assert first and second and not first & second and first | second <= losses.keys()
        assert len(losses) == len(detector.loss_weights)
