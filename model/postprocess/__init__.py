"""TODO contract of this room on this page."""

from __future__ import annotations

from model.parts import Parts
from model.postprocess import configs

POSTPROCESSORS = Parts(
    "postprocessing",
    {
        "top_k": "model.postprocess.top_k:TopK",
    },
    {"top_k": configs.TopKConfig},
)
