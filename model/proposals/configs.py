"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class LearnedConfig:
    """One-stage: learned content and position; references are points computed from the position."""

    __pydantic_config__ = FORBID_UNKNOWN


@dataclass(frozen=True)
class BinaryConfig:
    """Two-stage: all tokens compete, all classes as one; the best become references."""

    __pydantic_config__ = FORBID_UNKNOWN
