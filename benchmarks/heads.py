"""What each auxiliary head adds to a training step of the digits preset: the cost behind the paper's Table 7.

Detectors are those of `ablations/table08_head_kinds.yaml` and the paper's six heads together, batch 4; the reference
is the step without heads, so a ratio below 1 is what a head costs, and the note says it the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from benchmarks.table import Row, compare
from harness.config import TrialConfig
from harness.data import open_splits
from harness.data.loader import Loader
from harness.spec.grid import open_grid
from harness.trial.train import build_optimizer, train_step
from model.detector import Detector
from model.heads import needs_masks

TABLE = Path(__file__).parents[1] / "ablations" / "table08_head_kinds.yaml"
SIX = "model.heads=[atss, faster_rcnn, paa, retinanet, fcos, gfl]"  # paper Table 7, last row


def step_of(config: TrialConfig) -> Callable[[], object]:
    """Training steps on the first three batches of the digit scenes."""
    masks = needs_masks(config.model.heads)
    data = open_splits(config.data, with_masks=masks)[0]
    torch.manual_seed(0)
    detector = Detector(config.model, data.num_classes).train()
    optimizer = build_optimizer(detector, config.train)
    size = config.train.batch_size
    loader = Loader(data, config.data, batch_size=size, training=True, seed=0, size_divisor=detector.size_divisor)
    batches = [batch.to("cpu") for batch in islice(loader.epoch(0), 3)]

    def steps() -> None:
        for batch in batches:
            train_step(detector, [batch], optimizer, config.train, step=0, total_steps=99, steps_per_epoch=9)

    return steps


def rows() -> Iterator[Row]:
    """The suite."""
    trials = {trial.row: trial.config for trial in open_grid(TABLE).trials}
    trials["all six of Table 7"] = open_grid(TABLE, overrides=[SIX]).trials[0].config
    plain = step_of(trials.pop("no head"))
    for name, config in trials.items():
        row = compare(f"3 digits steps, {name}", step_of(config), plain, reference_name="no head", repeats=5)
        yield replace(row, note=f"costs {1 / row.ratio:.2f} times as much")
