"""TODO contract of this room on this page."""

from __future__ import annotations

from model.adapters import configs
from model.parts import Parts

ADAPTERS = Parts(
    "adapter",
    {
        "coarser": "model.adapters.coarser:CoarserLevel",
    },
    {"coarser": configs.CoarserConfig},
)
