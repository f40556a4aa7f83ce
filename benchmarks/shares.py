"""What a training waits for beside its steps, here and at another commit: `python -m benchmarks shares COMMIT`.

Milliseconds of this process for a batch (decoded images at hand, as for digit scenes; and JPEG files that are read and
resized, as for ResNet-50), and for a checkpoint of ResNet-50 until the training goes on. One thread; medians.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROUNDS, BATCHES, CHECKPOINTS, IMAGES = 3, 40, 3, 48


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both sides by turns and print a line for each case."""
    from benchmarks.losses import ROOT, worktree

    (commit,) = argv if argv else ["2d0a64a"]
    found: dict[str, dict[str, list[float]]] = {"here": {}, "there": {}}
    with TemporaryDirectory(prefix="codetr-shares-") as folder, worktree(commit) as there:
        write_images(Path(folder))
        for _ in range(ROUNDS):
            for side, checkout in (("there", there), ("here", ROOT)):
                environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, "-P", __file__, "--child", folder]
                done = subprocess.run(
                    command, env=environment, cwd=checkout, stdout=subprocess.PIPE, encoding="utf-8", check=True
                )
                for name, value in json.loads(done.stdout.splitlines()[-1]).items():
                    found[side].setdefault(name, []).append(value)
    for name, own in found["here"].items():
        here, before = median(own), median(found["there"][name])
        print(f"{name:<44}{here:8.1f} ms   {before:8.1f} at {commit}   {here / before:.2f}")
    return 0


def write_images(root: Path) -> None:
    """A data set of soft noise, JPEG, with seven boxes on each image."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for folder in (root / "train", root / "annotations"):
        folder.mkdir()
    for number in range(1, IMAGES + 1):
        noise = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        noise.resize((640, 480), Image.Resampling.BICUBIC).save(root / "train" / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640})
        for place in range(7):
            box = {"bbox": [10 + 40 * place, 20 + 30 * place, 80, 90], "area": 7200, "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": 1 + place % 3, **box})
    content = {"images": images, "annotations": boxes, "categories": [{"id": n, "name": str(n)} for n in (1, 2, 3)]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content), encoding="utf-8")


def child(folder: str) -> dict[str, float]:
    """What the harness of this process takes, whichever commit it is of."""
    import torch

    torch.set_num_threads(1)
    _module("harness.system.process", "harness.process").keep_freed_memory()
    from harness.config import DataConfig
    from harness.data.coco import CocoDataset

    data = CocoDataset(Path(folder), "train", progress=lambda line: None)
    large = DataConfig(train_short_sides=(480, 640, 800), eval_short_side=800, max_long_side=1333)
    return {
        "a batch of 8, 160 pixels, decoded before": _batch(data, DataConfig(), 8, decoded=True),
        "a batch of 2, 480 to 800 pixels, from JPEG": _batch(data, large, 2, decoded=False),
        "a checkpoint of ResNet-50, until it goes on": _checkpoint(),
    }


def _module(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(f"none of {', '.join(names)}")


def _batch(data: Any, config: Any, size: int, *, decoded: bool) -> float:
    room = _module("harness.data.loader")
    room.CACHE_BYTES = 10**9 if decoded else 0
    loader = room.Loader(data, config, batch_size=size, training=True, seed=0, size_divisor=32)
    if decoded:
        list(loader.epoch(0))
    times: list[float] = []
    for epoch in range(1, BATCHES):
        batches = loader.epoch(epoch)
        while len(times) < BATCHES:
            started = time.perf_counter()
            if (batch := next(batches, None)) is None:
                break
            batch.to("cpu")
            times.append(1e3 * (time.perf_counter() - started))
    return median(times)


def _checkpoint() -> float:
    import torch

    from harness.config import TrainConfig
    from model.config import DetectorConfig
    from model.detector import Detector

    room, train = _module("harness.trial.checkpoint", "harness.train"), _module("harness.trial.train", "harness.train")
    detector = Detector(DetectorConfig(), 80)
    optimizer = train.build_optimizer(detector, TrainConfig())
    for parameter in detector.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    times = []
    for _ in range(CHECKPOINTS):
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            if hasattr(room, "snapshot"):  # the rest is written by a thread
                taken = room.snapshot(detector, optimizer, room.Progress(step=1))
                times.append(1e3 * (time.perf_counter() - started))
                room.write_checkpoint(Path(folder), taken)
            else:
                room.save_checkpoint(Path(folder), detector, optimizer, room.Progress(step=1))
                times.append(1e3 * (time.perf_counter() - started))
    return median(times)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2])))
    else:
        sys.exit(main(sys.argv[1:]))
