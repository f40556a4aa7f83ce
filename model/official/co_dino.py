"""Co-DINO as released (mmdetection's names): what it has besides or instead of Co-Deformable-DETR's parameters.

Plain DINO is `num_co_heads=0` there.
"""

TABLE = [
    ("query_head.transformer.decoder.ref_point_head.{N}.{rest}", "decoder.position.{N}.{rest}"),
    ("query_head.transformer.decoder.norm.{rest}", "decoder.norm.{rest}"),
    ("query_head.transformer.query_embed.weight", "queries.content.weight"),
    ("query_head.label_embedding.weight", "groups.denoising.label_embedding"),
]
