"""TODO contract of this room on this page."""

from __future__ import annotations

from model.parts import Parts
from model.proposals import configs

PROPOSALS = Parts(
    "kind of proposals",
    {
        "learned": "model.proposals.learned:LearnedQueries",
        "binary": "model.proposals.binary:BinaryProposals",
    },
    {"learned": configs.LearnedConfig, "binary": configs.BinaryConfig},
)
