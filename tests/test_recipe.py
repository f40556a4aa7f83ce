"""The COCO presets are the released recipe, and nothing else changed with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config import DataConfig, TrialConfig
from harness.data.augment import draw_view
from harness.spec.grid import open_grid
from harness.spec.presets import preset_files, released_models
from harness.spec.strict import Mistakes
from model.detector import Detector
from tests.support.tiny import DINO, ON_ONE_LEVEL, tiny_config

ABLATIONS = Path(__file__).parents[1] / "ablations"
IDS = Path(__file__).parent / "expected" / "ids.json"
COCO = ("coco_r50_12e", "coco_r50_36e")
RELEASED = released_models(preset_files("", "presets/released"), Mistakes())


@pytest.mark.parametrize("file", sorted(json.loads(IDS.read_text())))
def test_ids_of_digits_are_as_before_and_those_of_coco_are_new(file):
    """The table holds digests of the ids before the COCO presets took the released augmentation and slices."""
    before = json.loads(IDS.read_text())[file]
    now = {preset: digest(file, preset) for preset in before}
    assert {preset for preset in before if now[preset] != before[preset]} == set(COCO)


def came_later(file: str, row: str) -> bool:
    """Rows that files did not have then, besides those of released detectors."""
    return file == "head_pairs.yaml" and row.startswith("K = 1: ")


def digest(file: str, preset: str) -> str:
    grid = open_grid(ABLATIONS / file, preset, require_data=False)
    before = [trial for trial in grid.trials if trial.detector not in RELEASED and not came_later(file, trial.row)]
    ids = sorted({trial.trial_id for trial in before})
    return hashlib.sha256(" ".join(ids).encode()).hexdigest()[:12]


# ---- the released configuration, key by key ------------------------------------------------------------------------

# co_deformable_detr_r50_1x_coco and _3x_coco of Sense-X/Co-DETR, commit 2665352; common to both.
OFFICIAL: dict[str, Any] = {
    "model.num_queries": 300,
    "model.two_stage": True,
    "model.box_refinement": True,
    "model.mixed_selection": True,
    "model.look_forward_twice": True,
    "model.min_positive_queries": 9,
    "model.max_positive_queries": 300,
    "model.positive_query_images": 2,  # samples_per_gpu
    "model.first_weights": "official",
    "model.lambda1": 1.0,
    "model.lambda2": 2.0,
    "model.loss_weights.classification": 2.0,
    "model.loss_weights.l1": 5.0,
    "model.loss_weights.giou": 2.0,
    "model.backbone.depths": (3, 4, 6, 3),
    "model.backbone.norm": "frozen_batch",
    "model.backbone.frozen_stages": 1,
    "model.backbone.stages": (2, 3, 4),
    "model.transformer.channels": 256,
    "model.transformer.num_levels": 4,
    "model.transformer.num_attention_heads": 8,
    "model.transformer.num_points": 4,
    "model.transformer.num_encoder_layers": 6,
    "model.transformer.num_decoder_layers": 6,
    "model.transformer.feedforward_channels": 2048,
    "model.transformer.dropout": 0.0,
    "data.train_short_sides": tuple(range(480, 801, 32)),
    "data.max_long_side": 1333,
    "data.eval_short_side": 800,
    "data.flip_probability": 0.5,
    "data.crop_probability": 0.5,
    "data.crop_short_sides": (400, 500, 600),
    "data.crop_sides": (384, 600),
    "data.resize": "official",
    "data.aspect_group_size": 2,
    "data.min_image_side": 32,
    "data.min_box_side": 1.0,
    "train.batch_size": 16,  # 8 GPUs with 2 images each
    "train.learning_rate": 2e-4,
    "train.weight_decay": 1e-4,
    "train.backbone_lr_factor": 0.1,
    "train.sampling_lr_factor": 0.1,
    "train.clip_grad_norm": 0.1,
    "train.schedule": "step",
    "train.warmup_fraction": 0.0,
    "train.precision": "tf32",
    "train.ema_decay": 0.0,
    "evaluate.precision": "training",
    "evaluate.max_detections": 100,
}
SCHEDULES = {"coco_r50_12e": (12, (11,)), "coco_r50_36e": (36, (30,))}


def preset(name: str, *settings: str) -> TrialConfig:
    grid = open_grid(ABLATIONS / "quickstart.yaml", name, list(settings), require_data=False)
    return grid.trials[0].config


@pytest.mark.parametrize("name", COCO)
def test_a_coco_preset_equals_the_released_configuration(name):
    config = preset(name)
    found = {}
    for key in OFFICIAL:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        found[key] = value
    assert found == OFFICIAL
    assert (config.train.epochs, config.train.drop_epochs) == SCHEDULES[name]


def test_the_heads_weigh_as_released():
    """Their own weights, counted once for each of six layers, times lambda2: 12 = 6 * 2."""
    lambda2 = preset("coco_r50_12e").model.lambda2
    small = tiny_config("atss", "faster_rcnn", lambda2=lambda2)
    weights = Detector(small, num_classes=3).loss_weights
    layers = small.transformer.num_decoder_layers
    found = {name: weight * 6 / layers for name, weight in weights.items() if name.startswith(("atss", "faster_rcnn"))}
    assert found == {
        **{"atss/classification": 12, "atss/boxes": 24, "atss/centerness": 12},
        **{"faster_rcnn/rpn_classification": 12, "faster_rcnn/rpn_boxes": 12},
        **{"faster_rcnn/classification": 12, "faster_rcnn/boxes": 120},
    }


# ---- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hw", "crop", "final"),
    [((480, 640), (442.3, 481.4), (662.3, 723.5)), ((640, 427), (491.7, 442.4), (741.5, 663.3))],
)
def test_windows_are_as_large_as_the_official_ones(hw, crop, final):
    """Means over 20,000 windows of the official class."""
    config, rng = preset("coco_r50_12e").data, np.random.default_rng(0)
    views = [draw_view(rng, hw, config) for _ in range(6000)]
    cut = [view for view in views if view.window is not None]
    assert abs(len(cut) / len(views) - 0.5) < 0.02
    assert np.mean([view.window.hw for view in cut], 0) == pytest.approx(crop, abs=4)  # 58 / sqrt(3000) = 1.1
    assert np.mean([view.hw for view in cut], 0) == pytest.approx(final, abs=9)  # 130 / sqrt(3000) = 2.4
    assert max(max(view.hw) for view in views) <= 1333
    assert all(
        view.hw[0] in config.train_short_sides or view.hw[1] in config.train_short_sides or 1333 in view.hw
        for view in views
    )


def test_a_view_without_a_window_does_not_depend_on_the_share_of_windows():
    plain, half = (
        DataConfig(train_short_sides=(32, 64, 96)),
        DataConfig(train_short_sides=(32, 64, 96), crop_probability=0.5),
    )
    for seed in range(50):
        first, second = (draw_view(np.random.default_rng(seed), (50, 70), config) for config in (plain, half))
        assert first.mirrored == second.mirrored
        assert second.window is not None or first == second


# ---- first weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, DINO], ids=["deformable", "dino"])
def test_official_first_weights_are_xavier(changes):
    """Uniform within the square root of 6 / (rows + columns): standard deviation is that of a matrix's shape."""
    torch.manual_seed(0)
    detector = Detector(tiny_config("atss", first_weights="official", **changes), num_classes=3)
    torch.manual_seed(0)
    plain = Detector(tiny_config("atss", **changes), num_classes=3)
    moved = {
        n for (n, a), b in zip(detector.named_parameters(), plain.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert {name.split(".")[0] for name in moved} <= {"encoder", "decoder", "queries", "positive_queries"}
    assert not any("branch" in name or name.endswith(".bias") for name in moved)
    zero = ("sampling_offsets.weight", "attention_weights.weight")
    for name, parameter in detector.named_parameters():
        room, within = name.split(".")[0], name.split(".")
        matrix = parameter.dim() == 2 and "branch" not in name and not name.endswith(("content.weight", "embedding"))
        if room in ("encoder", "decoder", "queries", "positive_queries") and matrix:
            bound = (6 / sum(parameter.shape)) ** 0.5
            if name.endswith(zero):
                assert not parameter.any(), name
                continue
            assert parameter.abs().max() <= bound and "weight" in within, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


@pytest.mark.parametrize(("compatibility", "columns"), [("official", 1), ("default", 32)])
def test_official_head_embeddings_are_one_xavier_matrix(compatibility, columns):
    """One row for each head: a number officially, all channels here."""
    config = tiny_config("atss", "faster_rcnn", first_weights="official", compatibility=compatibility)
    drawn = []
    for seed in range(20):
        torch.manual_seed(seed)
        groups = Detector(config, num_classes=3).positive_queries.values()
        drawn.append(torch.stack([group.head_embedding for group in groups]).detach())
    values, bound = torch.stack(drawn), (6 / (2 + columns)) ** 0.5
    assert values.shape == (20, 2, columns) and values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)


@pytest.mark.parametrize("name", ["dab", "conditional"])
def test_conditional_detectors_start_officially_anyway(name):
    detectors = []
    for first_weights in ("torch", "official"):
        torch.manual_seed(0)
        detectors.append(Detector(tiny_config(first_weights=first_weights, **ON_ONE_LEVEL[name]), num_classes=3))
    assert all(map(torch.equal, *(detector.parameters() for detector in detectors)))
