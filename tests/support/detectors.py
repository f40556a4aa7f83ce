"""Every detector that has a preset, tiny, with any heads and query groups; a new preset, head or group is among them.

Parts, levels and recipe are those of a preset's paper size; what is small is small for all alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import cycle, islice, product
from typing import Any

import torch
from torch import Tensor

from harness.spec.grid import open_grid
from harness.spec.spec import SHIPPED
from harness.trial.ranks import join
from model.backbones import BACKBONES
from model.config import DetectorConfig, TransformerConfig
from model.detector import Detector
from model.groups import GROUPS
from model.heads import HEADS
from model.types import Batch
from tests.support import tiny_heads
from tests.support.ranked import CPU, train_detector
from tests.support.rooms import TINY
from tests.support.tiny import NUM_CLASSES, tiny_batch

PRESETS = sorted(path.stem for path in (SHIPPED / "presets" / "models").glob("*.yaml"))
EVERY_HEAD = tuple(sorted(HEADS))
PAIRS = list(product(PRESETS, EVERY_HEAD))
ONCE = list(
    islice(zip(cycle(PRESETS), cycle(EVERY_HEAD)), max(len(PRESETS), len(EVERY_HEAD)))
)  # each of both, at least
EVERY_GROUP = {name: GROUPS.config_of(name)(**TINY["groups"][name]) for name in GROUPS.names}
NUM_QUERIES = 9  # that the groups' tiny numbers are multiples of it, which some proposals need
SIZES = ((61, 50), (33, 64), (40, 22))  # (height, width): no multiple of a stride, and smaller than the largest
CANVAS = (64, 64)
WITH_OBJECTS, WITHOUT = (3, 0, 2), (0, 0, 0)


@cache
def paper_config(preset: str) -> DetectorConfig:
    """What `model.preset` stands for beside an auxiliary head with all its losses."""
    quickstart = SHIPPED / "quickstart.yaml"
    grid = open_grid(quickstart, "coco_r50_12e", [f"model.preset={preset}"], require_data=False)
    return grid.trials[-1].config.model


def tiny_preset(preset: str, *heads: str, dropout: float = 0.0, **changes: Any) -> DetectorConfig:
    """A preset with small numbers and these heads; `changes` are other settings."""
    config = paper_config(preset)
    backbone = replace(config.backbone, **TINY["backbones"][BACKBONES.name_of(config.backbone)])
    transformer = TransformerConfig(
        channels=32,
        num_levels=config.transformer.num_levels,
        num_attention_heads=4,
        num_points=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        feedforward_channels=64,
        dropout=dropout,
    )
    small = {
        "backbone": backbone,
        "transformer": transformer,
        "num_queries": NUM_QUERIES,
        "anchor_scale": 0.25,  # anchors as small as the objects
        "min_positive_queries": 1,  # so that their number is that of the positives
        "positive_query_images": 0,  # shares of a batch are single images in the tests
        "groups": tuple(replace(group, **TINY["groups"][GROUPS.name_of(group)]) for group in config.groups),
        "heads": tuple(HEADS[name].Config(**tiny_heads.TINY[name]) for name in heads),
    }
    return replace(config, **{**small, **changes})


def scattered(config: DetectorConfig, seed: int = 0) -> Detector:
    """A detector away from its initial values, where attention is uniform and every logit the same."""
    torch.manual_seed(seed)
    detector = Detector(config, NUM_CLASSES)
    for parameter in detector.parameters():
        if parameter.dim() > 1:
            parameter.data += torch.randn_like(parameter) * 0.05
    return detector


def batch_of(counts: Sequence[int] = WITH_OBJECTS, seed: int = 0) -> Batch:
    """Padded images with so many objects."""
    return tiny_batch(tuple(counts), SIZES, CANVAS, seed)


# ---- what learns --------------------------------------------------------------------------------------------------

# A softmax is the same whatever is added to all keys alike.
OF_ALL_KEYS = r"\.key_(content|position)\.bias$"
# Queries that all begin with nothing attend, in the first layer, to values that are all the same.
FIRST_ATTENTION = r"^decoder\.layers\.0\.self_attention\.((query|key)_(content|position)\.|value\.weight$)"
ROUNDING = 1e-7  # of a gradient that is zero


def learn(detector: Detector, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Total and losses of one forward and backward pass; every gradient is there and finite."""
    total, losses = detector(batch)
    total.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert torch.isfinite(parameter.grad).all(), name
    return total, losses


def assert_all_learns(detector: Detector, batch: Batch) -> None:
    """A step gives a gradient to every parameter that a loss can depend on, and to no other."""
    starts: list[bool] = []  # of each query group, whether it begins with something
    hook = detector.decoder.register_forward_pre_hook(
        lambda module, inputs: starts.extend(bool(group.content.any()) for group in inputs[0])
    )
    learn(detector, batch)
    hook.remove()
    idle = re.compile(OF_ALL_KEYS if any(starts) else f"{OF_ALL_KEYS}|{FIRST_ATTENTION}")
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None
        most = parameter.grad.abs().max().item()
        assert (most <= ROUNDING) if idle.search(name) else (most > 0), f"{name}: {most}"


# ---- training -----------------------------------------------------------------------------------------------------

TRAINED = ((3, 1, 0, 2), (0, 2, 5, 1))  # objects of the images of each batch


def train_pair(preset: str, head: str, dropout: float = 0.0, **options: Any) -> dict[str, Any]:
    """Two steps of a preset with a head; see `tests.support.ranked.train_detector`."""
    return train_detector(scattered(tiny_preset(preset, head, dropout=dropout)), TRAINED, steps=2, **options)


def train_pairs(
    rank: int, size: int, meeting_file: str, pairs: Sequence[tuple[str, str]], **_: Any
) -> list[dict[str, Any]]:
    """Each of these pairs, by one of several ranks."""
    torch.set_num_threads(1)
    ranks = join(rank, size, meeting_file, CPU)
    return [train_pair(*pair, ranks=ranks) for pair in pairs]
