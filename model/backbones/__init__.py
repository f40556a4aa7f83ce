"""TODO contract of this room on this page."""

from __future__ import annotations

from model.backbones import configs
from model.parts import Parts

BACKBONES = Parts(
    "backbone",
    {
        "resnet": "model.backbones.resnet:ResNet",
    },
    {"resnet": configs.ResNetConfig},
)
