"""Queries that start from the encoder's tokens, on images with too few of them: told before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.spec.grid import open_grid
from harness.spec.image_tokens import tokens_of
from model.config import DetectorConfig
from model.detector import Detector
from tests.support.tiny import NUM_CLASSES, ONE_LEVEL, tiny_batch, tiny_config, with_vit

HYBRID = "model.preset=h_deformable"  # 12 and 25 queries, of 45 tokens


def told(tmp_path: Path, *overrides: str, **options: Any) -> str:
    """The line that refuses a file with these settings at the size of digits_fast; empty where it is taken."""
    (tmp_path / "table.yaml").write_text("rows: [{label: a}]")
    try:
        open_grid(tmp_path / "table.yaml", "digits_fast", overrides, require_data=False, **options)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model.num_queries=46"],
            "--set model.num_queries=46: the queries start from 46 of the encoder's tokens, and an image of 96 x 96 "
            "has 45; data.train_short_sides is [96]",
        ),
        (
            [HYBRID, "model.num_queries=21"],
            "--set model.num_queries=21: all query groups start from 46 of the encoder's tokens, and an image of "
            "96 x 96 has 45; data.train_short_sides is [96]",
        ),
        (
            [HYBRID, "data.train_short_sides=[96, 64]"],
            "--set data.train_short_sides=[96, 64]: all query groups start from 37 of the encoder's tokens, and an "
            "image of 64 x 64 has 20; model.num_queries is 12",
        ),
        (
            [HYBRID, "data.eval_short_side=64", "data.max_long_side=64"],
            "--set data.max_long_side=64: all query groups start from 37 of the encoder's tokens, and an image of "
            "64 x 64 has 20; model.num_queries is 12",
        ),
        (
            ["data.eval_short_side=32"],
            "--set data.eval_short_side=32: the queries start from 12 of the encoder's tokens, and an image of 32 x 32 "
            "has 5; model.num_queries is 12",
        ),
        (
            ["data.path=somewhere", "model.num_queries=500", "data.max_long_side=128"],
            "--set data.max_long_side=128: the queries start from 500 of the encoder's tokens, and an image of "
            "128 x 128 has 80; model.num_queries is 500",
        ),
        (
            ["data.path=somewhere", "model.num_queries=500", "data.square=128", "data.max_long_side=2000"],
            "--set data.square=128: the queries start from 500 of the encoder's tokens, and an image of "
            "128 x 128 has 80; model.num_queries is 500",
        ),
    ],
)
def test_too_few_tokens_are_told(tmp_path: Path, overrides: list[str], line: str) -> None:
    found = told(tmp_path, *overrides)
    assert found.startswith(line) and found.endswith(" too") and "\n" not in found


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.num_queries=45"],
        [HYBRID, "model.num_queries=20"],
        [HYBRID, "data.eval_short_side=64"],  # at which the original queries are alone
        ["model.preset=deformable", "model.num_queries=500"],  # learned queries need no tokens
        ["model.preset=dab_c5", "model.num_queries=500"],
        ["model.num_queries=60", "data.path=somewhere", "data.max_long_side=128"],  # the first step tells of small ones
    ],
)
def test_enough_tokens_are_taken(tmp_path: Path, overrides: list[str]) -> None:
    assert told(tmp_path, *overrides) == ""


CONFIGS: dict[str, DetectorConfig] = {
    "three levels": tiny_config(),
    "one level": tiny_config(**ONE_LEVEL),
    "stride 4": tiny_config(stages=(1, 4)),
    "a backbone that says what it is padded to": with_vit(tiny_config(stages=(1, 2, 3, 4))),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("side", [96, 33])
def test_tokens_are_those_of_the_detector(config: DetectorConfig, side: int) -> None:
    detector = Detector(config, NUM_CLASSES)
    assert config.strides == detector.strides
    batch = tiny_batch((1,), ((side, side),))
    memory, _ = detector.encode(batch)
    assert memory.tokens.shape[1] == tokens_of(config.strides, side, detector.size_divisor)
