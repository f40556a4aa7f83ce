"""Memory of a training step beside the paper's Table 7: `python -m benchmarks memory`.

R50, two images of 800 x 1333 (832 x 1344 padded), K = 0 to 6, without and with four encoder layers that are computed
again. What autograd keeps is counted at three smaller sizes and carried on by the line through them; parameters,
gradients and AdamW's moments are counted as they are. `--whole` counts it at full size too, where there is room for it.
The last column is the largest resident memory of the counting process, which ran forward alone, on the small images.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.step import R50
from harness.config import DataConfig, TrainConfig, TrialConfig
from harness.system.process import keep_freed_memory, wait_politely
from model.heads import HEADS

MIB = 2**20
IMAGES, CLASSES = 2, 80  # LVIS has 1,203 classes
SIZE = (832, 1344)
SHARES = (0.25, 0.35, 0.45)
CHECKPOINTED = 4  # encoder layers; official for Co-DINO R50
ROWS: dict[tuple[str, ...], int] = {  # heads, and the MB of the paper's Table 7
    (): 12808,
    ("atss",): 13947,
    ("atss", "faster_rcnn"): 14387,
    ("atss", "paa"): 14629,
    ("atss", "faster_rcnn", "paa"): 15263,
    ("atss", "faster_rcnn", "paa", "retinanet", "fcos", "gfl"): 19385,
}


@dataclass(frozen=True)
class Counted:
    """MiB of one detector."""

    points: tuple[tuple[int, int, float], ...]  # height, width, kept
    kept: float  # at SIZE, by the line
    off: float  # of the points from the line at most, as a share of the largest
    fixed: float  # parameters, gradients, optimiser state
    planned: float  # all of it, as `codetr plan --memory` tells it
    resident: float  # the process at its largest
    whole: float | None = None  # kept, counted at SIZE


def counted(heads: tuple[str, ...], layers: int, threads: int, whole: bool, classes: int = CLASSES) -> Counted:
    """Runs in a process of its own."""
    keep_freed_memory()
    import torch

    from harness.trial.build import peak_memory_mb
    from harness.trial.footprint import built, fixed_bytes, footprint, kept_bytes, sample_batch, small_sizes

    torch.set_num_threads(threads)
    config = trial(heads, layers)
    detector = built(config, classes)
    sizes = small_sizes(detector, *SIZE, SHARES)
    points = [(*size, kept_bytes(detector, sample_batch(IMAGES, *size, classes)) / MIB) for size in sizes]
    resident = peak_memory_mb(torch.device("cpu"))
    slope, start, off = line([(height * width, kept) for height, width, kept in points])
    full = kept_bytes(detector, sample_batch(IMAGES, *SIZE, classes)) / MIB if whole else None
    fixed, planned = sum(fixed_bytes(detector)) / MIB, footprint(config, classes, size=SIZE).total / MIB
    return Counted(tuple(points), slope * SIZE[0] * SIZE[1] + start, off, fixed, planned, resident, full)


def trial(heads: tuple[str, ...], layers: int) -> TrialConfig:
    """A trial of two images a step."""
    model = replace(R50, heads=tuple(HEADS[name].Config() for name in heads))
    data = DataConfig(path="coco", train_short_sides=(800,), eval_short_side=800, max_long_side=1333)
    return TrialConfig(model, data, TrainConfig(batch_size=IMAGES, checkpoint_encoder_layers=layers))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each detector as it is counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--whole", action="store_true", help="count at full size as well: 8 to 15 GB of memory")
    parser.add_argument("--k", type=int, nargs="*", help="only these numbers of heads")
    parser.add_argument("--classes", type=int, default=CLASSES, help=f"of the data set ({CLASSES}; LVIS: 1203)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch (1)")
    args = parser.parse_args(argv)
    wait_politely()
    print(f"MiB of a training step, {IMAGES} images of {SIZE[0]} x {SIZE[1]}, fp32; paper: Table 7")
    print(
        f"{'heads':<42}{'again':>6}{'kept':>8}{'fixed':>7}{'total':>8}{'plan':>8}{'paper':>8}{'off':>7}{'resident':>10}"
    )
    above = 0
    for heads, paper in ROWS.items():
        for layers in (0, CHECKPOINTED):
            if args.k and len(heads) not in args.k:
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(counted, (heads, layers, args.threads, args.whole, args.classes))
            total = found.kept + found.fixed
            above += total >= paper
            print(
                f"{f'K = {len(heads)} ' + ' '.join(heads):<42.42}{layers:>6}{found.kept:>8,.0f}{found.fixed:>7,.0f}"
                f"{total:>8,.0f}{found.planned:>8,.0f}{paper:>8,}{found.off:>7.2%}{found.resident:>10,.0f}"
            )
            told = ", ".join(f"{height} x {width}: {kept:,.0f}" for height, width, kept in found.points)
            print(f"    {told}" + ("" if found.whole is None else f"; at full size {found.whole:,.0f}"), flush=True)
    print(f"{above} rows are not below the paper's" if above else "each row is below the paper's")
    return int(above > 0)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Slope and start of the line through (x, y), and how far at most a point lies off it, as a share of its y."""
    x, y = np.array(points, dtype=np.float64).T
    slope, start = np.polyfit(x, y, 1)
    return float(slope), float(start), float(np.abs(slope * x + start - y).max() / np.abs(y).max())
