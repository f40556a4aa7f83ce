"""What a GPU does: `python -m benchmarks.gpu [--out FOLDER]`, a few minutes on one.

Kernels against the reference operators on the same device, and against float64 on the CPU; a training step of small
detectors with every head against the same step on the CPU; a training that is resumed, and two ranks on the device;
training steps of ResNet-50 at 800 x 1333 with their peak memory and how often the host waited for the device.
Everything here runs without Ray, MLflow and pydantic.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu_trials import trials, with_heads
from benchmarks.step import DIGITS, R50, TRAIN, random_batch
from harness.system.precision import set_precision
from harness.trial.train import build_optimizer, train_step
from model import ops, ops_cuda, ops_reference
from model.config import DetectorConfig
from model.detector import Detector
from model.heads import HEADS

SIZES = ((100, 167), (50, 84), (25, 42), (13, 21))  # the encoder's levels at 800 x 1333
SETS: dict[str, tuple[str, ...]] = {
    "K = 0": (),
    "K = 1: ATSS": ("atss",),
    "K = 2: ATSS + Faster R-CNN": ("atss", "faster_rcnn"),
}
RAND = torch.rand
DETECTORS = ("deformable", "dino_4scale", "dino_5scale", "dab_c5", "conditional_c5", "h_deformable", "group_deformable")
PRECISIONS = ("fp32", "tf32", "bf16")


def main() -> int:
    """Print everything as it comes, and leave it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder for gpu.json and profile.txt")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each detector (20)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch sees no GPU here; run it where it does", file=sys.stderr)
        return 2
    os.environ.setdefault("CODETR_OPS", "compiled")  # no silent reference
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(f"{results['device']}, torch {torch.__version__}, operators: {ops_cuda.implementation()}", flush=True)
    parts = {"kernels": kernels, "equality": equality, "trials": trials, "steps": partial(steps, args.steps)}
    for name, part in parts.items():
        results[name] = []
        for row in part():
            results[name].append(row)
            print(f"{name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)
            if args.out:
                (args.out / "gpu.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    if args.out:
        (args.out / "profile.txt").write_text(profile(), encoding="utf-8")
    return 0


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def timed(function: Callable[[], object], repeats: int = 20) -> float:
    """Median milliseconds by events of the device."""
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


# ---- kernels ------------------------------------------------------------------------------------------------------


def attention_tensors(queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations and weights of R50 at 800 x 1333, one image, in float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(h * w for h, w in SIZES)
    value = torch.randn(1, tokens, 8, 32, generator=generator)
    locations = torch.rand(1, queries, 8, len(SIZES), 4, 2, generator=generator) * 1.1 - 0.05
    weights = torch.rand(1, queries, 8, len(SIZES) * 4, generator=generator).softmax(-1)
    return value, locations, weights.view(1, queries, 8, len(SIZES), 4)


def kernels() -> Iterator[dict[str, Any]]:
    """Each operator's time forward and with its gradient, beside the reference of the same device; its error."""
    for name, queries in (("decoder, 900 queries", 900), ("encoder, all tokens", sum(h * w for h, w in SIZES))):
        for dtype in (torch.float32, torch.bfloat16):
            yield {"name": f"ms_deform_attn, {name}, {dtype}", **_attention(queries, dtype)}
    feature = torch.randn(1, 256, 200, 334, device="cuda").requires_grad_()
    corners = torch.rand(512, 2, device="cuda") * torch.tensor([1000.0, 600.0], device="cuda")
    sides = torch.rand(512, 2, device="cuda") * 200 + 16
    rois = torch.cat([torch.zeros(512, 1, device="cuda"), corners, corners + sides], 1)
    for own, operator in (("ours", ops.roi_align), ("reference", ops_reference.roi_align)):
        pooled = partial(operator, feature, rois, 7, 0.25)
        forward, both = timed(pooled), timed(partial(_with_gradient, pooled))
        yield {"name": f"roi_align, 512 regions, {own}", "forward_ms": forward, "both_ms": both}
    boxes, scores = rois[:, 1:].repeat(4, 1) + torch.rand(2048, 4, device="cuda"), torch.rand(2048, device="cuda")
    labels = torch.zeros(2048, dtype=torch.int64, device="cuda")
    yield {"name": "nms, 2048 boxes", "forward_ms": timed(lambda: ops.nms(boxes, scores, labels, 0.7))}


def _attention(queries: int, dtype: torch.dtype) -> dict[str, float]:
    value, locations, weights = attention_tensors(queries)
    leaves = [value.cuda().to(dtype), locations.cuda(), weights.cuda()]
    for leaf in leaves:
        leaf.requires_grad_()
    found: dict[str, float] = {}
    exact = [value.to(dtype).double(), locations.double(), weights.double()]
    for leaf in exact:
        leaf.requires_grad_()
    expected = ops_reference.ms_deform_attn(exact[0], SIZES, exact[1], exact[2])
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(expected, exact, direction)
    output = ops.ms_deform_attn(leaves[0], SIZES, leaves[1], leaves[2])
    own = torch.autograd.grad(output, leaves, direction.to(output))
    for name, one, other in zip(
        ("output", "value", "locations", "weights"), (output, *own), (expected, *gradients), strict=True
    ):
        error = (one.double().cpu() - other).abs() / other.abs().max()
        found[f"error_{name}"] = error.max().item()
        # Where a sample lies on the edge of a cell, its location's gradient jumps: how many differ visibly
        found[f"differ_{name}"] = int((error > 1e-2).sum())
    for name, operator in (("ours", ops.ms_deform_attn), ("reference", ops_reference.ms_deform_attn)):
        inputs = leaves if name == "ours" else [leaf.detach().float().requires_grad_() for leaf in leaves]
        attended = partial(operator, inputs[0], SIZES, inputs[1], inputs[2])
        found[f"{name}_forward_ms"] = timed(attended)
        found[f"{name}_both_ms"] = timed(partial(_with_gradient, attended))
    return found


def _with_gradient(function: Callable[[], Tensor]) -> None:
    function().sum().backward()


# ---- whole detectors ----------------------------------------------------------------------------------------------


def equality() -> Iterator[dict[str, Any]]:
    """Losses and gradients of one step on the GPU and on the CPU, same weights, fp32 without TF32."""
    set_precision("fp32")
    for heads in ((), *((head,) for head in HEADS if head != "mask_rcnn")):
        yield {"name": f"one step, heads {list(heads)}", **_difference(with_heads(DIGITS, heads))}
    for name, config in detectors("digits"):
        yield {"name": f"one step, {name}, heads ['atss']", **_difference(with_heads(config, ("atss",)))}


def _difference(config: DetectorConfig) -> dict[str, Any]:
    batch, found = random_batch(4, 160, 160, 10, 5), []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        detector = Detector(config, 10).train()
        with torch.no_grad():  # fresh sampling offsets are whole pixels, where a gradient jumps
            for parameter in detector.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        detector.to(device)
        torch.manual_seed(1)
        with patch("torch.rand", _drawn_by_the_host):
            total, losses = detector(batch.to(device))
        total.backward()
        norms = {n: p.grad.norm().item() for n, p in detector.named_parameters() if p.grad is not None}
        found.append(({name: loss.item() for name, loss in losses.items()}, norms))
    (own, own_norms), (other, other_norms) = found
    differences = {n: abs(own_norms[n] - other_norms[n]) / (own_norms[n] + 1e-3) for n in own_norms}
    return {
        "loss_difference": max(abs(own[n] - other[n]) / (abs(own[n]) + 1e-3) for n in own),
        "gradient_difference": max(differences.values()),
        "of": max(differences, key=lambda name: differences[name]),
    }


def _drawn_by_the_host(*shape: Any, device: torch.device | str = "cpu", **others: Any) -> Tensor:
    return RAND(*shape, **others).to(device)


def steps(number: int) -> Iterator[dict[str, Any]]:
    """Training steps of ResNet-50, two images of 800 x 1333."""
    for name, heads in SETS.items():
        for precision in PRECISIONS:
            measured = _steps(with_heads(R50, heads), precision, number)
            yield {"name": f"R50, 2 x 800 x 1333, {name}, {precision}", **measured}
    for name, config in detectors():
        yield {"name": f"{name}, 2 x 800 x 1333, K = 0, tf32", **_steps(config, "tf32", number)}
    for head in HEADS:  # what each adds to the memory
        if head != "mask_rcnn":  # which needs masks
            measured = _steps(with_heads(R50, (head,)), "tf32", min(number, 5))
            yield {"name": f"R50, 2 x 800 x 1333, K = 1: {head}, tf32", **measured}
    for name, config in detectors(names=("dino_5scale",)):
        largest = with_heads(config, SETS["K = 2: ATSS + Faster R-CNN"])
        yield {"name": f"{name}, 2 x 800 x 1333, K = 2, tf32", **_steps(largest, "tf32", number)}


def detectors(scale: str = "coco_r50_12e", names: Sequence[str] = DETECTORS) -> Iterator[tuple[str, DetectorConfig]]:
    """By their presets; none where pydantic, which reads those, is not installed."""
    if find_spec("pydantic") is None:
        print(f"left out, for pydantic is not installed: {', '.join(names)}", flush=True)
        return
    from benchmarks.presets import preset_detector

    for name in names:
        yield name, preset_detector(name, scale)


def stepper(config: DetectorConfig, precision: str) -> Callable[[], object]:
    """A training step as a trial does it."""
    set_precision(precision)
    torch.manual_seed(0)
    batch = random_batch(2, 800, 1333, 80, 8).to("cuda")
    detector = Detector(config, 80).cuda().train()
    train = replace(TRAIN, precision=precision)  # type: ignore[arg-type]
    optimizer = build_optimizer(detector, train)
    return lambda: train_step(detector, [batch], optimizer, train, step=0, total_steps=9, steps_per_epoch=9)


def _steps(config: DetectorConfig, precision: str, number: int) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    step = stepper(config, precision)
    for _ in range(4):
        step()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    times = []
    for _ in range(number):
        begun = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) * 1e3)
    return {
        "median_ms": statistics.median(times),
        "slowest_ms": max(times),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "synchronisations": len(where_it_waits(step)),
    }


def profile() -> str:
    """Where the time of a step at K = 2 goes, by kernel and by operator, and who synchronises."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    step = stepper(with_heads(R50, SETS["K = 2: ATSS + Faster R-CNN"]), "tf32")
    for _ in range(3):
        step()
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    averages = found.key_averages()
    by_device = averages.table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90)
    by_host = averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)
    return f"{by_device}\n{by_host}\n" + "\n".join(where_it_waits(step))


def where_it_waits(step: Callable[[], object]) -> list[str]:
    """File and line of each synchronisation of one step, by torch's own debug mode."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{warning.filename}:{warning.lineno}" for warning in told if "synchroniz" in str(warning.message)]


if __name__ == "__main__":
    sys.exit(main())
