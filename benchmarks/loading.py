"""Opening and loading at COCO's size: `python -m benchmarks loading`, 118,000 images and a million boxes.

Each line is a process of its own: opening for the first time on this machine (everything is read and checked), opening
again, and two worker processes. Memory is the peak of the process, and of a worker what it shares with nobody.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NUM_IMAGES, NUM_BOXES, NUM_WORKERS, BATCHES = 118_000, 1_000_000, 2, 20


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set, and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks loading", description=__doc__)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--boxes", type=int, default=NUM_BOXES)
    parser.add_argument("--polygons", action="store_true", help="with segmentations, opened with masks")
    parser.add_argument("--folder", type=Path, help="where the data set is kept, and taken from if it is there")
    parser.add_argument("--again", action="store_true", help="it was opened before: leave out the first time")
    parser.add_argument("--child", choices=("open", "workers"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps((_open if args.child == "open" else _workers)(args.folder, args.polygons)))
        return 0
    with TemporaryDirectory(prefix="codetr-loading-") as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "annotations").exists():
            from benchmarks.coco_size import write_annotations

            write_annotations(folder, "train", args.images, args.boxes, polygons=args.polygons)
        cases = [("first time", "open"), ("again", "open"), ("workers", "workers")][args.again :]
        for name, child in cases:
            command = [sys.executable, "-m", "benchmarks.loading", "--folder", str(folder), "--child", child]
            done = subprocess.run(
                [*command, *(["--polygons"] if args.polygons else [])],
                stdout=subprocess.PIPE,
                encoding="utf-8",
                check=True,
            )
            print(f"{name:<12}{done.stdout.splitlines()[-1]}", flush=True)
    return 0


def _open(folder: Path, with_masks: bool) -> dict[str, Any]:
    import torch

    from harness.data.coco import CocoDataset
    from harness.trial.build import peak_memory_mb

    before = peak_memory_mb(torch.device("cpu"))
    started, used = time.perf_counter(), time.process_time()
    data = CocoDataset(folder, "train", progress=lambda line: None, with_masks=with_masks)
    found = {"seconds": time.perf_counter() - started, "processor seconds": time.process_time() - used}
    found |= {"peak MB": peak_memory_mb(torch.device("cpu")), "before it MB": before}
    return {name: round(value, 2) for name, value in found.items()} | {"boxes": data.num_boxes}


def _workers(folder: Path, with_masks: bool) -> dict[str, Any]:
    import os

    from harness.config import DataConfig
    from harness.data.coco import CocoDataset
    from harness.data.loader import Loader

    data = CocoDataset(folder, "train", progress=lambda line: None, with_masks=with_masks)
    config = DataConfig(train_short_sides=(64,), eval_short_side=64, max_long_side=128)
    loader = Loader(data, config, batch_size=4, training=True, seed=0, size_divisor=32, num_workers=NUM_WORKERS)
    batches = loader.epoch(0)
    for _ in range(BATCHES):
        next(batches)
    own = str(os.getpid())
    children = Path(f"/proc/{own}/task/{own}/children").read_text(encoding="utf-8").split()
    return {"private MB of a worker": sorted(round(_private(pid)) for pid in children)}


def _private(pid: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1024


if __name__ == "__main__":
    main()
