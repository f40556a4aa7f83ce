"""Co-DETR as released (mmdetection's names): one table, read top to bottom, and Co-DINO's own rows after it.

Official heads are numbered: all RoI heads first, then the dense heads, which are ATSS.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.backbones.configs import SwinConfig
from model.official import co_dino, swin, vit
from model.official.table import Family, num_layers, of_encoder, our_names

if TYPE_CHECKING:
    from model.config import DetectorConfig

REGION_HEADS = ("faster_rcnn", "mask_rcnn")
DENSE_HEADS = ("atss",)
BACKBONE = "backbone."
QUERIES = "query_head.query_embedding.weight"
QUERIED = r"query_head\.transformer\.(?:aux_pos|pos_feats)_\w+"  # customised queries of the head of that number

# Of the instance models with ViT-L, whose boxes come from the decoder alone
MASKS = "the masks of the decoder's boxes, a head that is not built"
NOT_BUILT = {"mask_head.": MASKS, "mask_iou_head.": MASKS}

# {head} stands for the head of that number, {dense} for the head of that number among the dense ones, {heads} for all;
# {rpn} for the first head, to which the proposal network belongs.
TABLE = [
    ("backbone.{rest}", "backbone.{rest}"),
    ("neck.convs.{N}.conv.{rest}", "neck.lateral.{N}.conv.{rest}"),
    ("neck.convs.{N}.gn.{rest}", "neck.lateral.{N}.norm.{rest}"),
    ("neck.extra_convs.{N}.conv.{rest}", "neck.extra.{N}.conv.{rest}"),
    ("neck.extra_convs.{N}.gn.{rest}", "neck.extra.{N}.norm.{rest}"),
    ("query_head.transformer.level_embeds", "level_embedding"),
    ("query_head.transformer.encoder.layers.{N}.attentions.0.{rest}", "encoder.layers.{N}.attention.{rest}"),
    ("query_head.transformer.encoder.layers.{N}.norms.0.{rest}", "encoder.layers.{N}.attention_norm.{rest}"),
    ("query_head.transformer.encoder.layers.{N}.norms.1.{rest}", "encoder.layers.{N}.feed_forward_norm.{rest}"),
    ("query_head.transformer.{part}.layers.{N}.ffns.0.layers.0.0.{rest}", "{part}.layers.{N}.feed_forward.0.{rest}"),
    ("query_head.transformer.{part}.layers.{N}.ffns.0.layers.1.{rest}", "{part}.layers.{N}.feed_forward.2.{rest}"),
    (
        "query_head.transformer.decoder.layers.{N}.attentions.0.attn.in_proj_{rest}",
        "decoder.layers.{N}.self_attention.in_proj.{rest}",
    ),
    (
        "query_head.transformer.decoder.layers.{N}.attentions.0.attn.out_proj.{rest}",
        "decoder.layers.{N}.self_attention.out_proj.{rest}",
    ),
    ("query_head.transformer.decoder.layers.{N}.attentions.1.{rest}", "decoder.layers.{N}.cross_attention.{rest}"),
    ("query_head.transformer.decoder.layers.{N}.norms.0.{rest}", "decoder.layers.{N}.self_norm.{rest}"),
    ("query_head.transformer.decoder.layers.{N}.norms.1.{rest}", "decoder.layers.{N}.cross_norm.{rest}"),
    ("query_head.transformer.decoder.layers.{N}.norms.2.{rest}", "decoder.layers.{N}.feed_forward_norm.{rest}"),
    ("query_head.transformer.enc_output.{rest}", "queries.token_proj.{rest}"),
    ("query_head.transformer.enc_output_norm.{rest}", "queries.token_norm.{rest}"),
    ("query_head.transformer.pos_trans.{rest}", "queries.box_proj.{rest}"),
    ("query_head.transformer.pos_trans_norm.{rest}", "queries.box_norm.{rest}"),
    ("query_head.transformer.reference_points.{rest}", "queries.reference_points.{rest}"),
    ("query_head.transformer.aux_pos_trans.{head}.{rest}", "positive_queries.{head}.box_proj.{rest}"),
    ("query_head.transformer.aux_pos_trans_norm.{head}.{rest}", "positive_queries.{head}.box_norm.{rest}"),
    ("query_head.transformer.pos_feats_trans.{head}.{rest}", "positive_queries.{head}.feature_proj.{rest}"),
    ("query_head.transformer.pos_feats_norm.{head}.{rest}", "positive_queries.{head}.feature_norm.{rest}"),
    ("query_head.downsample.0.{rest}", "coarser.conv.{rest}"),
    ("query_head.downsample.1.{rest}", "coarser.norm.{rest}"),
    ("query_head.cls_branches.{N}.{rest}", "decoder.class_branches.{N}.{rest}"),
    ("query_head.reg_branches.{N}.{rest}", "decoder.box_branches.{N}.{rest}"),
    ("rpn_head.rpn_conv.{rest}", "heads.{rpn}.stages.proposals.conv.{rest}"),
    ("rpn_head.rpn_cls.{rest}", "heads.{rpn}.stages.proposals.objectness.{rest}"),
    ("rpn_head.rpn_reg.{rest}", "heads.{rpn}.stages.proposals.box.{rest}"),
    ("roi_head.{head}.bbox_head.shared_convs.{N}.conv.{rest}", "heads.{head}.stages.boxes.convs.{N}.conv.{rest}"),
    ("roi_head.{head}.bbox_head.shared_convs.{N}.gn.{rest}", "heads.{head}.stages.boxes.convs.{N}.norm.{rest}"),
    ("roi_head.{head}.bbox_head.shared_fcs.{N}.{rest}", "heads.{head}.stages.boxes.fcs.{N}.{rest}"),
    ("roi_head.{head}.bbox_head.fc_cls.{rest}", "heads.{head}.stages.boxes.classification.{rest}"),
    ("roi_head.{head}.bbox_head.fc_reg.{rest}", "heads.{head}.stages.boxes.box.{rest}"),
    ("roi_head.{head}.mask_head.convs.{N}.conv.{rest}", "heads.{head}.masks.convs.{N}.{rest}"),
    ("roi_head.{head}.mask_head.upsample.{rest}", "heads.{head}.masks.upsample.{rest}"),
    ("roi_head.{head}.mask_head.conv_logits.{rest}", "heads.{head}.masks.logits.{rest}"),
    ("bbox_head.{dense}.cls_convs.{N}.conv.{rest}", "heads.{dense}.class_tower.{N}.conv.{rest}"),
    ("bbox_head.{dense}.cls_convs.{N}.gn.{rest}", "heads.{dense}.class_tower.{N}.norm.{rest}"),
    ("bbox_head.{dense}.reg_convs.{N}.conv.{rest}", "heads.{dense}.box_tower.{N}.conv.{rest}"),
    ("bbox_head.{dense}.reg_convs.{N}.gn.{rest}", "heads.{dense}.box_tower.{N}.norm.{rest}"),
    ("bbox_head.{dense}.atss_cls.{rest}", "heads.{dense}.classification.{rest}"),
    ("bbox_head.{dense}.atss_reg.{rest}", "heads.{dense}.box.{rest}"),
    ("bbox_head.{dense}.atss_centerness.{rest}", "heads.{dense}.centerness.{rest}"),
    # of several levels, or heads, in one: see `merge`
    ("bbox_head.{dense}.scales.{N}.scale", "heads.{dense}.level_scales.{N}"),
    ("query_head.transformer.head_pos_embed.weight", "positive_queries.{heads}.head_embedding"),
    ("query_head.query_embedding.weight", "queries.embedding.weight"),
]


def rename(state: Mapping[str, Tensor], heads: Sequence[str], num_roi_heads: int) -> dict[str, str]:
    """Our name of each official one that the table knows.

    Args:
        state: official names, as in a released checkpoint's `state_dict`.
        heads: our instance names in official order, RoI heads first: ("faster_rcnn", "atss").
        num_roi_heads: how many of them are RoI heads.
    """
    modules = [head.replace(".", ":") for head in heads]  # names of modules hold no dots
    named = {"head": modules, "dense": modules[num_roi_heads:]}
    fixed = {"rpn": modules[0] if num_roi_heads else "rpn_head", "heads": ",".join(modules)}
    names = our_names(state, [*TABLE, *co_dino.TABLE, *vit.TABLE], named, fixed)
    if QUERIES in names and "query_head.transformer.enc_output.weight" in state:
        names[QUERIES] = "queries.content.weight"
    return of_encoder(names, num_layers(names.values()))


def merge(tensors: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """The same tensors, where an official one is several of ours or the other way round.

    Args:
        tensors: under the names of `rename`.
        channels: of a head's embedding. The official one is a number, added to all channels, which as many equal
            numbers compute as well.

    A tensor of another shape than the official one stays under its name, which no detector has.
    """
    merged: dict[str, Tensor] = {}
    scales: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := re.fullmatch(r"(heads\.[^.]+\.level_scales)\.(\d+)", name)) and tensor.dim() == 0:
            scales.setdefault(match[1], {})[int(match[2])] = tensor
        elif (match := re.fullmatch(r"positive_queries\.([^.]+)\.head_embedding", name)) and tensor.shape[1:] == (1,):
            for head, scalar in zip(match[1].split(","), tensor, strict=False):
                merged[f"positive_queries.{head}.head_embedding"] = scalar.expand(channels)
        else:
            merged[name] = tensor
    return merged | {name: torch.stack([own[level] for level in sorted(own)]) for name, own in scales.items()}


def _rename(state: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, str]:
    names = config.head_names
    regions, dense = ([n for n in names if n.partition(".")[0] in kinds] for kinds in (REGION_HEADS, DENSE_HEADS))
    num_roi_heads, num_dense = (_count(state, kind) for kind in ("roi_head", "bbox_head"))
    embedding = state.get("query_head.transformer.head_pos_embed.weight")
    num_queried = max(0 if embedding is None else len(torch.atleast_1d(embedding)), _count(state, QUERIED))
    heads = [*_padded(regions, num_roi_heads, "roi_head"), *_padded(dense, num_dense, "bbox_head")]
    heads += _padded((), num_queried - len(heads), "head")  # files for inference may be without the heads themselves
    return rename(state, heads, num_roi_heads) | _of_swin(state, config)


def _of_swin(names: Iterable[str], config: DetectorConfig) -> dict[str, str]:
    """Names of the backbone, where the configuration's is a Swin Transformer; others stay as the table has them."""
    if not isinstance(config.backbone, SwinConfig):
        return {}
    own = {name.removeprefix(BACKBONE): name for name in names if name.startswith(BACKBONE)}
    return {own[short]: f"{BACKBONE}{ours}" for short, ours in swin.rename(own).items()}


def _count(names: Iterable[str], kind: str) -> int:
    return 1 + max((int(m[1]) for name in names if (m := re.match(rf"{kind}\.(\d+)\.", name))), default=-1)


def _padded(heads: Sequence[str], number: int, official: str) -> list[str]:
    """As many names; those that are none of ours tell of heads that the configuration lacks."""
    return [heads[index] if index < len(heads) else f"{official} {index}" for index in range(number)]


def _merge(tensors: dict[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    if isinstance(config.backbone, SwinConfig):
        tensors = swin.merge(tensors)
    return merge(tensors, 1 if config.official else config.transformer.channels)


def _includes(names: Collection[str], *, of_dino: bool) -> bool:
    beginnings = ("query_head.transformer.", "query_head.transformer.decoder.ref_point_head.")
    official, with_positions = (any(name.startswith(beginning) for name in names) for beginning in beginnings)
    return official and with_positions == of_dino


FAMILIES = (
    Family("Co-Deformable-DETR", partial(_includes, of_dino=False), _rename, _merge),
    Family("Co-DINO", partial(_includes, of_dino=True), _rename, _merge, NOT_BUILT),
)
