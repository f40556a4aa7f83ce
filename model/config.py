"""The settings of a detector: frozen dataclasses, readable without torch.

Names follow the paper. The settings of a part lie in its room (`model/<room>/configs.py`), or beside its class
(docs/add-a-part.md); here a part is the `Config` of the one that is chosen. A check that concerns one value raises
`ValueError` with its name, one that concerns several a `Conflict`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from model.adapters import ADAPTERS
from model.adapters.configs import CoarserConfig
from model.assign import ASSIGNERS
from model.assign.configs import HungarianConfig
from model.backbones import BACKBONES
from model.backbones.configs import ResNetConfig, asked
from model.checks import FORBID_UNKNOWN, Conflict, require, require_together
from model.classification import CLASSIFICATIONS
from model.classification.configs import FocalConfig
from model.decoders import DECODERS
from model.decoders.configs import DeformableDecoderConfig
from model.encoders import ENCODERS
from model.encoders.configs import DeformableEncoderConfig
from model.groups import GROUPS
from model.heads import HEADS
from model.necks import NECKS
from model.necks.configs import ProjectionConfig
from model.parts import Parts
from model.postprocess import POSTPROCESSORS
from model.postprocess.configs import TopKConfig
from model.proposals import PROPOSALS
from model.proposals.configs import BinaryConfig, LearnedConfig


@dataclass(frozen=True)
class TransformerConfig:
    """Deformable transformer; the defaults are Deformable-DETR's."""

    __pydantic_config__ = FORBID_UNKNOWN
    channels: int = 256
    num_levels: int = 4  # encoder levels, which the neck makes of the backbone's stages
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
    # area, as a share of the image, that GIoU adds to union and enclosing area in losses and costs (DAB-DETR: 1e-6);
    # two equal boxes of that area have a GIoU of 0.5 then
    giou_epsilon: float = field(default=0.0, metadata={"since": 2})

    def __post_init__(self) -> None:
        for name in ("classification", "l1", "giou", "giou_epsilon"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


def default_proposals(two_stage: bool) -> Any:
    """The `Config` of the proposals where none are named."""
    return BinaryConfig() if two_stage else LearnedConfig()


@dataclass(frozen=True)
class DetectorConfig:
    """Co-DETR. `heads` empty is the plain detector (K = 0)."""

    __pydantic_config__ = FORBID_UNKNOWN
    backbone: Any = field(default_factory=ResNetConfig, metadata={"parts": BACKBONES})
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    num_queries: int = 300
    two_stage: bool = True  # queries start from the encoder's best proposals
    box_refinement: bool = True  # each decoder layer refines the boxes of the one before
    mixed_selection: bool = True  # two-stage: proposals give the positional part only, content is learned
    look_forward_twice: bool = True  # gradients of a layer's boxes reach the layer before
    heads: tuple[Any, ...] = field(default=(), metadata={"parts": HEADS})  # auxiliary heads, repeats allowed
    anchor_scale: float = 1.0  # of all heads' anchors; 1 suits COCO's 800 pixels, smaller images want less
    auxiliary_loss: bool = True  # the heads' own losses (L_enc, paper Eq. 4)
    positive_queries: bool = True  # customised positive queries (L_dec_i, paper Eq. 3)
    min_positive_queries: int = 9  # per head: the batch's largest number of positives,
    max_positive_queries: int = 300  # clamped to these two
    # 0: of the whole batch; else of so many images in a row each, which also decide how many denoising groups there are
    # (official: the images of one GPU)
    positive_query_images: int = field(default=0, metadata={"since": 2})
    # official: every matrix of a transformer with deformable attention starts Xavier uniform; torch: feed-forward,
    # outputs of self-attention and what makes queries start as torch draws them, 0.4 to 1.2 times as large. Those of
    # Conditional- and DAB-DETR always start as official
    first_weights: Literal["torch", "official"] = field(default="torch", metadata={"since": 2})
    loss_weights: LossWeights = field(default_factory=LossWeights)
    lambda1: float = 1.0  # weight of the customised queries' losses, paper Eq. 5
    lambda2: float = 2.0  # weight of the heads' losses, counted once per decoder layer, paper Eq. 5
    # official: as the released code to the last quirk, so that its weights and losses are reproduced; what differs
    # stands in docs/official-differences.md. default: the sensible behaviour, where it changes no published number
    compatibility: Literal["default", "official"] = "default"
    # These, the backbone and the heads are parts: each is the `Config` of one of the room in its metadata
    neck: Any = field(default_factory=ProjectionConfig, metadata={"since": 2, "parts": NECKS})
    encoder: Any = field(default_factory=DeformableEncoderConfig, metadata={"since": 2, "parts": ENCODERS})
    # makes the heads' pyramid of the encoder's levels
    adapter: Any = field(default_factory=CoarserConfig, metadata={"since": 2, "parts": ADAPTERS})
    # None: `binary` if two_stage, else `learned`
    proposals: Any = field(default=None, metadata={"since": 2, "parts": PROPOSALS})
    decoder: Any = field(default_factory=DeformableDecoderConfig, metadata={"since": 2, "parts": DECODERS})
    # the decoder's classification loss
    classification: Any = field(default_factory=FocalConfig, metadata={"since": 2, "parts": CLASSIFICATIONS})
    # of the decoder's original queries
    assign: Any = field(default_factory=HungarianConfig, metadata={"since": 2, "parts": ASSIGNERS})
    # query groups besides the original queries and the heads' positives, repeats allowed
    groups: tuple[Any, ...] = field(default=(), metadata={"since": 2, "parts": GROUPS})
    # what the losses of the original queries and of the encoder are divided by: the queries that are matched, or all
    # objects of the batch (H-, DAB-, Conditional- and Group-DETR); they differ where objects outnumber queries
    loss_normaliser: Literal["matched", "objects"] = field(default="matched", metadata={"since": 2})
    # customised queries hold the feature at the positive (paper Eq. 2); the released Co-DINO goes without
    positive_features: bool = field(default=True, metadata={"since": 2})
    # from predictions to detections
    postprocess: Any = field(default_factory=TopKConfig, metadata={"since": 2, "parts": POSTPROCESSORS})

    @property
    def official(self) -> bool:
        """Whether parts behave as the released code to the last quirk."""
        return self.compatibility == "official"

    @property
    def makes_position(self) -> bool:
        """Whether the decoder makes the queries' positions, so that groups have none (see `model/decoders`)."""
        return bool(getattr(self.decoder, "makes_position", False))

    @property
    def proposals_or_default(self) -> Any:
        """The `Config` of the proposals: `two_stage` says which, where none are named."""
        return default_proposals(self.two_stage) if self.proposals is None else self.proposals

    @property
    def head_names(self) -> tuple[str, ...]:
        """Of the heads' instances: what kind each is, and its number among these if that is not the first."""
        return HEADS.instance_names(self.heads)

    @property
    def num_proposals(self) -> int:
        """How many proposals all query groups take together in training."""
        return self.num_queries + sum(map(self.num_proposals_of, self.groups))

    def num_proposals_of(self, group: Any) -> int:
        """How many of them an extra group of this `Config` takes."""
        number: int = getattr(group, "num_proposals", 0) + self.num_queries * getattr(group, "num_replicas", 0)
        return number

    def num_tokens_for(self, num_proposals: int) -> int:
        """How many tokens the encoder must have to propose so many, as far as its proposals tell."""
        needed: int = getattr(self.proposals_or_default, "num_tokens", lambda *_: 0)(self.num_queries, num_proposals)
        return needed

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the encoder's levels in pixels of the image; (): only the detector itself knows."""
        stages = asked(self.backbone, "strides")
        levels: tuple[int, ...] = ()
        if stages and hasattr(self.neck, "strides_of"):
            levels = self.neck.strides_of(stages, self.transformer.num_levels)
        return levels

    @property
    def main_weight(self) -> float:
        """Of the original queries' losses: 1, or less beside replicas whose losses are averaged with theirs."""
        return 1 / (1 + sum(getattr(group, "num_averaged", 0) for group in self.groups))

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
        require(
            self.positive_query_images >= 0,
            f"positive_query_images must not be negative, got {self.positive_query_images}",
        )
        require_together(
            self.min_positive_queries <= self.max_positive_queries,
            "min_positive_queries must not exceed max_positive_queries",
            self,
            *("min_positive_queries", "max_positive_queries"),
        )
        reading = self.decoder is None  # of a file, part after part: what concerns several is known at the last
        for name, needed in (
            *(("two_stage", "box_refinement"), ("look_forward_twice", "box_refinement")),
            ("mixed_selection", "two_stage"),
        ):
            excused = reading or getattr(self.proposals, "without_refinement", False)
            holds = getattr(self, needed) or not getattr(self, name) or (excused and name == "two_stage")
            require_together(holds, f"{name} needs {needed}: true", self, name, needed)
        require_together(
            self.transformer.num_levels >= len(asked(self.backbone, "stages")),
            "transformer.num_levels must not be smaller than the number of backbone.stages",
            self,
            *("transformer.num_levels", "backbone.stages"),
        )
        self._check_groups()
        self._check_declared(PROPOSALS, "proposals", "two_stage")
        self._check_declared(PROPOSALS, "proposals", "mixed_selection")
        self._check_declared(DECODERS, "decoder", "box_refinement")
        self._check_declared(ADAPTERS, "adapter", "transformer.num_levels")
        if not reading:
            self._check_levels()
        if not (getattr(self.proposals, "gives_position", True) or self.makes_position or reading):
            own, decoder = PROPOSALS.name_of(self.proposals), DECODERS.name_of(self.decoder)
            rule = f"the proposals {own} have no positions, and the decoder {decoder} makes none"
            raise Conflict(rule, {"proposals": own, "decoder": decoder})
        for group in self.groups if getattr(self.proposals, "whole_groups", False) else ():
            if (number := self.num_proposals_of(group)) % self.num_queries:
                name, taker = PROPOSALS.name_of(self.proposals), GROUPS.name_of(group)
                rule = f"the proposals {name} have a head for each num_queries, and the group {taker} takes {number}"
                raise Conflict(rule, {"num_queries": self.num_queries, "proposals": name})

    def _check_declared(self, parts: Parts, field: str, setting: str) -> None:
        """Refuse what the `Config` of a part says that a setting of the detector must not be."""
        part, found = getattr(self, field), attrgetter(setting)(self)
        wanted = getattr(part, setting.rpartition(".")[2], None)
        if wanted is not None and wanted != found:
            name = parts.name_of(part)
            rule = f"the {field} {name} {'need' if field == 'proposals' else 'needs'} {setting}: {json.dumps(wanted)}"
            raise Conflict(rule, {setting: found, field: name})

    def _check_levels(self) -> None:
        """Refuse stages that the neck makes no such levels of."""
        try:
            _ = self.strides
        except ValueError as error:
            told = {"neck": NECKS.name_of(self.neck), "backbone": BACKBONES.name_of(self.backbone)}
            raise Conflict(str(error), {**told, "transformer.num_levels": self.transformer.num_levels}) from error

    def _check_groups(self) -> None:
        """The names of losses must tell them apart, and numbers of proposals be numbers."""
        names = GROUPS.instance_names(self.groups)
        for name, group in zip(names, self.groups, strict=True):
            for what in ("num_proposals", "num_replicas", "num_averaged"):
                number = getattr(group, what, 0)
                require(isinstance(number, int) and number >= 0, f"{what} of {name} must not be negative: {number}")
        taken = {"decoder", "encoder", "queries", *(HEADS.instance_names(self.heads) if names else ())}
        if twice := sorted(taken.intersection(names)):
            told = {"groups": list(names), "heads": list(HEADS.instance_names(self.heads))}
            raise Conflict(f"the losses of the query group {twice[0]} and others would have one name", told)
