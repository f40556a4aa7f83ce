"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class FocalConfig:
    """Focal loss on the matched class."""

    __pydantic_config__ = FORBID_UNKNOWN
