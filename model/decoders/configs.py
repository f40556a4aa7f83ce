"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class DeformableDecoderConfig:
    """Deformable cross-attention; its sizes stand in `TransformerConfig`."""

    __pydantic_config__ = FORBID_UNKNOWN
    position: Literal["learned"] = "learned"  # of the queries: theirs, the same in each layer
