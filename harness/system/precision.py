"""How exactly matrix products and convolutions are computed: a named choice, never left to torch's defaults.

`fp32` has no TF32 anywhere, `tf32` has it in both, and `bf16` is autocast, where what stays in fp32 is without TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def set_precision(precision: str) -> None:
    """Compute in `fp32`, `tf32` or `bf16` from now on; autocast is up to each forward pass."""
    kind = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = kind


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in another precision inside, with autocast where it asks for that."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    set_precision(precision)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before


def ran_in(precision: str, device: torch.device) -> str:
    """What `precision` amounts to on a device, for the record: a CPU has no TF32."""
    return "fp32" if precision == "tf32" and device.type == "cpu" else precision
