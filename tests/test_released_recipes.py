"""Presets of released models train and evaluate as their configurations say (Sense-X/Co-DETR, projects/configs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import TrialConfig
from harness.spec.grid import expand, open_grid
from harness.spec.presets import preset_files, released_models
from harness.spec.spec import AblationSpec, RowSpec
from harness.spec.strict import Mistakes

ABLATIONS = Path(__file__).parents[1] / "ablations"
NAMES = sorted(released_models(preset_files("", "presets/released"), Mistakes()))

COMMON: dict[str, Any] = {
    "learning_rate": 2e-4,
    "weight_decay": 1e-4,
    "weight_decay_of": "all",
    "layer_decay": 1.0,
    "backbone_lr_factor": 0.1,
    "clip_grad_norm": 0.1,
    "warmup_steps": 0,
    "ema_decay": 0.0,
    "square": 0,
    "copy_paste": 0,
    "drop_path": None,
    "proposals": (1000, 1000, 0.7),  # at inference: of a level, of an image, overlap
}
DEFORMABLE = COMMON | {
    "sampling_lr_factor": 0.1,
    "num_queries": 300,
    "denoising": (),
    "found": ("TopKConfig", 100),
    "aspect_group_size": 2,
}
DEFORMABLE_SWIN = DEFORMABLE | {"weight_decay": 0.05}
DINO = COMMON | {
    "sampling_lr_factor": 1.0,
    "num_queries": 900,
    "denoising": (100, 0.5, 1.0),
    "found": ("SoftNMSConfig", 300),
    "aspect_group_size": 2,
}
DINO_SWIN = DINO | {"aspect_group_size": 1, "drop_path": 0.3}
OBJECTS = {"learning_rate": 1e-4, "epochs": (16, (8,)), "denoising": (500, 0.5, 0.4)}
VIT = DINO_SWIN | {
    "learning_rate": 5e-5,
    "warmup_steps": 500,
    "denoising": (300, 0.5, 0.4),
    "found": ("SoftNMSConfig", 1000),
    "proposals": (8000, 2000, 0.9),
}
VIT_COCO = VIT | {
    "weight_decay": 0.01,
    "weight_decay_of": "matrices",
    "layer_decay": 0.8,
    "backbone_lr_factor": 1.0,
    "ema_decay": 0.9999,
    "num_queries": 1500,
    "drop_path": 0.4,
    "epochs": (12, (7,)),
}
VIT_LVIS = VIT | {
    "weight_decay": 0.05,
    "clip_grad_norm": 0.0,
    "epochs": (16, (9, 15)),
    "square": 1536,
    "copy_paste": 99,
}
ONCE, TWICE, THREE_TIMES = ({"epochs": (12, (11,))}, {"epochs": (24, (20,))}, {"epochs": (36, (30,))})
LSJ, LSJ_LARGE = ({"square": 1024, "copy_paste": 99}, {"square": 1280, "copy_paste": 99})

RECIPES: dict[str, dict[str, Any]] = {
    "co_deformable_detr_r50_1x_coco": DEFORMABLE | ONCE,
    "co_deformable_detr_mask_r50_1x_coco": DEFORMABLE | ONCE,
    "co_deformable_detr_swin_tiny_1x_coco": DEFORMABLE_SWIN | ONCE | {"drop_path": 0.2},
    "co_deformable_detr_swin_tiny_3x_coco": DEFORMABLE_SWIN | THREE_TIMES | {"drop_path": 0.3},
    "co_deformable_detr_swin_small_1x_coco": DEFORMABLE_SWIN | ONCE | {"drop_path": 0.2},
    "co_deformable_detr_swin_small_3x_coco": DEFORMABLE_SWIN | THREE_TIMES | {"drop_path": 0.4},
    "co_deformable_detr_swin_base_1x_coco": DEFORMABLE_SWIN | ONCE | {"drop_path": 0.2},
    "co_deformable_detr_swin_base_3x_coco": DEFORMABLE_SWIN | THREE_TIMES | {"drop_path": 0.4},
    "co_deformable_detr_swin_large_1x_coco": DEFORMABLE_SWIN | ONCE | {"drop_path": 0.3},
    "co_deformable_detr_swin_large_900q_3x_coco": DEFORMABLE_SWIN
    | THREE_TIMES
    | {"drop_path": 0.6, "num_queries": 900, "found": ("TopKConfig", 300)},
    "co_dino_5scale_r50_1x_coco": DINO | ONCE,
    "co_dino_5scale_lsj_r50_1x_coco": DINO | ONCE | LSJ,
    "co_dino_5scale_lsj_r50_3x_coco": DINO | THREE_TIMES | LSJ,
    "co_dino_5scale_9encoder_lsj_r50_1x_coco": DINO | ONCE | LSJ,
    "co_dino_5scale_9encoder_lsj_r50_3x_coco": DINO | THREE_TIMES | LSJ,
    "co_dino_5scale_swin_large_1x_coco": DINO_SWIN | ONCE,
    "co_dino_5scale_swin_large_2x_coco": DINO_SWIN | TWICE | {"drop_path": 0.5},
    "co_dino_5scale_swin_large_3x_coco": DINO_SWIN | THREE_TIMES | {"drop_path": 0.6},
    "co_dino_5scale_lsj_swin_large_1x_coco": DINO_SWIN | ONCE | LSJ_LARGE,
    "co_dino_5scale_lsj_swin_large_2x_coco": DINO_SWIN | TWICE | LSJ_LARGE | {"drop_path": 0.5},
    "co_dino_5scale_lsj_swin_large_3x_coco": DINO_SWIN | THREE_TIMES | LSJ_LARGE | {"drop_path": 0.5},
    "co_dino_5scale_swin_large_16e_o365tococo": DINO_SWIN | OBJECTS,
    "co_dino_5scale_r50_1x_lvis": DINO | ONCE,
    "co_dino_5scale_lsj_r50_1x_lvis": DINO | ONCE | LSJ,
    "co_dino_5scale_lsj_swin_large_3x_lvis": DINO_SWIN | THREE_TIMES | LSJ_LARGE,  # 12 epochs in the file itself
    "co_dino_5scale_lsj_swin_large_16e_o365tolvis": DINO_SWIN
    | OBJECTS
    | {"square": 1536, "copy_paste": 99, "found": ("SoftNMSConfig", 1000)},
    "co_dino_5scale_vit_large_coco": VIT_COCO,
    "co_dino_5scale_vit_large_coco_instance": VIT_COCO,
    "co_dino_5scale_lsj_vit_large_lvis": VIT_LVIS,
    "co_dino_5scale_lsj_vit_large_lvis_instance": VIT_LVIS,
}
OF_DATA, OF_MODEL = ("square", "copy_paste", "aspect_group_size"), ("num_queries",)
MADE = ("epochs", "drop_path", "proposals", "denoising", "found")


def config_of(name: str, scale: str) -> TrialConfig:
    spec = AblationSpec(name="x", rows=(RowSpec(label="x"),))
    return expand(spec, scale, [f"model.preset={name}"], require_data=False).trials[0].config


def recipe(config: TrialConfig, keys: Any) -> dict[str, Any]:
    model, regions = config.model, next(head for head in config.model.heads if hasattr(head, "rpn"))
    rpn = regions.rpn
    made = {
        "epochs": (config.train.epochs, config.train.drop_epochs),
        "drop_path": getattr(model.backbone, "drop_path", None),
        "proposals": (
            rpn.test_candidates,
            rpn.test_proposals or rpn.num_proposals,
            rpn.test_nms_threshold or rpn.nms_threshold,
        ),
        "denoising": tuple(own for one in model.groups for own in (one.number, one.label_noise, one.box_noise)),
        "found": (type(model.postprocess).__name__, config.evaluate.max_detections),
    }
    holders = {**dict.fromkeys(OF_DATA, config.data), **dict.fromkeys(OF_MODEL, model)}
    return {key: made[key] if key in MADE else getattr(holders.get(key, config.train), key) for key in keys}


def test_every_released_model_has_its_recipe_here() -> None:
    assert sorted(RECIPES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_the_released_recipe(name: str) -> None:
    assert recipe(config_of(name, "coco_r50_12e"), RECIPES[name]) == RECIPES[name]


@pytest.mark.parametrize("scale", ["digits", "digits_fast"])
@pytest.mark.parametrize("name", NAMES)
def test_its_twin_on_digit_scenes_decays_what_it_decays(name: str, scale: str) -> None:
    kinds = ("weight_decay_of", "layer_decay")
    assert recipe(config_of(name, scale), kinds) == {kind: RECIPES[name][kind] for kind in kinds}


def test_the_rows_of_table_3_have_no_nms() -> None:
    """The paper's own detectors, Table 4, have the released soft-NMS."""
    tables = {
        name: open_grid(ABLATIONS / f"{name}.yaml", "coco_r50_12e", require_data=False)
        for name in ("table03_strong_baselines", "table04_comparison")
    }
    found = {
        name: {type(trial.config.model.postprocess).__name__ for trial in grid.trials if "DINO" in trial.row}
        for name, grid in tables.items()
    }
    assert found == {"table03_strong_baselines": {"TopKConfig"}, "table04_comparison": {"SoftNMSConfig"}}
