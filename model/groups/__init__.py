"""The query groups by name: a new one is one file in this folder and one line in `GROUPS` (docs/add-a-part.md).

A group is queries that the decoder reads beside others, and the losses on what becomes of them. All groups share the
decoder, in one pass. `GROUPS.build(config, name=…, objective=…)`: the name of its losses, and what it learns by
(`model.criterion.Objective`: the `DetectorConfig`, C, the classification loss, the assigner). It is a module and has

- `queries(step) → QueryGroup`: of no query where a batch gives none, and without a position where the decoder makes it
  (`DetectorConfig.makes_position`). It draws random numbers by `model.share.rand`; the G of `step.batch.targets` is
  that of the whole batch, on every process that has a share of it;
- `losses(output, queries, step) → dict`: `output` holds the predictions of its queries alone, from every layer; scalars
  by name, normalised and unweighted, connected to the graph whatever the batch holds (`model.criterion.set_losses`),
  and so that those of the shares of a batch add up (`model.share.total`);
- `loss_weights() → dict`: the weight of each of these losses, by the same names.

Where `losses` must know numbers of the device, as matching does, it asks (`model.inquiry`): one copy answers all.

Its `Config` may have

- `num_proposals`, how many it takes by `step.proposals.take`, or `num_replicas`, how many times as many as the original
  queries; 0 by default (`DetectorConfig.num_proposals_of`);
- `num_averaged`, how many groups of its queries have losses that are averaged with those of the original queries; 0 by
  default, and its losses are added. All of them weigh the same then, and the original queries' own losses weigh the
  less: `DetectorConfig.main_weight`. What is logged stays the loss of one group.

`main`, the original queries, and `positives`, one group for each auxiliary head, follow from the detector's settings
and are never listed in `model.groups`. `main` alone runs at inference.
"""

from __future__ import annotations

from model.groups import configs
from model.parts import Parts

GROUPS = Parts(
    __name__,
    "query group",
    {
        "main": "model.groups.main:MainGroup",
        "positives": "model.groups.positives:PositivesGroup",
        "hybrid": "model.groups.hybrid:HybridGroup",
        "replicas": "model.groups.replicas:ReplicasGroup",
        "denoising": "model.groups.denoising:DenoisingGroup",
    },
    {
        "main": configs.MainConfig,
        "positives": configs.PositivesConfig,
        "hybrid": configs.HybridConfig,
        "replicas": configs.ReplicasConfig,
        "denoising": configs.DenoisingConfig,
    },
)
