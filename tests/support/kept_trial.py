"""A finished trial in a store whose detector was never trained: random weights, a record, and detections by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from harness.config import DataConfig, EvaluateConfig, TrainConfig, TrialConfig
from harness.data.categories import Categories
from harness.spec.identity import config_to_dict
from harness.store.results import RunStore
from harness.trial.checkpoint import save_weights
from model.config import DetectorConfig
from model.detector import Detector

CLASSES = Categories((0, 7, 90), ("ant", "bee", "cow"))  # those of tests.support.folders
TRIAL = "0123456789ab"


def data_config(folder: Path, **changes: Any) -> DataConfig:
    sizes = {"train_short_sides": (64,), "eval_short_side": 64, "max_long_side": 96}
    return DataConfig(path=str(folder), **{**sizes, **changes})


def keep_trial(
    store: RunStore,
    model: DetectorConfig,
    data: DataConfig,
    *,
    classes: Categories | None = CLASSES,
    detections: list[dict[str, Any]] | None = None,
    per_class: tuple[str, ...] = CLASSES.names,
    evaluate: EvaluateConfig | None = None,
    trial_id: str = TRIAL,
    **fields: Any,
) -> Detector:
    """Leave it in the store; returns its detector, whose scores are spread out.

    Args:
        store: an empty one.
        model: of its detector.
        data: of its configuration.
        classes: told by its weights; None: written as they once were.
        detections: on its validation split; None: there are none.
        per_class: names of classes in its record.
        evaluate: of its configuration; None: as by default.
        trial_id: its name.
        fields: of its record besides, or in place of the usual ones.
    """
    torch.manual_seed(0)
    detector = Detector(model, 3).eval()
    for parameter in detector.parameters():
        if parameter.dim() > 1:
            parameter.data += torch.randn_like(parameter) * 0.05
    evaluate = evaluate or EvaluateConfig()
    config = TrialConfig(model=model, data=data, train=TrainConfig(epochs=1), evaluate=evaluate, seed=0)
    save_weights(store.dir(trial_id) / "checkpoint", detector, classes=classes)
    record = {
        "schema": 1,
        "trial_id": trial_id,
        "status": "finished",
        "label": "seed=0",
        "config": config_to_dict(config),
        "history": [{"epoch": 1, "step": 1, "AP": 0.0}],
        "metrics": {"AP": 0.0},
        "per_class": dict.fromkeys(per_class, 0.0),
        **fields,
    }
    store.write_result(trial_id, record)
    if detections is not None:
        store.write(trial_id, "detections.json", json.dumps(detections))
    return detector
