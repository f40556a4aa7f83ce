"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class HungarianConfig:
    """One-to-one matching. Each cost has a weight of its own, or None: that of its loss."""

    __pydantic_config__ = FORBID_UNKNOWN
    classification: float | None = None
    l1: float | None = None
    giou: float | None = None

    def __post_init__(self) -> None:
        for name in ("classification", "l1", "giou"):
            weight = getattr(self, name)
            require(weight is None or weight >= 0, f"{name} must not be negative, got {weight}")
