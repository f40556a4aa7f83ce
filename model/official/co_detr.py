"""Co-DETR as released (mmdetection's names): one table, read top to bottom, and Co-DINO's own rows after it.

Official heads are numbered: all RoI heads first, then the dense heads; `heads` gives our names in that order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from model.official import co_dino
from model.official.table import compiled

# Official pattern → our name. `{N}` stands for a number that both keep; {head} for the head of that number, {dense} for
# the head of that number among the dense ones; {rpn} for the first head, to which the proposal network belongs.
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
]
PARTS = {"N": r"\d+", "head": r"\d+", "dense": r"\d+", "part": "encoder|decoder", "rest": ".+"}


def convert(
    state: dict[str, Tensor], heads: Sequence[str], num_roi_heads: int = 0, scalar_embedding: bool = False
) -> dict[str, Tensor]:
    """Our state dict from an official one.

    Args:
        state: official names, as in a released checkpoint's `state_dict`.
        heads: our instance names in official order, RoI heads first: ("faster_rcnn", "atss").
        num_roi_heads: how many of them are RoI heads.
        scalar_embedding: for a detector with `compatibility: official`, whose heads have a number each as embedding;
            otherwise that number is given to every channel, which computes the same.

    Returns:
        Tensors under our names; what our table does not know keeps its official name, so that
        `Detector.load_state_dict` reports it. Without heads there is no adapter, and the official one is left out.
    """
    rows = compiled([*TABLE, *co_dino.TABLE], PARTS)
    names = [head.replace(".", ":") for head in heads]
    two_stage = "query_head.transformer.enc_output.weight" in state
    layers = [int(m[1]) for n in state if (m := re.match(r"query_head\.transformer\.decoder\.layers\.(\d+)\.", n))]
    last = str(max(layers, default=-1) + 1)  # the class and box branches behind the decoder's are the encoder's
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not heads and name.startswith("query_head.downsample."):
            continue
        for pattern, target in rows:
            if match := pattern.fullmatch(name):
                found = match.groupdict()
                if "head" in found:
                    found["head"] = names[int(found["head"])]
                if "dense" in found:
                    found["dense"] = names[num_roi_heads + int(found["dense"])]
                ours[target.format(**found, rpn=names[0] if names else "")] = tensor
                break
        else:
            ours[name] = tensor
    for branch, single in (("class_branches", "class_branch"), ("box_branches", "box_branch")):
        for name in [name for name in ours if name.startswith(f"decoder.{branch}.{last}.")]:
            ours[name.replace(f"decoder.{branch}.{last}", f"queries.{single}")] = ours.pop(name)
    if (embedding := ours.pop("query_head.query_embedding.weight", None)) is not None:
        ours["queries.content.weight" if two_stage else "queries.embedding.weight"] = embedding
    if (scalars := ours.pop("query_head.transformer.head_pos_embed.weight", None)) is not None:
        channels = ours["level_embedding"].shape[1]
        for head, scalar in zip(names, scalars, strict=True):  # official: one number for all channels
            ours[f"positive_queries.{head}.head_embedding"] = scalar.expand(1 if scalar_embedding else channels)
    for index, head in enumerate(names[num_roi_heads:]):
        scales = [ours.pop(n) for n in sorted(ours) if re.fullmatch(rf"bbox_head\.{index}\.scales\.\d+\.scale", n)]
        if scales:
            ours[f"heads.{head}.level_scales"] = torch.stack(scales)
    return ours
