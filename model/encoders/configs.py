"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class DeformableEncoderConfig:
    """Deformable attention over all levels; its sizes stand in `TransformerConfig`."""

    __pydantic_config__ = FORBID_UNKNOWN


@dataclass(frozen=True)
class DenseEncoderConfig:
    """Attention of every token to all tokens; the defaults are Conditional-DETR's.

    DAB-DETR has a temperature of 20, scaled positions and PReLU.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    temperature: float = 10000.0  # of the encoding of places
    scaled_position: bool = False  # before each layer positions are multiplied by what an MLP makes of the tokens
    activation: Literal["relu", "prelu"] = "relu"  # prelu: one learned slope for each layer

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
