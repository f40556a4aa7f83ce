"""What a detector is made of: frozen dataclasses, readable without torch.

Names follow the paper. A head's own settings live in its file (`model/heads/<name>.py`, class `Config`);
here they are only a sequence. A check that concerns one value raises `ValueError` with its name, one that concerns
several a `Conflict`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

FORBID_UNKNOWN = {"extra": "forbid"}  # read by pydantic in harness.spec.spec; this package does not need it


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition`."""
    if not condition:
        raise ValueError(message)


class Conflict(ValueError):
    """Settings that do not go together, each good alone: whoever wrote the last of them is told of the others.

    Args:
        rule: what they must keep, in words that name them.
        values: by their names, dotted and relative to the configuration that was checked.
    """

    def __init__(self, rule: str, values: Mapping[str, Any]):
        self.rule, self.values = rule, dict(values)
        told = ", ".join(f"{name} is {json.dumps(value, default=str)}" for name, value in values.items())
        super().__init__(f"{rule}: {told}")


def require_together(condition: bool, rule: str, config: Any, *names: str) -> None:
    """Raise `Conflict` about these settings of `config` unless `condition`."""
    if not condition:
        raise Conflict(rule, {name: attrgetter(name)(config) for name in names})


@dataclass(frozen=True)
class BackboneConfig:
    """A ResNet. `bottleneck` with depths 3, 4, 6, 3 and width 64 is ResNet-50."""

    __pydantic_config__ = FORBID_UNKNOWN
    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)  # blocks per stage; stage i has stride 4 * 2**i
    width: int = 64  # channels of the stem and of the first stage's 3x3 convolutions
    stem: Literal["conv7", "conv3"] = "conv7"  # conv3: 3x3 stride 2 instead of 7x7, for small images
    norm: Literal["frozen_batch", "batch", "group"] = "frozen_batch"
    stages: tuple[int, ...] = (2, 3, 4)  # stages handed to the neck, 1-based
    frozen_stages: int = 1  # the stem and this many stages are not trained; 0: the stem only; -1: all is trained
    weights: str | None = None  # a torchvision ResNet state dict (.pth or .safetensors); None: random
    # train although parts that are never trained are random: frozen stages, or a frozen norm (then no norm at all)
    random_frozen: bool = field(default=False, metadata={"since": 2})

    def __post_init__(self) -> None:
        require(min(self.depths) >= 1, f"depths must be at least 1, got {self.depths}")
        require(self.width >= 4, f"width must be at least 4, got {self.width}")
        require(
            len(self.stages) > 0 and list(self.stages) == sorted(set(self.stages)) and set(self.stages) <= {1, 2, 3, 4},
            f"stages must be ascending numbers from 1 to 4, got {self.stages}",
        )
        require(-1 <= self.frozen_stages <= 4, f"frozen_stages must be from -1 to 4, got {self.frozen_stages}")
        require(self.weights is None or bool(self.weights.strip()), "weights must name a file, or be null for none")

    @property
    def frozen_at_random(self) -> str:
        """Which parts stay as they were drawn, because neither a file nor the training sets them; empty when none do.

        A frozen batch norm without a file is the identity: nothing is normalised, and nothing learns to be.
        """
        if self.weights is not None:
            return ""
        stages = "" if self.frozen_stages < 1 else f" and {self.frozen_stages} stage{'s'[: self.frozen_stages != 1]}"
        parts = [f"the stem{stages}"] if self.frozen_stages >= 0 else []
        return ", ".join([*parts, *(["every norm"] if self.norm == "frozen_batch" else [])])


@dataclass(frozen=True)
class TransformerConfig:
    """Deformable transformer; the defaults are Deformable-DETR's."""

    __pydantic_config__ = FORBID_UNKNOWN
    channels: int = 256
    num_levels: int = 4  # encoder levels: the backbone's stages, then stride-2 convolutions on the last stage
    num_attention_heads: int = 8
    num_points: int = 4  # sampling points per level and attention head
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    feedforward_channels: int = 2048
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("channels", "num_levels", "num_attention_heads", "num_points", "num_decoder_layers"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.num_encoder_layers >= 0, f"num_encoder_layers must not be negative, got {self.num_encoder_layers}")
        require_together(
            self.channels % self.num_attention_heads == 0,
            "channels must be a multiple of num_attention_heads",
            self,
            *("channels", "num_attention_heads"),
        )
        require(self.channels % 4 == 0, f"channels must be a multiple of 4, got {self.channels}")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class LossWeights:
    """Weights of a decoder layer's losses; the matching costs are the same (official configuration)."""

    __pydantic_config__ = FORBID_UNKNOWN
    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0

    def __post_init__(self) -> None:
        for name in ("classification", "l1", "giou"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class DetectorConfig:
    """Co-DETR. `heads` empty is the plain detector (K = 0)."""

    __pydantic_config__ = FORBID_UNKNOWN
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    num_queries: int = 300
    two_stage: bool = True  # queries start from the encoder's best proposals
    box_refinement: bool = True  # each decoder layer refines the boxes of the one before
    mixed_selection: bool = True  # two-stage: proposals give the positional part only, content is learned
    look_forward_twice: bool = True  # gradients of a layer's boxes reach the layer before
    heads: tuple[Any, ...] = ()  # `Config` of each auxiliary head (model.heads.HEADS), repeats allowed
    anchor_scale: float = 1.0  # of all heads' anchors; 1 suits COCO's 800 pixels, smaller images want less
    auxiliary_loss: bool = True  # the heads' own losses (L_enc, paper Eq. 4)
    positive_queries: bool = True  # customised positive queries (L_dec_i, paper Eq. 3)
    min_positive_queries: int = 9  # per head: the batch's largest number of positives,
    max_positive_queries: int = 300  # clamped to these two
    loss_weights: LossWeights = field(default_factory=LossWeights)
    lambda1: float = 1.0  # weight of the customised queries' losses, paper Eq. 5
    lambda2: float = 2.0  # weight of the heads' losses, counted once per decoder layer, paper Eq. 5
    # official: as the released code to the last quirk, so that its weights and losses are reproduced; what differs
    # stands in docs/official-differences.md. default: the sensible behaviour, where it changes no published number
    compatibility: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        require(self.num_queries >= 1, f"num_queries must be at least 1, got {self.num_queries}")
        require(self.anchor_scale > 0, f"anchor_scale must be positive, got {self.anchor_scale}")
        require(self.lambda1 >= 0, f"lambda1 must not be negative, got {self.lambda1}")
        require(self.lambda2 >= 0, f"lambda2 must not be negative, got {self.lambda2}")
        require(
            self.min_positive_queries >= 1, f"min_positive_queries must be at least 1, got {self.min_positive_queries}"
        )
        require(
            self.max_positive_queries >= 1, f"max_positive_queries must be at least 1, got {self.max_positive_queries}"
        )
        require_together(
            self.min_positive_queries <= self.max_positive_queries,
            "min_positive_queries must not exceed max_positive_queries",
            self,
            *("min_positive_queries", "max_positive_queries"),
        )
        for name, needed in (
            *(("two_stage", "box_refinement"), ("look_forward_twice", "box_refinement")),
            ("mixed_selection", "two_stage"),
        ):
            holds = getattr(self, needed) or not getattr(self, name)
            require_together(holds, f"{name} needs {needed}: true", self, name, needed)
        require_together(
            self.transformer.num_levels >= len(self.backbone.stages),
            "transformer.num_levels must not be smaller than the number of backbone.stages",
            self,
            *("transformer.num_levels", "backbone.stages"),
        )
