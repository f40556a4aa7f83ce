"""Contrastive denoising queries, with the recorded noise of the official code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

from model.assign.configs import HungarianConfig
from model.assign.hungarian import Hungarian
from model.attention import Visibility
from model.classification.configs import QualityConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.criterion import Objective
from model.groups.configs import DenoisingConfig
from model.groups.denoising import DenoisingGroup, Noise
from model.losses import Quality
from model.types import Batch, QueryGroup, Step, Targets
from tests.golden_topics.case import EXACT, FLOAT32, Case, Comparison
from tests.support.visibility import seen_by


@dataclass(frozen=True)
class _PositionMaker:
    """Settings of a decoder that makes positions from references, as DINO's."""

    makes_position = True


def recorded_noise(case: Case, targets: Targets, label_noise: float = 0.5) -> Noise:
    """The draws `dn_noise_*` of a file, which has them in the order group, positive or negative, image, object.

    Slots without an object have none and get zeros.
    """
    used = targets.valid[:, : int(targets.num_boxes.max())]
    slots = used.expand(int(case["dn_num_groups"]), 2, *used.shape)

    def spread(values: Tensor) -> Tensor:
        """[n, …] → [B, Q, …]."""
        full = values.new_zeros(*slots.shape, *values.shape[1:])
        full[slots] = values
        return full.movedim(2, 0).flatten(1, 3)

    flip = case["dn_noise_label_p"]
    label = torch.zeros(len(flip), dtype=torch.int64)
    label[flip < label_noise / 2] = case["dn_noise_new_label"]
    sign, part = case["dn_noise_box_sign01"] * 2 - 1, case["dn_noise_box_part"]
    return Noise(spread(flip), spread(label), spread(sign), spread(part))


def denoising_queries(case: Case, queries: QueryGroup, num_queries: int) -> Iterator[Comparison]:
    """What a file says of the queries themselves, and what they and `num_queries` original ones may see."""
    pad_size = int(case["dn_pad_size"])
    yield Comparison("dn_label_query", queries.content, case["dn_label_query"], FLOAT32)
    reference = queries.reference_cxcywh
    yield Comparison("dn_bbox_query", reference, case["dn_bbox_query_unact"].sigmoid(), FLOAT32)
    main = QueryGroup(torch.zeros(2, num_queries, 1), None, torch.zeros(2, num_queries, 4), has_size=True)
    seen = seen_by(Visibility.of([main, queries]), 2, num_queries + pad_size)
    order = [*range(num_queries, num_queries + pad_size), *range(num_queries)]  # officially they come first
    for image in range(2):
        yield Comparison(f"dn_attn_mask {image}", ~seen[image][order][:, order], case["dn_attn_mask"], EXACT)


def dn_queries(case: Case) -> Iterator[Comparison]:
    """Content, references and visibility; the gradient of the label embedding is there whatever the images hold."""
    num_classes, channels = case["label_embedding"].shape
    targets = Targets.stack(list(case.sequence("gt_bboxes_img")), list(case.sequence("gt_labels_img")))
    config = DetectorConfig(
        transformer=TransformerConfig(channels=channels), decoder=_PositionMaker(), num_queries=int(case["num_queries"])
    )
    objective = Objective(
        config, num_classes, Quality(QualityConfig()), Hungarian(HungarianConfig(), weights=LossWeights())
    )
    group = DenoisingGroup(DenoisingConfig(number=int(case["num_dn_queries"])), name="denoising", objective=objective)
    group.load_state_dict({"label_embedding": case["label_embedding"]})
    step = Step(Batch(torch.zeros(2, 3, 1, 1), case["valid_hw"], targets), *cast(Any, (None, None, None)))
    noise = recorded_noise(case, targets)
    with mock.patch.object(group, "draw", lambda *shape: noise):
        queries = group.queries(step)
    yield from denoising_queries(case, queries, config.num_queries)
    queries.content.sum().backward()
    assert group.label_embedding.grad is not None
