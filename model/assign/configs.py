"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class HungarianConfig:
    """One-to-one matching. Each cost has a weight of its own, or None: that of its loss."""

    __pydantic_config__ = FORBID_UNKNOWN
    classification: float | None = None
    l1: float | None = None
    giou: float | None = None
    # inside the logarithms of the classification cost (mmdetection; the official DETRs of their own: 1e-8)
    log_epsilon: float = field(default=1e-12, metadata={"since": 2})

    def __post_init__(self) -> None:
        for name in ("classification", "l1", "giou"):
            weight = getattr(self, name)
            require(weight is None or weight >= 0, f"{name} must not be negative, got {weight}")
        require(self.log_epsilon > 0, f"log_epsilon must be positive, got {self.log_epsilon}")
