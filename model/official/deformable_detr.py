"""Deformable-DETR, H-Deformable-DETR and DINO as released in their own repositories (DETR's names)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from model.official.table import Family, mlp, num_layers, of_encoder, our_names

if TYPE_CHECKING:
    from model.config import DetectorConfig

LABELS = "groups.denoising.label_embedding"
ENCODER, DECODER = "transformer.encoder.layers.{N}", "transformer.decoder.layers.{N}"
SHARED = [
    ("backbone.0.body.{rest}", "backbone.{rest}"),
    ("input_proj.{N}.0.{rest}", "neck.{N}.conv.{rest}"),
    ("input_proj.{N}.1.{rest}", "neck.{N}.norm.{rest}"),
    ("transformer.level_embed", "level_embedding"),
    (f"{ENCODER}.self_attn.{{rest}}", "encoder.layers.{N}.attention.{rest}"),
    (f"{ENCODER}.norm1.{{rest}}", "encoder.layers.{N}.attention_norm.{rest}"),
    (f"{ENCODER}.norm2.{{rest}}", "encoder.layers.{N}.feed_forward_norm.{rest}"),
    ("transformer.{part}.layers.{N}.linear1.{rest}", "{part}.layers.{N}.feed_forward.0.{rest}"),
    ("transformer.{part}.layers.{N}.linear2.{rest}", "{part}.layers.{N}.feed_forward.2.{rest}"),
    (f"{DECODER}.self_attn.in_proj_{{rest}}", "decoder.layers.{N}.self_attention.in_proj.{rest}"),
    (f"{DECODER}.self_attn.out_proj.{{rest}}", "decoder.layers.{N}.self_attention.out_proj.{rest}"),
    (f"{DECODER}.cross_attn.{{rest}}", "decoder.layers.{N}.cross_attention.{rest}"),
    (f"{DECODER}.norm2.{{rest}}", "decoder.layers.{N}.self_norm.{rest}"),
    (f"{DECODER}.norm1.{{rest}}", "decoder.layers.{N}.cross_norm.{rest}"),
    (f"{DECODER}.norm3.{{rest}}", "decoder.layers.{N}.feed_forward_norm.{rest}"),
    ("transformer.enc_output.{rest}", "queries.token_proj.{rest}"),
    ("transformer.enc_output_norm.{rest}", "queries.token_norm.{rest}"),
    ("class_embed.{N}.{rest}", "decoder.class_branches.{N}.{rest}"),
    *mlp("bbox_embed.{N}", "decoder.box_branches.{N}"),
    # the decoder's own names of the branches above
    ("transformer.decoder.class_embed.{N}.{rest}", "decoder.class_branches.{N}.{rest}"),
    *mlp("transformer.decoder.bbox_embed.{N}", "decoder.box_branches.{N}"),
]
DEFORMABLE = [
    ("transformer.reference_points.{rest}", "queries.reference_points.{rest}"),
    ("transformer.pos_trans.{rest}", "queries.box_proj.{rest}"),
    ("transformer.pos_trans_norm.{rest}", "queries.box_norm.{rest}"),
    ("query_embed.weight", "queries.embedding.weight"),
]
DINO = [
    ("transformer.decoder.norm.{rest}", "decoder.norm.{rest}"),
    ("transformer.decoder.ref_point_head.layers.0.{rest}", "decoder.position.0.{rest}"),
    ("transformer.decoder.ref_point_head.layers.1.{rest}", "decoder.position.2.{rest}"),
    ("transformer.tgt_embed.weight", "queries.content.weight"),
    ("transformer.enc_out_class_embed.{rest}", "queries.class_branch.{rest}"),
    *mlp("transformer.enc_out_bbox_embed", "queries.box_branch"),
    ("label_enc.weight", LABELS),
]


def _deformable(state: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, str]:
    del config
    names = _neck(our_names(state, [*SHARED, *DEFORMABLE]), state)
    if "query_embed.weight" in names and "transformer.enc_output.weight" in state:
        names["query_embed.weight"] = "queries.content.weight"
    return of_encoder(names, num_layers(names.values()))


def _dino(state: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, str]:
    del config
    return _neck(our_names(state, [*SHARED, *DINO]), state)


def _neck(names: dict[str, str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """The official levels are in one list: those of backbone stages, by 1x1 convolutions, then the further ones."""
    convolutions = [name for name in state if names.get(name, "").startswith("neck.") and state[name].dim() == 4]
    num_lateral = sum(state[name].shape[-1] == 1 for name in convolutions)
    for official, ours in names.items():
        if ours.startswith("neck."):
            _, level, rest = ours.split(".", 2)
            extra = int(level) - num_lateral
            names[official] = f"neck.extra.{extra}.{rest}" if extra >= 0 else f"neck.lateral.{level}.{rest}"
    return names


def _without_unused_label(tensors: dict[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """DINO keeps one label more than there are classes, which no query has."""
    del config
    branch, labels = (tensors.get(name) for name in ("decoder.class_branches.0.weight", LABELS))
    if branch is not None and branch.dim() and labels is not None and labels.shape[:1] == (len(branch) + 1,):
        tensors[LABELS] = labels[:-1]
    return tensors


def _includes(names: Collection[str], *, of_dino: bool) -> bool:
    beginnings = ("transformer.encoder.layers.0.self_attn.sampling_offsets.", "transformer.decoder.ref_point_head.")
    deformable, with_positions = (any(name.startswith(beginning) for name in names) for beginning in beginnings)
    return deformable and with_positions == of_dino


FAMILIES = (
    Family("Deformable-DETR or H-Deformable-DETR", partial(_includes, of_dino=False), _deformable),
    Family("DINO", partial(_includes, of_dino=True), _dino, _without_unused_label),
)
