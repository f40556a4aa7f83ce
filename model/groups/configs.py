"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model.checks import FORBID_UNKNOWN


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
