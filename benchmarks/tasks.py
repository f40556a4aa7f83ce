"""How often do the intervals over several data sets hold (harness/report/tasks.py)?

    python -m benchmarks tasks [--tables 1000]

A row gains 1.0 on each of T data sets in the mean, S seeds each: its baseline's results are normal with a deviation of
1, its own are that gain and a share of the baseline's deviation beside noise: 0.3 beside noise of the same size, and
0.9 beside what makes the deviation 1 again, as where a row changes little of a training. Printed is the share of 95 %
bootstrap intervals that hold the true interquartile mean of the gains, and the true probability of improvement.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from scipy.special import ndtr

from harness.report.tasks import over_tasks

GAIN = 1.0
KINDS = {"0.3": (0.3, 1.0), "0.9": (0.9, float(np.sqrt(1 - 0.9**2)))}  # share of the baseline's deviation, noise
SHAPES = ((3, 5), (3, 8), (5, 5), (3, 12))  # data sets, seeds


def main(argv: list[str]) -> int:
    """Simulate and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tasks", description=__doc__)
    parser.add_argument("--tables", type=int, default=1000, metavar="N", help="simulated tables a line")
    args = parser.parse_args(argv)
    print("| shared | data sets | seeds | interquartile mean | probability of improvement |\n|---|---|---|---|---|")
    for (words, (shared, noise)), shape in itertools.product(KINDS.items(), SHAPES):
        better = ndtr(GAIN / np.sqrt(1 + shared**2 + noise**2))  # of two trainings with seeds of their own
        rng, held = np.random.default_rng(1), np.zeros(2)
        for _ in range(args.tables):
            base = rng.normal(size=shape)
            own = GAIN + shared * base + noise * rng.normal(size=shape)
            found = over_tasks([(dict(enumerate(a)), dict(enumerate(b))) for a, b in zip(own, base, strict=True)])
            held += [found.gain.low <= GAIN <= found.gain.high, found.better.low <= better <= found.better.high]
        shares = " | ".join(f"{100 * share:.1f} %" for share in held / args.tables)
        print(f"| {words} | {shape[0]} | {shape[1]} | {shares} |", flush=True)
    return 0
