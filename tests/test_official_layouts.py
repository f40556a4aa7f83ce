"""Names of released checkpoints at full size: each has its place, or is told by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest
import torch

from model.detector import Detector
from model.official.translation import FAMILIES
from tests.support.layouts import BOTH, COUNTS, GOLDEN, LAYOUTS, State, config_of, filled, translated

WITH_BIAS = "model.neck={name: projection, bias: true}"


# ---- Co-DETR ------------------------------------------------------------------------------------------------------

RESNETS = {
    "co_deformable_detr_r50_1x_coco": (BOTH,),
    "co_deformable_detr_mask_r50_1x_coco": ("model.heads=[mask_rcnn, atss]",),
    "co_dino_5scale_r50_1x_coco": ("model.preset=dino_5scale", BOTH),
    "co_dino_5scale_9encoder_lsj_r50_3x_coco": (
        *("model.preset=dino_5scale", BOTH),
        "model.transformer.num_encoder_layers=9",
    ),
}


@pytest.mark.parametrize("layout", RESNETS)
def test_every_name_of_a_released_layout_has_its_place(layout: str) -> None:
    state = filled(LAYOUTS[layout])
    found = translated(state, *RESNETS[layout])
    assert found.fits and found.num_classes == 80
    assert found.family == ("Co-DINO" if "dino" in layout else "Co-Deformable-DETR")
    assert {*found.renamed, *found.dropped} == state.keys() and not found.renamed.keys() & found.dropped.keys()
    assert found.dropped == {name: COUNTS for name in state if name.endswith("num_batches_tracked")}
    assert len(found.dropped) == 53


@pytest.mark.parametrize(
    ("layout", "heads"),
    [
        ("co_dino_5scale_r50_1x_coco", "[]"),
        ("co_dino_5scale_r50_1x_coco", "[atss]"),
        ("co_deformable_detr_mask_r50_1x_coco", "[]"),
        ("co_deformable_detr_mask_r50_1x_coco", "[faster_rcnn]"),
    ],
)
def test_what_only_training_needs_may_be_there_beyond_the_configuration(layout: str, heads: str) -> None:
    state = filled(LAYOUTS[layout])
    found = translated(state, *RESNETS[layout], f"model.heads={heads}", "model.groups=[]")
    assert found.fits and {*found.renamed, *found.dropped} == state.keys()
    beginnings = {name.split(".")[0] for name, why in found.dropped.items() if why != COUNTS}
    dense, regions = {"bbox_head"}, {"rpn_head", "roi_head"}
    gone = {"[]": dense | regions, "[atss]": regions, "[faster_rcnn]": dense}[heads]
    assert beginnings - {"query_head"} == gone | ({"roi_head"} if "mask" in layout else set())
    assert ("query_head.downsample.0.weight" in found.dropped) == (heads == "[]")
    assert ("query_head.label_embedding.weight" in found.dropped) == ("dino" in layout)


def test_a_file_for_inference_needs_no_heads() -> None:
    names = LAYOUTS["co_dino_5scale_r50_1x_coco"]
    state = filled({name: shape for name, shape in names.items() if not name.startswith(("roi_head", "bbox_head"))})
    found = translated(state, "model.preset=dino_5scale", "model.heads=[]")
    assert found.fits and "query_head.transformer.aux_pos_trans.1.bias" in found.dropped
    assert "rpn_head.rpn_cls.bias" in found.dropped


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - RESNETS.keys()))
def test_a_backbone_that_is_not_built_is_told_in_one_line(layout: str) -> None:
    settings = ("model.preset=dino_5scale",) if "dino" in layout else ()
    backbone = r"a Swin Transformer" if "swin" in layout else r"a vision transformer \(ViT\)"
    told = rf"^its backbone looks like {backbone} \(backbone\.\S+\), which is not built; a ResNet is$"
    with pytest.raises(ValueError, match=told):
        translated(filled(LAYOUTS[layout]), *settings, BOTH)


def test_what_does_not_fit_is_told_by_name() -> None:
    state = filled(LAYOUTS["co_dino_5scale_r50_1x_coco"])
    state["query_head.mystery.weight"] = torch.zeros(1)
    del state["neck.convs.0.gn.bias"]
    settings = ("model.preset=dino_5scale", BOTH)
    found = translated(
        state, *settings, "model.transformer.num_encoder_layers=5", num_classes=91
    )  # of the 80 there are
    assert not found.fits
    assert found.unknown == ("query_head.mystery.weight",) and found.missing == ("neck.lateral.0.norm.bias",)
    official, ours = "query_head.transformer.encoder.layers.5.norms.0.bias", "encoder.layers.5.attention_norm.bias"
    assert found.unexpected[official] == ours and len(found.unexpected) == 16
    assert found.misshapen["decoder.class_branches.0.weight"] == "80x256 instead of 91x256"
    assert found.misshapen["heads.atss.classification.bias"] == "80 instead of 91"
    assert found.misshapen.keys() - {"groups.denoising.label_embedding"} == {
        name for name in found.tensors if re.search(r"class_branch|heads.*(classification|boxes\.box)\.", name)
    }


def test_names_can_be_left_out_and_averages_kept_apart() -> None:
    state = filled(LAYOUTS["co_deformable_detr_r50_1x_coco"])
    state |= {
        "query_head.mystery": torch.zeros(1),
        "ema_rpn_head_rpn_cls_bias": torch.zeros(9),
        "ema_b": torch.zeros(1),
    }
    found = translated(state, BOTH, drop=["query_head.my"])
    assert found.dropped["query_head.mystery"] == "asked for" and found.unknown == ("ema_b",)
    assert found.dropped["ema_rpn_head_rpn_cls_bias"] == "weights before the moving average"
    with pytest.raises(ValueError, match=r"^no names of a detector that is known \(Co-Deformable-DETR, .*$"):
        translated({"fc.weight": torch.zeros(1)})


# ---- descendants of DETR, in their own repositories ----------------------------------------------------------------

NECK = [(256, 512, 1, 1), (256, 1024, 1, 1), (256, 2048, 1, 1), (256, 2048, 3, 3)]  # convolutions of four levels
# What DINO has besides or instead of Deformable-DETR's names
DINO_NAMES = {
    *("transformer.level_embed", "transformer.tgt_embed.weight", "label_enc.weight"),
    *(f"transformer.{name}.{kind}" for name in ("enc_output", "enc_output_norm") for kind in ("weight", "bias")),
    *(f"transformer.enc_out_class_embed.{kind}" for kind in ("weight", "bias")),
    *(f"transformer.enc_out_bbox_embed.layers.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")),
    *(f"transformer.decoder.norm.{kind}" for kind in ("weight", "bias")),
    *(f"transformer.decoder.ref_point_head.layers.{n}.{kind}" for n in range(2) for kind in ("weight", "bias")),
}
OWN_OF_DEFORMABLE = ("query_embed", "transformer.pos_trans", "class_embed.6", "bbox_embed.6")


def names_of(topic: str) -> set[str]:
    """Official names of a small model whose numbers are checked."""
    with np.load(min(GOLDEN.glob(f"{topic}__*.npz"))) as arrays:
        return {name.removeprefix("param.") for name in arrays.files if name.startswith("param.")}


def as_in_the_repository(name: str) -> str:
    """H-DETR's own name of a parameter that its files have by Co-DETR's (stated with the files)."""
    name = name.removeprefix("query_head.").replace("level_embeds", "level_embed")
    part = "decoder" if "decoder" in name else "encoder"
    norms = {"decoder": ("norm2", "norm1", "norm3"), "encoder": ("norm1", "norm2")}[part]
    for index, norm in enumerate(norms):
        name = name.replace(f"norms.{index}", norm)
    for ours, theirs in (
        ("attentions.0.attn", "self_attn"),
        ("attentions.0", "self_attn"),
        ("attentions.1", "cross_attn"),
        ("ffns.0.layers.0.0", "linear1"),
        ("ffns.0.layers.1", "linear2"),
        ("cls_branches", "class_embed"),
        ("query_embedding", "query_embed"),
    ):
        name = name.replace(ours, theirs)
    if name.startswith("reg_branches"):
        _, branch, layer, kind = name.split(".")
        name = f"bbox_embed.{branch}.layers.{int(layer) // 2}.{kind}"
    return name


def grown(names: Iterable[str], branches: int = 6) -> set[str]:
    """The same names with six layers, of which the first may have something that the others lack, and more branches."""
    names = set(names)
    for pattern, count in ((r"(transformer\.\w+\.layers\.)1(\..+)", 6), (r"((?:class|bbox)_embed\.)0(\..+)", branches)):
        for match in [match for name in names if (match := re.fullmatch(pattern, name))]:
            names |= {f"{match[1]}{layer}{match[2]}" for layer in range(1, count)}
    return names


def resnet_names() -> set[str]:
    """Those of torchvision, in DETR's wrapping; its frozen norms count no batches."""
    names = LAYOUTS["co_deformable_detr_r50_1x_coco"]
    own = {name.removeprefix("backbone.") for name in names if name.startswith("backbone.")}
    return {f"backbone.0.body.{name}" for name in own if not name.endswith("num_batches_tracked")}


def neck_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for level, shape in enumerate(NECK):
        vectors = (f"input_proj.{level}.{name}" for name in ("0.bias", "1.weight", "1.bias"))
        shapes |= {f"input_proj.{level}.0.weight": shape, **dict.fromkeys(vectors, (256,))}
    return shapes


def deformable_names() -> set[str]:
    """One stage without refinement: six times the same branch."""
    own = (name for name in names_of("e2e_plain") if name.startswith("query_head."))
    heads = ("head_pos_embed", "aux_pos", "pos_feats", "downsample")
    return grown(as_in_the_repository(name) for name in own if not any(part in name for part in heads))


def h_names() -> set[str]:
    """Two stages: a seventh branch, and all of them again under the decoder."""
    names = grown(map(as_in_the_repository, names_of("e2e_h")), branches=7)
    return names | {f"transformer.decoder.{name}" for name in names if name.startswith(("class_embed.", "bbox_embed."))}


def dino_names() -> set[str]:
    names = {name for name in h_names() if not any(part in name for part in OWN_OF_DEFORMABLE)}
    return names | DINO_NAMES


DETRS: dict[str, tuple[str, set[str], dict[str, tuple[int, ...]], tuple[str, ...]]] = {
    "deformable": ("Deformable-DETR or H-Deformable-DETR", deformable_names(), neck_shapes(), (WITH_BIAS,)),
    "h_deformable": ("Deformable-DETR or H-Deformable-DETR", h_names(), neck_shapes(), ()),
    "dino_4scale": ("DINO", dino_names(), neck_shapes(), (WITH_BIAS,)),
    "dab_c5": ("DAB-DETR", grown(names_of("e2e_dab"), 0), {}, ()),
    "conditional_c5": ("Conditional-DETR", grown(names_of("e2e_conditional"), 0), {}, ()),
}


@cache
def state_of(preset: str) -> State:
    """A released checkpoint of 91 classes: official names, and the shapes of our own model."""
    family, names, shapes, settings = DETRS[preset]
    config = config_of(f"model.preset={preset}", *settings)
    with torch.device("meta"):
        expected = Detector(config, 91).state_dict()
    state = filled(dict.fromkeys(sorted(names | resnet_names()), ()) | shapes)
    (rename,) = (own.rename for own in FAMILIES if own.name == family)
    ours = rename(state, config)
    assert ours.keys() == state.keys()
    for name in state.keys() - shapes.keys():
        own = ours[name]
        own = own if own in expected else re.sub(r"(_branches)\.\d+", r"\1.0", own)  # shared by all layers
        shape = expected[own].shape
        state |= filled({name: (92, 256) if name == "label_enc.weight" else shape})
    return state


@pytest.mark.parametrize("preset", DETRS)
def test_every_name_of_a_detr_has_its_place(preset: str) -> None:
    state, settings = state_of(preset), (f"model.preset={preset}", *DETRS[preset][3])
    found = translated(state, *settings)
    assert found.fits and found.family == DETRS[preset][0] and found.num_classes == 91
    assert {*found.renamed, *found.dropped} == state.keys()
    twice = {name for name in state if name.startswith(("transformer.decoder.class_embed", "transformer.decoder.bbox"))}
    shared = {name for name in state if re.match(r"(class|bbox)_embed\.[1-5]\.", name)}
    assert len(found.dropped) == len(shared if preset == "deformable" else twice)
    assert all(value.shape == (91, 256) for name, value in found.tensors.items() if name.endswith("label_embedding"))

    ids = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # COCO's
    wrapped = {f"module.{name}": value for name, value in state.items()}
    by_id = translated(wrapped, *settings, category_ids=ids)
    assert by_id.fits and by_id.num_classes == 80 and by_id.renamed == found.renamed


def test_a_neck_without_biases_does_not_take_some() -> None:
    found = translated(state_of("dino_4scale"), "model.preset=dino_4scale")
    assert found.unexpected == {
        **{f"input_proj.{level}.0.bias": f"neck.lateral.{level}.conv.bias" for level in range(3)},
        "input_proj.3.0.bias": "neck.extra.0.conv.bias",
    }


def test_names_of_one_tensor_must_hold_one_tensor() -> None:
    state = state_of("h_deformable")
    name = "transformer.decoder.bbox_embed.0.layers.0.bias"
    found = translated(state | {name: torch.ones(256)}, "model.preset=h_deformable")
    assert found.unexpected == {name: "decoder.box_branches.0.0.bias"}


def test_lw_detr_tells_of_its_backbone() -> None:
    state = filled(dict.fromkeys(names_of("e2e_group"), (1,)))
    patches = "backbone.0.encoder.encoder.embeddings.patch_embeddings.projection.weight"
    with pytest.raises(ValueError, match=r"^its backbone looks like a vision transformer \(ViT\) .*$"):
        translated({**state, patches: torch.zeros(1)})
    assert next(family.name for family in FAMILIES if family.includes(state)) == "LW-DETR"
