"""Two ranks on simulated devices beside one process on the CPU: `python -m tests.support.simulated_ranks`.

Prints a line of JSON for each case: the largest relative difference of a loss and the largest of a weight, how often a
rank waits in all steps, and how often the ranks add up what lies on the device, which comes on top.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

from harness.system.launch import run_ranks
from harness.trial.ranks import join
from tests.support import simulated_device
from tests.support.ranked import CASES, CPU, Report, detector_of, train, train_detector
from tests.support.simulated_steps import difference, parts_side_by_side, start

SHOWN = ("no head", "official", "one rank without objects")


def measured(case: str) -> dict[str, Any]:
    """See the top of this file."""
    with parts_side_by_side():
        alone = train(case)
    together = run_ranks(2, train_simulated, (case,), report=lambda event: None, should_stop=lambda: False)
    losses = zip(alone["losses"], together["losses"], strict=True)
    return {
        "losses": max(difference(one[name], two[name]) for one, two in losses for name in one),
        "weights": max(float(np.abs(own - together["weights"][name]).max()) for name, own in alone["weights"].items()),
        "steps": together["steps"],
        "waits": together["waits"],
        "reductions": together["reductions"],
    }


def train_simulated(rank: int, size: int, meeting_file: str, case: str, *, report: Report, **_: Any) -> dict[str, Any]:
    """What one rank trains, with what it has counted in all steps."""
    start()
    ranks = join(rank, size, meeting_file, CPU)
    _, batches, parts, steps, _ = CASES[case]
    detector = simulated_device.move_module(detector_of(case))
    device = torch.device(simulated_device.NAME, 0)
    with simulated_device.counted() as (waits, _):
        found = train_detector(detector, batches, steps=steps, parts=parts, ranks=ranks, device=device)
    own = {where: count for where, count in waits.items() if "launch.py" not in where}  # that is the result's way
    return {**found, "steps": steps, "waits": own, "reductions": dict(simulated_device.REDUCTIONS)}


if __name__ == "__main__":
    from tests.support.simulated_ranks import measured  # a rank cannot import what belongs to `__main__`

    for case in sys.argv[1:] or SHOWN:
        print(json.dumps({"case": case, **measured(case)}), flush=True)
