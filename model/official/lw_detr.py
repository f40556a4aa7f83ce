"""LW-DETR as released, "Group DETR v3", from the decoder's input on: one table, read top to bottom.

Its backbone and its neck are none of ours; their parameters keep their official names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from model.official.table import Family, mlp, our_names

if TYPE_CHECKING:
    from model.config import DetectorConfig

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
    *mlp("bbox_embed", "decoder.box_branches.0"),
    ("query_feat.weight", "queries.content.weight"),
    ("refpoint_embed.weight", "queries.anchors.weight"),
    ("transformer.enc_output.{N}.{rest}", "queries.heads.{N}.token_proj.{rest}"),
    ("transformer.enc_output_norm.{N}.{rest}", "queries.heads.{N}.token_norm.{rest}"),
    ("transformer.enc_out_class_embed.{N}.{rest}", "queries.heads.{N}.class_branch.{rest}"),
    *mlp("transformer.enc_out_bbox_embed.{N}", "queries.heads.{N}.box_branch"),
]


def rename(state: Mapping[str, Tensor], config: DetectorConfig | None = None) -> dict[str, str]:
    """Our name of each official one that the table knows; the configuration plays no part."""
    del config
    return our_names(state, TABLE)


def _includes(names: Collection[str]) -> bool:
    return "query_feat.weight" in names and "refpoint_embed.weight" in names


FAMILIES = (Family("LW-DETR", _includes, rename),)
