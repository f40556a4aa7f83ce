"""Training steps here and at another commit in turns, one thread: `python -m benchmarks speed COMMIT`.

Machines differ from day to day and other work comes and goes, so only the ratio of neighbouring steps tells anything.
The median ratio is given for the wall clock and for the processor's time, with the middle half of the ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from benchmarks.losses import ROOT, first_line, worktree

STEPS = Path(__file__).with_name("timed_steps.py")
CASES = {  # of `timed_steps`, and the number of steps on each side
    "digits preset, batch 8, K = 0": 40,
    "digits preset, batch 8, K = 1": 40,
    "R50, 480 x 640, batch 1, K = 0": 12,
    "R50, 480 x 640, batch 1, K = 1": 12,
}


class Side:
    """The timed steps of one checkout, in a process of its own."""

    def __init__(self, checkout: Path):
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-P", str(STEPS)]  # -P: not what lies beside the file
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment, cwd=checkout, stdin=pipe, stdout=pipe, encoding="utf-8"
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()

    def step(self, case: str) -> tuple[float, float]:
        """Wall and processor seconds of one step."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(case, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:  # what it said stands above
            raise subprocess.CalledProcessError(self.process.wait(), self.process.args, stderr="it ended too early")
        wall, processor = map(float, answer.split())
        return wall, processor


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in turns and print a line for each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("commit", metavar="COMMIT", help="what to compare with, such as HEAD~1")
    args = parser.parse_args(argv)
    try:
        measure(args.commit)
    except subprocess.CalledProcessError as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


def measure(commit: str) -> None:
    """Print a line for each case."""
    print(f"a step here / at {commit}, one thread\n{'':<34}{'seconds':>9}{'wall':>9}{'processor':>11}  middle half")
    with ExitStack() as stack:
        there = stack.enter_context(Side(stack.enter_context(worktree(commit))))
        here = stack.enter_context(Side(ROOT))
        for case, repeats in CASES.items():
            pairs = [(here.step(case), there.step(case)) for _ in range(repeats)]
            wall, processor = ([own[i] / other[i] for own, other in pairs] for i in (0, 1))
            low, _, high = quantiles(processor, n=4)
            seconds = median(own[0] for own, _ in pairs)
            print(
                f"{case:<34}{seconds:>9.3f}{median(wall):>9.3f}{median(processor):>11.3f}  {low:.3f} to {high:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
