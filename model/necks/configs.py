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

    def strides_of(self, in_strides: tuple[int, ...], num_levels: int) -> tuple[int, ...]:
        """Of the levels that it makes of stages with these strides: one of each stage, then each twice the one before.

        Raises:
            ValueError: there are fewer levels than stages.
        """
        num_extra = num_levels - len(in_strides)
        require(
            num_extra >= 0,
            f"transformer.num_levels ({num_levels}) must not be smaller than the backbone's {len(in_strides)} stages",
        )
        return (*in_strides, *(in_strides[-1] * 2 ** (i + 1) for i in range(num_extra)))


@dataclass(frozen=True)
class SimpleFpnConfig:
    """Levels of strides 4 to 64, each made of the one stage that a plain vision transformer has."""

    __pydantic_config__ = FORBID_UNKNOWN

    def strides_of(self, in_strides: tuple[int, ...], num_levels: int) -> tuple[int, ...]:
        """Five levels begin at stride 4, and fewer at 8 (official: five, or four).

        Raises:
            ValueError: there is another stage than one of stride 16, or more levels are asked for.
        """
        require(
            in_strides == (16,),
            f"the neck simple_fpn takes one stage of stride 16, such as the backbone vit's, not {list(in_strides)}",
        )
        require(1 <= num_levels <= 5, f"the neck simple_fpn makes 1 to 5 levels, not {num_levels}")
        finest = 4 if num_levels == 5 else 8
        return tuple(finest * 2**level for level in range(num_levels))
