"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class LearnedConfig:
    """One-stage: learned content and position; references are points computed from the position."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = False


@dataclass(frozen=True)
class LearnedBoxesConfig:
    """One-stage: learned content and reference boxes."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = False


@dataclass(frozen=True)
class BinaryConfig:
    """Two-stage: all tokens compete, all classes as one; the best become references."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = True


@dataclass(frozen=True)
class PerGroupConfig:
    """Two-stage: each group of `num_queries` has an encoder head of its own and its best tokens; content is learned."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = True
    mixed_selection: ClassVar[bool] = True
    whole_groups: ClassVar[bool] = True
    without_refinement: ClassVar[bool] = True  # LW-DETR's small models


@dataclass(frozen=True)
class ClassesConfig:
    """Two-stage: tokens compete by their best class; those that are chosen learn objects and their classes (DINO)."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = True
