"""Whether the encoder has as many tokens as queries start from, as far as that is known before training.

Two-stage detectors choose their queries among the encoder's tokens, and a small image has few. Digit scenes have the
size that the configuration gives them, and so has everything on a square. The images of a folder have any, up to the
longest side: what even the largest lacks is told here, the rest when the data are read
(`harness.schedule.small_images`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from harness.config import DataConfig
from model.backbones.configs import asked
from model.checks import Conflict
from model.config import DetectorConfig
from model.groups import GROUPS


def tokens_of(strides: tuple[int, ...], height: int, width: int, divisor: int) -> int:
    """How many tokens an image has on levels of these strides; its sides are padded to multiples of the divisor."""
    padded = [-(-side // divisor) * divisor for side in (height, width)]
    return sum(math.prod(-(-side // stride) for side in padded) for stride in strides)


def divisor_of(model: DetectorConfig) -> int:
    """What the sides of a batch are multiples of."""
    divisor: int = asked(model.backbone, "size_divisor") or model.strides[-1]
    return divisor


def shortages(model: DetectorConfig, data: DataConfig) -> Iterator[Conflict]:
    """What the smallest image of the training lacks, or that of the evaluation, where only original queries run.

    Of own images it is what the largest lacks, a batch of which is padded to a square at most.
    """
    if not model.strides:
        return
    sides, largest = data.train_short_sides, {"data.max_long_side": data.max_long_side}
    checks: list[tuple[int, int, dict[str, Any]]] = [(model.num_proposals, data.max_long_side, largest)]
    if data.square:
        checks = [(model.num_proposals, data.square, {"data.square": data.square})]
    elif data.path is None:
        checks = [
            (model.num_proposals, min(sides), {"data.train_short_sides": list(sides)}),
            *checks,
            (model.num_queries, data.eval_short_side, {"data.eval_short_side": data.eval_short_side}),
        ]
    for number, side, setting in checks:
        needed, there = model.num_tokens_for(number), tokens_of(model.strides, side, side, divisor_of(model))
        if needed > there:
            beside = number > model.num_queries
            values: dict[str, Any] = {"model.num_queries": model.num_queries, **setting}
            if beside:
                values["model.groups"] = list(GROUPS.instance_names(model.groups))
            who = "all query groups" if beside else "the queries"
            rule = f"{who} start from {needed:,} of the encoder's tokens, and an image of {side} x {side} has {there:,}"
            yield Conflict(rule, values)
            return
