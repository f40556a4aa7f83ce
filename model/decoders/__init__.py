"""The decoders by name: a new one is one file in this folder and one line in `DECODERS` (docs/add-a-part.md).

A decoder turns query groups into predictions. `DECODERS.build(config, model=…, num_classes=…)`, where `model` is the
`DetectorConfig`: its `transformer` holds the sizes, and `box_refinement` and `look_forward_twice` how boxes move from
layer to layer. The decoder's own `Config` says what is particular to it: where positions come from, whether branches
are shared, which norms stand before them. A class attribute `box_refinement` there is what that setting must be; a
decoder without goes with both. With `makes_position`, a class attribute or property, the decoder makes the positions of
all queries from their references: groups give none then, have no parameters for them (`DetectorConfig.makes_position`),
and a position that a group gives all the same is not read. Without it the groups' positions are what it needs. Boxes
that a group took from elsewhere (heads, ground truths) come no nearer to 0 or 1 than its `reference_epsilon`, if it has
one. It is a module and has

- `forward(groups, memory, *, look=False) → DecoderOutput`: all groups in one pass, which share every weight; which
  queries see which, the groups say (`model.attention.Visibility`; what becomes of a query that sees nobody is nobody's
  concern, but stays finite). A decoder that makes no positions raises `ValueError` for a group without. With `look`,
  `DecoderOutput.looked_at` tells where the queries of the last layer looked.
- `official_from_the_start`: its first weights and those of what comes with it are official anyway, and not only
  with `DetectorConfig.first_weights`.

Boxes and references are normalised by the valid size and stay in fp32 under autocast.
"""

from __future__ import annotations

from model.decoders import configs
from model.parts import Parts

DECODERS = Parts(
    __name__,
    "decoder",
    {
        "deformable": "model.decoders.deformable:DeformableDecoder",
        "conditional": "model.decoders.conditional:ConditionalDecoder",
        "dab": "model.decoders.dab:DabDecoder",
    },
    {
        "deformable": configs.DeformableDecoderConfig,
        "conditional": configs.ConditionalDecoderConfig,
        "dab": configs.DabDecoderConfig,
    },
)
