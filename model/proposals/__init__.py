"""The kinds of proposals by name: a new one is one file here and one line in `PROPOSALS` (docs/add-a-part.md).

Proposals are what the decoder's queries start from. They own the encoder's head, how it ranks its tokens, and its loss.
`PROPOSALS.build(config, model=…, num_classes=…, num_ranks=…, classification=…, assign=…)`: the `DetectorConfig`, how
many ranks all query groups take together in training, and the parts of these names. It is a module and has

- `forward(memory, num_ranks) → Proposals`: the best `num_ranks`, which `take` hands out, with the `source` of each;
  fewer than in training at inference, where the first ones must be the same;
- `losses(step) → dict`: of what the encoder predicts (`step.proposals`), scalars by name, normalised and unweighted;
- `loss_weights() → dict`: the weight of each of these losses, by the same names.

Raises `ValueError` where there are fewer tokens than ranks.
"""

from __future__ import annotations

from model.parts import Parts
from model.proposals import configs

PROPOSALS = Parts(
    __name__,
    "kind of proposals",
    {"learned": "model.proposals.learned:LearnedQueries", "binary": "model.proposals.binary:BinaryProposals"},
    {"learned": configs.LearnedConfig, "binary": configs.BinaryConfig},
)
