"""The auxiliary heads by name: a new one is one file in this folder and one line in `HEADS` (docs/add-a-head.md).

`base.py` is their contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.heads import configs
from model.parts import Parts

HEADS = Parts(
    __name__,
    "head",
    {
        "atss": "model.heads.atss:ATSSHead",
        "faster_rcnn": "model.heads.faster_rcnn:FasterRCNNHead",
        "mask_rcnn": "model.heads.mask_rcnn:MaskRCNNHead",
        "retinanet": "model.heads.retinanet:RetinaNetHead",
        "fcos": "model.heads.fcos:FCOSHead",
        "paa": "model.heads.paa:PAAHead",
        "gfl": "model.heads.gfl:GFLHead",
    },
    {
        "atss": configs.ATSSConfig,
        "faster_rcnn": configs.FasterRCNNConfig,
        "mask_rcnn": configs.MaskRCNNConfig,
        "retinanet": configs.RetinaNetConfig,
        "fcos": configs.FCOSConfig,
        "paa": configs.PAAConfig,
        "gfl": configs.GFLConfig,
    },
)


def needs_masks(configs: Sequence[Any]) -> bool:
    """Does any of these heads learn from the masks of the ground truth?"""
    return any(HEADS[HEADS.name_of(config)].needs_masks for config in configs)
