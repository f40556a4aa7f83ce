"""The contract of `model/decoders`, as tests of a decoder: what query groups see of one another, what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention import Visibility
from model.types import DecoderOutput, Memory, QueryGroup
from tests.support.rooms import CHANNELS, SIZES, around, assert_reached, config_of, make, memory_of, padded_memory
from tests.support.tiny import NUM_CLASSES, PLAIN, REFINED, tiny_config
from tests.support.visibility import seen_by

VARIANTS = {"plain": PLAIN, "refined": REFINED, "plus plus": {}}
EACH_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def build(case: str, **changes: Any) -> Any:
    model = tiny_config(**around("decoders", case, **changes), decoder=config_of("decoders", case))
    return make("decoders", case, model=model, num_classes=NUM_CLASSES).eval()


def group_of(number: int, seed: int = 0, images: int = 3, **settings: Any) -> QueryGroup:
    generator = torch.Generator().manual_seed(seed)
    content, position = torch.randn(2, images, number, CHANNELS, generator=generator)
    reference = torch.rand(images, number, 4, generator=generator) * 0.5 + 0.2
    return QueryGroup(content, position, reference, **{"has_size": True, **settings})


def points_of(number: int, seed: int = 0) -> QueryGroup:
    group = group_of(number, seed, has_size=False)
    group.reference_cxcywh[..., 2:] = 0.5
    return group


def decode(decoder: Any, groups: Sequence[QueryGroup], memory: Memory) -> list[DecoderOutput]:
    output: DecoderOutput = decoder(groups, memory)
    return output.split([group.content.shape[1] for group in groups])


def assert_same(own: DecoderOutput, other: DecoderOutput) -> None:
    torch.testing.assert_close(own.logits, other.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.boxes_cxcywh, other.boxes_cxcywh, rtol=1e-5, atol=1e-6)


def predictions(output: DecoderOutput) -> tuple[Tensor, Tensor]:
    return output.logits, output.boxes_cxcywh


def groups_of_every_kind() -> list[QueryGroup]:
    """Main, blocks that see it (two of one length) and hide some of theirs, an empty one, and one that hides some."""
    hidden = torch.zeros(3, 7, dtype=torch.bool)
    hidden[0, 2] = hidden[1, 3:5] = hidden[2] = True
    others = torch.zeros(3, 4, dtype=torch.bool)
    others[1] = others[2, 0] = True
    return [
        points_of(5, 1),
        group_of(7, 2, blocks=(2, 2, 3), sees="main", hidden=hidden),
        group_of(0, 3),
        group_of(4, 4, hidden=others),
    ]


def see_some(groups: Sequence[QueryGroup]) -> Tensor:
    """[B, Q] bool, False for queries all around which are hidden: what becomes of them is nobody's concern."""
    found = seen_by(Visibility.of(groups), 3, sum(group.content.shape[1] for group in groups)).any(2)
    assert found[:, :5].all() and not found.all()
    return found


def seen_at_last(visibility: Visibility, number: int, layers: int) -> Tensor:
    """[B, Q, Q] bool, True where what the first query gives depends on what the second was, after some layers."""
    step = seen_by(visibility, 3, number) | torch.eye(number, dtype=torch.bool)
    reached = step
    for _ in range(layers - 1):
        reached = (reached.float() @ step.float()) > 0
    return reached


def masked_attention(visibility: Visibility, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """One attention over all queries under the mask of `seen_by`."""
    seen = seen_by(visibility, *query.shape[:2])
    heads = (values.transpose(1, 2) for values in (query, key, value))
    return F.scaled_dot_product_attention(*heads, seen[:, None], dropout).transpose(1, 2).flatten(2)


class DecoderContract:
    """What every part of `model/decoders` keeps."""

    @EACH_VARIANT
    def test_each_layer_predicts_classes_and_boxes(self, case: str, variant: str) -> None:
        output = build(case, **VARIANTS[variant])([group_of(5)], padded_memory())
        assert output.logits.shape == (2, 3, 5, NUM_CLASSES)
        assert output.boxes_cxcywh.shape == (2, 3, 5, 4)
        assert ((output.boxes_cxcywh > 0) & (output.boxes_cxcywh < 1)).all()
        assert output.looked_at is None

    @EACH_VARIANT
    def test_a_joint_pass_is_each_group_alone(self, case: str, variant: str) -> None:
        decoder, memory = build(case, **VARIANTS[variant]), padded_memory()
        groups = [group_of(6, 1), points_of(4, 2), group_of(3, 3)]
        for group, joint in zip(groups, decode(decoder, groups, memory), strict=True):
            assert_same(joint, decoder([group], memory))

    def test_positions_are_made_for_all_groups_or_wanted_of_each(self, case: str) -> None:
        decoder, memory, groups = build(case), padded_memory(), [group_of(4), points_of(3, 2)]
        without = [replace(group, position=None) for group in groups]
        if getattr(config_of("decoders", case), "makes_position", False):
            assert_same(decoder(without, memory), decoder(groups, memory))
        else:
            with pytest.raises(ValueError, match=r"^[^\n]*model\.decoder[^\n]*$"):
                decoder([groups[0], without[1]], memory)

    def test_blocks_are_groups_of_their_own(self, case: str) -> None:
        decoder, memory, group = build(case), padded_memory(), group_of(7, 1)
        (joint,) = decode(decoder, [replace(group, blocks=(3, 0, 4))], memory)
        apart = decode(decoder, [group.between(0, 3), group.between(3, 7)], memory)
        assert_same(joint, DecoderOutput(*(torch.cat(pair, 2) for pair in zip(*map(predictions, apart), strict=True))))

    def test_queries_depend_on_what_they_see_and_on_nothing_else(self, case: str) -> None:
        decoder, memory, groups = build(case), padded_memory(), groups_of_every_kind()
        lengths = [group.content.shape[1] for group in groups]
        expected, sees_some = seen_at_last(Visibility.of(groups), sum(lengths), layers=2), see_some(groups)
        with torch.no_grad():
            before = decoder(groups, memory).logits[-1]
            for query in range(sum(lengths)):
                content = torch.cat([group.content for group in groups], 1)
                content[:, query] += torch.linspace(-2, 2, CHANNELS)
                changed = [
                    replace(group, content=own) for group, own in zip(groups, content.split(lengths, 1), strict=True)
                ]
                moved = (decoder(changed, memory).logits[-1] - before).abs().amax(2) > 1e-6
                assert torch.equal(moved[sees_some], expected[:, :, query][sees_some]), f"query {query}"

    @EACH_VARIANT
    def test_blocks_are_what_one_masked_attention_gives(
        self, case: str, variant: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoder, memory, groups = build(case, **VARIANTS[variant]), padded_memory(), groups_of_every_kind()
        output = decoder(groups, memory)
        monkeypatch.setattr(Visibility, "attend", masked_attention)
        expected = decoder(groups, memory)
        sees_some = see_some(groups)
        for own, other in zip(predictions(output), predictions(expected), strict=True):
            torch.testing.assert_close(own[:, sees_some], other[:, sees_some], rtol=1e-5, atol=1e-5)

    def test_a_group_without_a_query_changes_nothing(self, case: str) -> None:
        decoder, memory, main = build(case), padded_memory(), group_of(5, 1)
        nobody = group_of(0, 2, sees="main", hidden=torch.zeros(3, 0, dtype=torch.bool))
        first, empty, last = decode(decoder, [main, nobody, main], memory)
        (alone,) = decode(decoder, [main], memory)
        assert empty.logits.shape == (2, 3, 0, NUM_CLASSES) and empty.boxes_cxcywh.shape == (2, 3, 0, 4)
        assert_same(first, alone)
        assert_same(last, alone)

    def test_an_image_that_hides_all_of_a_group_has_finite_gradients(self, case: str) -> None:
        decoder, hidden = build(case), torch.tensor([[True] * 4, [False] * 4, [True, False, True, True]])
        for sees in ("own", "main"):
            groups = [group_of(5, 1), group_of(4, 2, blocks=(2, 2), sees=sees, hidden=hidden)]
            for group in groups:
                group.content.requires_grad_().grad = None
            output = decoder(groups, padded_memory())
            (output.logits.sum() + output.boxes_cxcywh.sum()).backward()
            values = [parameter.grad for parameter in decoder.parameters()] + [group.content.grad for group in groups]
            assert all(value is None or torch.isfinite(value).all() for value in values)
            assert torch.isfinite(output.logits).all()

    def test_no_prediction_depends_on_padding(self, case: str) -> None:
        decoder, group = build(case), group_of(6, 1)
        logits, boxes = predictions(decoder([group], padded_memory()))
        for image, hw in enumerate(SIZES):
            own = QueryGroup(
                *(values[image : image + 1] for values in (group.content, group.position, group.reference_cxcywh)), True
            )
            alone = decoder([own], memory_of(hw, image))
            torch.testing.assert_close(logits[:, image : image + 1], alone.logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(boxes[:, image : image + 1], alone.boxes_cxcywh, rtol=1e-4, atol=1e-5)

    @EACH_VARIANT
    def test_the_gradient_reaches_all_of_a_decoder(self, case: str, variant: str) -> None:
        decoder, group = build(case, **VARIANTS[variant]), group_of(6, 1)
        memory, leaves = padded_memory(), [group.content, group.reference_cxcywh]
        for leaf in (*leaves, memory.tokens):
            leaf.requires_grad_()
        output = decoder([group], memory)
        (output.logits * torch.randn_like(output.logits)).sum().backward(retain_graph=True)
        (output.boxes_cxcywh * torch.randn_like(output.boxes_cxcywh)).sum().backward()
        assert_reached(decoder.named_parameters())
        assert_reached((("content", group.content), ("tokens", memory.tokens)))
        assert memory.padding is not None and memory.tokens.grad is not None
        assert (memory.tokens.grad[memory.padding] == 0).all()

    def test_it_tells_where_the_last_layer_looked_if_asked(self, case: str) -> None:
        decoder, memory, groups = build(case), padded_memory(), [group_of(5, 1), group_of(3, 2)]
        output = decoder(groups, memory, look=True)
        assert output.looked_at is not None
        places, weights = output.looked_at
        assert places.shape[:2] == weights.shape[:2] == (3, 8) and places.shape == (*weights.shape, 2)
        assert weights.shape[3] == len(memory.sizes)
        torch.testing.assert_close(weights.sum((3, 4)), torch.ones(weights.shape[:3]))
        assert (weights >= 0).all() and not weights.requires_grad
        assert_same(output, decoder(groups, memory))

    @EACH_VARIANT
    def test_predictions_stay_in_fp32_under_autocast(self, case: str, variant: str) -> None:
        decoder, memory, groups = build(case, **VARIANTS[variant]), padded_memory(), [group_of(5, 1)]
        with torch.autocast("cpu", torch.bfloat16):
            output = decoder(groups, memory)
        assert output.logits.dtype == output.boxes_cxcywh.dtype == torch.float32
        torch.testing.assert_close(output.boxes_cxcywh, decoder(groups, memory).boxes_cxcywh, rtol=0, atol=0.05)
