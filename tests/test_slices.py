"""Slices of a batch decide how many queries of a kind there are, as the GPUs of the official code do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model import sampling
from model.detector import Detector
from model.groups import denoising, positives
from model.groups.positives import select_positives
from model.types import BACKGROUND, IGNORED, Batch, Positives, Step
from tests.support.tiny import DINO, NUM_CLASSES, tiny_batch, tiny_config
from tests.support.tiny_heads import pyramid_of

COUNTS = (3, 1, 9, 0, 2)  # objects of five images: slices of two, two and one


def part(batch: Batch, images: slice) -> Batch:
    """Some images of a batch as a batch."""
    return Batch(
        batch.images[images],
        batch.valid_hw[images],
        replace(batch.targets.of_images(images), masks=None),
        batch.image_ids[images],
    )


# ---- customised positive queries ------------------------------------------------------------------------------------


def candidates(own_features: bool) -> Positives:
    """40 candidates of five images: the first few are positives, the last few of some images take no part."""
    generator = torch.Generator().manual_seed(0)
    gt_index = torch.full((5, 40), BACKGROUND)
    for row, count in zip(gt_index, (12, 3, 30, 0, 5), strict=True):
        row[:count] = torch.arange(count) % 3
    if own_features:
        for row, regions in zip(gt_index, (40, 33, 40, 8, 20), strict=True):
            row[regions:] = IGNORED
    boxes = torch.rand(5, 40, 4, generator=generator).cumsum(-1)
    if own_features:
        return Positives(boxes, gt_index, features=torch.rand(5, 40, 8, generator=generator))
    return Positives(boxes, gt_index, token_index=torch.arange(40))


@pytest.mark.parametrize("own_features", [False, True])
@pytest.mark.parametrize("official", [False, True])
def test_a_slice_chooses_what_it_would_choose_alone(official, own_features):
    given, pyramid = candidates(own_features), pyramid_of(5)
    priority = torch.rand(5, 40, generator=torch.Generator().manual_seed(1))
    together = select_positives(given, pyramid, 9, 20, priority, official, images=2)
    assert together.hidden is not None
    for images in (slice(0, 2), slice(2, 4), slice(4, 5)):
        features = None if given.features is None else given.features[images]
        own = replace(given, boxes_xyxy=given.boxes_xyxy[images], gt_index=given.gt_index[images], features=features)
        own_pyramid = replace(
            pyramid, levels=tuple(x[images] for x in pyramid.levels), valid_hw=pyramid.valid_hw[images]
        )
        regions = int((own.gt_index != IGNORED).sum(1).min()) if official and own_features else 40
        alone = select_positives(own, own_pyramid, 9, 20, priority[images, :regions], official)
        count = alone.gt_index.shape[1]
        weight = together.weight[images]
        assert torch.equal(weight[:, :count], alone.weight) and not weight[:, count:].any()
        used = alone.weight > 0
        assert torch.equal(together.gt_index[images, :count][used], alone.gt_index[used])
        assert torch.equal(together.boxes_cxcywh[images, :count][used], alone.boxes_cxcywh[used])
        assert (together.gt_index[images, count:] == BACKGROUND).all()


def test_one_slice_is_the_whole_batch():
    given, pyramid = candidates(False), pyramid_of(5)
    priority = torch.rand(5, 40, generator=torch.Generator().manual_seed(1))
    whole = select_positives(given, pyramid, 9, 300, priority)
    slices = select_positives(given, pyramid, 9, 300, priority, images=5)
    assert whole.hidden is None and slices.hidden is not None and not slices.hidden.any()
    for name in ("boxes_cxcywh", "gt_index", "weight", "features"):
        assert torch.equal(getattr(whole, name), getattr(slices, name))


# ---- the whole decoder ---------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """Random numbers of an image that depend on nothing but its objects and their place in the row."""
    rows: list[int] = []

    def rand(shape, device):
        numbers = [
            torch.rand(4000, *shape[2:], generator=torch.Generator().manual_seed(row))[: shape[1]] for row in rows
        ]
        return torch.stack(numbers)

    for room in (denoising, positives, sampling):
        monkeypatch.setattr(room, "rand", rand)
    return rows


def decoded(detector: Detector, batch: Batch):
    """Query groups and what the decoder makes of each."""
    memory, mask_at = detector.encode(batch)
    step = Step(batch, memory, detector.queries(memory, detector.num_proposals), mask_at)
    detector._train_heads(step)
    queries = [group.queries(step) for group in detector.query_groups()]
    outputs = detector.decoder(queries, memory).split([own.content.shape[1] for own in queries])
    return list(zip(queries, outputs, strict=True))


@pytest.mark.parametrize("heads", [("atss",), ("atss", "faster_rcnn")])
def test_a_slice_is_decoded_as_it_is_alone(drawn, heads):
    torch.manual_seed(0)
    detector = Detector(tiny_config(*heads, **DINO, positive_query_images=2), NUM_CLASSES).train()
    batch = tiny_batch(COUNTS, ((96, 96),) * 5)
    drawn[:] = range(5)
    together = decoded(detector, batch)
    for images in (slice(0, 2), slice(2, 4), slice(4, 5)):
        drawn[:] = range(5)[images]
        for (queries, output), (own_queries, own_output) in zip(
            together, decoded(detector, part(batch, images)), strict=True
        ):
            count = own_queries.content.shape[1]
            for name in ("logits", "boxes_cxcywh"):
                all_of_them, alone = getattr(output, name)[:, images, :count], getattr(own_output, name)
                torch.testing.assert_close(all_of_them, alone, rtol=1e-4, atol=1e-5)
            if own_queries.gt_index is not None:
                assert torch.equal(queries.gt_index[images, :count], own_queries.gt_index)
                beyond = queries.content.shape[1] > count
                assert not beyond or (queries.weight[images, count:] == 0).all()


def test_hidden_queries_teach_nothing(drawn):
    """Losses of slices add up, weighted by what they are divided by: here by the classes' own normaliser."""
    torch.manual_seed(0)
    detector = Detector(tiny_config("atss", **DINO, positive_query_images=2), NUM_CLASSES).train()
    batch = tiny_batch(COUNTS, ((96, 96),) * 5)
    drawn[:] = range(5)
    _, together = detector(batch)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for images in (slice(0, 2), slice(2, 4), slice(4, 5)):
        drawn[:] = range(5)[images]
        own = part(batch, images)
        _, losses = detector(own)
        drawn[:] = range(5)[images]
        groups = zip(detector.query_groups(), decoded(detector, own), strict=True)
        queries = {getattr(group, "name", "main"): queries for group, (queries, _) in groups}
        for kind, prefix in (("denoising", "denoising"), ("atss", "queries.atss")):
            number = max(1, int((queries[kind].gt_index >= 0).sum()))
            for name in (name for name in losses if name.startswith(prefix)):
                sums[name] = sums.get(name, 0.0) + losses[name].item() * number
                counts[name] = counts.get(name, 0.0) + number * bool((queries[kind].gt_index >= 0).any())
    assert sums
    for name, value in sums.items():
        assert together[name].item() == pytest.approx(value / counts[name], rel=1e-3), name
