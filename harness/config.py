"""What a trial is: frozen dataclasses for data, training and evaluation, readable without torch.

Everything here except `AnalyseConfig`, `RuntimeConfig` and paths decides a trial's identity (`harness.spec.identity`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from model.checks import FORBID_UNKNOWN, require, require_together
from model.config import DetectorConfig


@dataclass(frozen=True)
class DigitsConfig:
    """The generated data set of digit scenes (harness/data/digits.py)."""

    __pydantic_config__ = FORBID_UNKNOWN
    num_train: int = 1000
    num_val: int = 200
    image_size: int = 160  # pixels, square
    difficulty: float = 0.5  # 0 easy to 1 hard: contrast, occlusion, distractors
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.num_train >= 1, f"num_train must be at least 1, got {self.num_train}")
        require(self.num_val >= 1, f"num_val must be at least 1, got {self.num_val}")
        require(self.image_size >= 64, f"image_size must be at least 64, got {self.image_size}")
        require(0 <= self.difficulty <= 1, f"difficulty must be from 0 to 1, got {self.difficulty}")


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they reach the network."""

    __pydantic_config__ = FORBID_UNKNOWN
    path: str | None = None  # a folder in COCO, YOLO or VOC layout, or a YOLO data.yaml; None: digit scenes
    digits: DigitsConfig = field(default_factory=DigitsConfig)
    train_short_sides: tuple[int, ...] = (160,)  # one is drawn per image
    eval_short_side: int = 160
    max_long_side: int = 240
    flip_probability: float = 0.5  # horizontal
    # Of so many samples a window is shown: resized to one of `crop_short_sides`, cut, and resized again (DETR: half)
    crop_probability: float = field(default=0.0, metadata={"since": 2})
    crop_short_sides: tuple[int, ...] = field(default=(400, 500, 600), metadata={"since": 2})
    crop_sides: tuple[int, int] = field(default=(384, 600), metadata={"since": 2})  # of the window, least and most
    # official: bilinear of the four pixels around, without antialiasing, and each box is cut to its image
    resize: Literal["antialiased", "official"] = field(default="antialiased", metadata={"since": 2})
    # Above 0, so many images that follow each other in a batch are all wider than high, or none is (official: those of
    # one GPU); an epoch shows some of them twice, so that every batch is full
    aspect_group_size: int = field(default=0, metadata={"since": 2})
    # Nothing is learnt from images with a shorter side, pixels, nor from boxes with one (official: 32 and 1)
    min_image_side: int = field(default=0, metadata={"since": 2})
    min_box_side: float = field(default=0.0, metadata={"since": 2})
    # Above 0 the long side of evaluated images; 0: as `max_long_side`
    eval_long_side: int = field(default=0, metadata={"since": 2})
    # Above 0, pixels, each image is resized to fit into such a square, which then counts as image, grey where nothing
    # lies: in training and in evaluation, instead of the sides above (official, large-scale jitter: 1024 to 1536)
    square: int = field(default=0, metadata={"since": 2})
    # In training the square times a factor between these is what an image is resized to fit into; what is larger than
    # the square is cut to it at a random place (official: 0.1 to 2)
    jitter_scales: tuple[float, float] = field(default=(1.0, 1.0), metadata={"since": 2})
    # With jitter, boxes are drawn anew around what masks show (official); false: boxes are cut, masks are not read
    boxes_from_masks: bool = field(default=True, metadata={"since": 2})
    # So many objects at most of a second image are pasted into each of training (official: 99)
    copy_paste: int = field(default=0, metadata={"since": 2})
    # Above 0, images with a class that a smaller share of the images has are shown more often (LVIS: 0.001), each as
    # often as its factor rounded up (official), or drawn in every epoch between that and rounded down (detectron2)
    repeat_threshold: float = field(default=0.0, metadata={"since": 2})
    repeat: Literal["ceil", "drawn"] = field(default="ceil", metadata={"since": 2})
    repeat_empty: bool = field(default=False, metadata={"since": 2})  # images without objects count as a class
    # Boxes that reach more than a pixel out of their images are an error, or clipped as official code does; those that
    # lie beyond are left out then, as are those without area
    outside_boxes: Literal["refused", "clipped"] = field(default="refused", metadata={"since": 2})

    @property
    def evaluated_long_side(self) -> int:
        """Longest side of an evaluated image."""
        return self.eval_long_side or self.max_long_side

    @property
    def jitters(self) -> bool:
        """Whether training images are resized at random within the square."""
        return self.jitter_scales != (1.0, 1.0)

    @property
    def learns_from_masks(self) -> bool:
        """Whether training images need the masks of their objects, whatever heads learn from."""
        return self.copy_paste > 0 or (self.jitters and self.boxes_from_masks)

    def __post_init__(self) -> None:
        self._check_square()
        require(
            len(self.train_short_sides) > 0 and min(self.train_short_sides) >= 32,
            f"train_short_sides must be numbers of at least 32 pixels, got {self.train_short_sides}",
        )
        require(self.eval_short_side >= 32, f"eval_short_side must be at least 32, got {self.eval_short_side}")
        longest = "eval_long_side" if self.eval_long_side > 0 else "max_long_side"
        require_together(
            getattr(self, longest) >= self.eval_short_side,
            f"{longest} must not be below eval_short_side",
            self,
            *("eval_short_side", longest),
        )
        for name in ("flip_probability", "crop_probability"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        require(
            len(self.crop_short_sides) > 0 and min(self.crop_short_sides) >= 1,
            f"crop_short_sides must be positive numbers of pixels, got {self.crop_short_sides}",
        )
        require(
            1 <= self.crop_sides[0] <= self.crop_sides[1],
            f"crop_sides must be two rising numbers of pixels, got {self.crop_sides}",
        )
        require(0 <= self.repeat_threshold < 1, f"repeat_threshold must be in [0, 1), got {self.repeat_threshold}")
        for name in ("aspect_group_size", "min_image_side", "min_box_side", "eval_long_side"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")

    def _check_square(self) -> None:
        low, high = self.jitter_scales
        require(self.square == 0 or self.square >= 32, f"square must be 0 or at least 32 pixels, got {self.square}")
        require(0 < low <= high, f"jitter_scales must be two positive rising numbers, got {self.jitter_scales}")
        require(self.copy_paste >= 0, f"copy_paste must not be negative, got {self.copy_paste}")
        require_together(
            self.square == 0 or self.crop_probability == 0,
            "square needs crop_probability: 0, since jitter is what cuts within a square",
            self,
            *("crop_probability", "square"),
        )
        for name, asked in (("jitter_scales", self.jitters), ("copy_paste", self.copy_paste > 0)):
            require_together(not asked or self.square > 0, f"{name} needs square, such as 1024", self, "square", name)
        require_together(
            self.copy_paste == 0 or self.boxes_from_masks,
            "copy_paste needs boxes_from_masks",
            self,
            *("boxes_from_masks", "copy_paste"),
        )


@dataclass(frozen=True)
class TrainConfig:
    """Optimiser and schedule; the defaults are the official recipe (Co-Deformable-DETR R50)."""

    __pydantic_config__ = FORBID_UNKNOWN
    epochs: int = 12
    min_steps: int = 0  # a data set that gives fewer optimiser steps in `epochs` is gone through more often, whole
    batch_size: int = 16  # images per optimiser step, over all accumulation steps
    accumulate_steps: int = 1  # a batch is cut into this many forward-backward passes
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    backbone_lr_factor: float = 0.1
    sampling_lr_factor: float = 0.1  # sampling offsets and reference points
    clip_grad_norm: float = 0.1  # L2 norm of all gradients; 0: no clipping
    schedule: Literal["one_cycle", "step"] = "step"
    warmup_fraction: float = 0.0  # linear rise over this share of all steps
    drop_epochs: tuple[int, ...] = (11,)  # step schedule: learning rate x 0.1 after these epochs
    # fp32: without TF32 anywhere; tf32: with it in products and convolutions, on a GPU; bf16: autocast, in which
    # matching, boxes and sampling places stay fp32
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    # Above 0 the exponential moving average of all weights is what is evaluated, analysed and kept; official: 0.9999
    ema_decay: float = field(default=0.0, metadata={"since": 2})
    # exponential: the average follows closely at first and reaches its decay over some `ema_warmup_steps` (official)
    ema_warmup: Literal["none", "exponential"] = field(default="none", metadata={"since": 2})
    ema_warmup_steps: int = field(default=2000, metadata={"since": 2})
    # So many of the first encoder layers, and the backbone's stages, are computed again in the backward pass, which
    # takes time instead of memory and changes no number (official Co-DINO R50: 4 layers)
    checkpoint_encoder_layers: int = field(default=0, metadata={"since": 2})
    checkpoint_backbone: bool = field(default=False, metadata={"since": 2})
    # Of the backbone's learning rate, once for each layer between a parameter and the output (official ViT: 0.8)
    layer_decay: float = field(default=1.0, metadata={"since": 2})
    # matrices: not of parameters with one dimension, nor of biases, whatever module they are in (official ViT)
    weight_decay_of: Literal["all", "matrices"] = field(default="all", metadata={"since": 2})
    # Above 0, a linear rise over so many steps, from this share of the learning rate (official ViT: 500)
    warmup_steps: int = field(default=0, metadata={"since": 2})
    warmup_start: float = field(default=0.01, metadata={"since": 2})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate_steps"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("min_steps", "checkpoint_encoder_layers", "warmup_steps"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require_together(
            self.warmup_steps == 0 or self.warmup_fraction == 0,
            "warmup_steps and warmup_fraction cannot both be above 0",
            self,
            *("warmup_steps", "warmup_fraction"),
        )
        require_together(
            self.min_steps == 0 or not self.drop_epochs,
            "min_steps above 0 needs drop_epochs: [], since drop_epochs name fixed epochs",
            self,
            *("min_steps", "drop_epochs"),
        )
        require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("weight_decay", "backbone_lr_factor", "sampling_lr_factor", "clip_grad_norm"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require_together(
            self.batch_size % self.accumulate_steps == 0,
            "batch_size must be a multiple of accumulate_steps",
            self,
            *("batch_size", "accumulate_steps"),
        )
        require(0 <= self.warmup_fraction < 1, f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}")
        require(0 <= self.warmup_start <= 1, f"warmup_start must be in [0, 1], got {self.warmup_start}")
        require(0 < self.layer_decay <= 1, f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), got {self.ema_decay}")
        require(self.ema_warmup_steps >= 1, f"ema_warmup_steps must be at least 1, got {self.ema_warmup_steps}")


@dataclass(frozen=True)
class EvaluateConfig:
    """COCO evaluation on the validation split."""

    __pydantic_config__ = FORBID_UNKNOWN
    every_epochs: int = 1  # the last epoch is always evaluated
    evaluator: Literal["faster_coco_eval", "pycocotools"] = "faster_coco_eval"
    branches: tuple[str, ...] = ("decoder",)  # or a head's name: each is evaluated as in paper Table 11
    # per image; more than COCO's 100 add AP@300 and the like, where images hold more objects than that
    max_detections: int = field(default=100, metadata={"since": 2})
    # of detection; training: as `train.precision`
    precision: Literal["fp32", "training"] = field(default="fp32", metadata={"since": 2})

    def __post_init__(self) -> None:
        require(self.every_epochs >= 1, f"every_epochs must be at least 1, got {self.every_epochs}")
        require(len(self.branches) > 0, "branches must name at least 'decoder'")
        require(
            100 <= self.max_detections <= 100_000,
            f"max_detections must be from 100, which AP always counts, to 100,000, got {self.max_detections}",
        )

    def computes_in(self, train: TrainConfig) -> str:
        """The precision of evaluation."""
        return train.precision if self.precision == "training" else "fp32"


Analysis = Literal["conflict", "discriminability", "queries", "gradient", "transfer"]
ConflictVariant = Literal[
    "cam-v1",
    "cam-v1-positions",
    "cam-v1-signed",
    "cam-v1-l1",
    "cam-v1-joint-levels",
    "cam-v1-finest-level",
    "cam-v1-each-level",
    "cam-v1-encoder-levels",
]
DiscriminabilityVariant = Literal["discriminability.v1", "discriminability.concatenated"]


@dataclass(frozen=True)
class AnalyseConfig:
    """What is found out about a trained detector, and when (docs/metrics.md). Nothing here changes what a trial is."""

    __pydantic_config__ = FORBID_UNKNOWN
    metrics: tuple[Analysis, ...] = ()  # at the end of a trial; `analyse: [conflict]` is short for this key
    every_epochs: int = 0  # also after every so many epochs, for curves over the training; 0: at the end only
    num_images: int = 200  # of the validation split, the first by id; all if there are fewer
    # further ways to measure the conflict (cam-…) and the discriminability, each under its own name
    variants: tuple[ConflictVariant | DiscriminabilityVariant, ...] = ("cam-v1",)

    def __post_init__(self) -> None:
        require(self.every_epochs >= 0, f"every_epochs must not be negative, got {self.every_epochs}")
        require(self.num_images >= 1, f"num_images must be at least 1, got {self.num_images}")
        require(len(self.variants) > 0, "variants must name at least one, such as [cam-v1]")

    @property
    def conflict_variants(self) -> tuple[ConflictVariant, ...]:
        """Those of `variants` that measure the conflict; cam-v1 where none does."""
        chosen = [name for name in get_args(ConflictVariant) if name in self.variants]
        return tuple(sorted(chosen, key=self.variants.index)) or ("cam-v1",)

    @property
    def discriminability_variants(self) -> tuple[DiscriminabilityVariant, ...]:
        """Those of `variants` that measure the discriminability otherwise than as a rule, which is always measured."""
        return tuple(name for name in get_args(DiscriminabilityVariant) if name in self.variants)

    def as_dict(self) -> dict[str, Any]:
        """JSON types, for the record."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()}


@dataclass(frozen=True)
class RuntimeConfig:
    """How a trial runs. Nothing here changes what the trial is."""

    __pydantic_config__ = FORBID_UNKNOWN
    cpus_per_trial: float = 1.0  # of all its ranks together; fractions allowed
    gpus_per_trial: float = 0.0
    accelerator_type: str | None = None  # kind of GPU as Ray names it, such as H100; None: any
    ranks: int = 1  # processes that share each batch; train.batch_size stays the whole
    num_workers: int = 0  # data loader processes of each rank
    min_free_gpu_gb: float | None = None  # GiB that must be free at the start; None: the share asked for, if possible
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        require(self.cpus_per_trial > 0, f"cpus_per_trial must be positive, got {self.cpus_per_trial}")
        require(self.gpus_per_trial >= 0, f"gpus_per_trial must not be negative, got {self.gpus_per_trial}")
        require_together(
            self.accelerator_type is None or self.gpus_per_trial > 0,
            "accelerator_type needs gpus_per_trial, such as 1",
            self,
            *("accelerator_type", "gpus_per_trial"),
        )
        require(self.ranks >= 1, f"ranks must be at least 1, got {self.ranks}")
        require(
            self.min_free_gpu_gb is None or self.min_free_gpu_gb >= 0,
            f"min_free_gpu_gb must not be negative, got {self.min_free_gpu_gb}",
        )
        require(self.num_workers >= 0, f"num_workers must not be negative, got {self.num_workers}")


@dataclass(frozen=True)
class TrialConfig:
    """A trial is its resolved configuration."""

    __pydantic_config__ = FORBID_UNKNOWN
    model: DetectorConfig
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0
