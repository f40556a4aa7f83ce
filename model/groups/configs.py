"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class MainConfig:
    """The original queries: `DetectorConfig.num_queries` of them."""

    __pydantic_config__ = FORBID_UNKNOWN
    follows_from: ClassVar[str] = "two_stage and num_queries"  # so nobody names it in `groups`


@dataclass(frozen=True)
class PositivesConfig:
    """A head's customised positive queries: `DetectorConfig` has their settings."""

    __pydantic_config__ = FORBID_UNKNOWN
    follows_from: ClassVar[str] = "heads and positive_queries"


@dataclass(frozen=True)
class HybridConfig:
    """One-to-many queries beside the original ones (H-Deformable-DETR); the defaults are the official ones."""

    __pydantic_config__ = FORBID_UNKNOWN
    number: int = 1500  # queries
    repeats: int = 6  # queries that each object is given to
    weight: float = 1.0  # of its losses beside those of the original queries (the paper's lambda)

    def __post_init__(self) -> None:
        for name in ("number", "repeats"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.weight >= 0, f"weight must not be negative, got {self.weight}")

    @property
    def num_proposals(self) -> int:
        """Each starts from a proposal of its own, those after the original queries'."""
        return self.number


@dataclass(frozen=True)
class ReplicasConfig:
    """Groups of queries like the original ones, each matched one-to-one (Group-DETR)."""

    __pydantic_config__ = FORBID_UNKNOWN
    number: int = 2  # of groups beside the original one, `DetectorConfig.num_queries` each
    # of all groups' losses, those of the original one too: their mean, or their sum, in which each counts as if alone
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        require(self.number >= 1, f"number must be at least 1, got {self.number}")

    @property
    def num_replicas(self) -> int:
        """Each query starts from a proposal of its own."""
        return self.number

    @property
    def num_averaged(self) -> int:
        """Groups whose losses are averaged with those of the original queries."""
        return self.number if self.reduction == "mean" else 0


@dataclass(frozen=True)
class DenoisingConfig:
    """Contrastive denoising queries (DINO); the defaults are the official ones."""

    __pydantic_config__ = FORBID_UNKNOWN
    number: int = 100  # pairs of a positive and a negative query that share the batch's largest number of objects
    label_noise: float = 0.5  # half of it is the chance that a label is replaced by a random one
    box_noise: float = (
        1.0  # corners move by up to this times half a side, those of negative queries by up to twice that
    )
    weight: float = 1.0  # of its losses beside those of the original queries

    def __post_init__(self) -> None:
        require(self.number >= 1, f"number must be at least 1, got {self.number}")
        require(0 <= self.label_noise <= 2, f"label_noise must be in [0, 2], got {self.label_noise}")
        for name in ("box_noise", "weight"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
