"""Settings of the auxiliary heads that come with the program, and of their parts: readable without torch.

A new head may keep its `Config` in its own file (docs/add-a-head.md); one that stands here is checked by `codetr plan`
without loading the head. Every check raises `ValueError` with the setting's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from model.checks import FORBID_UNKNOWN, require, require_together


def check_settings(config: Any) -> None:
    """Check what every dense head's `Config` has: `num_convs`, `num_groups`, `nms_threshold`, each `*_weight`.

    Raises:
        ValueError: names the setting.
    """
    require(config.num_convs >= 0, f"num_convs must not be negative, got {config.num_convs}")
    require(
        config.num_groups is None or config.num_groups >= 1, f"num_groups must be positive, got {config.num_groups}"
    )
    require(0 < config.nms_threshold <= 1, f"nms_threshold must be in (0, 1], got {config.nms_threshold}")
    for setting in fields(config):
        if setting.name.endswith("_weight"):
            value = getattr(config, setting.name)
            require(value >= 0, f"{setting.name} must not be negative, got {value}")


def _check_ious(config: Any) -> None:
    """`negative_iou` and `positive_iou`: below the one is background, from the other on an object."""
    for name in ("negative_iou", "positive_iou"):
        require(0 <= getattr(config, name) <= 1, f"{name} must be from 0 to 1, got {getattr(config, name)}")
    ordered = config.negative_iou <= config.positive_iou
    require_together(ordered, "negative_iou must not exceed positive_iou", config, "negative_iou", "positive_iou")


@dataclass(frozen=True)
class RPNConfig:
    """Settings of the proposal network; the defaults are the official ones."""

    __pydantic_config__ = FORBID_UNKNOWN
    anchor_side: float = 4.0  # of the smallest anchor, in strides
    scales_per_octave: int = 3  # anchors of 1, 2^(1/3) and 2^(2/3) times that
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    positive_iou: float = 0.7
    negative_iou: float = 0.3  # below is background; between the two takes no part
    min_best_iou: float = 0.3  # a ground truth's best anchors are positive from here on
    num_samples: int = 256  # anchors per image in the losses
    positive_fraction: float = 0.5  # of them at most
    train_candidates: int = 4000  # best anchors per level that enter NMS in training
    test_candidates: int = 1000  # at inference
    nms_threshold: float = 0.7
    num_proposals: int = 1000  # per image
    # at inference, where they are others than in training (ViT-L's: 0.9 and 2000); None: the same
    test_nms_threshold: float | None = field(default=None, metadata={"since": 2})
    test_proposals: int | None = field(default=None, metadata={"since": 2})

    def __post_init__(self) -> None:
        require(self.anchor_side > 0, f"anchor_side must be positive, got {self.anchor_side}")
        require(len(self.ratios) > 0 and min(self.ratios) > 0, f"ratios must be positive numbers, got {self.ratios}")
        for name in ("scales_per_octave", "num_samples", "train_candidates", "test_candidates", "num_proposals"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(0 <= self.positive_fraction <= 1, f"positive_fraction must be in [0, 1], got {self.positive_fraction}")
        for name in ("nms_threshold", "test_nms_threshold"):
            value = getattr(self, name)
            require(value is None or 0 < value <= 1, f"{name} must be in (0, 1], got {value}")
        require(
            self.test_proposals is None or self.test_proposals >= 1,
            f"test_proposals must be at least 1, got {self.test_proposals}",
        )
        _check_ious(self)
        require(0 <= self.min_best_iou <= 1, f"min_best_iou must be in [0, 1], got {self.min_best_iou}")

    @property
    def test_limits(self) -> tuple[float, int]:
        """At inference: the overlap of two proposals at most, and how many there are of an image."""
        threshold = self.nms_threshold if self.test_nms_threshold is None else self.test_nms_threshold
        return threshold, self.num_proposals if self.test_proposals is None else self.test_proposals


@dataclass(frozen=True)
class RoIConfig:
    """Settings of the second stage; the defaults are the official ones, but for Co-DINO with ViT-L on COCO.

    That one has four convolutions, one fully connected layer, one box for all classes, and half the `delta_stds`.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    positive_iou: float = 0.5  # of a proposal with a ground truth; below is background
    num_samples: int = 512  # proposals per image in the losses and among the customised queries' candidates
    positive_fraction: float = 0.25  # of them at most
    pooled_size: int = 7  # bins per axis
    finest_scale: float | None = None  # pixels; boxes below twice this use the finest level; None: 14 strides of it
    num_fcs: int = 2  # fully connected layers
    fc_channels: int | None = None  # None: four times the pyramid's width, officially 1024
    nms_threshold: float = 0.5
    # 3x3 convolutions with group norm before the fully connected layers
    num_convs: int = field(default=0, metadata={"since": 2})
    # a region has one box, whatever its class
    class_agnostic: bool = field(default=False, metadata={"since": 2})
    # by which shifts and log scales of boxes are divided
    delta_stds: tuple[float, float, float, float] = field(default=(0.1, 0.1, 0.2, 0.2), metadata={"since": 2})

    def __post_init__(self) -> None:
        require(self.num_convs >= 0, f"num_convs must not be negative, got {self.num_convs}")
        require(min(self.delta_stds) > 0, f"delta_stds must be four positive numbers, got {self.delta_stds}")
        for name in ("num_samples", "pooled_size", "num_fcs", "fc_channels"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("positive_iou", "nms_threshold"):
            require(0 < getattr(self, name) <= 1, f"{name} must be in (0, 1], got {getattr(self, name)}")
        require(0 <= self.positive_fraction <= 1, f"positive_fraction must be in [0, 1], got {self.positive_fraction}")
        require(
            self.finest_scale is None or self.finest_scale > 0,
            f"finest_scale must be positive, got {self.finest_scale}",
        )


@dataclass(frozen=True)
class MaskConfig:
    """Settings of the mask branch; the defaults are the official ones."""

    __pydantic_config__ = FORBID_UNKNOWN
    num_convs: int = 4  # 3x3 convolutions before the upsampling
    channels: int | None = None  # of them; None: as wide as the pyramid
    pooled_size: int = 14  # bins per axis; the masks are twice as fine

    def __post_init__(self) -> None:
        require(self.num_convs >= 0, f"num_convs must not be negative, got {self.num_convs}")
        require(self.channels is None or self.channels >= 1, f"channels must be at least 1, got {self.channels}")
        require(self.pooled_size >= 1, f"pooled_size must be at least 1, got {self.pooled_size}")


@dataclass(frozen=True)
class ATSSConfig:
    """Settings of one ATSS head."""

    __pydantic_config__ = FORBID_UNKNOWN
    num_convs: int = 1  # stacked 3x3 convolutions per tower (paper Table 12)
    top_k: int = 9  # candidates per level and ground truth
    num_groups: int | None = None  # of the group norms; None: 32, fewer for narrow models
    nms_threshold: float = 0.6
    classification_weight: float = 1.0
    box_weight: float = 2.0
    centerness_weight: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self)
        require(self.top_k >= 1, f"top_k must be at least 1, got {self.top_k}")


@dataclass(frozen=True)
class FasterRCNNConfig:
    """Settings of one Faster R-CNN head."""

    __pydantic_config__ = FORBID_UNKNOWN
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    rpn_classification_weight: float = 1.0
    rpn_box_weight: float = 1.0
    classification_weight: float = 1.0
    box_weight: float = 10.0

    def __post_init__(self) -> None:
        for name in ("rpn_classification_weight", "rpn_box_weight", "classification_weight", "box_weight"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Settings of one Mask R-CNN head."""

    __pydantic_config__ = FORBID_UNKNOWN
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    rpn_classification_weight: float = 1.0
    rpn_box_weight: float = 1.0
    classification_weight: float = 1.0
    box_weight: float = 10.0
    mask_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rpn_classification", "rpn_box", "classification", "box", "mask"):
            value = getattr(self, f"{name}_weight")
            require(value >= 0, f"{name}_weight must not be negative, got {value}")


@dataclass(frozen=True)
class RetinaNetConfig:
    """Settings of one RetinaNet head."""

    __pydantic_config__ = FORBID_UNKNOWN
    num_convs: int = 1  # stacked 3x3 convolutions per tower (paper Table 12)
    positive_iou: float = 0.5
    negative_iou: float = 0.4  # anchors between the two are ignored
    box_loss: Literal["giou", "l1"] = "giou"  # l1: on deltas, the original head's
    norm: Literal["group", "none"] = "group"  # of the towers; none: the original head's
    num_groups: int | None = None  # of the group norms; None: 32, fewer for narrow models
    nms_threshold: float = 0.6
    classification_weight: float = 1.0
    box_weight: float = 2.0

    def __post_init__(self) -> None:
        check_settings(self)
        _check_ious(self)


@dataclass(frozen=True)
class FCOSConfig:
    """Settings of one FCOS head."""

    __pydantic_config__ = FORBID_UNKNOWN
    num_convs: int = 1  # stacked 3x3 convolutions per tower (paper Table 12)
    center_radius: float | None = 1.5  # strides around an object's centre; None: anywhere in the object
    distance: Literal["linear", "exp"] = "linear"  # linear: in strides, cut at 0; exp: of the output, in pixels
    centerness_from: Literal["box", "class"] = "box"  # the tower that the centerness output reads
    box_loss: Literal["giou", "iou"] = "giou"  # iou: its negative logarithm
    num_groups: int | None = None  # of the group norms; None: 32, fewer for narrow models
    nms_threshold: float = 0.6
    classification_weight: float = 1.0
    box_weight: float = 1.0
    centerness_weight: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self)
        radius = self.center_radius
        require(radius is None or radius > 0, f"center_radius must be positive, got {radius}")


@dataclass(frozen=True)
class PAAConfig:
    """Settings of one PAA head."""

    __pydantic_config__ = FORBID_UNKNOWN
    num_convs: int = 1  # stacked 3x3 convolutions per tower (paper Table 12)
    top_k: int = 9  # candidates per level and ground truth
    candidate_iou: float = 0.1  # at least this makes an anchor a candidate
    num_groups: int | None = None  # of the group norms; None: 32, fewer for narrow models
    nms_threshold: float = 0.6
    classification_weight: float = 1.0  # this and the next also weigh the losses that choose positives
    box_weight: float = 1.3
    iou_weight: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)
        require(self.top_k >= 1, f"top_k must be at least 1, got {self.top_k}")
        require(0 < self.candidate_iou <= 1, f"candidate_iou must be in (0, 1], got {self.candidate_iou}")


@dataclass(frozen=True)
class GFLConfig:
    """Settings of one GFL head."""

    __pydantic_config__ = FORBID_UNKNOWN
    num_convs: int = 1  # stacked 3x3 convolutions per tower (paper Table 12)
    top_k: int = 9  # candidates per level and ground truth
    max_distance: int = 16  # strides; the distribution has a bin for each whole number from 0 on
    num_groups: int | None = None  # of the group norms; None: 32, fewer for narrow models
    nms_threshold: float = 0.6
    classification_weight: float = 1.0
    box_weight: float = 2.0
    distribution_weight: float = 0.25

    def __post_init__(self) -> None:
        check_settings(self)
        require(self.top_k >= 1, f"top_k must be at least 1, got {self.top_k}")
        require(self.max_distance >= 1, f"max_distance must be at least 1, got {self.max_distance}")
