"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class TopKConfig:
    """The best (query, class) pairs, no NMS."""

    __pydantic_config__ = FORBID_UNKNOWN


@dataclass(frozen=True)
class SoftNMSConfig:
    """Linear soft-NMS within each class; the defaults are Co-DINO's."""

    __pydantic_config__ = FORBID_UNKNOWN
    iou_threshold: float = 0.8  # overlap from which on a detection loses score, by a factor of 1 - IoU
    min_score: float = 1e-3  # a detection that is left with less is dropped
    candidates: int | None = None  # (query, class) pairs that enter, the best ones; None: as many as there are queries

    def __post_init__(self) -> None:
        require(0 < self.iou_threshold <= 1, f"iou_threshold must be in (0, 1], got {self.iou_threshold}")
        require(0 <= self.min_score < 1, f"min_score must be in [0, 1), got {self.min_score}")
        require(
            self.candidates is None or self.candidates >= 1,
            f"candidates must be at least 1, or null for as many as queries, got {self.candidates}",
        )
