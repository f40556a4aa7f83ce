"""The kinds of proposals by name: a new one is one file here and one line in `PROPOSALS` (docs/add-a-part.md).

Proposals are what the decoder's queries start from. They own the encoder's head, how it ranks its tokens, and its loss.
`PROPOSALS.build(config, num_proposals=…, objective=…)`: how many all query groups take together in training, and what
proposals learn by (`model.criterion.Objective`). It is a module and has

- `forward(memory, num_proposals) → Proposals`: the best `num_proposals`, with the `source` of each, and without
  positions where the decoder makes them (`DetectorConfig.makes_position`). `take` hands them out, to the main group
  first, then to the others in the configuration's order. At inference the main group's `num_queries` alone are asked
  for, and these must be the first ones of training. Among each `num_queries` of them no place comes twice; other
  queries, which never see these, may start from the same;
- `losses(step) → dict`: of what the encoder predicts (`step.proposals`), scalars by name, normalised and unweighted;
- `loss_weights() → dict`: the weight of each of these losses, by the same names.

Raises `ValueError` where there are fewer tokens than are asked for.

Class attributes of its `Config` say what it goes with: `two_stage` and `mixed_selection`, what these settings must be;
`gives_position`, False where queries have none and the decoder must make them; `without_refinement`, True if it goes
with `two_stage` without `box_refinement`; `whole_groups`, True if every query group must take a multiple of
`num_queries`. Without them it goes with all that the detector allows. A method `num_tokens(num_queries, num_proposals)`
says how many tokens the encoder must have for so many proposals: `codetr plan` tells where images have fewer.
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
        "per_group": "model.proposals.per_group:PerGroupProposals",
    },
    {
        "learned": configs.LearnedConfig,
        "anchors": configs.AnchorsConfig,
        "binary": configs.BinaryConfig,
        "classes": configs.ClassesConfig,
        "per_group": configs.PerGroupConfig,
    },
)
