"""TODO contract of this room on this page."""

from __future__ import annotations

from model.decoders import configs
from model.parts import Parts

DECODERS = Parts(
    "decoder",
    {
        "deformable": "model.decoders.deformable:DeformableDecoder",
    },
    {"deformable": configs.DeformableDecoderConfig},
)
