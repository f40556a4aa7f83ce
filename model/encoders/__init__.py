"""The encoders by name: a new one is one file in this folder and one line in `ENCODERS` (docs/add-a-part.md).

An encoder turns the neck's levels into the decoder's memory. `ENCODERS.build(config, model=…)`, where `model` is the
`DetectorConfig`, whose `transformer` holds the sizes. It has

- `has_level_embedding`: whether it wants a learned vector [D] for each level, which the detector keeps;
- `forward(levels, padding, *, padded, level_embedding) → Memory`: levels [B, D, h, w], fine to coarse; for each of them
  a mask [B, h, w] bool, True = padding; whether anything is padded at all (`Memory.padding` is None otherwise); the
  level embedding [L, D], or None where it wants none. Nothing that it gives at a valid token may depend on padding;
- perhaps `recomputed_layers: int`, how many of its first layers are computed again in the backward pass
  (`model.recompute`); a training may set it.
"""

from __future__ import annotations

from model.encoders import configs
from model.parts import Parts

ENCODERS = Parts(
    __name__,
    "encoder",
    {
        "deformable": "model.encoders.deformable:DeformableEncoder",
        "dense": "model.encoders.dense:DenseEncoder",
        "none": "model.encoders.none:NoEncoder",
    },
    {
        "deformable": configs.DeformableEncoderConfig,
        "dense": configs.DenseEncoderConfig,
        "none": configs.NoneConfig,
    },
)
