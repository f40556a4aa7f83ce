"""H-Deformable-DETR as released, which keeps Deformable-DETR's names: they become those of Co-DETR, then ours.

The parameters of the backbone and of the neck, whose convolutions have biases there, keep their official names.
"""

from __future__ import annotations

import re

from torch import Tensor

from model.official import co_detr
from model.official.table import renamed

HEAD, TRANSFORMER = "query_head", "query_head.transformer"
TABLE = [
    ("transformer.level_embed", f"{TRANSFORMER}.level_embeds"),
    ("transformer.encoder.layers.{N}.self_attn.{rest}", f"{TRANSFORMER}.encoder.layers.{{N}}.attentions.0.{{rest}}"),
    ("transformer.encoder.layers.{N}.norm1.{rest}", f"{TRANSFORMER}.encoder.layers.{{N}}.norms.0.{{rest}}"),
    ("transformer.encoder.layers.{N}.norm2.{rest}", f"{TRANSFORMER}.encoder.layers.{{N}}.norms.1.{{rest}}"),
    (
        "transformer.decoder.layers.{N}.self_attn.{rest}",
        f"{TRANSFORMER}.decoder.layers.{{N}}.attentions.0.attn.{{rest}}",
    ),
    ("transformer.decoder.layers.{N}.cross_attn.{rest}", f"{TRANSFORMER}.decoder.layers.{{N}}.attentions.1.{{rest}}"),
    ("transformer.decoder.layers.{N}.norm2.{rest}", f"{TRANSFORMER}.decoder.layers.{{N}}.norms.0.{{rest}}"),
    ("transformer.decoder.layers.{N}.norm1.{rest}", f"{TRANSFORMER}.decoder.layers.{{N}}.norms.1.{{rest}}"),
    ("transformer.decoder.layers.{N}.norm3.{rest}", f"{TRANSFORMER}.decoder.layers.{{N}}.norms.2.{{rest}}"),
    ("transformer.{part}.layers.{N}.linear1.{rest}", f"{TRANSFORMER}.{{part}}.layers.{{N}}.ffns.0.layers.0.0.{{rest}}"),
    ("transformer.{part}.layers.{N}.linear2.{rest}", f"{TRANSFORMER}.{{part}}.layers.{{N}}.ffns.0.layers.1.{{rest}}"),
    ("transformer.{own}.{rest}", f"{TRANSFORMER}.{{own}}.{{rest}}"),
    ("query_embed.weight", f"{HEAD}.query_embedding.weight"),
    ("class_embed.{N}.{rest}", f"{HEAD}.cls_branches.{{N}}.{{rest}}"),
    ("bbox_embed.{N}.layers.0.{rest}", f"{HEAD}.reg_branches.{{N}}.0.{{rest}}"),
    ("bbox_embed.{N}.layers.1.{rest}", f"{HEAD}.reg_branches.{{N}}.2.{{rest}}"),
    ("bbox_embed.{N}.layers.2.{rest}", f"{HEAD}.reg_branches.{{N}}.4.{{rest}}"),
]
PARTS = {
    **{"N": r"\d+", "rest": ".+", "part": "encoder|decoder"},
    "own": "enc_output|enc_output_norm|pos_trans|pos_trans_norm|reference_points",
}
# The branches again, under the decoder, which refines the boxes.
TWICE = re.compile(r"transformer\.decoder\.(class_embed|bbox_embed)\..+")


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from an official one; what no table knows keeps a name that is none of ours."""
    once = {name: tensor for name, tensor in state.items() if not TWICE.fullmatch(name)}
    return co_detr.convert(renamed(once, TABLE, PARTS), ())
