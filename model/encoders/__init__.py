"""TODO contract of this room on this page."""

from __future__ import annotations

from model.encoders import configs
from model.parts import Parts

ENCODERS = Parts(
    "encoder",
    {
        "deformable": "model.encoders.deformable:DeformableEncoder",
    },
    {"deformable": configs.DeformableEncoderConfig},
)
