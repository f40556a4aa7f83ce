"""The parts of the R-CNN heads on hand-made boxes: assignment, sampling, proposals, pooling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.boxes import giou_aligned, iou_aligned
from model.groups.positives import select_positives
from model.heads.faster_rcnn import FasterRCNNHead
from model.heads.mask_rcnn import MaskRCNNHead
from model.heads.roi import RoIConfig, RoIPooling, RoIs, candidates, sample_rois
from model.heads.rpn import Outputs, Proposals, RegionProposals, RPNConfig
from model.heads.two_stage import TwoStage
from model.ops import roi_align
from model.sampling import choose, sample
from model.types import BACKGROUND, IGNORED, Positives, Pyramid, Targets


def targets_of(*images: list[list[float]]) -> Targets:
    return Targets.stack(
        [torch.tensor(boxes).reshape(-1, 4) for boxes in images],
        [torch.zeros(len(boxes), dtype=torch.long) for boxes in images],
    )


def pyramid_of(num_images: int, *sizes: tuple[int, int], channels: int = 4) -> Pyramid:
    generator = torch.Generator().manual_seed(0)
    levels = tuple(torch.randn(num_images, channels, h, w, generator=generator) for h, w in sizes)
    strides = tuple(8 * 2**i for i in range(len(sizes)))
    hw = torch.tensor([[8 * sizes[0][0], 8 * sizes[0][1]]]).repeat(num_images, 1)
    return Pyramid(levels, strides, hw, (None,) * len(sizes))


def proposals_of(*images: list[list[float]]) -> Proposals:
    padded = targets_of(*images)
    return Proposals(padded.boxes_xyxy, padded.valid.float(), padded.valid)


def test_every_object_is_a_candidate_of_its_own() -> None:
    targets = targets_of([[0, 0, 8, 8], [0, 0, 8, 8]], [])
    rois = candidates(proposals_of([[0, 0, 8, 5], [8, 8, 16, 16]], [[0, 0, 8, 8]]), targets, 0.5)
    assert rois.gt_index.tolist() == [[0, 1, 0, BACKGROUND], [IGNORED, IGNORED, BACKGROUND, IGNORED]]


# ---- sampling


def kinds(num_positives: int, num_negatives: int, num_ignored: int = 0) -> Tensor:
    values = [0] * num_positives + [BACKGROUND] * num_negatives + [IGNORED] * num_ignored
    shuffled = torch.tensor(values)[torch.randperm(len(values), generator=torch.Generator().manual_seed(1))]
    return shuffled[None]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (30, 100, (5, 15)),  # a quarter of 20 at most
        (3, 100, (3, 17)),  # negatives take what is left
        (30, 4, (5, 4)),  # the other way round they do not
        (0, 100, (0, 20)),
        (2, 0, (2, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_numbers_of_a_sample(positives: int, negatives: int, expected: tuple[int, int]) -> None:
    gt_index = kinds(positives, negatives, num_ignored=7)
    chosen = choose(gt_index, 20, 0.25)
    assert (int((chosen & (gt_index >= 0)).sum()), int((chosen & (gt_index == BACKGROUND)).sum())) == expected
    assert not (chosen & (gt_index == IGNORED)).any()


def test_a_sample_is_positives_then_negatives_in_order() -> None:
    gt_index = torch.tensor([[BACKGROUND, 3, IGNORED, 1, BACKGROUND], [BACKGROUND, IGNORED, IGNORED, IGNORED, 0]])
    found = sample(gt_index, 100, 0.5)
    assert found.gt_index.tolist() == [
        [3, 1, BACKGROUND, BACKGROUND, IGNORED],
        [0, BACKGROUND, IGNORED, IGNORED, IGNORED],
    ]
    assert found.candidate[0, :4].tolist() == [1, 3, 0, 4] and found.candidate[1, :2].tolist() == [4, 0]


def test_samples_are_random_and_follow_the_seed() -> None:
    gt_index = kinds(40, 200).repeat(2, 1)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return choose(gt_index, 40, 0.5)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    first, second = drawn(0)
    assert not torch.equal(first, second)  # the same image twice in a batch
    often = sum(drawn(seed)[0].float() for seed in range(300)) / 300
    assert often[gt_index[0] >= 0].sub(0.5).abs().max() < 0.15  # 20 of 40
    assert often[gt_index[0] < 0].sub(0.1).abs().max() < 0.1  # 20 of 200


def test_regions_are_sampled_with_their_boxes() -> None:
    targets = targets_of([[0, 0, 8, 8]], [])
    proposals = proposals_of([[0, 0, 8, 6], [8, 8, 16, 16], [9, 9, 16, 16]], [[1, 1, 5, 5]])
    rois = sample_rois(proposals, targets, RoIConfig(num_samples=3, positive_fraction=0.4))  # one positive at most
    assert rois.gt_index[0].tolist() == [0, BACKGROUND, BACKGROUND]
    assert rois.boxes_xyxy[0, 0].tolist() in ([0, 0, 8, 8], [0, 0, 8, 6])
    assert rois.boxes_xyxy[0, 1:].tolist() == [[8, 8, 16, 16], [9, 9, 16, 16]]
    assert rois.gt_index[1].tolist() == [BACKGROUND, IGNORED, IGNORED]
    image, row = rois.rows()
    assert (image.tolist(), row.tolist()) == ([0, 0, 0, 1], [0, 1, 2, 0])


# ---- the first stage


def rpn(**settings) -> RegionProposals:
    config = RPNConfig(scales_per_octave=1, ratios=(1.0,), **settings)
    return RegionProposals(config, channels=4, strides=(8, 16), anchor_scale=0.5)


def test_anchors_are_scaled() -> None:
    pyramid = pyramid_of(1, (2, 2), (1, 1))
    anchors = rpn().anchors(pyramid)
    assert anchors[0].tolist() == [-8, -8, 8, 8] and anchors[-1].tolist() == [-16, -16, 16, 16]


def test_proposals_are_the_best_of_each_level_apart_from_each_other() -> None:
    module, pyramid = rpn(num_proposals=3, train_candidates=3), pyramid_of(1, (2, 2), (1, 1))
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0, 2.5]])
    deltas = torch.zeros(1, 5, 4)
    deltas[0, 1, 0] = -0.4  # the second anchor moves nearly onto the first
    found = module.propose(Outputs(scores, deltas), pyramid, training=True)
    expected = torch.tensor([3.0, 2.5, 1.0]).sigmoid()
    torch.testing.assert_close(found.scores[0], expected)
    # Clipped to the image; levels do not suppress each other.
    assert found.boxes_xyxy[0, :2].tolist() == [[0, 0, 8, 8], [0, 0, 16, 16]]
    few = rpn(test_candidates=1).propose(Outputs(scores, deltas), pyramid, training=False)
    assert few.valid.tolist() == [[True, True]]
    assert not few.boxes_xyxy.requires_grad


def test_proposals_may_be_more_and_closer_at_inference() -> None:
    module = rpn(num_proposals=3, test_proposals=5, test_nms_threshold=0.99)
    pyramid, deltas = pyramid_of(1, (2, 2), (1, 1)), torch.zeros(1, 5, 4)
    deltas[0, 1, 0] = -0.4
    outputs = Outputs(torch.tensor([[3.0, 2.0, 1.0, 0.0, 2.5]]), deltas)
    assert [int(module.propose(outputs, pyramid, training=own).valid.sum()) for own in (True, False)] == [3, 5]
    assert RPNConfig(nms_threshold=0.6, num_proposals=7).test_limits == (0.6, 7)


def test_boxes_without_area_are_no_proposals() -> None:
    module, pyramid = rpn(train_candidates=10), pyramid_of(2, (2, 2), (1, 1))
    deltas = torch.zeros(2, 5, 4)
    deltas[0, :4, 0] = -100.0  # far to the left of the image
    found = module.propose(Outputs(torch.zeros(2, 5), deltas), pyramid, training=True)
    assert found.valid.sum(1).tolist() == [1, 5]
    assert (found.boxes_xyxy[0, 1:] == 0).all() and (found.scores[0, 1:] == 0).all()


# ---- pooling


def test_boxes_are_read_on_the_level_of_their_size() -> None:
    pyramid = pyramid_of(1, (16, 16), (8, 8), (4, 4))
    marked = [torch.full_like(level, number) for number, level in enumerate(pyramid.levels)]
    pooling = RoIPooling(pyramid.strides, finest_scale=16)
    sides = torch.tensor([4.0, 31.9, 32.1, 63, 1000])  # the last level is not for reading
    boxes = torch.stack([torch.zeros(5), torch.zeros(5), sides, sides], 1)
    pooled = pooling(marked[:2], torch.zeros(5, dtype=torch.long), boxes.clamp(max=128), 2)
    assert pooled.shape == (5, 4, 2, 2)
    assert pooled[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 1]


def test_a_region_is_the_mean_of_its_bins() -> None:
    ramp = torch.arange(8.0).expand(8, 8)[None, None]  # the value is the column
    rois = torch.tensor([[0, 16.0, 16, 48, 48]])  # columns 2 to 6 at stride 8
    assert roi_align(ramp, rois, 2, 1 / 8)[0, 0].tolist() == [[2.5, 4.5], [2.5, 4.5]]
    assert (roi_align(ramp, rois + torch.tensor([0, 900.0, 0, 900, 0]), 2, 1 / 8) == 0).all()
    assert roi_align(ramp, rois[:0], 2, 1 / 8).shape == (0, 1, 2, 2)


def test_roi_align_is_differentiable_in_the_features() -> None:
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 3.0, 2, 40, 30], [1, -5, 10, 22, 70], [1, 8, 8, 8, 8]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 3, 1 / 8), (features,))


# ---- the whole second stage, and its settings


def test_the_finest_scale_follows_strides_and_anchors() -> None:
    def stages(roi: RoIConfig, anchor_scale: float) -> TwoStage:
        return TwoStage(RPNConfig(), roi, channels=4, num_classes=2, strides=(8, 16), anchor_scale=anchor_scale)

    assert stages(RoIConfig(), 1.0).pooling.finest_scale == 112  # official
    assert stages(RoIConfig(), 0.5).pooling.finest_scale == 56
    assert stages(RoIConfig(finest_scale=30.0), 0.5).pooling.finest_scale == 30


AGNOSTIC = RoIConfig(num_convs=2, num_fcs=1, fc_channels=6, class_agnostic=True, delta_stds=(0.05, 0.05, 0.1, 0.1))


def agnostic_stages() -> TwoStage:
    """Two classes, one box; not at initial values, where all boxes are the proposals themselves."""
    torch.manual_seed(0)
    stages = TwoStage(RPNConfig(), AGNOSTIC, channels=8, num_classes=2, strides=(8, 16), anchor_scale=0.5)
    torch.nn.init.normal_(stages.boxes.classification.weight)
    torch.nn.init.normal_(stages.boxes.box.weight)
    return stages


def judged(stages: TwoStage, pyramid: Pyramid, box: Tensor) -> tuple[list[float], Tensor]:
    """Probabilities of the two classes and the background, and the box [4], of a region, without the branch's code."""
    pooled = stages.pooling(list(pyramid.levels[:1]), torch.zeros(1, dtype=torch.long), box[None], 7)
    state = stages.boxes.state_dict()
    for index in range(2):
        pooled = functional.conv2d(pooled, state[f"convs.{index}.conv.weight"], padding=1)
        norm = state[f"convs.{index}.norm.weight"], state[f"convs.{index}.norm.bias"]
        pooled = functional.group_norm(pooled, 2, *norm).relu()
    hidden = functional.linear(pooled.flatten(1), state["fcs.0.weight"], state["fcs.0.bias"]).relu()
    logits = functional.linear(hidden, state["classification.weight"], state["classification.bias"])[0]
    dx, dy, dw, dh = functional.linear(hidden, state["box.weight"], state["box.bias"])[0]
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    centre = (x0 + x1) / 2 + width * dx * 0.05, (y0 + y1) / 2 + height * dy * 0.05
    side = width * (dw * 0.1).exp(), height * (dh * 0.1).exp()
    corners = (
        [c - s / 2 for c, s in zip(centre, side, strict=True)],
        [c + s / 2 for c, s in zip(centre, side, strict=True)],
    )
    return logits.softmax(0).tolist(), torch.stack([*corners[0], *corners[1]])


@torch.no_grad()
def test_one_box_for_all_classes_is_detected_once_for_each() -> None:
    """A slow reading of the definition: each region's box with each class's score, greedy NMS within a class."""
    stages, pyramid = agnostic_stages(), pyramid_of(1, (8, 8), (4, 4), channels=8)
    boxes = [[0, 0, 24, 24], [2, 0, 26, 24], [30, 30, 60, 50], [8, 40, 30, 62.0]]
    expected = []
    for label in range(2):
        found = []
        for box in boxes:
            scores, own = judged(stages, pyramid, torch.tensor(box))
            found.append((scores[label], label, own.clamp(0, 64)))
        kept: list[tuple[float, int, Tensor]] = []
        for candidate in sorted(found, key=lambda own: -own[0]):
            if all(float(iou_aligned(candidate[2], other[2])) <= 0.5 for other in kept):
                kept.append(candidate)
        expected += kept
    expected.sort(key=lambda own: -own[0])
    assert 4 < len(expected) < 8  # NMS has something to do
    (found,), _ = stages.detect_on(proposals_of(boxes), pyramid, 100)
    torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in expected]))
    assert found.labels.tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(found.boxes_xyxy, torch.stack([box for _, _, box in expected]))
    assert {len(stages.boxes.box.weight), len(stages.boxes.box.bias)} == {4}


def test_losses_of_one_box_for_all_classes() -> None:
    stages, pyramid = agnostic_stages(), pyramid_of(1, (8, 8), (4, 4), channels=8)
    objects = [[0.0, 0, 24, 24], [30, 30, 60, 50]]
    targets = Targets.stack([torch.tensor(objects)], [torch.tensor([1, 0])])
    boxes = torch.tensor([*objects, [8.0, 40, 30, 62]])
    rois = RoIs(boxes[None], torch.tensor([[0, 1, BACKGROUND]]))
    pooled = stages.pooling(list(pyramid.levels[:1]), torch.zeros(3, dtype=torch.long), boxes, 7)
    losses = stages.boxes.losses(pooled, rois, targets)
    scores, decoded = zip(*(judged(stages, pyramid, box) for box in boxes), strict=True)
    classes = [-math.log(own[label]) for own, label in zip(scores, (1, 0, 2), strict=True)]
    overlaps = [1 - giou_aligned(own, goal) for own, goal in zip(decoded, torch.tensor(objects), strict=False)]
    assert losses["classification"].item() == pytest.approx(sum(classes) / 3, rel=1e-5)
    assert losses["boxes"].item() == pytest.approx(float(sum(overlaps)) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "settings", "told"),
    [
        (
            RPNConfig,
            {"negative_iou": 0.8},
            "negative_iou must not exceed positive_iou: negative_iou is 0.8, positive_iou is 0.7",
        ),
        (RPNConfig, {"num_proposals": 0}, "num_proposals must be at least 1, got 0"),
        (RPNConfig, {"ratios": ()}, "ratios must be positive numbers"),
        (RoIConfig, {"positive_fraction": 2.0}, "positive_fraction must be in \\[0, 1\\], got 2.0"),
        (RoIConfig, {"finest_scale": 0.0}, "finest_scale must be positive, got 0.0"),
        (RoIConfig, {"num_convs": -1}, "num_convs must not be negative, got -1"),
        (RoIConfig, {"delta_stds": (0.1, 0.1, 0.0, 0.1)}, "delta_stds must be four positive numbers, got .*"),
        (RPNConfig, {"test_nms_threshold": 1.5}, "test_nms_threshold must be in \\(0, 1\\], got 1.5"),
        (RPNConfig, {"test_proposals": 0}, "test_proposals must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(config, settings, told) -> None:
    with pytest.raises(ValueError, match=told):
        config(**settings)


def test_a_mask_branch_without_masks_says_so() -> None:
    head = MaskRCNNHead(MaskRCNNHead.Config(), channels=4, num_classes=2, strides=(8, 16))
    with pytest.raises(ValueError, match="the mask branch needs targets with masks"):
        head.train_step(pyramid_of(1, (4, 4), (2, 2)), targets_of([[0, 0, 8, 8]]), with_losses=True)


def test_a_pyramid_of_one_level_is_not_enough() -> None:
    with pytest.raises(ValueError, match="needs a pyramid of at least two levels"):
        FasterRCNNHead(FasterRCNNHead.Config(), channels=4, num_classes=2, strides=(8,))


# ---- customised queries of an image with few regions


def few_regions() -> Positives:
    gt_index = torch.tensor([[0, 1, BACKGROUND, BACKGROUND], [0, BACKGROUND, IGNORED, IGNORED]])
    return Positives(torch.rand(2, 4, 4), gt_index, features=torch.rand(2, 4, 4))


def test_an_image_uses_all_regions_it_has() -> None:
    selection = select_positives(few_regions(), pyramid_of(2, (2, 2)), 9, 300)
    assert selection.gt_index.shape == (2, 4)
    assert selection.weight.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_officially_all_are_cut_to_the_fewest_and_lost_if_those_are_too_few() -> None:
    pyramid = pyramid_of(2, (2, 2))
    selection = select_positives(few_regions(), pyramid, 9, 300, official=True)
    assert selection.gt_index.shape == (2, 2) and (selection.weight == 0).all()
    selection = select_positives(few_regions(), pyramid, 1, 300, official=True)
    assert sorted(selection.gt_index[0].tolist()) == [0, 1] and (selection.weight == 1).all()
