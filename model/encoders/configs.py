"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class DeformableEncoderConfig:
    """Deformable attention over all levels; its sizes stand in `TransformerConfig`.

    The encoding of positions is Deformable-DETR's; DINO has an offset of 0 and a temperature of 20.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    position_offset: float = field(default=-0.5, metadata={"since": 2})  # added to a token's 1-based row and column
    position_temperature: float = field(default=10000.0, metadata={"since": 2})  # of the sines' frequencies

    def __post_init__(self) -> None:
        _check_temperature(self.position_temperature)


@dataclass(frozen=True)
class DenseEncoderConfig:
    """Attention of every token to all tokens; the defaults are Conditional-DETR's.

    DAB-DETR has a temperature of 20, scaled positions and PReLU.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    position_temperature: float = 10000.0  # of the sines' frequencies
    scaled_position: bool = False  # before each layer positions are multiplied by what an MLP makes of the tokens
    activation: Literal["relu", "prelu"] = "relu"  # prelu: one learned slope for each layer

    def __post_init__(self) -> None:
        _check_temperature(self.position_temperature)


@dataclass(frozen=True)
class NoneConfig:
    """The neck's levels as they are; `TransformerConfig.num_encoder_layers` counts for nothing."""

    __pydantic_config__ = FORBID_UNKNOWN


def _check_temperature(temperature: float) -> None:
    require(temperature > 0, f"position_temperature must be positive, got {temperature}")
