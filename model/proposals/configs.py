"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class LearnedConfig:
    """One-stage: learned content and position; references are points computed from the position.

    The defaults are Deformable-DETR's. Conditional-DETR has no content and an MLP.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = False
    content: Literal["learned", "zero"] = field(default="learned", metadata={"since": 2})
    # what makes points of positions; the mlp trains at the same rate as everything else
    points: Literal["linear", "mlp"] = field(default="linear", metadata={"since": 2})


@dataclass(frozen=True)
class AnchorsConfig:
    """One-stage: learned boxes, without position; for decoders that make positions of boxes.

    DAB-DETR has no content, one-stage LW-DETR learned content.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = False
    gives_position: ClassVar[bool] = False  # so that only decoders which make positions take them
    # normal: logits of variance 1, around the middle of the image; uniform: all over the image; fixed: the same, and
    # they stay there (official: meant to be fixed, and learned nevertheless)
    centres: Literal["normal", "uniform", "fixed"] = "normal"
    content: Literal["zero", "learned"] = "zero"


@dataclass(frozen=True)
class BinaryConfig:
    """Two-stage: all tokens compete, all classes as one; the best become references."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = True

    def num_tokens(self, num_queries: int, num_proposals: int) -> int:
        """Each proposal is another token."""
        return num_proposals


@dataclass(frozen=True)
class PerGroupConfig:
    """Two-stage: each group of `num_queries` has an encoder head of its own and its best tokens; content is learned."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = True
    mixed_selection: ClassVar[bool] = True
    whole_groups: ClassVar[bool] = True
    without_refinement: ClassVar[bool] = True  # LW-DETR's small models

    def num_tokens(self, num_queries: int, num_proposals: int) -> int:
        """Each group chooses among all tokens."""
        return num_queries


@dataclass(frozen=True)
class ClassesConfig:
    """Two-stage: tokens compete by their best class; those that are chosen learn objects and their classes (DINO)."""

    __pydantic_config__ = FORBID_UNKNOWN
    two_stage: ClassVar[bool] = True

    def num_tokens(self, num_queries: int, num_proposals: int) -> int:
        """Each proposal is another token."""
        return num_proposals
