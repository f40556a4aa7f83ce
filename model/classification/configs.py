"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class FocalConfig:
    """Focal loss on the matched class."""

    __pydantic_config__ = FORBID_UNKNOWN


@dataclass(frozen=True)
class QualityConfig:
    """Quality focal loss (Generalized Focal Loss, Li et al. 2020): the matched class's target is its box's IoU."""

    __pydantic_config__ = FORBID_UNKNOWN
    beta: float = 2.0  # power of the distance from the target that a logit's loss is weighed by (official)

    def __post_init__(self) -> None:
        require(self.beta >= 1, f"beta must be at least 1, got {self.beta}")
