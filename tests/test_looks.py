"""Which architecture a wrong file looks like."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.backbones.configs import ResNetConfig
from model.backbones.resnet import ResNet
from model.looks import backbone_look, looks_like
from model.weights import read_weights

ROOT = Path(__file__).parents[1]
LAYOUTS = json.loads(gzip.decompress((ROOT / "tests" / "golden" / "checkpoint_keys.json.gz").read_bytes()))
Shapes = dict[str, tuple[int, ...]]


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def resnet(block: str = "bottleneck", depths: tuple[int, ...] = (3, 4, 6, 3)) -> Shapes:
    with torch.device("meta"):
        return shapes_of(ResNet(ResNetConfig(block=block, depths=depths, random_frozen=True)))


def blocks(pattern: str, number: int, shape: tuple[int, ...] = (1,)) -> Shapes:
    return {pattern.format(index): shape for index in range(number)}


R50 = resnet()
CASES: list[tuple[Shapes, str]] = [
    (resnet("basic", (2, 2, 2, 2)), "a ResNet-18 of torchvision or timm"),
    (resnet("basic"), "a ResNet-34 of torchvision or timm"),
    (R50, "a ResNet-50 of torchvision or timm"),
    (resnet(depths=(3, 4, 23, 3)), "a ResNet-101 of torchvision or timm"),
    (resnet(depths=(3, 8, 36, 3)), "a ResNet-152 of torchvision or timm"),
    (resnet("basic", (1, 1, 1, 1)), "a ResNet with basic blocks, depths [1, 1, 1, 1], of torchvision or timm"),
    (R50 | {"conv1.0.weight": (32, 3, 3, 3)}, "a ResNet-50 with a deep stem, of timm (ResNet-D)"),
    (R50 | {"layer1.0.conv1.weight": (128, 64, 1, 1), "layer1.0.conv2.weight": (128, 4, 3, 3)}, "a ResNeXt-50"),
    (R50 | {"layer1.0.conv1.weight": (128, 64, 1, 1), "layer1.0.conv2.weight": (128, 128, 3, 3)}, "a Wide ResNet-50"),
    (R50 | {"layer1.0.se.fc1.weight": (16, 256, 1, 1)}, "an SE-ResNet-50"),
    (
        {f"backbone.{name}": shape for name, shape in R50.items()} | {"bbox_head.fc_cls.weight": (81, 1024)},
        "a whole detector of mmdetection; its backbone, a ResNet-50 of torchvision or timm, stands below 'backbone.'",
    ),
    (
        {f"backbone.body.{name}": shape for name, shape in R50.items()} | {"rpn.head.conv.0.0.weight": (1,)},
        "a whole detector of torchvision; its backbone, a ResNet-50 of torchvision or timm, "
        "stands below 'backbone.body.'",
    ),
    ({"transformer.decoder.layers.0.norm1.weight": (1,), "class_embed.weight": (92, 256)}, "a DETR"),
    (
        {"decoder.class_branches.0.weight": (80, 256)},
        "a detector of this program, which `codetr analyse` reads",
    ),
    (
        {
            "patch_embed.proj.weight": (128, 3, 4, 4),
            **blocks("layers.2.blocks.{}.norm1.weight", 18),
            "layers.0.blocks.0.attn.relative_position_bias_table": (23 * 23, 4),
        },
        "a Swin Transformer (base: 128 channels, window 12)",
    ),
    (
        {
            "features.0.0.weight": (96, 3, 4, 4),
            **blocks("features.5.{}.norm1.weight", 6),
            "features.1.0.attn.relative_position_bias_table": (13 * 13, 3),
        },
        "a Swin Transformer (tiny: 96 channels, window 7)",
    ),
    (
        {"patch_embed.proj.weight": (96, 3, 4, 4), "layers.0.blocks.0.attn.cpb_mlp.0.weight": (512, 2)},
        "a Swin Transformer V2 (96 channels)",
    ),
    (
        {"patch_embed.proj.weight": (1024, 3, 14, 14), **blocks("blocks.{}.mlp.w1.weight", 24)},
        "a ViT (EVA-02) of 24 blocks (large: 1024 channels, patches of 14)",
    ),
    (
        {"patch_embed.proj.weight": (384, 3, 14, 14), **blocks("blocks.{}.ls1.gamma", 12)},
        "a DINOv2 of 12 blocks (small: 384 channels, patches of 14)",
    ),
    (
        {"patch_embed.proj.weight": (768, 3, 16, 16), **blocks("blocks.{}.attn.qkv.weight", 12)},
        "a vision transformer (ViT) of 12 blocks (base: 768 channels, patches of 16)",
    ),
    (
        {
            "downsample_layers.0.0.weight": (128, 3, 4, 4),
            "stages.0.0.dwconv.weight": (1,),
            **blocks("stages.2.{}.norm.bias", 27),
        },
        "a ConvNeXt (base: 128 channels)",
    ),
    (
        {
            "features.0.0.weight": (96, 3, 4, 4),
            "features.1.0.block.0.weight": (1,),
            "features.1.0.layer_scale": (1,),
            **blocks("features.5.{}.layer_scale", 9),
        },
        "a ConvNeXt (tiny: 96 channels)",
    ),
    ({"_conv_stem.weight": (32, 3, 3, 3), "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3)}, "an EfficientNet"),
    ({"features.1.0.block.0.0.weight": (32, 1, 3, 3)}, "an EfficientNet of torchvision"),
    ({"embedding.weight": (10, 3)}, ""),
    ({}, ""),
]


@pytest.mark.parametrize(("shapes", "words"), CASES, ids=[words or "nothing" for _, words in CASES])
def test_what_a_file_looks_like(shapes: Shapes, words: str) -> None:
    assert looks_like(shapes) == words


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_released_detectors_tell_their_backbones(layout: str) -> None:
    told = looks_like({name: tuple(shape) for name, shape in LAYOUTS[layout].items()})
    words = {
        "r50": "a ResNet-50 of torchvision or timm",
        "swin_tiny": "a Swin Transformer (tiny: 96 channels, window 7)",
        "swin_large": "a Swin Transformer (large: 192 channels, window 12)",
        "vit_large": "a ViT (EVA-02) of 24 blocks (large: 1024 channels, patches of 16)",
    }
    [backbone] = [words for part, words in words.items() if part in layout]
    assert told == (
        f"a Co-DETR checkpoint, which `codetr analyse` reads; its backbone, {backbone}, stands below 'backbone.'"
    )


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
OF_TRANSFORMERS: list[tuple[str, dict[str, Any], str]] = [
    ("ResNet", {}, "a ResNet-50 of transformers"),
    ("RegNet", {}, "a RegNet of transformers"),
    ("Swin", {"depths": [1, 1, 6, 1]}, "a Swin Transformer (tiny: 96 channels, window 7)"),
    ("ViT", TINY, "a vision transformer (ViT) of 2 blocks (32 channels, patches of 16)"),
    ("Dinov2", TINY, "a DINOv2 of 2 blocks (32 channels, patches of 14)"),
    ("Beit", TINY | {"use_relative_position_bias": True}, "a BEiT of 2 blocks (32 channels, patches of 16)"),
    ("ConvNext", {}, "a ConvNeXt (tiny: 96 channels)"),
    ("ConvNextV2", {}, "a ConvNeXt V2 (tiny: 96 channels)"),
]


@pytest.mark.parametrize(("name", "settings", "words"), OF_TRANSFORMERS, ids=[name for name, *_ in OF_TRANSFORMERS])
def test_names_that_transformers_writes(name: str, settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    """As in its files: in memory some are others."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**settings)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path)
    told = read_weights(tmp_path / "model.safetensors")
    assert looks_like({own: tuple(value.shape) for own, value in told.items()}) == words


def test_what_stands_before_the_names_and_which_told_is_known() -> None:
    look = backbone_look({f"module.backbone.{name}": shape for name, shape in R50.items()})
    assert look is not None and (look.family, look.prefix) == ("resnet", "module.backbone.")
    assert look.name == "module.backbone.layer1.0.conv1.weight"


def test_the_table_needs_no_torch() -> None:
    code = "import sys, model.looks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
