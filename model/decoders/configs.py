"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class DeformableDecoderConfig:
    """Deformable cross-attention; its sizes stand in `TransformerConfig`."""

    __pydantic_config__ = FORBID_UNKNOWN
    position: Literal["learned"] = "learned"  # of the queries: theirs, the same in each layer


@dataclass(frozen=True)
class ConditionalDecoderConfig:
    """Conditional cross-attention around fixed points; the defaults are Conditional-DETR's."""

    __pydantic_config__ = FORBID_UNKNOWN
    box_refinement: ClassVar[bool] = False  # what `DetectorConfig.box_refinement` must be
    activation: Literal["relu", "prelu"] = "relu"
    # references this close to 0 or 1 count as so far away from it, where their logits are taken
    inverse_sigmoid_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        _check_epsilon(self.inverse_sigmoid_epsilon)


@dataclass(frozen=True)
class DabDecoderConfig:
    """Conditional cross-attention modulated by the sizes of boxes, which move; the defaults are DAB-DETR's."""

    __pydantic_config__ = FORBID_UNKNOWN
    box_refinement: ClassVar[bool] = True
    makes_position: ClassVar[bool] = True
    activation: Literal["relu", "prelu"] = "prelu"  # prelu: one learned slope for each layer
    inverse_sigmoid_epsilon: float = 1e-3

    def __post_init__(self) -> None:
        _check_epsilon(self.inverse_sigmoid_epsilon)


def _check_epsilon(epsilon: float) -> None:
    require(0 < epsilon < 0.5, f"inverse_sigmoid_epsilon must be in (0, 0.5), got {epsilon}")
