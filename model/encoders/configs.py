"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class DeformableEncoderConfig:
    """Deformable attention over all levels; its sizes stand in `TransformerConfig`."""

    __pydantic_config__ = FORBID_UNKNOWN


@dataclass(frozen=True)
class NoneConfig:
    """The neck's levels as they are; `TransformerConfig.num_encoder_layers` counts for nothing."""

    __pydantic_config__ = FORBID_UNKNOWN
