"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.checks import FORBID_UNKNOWN


@dataclass(frozen=True)
class ProjectionConfig:
    """1x1 convolutions to one width; further levels by stride-2 convolutions. The default is Deformable-DETR's."""

    __pydantic_config__ = FORBID_UNKNOWN
    # behind each convolution; none: a bias instead (DETR, Conditional-DETR, DAB-DETR)
    norm: Literal["group", "none"] = field(default="group", metadata={"since": 2})
