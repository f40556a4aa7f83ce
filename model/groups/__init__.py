"""TODO contract of this room on this page."""

from __future__ import annotations

from model.groups import configs
from model.parts import Parts

GROUPS = Parts(
    "query group",
    {
        "main": "model.groups.main:MainGroup",
        "positives": "model.groups.positives:PositivesGroup",
    },
    {"main": configs.MainConfig, "positives": configs.PositivesConfig},
)
