"""The decoder's classification losses by name: a new one is one line in `CLASSIFICATIONS` (docs/add-a-part.md).

`CLASSIFICATIONS.build(config)` gives a function `(logits, labels, iou) → loss` of [N, B, Q, C] logits, [N, B, Q] labels
(outside [0, C): background) and, where it has `needs_iou = True`, the [N, B, Q] IoU of each query's box with its ground
truth, without gradient; else None. It gives the loss of each logit, [N, B, Q, C].
"""

from __future__ import annotations

from model.classification import configs
from model.parts import Parts

CLASSIFICATIONS = Parts(
    __name__,
    "classification loss",
    {"focal": "model.losses:Focal", "quality": "model.losses:Quality"},
    {"focal": configs.FocalConfig, "quality": configs.QualityConfig},
)
