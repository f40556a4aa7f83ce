"""The necks by name: a new one is one file in this folder and one line in `NECKS` (docs/add-a-part.md).

A neck brings the backbone's stages to the encoder's levels. `NECKS.build(config, in_channels=…, in_strides=…,
channels=…, num_levels=…)`: width and stride of each stage, and what the encoder wants. It has

- `strides`: of its levels in pixels of the input image, fine to coarse;
- `forward(stages, mask_at) → levels`: stages [B, C_i, h, w] to `num_levels` levels [B, D, h, w], h = ceil(H / stride);
  where a level is finer than every stage, H and W are multiples of the finest stage's stride, as the detector's are;
  `mask_at(stride)` as in `model/backbones`. With masks, stages are zero behind theirs, and so must levels be; at a
  valid position a level is what the image alone would give.

Raises `ValueError` where it cannot bring so many stages to so few levels.

Its `Config` may have `strides_of(in_strides, num_levels)`, which tells the strides before anything is built
(`DetectorConfig.strides`).
"""

from __future__ import annotations

from model.necks import configs
from model.parts import Parts

NECKS = Parts(
    __name__,
    "neck",
    {"projection": "model.necks.projection:Projection", "simple_fpn": "model.necks.simple_fpn:SimpleFpn"},
    {"projection": configs.ProjectionConfig, "simple_fpn": configs.SimpleFpnConfig},
)
