"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class ProjectionConfig:
    """1x1 convolutions to one width; further levels by stride-2 convolutions."""

    __pydantic_config__ = FORBID_UNKNOWN
