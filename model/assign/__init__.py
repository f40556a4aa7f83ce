"""The assigners of the decoder by name: a new one is one file here and one line in `ASSIGNERS` (docs/add-a-part.md).

An assigner says which ground truth each of the decoder's queries must predict. `ASSIGNERS.build(config, weights=…)`
with the detector's `LossWeights` gives a function

    (logits, boxes_cxcywh, targets, valid_hw, excluded=None) → gt_index

of [N, B, Q, C] logits and [N, B, Q, 4] normalised boxes of N layers, the batch's `Targets`, its valid sizes [B, 2] in
pixels, and perhaps [B, Q] bool, True for queries that may have no object. It gives [N, B, Q] int64, a 0-based ground
truth or BACKGROUND; padding rows of `targets` are nobody's, excluded queries as good as absent. Several queries may
share a ground truth. Each layer of each image is assigned on its own; no state is kept, nothing drawn, no gradient
needed. What runs on the host asks for its numbers (`model.inquiry`), and `Targets.host_counts` says how many objects
there are without a copy. Images without objects are fine, and so are more objects than queries, or no query at all.

How auxiliary heads assign anchors, points and proposals is `model/anchor_assignment.py`.
"""

from __future__ import annotations

from model.assign import configs
from model.parts import Parts

ASSIGNERS = Parts(
    __name__, "assigner", {"hungarian": "model.assign.hungarian:Hungarian"}, {"hungarian": configs.HungarianConfig}
)
