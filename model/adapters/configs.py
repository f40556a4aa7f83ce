"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class CoarserConfig:
    """The encoder's levels and one coarser level."""

    __pydantic_config__ = FORBID_UNKNOWN


@dataclass(frozen=True)
class SingleScaleConfig:
    """Levels above and below the encoder's only one."""

    __pydantic_config__ = FORBID_UNKNOWN
    num_levels: ClassVar[int] = 1  # what `TransformerConfig.num_levels` must be; a part without goes with any
    # of the levels, in pixels, each twice the one before; the encoder's own among them
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)

    def __post_init__(self) -> None:
        doubling = [first * 2 for first in self.strides[:-1]] == list(self.strides[1:])
        require(
            len(self.strides) > 0 and min(self.strides) > 0 and doubling,
            f"strides must each be twice the one before, got {self.strides}",
        )
