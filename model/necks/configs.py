"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class ProjectionConfig:
    """1x1 convolutions to one width; further levels by stride-2 convolutions. The default is Deformable-DETR's."""

    __pydantic_config__ = FORBID_UNKNOWN
    # behind each convolution; none: a bias instead (DETR, Conditional-DETR, DAB-DETR)
    norm: Literal["group", "none"] = field(default="group", metadata={"since": 2})
    # before a norm, too, each convolution has a bias (Deformable-DETR's own code, H-Deformable-DETR and DINO)
    bias: bool = field(default=False, metadata={"since": 2})

    def __post_init__(self) -> None:
        require(
            not (self.bias and self.norm == "none"), "bias: true is for norm: group; without a norm there is one anyway"
        )
