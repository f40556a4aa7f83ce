"""Contrastive denoising queries: made by hand, for images with few, many and no objects."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor

from model.classification.configs import QualityConfig
from model.criterion import Objective
from model.decoders.configs import DabDecoderConfig
from model.detector import Detector
from model.groups.configs import DenoisingConfig
from model.groups.denoising import DenoisingGroup, Noise
from model.losses import Quality
from model.types import BACKGROUND, Batch, DecoderOutput, QueryGroup, Step, Targets
from tests.support.rooms import SIZES, objective, padded_batch
from tests.support.tiny import NUM_CLASSES, tiny_config, tiny_targets

VALID_HW = torch.tensor(SIZES)


def group_of(number: int = 6, own: Objective | None = None, **settings: float) -> DenoisingGroup:
    torch.manual_seed(0)
    return DenoisingGroup(DenoisingConfig(number=number, **settings), name="denoising", objective=own or objective())


def step_of(targets: Targets) -> Step:
    batch = Batch(torch.zeros(len(targets.labels), 3, 1, 1), VALID_HW[: len(targets.labels)], targets)
    return Step(batch, *cast(Any, (None, None, None)))


class Query(NamedTuple):
    """One of the slow form: which object it must predict, the class it is told and its box, corner by corner."""

    gt_index: int
    label: int
    corners: list[float]


def slowly(group: DenoisingGroup, targets: Targets, noise: Noise, image: int) -> list[Query | None]:
    """The queries of one image, one after the other; None for a slot without an object."""
    counts = targets.num_boxes.tolist()
    largest = max(counts)
    queries: list[Query | None] = []
    for _ in range(max(group.config.number // largest, 1)):
        for further in (0, 1):
            for number in range(largest):
                slot = len(queries)
                if number >= counts[image]:
                    queries.append(None)
                    continue
                label = int(targets.labels[image, number])
                if noise.flip[image, slot] < group.config.label_noise / 2:
                    label = int(noise.label[image, slot])
                height, width = VALID_HW[image].tolist()
                x0, y0, x1, y1 = targets.boxes_xyxy[image, number].tolist()
                corners = []
                for value, side, size, axis in (
                    (x0, x1 - x0, width, 0),
                    (y0, y1 - y0, height, 1),
                    (x1, x1 - x0, width, 2),
                    (y1, y1 - y0, height, 3),
                ):
                    sign, part = noise.sign[image, slot, axis].item(), noise.part[image, slot, axis].item()
                    value += sign * (part + further) * group.config.box_noise * side / 2
                    corners.append(min(max(value / size, 0.0), 1.0))
                queries.append(Query(BACKGROUND if further else number, label, corners))
    return queries


@pytest.mark.parametrize("counts", [(3, 1, 2), (0, 2, 0), (1, 1, 1), (9, 2, 0)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"label_noise": 2.0, "box_noise": 0.4}], ids=["official", "other noise"])
def test_queries_are_what_the_noise_makes_of_each_object(counts: tuple[int, ...], settings: dict[str, float]) -> None:
    group, targets = group_of(**settings), tiny_targets(counts, VALID_HW)
    number = 2 * max(6 // max(counts), 1) * max(counts)
    noise = group.draw(3, number, torch.device("cpu"))
    group.draw = lambda *shape: noise  # type: ignore[method-assign]
    queries = group.queries(step_of(targets))
    assert queries.gt_index is not None and queries.content.shape[1] == number
    assert queries.blocks == (2 * max(counts),) * max(6 // max(counts), 1) and queries.sees == "main"
    assert queries.hidden is None and queries.weight is None
    for image in range(3):
        for slot, expected in enumerate(slowly(group, targets, noise, image)):
            told, content = queries.reference_cxcywh[image, slot], queries.content[image, slot]
            if expected is None:
                assert told.tolist() == [0.5] * 4 and not content.any() and queries.gt_index[image, slot] == BACKGROUND
                continue
            assert queries.gt_index[image, slot] == expected.gt_index
            assert torch.equal(content, group.label_embedding[expected.label])
            x0, y0, x1, y1 = expected.corners
            box = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
            torch.testing.assert_close(told, box.clamp(0.001, 0.999), rtol=1e-4, atol=2e-6)


def test_rows_that_only_pad_the_targets_change_nothing() -> None:
    group, targets = group_of(), tiny_targets((3, 1, 2), VALID_HW)
    wider = Targets.stack(
        *([values[i, :n] for i, n in enumerate((3, 1, 2))] for values in (targets.boxes_xyxy, targets.labels)),
        at_least=7,
    )
    torch.manual_seed(1)
    first = group.queries(step_of(targets))
    torch.manual_seed(1)
    second = group.queries(step_of(wider))
    assert first.blocks == second.blocks and torch.equal(first.reference_cxcywh, second.reference_cxcywh)


def test_a_quarter_of_the_labels_is_drawn_again_and_corners_move_within_their_bounds() -> None:
    group, targets = (
        group_of(number=2000),
        Targets.stack([torch.tensor([[30.0, 30.0, 40.0, 50.0]])], [torch.tensor([2])]),
    )
    queries = group.queries(step_of(targets))
    assert queries.gt_index is not None
    told = (queries.content[0, :, None] == group.label_embedding).all(-1).float().argmax(1)
    share = (told != 2).float().mean().item()  # of the replaced ones, one in C has its own class again
    assert share == pytest.approx(0.25 * (1 - 1 / NUM_CLASSES), abs=0.02)
    assert (told.bincount(minlength=NUM_CLASSES) > 0).all()
    height, width = VALID_HW[0].tolist()
    centre, size = queries.reference_cxcywh[0].split(2, -1)
    start = (centre - size / 2) * torch.tensor([width, height])
    moved = ((start - torch.tensor([30.0, 30.0])) / torch.tensor([10.0, 20.0])).abs()
    positive = queries.gt_index[0] >= 0
    assert positive.float().mean() == 0.5
    assert 0.45 < moved[positive].max() <= 0.501 and moved[positive].min() < 0.05
    ordered = (size > 0.002).all(1) & ~positive  # a side whose ends have met says nothing of its corner
    assert 0.499 <= moved[ordered].min() < 0.55 and 0.9 < moved[ordered].max() <= 1.001


def test_a_batch_without_objects_has_no_query_and_losses_of_zero() -> None:
    detector = Detector(tiny_config(groups=(DenoisingConfig(),)), NUM_CLASSES)
    total, losses = detector(padded_batch((0, 0, 0)))
    total.backward()
    own = {name: loss.item() for name, loss in losses.items() if name.startswith("denoising.")}
    assert len(own) == 6 and set(own.values()) == {0.0}
    gradient = detector.groups["denoising"].label_embedding.grad
    assert isinstance(gradient, Tensor) and not gradient.any()


def test_unused_slots_and_negatives_learn_that_there_is_no_object() -> None:
    """Their classification counts, their boxes do not; all is divided by the positives of all images."""
    own = Objective(tiny_config(), NUM_CLASSES, Quality(QualityConfig()), objective().assign)
    group, targets = group_of(number=4, own=own), tiny_targets((2, 1, 0), VALID_HW)
    queries = group.queries(step_of(targets))
    shape = (2, 3, queries.content.shape[1])
    boxes = queries.reference_cxcywh.expand(2, -1, -1, -1).clone().requires_grad_()
    logits = torch.zeros(*shape, NUM_CLASSES, requires_grad=True)
    losses = group.losses(DecoderOutput(logits, boxes), queries, step_of(targets))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert boxes.grad is not None and logits.grad is not None and queries.gt_index is not None
    positive = queries.gt_index >= 0
    assert int(positive.sum()) == 2 * 3  # blocks times objects
    assert torch.equal(boxes.grad.abs().sum(-1) > 0, positive.expand(2, -1, -1))
    background = logits.grad[:, ~positive]
    torch.testing.assert_close(background, background[0, 0, 0].expand_as(background))
    assert background[0, 0, 0] > 0


def test_positions_are_the_groups_own_unless_the_decoder_makes_them() -> None:
    class Maker:
        makes_position = True

    def queries(group: DenoisingGroup) -> QueryGroup:
        return group.queries(step_of(tiny_targets((2, 1, 0), VALID_HW)))

    learned, own = group_of(), objective()
    position = queries(learned).position
    assert position is not None and position.shape == (3, 12, 32)
    made = group_of(own=objective(decoder=Maker()))
    assert queries(made).position is None and [name for name, _ in made.named_parameters()] == ["label_embedding"]
    assert own.config.decoder != made.objective.config.decoder


@pytest.mark.parametrize("epsilon", [1e-5, 0.05])
def test_boxes_keep_the_distance_from_0_and_1_that_the_decoder_asks_for(epsilon: float) -> None:
    """And that of the official noised boxes where it asks for less; objects at the border, and tiny ones."""
    decoder = DabDecoderConfig(inverse_sigmoid_epsilon=epsilon)
    group = group_of(own=objective(decoder=decoder, box_refinement=True))
    boxes = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 93.0, 67.0]])
    reference = group.queries(step_of(Targets.stack([boxes], [torch.tensor([0, 1])]))).reference_cxcywh
    limit = max(epsilon, 1e-3) / (1 + max(epsilon, 1e-3))  # the sigmoid of the logit that `inverse_sigmoid` gives
    assert reference.min().item() == pytest.approx(limit, rel=1e-3)
    assert reference.max().item() == pytest.approx(1 - limit, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"number": 0}, "number must be at least 1, got 0"),
        ({"label_noise": 2.5}, "label_noise must be in \\[0, 2\\], got 2.5"),
        ({"box_noise": -1.0}, "box_noise must not be negative, got -1.0"),
        ({"weight": -1.0}, "weight must not be negative, got -1.0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        DenoisingConfig(**settings)
