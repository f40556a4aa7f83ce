"""What the analyses are fed with: Grad-CAM of every head against an obvious implementation, one image at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.analyse import conflict, feed
from harness.analyse.collect import Observed, Queries
from harness.analyse.compare import Conflict, look
from model.detector import Detector
from model.heads import HEADS
from model.types import Batch
from tests.support.scattered_detector import build_detector
from tests.support.tiny import ON_ONE_LEVEL, ONE_LEVEL, PLAIN, single, tiny_batch

CAM = conflict.VARIANTS["cam-v1"]
SIZES = ((96, 96), (64, 80), (81, 70))
CANVAS = (96, 96)
EVERY_DETECTOR = pytest.mark.parametrize("name", ON_ONE_LEVEL)


def positive_logits(
    detector: Detector, name: str, root: feed.Root, decoded: feed.Decoded, batch: Batch
) -> list[Tensor]:
    """The logits of each object's class over the head's positives, for the one image of a batch; by plain loops."""
    labels = batch.targets.labels[0].tolist()
    if name == feed.DECODER:
        logits, gt_index = decoded.output.logits[-1, 0], decoded.gt_index[0]
    else:
        head = dict(detector.named_heads())[name]
        found = head.positives(root.pyramid, batch.targets)
        gt_index = found.gt_index[0]
        if hasattr(head, "stages"):  # R-CNN: log-odds against the background, the last class
            stages = head.stages
            image = torch.zeros(len(gt_index), dtype=torch.int64)
            pooled = stages._pool(stages.pooling.levels(root.pyramid), image, found.boxes_xyxy[0])
            logits = stages.boxes(pooled)[0]
            logits = logits[:, :-1] - logits[:, -1:]
        else:
            logits = head(root.pyramid).logits[0]
    return [
        torch.stack([logits[row, label] for row in range(len(gt_index)) if gt_index[row] == gt])
        for gt, label in enumerate(labels)
        if label >= 0
    ]


def plain_cam(detector: Detector, name: str, batch: Batch) -> Tensor:
    """cam-v1 of one head on one image, step by step."""
    root = feed.encode(detector, batch)
    decoded = feed.decode(detector, root, batch)
    logits = positive_logits(detector, name, root, decoded, batch)
    torch.stack([own.mean() for own in logits]).mean().backward()
    height, width = batch.valid_hw[0].tolist()
    levels = []
    for level, stride in zip(root.pyramid.levels, root.pyramid.strides, strict=True):
        h, w = math.ceil(height / stride), math.ceil(width / stride)
        gradient = torch.zeros_like(level) if level.grad is None else level.grad
        features, gradient = level.detach()[0, :, :h, :w], gradient[0, :, :h, :w]
        cam = torch.zeros(h, w)
        for channel in range(len(features)):
            cam += gradient[channel].mean() * features[channel]
        cam = cam.clamp(min=0)
        levels.append(cam / cam.max() if cam.max() > 0 else cam)
    finest = levels[0].shape
    spread = [F.interpolate(cam[None, None], finest, mode="bilinear", align_corners=False)[0, 0] for cam in levels]
    merged = torch.stack(spread).mean(0)
    return merged / merged.max() if merged.max() > 0 else merged


@pytest.mark.parametrize("changes", [{}, {**ONE_LEVEL, "seed": 1}], ids=["several levels", "one level"])
@pytest.mark.parametrize("name", [feed.DECODER, *sorted(HEADS)])
def test_cams_of_a_padded_batch_are_those_of_each_image_alone(name: str, changes: dict[str, Any]) -> None:
    heads = () if name == feed.DECODER else (name,)
    detector, batch = build_detector(*heads, **changes), tiny_batch((3, 1, 2), SIZES, CANVAS)
    root = feed.encode(detector, batch)
    found = look(detector, root, feed.decode(detector, root, batch), batch, ("cam-v1",))
    maps = found.maps["cam-v1"][0][:, -1]
    assert found.usable.sum() == 6
    for image, (height, width) in enumerate(SIZES):
        alone = single(batch, image, (math.ceil(height / 32) * 32, math.ceil(width / 32) * 32))
        expected = plain_cam(detector, name, alone)
        assert expected.max() == 1 and expected.std() > 0.05
        h, w = expected.shape
        torch.testing.assert_close(maps[image, :h, :w], expected, rtol=1e-3, atol=1e-3)
        assert maps[image, h:].abs().sum() == 0 and maps[image, :, w:].abs().sum() == 0


def test_all_heads_from_one_forward_pass_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = build_detector("atss", "faster_rcnn", "atss"), tiny_batch((3, 1))
    calls = []
    encode = detector.encode
    monkeypatch.setattr(detector, "encode", lambda b: calls.append(b) or encode(b))
    state = torch.get_rng_state()
    root = feed.encode(detector, batch)
    found = look(detector, root, feed.decode(detector, root, batch), batch, ("cam-v1", "cam-v1-l1"))
    assert len(calls) == 1 and found.maps["cam-v1"][0].shape[1] == len(feed.heads_of(detector)) == 4
    assert feed.heads_of(detector) == ("decoder", "atss", "faster_rcnn", "atss.2")
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_decoder_does_not_see_the_coarser_level_and_everybody_sees_the_finest() -> None:
    detector, batch = build_detector("atss"), tiny_batch((3, 1))
    root = feed.encode(detector, batch)
    decoded = feed.decode(detector, root, batch)
    scores = feed.scores(detector, root, decoded, batch)
    usable = conflict.usable_gts(list(scores.values()))
    decoder, atss = (feed.gradients(root, score, usable) for score in scores.values())
    assert decoder[-1].abs().sum() == 0 and decoder[0].abs().sum() > 0 and atss[0].abs().sum() > 0


@EVERY_DETECTOR
def test_with_one_level_the_decoder_sees_that_one_and_heads_all(name: str) -> None:
    detector, batch = build_detector("atss", **ON_ONE_LEVEL[name]), tiny_batch((3, 1), SIZES[:2], CANVAS)
    root = feed.encode(detector, batch)
    assert root.encoder_levels == (2,) and [tuple(level.shape[2:]) for level in root.features] == [(3, 3)]
    assert torch.equal(root.memory.maps()[0], root.features[0])
    assert [own.tolist() for own in root.cells(root.numbers(added=True))] == [
        *([[12, 12], [8, 10]], [[6, 6], [4, 5]], [[3, 3], [2, 3]], [[2, 2], [1, 2]], [[1, 1], [1, 1]])
    ]
    decoded = feed.decode(detector, root, batch)
    assert [tuple(own.shape) for own in decoded.attention] == [(2, 3, 3)]
    scores = feed.scores(detector, root, decoded, batch)
    usable = conflict.usable_gts(list(scores.values()))
    decoder, atss = (feed.gradients(root, score, usable) for score in scores.values())
    assert [bool(own.abs().sum() > 0) for own in decoder] == [False, False, True, False, False]
    assert atss[0].abs().sum() > 0
    found = look(detector, root, feed.decode(detector, root, batch), batch, tuple(conflict.VARIANTS))
    for variant, grids in found.maps.items():  # the levels that the adapter adds give the finest grid
        size = (12, 12) if conflict.VARIANTS[variant].added else (3, 3)
        assert [tuple(own.shape) for own in grids] == [(2, 2, *size)], variant


def test_attention_is_that_of_the_last_layer() -> None:
    """Every matched query gives its attention heads' weights, which sum to 1 over levels, to the maps."""
    detector, batch = build_detector(**PLAIN), tiny_batch((3, 1))
    root = feed.encode(detector, batch)
    decoded = feed.decode(detector, root, batch)
    total = torch.stack([level.sum((1, 2)) for level in decoded.attention]).sum(0)
    heads = detector.config.transformer.num_attention_heads
    assert (total <= heads * batch.targets.num_boxes + 1e-4).all() and (total > heads * 0.4).all()
    assert (decoded.gt_index >= 0).sum(1).tolist() == [3, 1]


@pytest.mark.parametrize("name", ["dab", "conditional"])
def test_attention_to_every_token_is_given_to_its_own_cell(name: str) -> None:
    detector, batch = build_detector(**ON_ONE_LEVEL[name]), tiny_batch((3, 1, 2), SIZES, CANVAS)
    root = feed.encode(detector, batch)
    decoded = feed.decode(detector, root, batch)
    assert decoded.output.looked_at is not None
    weights = decoded.output.looked_at[1].flatten(2)  # of one level, and as of one attention head
    expected = (weights * (decoded.gt_index >= 0)[..., None]).sum(1)
    (attention,) = decoded.attention
    torch.testing.assert_close(attention.flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert (root.memory.padding is not None) and (attention.flatten(1)[root.memory.padding] < 1e-6).all()
    torch.testing.assert_close(attention.sum((1, 2)), torch.tensor([3.0, 1.0, 2.0]))  # objects, each with its query


def observed(detector: Detector, batch: Batch) -> Observed:
    root = feed.encode(detector, batch)
    return Observed(batch, root, feed.decode(detector, root, batch), torch.zeros(len(batch.images), 0, 4), [0])


def test_two_identical_heads_have_distance_zero_and_swapped_heads_swap_the_matrix() -> None:
    batch = tiny_batch((3, 2, 1), ((96, 96),) * 3)
    twins = build_detector("atss", "atss")
    twins.heads["atss:2"].load_state_dict(twins.heads["atss"].state_dict())
    collector = Conflict(feed.heads_of(twins), ("cam-v1",))
    collector.add(observed(twins, batch), twins)
    table = collector.table("cam-v1")
    assert table["matrix"][1][2] < 1e-12 and table["matrix"][0][1] > 1e-4
    assert table["matrix"][0][0] == 0 and table["ceiling"]["value"] > 0
    assert table["num_images_used"] == 3 and table["left_out_share"] == 0

    tables = []
    for order in (("atss", "faster_rcnn"), ("faster_rcnn", "atss")):
        detector = build_detector(*order)
        other = build_detector("atss", "faster_rcnn")
        detector.load_state_dict(other.state_dict())
        collector = Conflict(feed.heads_of(detector), ("cam-v1",))
        collector.add(observed(detector, batch), detector)
        tables.append(torch.tensor(collector.table("cam-v1")["matrix"]))
    torch.testing.assert_close(tables[1], tables[0][[0, 2, 1]][:, [0, 2, 1]], rtol=1e-6, atol=1e-9)


def test_floor_of_a_detector_with_itself_is_zero_and_with_another_is_not() -> None:
    batch = tiny_batch((3, 2), ((96, 96), (64, 96)))
    detector = build_detector("atss")
    for other, same in ((build_detector("atss"), True), (build_detector("atss", seed=1), False)):
        collector = Conflict(feed.heads_of(detector), ("cam-v1", "cam-v1-each-level"), other)
        collector.add(observed(detector, batch), detector)
        for variant in collector.variants:
            floor = collector.table(variant)["floor"]["value"]
            assert floor < 1e-9 if same else floor > 1e-4


def test_a_head_without_positives_leaves_nothing_to_compare() -> None:
    """FCOS takes points inside the box: none lies in a box that misses every cell's middle."""
    detector, batch = build_detector("fcos"), tiny_batch((1, 1))
    batch.targets.boxes_xyxy[:, 0] = torch.tensor([40.5, 40.5, 42.0, 42.0])
    collector = Conflict(feed.heads_of(detector), ("cam-v1",))
    queries = Queries(feed.heads_of(detector))
    seen = observed(detector, batch)
    collector.add(seen, detector)
    queries.add(seen, detector)
    table = collector.table("cam-v1")
    assert table["num_images_used"] == 0 and table["left_out_share"] == 1
    assert table["distance"]["fcos"] == {"value": None, "low": None, "high": None}
    assert queries.table()["positives_per_gt"] == {"decoder": 1.0, "fcos": 0.0}
    assert queries.table()["distances"] == {"fcos": {"to_positives": None, "to_negatives": None}}


def test_images_without_objects_take_no_part() -> None:
    detector = build_detector("atss")
    tables = []
    for counts, sizes in (((3, 0), ((96, 96), (96, 96))), ((3,), ((96, 96),))):
        collector = Conflict(feed.heads_of(detector), ("cam-v1",))
        collector.add(observed(detector, tiny_batch(counts, sizes)), detector)
        tables.append(collector.table("cam-v1"))
    assert tables[0]["num_images_used"] == 1
    torch.testing.assert_close(torch.tensor(tables[0]["matrix"]), torch.tensor(tables[1]["matrix"]))
