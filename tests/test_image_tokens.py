"""Queries that start from the encoder's tokens, on images with too few of them: told before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.schedule.schedule import check_datasets
from harness.spec.grid import open_grid
from harness.spec.image_tokens import tokens_of
from model.config import DetectorConfig
from model.detector import Detector
from tests.support.folders import tables, write_split
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
        ["model.num_queries=60", "data.path=somewhere", "data.max_long_side=128"],  # `run` tells of small ones
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
    batch = tiny_batch((1,), ((side, 2 * side),))
    memory, _ = detector.encode(batch)
    assert memory.tokens.shape[1] == tokens_of(config.strides, side, 2 * side, detector.size_divisor)


def checked(tmp_path: Path, sizes: dict[str, list[tuple[int, int]]], *overrides: str) -> tuple[list[str], str]:
    """Notes and the refusal of a run on images of these heights and widths: short side 48, 4 of a batch, 12 queries."""
    folder = tmp_path / "data"
    for seed, (split, own) in enumerate(sizes.items()):
        write_split(folder, split, tables(seed, own), seed)
    (folder.parent / "table.yaml").write_text("rows: [{label: a}]")
    settings = [
        "data.train_short_sides=[48]",
        "data.eval_short_side=48",
        "data.max_long_side=192",
        "train.batch_size=4",
    ]
    grid = open_grid(tmp_path / "table.yaml", "digits_fast", [*settings, *overrides], data=str(folder))
    said: list[str] = []
    try:
        check_datasets(grid.trials, said.append)
    except UserError as error:
        return said, str(error)
    return [line for line in said if "tokens" in line], ""


FLAT, SQUARE = (24, 384), (100, 100)  # 12 x 192 and 48 x 48 pixels, padded to 32 x 192 and 64 x 64: 30 and 20 tokens


def test_images_without_enough_tokens_are_counted_before_training(tmp_path: Path) -> None:
    images = {"train": [FLAT] * 5 + [SQUARE] * 4, "val": [FLAT, SQUARE]}
    assert checked(tmp_path / "enough", images) == ([], "")
    notes, error = checked(tmp_path / "some", images, "model.num_queries=25")
    assert not error and len(notes) == 2
    first, second = (note.split(";")[0] for note in notes)
    assert first == (
        "note: 4 of 9 training images have fewer of the encoder's tokens than queries start from (25): "
        "one of 100 x 100 pixels, which becomes 48 x 48, has 20"
    )
    assert second.startswith("note: 1 of 2 validation images ")
    rare = {"train": [FLAT] * 5 + [SQUARE] * 3, "val": [FLAT]}  # a batch of 4 holds a large one
    assert checked(tmp_path / "rare", rare, "model.num_queries=25") == ([], "")


def test_a_split_whose_images_are_all_too_small_is_refused(tmp_path: Path) -> None:
    _, error = checked(tmp_path / "train", {"train": [FLAT, SQUARE], "val": [FLAT]}, "model.num_queries=31")
    assert error.startswith("2 of 2 training images ") and "\n" not in error and "model.num_queries" in error
    _, error = checked(tmp_path / "val", {"train": [FLAT] * 4, "val": [SQUARE]}, "model.num_queries=25")
    assert error.startswith("1 of 1 validation images ")
    learned = ["model.preset=deformable", "model.num_queries=500"]
    assert checked(tmp_path / "learned", {"train": [SQUARE], "val": [SQUARE]}, *learned) == ([], "")
