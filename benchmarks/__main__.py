"""Run the suites and print one table: `python -m benchmarks`, or some of them: `python -m benchmarks ops --json`.

Others print tables of their own (their modules say more): `losses COMMIT`, `speed COMMIT` and `shares COMMIT` compare
losses, the time of training steps, or what a training waits for beside them, with another commit; `memory` counts what
a step keeps; `loading`, `evaluation` and `mistakes` take time at COCO's size, `lvis_size` at LVIS's, `coco_run`
trains there; `analyses` takes the time of a trial's analyses; `machine_code` reads what the CUDA kernels take of a GPU;
`moderated` and `tasks` count how often intervals with shared variances, and those over several data sets, hold;
`editions` sets the claims of two mini-papers side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from harness.system.process import keep_freed_memory, wait_politely

if TYPE_CHECKING:
    from benchmarks.table import Row

SUITES = ("ops", "assignment", "step", "detectors", "heads", "schedule")  # modules of this package that have `rows()`
# With tables of their own:
APART = (
    *("losses", "speed", "shares", "memory", "evaluation", "mistakes", "loading", "lvis_size", "coco_run"),
    *("analyses", "machine_code", "moderated", "tasks", "editions"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] and argv[0] in APART:
        sys.exit(import_module(f"benchmarks.{argv[0]}").main(argv[1:]))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", default=SUITES, help=f"which (default: {' '.join(SUITES)})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table, the table on stderr")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    args = parser.parse_args(argv)
    wait_politely()  # this and the next line as for a trial
    keep_freed_memory()
    import torch

    from benchmarks.table import as_json, show
    from model.ops import implementation

    if args.threads:
        torch.set_num_threads(args.threads)

    def rows() -> Iterator[Row]:
        for suite in args.suites:
            yield from import_module(f"benchmarks.{suite}").rows()

    heading = f"operators: {implementation()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    if not args.json:
        show(rows(), heading)
        return
    table, sys.stdout = sys.stdout, sys.stderr
    seen = show(rows(), heading)
    sys.stdout = table
    print(as_json(seen, heading))


if __name__ == "__main__":
    main()
