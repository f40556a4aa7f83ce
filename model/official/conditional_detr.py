"""Conditional-DETR and DAB-DETR as released (DETR's names): what both have, then what each has alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from model.official.table import Family, mlp, our_names

if TYPE_CHECKING:
    from model.config import DetectorConfig

SHARED = [
    ("backbone.0.body.{rest}", "backbone.{rest}"),
    ("input_proj.{rest}", "neck.lateral.0.{rest}"),
    ("transformer.{part}.layers.{N}.linear1.{rest}", "{part}.layers.{N}.feed_forward.0.{rest}"),
    ("transformer.{part}.layers.{N}.activation.{rest}", "{part}.layers.{N}.feed_forward.1.0.{rest}"),
    ("transformer.{part}.layers.{N}.linear2.{rest}", "{part}.layers.{N}.feed_forward.2.{rest}"),
    ("transformer.{part}.query_scale.layers.{N}.{rest}", "{part}.query_scale.{N}.{rest}"),
    ("transformer.encoder.layers.{N}.self_attn.in_proj_{rest}", "encoder.layers.{N}.attention.in_proj.{rest}"),
    ("transformer.encoder.layers.{N}.self_attn.out_proj.{rest}", "encoder.layers.{N}.attention.out_proj.{rest}"),
    ("transformer.encoder.layers.{N}.norm1.{rest}", "encoder.layers.{N}.attention_norm.{rest}"),
    ("transformer.encoder.layers.{N}.norm2.{rest}", "encoder.layers.{N}.feed_forward_norm.{rest}"),
    (
        "transformer.decoder.layers.{N}.sa_qcontent_proj.{rest}",
        "decoder.layers.{N}.self_attention.query_content.{rest}",
    ),
    ("transformer.decoder.layers.{N}.sa_qpos_proj.{rest}", "decoder.layers.{N}.self_attention.query_position.{rest}"),
    ("transformer.decoder.layers.{N}.sa_kcontent_proj.{rest}", "decoder.layers.{N}.self_attention.key_content.{rest}"),
    ("transformer.decoder.layers.{N}.sa_kpos_proj.{rest}", "decoder.layers.{N}.self_attention.key_position.{rest}"),
    ("transformer.decoder.layers.{N}.sa_v_proj.{rest}", "decoder.layers.{N}.self_attention.value.{rest}"),
    ("transformer.decoder.layers.{N}.self_attn.out_proj.{rest}", "decoder.layers.{N}.self_attention.out_proj.{rest}"),
    (
        "transformer.decoder.layers.{N}.ca_qcontent_proj.{rest}",
        "decoder.layers.{N}.cross_attention.query_content.{rest}",
    ),
    ("transformer.decoder.layers.{N}.ca_qpos_proj.{rest}", "decoder.layers.{N}.cross_attention.query_position.{rest}"),
    ("transformer.decoder.layers.{N}.ca_qpos_sine_proj.{rest}", "decoder.layers.{N}.cross_attention.query_sine.{rest}"),
    ("transformer.decoder.layers.{N}.ca_kcontent_proj.{rest}", "decoder.layers.{N}.cross_attention.key_content.{rest}"),
    ("transformer.decoder.layers.{N}.ca_kpos_proj.{rest}", "decoder.layers.{N}.cross_attention.key_position.{rest}"),
    ("transformer.decoder.layers.{N}.ca_v_proj.{rest}", "decoder.layers.{N}.cross_attention.value.{rest}"),
    ("transformer.decoder.layers.{N}.cross_attn.out_proj.{rest}", "decoder.layers.{N}.cross_attention.out_proj.{rest}"),
    ("transformer.decoder.layers.{N}.norm1.{rest}", "decoder.layers.{N}.self_norm.{rest}"),
    ("transformer.decoder.layers.{N}.norm2.{rest}", "decoder.layers.{N}.cross_norm.{rest}"),
    ("transformer.decoder.layers.{N}.norm3.{rest}", "decoder.layers.{N}.feed_forward_norm.{rest}"),
    ("transformer.decoder.norm.{rest}", "decoder.norm.{rest}"),
    ("class_embed.{rest}", "decoder.class_branch.{rest}"),
    *mlp("bbox_embed", "decoder.box_branch"),
]
CONDITIONAL = [
    ("transformer.decoder.ref_point_head.layers.{N}.{rest}", "queries.point_head.{N}.{rest}"),
    ("query_embed.{rest}", "queries.embedding.{rest}"),
]
DAB = [
    ("transformer.decoder.ref_point_head.layers.{N}.{rest}", "decoder.position_head.{N}.{rest}"),
    ("transformer.decoder.ref_anchor_head.layers.{N}.{rest}", "decoder.size_head.{N}.{rest}"),
    # the decoder's own name of the box branch that stands in `bbox_embed` too
    *mlp("transformer.decoder.bbox_embed", "decoder.box_branch"),
    ("refpoint_embed.{rest}", "queries.anchors.{rest}"),
]


def rename(state: Mapping[str, Tensor], config: DetectorConfig | None = None) -> dict[str, str]:
    """Our name of each official one that the tables know; the names tell which of the two models it is.

    The detector has the parts of that model: encoder `dense`, neck `projection` without norm, decoder `dab` with the
    proposals `anchors`, or decoder `conditional` with the proposals `learned` without content and with an MLP.
    """
    del config
    return our_names(state, [*SHARED, *(DAB if _is_dab(state) else CONDITIONAL)])


def _is_conditional(names: Collection[str]) -> bool:
    return any(name.startswith("transformer.decoder.layers.0.ca_qpos_sine_proj.") for name in names)


def _is_dab(names: Collection[str]) -> bool:
    return any(name.startswith("transformer.decoder.ref_anchor_head.") for name in names)


FAMILIES = (
    Family("DAB-DETR", _is_dab, rename),
    Family("Conditional-DETR", _is_conditional, rename),  # and Group-DETR on it
)
