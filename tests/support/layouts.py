"""Names and shapes of released checkpoints, and the detectors that take them, at paper scale and without room."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.spec.grid import expand
from harness.spec.spec import AblationSpec, RowSpec
from model.config import DetectorConfig
from model.official import Translation, translate

GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUTS: dict[str, dict[str, list[int]]] = json.loads(
    gzip.decompress((GOLDEN / "checkpoint_keys.json.gz").read_bytes())
)
BOTH = "model.heads=[atss, faster_rcnn]"  # the official order is the other one
COUNTS = "counts of batches, which a fixed norm does not need"

State = dict[str, Tensor]


@cache
def config_of(*settings: str) -> DetectorConfig:
    """At paper scale."""
    spec = AblationSpec(name="x", rows=(RowSpec(label="x"),))
    resnet = not any("model.backbone=" in setting or "_vit_" in setting or "_swin_" in setting for setting in settings)
    overrides = [*(["model.backbone.random_frozen=true"] if resnet else []), *settings]
    return expand(spec, "coco_r50_12e", overrides, require_data=False).trials[0].config.model


def filled(shapes: dict[str, Any]) -> State:
    """Tensors of these shapes that take no room."""
    return {name: torch.zeros(()).expand(tuple(shape)) for name, shape in shapes.items()}


def translated(state: State, *settings: str, **options: Any) -> Translation:
    """Under our names, for the detector of these settings."""
    return translate(state, config_of(*settings), **options)
