"""Assignment by the largest IoU at the size that breaks it: RetinaNet, 16 images, 200,700 anchors, 93 objects in each.

Three ways, each in a process of its own, with the peak of what it holds beside its inputs: the kernel, torch as it runs
where there is none (a few images at a time), and torch with all pairs of the batch at once, as it was up to commit
bed89f4. They must give the same bits.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.table import Row, milliseconds
from harness.system.process import keep_freed_memory
from model import overlaps
from model.anchor_assignment import assign_max_iou
from model.anchors import anchor_grid
from model.heads.retinanet import ANCHOR_RATIOS, ANCHOR_SIDES
from model.types import Targets

IMAGES, OBJECTS, HEIGHT, WIDTH = 16, 93, 800, 1333
SIZES, STRIDES = ((100, 167), (50, 84), (25, 42), (13, 21), (7, 11)), (8, 16, 32, 64, 128)
WAYS = {"kernel": 1 << 22, "torch, image by image": 1 << 22, "torch, all at once": 1 << 62}  # pairs at once


def assignment(images: int = IMAGES, objects: int = OBJECTS) -> Callable[[], torch.Tensor]:
    """Assigns random boxes of 4 to 400 pixels; gives the result."""
    make = torch.Generator().manual_seed(0)
    centre = torch.rand(images, objects, 2, generator=make) * torch.tensor([WIDTH, HEIGHT])
    half = torch.rand(images, objects, 2, generator=make).square() * 200 + 2
    targets = Targets(torch.cat([centre - half, centre + half], -1), torch.zeros(images, objects, dtype=torch.int64))
    anchors = anchor_grid(SIZES, STRIDES, ANCHOR_SIDES, ANCHOR_RATIOS)
    thresholds = {"positive_iou": 0.5, "negative_iou": 0.4, "min_best_iou": 0.0}
    return lambda: assign_max_iou(anchors, targets, **thresholds)[0]


def measured(way: str, threads: int, images: int = IMAGES, objects: int = OBJECTS) -> tuple[float, float, str]:
    """Milliseconds, MiB held at most, and a digest of the result. Runs in a process of its own."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    overlaps.PAIRS_AT_ONCE = WAYS[way]
    if way != "kernel":
        overlaps._kernel_takes = lambda *given: False  # type: ignore[assignment]
    assign = assignment(images, objects)
    assignment(1, 1)()  # builds what has to be built
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _resident("VmRSS")
    result: list[torch.Tensor] = []
    passed = milliseconds(lambda: result.append(assign()))
    return passed, _resident("VmHWM") - before, hashlib.sha256(result[0].numpy().tobytes()).hexdigest()


def _resident(name: str) -> float:
    """MiB of this process by a name of /proc/self/status."""
    found = re.search(rf"^{name}:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def rows() -> Iterator[Row]:
    """The suite."""
    found = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[way] = pool.apply(measured, (way, torch.get_num_threads()))
    reference, held, expected = found.pop("torch, all at once")
    for way, (passed, own, digest) in found.items():
        same = "same bits" if digest == expected else "OTHER RESULT"
        note = f"holds {own:,.0f} MiB, reference {held:,.0f} MiB; {same}"
        yield Row(
            f"RetinaNet's assignment, 16 images, {way}", passed, "all at once", reference, reference / passed, note
        )
