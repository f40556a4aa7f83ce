"""What runs the operators on this machine, and whether it computes what the reference computes.

The command `codetr doctor`: versions and places first, then each operator on a small problem, its largest difference
from the pure-torch reference and how much faster it is.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from harness.errors import UserError
from model import kernels, ops, ops_reference

LEVELS = ((20, 20), (10, 10), (5, 5))
REPEATS = 7
TOLERANCE = 1e-4  # relative to the largest number; both sides are float32

Results = tuple[Tensor, ...]


def examine() -> bool:
    """Print the findings; True where all is well.

    Raises:
        UserError: `CODETR_OPS` says what it may not.
    """
    try:
        mode = kernels.mode()
    except ValueError as error:
        raise UserError(str(error)) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    built = _compiler() or mode == "reference"
    if not built and device.type == "cpu":
        print("the pure-torch reference runs: correct, but several times slower")
        return False
    try:
        running = ops.implementation(device)
    except RuntimeError as error:  # they cannot be built, or they give wrong numbers
        _line("fault", str(error))
        return False
    _line("operators", f"{running} (CODETR_OPS is {mode})")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} processor"
    _line("device", f"{device.type}: {name}")
    _line("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if running == "reference":
        print("the pure-torch reference runs: correct, but several times slower")
        return mode == "reference"
    return all([_compare(*case) for case in _cases(device)]) and built


def _line(name: str, text: str) -> None:
    print(f"{name:<12}{text}", flush=True)


def _compiler() -> bool:
    """Print how the library came to be; False where it cannot."""
    try:
        path, version = kernels.find_compiler()
        _line("compiler", f"{path}: {version}")
        started = time.monotonic()
        library = kernels.load()
    except kernels.BuildError as error:
        _line("fault", str(error))
        return False
    _line("library", f"{library.path} (ready in {time.monotonic() - started:.1f} s)")
    return True


def _cases(device: torch.device) -> list[tuple[str, Callable[[], Results], Callable[[], Results]]]:
    make = torch.Generator().manual_seed(0)
    tokens = sum(h * w for h, w in LEVELS)
    value = torch.randn(4, tokens, 4, 16, generator=make).to(device).requires_grad_()
    locations = torch.rand(4, tokens, 4, 3, 4, 2, generator=make).to(device).requires_grad_()
    weights = torch.rand(4, tokens, 4, 3, 4, generator=make).to(device).requires_grad_()
    feature = torch.randn(2, 64, 20, 20, generator=make).to(device).requires_grad_()
    corners = torch.rand(200, 2, generator=make) * 120
    boxes = torch.cat([corners, corners + torch.rand(200, 2, generator=make) * 60], 1).to(device)
    rois = torch.cat([torch.arange(200)[:, None] % 2, boxes.cpu()], 1).to(device)
    scores, labels = torch.rand(200, generator=make).to(device), torch.randint(3, (200,), generator=make).to(device)

    def attend(function: Callable[..., Tensor]) -> Results:
        output = function(value, LEVELS, locations, weights)
        return output, *torch.autograd.grad(output.square().sum(), (value, locations, weights))

    def pool(function: Callable[..., Tensor]) -> Results:
        output = function(feature, rois, 7, 0.125)
        return output, *torch.autograd.grad(output.square().sum(), feature)

    def suppress() -> Results:
        order = scores.argsort(descending=True, stable=True)
        return (order[ops_reference.nms(boxes[order], labels[order], 0.5)],)

    return [
        ("attention", lambda: attend(ops.ms_deform_attn), lambda: attend(ops_reference.ms_deform_attn)),
        ("RoIAlign", lambda: pool(ops.roi_align), lambda: pool(ops_reference.roi_align)),
        ("NMS", lambda: (ops.nms(boxes, scores, labels, 0.5),), suppress),
    ]


def _compare(name: str, compiled: Callable[[], Results], reference: Callable[[], Results]) -> bool:
    pairs = [(a.detach(), b.detach()) for a, b in zip(compiled(), reference(), strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        _line(name, "FAULT: the compiled operator gives other shapes than the reference")
        return False
    difference = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for function, measured in zip((compiled, reference), seconds, strict=True):
            started = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            measured.append(time.perf_counter() - started)
    fast, slow = map(statistics.median, seconds)
    right = difference <= TOLERANCE
    verdict = "equals the reference" if right else "FAULT: differs from the reference"
    gradients = " with gradients" if len(pairs) > 1 else ""
    times = f"{fast * 1e3:.2f} ms{gradients} instead of {slow * 1e3:.2f} ms ({slow / fast:.1f}x)"
    _line(name, f"{verdict}, largest relative difference {difference:.0e}; {times}")
    return right
