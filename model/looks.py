"""Which architecture a file of weights looks like, by the names and shapes of its tensors. For messages only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]

RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "18",
    ("basic", (3, 4, 6, 3)): "34",
    ("bottleneck", (3, 4, 6, 3)): "50",
    ("bottleneck", (3, 4, 23, 3)): "101",
    ("bottleneck", (3, 8, 36, 3)): "152",
}
SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}  # channels, blocks of stage 3
CONVNEXTS = {
    (96, 9): "tiny",
    (96, 27): "small",
    (128, 27): "base",
    (192, 27): "large",
    (256, 27): "extra large",
}
VITS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1408: "giant", 1536: "giant"}


class Look(NamedTuple):
    """A kind of backbone that a file looks like."""

    family: str  # "resnet"
    words: str  # "a ResNet-50 of torchvision or timm"
    prefix: str  # what stands before its names
    name: str  # one of the names that tell


class Kind(NamedTuple):
    """A family of backbones whose names are alike."""

    family: str
    sign: str  # a pattern that some name has, from its beginning or from behind a dot
    words: Callable[[Shapes, Shapes], str]  # of the shapes behind the prefix, and of all
    also: str = ""  # a pattern that another name has


def looks_like(shapes: Shapes) -> str:
    """In words; empty when it looks like nothing that is known.

    Args:
        shapes: by the tensors' names.
    """
    own = backbone_look(shapes)
    for sign, words in DETECTORS:
        if any(re.match(sign, name) for name in shapes):
            return f"{words}; its backbone, {own.words}, stands below '{own.prefix}'" if own and own.prefix else words
    return own.words if own else ""


def backbone_look(shapes: Shapes) -> Look | None:
    """The look of the backbone among these tensors; None when it looks like nothing that is known."""
    for kind in KINDS:
        sign = re.compile(rf"(?:^|\.)({kind.sign})")
        name, found = next(((name, found) for name in shapes if (found := sign.search(name))), ("", None))
        if found is None or not any(re.search(kind.also, other) for other in shapes):
            continue
        prefix = name[: found.start(1)]
        own = {other.removeprefix(prefix): shape for other, shape in shapes.items() if other.startswith(prefix)}
        return Look(kind.family, kind.words(own, shapes), prefix, name)
    return None


# ---- sizes --------------------------------------------------------------------------------------------------------


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that the pattern's group holds in any name; 0 where none fits."""
    numbers = [int(found[1]) for name in shapes if (found := re.search(rf"(?:^|\.){pattern}", name))]
    return max(numbers, default=-1) + 1


def _stem(shapes: Shapes) -> tuple[int, int]:
    """Channels and kernel of the convolution that takes an image; zeros where there is none."""
    stems = (shape for shape in shapes.values() if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3])
    channels, _, kernel, _ = next(stems, (0, 3, 0, 0))
    return channels, kernel


def _listed(*parts: str) -> str:
    told = ", ".join(filter(None, parts))
    return f" ({told})" if told else ""


def _resnet(own: Shapes, whole: Shapes) -> str:
    del whole
    depths = tuple(_count(own, rf"^layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in own
    first, second = own["layer1.0.conv1.weight"], own.get("layer1.0.conv2.weight", ())
    if len(second) == 4 and len(first) == 4 and second[1] != first[0]:
        return _numbered("a ResNeXt", bottleneck, depths)
    if bottleneck and own["layer1.0.conv3.weight"][:1] == (256,) and first[:1] == (128,):
        return _numbered("a Wide ResNet", bottleneck, depths)
    if any(name.startswith("layer1.0.se.") for name in own):
        return _numbered("an SE-ResNet", bottleneck, depths)
    if "conv1.0.weight" in own:
        return f"{_numbered('a ResNet', bottleneck, depths)} with a deep stem, of timm (ResNet-D)"
    if any(name.startswith("stem.0.") for name in own):
        return f"{_numbered('a ResNet', bottleneck, depths)} with a deep stem, of mmdetection (ResNetV1d)"
    return f"{_numbered('a ResNet', bottleneck, depths)} of torchvision or timm"


def _numbered(words: str, bottleneck: bool, depths: tuple[int, ...]) -> str:
    block = "bottleneck" if bottleneck else "basic"
    number = RESNETS.get((block, depths))
    return f"{words}-{number}" if number else f"{words} with {block} blocks, depths {list(depths)},"


def _resnet_of_transformers(own: Shapes, whole: Shapes) -> str:
    del own
    stage = r"stages\.{}\.layers\.(\d+)\."
    depths = tuple(_count(whole, stage.format(number)) for number in range(4))
    bottleneck = any(re.search(r"stages\.0\.layers\.0\.layer\.2\.", name) for name in whole)
    return f"{_numbered('a ResNet', bottleneck, depths)} of transformers"


def _swin(own: Shapes, whole: Shapes) -> str:
    channels, _ = _stem(whole)
    table = next((shape for name, shape in own.items() if name.endswith("relative_position_bias_table")), ())
    side = round(table[0] ** 0.5) if table else 0
    window = f"window {(side + 1) // 2}" if table and side**2 == table[0] else ""
    deep = _count(own, r"(?:layers|stages)\.2\.blocks\.(\d+)\.") or _count(own, r"features\.5\.(\d+)\.")
    size = SWINS.get((channels, deep), "")
    sizes = ", ".join(filter(None, (f"{channels} channels" if channels else "", window)))
    return f"a Swin Transformer ({size}: {sizes})" if size and sizes else f"a Swin Transformer{_listed(sizes)}"


def _swin_v2(own: Shapes, whole: Shapes) -> str:
    del own
    channels, _ = _stem(whole)
    return f"a Swin Transformer V2{_listed(f'{channels} channels' if channels else '')}"


def _transformer(words: str) -> Callable[[Shapes, Shapes], str]:
    """A row of equal blocks: how many, how wide, and of which patches."""

    def told(own: Shapes, whole: Shapes) -> str:
        blocks = _count(own, r"(?:blocks|layers?|resblocks)\.(\d+)\.") or _count(own, r"encoder_layer_(\d+)\.")
        channels, kernel = _stem(whole)
        size = VITS.get(channels, "")
        sizes = f"{channels} channels, patches of {kernel}" if channels else ""
        count = f" of {blocks} blocks" if blocks > 1 else ""
        return f"{words}{count}{_listed(f'{size}: {sizes}' if size and sizes else sizes)}"

    return told


def _convnext(own: Shapes, whole: Shapes) -> str:
    channels, _ = _stem(whole)
    deep = _count(own, r"stages\.2\.(?:blocks\.|layers\.)?(\d+)\.") or _count(own, r"features\.5\.(\d+)\.")
    version = " V2" if any(".grn." in name for name in own) else ""
    size = CONVNEXTS.get((channels, deep), "")
    sizes = f"{channels} channels" if channels else ""
    return f"a ConvNeXt{version}{_listed(f'{size}: {sizes}' if size else sizes)}"


def _regnet_or_resnet(own: Shapes, whole: Shapes) -> str:
    _, kernel = _stem(whole)
    return "a RegNet of transformers" if kernel == 3 else _resnet_of_transformers(own, whole)


def _plain(words: str) -> Callable[[Shapes, Shapes], str]:
    return lambda own, whole: words


# ---- tables; the first that fits counts ---------------------------------------------------------------------------

READS = "which `codetr analyse` reads"
DETECTORS = (  # a pattern that a name begins with, and whose names they are
    (r"query_head\.transformer\.", f"a Co-DETR checkpoint, {READS}"),
    (r"decoder\.class_branch", f"a detector of this program, {READS}"),
    (r"(module\.)?transformer\.encoder\.layers\.0\.self_attn\.sampling_offsets\.", f"a Deformable-DETR, {READS}"),
    (r"(module\.)?transformer\.decoder\.layers\.0\.", "a DETR"),
    (r"(bbox_head|rpn_head|roi_head|mask_head|panoptic_head)\.", "a whole detector of mmdetection"),
    (r"(proposal_generator\.|backbone\.bottom_up\.)", "a whole detector of detectron2"),
    (r"(rpn\.head|roi_heads|head\.classification_head)\.", "a whole detector of torchvision"),
    (r"model\.(backbone\.(conv_encoder\.)?model|decoder\.layers\.0)\.", "a whole detector of transformers"),
)
KINDS = (
    Kind("beit", r"blocks\.0\.gamma_1", _transformer("a BEiT"), also="relative_position_bias_table"),
    Kind("beit", r"(?:encoder\.)?layers?\.0\.lambda_1", _transformer("a BEiT")),
    Kind(
        "swin",
        r"(?:layers|stages|features)\.[01]\.(?:blocks\.)?0\.(?:attn|attention)\.(?:\w+\.)*relative_position_bias_table",
        _swin,
    ),
    Kind("swin", r"(?:layers|stages|features)\.[01]\.(?:blocks\.)?0\..+(?:cpb_mlp|position_bias_mlp)\.", _swin_v2),
    Kind("vit", r"blocks\.0\.mlp\.(?:w1|fc1_g)\.weight", _transformer("a ViT (EVA-02)")),
    Kind("vit", r"(?:storage_tokens|rope_embed\.periods)$", _transformer("a DINOv3")),
    Kind("vit", r"blocks\.(?:0\.)?0\.ls1\.gamma", _transformer("a DINOv2")),
    Kind("vit", r"encoder\.layer\.0\.layer_scale1\.lambda1", _transformer("a DINOv2"), also="mask_token"),
    Kind("vit", r"(?:model\.)?layer\.0\.layer_scale1\.lambda1", _transformer("a DINOv3"), also="register_tokens"),
    Kind("vit", r"(?:blocks|layers)\.0\.attn\.rel_pos_h", _transformer("a ViT (SAM or ViTDet)")),
    Kind("clip", r"visual\.transformer\.resblocks\.0\.", _transformer("a CLIP")),
    Kind("clip", r"(?:vision_model\.)?encoder\.layers\.0\.layer_norm1\.", _transformer("a CLIP or SigLIP")),
    Kind("vit", r"(?:blocks|layers)\.0\.attn\.qkv\.weight", _transformer("a vision transformer (ViT)")),
    Kind("vit", r"encoder\.layer\.0\.attention\.attention\.query\.", _transformer("a vision transformer (ViT)")),
    Kind("vit", r"encoder\.layers\.encoder_layer_0\.", _transformer("a vision transformer (ViT) of torchvision")),
    Kind("convnext", r"stages\.0\.(?:blocks\.|layers\.)?0\.(?:dwconv|conv_dw|depthwise_conv)\.weight", _convnext),
    Kind("convnext", r"features\.1\.0\.block\.0\.weight", _convnext, also=r"features\.1\.0\.layer_scale"),
    Kind("efficientnet", r"_?blocks\.0\._?depthwise_conv\.", _plain("an EfficientNet")),
    Kind("efficientnet", r"features\.1\.0\.block\.0\.0\.weight", _plain("an EfficientNet of torchvision")),
    Kind("efficientnet", r"blocks\.0\.0\.conv_dw\.weight", _plain("an EfficientNet or MobileNet of timm")),
    Kind("mobilenet", r"features\.1\.(?:conv|block)\.0\.0\.weight", _plain("a MobileNet of torchvision")),
    Kind("regnet", r"trunk_output\.block1\.", _plain("a RegNet of torchvision")),
    Kind("regnet", r"s1\.b1\.conv1\.conv\.weight", _plain("a RegNet of timm")),
    Kind("hrnet", r"stage2\.0\.branches\.0\.", _plain("an HRNet")),
    Kind("densenet", r"denseblock1\.denselayer1\.", _plain("a DenseNet")),
    Kind("bit", r"stages\.0\.blocks\.0\.conv1\.weight", _plain("a ResNet V2 of timm")),
    Kind("swin", r".*relative_position_bias_table", _plain("a Swin Transformer")),
    Kind("vit", r"(?:.*\.)?patch_embed(?:dings)?\.", _plain("a vision transformer (ViT)")),
    Kind("vgg", r"features\.0\.weight", _plain("a VGG or AlexNet of torchvision"), also=r"classifier\.6\.weight"),
    # other networks begin like a ResNet
    Kind("resnet", r"layer1\.0\.conv1\.weight", _resnet),
    Kind("resnet", r"embedder\.embedder\.convolution\.weight", _regnet_or_resnet),
)
