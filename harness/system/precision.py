"""How exactly matrix products and convolutions are computed: a named choice, never left to torch's defaults.

`fp32` has no TF32 anywhere, `tf32` has it in both, and `bf16` is autocast, where what stays in fp32 is without TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _rooms() -> tuple[Any, Any]:
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv


_AT_THE_START = [room.fp32_precision for room in _rooms()]


def set_precision(precision: str) -> None:
    """Compute in `fp32`, `tf32` or `bf16` from now on; autocast is up to each forward pass."""
    kind = "tf32" if precision == "tf32" else "ieee"
    for room in _rooms():
        room.fp32_precision = kind


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in another precision inside, with autocast where it asks for that."""
    before = [room.fp32_precision for room in _rooms()]
    set_precision(precision)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        for room, kind in zip(_rooms(), before, strict=True):
            room.fp32_precision = kind


@contextmanager
def as_torch_starts() -> Iterator[None]:
    """What torch itself chooses, inside: its exporter asks in a way that it refuses where another choice was made."""
    before = [room.fp32_precision for room in _rooms()]
    try:
        for room, kind in zip(_rooms(), _AT_THE_START, strict=True):
            room.fp32_precision = kind
        yield
    finally:
        for room, kind in zip(_rooms(), before, strict=True):
            room.fp32_precision = kind


def ran_in(precision: str, device: torch.device) -> str:
    """What `precision` amounts to on a device, for the record: a CPU has no TF32."""
    return "fp32" if precision == "tf32" and device.type == "cpu" else precision
