"""Settings of the parts of this room that come with the program, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from model.checks import FORBID_UNKNOWN, require


@dataclass(frozen=True)
class DeformableDecoderConfig:
    """Deformable cross-attention; its sizes stand in `TransformerConfig`. The defaults are Deformable-DETR's.

    DINO has positions from the `reference`, a final norm and an epsilon of 1e-3.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    # of the queries. learned: theirs, the same in each layer; reference: made of the box that a layer starts from
    position: Literal["learned", "reference"] = "learned"
    # predict from the normalised output of a layer; references move by what the layer itself gives
    final_norm: bool = field(default=False, metadata={"since": 2})
    # with box refinement: one class and one box branch for all layers, instead of a pair for each
    shared_branches: bool = field(default=False, metadata={"since": 2})
    # references this close to 0 or 1 count as so far away from it, where their logits are taken
    inverse_sigmoid_epsilon: float = field(default=1e-5, metadata={"since": 2})

    def __post_init__(self) -> None:
        _check_epsilon(self.inverse_sigmoid_epsilon)

    @property
    def makes_position(self) -> bool:
        """Whether queries need no position of their own."""
        return self.position == "reference"


@dataclass(frozen=True)
class ConditionalDecoderConfig:
    """Conditional cross-attention around fixed points; the defaults are Conditional-DETR's."""

    __pydantic_config__ = FORBID_UNKNOWN
    box_refinement: ClassVar[bool] = False  # what `DetectorConfig.box_refinement` must be
    activation: Literal["relu", "prelu"] = "relu"
    # references this close to 0 or 1 count as so far away from it, where their logits are taken
    inverse_sigmoid_epsilon: float = 1e-5
    # Above 0: at the start queries look around their points. The places of queries and tokens then have one projection,
    # so many times Xavier's, which no layer scales; the encoder's position_temperature must be 10000 for it. For short
    # trainings. 0 (official): the projections are drawn apart, and training has to find out where to look.
    local_start: float = field(default=0.0, metadata={"since": 2})

    def __post_init__(self) -> None:
        _check_epsilon(self.inverse_sigmoid_epsilon)
        _check_local_start(self.local_start)


@dataclass(frozen=True)
class DabDecoderConfig:
    """Conditional cross-attention modulated by the sizes of boxes, which move; the defaults are DAB-DETR's."""

    __pydantic_config__ = FORBID_UNKNOWN
    box_refinement: ClassVar[bool] = True
    makes_position: ClassVar[bool] = True
    activation: Literal["relu", "prelu"] = "prelu"  # prelu: one learned slope for each layer
    inverse_sigmoid_epsilon: float = 1e-3
    local_start: float = field(default=0.0, metadata={"since": 2})  # see `ConditionalDecoderConfig`

    def __post_init__(self) -> None:
        _check_epsilon(self.inverse_sigmoid_epsilon)
        _check_local_start(self.local_start)

    @property
    def reference_epsilon(self) -> float:
        """How near to 0 or 1 the references of anchors and proposals may come; attention is divided by their sides."""
        return self.inverse_sigmoid_epsilon


def _check_epsilon(epsilon: float) -> None:
    require(0 < epsilon < 0.5, f"inverse_sigmoid_epsilon must be in (0, 0.5), got {epsilon}")


def _check_local_start(factor: float) -> None:
    require(factor >= 0, f"local_start must not be negative, got {factor}")
