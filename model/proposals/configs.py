"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class LearnedConfig:
    """One-stage: learned content and position; references are points computed from the position."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = False  # what `DetectorConfig.two_stage` must be; a part without goes with both


@dataclass(frozen=True)
class BinaryConfig:
    """Two-stage: all tokens compete, all classes as one; the best become references."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = True


@dataclass(frozen=True)
class ClassesConfig:
    """Two-stage: tokens compete by their best class; those that are chosen learn objects and their classes (DINO)."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = True
