"""The multi-scale adapters by name: a new one is one file here and one line in `ADAPTERS` (docs/add-a-part.md).

An adapter makes the pyramid that auxiliary heads, customised queries and analyses read from the encoder's memory (paper
3.2). It is built where there are auxiliary heads: `ADAPTERS.build(config, channels=…, strides=…)`, the strides of the
encoder's levels in pixels of the input image. It has

- `strides`: of the pyramid's levels, fine to coarse;
- `forward(memory, valid_hw, mask_at, image_hw) → Pyramid`: `valid_hw` [B, 2] pixels; `mask_at(stride)` gives the
  padding mask [B, h, w] of a stride, or None where nothing is masked; `image_hw` is (H, W) of the batch in pixels, and
  levels have the size ceil(H / stride), as masks have. What lies behind a mask is anything, in the memory and in the
  levels; at a valid position a level does not depend on it.

The encoder's own levels are among the pyramid's, at their strides, as they are: analyses compare what the decoder reads
with what the heads read. A class attribute `num_levels` of its `Config` is what `transformer.num_levels` must be; an
adapter without goes with any.
"""

from __future__ import annotations

from model.adapters import configs
from model.parts import Parts

ADAPTERS = Parts(
    __name__,
    "adapter",
    {"coarser": "model.adapters.coarser:CoarserLevel", "single_scale": "model.adapters.single_scale:SingleScale"},
    {"coarser": configs.CoarserConfig, "single_scale": configs.SingleScaleConfig},
)
