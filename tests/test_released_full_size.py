"""A released layout at its full size, through both commands: what it takes, and that nothing is lost on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.revisit.configured import Asked, of_presets
from model.detector import Detector
from tests.support.folders import write_split
from tests.support.layouts import LAYOUTS
from tests.support.official_names import as_co_detr

ROOT = Path(__file__).parents[1]
LAYOUT = "co_dino_5scale_r50_1x_coco"
DETECTOR = ("--model", "dino_5scale", "--set", "model.heads=[faster_rcnn, atss]", "--set", "model.postprocess=soft_nms")
SIZE = ("--set", "data.eval_short_side=320", "--set", "data.max_long_side=533")  # of images: not what is looked at
GIB = 2**30


def official_file(path: Path) -> None:
    """Random numbers under the names and in the shapes of the released file."""
    torch.manual_seed(0)
    overrides = tuple(word for word in DETECTOR[2:] if word != "--set")
    state = Detector(of_presets(Asked("dino_5scale", None, overrides)).model, 80).state_dict()
    for name, value in state.items():
        if name.endswith("head_embedding"):
            value.fill_(0.5)  # officially one number
    official = as_co_detr(state, ("faster_rcnn", "atss"), 6)
    counts = {name: torch.tensor(1) for name in LAYOUTS[LAYOUT] if name.endswith("num_batches_tracked")}
    official |= counts
    assert {name: list(value.shape) for name, value in official.items()} == LAYOUTS[LAYOUT]
    torch.save({"meta": {"epoch": 12}, "state_dict": official}, path)


def photographs(folder: Path) -> None:
    """Two images, 80 classes."""
    noise = np.random.default_rng(0).integers(0, 255, (2, 60, 80, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    boxes = [[40.0, 50.0, 200.0, 150.0], [300.0, 200.0, 90.0, 120.0]]
    row = {"area": 30_000, "iscrowd": 0}
    tables = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 480, "width": 640} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7 * i, "bbox": box, **row} for i, box in enumerate(boxes, 1)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, 81)],
    }
    write_split(folder, "val", tables)
    for number, picture in enumerate(noise, 1):
        Image.fromarray(picture).save(folder / "val" / f"{number}.png")


def codetr(folder: Path, *arguments: str) -> tuple[str, float, float]:
    """What the command says, seconds, and GiB at the most."""
    started = time.monotonic()
    command = [sys.executable, "-m", "harness", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "CODETR_STORE": str(folder / "store"), "PATH": "/usr/bin:/bin"}
    code = (
        f"import resource, subprocess, sys; done = subprocess.run({command!r}); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, most = done.stdout.splitlines()
    return "\n".join(lines), time.monotonic() - started, int(most) * 1024 / GIB


@pytest.mark.slow
def test_a_released_file_at_full_size(tmp_path: Path) -> None:
    official_file(tmp_path / f"{LAYOUT}.pth")
    photographs(tmp_path / "data")
    out, seconds, memory = codetr(tmp_path, "import-weights", f"{LAYOUT}.pth", *DETECTOR)
    print(f"import: {seconds:.0f} s, {memory:.1f} GiB")
    assert "left out 53" in out and "65,2" in out and f"wrote {LAYOUT}.safetensors" in out
    assert (tmp_path / f"{LAYOUT}.safetensors").stat().st_size < 0.27e9 and memory < 2.5

    out, seconds, memory = codetr(tmp_path, "evaluate", f"{LAYOUT}.safetensors", "--data", "data", *SIZE)
    print(f"evaluation of two images: {seconds:.0f} s, {memory:.1f} GiB")
    assert "ours, faster_rcnn" in out and "ours: soft-NMS at 0.8, 300 detections, 533 x 320, fp32" in out
    assert memory < 4
    found = json.loads((tmp_path / f"evaluation/{LAYOUT}/detections.json").read_bytes())
    assert {row["image_id"] for row in found} <= {1, 2}
