"""What the analyses of a trial cost beside its training: `python -m benchmarks analyses`.

Two heads (ATSS, Faster R-CNN) on the digits preset: processor seconds of each analysis, as a trial is asked for it, and
their sum as a share of an epoch, whose steps are measured by turns with them. The detector has learnt for a few steps
only, which costs what a trained one does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import get_args

import torch

from harness.analyse import analyse
from harness.config import AnalyseConfig, Analysis
from harness.data import open_splits
from harness.data.loader import Loader
from harness.spec.grid import open_grid
from harness.trial.train import build_optimizer, train_step
from model.detector import Detector

TABLE = Path(__file__).parents[1] / "ablations" / "head_pairs.yaml"
HEADS = "K = 2: ATSS + Faster R-CNN"
ROUNDS, STEPS = 3, 20


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each analysis, and the sum."""
    torch.set_num_threads(1)
    config = next(trial.config for trial in open_grid(TABLE).trials if trial.row == HEADS)
    train, val = open_splits(config.data)
    torch.manual_seed(0)
    detector = Detector(config.model, train.num_classes).train()
    optimizer = build_optimizer(detector, config.train)
    size = config.train.batch_size
    loader = Loader(train, config.data, batch_size=size, training=True, seed=0, size_divisor=detector.size_divisor)
    batches = [batch.to("cpu") for batch in islice(loader.epoch(0), STEPS)]

    def steps() -> None:
        for batch in batches:
            train_step(detector, [batch], optimizer, config.train, step=0, total_steps=99, steps_per_epoch=9)

    def asked_for(*metrics: Analysis) -> None:
        analyse(detector, val, config.data, AnalyseConfig(metrics=metrics), "cpu", batch_size=2 * size)

    kinds: list[Analysis] = list(get_args(Analysis))
    seconds: dict[str, list[float]] = {"steps": [], **{kind: [] for kind in kinds}}
    for _ in range(ROUNDS):
        seconds["steps"].append(processor_seconds(steps))
        for kind in kinds:
            seconds[kind].append(processor_seconds(partial(asked_for, kind)))
    all_of_them = processor_seconds(partial(asked_for, *kinds))
    epoch = median(seconds.pop("steps")) / STEPS * len(loader)
    print(f"an epoch of {len(loader)} steps, {HEADS}: {epoch:.1f} processor seconds of one thread")
    for name, own in seconds.items():
        print(f"  {name:<20} {median(own):6.2f} s {100 * median(own) / epoch:6.1f} % of an epoch")
    print(f"  {'all in one analysis':<20} {all_of_them:6.2f} s {100 * all_of_them / epoch:6.1f} %")
    return 0


def processor_seconds(work: Callable[[], object]) -> float:
    """Of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start
