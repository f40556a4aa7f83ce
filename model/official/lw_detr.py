"""LW-DETR as released, "Group DETR v3", from the decoder's input on: one table, read top to bottom.

Its backbone and its neck are none of ours; their parameters keep their official names.
"""

from __future__ import annotations

from torch import Tensor

from model.official.table import renamed

LAYER, OURS = "transformer.decoder.layers.{N}", "decoder.layers.{N}"
TABLE = [
    (f"{LAYER}.self_attn.in_proj_{{rest}}", f"{OURS}.self_attention.in_proj.{{rest}}"),
    (f"{LAYER}.self_attn.out_proj.{{rest}}", f"{OURS}.self_attention.out_proj.{{rest}}"),
    (f"{LAYER}.norm1.{{rest}}", f"{OURS}.self_norm.{{rest}}"),
    (f"{LAYER}.cross_attn.{{rest}}", f"{OURS}.cross_attention.{{rest}}"),
    (f"{LAYER}.norm2.{{rest}}", f"{OURS}.cross_norm.{{rest}}"),
    (f"{LAYER}.linear1.{{rest}}", f"{OURS}.feed_forward.0.{{rest}}"),
    (f"{LAYER}.linear2.{{rest}}", f"{OURS}.feed_forward.2.{{rest}}"),
    (f"{LAYER}.norm3.{{rest}}", f"{OURS}.feed_forward_norm.{{rest}}"),
    ("transformer.decoder.norm.{rest}", "decoder.norm.{rest}"),
    ("transformer.decoder.ref_point_head.layers.0.{rest}", "decoder.position.0.{rest}"),
    ("transformer.decoder.ref_point_head.layers.1.{rest}", "decoder.position.2.{rest}"),
    ("class_embed.{rest}", "decoder.class_branches.0.{rest}"),
    ("bbox_embed.layers.0.{rest}", "decoder.box_branches.0.0.{rest}"),
    ("bbox_embed.layers.1.{rest}", "decoder.box_branches.0.2.{rest}"),
    ("bbox_embed.layers.2.{rest}", "decoder.box_branches.0.4.{rest}"),
    ("query_feat.weight", "queries.content.weight"),
    ("refpoint_embed.weight", "queries.anchors.weight"),
    ("transformer.enc_output.{N}.{rest}", "queries.heads.{N}.token_proj.{rest}"),
    ("transformer.enc_output_norm.{N}.{rest}", "queries.heads.{N}.token_norm.{rest}"),
    ("transformer.enc_out_class_embed.{N}.{rest}", "queries.heads.{N}.class_branch.{rest}"),
    ("transformer.enc_out_bbox_embed.{N}.layers.0.{rest}", "queries.heads.{N}.box_branch.0.{rest}"),
    ("transformer.enc_out_bbox_embed.{N}.layers.1.{rest}", "queries.heads.{N}.box_branch.2.{rest}"),
    ("transformer.enc_out_bbox_embed.{N}.layers.2.{rest}", "queries.heads.{N}.box_branch.4.{rest}"),
]
PARTS = {"N": r"\d+", "rest": ".+"}


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from an official one; what the table does not know keeps its name, so that loading reports it."""
    return renamed(state, TABLE, PARTS)
