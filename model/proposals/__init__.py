"""The kinds of proposals by name: a new one is one file here and one line in `PROPOSALS` (docs/add-a-part.md).

Proposals are what the decoder's queries start from. They own the encoder's head, how it ranks its tokens, and its loss.
`PROPOSALS.build(config, num_proposals=…, objective=…)`: how many all query groups take together in training, and what
proposals learn by (`model.criterion.Objective`). It is a module and has

- `forward(memory, num_proposals) → Proposals`: the best `num_proposals`, with the `source` of each, and without
  positions where the decoder makes them (`DetectorConfig.makes_position`). `take` hands them out, to the main group
  first, then to the others in the configuration's order. At inference there are fewer than in training, and these must
  be the same ones;
- `losses(step) → dict`: of what the encoder predicts (`step.proposals`), scalars by name, normalised and unweighted;
- `loss_weights() → dict`: the weight of each of these losses, by the same names.

Raises `ValueError` where there are fewer tokens than are asked for. Two class attributes of its `Config` say what it
goes with: `two_stage`, what that setting must be, and `gives_position`, False where queries have none and the decoder
must make them. Without them it goes with all.
"""

from __future__ import annotations

from model.parts import Parts
from model.proposals import configs

PROPOSALS = Parts(
    __name__,
    "kind of proposals",
    {
        "learned": "model.proposals.learned:LearnedQueries",
        "anchors": "model.proposals.anchors:AnchorQueries",
        "binary": "model.proposals.binary:BinaryProposals",
        "classes": "model.proposals.classes:ClassProposals",
    },
    {
        "learned": configs.LearnedConfig,
        "anchors": configs.AnchorsConfig,
        "binary": configs.BinaryConfig,
        "classes": configs.ClassesConfig,
    },
)
