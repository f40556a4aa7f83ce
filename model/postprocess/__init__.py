"""From predictions to detections, by name: a new way is one file and one line in `POSTPROCESSORS` (docs/add-a-part.md).

`POSTPROCESSORS.build(config)` gives a function `(logits, boxes_cxcywh, valid_hw, max_detections) → list[Detections]` of
the last layer's [B, Q, C] logits and [B, Q, 4] normalised boxes and of the valid sizes [B, 2] in pixels: at most
`max_detections` of each image, best first, their boxes clipped to the valid area.
"""

from __future__ import annotations

from model.parts import Parts
from model.postprocess import configs

POSTPROCESSORS = Parts(
    __name__,
    "postprocessing",
    {"top_k": "model.postprocess.top_k:TopK", "soft_nms": "model.postprocess.soft_nms:SoftNMS"},
    {"top_k": configs.TopKConfig, "soft_nms": configs.SoftNMSConfig},
)
