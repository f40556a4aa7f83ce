"""Settings of the backbones that come with the program, readable without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from model.checks import FORBID_UNKNOWN, require

# What is asked of the settings of any backbone, and what holds of one without such a field or property.
ASKED: dict[str, Any] = {
    "stages": (),  # of the levels handed to the neck, one number each; (): how many is known when it is built
    "strides": (),  # of these levels in pixels of the image; (): known when it is built
    "size_divisor": 0,  # of the sides of batches, in pixels; 0: the stride of the coarsest level
    "weights": None,  # a file of pretrained weights, which counts by its content and not by its path; None: random
    "library": "",  # that builds it: `check_weights` says whether that goes, also without a file
    "norm": "",  # "batch": statistics of the images of one process, so that ranks cannot share a batch
    "frozen_at_random": "",  # which parts would stay as they were drawn, in words
    "random_frozen": False,  # train nevertheless
    "starts_at_random": "",  # what is trained from random weights, where published results start from others, in words
}


def asked(backbone: Any, name: str) -> Any:
    """One of `ASKED`, as the `Config` of a backbone has it; a field of another type is about something else."""
    default = ASKED[name]
    found = getattr(backbone, name, default)
    kinds = (str, type(None)) if default is None else type(default)
    return found if isinstance(found, kinds) else default


def without_weights(backbone: Any) -> Any:
    """The same backbone, without the file that it starts from."""
    return backbone if asked(backbone, "weights") is None else replace(backbone, weights=None)


def _require_stages(stages: tuple[int, ...]) -> None:
    require(
        len(stages) > 0 and list(stages) == sorted(set(stages)) and set(stages) <= {1, 2, 3, 4},
        f"stages must be ascending numbers from 1 to 4, got {stages}",
    )


def _strides(stages: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(2 ** (stage + 1) for stage in stages)


def _require_file(weights: str | None) -> None:
    require(weights is None or bool(weights.strip()), "weights must name a file, or be null for none")


def _and_stages(number: int) -> str:
    return "" if number < 1 else f" and {number} stage{'s'[: number != 1]}"


def _frozen_convolutions(backbone: Any) -> str:
    """`frozen_at_random` of a convolutional backbone with a stem, `frozen_stages` and a `norm`."""
    if backbone.weights is not None:
        return ""
    parts = [f"the stem{_and_stages(backbone.frozen_stages)}"] if backbone.frozen_stages >= 0 else []
    return ", ".join([*parts, *(["every norm"] if backbone.norm == "frozen_batch" else [])])


@dataclass(frozen=True)
class ResNetConfig:
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
        _require_stages(self.stages)
        require(-1 <= self.frozen_stages <= 4, f"frozen_stages must be from -1 to 4, got {self.frozen_stages}")
        _require_file(self.weights)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the stages handed to the neck, in pixels of the image."""
        return _strides(self.stages)

    @property
    def frozen_at_random(self) -> str:
        """Which parts stay as they were drawn, because neither a file nor the training sets them; empty when none do.

        A frozen batch norm without a file is the identity: nothing is normalised, and nothing learns to be.
        """
        return _frozen_convolutions(self)


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """EfficientNet-Lite0: small and quick, with ImageNet weights that pip can bring."""

    __pydantic_config__ = FORBID_UNKNOWN
    norm: Literal["frozen_batch", "batch", "group"] = "frozen_batch"
    stages: tuple[int, ...] = (2, 3, 4)  # handed to the neck, 1-based; stage i has stride 2 * 2**i
    frozen_stages: int = -1  # the stem and this many stages are not trained; 0: the stem only; -1: all is trained
    weights: str | None = None  # the package's file, or one with this program's names; None: random
    random_frozen: bool = False  # train although parts that are never trained are random

    def __post_init__(self) -> None:
        _require_stages(self.stages)
        require(-1 <= self.frozen_stages <= 4, f"frozen_stages must be from -1 to 4, got {self.frozen_stages}")
        _require_file(self.weights)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the stages handed to the neck, in pixels of the image."""
        return _strides(self.stages)

    @property
    def frozen_at_random(self) -> str:
        """Which parts stay as they were drawn; empty when none do (see `ResNetConfig`)."""
        return _frozen_convolutions(self)


class SwinSize(NamedTuple):
    """Sizes of a published Swin Transformer."""

    channels: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window: int


# Liu et al. 2021; windows are those of the files that the official detectors start from
SWIN_SIZES = {
    "tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


@dataclass(frozen=True)
class SwinConfig:
    """A Swin Transformer. What is null is as `variant` has it."""

    __pydantic_config__ = FORBID_UNKNOWN
    library: ClassVar[str] = "transformers"
    variant: Literal["tiny", "small", "base", "large"] = "tiny"
    channels: int | None = None  # of the first stage; each later one has twice those of the one before
    depths: tuple[int, int, int, int] | None = None  # blocks per stage; stage i has stride 4 * 2**(i - 1)
    num_heads: tuple[int, int, int, int] | None = None
    window: int | None = None  # side of the windows of attention, in tokens
    drop_path: float = 0.2  # how often the last block leaves out a branch for an image; from 0 on linear in the depth
    stages: tuple[int, ...] = (2, 3, 4)  # stages handed to the neck, 1-based; those behind the last are not built
    frozen_stages: int = -1  # the patch embedding and this many stages are not trained; -1: all is trained (official)
    weights: str | None = None  # a Swin state dict (.pth or .safetensors), see model/official/swin.py; None: random
    random_frozen: bool = False  # train although frozen stages are random

    def __post_init__(self) -> None:
        size = self.size
        require(size.channels >= 1, f"channels must be at least 1, got {size.channels}")
        require(min(size.depths) >= 1, f"depths must be at least 1, got {size.depths}")
        require(size.window >= 2, f"window must be at least 2, got {size.window}")
        for stage, heads in enumerate(size.num_heads):
            require(
                heads >= 1 and size.channels * 2**stage % heads == 0,
                f"num_heads must divide the channels of each stage, got {heads} of {size.channels * 2**stage}",
            )
        require(0 <= self.drop_path < 1, f"drop_path must be in [0, 1), got {self.drop_path}")
        _require_stages(self.stages)
        require(-1 <= self.frozen_stages <= 4, f"frozen_stages must be from -1 to 4, got {self.frozen_stages}")
        _require_file(self.weights)

    @property
    def size(self) -> SwinSize:
        """The variant's, with what is set in its place."""
        own = {name: value for name in SwinSize._fields if (value := getattr(self, name)) is not None}
        return SWIN_SIZES[self.variant]._replace(**own)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the stages handed to the neck, in pixels of the image."""
        return _strides(self.stages)

    @property
    def starts_at_random(self) -> str:
        """The Swin Transformer, where it is of a published size and no file sets its weights."""
        return f"a Swin Transformer ({self.variant})" if self.weights is None and self.channels is None else ""

    @property
    def frozen_at_random(self) -> str:
        """Which parts stay as they were drawn; empty when none do."""
        if self.weights is not None or self.frozen_stages < 0:
            return ""
        return f"the patch embedding{_and_stages(self.frozen_stages)}"


@dataclass(frozen=True)
class ViTConfig:
    """A plain vision transformer of EVA-02's kind; the defaults are Co-DINO's ViT-L for COCO."""

    __pydantic_config__ = FORBID_UNKNOWN
    channels: int = 1024
    depth: int = 24  # blocks
    num_heads: int = 16
    window: int = 24  # tokens along the side of a square, within which the other blocks attend (official LVIS: 16)
    global_blocks: tuple[int, ...] = (3, 7, 11, 15, 19, 23)  # these attend everywhere (official LVIS: 2, 5, 8, …, 23)
    # Rotary positions in global blocks are shares of this many pixels, to which all images are padded (official LVIS:
    # 1536); None: of the image at hand
    image_size: int | None = None
    drop_path: float = 0.4  # share of images that skip the last block's branches in training, rising from 0
    pretrained_size: int = 512  # pixels; position embeddings are one for each patch of such an image, and are resized
    class_token: bool = True  # one position more stands before them, as pretrained files have it, and is not used
    weights: str | None = None  # a state dict of EVA-02, or of a detector with this backbone; None: random

    def __post_init__(self) -> None:
        for name in ("channels", "depth", "num_heads", "window"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(
            self.channels % (4 * self.num_heads) == 0,
            f"channels must be a multiple of 4 num_heads, got {self.channels} and {self.num_heads}",
        )
        require(
            list(self.global_blocks) == sorted(set(self.global_blocks) & set(range(self.depth))),
            f"global_blocks must be ascending numbers from 0 to {self.depth - 1}, got {self.global_blocks}",
        )
        for name in ("image_size", "pretrained_size"):
            size = getattr(self, name)
            require(size is None or (size >= 16 and size % 16 == 0), f"{name} must be a multiple of 16, got {size}")
        require(0 <= self.drop_path < 1, f"drop_path must be in [0, 1), got {self.drop_path}")
        _require_file(self.weights)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the stage handed to the neck, in pixels of the image."""
        return (16,)

    @property
    def starts_at_random(self) -> str:
        """The vision transformer, where it is of a published width and no file sets its weights."""
        return "a vision transformer" if self.weights is None and self.channels >= 768 else ""

    @property
    def size_divisor(self) -> int:
        """Official batches are padded to this, and padding takes part; patches alone need 16."""
        return 32


class Settings(dict[str, Any]):
    """Settings by name, which nobody changes."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self)))


# Models of transformers with trainable batch norms
OF_BATCH_NORM = frozenset(
    {
        *("hgnet_v2", "pp_lcnet", "pp_lcnet_v3", "pp_lcnet_v4", "resnet", "rt_detr_resnet", "textnet"),
        "uvdoc_backbone",
    }
)
# What a config.json says, and is chosen here: by which field
CHOSEN = {
    "model_type": "model",
    **dict.fromkeys(("out_features", "out_indices", "stage_names", "_out_features", "_out_indices"), "stages"),
}
# What it says besides
NO_SETTINGS = frozenset(
    {
        *CHOSEN,
        *("architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
        *("id2label", "label2id", "num_labels", "problem_type"),
    }
)


@dataclass(frozen=True)
class AutoBackboneConfig:
    """A backbone of the library transformers.

    Where `model` is a folder with a config.json, as the library saves it, what that says takes the folder's place.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    library: ClassVar[str] = "transformers"
    model: str = "convnext"  # one of the library's, a folder with a config.json, or a name on the Hugging Face Hub
    # handed to the neck, by the library's names or numbers; (): the last one of each stride from 8 on
    stages: tuple[int | str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=Settings)  # of the model, in the library's words
    weights: str | None = None  # a state dict of this model (.pth or .safetensors); None: random

    def __post_init__(self) -> None:
        require(bool(self.model.strip()), "model must name a backbone of transformers")
        _require_file(self.weights)
        model, settings = self.model, dict(self.settings)
        for name in sorted(NO_SETTINGS & settings.keys()):
            remedy = f"choose by {CHOSEN[name]}" if name in CHOSEN else "it changes no backbone; leave it out"
            require(False, f"settings: {name} is no setting here; {remedy}")
        if "/" in model and (folder := Path(model).expanduser()).is_dir():
            model, own = _saved(folder)
            settings = own | settings
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "settings", Settings(settings))

    @property
    def norm(self) -> str:
        """`batch` where statistics are those of one process."""
        return "batch" if self.model in OF_BATCH_NORM else ""


def _saved(folder: Path) -> tuple[str, dict[str, Any]]:
    """The library's name of a model whose config.json lies in a folder, and its settings."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return str(found["model_type"]), {name: value for name, value in found.items() if name not in NO_SETTINGS}
    except OSError as error:
        raise ValueError(f"model: {file} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"model: {file} is no config.json of transformers, which has a model_type") from error
