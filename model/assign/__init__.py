"""TODO contract of this room on this page."""

from __future__ import annotations

from model.assign import configs
from model.parts import Parts

ASSIGNERS = Parts(
    "assigner",
    {
        "hungarian": "model.assign.hungarian:Hungarian",
    },
    {"hungarian": configs.HungarianConfig},
)
