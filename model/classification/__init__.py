"""TODO contract of this room on this page."""

from __future__ import annotations

from model.classification import configs
from model.parts import Parts

CLASSIFICATIONS = Parts(
    "classification loss",
    {
        "focal": "model.classification.focal:Focal",
    },
    {"focal": configs.FocalConfig},
)
