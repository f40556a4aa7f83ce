"""TODO contract of this room on this page."""

from __future__ import annotations

from model.necks import configs
from model.parts import Parts

NECKS = Parts(
    "neck",
    {
        "projection": "model.necks.projection:Projection",
    },
    {"projection": configs.ProjectionConfig},
)
